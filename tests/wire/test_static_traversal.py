"""Static files: ways out, against gateways with everything switched on that could open one.

`test_files_traversal` has the common configuration. Here are lists of directories, hidden names,
`static-safe`, threads, files that nodes name, and links that are swapped below an index, a variant
and a mapped file. Outside lie canaries, in names and in contents; no byte of a response may be of
them. Targets go over the wire as they stand here.
"""

from __future__ import annotations

import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from support.files import ask, request, write
from support.nodes import NODES, Node, RawUwsgiNode, response
from support.uwgate import Gateway, StartGateway, running
from support.waiting import DEADLINE

SECRET = b"canary-7f3a: " + bytes(range(65, 91)) * 200
HIDDEN = b"concealed-91be: " + bytes(range(97, 123)) * 150
GOOD = b"good"
NODE = b"from the node"
OF_THE_SYSTEM = (b"root:x:", b"uwgate\0", b"PATH=", b"LD_LIBRARY")

UPS = [
    b"..", b"%2e%2e", b".%2E", b"%2e.", b"%252e%252e", b"%25252e%25252e", b"%c0%ae%c0%ae",
    b"%e0%80%ae%e0%80%ae", b"%f0%80%80%ae%f0%80%80%ae", b"%c0%2e%c0%2e", b"%uff0e%uff0e",
    b"\xef\xbc\x8e\xef\xbc\x8e", b"%ef%bc%8e%ef%bc%8e", b"..%00", b"%2e%2e%00", b"..;", b"..;a=b",
    b"..%3b", b"....", b"..%20", b"..%09", b"..%01", b"..%7f", b". .", b".%0d.",
]  # fmt: skip
BARS = [b"/", b"%2f", b"//", b"/./", b"\\", b"%5c", b"%255c", b"%252f", b"%c0%af", b"%e2%88%95"]
STARTS = [b"", b"/static", b"/list", b"/list/inner"]


def _made() -> Iterator[bytes]:
    for up, bar in product(UPS, BARS):
        yield b"/" + up + bar + b"secret.txt"
        yield b"/list" + bar + up + bar + up + bar + b"secret.txt"
    for start, up, depth in product(STARTS, UPS[:4], (1, 2, 3, 9)):
        yield start + (b"/" + up) * depth + b"/outside/canary-name.txt"
        yield start + (b"/" + up) * depth + b"/"
        yield start + (b"/" + up) * depth
    for link in LINKS:
        yield b"/" + link.encode()
        yield b"/" + link.encode() + b"/"
        yield b"/" + link.encode() + b"/canary-name.txt"
        yield b"/" + link.encode() + b"/secret.txt"
        yield b"/" + link.encode() + b"/etc/passwd"
        yield b"/list/inner/../../" + link.encode() + b"/outside/"


LINKS = {
    "absolute": "{base}/secret.txt",
    "relative": "../secret.txt",
    "twisted": "list/../../site/../secret.txt",
    "chain-1": "chain-2",
    "chain-2": "list/chain-3",
    "list/chain-3": "../../secret.txt",
    "loop-1": "loop-2",
    "loop-2": "loop-1",
    "self": "self",
    "nowhere": "{base}/nothing",
    "slash": "/",
    "parent": "..",
    "list/parent": "../..",
    "outside-directory": "{base}/outside",
    "outside-directory-slash": "{base}/outside/",
    "outside-relative": "../outside",
    "safe-sibling": "../safe-canary",
    "site-sibling": "../site-canary",
    "by-way-of-proc": "/proc/self/root{base}/secret.txt",
    "proc": "/proc",
    "proc-root": "/proc/self/root",
    "proc-cwd": "/proc/self/cwd",
    "proc-fd": "/proc/self/fd",
    "proc-fd-0": "/proc/self/fd/0",
    "proc-fd-5": "/proc/thread-self/fd/5",
    "proc-environ": "/proc/self/environ",
    "proc-map-files": "/proc/self/map_files",
    "dev-fd": "/dev/fd/4",
    "dev-zero": "/dev/zero",
    "dev-null": "/dev/null",
    "pipe-link": "list/pipe",
    "list/index-of-others/index.html": "../../../secret.txt",
    "list/good.txt.gz": "../../secret.txt",
    "list/good.txt.br": "{base}/secret.txt",
    "safe-out": "../safe/out",
    "safe-out-directory": "../safe/out-directory",
}
BY_HAND = [
    b"/static../secret.txt", b"/static..%2fsecret.txt", b"/staticfoo", b"/static-canary/c.txt",
    b"/static/../static-canary/c.txt", b"/static%2f..%2f..%2fstatic-canary%2fc.txt",
    b"/static/%2e%2e%2f%2e%2e/secret.txt", b"/single/../../secret.txt", b"/single/..%2f",
    b"/../site-canary/c.txt", b"/..%2fsite-canary/", b"/site-canary/", b"/whole/whole../secret.txt",
    b"/whole/../../secret.txt", b"/safe/", b"/safe/good.txt", b"/../safe-canary/c.txt",
    b"http://h/../secret.txt", b"http://h/%2e%2e/secret.txt", b"http://h//../outside/",
    b"http://h/static/../../secret.txt", b"http://h?/../../secret.txt", b"http://h/parent/",
    b"http://..%2f..%2f/secret.txt", b"https://h/../secret.txt", b"file:///etc/passwd",
    b"//h/../secret.txt", b"///../secret.txt", b"/.//.././secret.txt", b"*/../secret.txt",
    b"..", b"../", b"../secret.txt", b"./../secret.txt", b".", b"", b"secret.txt", b"\\..\\",
    b"/good.txt\x00/../../secret.txt", b"/good.txt%00/../../secret.txt", b"/%00/../secret.txt",
    b"/..\x00/secret.txt", b"/../secret.txt\x00.html", b"/../secret.txt%00.html",
    b"/list/pipe", b"/list/pipe/", b"/list/socket", b"/list/device", b"/list/device/",
    b"/nowhere/../../secret.txt", b"/good.txt/../../secret.txt", b"/good.txt/..%2f..%2fsecret.txt",
    b"/parent/site/parent/secret.txt", b"/list/parent/outside/canary-name.txt",
    b"/../secret.txt?", b"/../secret.txt#", b"/#/../../secret.txt", b"/;/../../secret.txt",
    b"/list;/..;/..;/secret.txt", b"/list/..;/..;/", b"/%2e%2e;/secret.txt", b"/..%3f/secret.txt",
    b"/" + b"../" * 2500 + b"etc/passwd", b"/" + b"list/../" * 900 + b"../secret.txt",
    b"/" + b"%2e%2e%2f" * 850 + b"etc/passwd", b"/" + b"/" * 7000 + b"../secret.txt",
    b"/" + b"x" * 7000 + b"/../../secret.txt", b"/list" + b"/." * 3000 + b"/../../secret.txt",
    b"/proc-root" * 30, b"/parent/site" * 40 + b"/parent/secret.txt", b"/self" * 60,
    b"/etc/passwd", b"/%2fetc%2fpasswd", b"//etc//passwd", b"/~/secret.txt", b"/..~/secret.txt",
    b"/secret.txt/..%2f..", b"/list/%2e%2e/%2e%2e", b"/list/..%2f..%2f", b"/list%2f..%2f..%2f",
]  # fmt: skip
CONCEALED = [
    b"/.git/config", b"/%2egit/config", b"/.%67it%2fconfig", b"//.git//config",
    b"/list/../.git/config", b"/./.git/./config", b"/.git", b"/.git/", b"/%2Egit%2F",
    b"/seen/config", b"/seen/", b"/seen-file", b"/.env", b"/%2eenv", b"/list/.env",
    b"/list%2f%2eenv", b"/.well-known/../.env", b"/.hidden.txt.gz", b"/.well-known/.env",
    b"/.well-known/%2eenv", b"/.well-knownn/x", b"/.WELL-KNOWN/x", b"/list/hidden/",
    b"/static/.env", b"/static/%2e%65nv", b"/...", b"/.../", b"/..%2e/", b"/.git/x/../config",
    b"/.git;/config",
]  # fmt: skip
CORPUS = sorted({*_made(), *BY_HAND})


def _grow(base: Path) -> None:
    root = base / "site"
    for name in ("good.txt", "list/good.txt", "list/inner/good.txt", ".well-known/good.txt"):
        write(root / name, GOOD)
    for name in ("static/good.txt", "single", "map2/whole/good.txt", "safe/good.txt"):
        write(base / name, GOOD)
    for name in ("canary-name.txt", "index.html", "secret.txt"):
        write(base / "outside" / name, SECRET)
    write(base / "secret.txt", SECRET)
    for name in ("site", "static", "safe", "map2"):
        write(base / f"{name}-canary/c.txt", SECRET)
    for name in (".git/config", ".env", "list/.env", ".well-known/.env", ".well-knownn/x",
                 ".WELL-KNOWN/x", ".../index.html", ".hidden.txt.gz"):  # fmt: skip
        write(root / name, HIDDEN)
    write(base / "static/.env", HIDDEN)
    for name, target in LINKS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target.format(base=base))
    (root / "seen").symlink_to(".git")
    (root / "seen-file").symlink_to(".git/config")
    (root / "list/hidden").symlink_to("../.git")
    (base / "safe/out").symlink_to("../secret.txt")
    (base / "safe/out-directory").symlink_to("../outside")
    (root / "to-safe").symlink_to("../safe")
    (root / "to-safe-file").symlink_to(base / "safe/good.txt")
    os.mkfifo(root / "list/pipe")
    at = os.open(root / "list", os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{at}/socket")
    os.close(at)


CONFIGURATIONS = {
    "all-on": ("--static-dotfiles=true", "--static-autoindex=true"),
    "all-on-threads": ("--static-dotfiles=true", "--static-autoindex=true", "--offload-threads=2"),
    "list": ("--static-autoindex=true",),
    "node-list": ("--static-autoindex=true",),
    "node-threads": ("--offload-threads=2",),
}


@dataclass
class Site:
    """A gateway; ``hidden``: whether hidden names may be seen."""

    gateway: Gateway
    hidden: bool
    node: bool


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    base = tmp_path_factory.mktemp("tree")
    _grow(base)
    options = [
        f"--check-static={base}/site", f"--static-map=/static={base}/static",
        f"--static-map=/single={base}/single", f"--static-map2=/whole={base}/map2",
        f"--static-safe={base}/safe", "--static-index=index.html", "--static-gzip-all",
        *CONFIGURATIONS[request.param],
    ]  # fmt: skip
    with ExitStack() as stack:
        has_node = "node" in request.param
        if has_node:
            node = stack.enter_context(RawUwsgiNode())
            node.otherwise = response(NODE)
            options += ["--http-to", node.spec]
        gateway = stack.enter_context(running(*options))
        yield Site(gateway, "dotfiles" in "".join(options), has_node)


def _all_of(
    gateway: Gateway, targets: list[bytes], *fields: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """Each target on a connection of its own, and every byte that comes."""
    for target in targets:
        with gateway.connect() as client:
            client.send_willing(request(target, b"Connection: close", *fields))
            yield target, client.read_to_end()


def _check(site: Site, target: bytes, raw: bytes) -> None:
    head, _, body = raw.partition(b"\r\n\r\n")
    for word in (b"canary-", *OF_THE_SYSTEM, *(() if site.hidden else (b"concealed", b".env"))):
        assert word not in body, (target, raw[:500])
    assert b"\r\nContent-Length: %d\r\n" % len(SECRET) not in head, (target, head)
    status = int(head[9:12])
    if status == 200:
        known = body in (GOOD, HIDDEN) or body.startswith(b"<!DOCTYPE html>\n")
        assert known or (site.node and body == NODE), (target, raw[:500])
    else:
        assert status == 301 or 400 <= status < 500, (target, raw[:500])
    if status == 301:
        location = head.partition(b"\r\nLocation: ")[2].partition(b"\r\n")[0]
        assert location.startswith(b"/"), (target, head)
        assert not location.startswith(b"//"), (target, head)


def _still_serves(site: Site) -> None:
    with site.gateway.connect() as client:
        assert ask(client, b"/good.txt").body == GOOD
        assert ask(client, b"/static/good.txt").body == GOOD


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) > 700


def test_nothing_outside_is_sent(site: Site) -> None:
    for target, raw in _all_of(site.gateway, CORPUS, b"Accept-Encoding: gzip, br"):
        _check(site, target, raw)
    _still_serves(site)


def test_nothing_hidden_is_sent(site: Site) -> None:
    for target, raw in _all_of(site.gateway, CONCEALED):
        _check(site, target, raw)
        if not site.hidden:
            assert b" 404 Not Found\r\n" in raw[:40] or raw.endswith(NODE), (target, raw[:200])
    _still_serves(site)


def test_lists_name_nothing_outside(site: Site) -> None:
    """Neither what links outside are called like, nor how large they are."""
    if "--static-autoindex=true" not in site.gateway.command:
        with site.gateway.connect() as client:
            assert ask(client, b"/").body == NODE
        return
    outside = [os.path.basename(name).encode() for name in LINKS if "good" not in name]
    outside.remove(b"index.html")
    outside += [b"good.txt.gz", b"good.txt.br"]
    with site.gateway.connect() as client:
        for accept in (b"text/html", b"application/json"):
            for path in (b"/", b"/list/", b"/to-safe/"):
                reply = ask(client, path, b"Accept: " + accept)
                assert reply.status == 200
                assert b"good.txt" in reply.body
                for word in (*outside, b"pipe", b"socket", b"canary", b"%d" % len(SECRET)):
                    assert word not in reply.body, (path, word)
                if not site.hidden:
                    for word in (b".git", b".env", b"seen", b"hidden"):
                        assert word not in reply.body, (path, word)


def test_static_safe_is_followed(site: Site) -> None:
    with site.gateway.connect() as client:
        for path in (b"/to-safe/good.txt", b"/to-safe-file", b"/list/../to-safe//good%2etxt"):
            assert ask(client, path).body == GOOD
    for target, raw in _all_of(site.gateway, [b"/to-safe/out", b"/to-safe/out-directory/"]):
        _check(site, target, raw)


# --- what a node names ----------------------------------------------------------------------------


@dataclass
class Naming:
    """A gateway, and the node that names files; ``base``: the tree."""

    gateway: Gateway
    node: Node
    base: Path


@pytest.fixture(scope="module", params=[*NODES, "http-threads"])
def naming(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Naming]:
    base = tmp_path_factory.mktemp("named")
    _grow(base)
    more = ("--offload-threads=2",) if "threads" in request.param else ()
    with (
        NODES[request.param.partition("-")[0]]() as node,
        running(
            *("--http-to", node.spec, "--http-sendfile=true", f"--static-safe={base}/safe"),
            *(f"--static-accel=/private={base}/site", f"--static-map=/static={base}/static", *more),
        ) as gateway,
    ):
        yield Naming(gateway, node, base)


SENDFILES = [
    "{base}/secret.txt", "{base}/safe/../secret.txt", "{base}/safe/./../secret.txt",
    "{base}//safe/..//secret.txt", "//{base}/safe/../secret.txt", "{base}/safe/out",
    "{base}/safe/out-directory/secret.txt", "{base}/safe-canary/c.txt", "{base}/safe",
    "{base}/safe/", "{base}/safe/%2e%2e/secret.txt", "{base}/safe\\..\\secret.txt",
    "{base}/safe/..;/secret.txt", "{base}/site/good.txt", "{base}/site/absolute", "/etc/passwd",
    "/proc/self/environ", "../secret.txt", "/proc/self/root{base}/secret.txt",
    "/proc/self/cwd/README.md", "/proc/self/fd/3", "secret.txt", "safe/good.txt",
    "file://{base}/secret.txt", "file://{base}/safe/good.txt", "~/secret.txt", ".", "..", "/",
    "//", "", " ", '"{base}/safe/good.txt"', "{base}/safe/good.txt/x",
    "{base}/static/../secret.txt", "{base}/static-canary/c.txt",
    "{base}/safe/good.txt/../../secret.txt", "{base}/SAFE/good.txt",
    "{base}/safe/good.txt, {base}/secret.txt", "{base}/safe/" + "x" * 3000,
    "{base}/safe/" + "../safe/" * 300 + "good.txt", "/private/good.txt",
    "http://h{base}/secret.txt",
]  # fmt: skip
ACCELS = [
    "/private/../secret.txt", "/private/%2e%2e/secret.txt", "/private/..%2fsecret.txt", "/private",
    "/private/%2e%2e%2fsecret.txt", "/private/..%5csecret.txt", "/private\\..\\secret.txt",
    "/private/", "/private/list/../../secret.txt", "/private/../site-canary/c.txt",
    "/private-canary/c.txt", "/", "/privategood.txt", "/private../secret.txt", "/private/absolute",
    "/private/relative", "/private/self", "/private/parent/secret.txt",
    "/private/outside-directory/secret.txt", "/private/proc-root/etc/passwd",
    "/private/proc-environ", "/private/list/pipe", "/private/list/socket", "/private/dev-zero",
    "/private/good.txt%00", "/private/good.txt%", "/private/good.txt#x", "private/good.txt",
    "http://h/private/good.txt", "//h/private/../secret.txt", "//etc/passwd", "/etc/passwd",
    "@named", "", "..", "{base}/site/good.txt", "{base}/secret.txt", "/static/good.txt",
    "/PRIVATE/good.txt", "/private/list/chain-3", "/private" + "/.." * 300 + "/etc/passwd",
    "/private/" + "list/../" * 400 + "../secret.txt",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values"),
    [("X-Sendfile", SENDFILES), ("X-Accel-Redirect", ACCELS)],
    ids=["file", "uri"],
)
def test_what_may_not_be_named(naming: Naming, name: str, values: list[str]) -> None:
    with naming.gateway.connect() as client:
        for each in values:
            value = each.format(base=naming.base)
            naming.node.play(response(NODE, f"{name}: {value}".encode(), b"Set-Cookie: a=b"))
            reply = ask(client, b"/q", b"Accept-Encoding: gzip")
            empty = not value.strip()  # says nothing, and may be taken for no field at all
            assert reply.status == 404 or (empty and reply.status in (200, 502)), (value, reply)
            assert reply.all(name.lower().encode()) == []
            assert reply.all(b"set-cookie") == [] or empty
            for word in (b"canary-", NODE if not empty else b"canary-", *OF_THE_SYSTEM):
                assert word not in reply.body, (value, reply)
            assert not reply.closes or reply.status == 502
            if reply.closes:
                break
        good = f"X-Sendfile: {naming.base}/safe/good.txt", "X-Accel-Redirect: /private/good.txt"
        for field in good:
            naming.node.play(response(NODE, field.encode()))
            assert ask(client, b"/q").body == GOOD
        assert ask(client, b"/q").body == b"GET /q 0"


def test_a_client_names_nothing(naming: Naming) -> None:
    fields = [f"X-Sendfile: {naming.base}/secret.txt", "X-Accel-Redirect: /private/good.txt",
              "X-Sendfile-Type: X-Sendfile", f"X-Accel-Mapping: /=/{naming.base}"]  # fmt: skip
    with naming.gateway.connect() as client:
        assert ask(client, b"/q", *(each.encode() for each in fields)).body == b"GET /q 0"


# --- links that are swapped -----------------------------------------------------------------------


@contextmanager
def _swapping(swap: Callable[[], None]) -> Iterator[None]:
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


INSIDE, OUTSIDE = b"i" * 90, b"o" * 70
COUNT = 300  # what was found is known for a second; many paths are looked for more often


def _racing(base: Path) -> Callable[[], None]:
    """Files, indexes and variants that are links to ``hop/…``; ``hop``: swapped by the result."""
    root = base / "site"
    for directory, content in ((root / "here", INSIDE), (base / "there", OUTSIDE)):
        write(directory / "file", content)
        write(directory / "file.gz", gzip.compress(content))
    (root / "hop").symlink_to("here")
    for number in range(COUNT):
        (root / f"f{number}").symlink_to("hop/file")
        (root / f"d{number}").mkdir()
        (root / f"d{number}/index.html").symlink_to("../hop/file")
        write(root / f"v{number}", INSIDE)
        (root / f"v{number}.gz").symlink_to("hop/file.gz")

    def swap() -> None:
        for target in ("../there", "here"):
            (root / "new").symlink_to(target)
            (root / "new").rename(root / "hop")

    return swap


@pytest.mark.parametrize("threads", [0, 2])
def test_links_that_are_swapped(tmp_path: Path, start_gateway: StartGateway, threads: int) -> None:
    """Below a file, a directory, an index, a variant and what a node names."""
    swap = _racing(tmp_path)
    root = tmp_path / "site"
    with NODES["http"]() as node:
        node.otherwise = response(NODE, f"X-Sendfile: {root}/hop/file".encode())
        gateway = start_gateway(
            f"--check-static={root}", "--static-index=index.html", "--static-gzip-all",
            f"--offload-threads={threads}", "--http-to", node.spec, "--http-sendfile=true",
        )  # fmt: skip
        numbers = range(COUNT)
        targets = [form % n for n in numbers for form in (b"/f%d", b"/d%d/", b"/v%d", b"/none%d")]
        seen = {200: 0, 404: 0}
        with _swapping(swap), ExitStack() as stack:
            clients = [stack.enter_context(gateway.connect()) for _ in range(4)]
            started, number = time.monotonic(), 0
            while time.monotonic() < started + 1.0 or not seen[200]:
                assert time.monotonic() < started + DEADLINE
                for client in clients:
                    number += 1
                    client.send(request(targets[number % len(targets)], b"Accept-Encoding: gzip"))
                for client in clients:
                    reply = client.read_response()
                    seen[reply.status] += 1  # KeyError: neither
                    body = reply.body
                    if reply.get(b"content-encoding") == b"gzip":
                        body = gzip.decompress(body)
                    assert reply.status == 404 or body == INSIDE, reply
                    assert OUTSIDE[:9] not in body
