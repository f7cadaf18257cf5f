"""Files that change, and certificates that subscriptions bring: without a restart."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.certificates import Authority, Pair
from terminator_tools import Directory, Worker, listener, of, sni

from uwgate.config.settings_tls import TlsSettings

NODE = "10.0.0.1:3031"

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives up privileges")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def files(authority: Authority) -> Pair:
    """Of the listener."""
    return authority.issue("localhost")


@pytest.fixture
def directory(tmp_path: Path, authority: Authority) -> Directory:
    return Directory(tmp_path / "sites", authority)


@pytest.fixture
def it(files: Pair, directory: Directory) -> Worker:
    """With that directory."""
    return Worker(TlsSettings(sni_dirs=(str(directory.path),)), [listener(of(files))])


# --- files that change ----------------------------------------------------------------------------


def test_new_files_count_within_a_second(directory: Directory) -> None:
    """Of a listener, of a name, and of a directory, each for itself."""
    old = {stem: directory.put(stem, f"old-{stem}") for stem in ("door", "exact", "dir.example")}
    path = directory.path

    def there(stem: str) -> Pair:
        return Pair(path / f"{stem}.crt", path / f"{stem}.key", old[stem].certificate)

    it = Worker(
        TlsSettings(sni=(sni("exact", there("exact")),), sni_dirs=(str(path),)),
        [listener(of(there("door")))],
    )
    names = {"": "door", "exact": "exact", "dir.example": "dir.example"}
    for name, stem in names.items():
        before = it.context(name)
        assert before.names[0] == f"old-{stem}"
        directory.put(stem, f"new-{stem}")
        assert it.context(name) is before  # not looked at more than once a second
        it.second()
        assert it.shown(name) == f"new-{stem}"
        source = {"": "listener http-:443", "exact": "sni exact"}.get(name, f"sni-dir {name}")
        assert it.said() == [f"certificate of {source} read anew"]
        for _ in range(3):
            it.second()
            assert it.shown(name) == f"new-{stem}"
    assert it.said() == []


def test_a_context_whose_files_stay_is_never_made_again(it: Worker, directory: Directory) -> None:
    directory.put("a.example")
    before = it.context("a.example")
    for _ in range(3):
        it.second()
        assert it.context("a.example") is before


def test_a_pair_that_is_half_replaced(it: Worker, directory: Directory) -> None:
    """One line, as often as anybody asks; the old certificate is shown; then the new one is."""
    directory.put("a.example", "old")
    before = it.context("a.example")
    new = directory.put("a.example", "new", parts=("crt",))
    for _ in range(3):
        it.second()
        assert it.context("a.example") is before
    (line,) = it.said()
    path = directory.path / "a.example"
    assert line == (
        f"no new certificate for sni-dir a.example: key {path}.key does not belong to"
        f" certificate {path}.crt; the old one stays"
    )
    directory.put("a.example", parts=("key",))  # as wrong, but another
    it.second()
    assert it.context("a.example") is before
    assert len(it.said()) == 1
    directory.copy(new, "a.example", parts=("key",))
    it.second()
    assert it.shown("a.example") == "new"
    assert it.said() == ["certificate of sni-dir a.example read anew"]


@pytest.mark.parametrize("what", ["garbage", "missing", "fifo", "directory"])
@pytest.mark.parametrize("part", ["crt", "key"])
def test_a_listener_whose_file_breaks_goes_on(directory: Directory, what: str, part: str) -> None:
    good = directory.put("door")
    path = directory.path / f"door.{part}"
    files = Pair(directory.path / "door.crt", directory.path / "door.key", good.certificate)
    it = Worker(TlsSettings(), [listener(of(files))])
    before = it.context()
    path.unlink()
    if what == "garbage":
        path.write_text("garbage")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    for _ in range(3):
        it.second()
        assert it.context() is before
    (line,) = it.said()
    assert str(path) in line
    assert line.endswith("; the old one stays")
    path.rmdir() if what == "directory" else path.unlink(missing_ok=True)
    directory.copy(good, "door", parts=(part,))
    it.second()
    assert it.shown() == "door"
    assert it.said() == ["certificate of listener http-:443 read anew"]


def test_a_name_that_never_worked(it: Worker, directory: Directory) -> None:
    directory.put("a.example")
    key = directory.path / "a.example.key"
    key.write_text("garbage")
    for _ in range(3):
        assert it.shown("a.example") == "localhost"
        it.second()
    (line,) = it.said()
    assert line.startswith(f"no certificate for sni-dir a.example: key {key}: there is no PEM key")
    directory.put("a.example")
    it.second()
    assert it.shown("a.example") == "a.example"


def test_files_come_and_go(it: Worker, directory: Directory) -> None:
    for _ in range(2):
        assert it.shown("a.example") == "localhost"
        directory.put("a.example")
        assert it.shown("a.example") == "localhost"  # for a second
        it.second()
        assert it.shown("a.example") == "a.example"
        assert it.alive == 2
        directory.remove("a.example")
        it.second()
        assert it.shown("a.example") == "localhost"
        assert it.alive == 1
        it.second()
    assert it.said() == []


def test_a_file_of_its_own_takes_over_from_a_wildcard(it: Worker, directory: Directory) -> None:
    directory.put("*.example", "wild")
    assert it.shown("a.example") == it.shown("b.example") == "wild"
    wild = it.context("b.example")
    directory.put("a.example")
    it.second()
    assert it.shown("a.example") == "a.example"
    assert it.context("b.example") is wild
    directory.remove("a.example")
    it.second()
    assert it.shown("a.example") == "wild"
    directory.remove("*.example")
    it.second()
    assert it.shown("a.example") == it.shown("b.example") == "localhost"


def test_a_pair_moves_to_another_directory(
    files: Pair, authority: Authority, tmp_path: Path
) -> None:
    first, second = (Directory(tmp_path / name, authority) for name in "12")
    settings = TlsSettings(sni_dirs=(str(first.path), str(second.path)))
    it = Worker(settings, [listener(of(files))])
    first.put("a.example", "first")
    second.put("a.example", "second")
    assert it.shown("a.example") == "first"
    first.remove("a.example")
    it.second()
    assert it.shown("a.example") == "second"


def test_a_client_ca_comes_and_goes(
    files: Pair, authority: Authority, directory: Directory, tmp_path: Path
) -> None:
    """Without its own the name inherits each listener's, whichever asked first."""
    own = Authority(tmp_path, "own").file.read_bytes()
    directory.put("a.example")
    path = directory.path / "a.example.ca"
    doors = [listener(of(files)), listener(of(files, ca=authority.file, required=True), "strict")]
    it = Worker(TlsSettings(sni_dirs=(str(directory.path),)), doors)

    def modes(*order: int) -> dict[int, ssl.VerifyMode]:
        found = {}
        for number in order:
            context = it.context("a.example", number)
            assert context.names[0] == "a.example"
            assert context.domain == it.domain("a.example", number)
            found[number] = context.ssl.verify_mode
        return found

    inherited = {0: ssl.CERT_NONE, 1: ssl.CERT_REQUIRED}
    for order in ((0, 1), (1, 0)):
        assert modes(*order) == inherited
        path.write_bytes(own)
        it.second()
        assert modes(*order) == {0: ssl.CERT_OPTIONAL, 1: ssl.CERT_REQUIRED}
        path.unlink()
        it.second()
        assert modes(*order) == inherited
    path.write_text("garbage")
    it.second()
    refused = {number: it.context("a.example", number) for number in (0, 1)}
    assert {context.names[0] for context in refused.values()} == {"localhost"}
    assert refused[1].ssl.verify_mode == ssl.CERT_REQUIRED
    for number, context in refused.items():
        assert context.domain != it.domain("a.example", number)  # closed, as nobody was asked


def test_another_client_ca_counts_within_a_second(
    files: Pair, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(authority.file.read_bytes())
    it = Worker(TlsSettings(), [listener(of(files, ca=path, required=True))])
    other = Authority(tmp_path, "other")

    assert it.context().ssl.get_ca_certs(True) == [ssl.PEM_cert_to_DER_cert(path.read_text())]
    path.write_bytes(other.file.read_bytes())
    it.second()
    assert it.context().ssl.get_ca_certs(True) == [ssl.PEM_cert_to_DER_cert(path.read_text())]


def in_child(check: Callable[[], None]) -> None:
    """Run it as somebody who has no rights."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_root
@pytest.mark.parametrize("closed", ["key", "directory"])
def test_what_only_the_master_could_read(authority: Authority, closed: str) -> None:
    """No line as long as nothing has changed; one that names the file when something has."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        directory = Directory(Path(name, "keys"), authority)
        good = directory.put("door")
        cert = Path(name, "door.crt")
        cert.write_bytes(good.cert.read_bytes())
        key = directory.path / "door.key"
        key.chmod(0o400)
        directory.path.chmod(0o700 if closed == "directory" else 0o755)
        it = Worker(TlsSettings(), [listener(of(Pair(cert, key, good.certificate)))])
        before = it.context()

        def unchanged() -> None:
            for _ in range(2):
                it.second()
                assert it.context() is before
            assert it.said() == []

        def changed() -> None:
            for _ in range(2):
                it.second()
                assert it.context() is before
            (line,) = it.said()
            assert f"key {key}: permission denied; the old one stays" in line

        in_child(unchanged)
        cert.write_bytes(directory.put("door", "new").cert.read_bytes())
        key.chmod(0o400)
        in_child(changed)
        it.second()
        assert it.shown() == "new"  # who may read it does


# --- subscriptions --------------------------------------------------------------------------------


def announce(it: Worker, key: str, pair: Pair, ca: str = "") -> None:
    it.terminator.announce(key, NODE, str(pair.cert), str(pair.key), ca)


def test_subscriptions_come_change_and_go(it: Worker, authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    assert it.shown("s.example") == "localhost"
    announce(it, "S.example:443", one)
    before = it.context("s.example")
    assert before.names[0] == "one"
    announce(it, "S.example:443", one)  # every few seconds
    assert it.context("s.example") is before
    announce(it, "S.example:443", two)  # uwsgi#581
    assert it.shown("s.example") == "two"
    assert it.alive == 2
    announce(it, "S.example:443", two, f"!{authority.file}")
    assert it.context("s.example").ssl.verify_mode == ssl.CERT_REQUIRED
    assert it.domain("s.example") == f"required {authority.file}"
    it.terminator.withdraw("other", NODE)
    it.terminator.withdraw("S.example:443", NODE)
    assert it.shown("s.example") == "localhost"
    assert it.domain("s.example") == ""
    assert it.alive == 1
    assert it.said() == []


def test_a_subscription_takes_over_from_a_wildcard(authority: Authority, files: Pair) -> None:
    settings = TlsSettings(sni=(sni(".example", authority.issue("wild")),))
    it = Worker(settings, [listener(of(files))])
    assert it.shown("s.example") == "wild"
    announce(it, "s.example", authority.issue("own"))
    assert it.shown("s.example") == "own"
    it.terminator.withdraw("s.example", NODE)
    assert it.shown("s.example") == "wild"


def test_files_of_a_subscription_change(it: Worker, directory: Directory) -> None:
    path = directory.path
    pair = directory.put("s", "old")
    announce(it, "s.example", Pair(path / "s.crt", path / "s.key", pair.certificate))
    assert it.shown("s.example") == "old"
    directory.put("s", "new")
    it.second()
    assert it.shown("s.example") == "new"


@pytest.mark.parametrize(
    "crt", ["/missing", "/dev/zero", "relative", "", "\0", "x" * 5000, "\udcff"]
)
def test_a_subscription_says_nonsense(
    it: Worker, authority: Authority, directory: Directory, crt: str
) -> None:
    """A line, and the default certificate; a FIFO or a device would stop the worker."""
    good = authority.issue("good")
    fifo = directory.path / "fifo"
    os.mkfifo(fifo)
    for file, key in ((crt, str(good.key)), (str(good.cert), crt), (str(good.cert), str(fifo))):
        it.terminator.announce("s.example", NODE, file, key, "")
        for _ in range(3):
            assert it.shown("s.example") == "localhost"
            it.second()
        (line,) = it.said()
        assert line.startswith("no certificate for subscription s.example: ")
    announce(it, "s.example", good)
    assert it.shown("s.example") == "good"


def test_subscriptions_are_bound_like_directories(files: Pair, authority: Authority) -> None:
    it = Worker(TlsSettings(sni_max_contexts=2), [listener(of(files))])
    pair = authority.issue("s")
    for number in range(5):
        announce(it, f"{number}.example", pair)
    for _ in range(2):
        for number in range(5):
            assert it.shown(f"{number}.example") == "s"
            assert it.alive <= 1 + 2
