import fcntl
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from observe_samples import FACTS, facts

from uwgate.config.settings import RequestLogSettings
from uwgate.observe import requestlog
from uwgate.observe.escape import escape, escape_json, escape_word
from uwgate.observe.logformat import compile_format
from uwgate.observe.logvars import Environment
from uwgate.observe.requestlog import FLUSH_SIZE, RequestLog, open_request_log
from uwgate.router.errors import Failure
from uwgate.router.facts import RequestFacts

HERE = Environment(pid=77, worker=3)
FORWARDED = Environment(pid=77, worker=3, x_forwarded_for=True)


@pytest.fixture(autouse=True)
def odd_zone() -> Iterator[None]:
    """Local time is 5:45 h ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "NPT-05:45")
        time.tzset()
        yield
    time.tzset()


def line(template: str, given_facts: RequestFacts = FACTS, environment: Environment = HERE) -> str:
    text = compile_format(template, environment)(given_facts)
    assert text.endswith("\n")
    return text[:-1]


def test_default_line() -> None:
    assert line("default") == (
        '192.0.2.1:5555 [15/Nov/2023:03:58:20 +0545] example.com "GET /a%20b?x=1 HTTP/1.1" 200'
        " 127.0.0.1:3031 2 0.150/2.345/1234.567 12/180/1000 ok"
    )


def test_default_line_of_a_failure_without_node_or_client() -> None:
    failed = facts(
        client=b"",
        host=b"",
        node="",
        attempts=0,
        connect_micros=-1,
        first_byte_micros=-1,
        total_micros=7,
        failure=Failure.NO_NODE,
        status=503,
    )
    text = line("default", failed)
    assert text.startswith("- [")
    assert '] - "GET /a%20b?x=1 HTTP/1.1" 503 - 0 -1/-1/0.007 12/180/1000 no-node' in text


def test_client_addresses_of_the_default_line() -> None:
    assert line("default", facts(client=b"2001:db8::1")).startswith("[2001:db8::1]:5555 [")
    forwarded = line("default", environment=FORWARDED)
    assert forwarded.startswith("203.0.113.9,\\x2010.0.0.1 [")
    assert line("default", facts(fields=b""), FORWARDED).startswith("192.0.2.1:5555 [")


def test_json_line() -> None:
    value = json.loads(line("json"))
    assert value == {
        "time": "2023-11-14T22:13:20.250Z",
        "client": "192.0.2.1",
        "client_port": 5555,
        "host": "example.com",
        "method": "GET",
        "target": "/a%20b?x=1",
        "protocol": "HTTP/1.1",
        "status": 200,
        "node": "127.0.0.1:3031",
        "attempts": 2,
        "connect_us": 150,
        "first_byte_us": 2345,
        "total_us": 1234567,
        "request_body": 12,
        "response_head": 180,
        "response_body": 1000,
        "keepalive": True,
        "reason": "ok",
    }
    assert json.loads(line("json", environment=FORWARDED))["client"] == "203.0.113.9, 10.0.0.1"
    failed = facts(failure=Failure.CLIENT_CLOSED, keepalive=False)
    assert json.loads(line("json", failed))["reason"] == "client-closed"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uri", "/a%20b?x=1"),
        ("method", "GET"),
        ("proto", "HTTP/1.1"),
        ("host", "example.com"),
        ("user", "-"),
        ("addr", "192.0.2.1"),
        ("uagent", "curl/8"),
        ("referer", "-"),
        ("status", "200"),
        ("rsize", "1000"),
        ("hsize", "180"),
        ("size", "1180"),
        ("cl", "12"),
        ("micros", "1234567"),
        ("msecs", "1234"),
        ("secs", "1.234567"),
        ("tmsecs", "1700000000250"),
        ("tmicros", "1700000000250000"),
        ("time", "1700000000"),
        ("ctime", "Wed Nov 15 03:58:20 2023"),
        ("ltime", "15/Nov/2023:03:58:20 +0545"),
        ("ftime", "15/Nov/2023:03:58:20 +0545"),
        ("pid", "77"),
        ("wid", "3"),
        ("core", "0"),
        ("switches", "0"),
        ("vars", "28"),
        ("pktsize", "266"),
        ("modifier1", "5"),
        ("modifier2", "6"),
        ("headers", "4"),
        ("werr", "0"),
        ("rerr", "0"),
        ("ioerr", "0"),
        ("vsz", "0"),
        ("rssM", "0"),
        ("metric.requests", "0"),
        ("var.REQUEST_METHOD", "GET"),
        ("var.REQUEST_URI", "/a%20b?x=1"),
        ("var.PATH_INFO", "/a b"),
        ("var.QUERY_STRING", "x=1"),
        ("var.SERVER_PROTOCOL", "HTTP/1.1"),
        ("var.REMOTE_ADDR", "192.0.2.1"),
        ("var.REMOTE_PORT", "5555"),
        ("var.CONTENT_LENGTH", "12"),
        ("var.CONTENT_TYPE", "text/plain"),
        ("var.HTTP_HOST", "example.com"),
        ("var.HTTP_X_FORWARDED_FOR", "203.0.113.9, 10.0.0.1"),
        ("var.HTTP_X_EMPTY", "-"),
        ("var.HTTP_NOPE", "-"),
        ("var.HTTP_\xe9", "-"),
        ("var.OTHER", "-"),
        ("nobody knows", "-"),
        ("", "-"),
        ("port", "5555"),
        ("node", "127.0.0.1:3031"),
        ("attempts", "2"),
        ("reason", "ok"),
        ("connect", "0.150"),
        ("first", "2.345"),
        ("total", "1234.567"),
        ("keepalive", "1"),
        ("path", "/a%20b"),
        ("query", "x=1"),
    ],
)
def test_variables(name: str, value: str) -> None:
    assert line(f"%({name})") == value


def test_variables_of_failures_and_odd_requests() -> None:
    assert line("%(werr)%(rerr)%(ioerr)", facts(failure=Failure.CLIENT_CLOSED)) == "101"
    assert line("%(werr)%(rerr)%(ioerr)", facts(failure=Failure.BODY_TIMEOUT)) == "011"
    assert line("%(reason)", facts(failure=Failure.NODE_EMPTY)) == "node-empty"
    assert line("%(cl)", facts(fields=b"Content-Length: 1_0")) == "0"
    assert line("%(addr)", environment=FORWARDED) == "203.0.113.9, 10.0.0.1"
    assert line("%(var.REMOTE_ADDR)", environment=FORWARDED) == "192.0.2.1"
    assert line("%(var.REMOTE_PORT)", facts(client=b"")) == "-"
    assert abs(int(line("%(epoch)")) - time.time()) < 60


def test_templates_keep_their_own_text() -> None:
    assert line("100% é %(status) %d %(broken %%") == "100% é 200 %d %(broken %%"
    assert line("no variable") == "no variable"


def test_only_whole_header_names_are_found() -> None:
    only = facts(fields=b"X-User-Agent: no\r\nUser-Agent-X: no\r\nX: User-Agent: no")
    assert line("%(uagent)", only) == "-"


HOSTILE = b'a"b\\c\r\nd\x00e\x1b[2J\x7f\xc3\xa9\xff f'


def test_hostile_bytes_are_escaped_everywhere() -> None:
    hostile = facts(
        method=HOSTILE, target=HOSTILE, host=HOSTILE, client=HOSTILE, node=HOSTILE.decode("latin-1")
    )
    escaped = "a\\x22b\\x5cc\\x0d\\x0ad\\x00e\\x1b[2J\\x7f\\xc3\\xa9\\xff f"
    assert line("%(uri)", hostile) == escaped
    assert line("%(var.PATH_INFO)", facts(target=b"/%0d%0A%22")) == "/\\x0d\\x0a\\x22"
    text = line("default", hostile)
    assert f'"{escaped} {escaped} HTTP/1.1"' in text
    assert text.count(" ") == line("default").count(" ") + 2  # those within the quotes
    value = json.loads(line("json", hostile))
    assert value["target"] == 'a"b\\c\r\nd\x00e\x1b[2J\x7fé\\xff f'


@given(st.binary())
def test_escapes_are_printable_and_lossless(raw: bytes) -> None:
    for text in (escape(raw), escape_json(raw), escape_word(raw)):
        assert re.fullmatch(r"[\x20-\x7e]*", text)
    assert '"' not in escape(raw)
    assert " " not in escape_word(raw)
    assert escape(raw).encode().decode("unicode_escape").encode("latin-1") == raw


def test_long_words_are_escaped_like_short_ones() -> None:
    assert escape_word(b"a b" * 200) == "a\\x20b" * 200


def opened(path: Path, **options: object) -> RequestLog:
    return open_request_log(RequestLogSettings(enabled=True, path=str(path), **options), worker=3)


def test_lines_are_gathered_and_flushed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path, format="%(wid) %(pid) %(status)")
    log(FACTS)
    log(FACTS)
    assert path.read_bytes() == b""
    log.flush()
    log.flush()
    assert path.read_text() == f"3 {os.getpid()} 200\n" * 2
    log(FACTS)
    log.close()
    assert len(path.read_text().splitlines()) == 3
    assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_64_kib_flush_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path, format="x" * 1023)
    for _ in range(FLUSH_SIZE // 1024 - 1):
        log(FACTS)
    assert path.stat().st_size == 0
    log(FACTS)
    assert path.stat().st_size == FLUSH_SIZE
    log.close()


def test_reopen_after_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path, format="%(status)")
    log(FACTS)
    path.rename(tmp_path / "old")
    log.reopen()
    log(FACTS)
    log.close()
    assert (tmp_path / "old").read_text() == "200\n"
    assert path.read_text() == "200\n"


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    log = opened(directory / "log", format="%(status)")
    directory.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log(FACTS)
    log.close()
    assert (tmp_path / "moved" / "log").read_text() == "200\n"


def test_a_fifo_without_reader_is_an_error_not_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        opened(tmp_path / "fifo")


def test_standard_output_in_a_real_process() -> None:
    program = (
        "from observe_samples import FACTS\n"
        "from uwgate.config.settings import RequestLogSettings\n"
        "from uwgate.observe.requestlog import open_request_log\n"
        "log = open_request_log(RequestLogSettings(enabled=True, format='%(status)'))\n"
        "log(FACTS); log.reopen(); log(FACTS); log.close(); print('still open')\n"
    )
    root = Path(requestlog.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{root}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == b"200\n200\nstill open\n"


def test_a_stalled_reader_costs_lines_not_time(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = opened(path, format="%(tmicros) " + "x" * 1000)
    total = 3000
    for number in range(total):
        log(facts(started=float(number)))
    log.flush()
    assert log.dropped > 0
    received = b""
    while received.count(b"\n") + log.dropped != total:
        assert select.select([reader], [], [], 10)[0]
        received += os.read(reader, 1 << 20)
        log.flush()
    os.close(reader)
    log(FACTS)
    log.close()  # nobody reads any more: counted, not raised
    assert log.dropped + received.count(b"\n") == total + 1
    lines = received.decode().splitlines()
    assert all(re.fullmatch(r"[0-9]+ x{1000}", text) for text in lines)
    numbers = [int(text.split()[0]) for text in lines]
    assert numbers == sorted(numbers)
    assert received.endswith(b"\n")


def test_a_reader_that_leaves_lines_behind_at_close(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, 1031, 4096)  # F_SETPIPE_SZ
    log = opened(path, format="x" * 999)
    for _ in range(10):
        log(FACTS)
    log.close()
    assert log.dropped == 10 - len(os.read(reader, 1 << 16)) // 1000 > 0
    os.close(reader)


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = opened(path, format="%(uri)")
    target = b"/" + b"a" * 20_000
    log(facts(target=target))
    log.close()
    assert os.read(reader, 1 << 16) == target + b"\n"
    os.close(reader)


def test_a_full_disk_costs_lines_and_cuts_none_in_two(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: a partial write, then an error."""
    path = tmp_path / "log"
    log = opened(path, format="x" * 99)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, limits[1]))
        for _ in range(5):
            log(FACTS)
        log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert log.dropped == 3
    log(FACTS)
    log.close()
    assert [len(text) for text in path.read_text().splitlines()] == [99, 99, 50, 99]
