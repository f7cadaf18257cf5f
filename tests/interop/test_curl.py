"""curl as client: versions, uploads from a pipe, Expect, connection reuse, compression."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.uwgate import Gateway, running
from support.waiting import free_port

from interop.apps.workhorse import blob, blob_digest
from interop.peers import Peer, curl, curl_json


@pytest.fixture(scope="module", params=["uwsgi", "http"])
def front(request: pytest.FixtureRequest, uwsgi_app: Peer, gunicorn_app: Peer) -> Iterator[Gateway]:
    node = uwsgi_app.address if request.param == "uwsgi" else f"http://{gunicorn_app.address}"
    with running("--http-to", node) as gateway:
        yield gateway


def url(gateway: Gateway, path: str) -> str:
    return f"http://127.0.0.1:{gateway.port}{path}"


def test_get(front: Gateway) -> None:
    seen = curl_json("--http1.1", url(front, "/a/b?c=d"))
    assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/a/b", "c=d")


@pytest.mark.parametrize("path", ["/env", "/unframed?size=70000", "/download?size=70000"])
def test_http_1_0(front: Gateway, path: str) -> None:
    done = curl("--http1.0", "--fail", "-D", "-", url(front, path))
    assert done.returncode == 0, done.stderr
    head, body = done.stdout.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head.lower()
    if path != "/env":
        assert body == b"".join(blob(70000))


def test_post_form(front: Gateway) -> None:
    done = curl("--fail", "-d", "a=1&b=2", url(front, "/echo"))
    assert done.stdout == b"a=1&b=2", done.stderr


def test_upload_from_a_pipe(front: Gateway) -> None:
    """``-T -``: curl sends chunks, with an Expect because the size is unknown."""
    body = b"".join(blob(3 << 20))
    seen = curl_json("-T", "-", url(front, "/drain"), stdin=body)
    assert seen == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_upload_of_a_file(front: Gateway, tmp_path: Path) -> None:
    """Above 1 MB curl announces the body with ``Expect: 100-continue``."""
    path = tmp_path / "file"
    path.write_bytes(b"".join(blob(2 << 20)))
    seen = curl_json("-T", str(path), url(front, "/drain"))
    assert seen["sha256"] == blob_digest(2 << 20)


def test_connections_are_reused(front: Gateway) -> None:
    paths = [url(front, p) for p in ("/env", "/unframed?size=9", "/status?code=204", "/echo")]
    outputs = [word for path in paths for word in ("-o", "/dev/null", path)]
    done = curl("-w", "%{http_code} %{num_connects}\n", *outputs)
    assert done.stdout.split(b"\n")[:4] == [b"200 1", b"200 0", b"204 0", b"200 0"], done.stdout


def test_head(front: Gateway) -> None:
    done = curl("-I", url(front, "/download?size=123"))
    assert b"content-length: 123" in done.stdout.lower()


def test_timing_of_managed_expect(uwsgi_app: Peer) -> None:
    """With ``http-manage-expect`` the gateway itself says 100, at once."""
    with running("--http-to", uwsgi_app.address, "--http-manage-expect=1") as gateway:
        done = curl(
            "-v", "--expect100-timeout", "15", "-H", "Expect: 100-continue", "-d", "body",
            "-w", "%{time_total}", url(gateway, "/echo"),
        )  # fmt: skip
        assert done.stdout.startswith(b"body")
        assert float(done.stdout[4:]) < 5
        assert b"< HTTP/1.1 100 Continue" in done.stderr


def test_limit_of_managed_expect(uwsgi_app: Peer) -> None:
    """A value above 1 is also the largest Content-Length: 413 instead of 100."""
    with running("--http-to", uwsgi_app.address, "--http-manage-expect=1000") as gateway:
        expect = ["--expect100-timeout", "15", "-H", "Expect: 100-continue"]
        small = curl("-w", "%{http_code}", *expect, "-d", "s" * 1000, url(gateway, "/digest"))
        assert small.stdout.endswith(b"200")
        large = curl("-w", "%{http_code}", *expect, "-d", "s" * 1001, url(gateway, "/digest"))
        assert large.stdout.endswith(b"413")


def test_http_max_body(uwsgi_app: Peer) -> None:
    with running("--http-to", uwsgi_app.address, "--http-max-body", "1000") as gateway:
        code = ["-o", "/dev/null", "-w", "%{http_code}"]
        for body, expected in (("s" * 1000, b"200"), ("s" * 1001, b"413")):
            assert curl(*code, "-d", body, url(gateway, "/digest")).stdout == expected
            chunked = curl(*code, "-T", "-", url(gateway, "/digest"), stdin=body.encode())
            assert chunked.stdout == expected


def test_automatic_compression(uwsgi_app: Peer) -> None:
    """``http-auto-gzip`` compresses what the application marks, only for who accepts it."""
    with running("--http-to", uwsgi_app.address, "--http-auto-gzip") as gateway:
        target = url(gateway, "/squeeze?size=200000")
        plain = curl("-D", "-", target)
        head, body = plain.stdout.split(b"\r\n\r\n", 1)
        assert b"content-encoding" not in head.lower()
        assert body == b"".join(blob(200000))
        squeezed = curl("--compressed", "-D", "-", target)
        head, body = squeezed.stdout.split(b"\r\n\r\n", 1)
        assert b"content-encoding: gzip" in head.lower()
        assert b"uwsgi-encoding" not in head.lower()
        assert b"vary" in head.lower()
        assert body == b"".join(blob(200000))
        for version, method in (("--http1.0", "GET"), ("--http1.1", "HEAD")):
            words = ["-I"] if method == "HEAD" else []
            other = curl(version, *words, "-H", "Accept-Encoding: gzip", "-D", "-", target)
            assert b"content-encoding" not in other.stdout.split(b"\r\n\r\n", 1)[0].lower()


def test_unix_socket_listener(uwsgi_app: Peer, tmp_path: Path) -> None:
    path = str(tmp_path / "front.sock")
    with running("--http-to", uwsgi_app.address, listen=path):
        seen = curl_json("--unix-socket", path, "http://name.test/x")
    assert (seen["HTTP_HOST"], seen["PATH_INFO"]) == ("name.test", "/x")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("0.0.0.0", "0")
    assert seen["SERVER_PORT"] == ""


def test_abstract_listener(uwsgi_app: Peer, tmp_path: Path) -> None:
    name = f"@uwgate-{tmp_path.name}-{id(tmp_path)}"
    with (
        running("--http-to", uwsgi_app.address, listen=name) as gateway,
        gateway.connect() as client,
    ):
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert json.loads(reply.body)["REMOTE_ADDR"] == "0.0.0.0"


def test_ipv6_listener(uwsgi_app: Peer) -> None:
    port = free_port()
    with running("--http-to", uwsgi_app.address, listen=f"[::1]:{port}"):
        seen = curl_json("--globoff", f"http://[::1]:{port}/six")
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("::1", str(port))


def test_errors_are_readable(tmp_path: Path) -> None:
    """A dead node is a 502 with a body by Accept, not silence."""
    with running("--http-to", str(tmp_path / "nobody.sock")) as gateway:
        done = curl("-w", "\n%{http_code}", "-H", "Accept: application/json", url(gateway, "/"))
        body, _, code = done.stdout.rpartition(b"\n")
        assert code in (b"502", b"503")
        assert isinstance(json.loads(body), dict)
        page = curl("-D", "-", "-H", "Accept: text/html", url(gateway, "/"))
        assert b"content-type: text/html" in page.stdout.lower()
