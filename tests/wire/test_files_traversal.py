"""Static files: whatever is asked for, nothing outside is sent, and nothing hidden.

Targets go over the wire byte by byte as they stand here. Outside of the served directories lie
canaries: files whose content no response may have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from support.client import Client, Reply
from support.files import CANARY, GOOD, HIDDEN, ask, fill, request, write
from support.nodes import Connection, RawHttpNode, Seen, response
from support.uwgate import Gateway, StartGateway, running
from support.waiting import DEADLINE

FROM_NODE = b"from the node"
# Of a process and of the system: where links to /proc and /etc would lead.
FORBIDDEN = (b"canary: ", b"root:x:", b"uwgate\0", b"PATH=", b"LD_LIBRARY")
CODINGS = b"Accept-Encoding: gzip, br, zstd"

UP = [
    b"..", b"%2e%2e", b"%2E%2E", b".%2e", b"%2E.", b"%252e%252e", b"%25%32%65%25%32%65",
    b"%c0%ae%c0%ae", b"%e0%80%ae%e0%80%ae", b"%u002e%u002e", b"%uff0e%uff0e", b"%%32%65%%32%65",
    b"..%00", b"%00..", b"..;", b"..;x=1", b"...", b"..%20", b".. ", b"..%09", b"..%0d",
    b"\xc0\xae.",
]  # fmt: skip
SLASH = [b"/", b"//", b"/./", b"%2f", b"%2F", b"%5c", b"%5C", b"\\", b"%252f", b"%c0%af", b"%u2215"]


def _climbing() -> Iterator[bytes]:
    for up, slash in product(UP, SLASH):
        yield b"/" + up + slash + b"secret.txt"
        yield b"/dir" + slash + (up + slash) * 2 + b"secret.txt"


NEVER: dict[str, list[bytes]] = {
    "climbing": list(_climbing()),
    "depths": [
        (b"/" + up) * depth + tail
        for up in (b"..", b"%2e%2e", b"dir/../..")
        for depth in (1, 2, 3, 8, 40)
        for tail in (b"/etc/shadow", b"/etc/passwd", b"/outside/canary.txt")
    ],
    "detours": [
        b"/dir/deep/../../../secret.txt",
        b"/dir/./.././../secret.txt",
        b"//..//secret.txt",
        b"/.//../secret.txt",
        b"/missing/../../secret.txt",
        b"/good.txt/../../secret.txt",
        b"/%2e/%2e%2e/secret.txt",
        b"/..%2fsecret.txt%3f",
        b"/..%2fsecret.txt%23",
        b"/../secret.txt?x=/good.txt",
        b"/?/../../secret.txt",
        b"/../secret.txt%00.html",
        b"/good.txt%00/../../secret.txt",
        b"/good.txt%00",
        b"/good.txt\x00",
        b"/\x00/../secret.txt",
        b"/%00",
    ],
    "parameters": [
        b"/;/../../secret.txt",
        b"/dir;x=1/../../secret.txt",
        b"/..;jsessionid=1/secret.txt",
        b"/.;/..;/secret.txt",
    ],
    "absolute": [
        b"http://h/../secret.txt",
        b"http://h/%2e%2e/secret.txt",
        b"http://h/..%5csecret.txt",
        b"http://h/static/../../secret.txt",
        b"http://h/.git/config",
        b"http:///../secret.txt",
        b"http://../secret.txt",
        b"HTTP://h/..%2fsecret.txt",
        b"file:///etc/passwd",
        b"file://h/../secret.txt",
        b"/etc/passwd",
        b"//etc/passwd",
        b"/%2fetc/passwd",
        b"%2fetc%2fpasswd",
        b"../secret.txt",
        b"..",
        b"secret.txt",
        b"*",
        b"h:80",
        b"~/secret.txt",
        b"/~root/secret.txt",
        b"?/../secret.txt",
        b"#/../secret.txt",
        b"/#/../../secret.txt",
        b"\\..\\secret.txt",
        b"C:\\secret.txt",
        b"/C:/secret.txt",
    ],
    "ends of names": [
        b"/good.txt/",
        b"/good.txt/.",
        b"/good.txt//",
        b"/good.txt.",
        b"/good.txt%20",
        b"/good.txt ",
        b"/good.txt%09",
        b"/good.txt..",
        b"/good.txt::$DATA",
        b"/good.txt%2f",
        b"/GOOD.TXT",
        b"/good.txt%0a",
        b"/good.txt%0d%0aX-Injected:%20yes",
        b"/good.txt%",
        b"/good.txt%2",
        b"/good.txt%zz",
        b"/good%",
    ],
    "long": [
        b"/" + b"../" * 2000 + b"etc/passwd",
        b"/" + b"a/" * 1500 + b"../" * 1501 + b"secret.txt",
        b"/" + b"%2e%2e%2f" * 800 + b"secret.txt",
        b"/" + b"a" * 300,
        b"/" + b"a" * 4096 + b"/../../secret.txt",
        b"/" + b"a" * 30000,
        b"/" + b"/" * 5000 + b"../secret.txt",
        b"/dir" + b"/." * 3000 + b"/../../secret.txt",
    ],
    "mounts": [
        b"/static../secret.txt", b"/static..%2fsecret.txt", b"/static%2e%2e/secret.txt",
        b"/static/../secret.txt", b"/static/../../secret.txt", b"/static/%2e%2e/%2e%2e/secret.txt",
        b"/static/..%2f..%2fsecret.txt", b"/static/..%5csecret.txt", b"/static//../..//secret.txt",
        b"/static/..static-old/canary.txt", b"/static/../static-old/canary.txt",
        b"/static-old/canary.txt", b"/staticapp.css", b"/static.css", b"/static%00/app.css",
        b"/static;/app.css", b"/Static/app.css", b"/static%20/app.css",
        b"/one.txt/../../secret.txt", b"/one.txt/x", b"/one.txt/",
        b"/one.txt/../one.txt/secret.txt", b"/served-old/canary.txt", b"/../served-old/canary.txt",
        b"/..%2fserved-old/canary.txt", b"/whole/../../secret.txt", b"/whole../secret.txt",
    ],
    "hidden": [
        b"/.git/config", b"/./.git/config", b"//.git/config", b"/.//.git//config",
        b"/%2egit/config", b"/%2Egit/config", b"/%2e%67%69%74/config", b"/.%67it/config",
        b"/.git%2fconfig", b"/%2egit%2fconfig", b"/.git%5cconfig", b"/.git\\config",
        b"/.git/./config", b"/.git/x/../config", b"/dir/../.git/config",
        b"/dir/%2e%2e/%2egit/config", b"/.git;/config", b"/.git/config?.css",
        b"/.git/config%00.css", b"/.git/config/", b"/.git", b"/.git/", b"/.GIT/config", b"/.env",
        b"/%2eenv", b"/.env.", b"/.env%20", b"/dir/.env", b"/dir/%2eenv", b"/dir%2f.env",
        b"/dir/./.env", b"/static/.env", b"/static/%2eenv", b"/static%2f.env",
        b"/.well-known/.env", b"/.well-known/../.env", b"/.well-known/../.git/config",
        b"/.well-known/%2e%2e/.git/config", b"/.well-known/.git/config",
        b"/.well-known-old/config", b"/.well-knownX/config", b"/...hidden/config",
        b"/..hidden/config", b"/visible", b"/visible-chain", b"/visible-directory/config",
        b"/visible-directory/",
    ],
    "links": [
        b"/to-absolute", b"/to-relative", b"/to-sibling", b"/to-chain", b"/to-long-chain",
        b"/to-loop", b"/to-itself", b"/to-nothing", b"/to-passwd", b"/out/canary.txt", b"/out/",
        b"/out", b"/out/../secret.txt", b"/out/.", b"/out-relative/canary.txt",
        b"/out-and-back/good.txt/../../outside/canary.txt", b"/above/secret.txt",
        b"/above/outside/canary.txt", b"/above/served-old/canary.txt", b"/dir/up/secret.txt",
        b"/dir/up/outside/canary.txt", b"/static/to-absolute", b"/static/up/secret.txt",
        b"/one-link.txt", b"/whole/to-absolute",
    ],
    "proc": [
        b"/proc-root-file",
        b"/proc-root/etc/passwd",
        b"/proc-cwd/README.md",
        b"/proc-self/environ",
        b"/proc-self/cmdline",
        b"/proc-self/root" b"/etc/passwd",
        b"/proc-environ",
        *(b"/proc-fd/%d" % number for number in range(12)),
        b"/proc-fd/",
        b"/proc-fd-3",
    ],
    "special": [
        b"/fifo", b"/socket", b"/device", b"/to-fifo", b"/to-device", b"/fifo/", b"/fifo.txt",
    ],
    "index": [b"/index-out/", b"/index-out", b"/index-hidden/", b"/index-loop/", b"/index-fifo/"],
    "variants by name": [b"/plain.txt.gz", b"/plain.txt.br", b"/plain.txt.zst"],
}  # fmt: skip
"""Targets for which no file is sent."""

INSIDE: dict[str, list[bytes]] = {
    "detours": [
        b"/good.txt", b"/./good.txt", b"//good.txt", b"///good.txt", b"/.//./good.txt",
        b"/%67ood.txt", b"/good%2Etxt", b"/dir/../good.txt", b"/dir/%2e%2e/good.txt",
        b"/dir/..//good.txt", b"/dir%2f..%2fgood.txt", b"/missing/../good.txt", b"/%2fgood.txt",
        b"/static/../good.txt", b"/out/../good.txt", b"/.git/../good.txt",
        b"/good.txt?../../secret.txt", b"/good.txt?%00",
        b"/dir/page.txt", b"/dir/", b"/dir/.", b"/dir/deep/..", b"/dir/%2e",
        b"/.well-known/acme", b"/%2ewell-known/acme", b"/" + b"a/../" * 1000 + b"good.txt",
    ],
    "mounts": [
        b"/static/app.css", b"/static//app.css", b"/static%2fapp.css", b"/%73tatic/app.css",
        b"/x/../static/app.css", b"/static/./app.css", b"/one.txt", b"/one%2etxt",
        b"/static/../static/app.css", b"/static-old/../static/app.css", b"/whole/good.txt",
    ],
    "links": [
        b"/inner", b"/inner-absolute", b"/inner-chain", b"/inner-directory/page.txt",
        b"/inner-directory/", b"/inner-directory/../good.txt", b"/out-and-back/good.txt",
    ],
    "variants": [b"/plain.txt", b"/static/plain.css"],
}  # fmt: skip
"""Targets that lead, by whatever way, to a file with `GOOD` in it."""


def _answer(connection: Connection, seen: Seen) -> None:
    raw = response(FROM_NODE)
    connection.send(raw[: -len(FROM_NODE)] if seen.method == b"HEAD" else raw)


@dataclass
class Site:
    """A gateway with the tree; ``node``: whether misses go to a node."""

    gateway: Gateway
    node: bool
    base: Path

    def assert_good(self) -> None:
        with self.gateway.connect() as client:
            assert ask(client, b"/good.txt").body == GOOD


@pytest.fixture(scope="module", params=["nodeless", "node"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("tree")
    fill(base)
    with ExitStack() as stack:
        options = [
            f"--check-static={base}/served",
            f"--static-map=/static={base}/static",
            f"--static-map=/one.txt={base}/one.txt",
            f"--static-map=/one-link.txt={base}/served/to-nothing",
            f"--static-map2=/whole={base}/map2",
            "--static-index=index.html",
            "--static-gzip-all",
        ]
        if request.param == "node":
            node = stack.enter_context(RawHttpNode())
            node.otherwise = _answer
            options += ["--http-to", node.spec]
        gateway = stack.enter_context(running(*options))
        yield Site(gateway, request.param == "node", base)


def _assert_clean(reply: Reply, target: bytes) -> None:
    """Nothing forbidden in a response, and nothing about it."""
    for word in FORBIDDEN:
        assert word not in reply.body, (target, reply)
    for name, value in reply.headers:
        assert b"injected" not in name.lower(), (target, reply)
        if name == b"content-length":
            assert int(value) not in (len(CANARY), len(HIDDEN)), (target, reply)
    assert not reply.all(b"etag") or reply.get(b"content-length") == b"%d" % len(GOOD), target


def test_the_corpus_is_large_and_has_nothing_twice() -> None:
    corpus = [each for targets in (*NEVER.values(), *INSIDE.values()) for each in targets]
    assert len(corpus) >= 150
    assert sorted({each for each in corpus if corpus.count(each) > 1}) == []


@pytest.mark.parametrize("group", NEVER)
def test_nothing_outside_is_sent(site: Site, group: str) -> None:
    for target in NEVER[group]:
        with site.gateway.connect() as client:
            client.send_willing(request(target, CODINGS))
            reply = client.read_response()
        _assert_clean(reply, target)
        if reply.status == 200:
            assert site.node, (target, reply)
            assert reply.body == FROM_NODE, (target, reply)
        else:
            assert 400 <= reply.status < 500, (target, reply)
    site.assert_good()


@pytest.mark.parametrize("group", NEVER)
def test_head_tells_nothing_of_it(site: Site, group: str) -> None:
    for target in NEVER[group][:60]:
        with site.gateway.connect() as client:
            client.send_willing(request(target, CODINGS, b"Range: bytes=0-0", method=b"HEAD"))
            reply = client.read_response(b"HEAD")
        _assert_clean(reply, target)
        assert 400 <= reply.status < 500 or (site.node and reply.status == 200), (target, reply)
        assert reply.body == b""
        assert reply.all(b"last-modified") == reply.all(b"accept-ranges") == [], target
    site.assert_good()


@pytest.mark.parametrize("group", INSIDE)
def test_what_leads_inside_is_sent(site: Site, group: str) -> None:
    with site.gateway.connect() as client:
        for target in INSIDE[group]:
            reply = ask(client, target, CODINGS)
            assert (reply.status, reply.body) == (200, GOOD), (target, reply)
            assert reply.all(b"content-encoding") == [], target
            assert reply.get(b"vary") == b"Accept-Encoding"


def test_one_connection_for_everything(site: Site) -> None:
    """What was asked before makes no difference (heads and misses are remembered)."""
    targets = [each for group in ("hidden", "links", "proc", "special") for each in NEVER[group]]
    with ExitStack() as stack:
        client = stack.enter_context(site.gateway.connect())
        for target in [*targets, *targets]:
            reply = ask(client, target)
            _assert_clean(reply, target)
            assert reply.status != 200 or reply.body == FROM_NODE, (target, reply)
            if reply.closes:
                client = stack.enter_context(site.gateway.connect())
            assert ask(client, b"/good.txt").body == GOOD


REDIRECTS = [b"/dir", b"//dir", b"///dir", b"/%2fdir", b"/.//dir", b"/x/..//dir", b"/%2f%2fdir"]


@pytest.mark.parametrize("target", REDIRECTS)
def test_a_redirection_stays_on_this_host(site: Site, target: bytes) -> None:
    with site.gateway.connect() as client:
        reply = ask(client, target + b"?a=//b")
        assert (reply.status, reply.get(b"location")) == (301, b"/dir/?a=//b")
        assert ask(client, b"/good.txt").body == GOOD


# --- links that may lead out ----------------------------------------------------------------------


def test_static_safe_lets_links_lead_there(tmp_path: Path, start_gateway: StartGateway) -> None:
    root, safe = tmp_path / "served", tmp_path / "safe"
    write(root / "good.txt", GOOD)
    write(safe / "a.txt", GOOD)
    write(safe / "index.html", GOOD)
    write(safe / ".env", HIDDEN)
    write(tmp_path / "safe-old/a.txt", CANARY)
    write(tmp_path / "secret.txt", CANARY)
    (safe / "out").symlink_to("../secret.txt")
    (safe / "home").symlink_to("../served/good.txt")
    for name, target in {
        "file": "../safe/a.txt",
        "directory": safe,
        "chain": "directory/a.txt",
        "by-way-of": "../safe/home",
        "old": "../safe-old/a.txt",
        "old-directory": "../safe-old",
        "hidden": "../safe/.env",
        "up": "..",
    }.items():
        (root / name).symlink_to(target)
    gateway = start_gateway(
        f"--check-static={root}", f"--static-safe={safe}", "--static-index=index.html"
    )
    with gateway.connect() as client:
        for path in (b"/file", b"/directory/a.txt", b"/directory/", b"/chain", b"/by-way-of"):
            assert ask(client, path).body == GOOD, path
        for path in (b"/directory/home", b"/up/safe/a.txt", b"/up/served/good.txt"):
            assert ask(client, path).body == GOOD, path
        for path in (
            b"/old", b"/old-directory/a.txt", b"/hidden", b"/directory/.env", b"/directory/out",
            b"/up/secret.txt", b"/a.txt", b"/safe/a.txt", b"/directory/../../secret.txt",
        ):  # fmt: skip
            reply = ask(client, path)
            assert reply.status == 404, (path, reply)
            assert b"canary" not in reply.body


def test_hidden_names_with_static_dotfiles(tmp_path: Path, start_gateway: StartGateway) -> None:
    root = tmp_path / "served"
    write(root / ".git/config", GOOD)
    write(tmp_path / "secret.txt", CANARY)
    (root / ".out").symlink_to("../secret.txt")
    (root / "visible").symlink_to(".git/config")
    gateway = start_gateway(f"--check-static={root}", "--static-dotfiles=true")
    with gateway.connect() as client:
        for path in (b"/.git/config", b"/%2egit%2fconfig", b"/visible"):
            assert ask(client, path).body == GOOD
        for path in (b"/.out", b"/..", b"/../secret.txt", b"/.git/../../secret.txt", b"/.git%2f.."):
            assert ask(client, path).status == 404, path


def test_links_in_the_name_of_a_root(tmp_path: Path, start_gateway: StartGateway) -> None:
    """They are followed, and what is allowed is where they lead to."""
    write(tmp_path / "releases/1/good.txt", GOOD)
    write(tmp_path / "releases/secret.txt", CANARY)
    write(tmp_path / "secret.txt", CANARY)
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "releases/1/up").symlink_to("../secret.txt")
    (tmp_path / "releases/1/self").symlink_to(tmp_path / "current/good.txt")
    gateway = start_gateway(f"--check-static={tmp_path}/current")
    with gateway.connect() as client:
        assert ask(client, b"/good.txt").body == GOOD
        assert ask(client, b"/self").body == GOOD
        for path in (b"/up", b"/../secret.txt", b"/%2e%2e/%2e%2e/secret.txt"):
            assert ask(client, path).status == 404


# --- links that are swapped -----------------------------------------------------------------------

LARGE = 40_000  # is not kept in memory
COUNT = 400  # a path is looked up once a second; many paths are many looks


@contextmanager
def _swapping(swap: Callable[[], None]) -> Iterator[None]:
    """``swap`` again and again, in a thread."""
    ended = threading.Event()
    faults: list[BaseException] = []

    def loop() -> None:
        try:
            while not ended.is_set():
                swap()
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert faults == []


def _race(gateway: Gateway, targets: list[bytes]) -> None:
    """Four connections ask for all targets in turn: what comes is from inside, or nothing."""
    seen: dict[int, int] = {200: 0, 404: 0}
    with ExitStack() as stack:
        clients: list[Client] = [stack.enter_context(gateway.connect()) for _ in range(4)]
        started, number = time.monotonic(), 0
        while (now := time.monotonic()) < started + 1.0 or (
            not all(seen.values()) and now < started + DEADLINE
        ):
            asked = []
            for client in clients:
                number += 1
                asked.append(targets[number % len(targets)])
                client.send(request(asked[-1]))
            for client, target in zip(clients, asked, strict=True):
                reply = client.read_response()
                seen[reply.status] += 1  # KeyError: neither
                if reply.status == 200:
                    assert set(reply.body) == {ord("i")}, (target, reply.body[:200])
                    assert len(reply.body) in (100, LARGE)
                else:
                    assert b"oooo" not in reply.body
    assert all(seen.values()), seen


def _two_sizes(directory: Path, letter: bytes) -> None:
    write(directory / "small", letter * 100)
    write(directory / "large", letter * LARGE)


def test_a_link_to_a_file_that_is_swapped(tmp_path: Path, start_gateway: StartGateway) -> None:
    root = tmp_path / "served"
    _two_sizes(root / "inside", b"i")
    _two_sizes(tmp_path / "outside", b"o")
    for size in ("small", "large"):
        (root / f"hop-{size}").symlink_to(f"inside/{size}")
        for number in range(COUNT):
            (root / f"{size}-{number}").symlink_to(f"hop-{size}")
    new = root / "new"

    def swap() -> None:
        for where in ("../outside", "inside"):
            for size in ("small", "large"):
                new.symlink_to(f"{where}/{size}")
                new.rename(root / f"hop-{size}")

    gateway = start_gateway(f"--check-static={root}")
    names = [f"/{size}-{number}".encode() for number in range(COUNT) for size in ("small", "large")]
    with _swapping(swap):
        _race(gateway, [b"/hop-small", b"/hop-large", *names])


@pytest.mark.parametrize("threads", [0, 2])
def test_a_directory_that_is_swapped(
    tmp_path: Path, start_gateway: StartGateway, threads: int
) -> None:
    """A real one, and a link to another with the same names in it."""
    root = tmp_path / "served"
    for directory, letter in ((root / "here/sub", b"i"), (tmp_path / "outside/sub", b"o")):
        _two_sizes(directory, letter)
        for number in range(COUNT):
            for size in ("small", "large"):
                (directory / f"{size}-{number}").hardlink_to(directory / size)
    here, aside, new = root / "here", root / "aside", root / "new"

    def swap() -> None:
        here.rename(aside)
        new.symlink_to("../outside")
        new.rename(here)
        here.unlink()
        aside.rename(here)

    gateway = start_gateway(f"--check-static={root}", f"--offload-threads={threads}")
    names = [f"/here/sub/{size}-{n}".encode() for n in range(COUNT) for size in ("small", "large")]
    with _swapping(swap):
        _race(gateway, names)


def test_a_file_that_becomes_a_link(tmp_path: Path, start_gateway: StartGateway) -> None:
    """What is remembered is looked at again, and a link that leads out is a miss from then on."""
    root = tmp_path / "served"
    for name in ("small", "large"):
        write(tmp_path / name, b"o" * (100 if name == "small" else LARGE))
        write(root / name, b"i" * (100 if name == "small" else LARGE))
    gateway = start_gateway(f"--check-static={root}")
    with gateway.connect() as client:
        for path in (b"/small", b"/large"):
            assert set(ask(client, path).body) == {ord("i")}
        for name in ("small", "large"):  # same size, same time: only the inode tells
            (root / "new").symlink_to(f"../{name}")
            (root / "new").rename(root / name)
        limit = time.monotonic() + DEADLINE
        statuses: set[int] = set()
        while statuses != {404}:
            assert time.monotonic() < limit
            replies = [ask(client, path) for path in (b"/small", b"/large")]
            for reply in replies:
                assert reply.status == 404 or set(reply.body) == {ord("i")}
            statuses = {reply.status for reply in replies}
            time.sleep(0.02)
