"""Which entry a server name gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.settings_tls import PairSettings, SniSettings, TlsSettings
from uwgate.tls.names import Entry, Names, host_name

NODE, STRANGER = "10.0.0.1:3031", "10.9.9.9:1"


def pair(name: str, ca: str = "") -> PairSettings:
    return PairSettings(f"/{name}.crt", f"/{name}.key", client_ca=ca)


def sni(*names: str) -> tuple[SniSettings, ...]:
    return tuple(SniSettings(name, pair(name)) for name in names)


def directory_of(where: Path, *stems: str) -> str:
    where.mkdir(exist_ok=True)
    for stem in stems:
        (where / f"{stem}.crt").touch()
        (where / f"{stem}.key").touch()
    return str(where)


def found(names: Names, name: str) -> str:
    """ "SOURCE NAME", "" for nothing."""
    entry = names.find(name)
    return "" if entry is None else f"{entry.source} {entry.name}"


def test_the_order(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, "a.example", "b.example", "*.dir.example", "x.dir.example")
    names = Names(
        TlsSettings(
            sni=sni("a.example", "*.example", ".example", ".deep.example", "*.deep.example"),
            sni_regexps=sni(r"^r\d+\.other$", r"other", r"^a\.example$"),
            sni_dirs=(directory,),
        )
    )
    assert found(names, "a.example") == "sni a.example"
    assert found(names, "b.example") == "sni *.example"
    assert found(names, "x.b.example") == "sni .example"
    assert found(names, "x.deep.example") == "sni *.deep.example"
    assert found(names, "y.x.deep.example") == "sni .deep.example"
    assert found(names, "example") == ""
    assert found(names, "r12.other") == r"sni-regexp ^r\d+\.other$"
    assert found(names, "r.other.x") == "sni-regexp other"
    assert found(names, "nowhere") == ""
    assert found(names, "") == ""


def test_a_directory_comes_last(tmp_path: Path) -> None:
    first = directory_of(tmp_path / "1", "a.example", "*.example")
    second = directory_of(tmp_path / "2", "a.example", "b.example", "*.sub.b.example")
    names = Names(TlsSettings(sni_dirs=(first, second), sni_dir_ciphers="HIGH"))
    assert names.find("a.example") == Entry(
        "sni-dir",
        "a.example",
        PairSettings(f"{first}/a.example.crt", f"{first}/a.example.key", "HIGH"),
        lazy=True,
    )
    assert found(names, "b.example") == "sni-dir b.example"  # its own, though in the second
    assert found(names, "c.example") == "sni-dir *.example"
    assert found(names, "x.c.example") == ""  # one label
    assert found(names, "x.sub.b.example") == "sni-dir *.sub.b.example"
    assert found(names, "example") == ""


def test_what_there_is_in_a_directory(tmp_path: Path) -> None:
    directory = directory_of(tmp_path, "a.example", "c.example")
    names = Names(TlsSettings(sni_dirs=(directory,)))
    (tmp_path / "b.example.crt").touch()
    assert found(names, "b.example") == ""
    (tmp_path / "b.example.key").touch()
    assert found(names, "b.example") == "sni-dir b.example"
    (tmp_path / "a.example.ca").touch()
    entry = names.find("a.example")
    assert entry is not None
    assert (entry.pair.client_ca, entry.pair.client_required) == (f"{tmp_path}/a.example.ca", False)
    (tmp_path / "c.example.crt").unlink()
    (tmp_path / "c.example.crt").mkdir()
    assert found(names, "c.example") == ""


@pytest.mark.parametrize(
    "name",
    [
        "../secret", "..", ".", "a/b", "/etc/x", ".hidden", "a..b", "a.", "A.example", "a\0b",
        "a b", "*", "*.x", "-a.example", "a.-b", "é.example", "a\n", "x" * 254,
    ],
)  # fmt: skip
def test_a_name_that_is_no_file_name(tmp_path: Path, name: str) -> None:
    """Whatever files there are."""
    inner = tmp_path / "a" / "sites"
    inner.mkdir(parents=True)
    for stem in ("../secret", "../..", ".", ".hidden", "a..b", "a.", "A.example", "a b", "a.-b"):
        for ending in ("crt", "key"):
            (inner / f"{stem}.{ending}").touch()
    names = Names(TlsSettings(sni_dirs=(str(inner),)))
    assert names.find(name) is None


def test_dotsplit() -> None:
    names = Names(
        TlsSettings(
            sni=sni("a.b.example", ".b.example", "*.wild"),
            sni_regexps=sni("."),
            dotsplit=True,
        )
    )
    names.announce(".c.example", NODE, "/s.crt", "/s.key", "")
    assert found(names, "a.b.example") == "sni a.b.example"
    assert found(names, "x.b.example") == "sni .b.example"
    assert found(names, "4.3.2.1.b.example") == "sni .b.example"
    assert found(names, "y.x.c.example") == "subscription .c.example"
    assert found(names, "x.wild") == "sni *.wild"
    assert found(names, "x.other") == ""  # neither regular expressions nor directories (uWSGI)
    far = Names(TlsSettings(dotsplit=True))
    far.announce(".example", NODE, "/s.crt", "/s.key", "")
    assert found(far, "4.3.2.1.example") == "subscription .example"
    assert found(far, "5.4.3.2.1.example") == ""  # the sixth try


def test_certificates_of_subscriptions() -> None:
    names = Names(TlsSettings(sni=sni("fixed.example"), sni_dir_ciphers="HIGH"))
    assert names.announce("A.example:443", NODE, "/1.crt", "/1.key", "!/ca")
    expected = PairSettings("/1.crt", "/1.key", "HIGH", "/ca", True)
    assert names.find("a.example") == Entry("subscription", "a.example", expected, lazy=True)
    assert not names.announce("A.example:443", NODE, "/1.crt", "/1.key", "!/ca")  # known
    assert names.announce("A.example:443", NODE, "/2.crt", "/1.key", "")  # other files
    entry = names.find("a.example")
    assert entry is not None
    assert entry.pair == PairSettings("/2.crt", "/1.key", "HIGH")
    assert names.announce("fixed.example", NODE, "/3.crt", "/3.key", "")
    assert found(names, "fixed.example") == "sni fixed.example"  # the operator's counts more
    assert not names.announce(":443", NODE, "/1.crt", "/1.key", "")
    assert not names.announce("[::1]:443", NODE, "/1.crt", "/1.key", "")
    assert names.withdraw("A.example:443", NODE)
    assert not names.withdraw("A.example:443", NODE)
    assert found(names, "a.example") == ""


def test_two_keys_of_one_name() -> None:
    """The newest counts, and goes with its own nodes only."""
    names = Names(TlsSettings())
    names.announce("a.example:80", NODE, "/80.crt", "/80.key", "")
    names.announce("a.example:443", NODE, "/443.crt", "/443.key", "")

    def shown() -> str:
        entry = names.find("a.example")
        return "" if entry is None else entry.pair.cert

    assert shown() == "/443.crt"
    assert not names.withdraw("a.example", NODE)
    assert names.withdraw("a.example:443", NODE)
    assert shown() == "/80.crt"
    names.announce("a.example:443", NODE, "/443.crt", "/443.key", "")
    names.announce("a.example:80", NODE, "/new.crt", "/80.key", "")
    assert shown() == "/new.crt"
    assert names.withdraw("a.example:80", NODE)
    assert names.withdraw("a.example:443", NODE)
    assert shown() == ""


def test_the_name_itself_counts_more_than_a_key_with_a_port() -> None:
    """Who may announce ``a.example:9`` need not be who may announce ``a.example``."""
    names = Names(TlsSettings())
    names.announce("a.example", NODE, "/own.crt", "/own.key", "!/ca")
    names.announce("a.example:9", STRANGER, "/other.crt", "/other.key", "/any")
    names.announce("A.example", STRANGER, "/other.crt", "/other.key", "/any")
    entry = names.find("a.example")
    assert entry is not None
    assert (entry.pair.cert, entry.pair.client_required) == ("/own.crt", True)


def test_a_node_that_leaves_takes_its_certificate_along() -> None:
    names = Names(TlsSettings())
    names.announce("a.example", NODE, "/own.crt", "/own.key", "!/ca")
    names.announce("a.example", STRANGER, "/other.crt", "/other.key", "")
    assert names.withdraw("a.example", STRANGER)
    entry = names.find("a.example")
    assert entry is not None
    assert entry.pair.cert == "/own.crt"


def test_names_too_long_for_hosts_are_found_by_what_they_end_with() -> None:
    """A Host may be longer than a server name; it is no way around what the name asks for."""
    names = Names(TlsSettings(sni=(SniSettings(".w.example", pair("w", "/ca")),)))
    entry = names.find("a" * 300 + ".w.example")
    assert entry is not None
    assert entry.pair.client_ca == "/ca"


def test_who_asks_for_certificates(tmp_path: Path) -> None:
    def asks(**settings: object) -> bool:
        return Names(TlsSettings(**settings)).asks_clients()  # type: ignore[arg-type]

    with_ca = (SniSettings("a.example", pair("a", "/ca")),)
    assert not asks(sni=sni("a.example"), sni_regexps=sni("x"))
    assert asks(sni=with_ca)
    assert asks(sni_regexps=with_ca)
    assert asks(sni_dirs=(str(tmp_path),))  # at any time
    names = Names(TlsSettings())
    names.announce("a", NODE, "/crt", "/key", "/ca")
    assert names.asks_clients()


def test_first_of_several_and_none_that_was_dropped() -> None:
    one, two = pair("one"), pair("two")
    names = Names(
        TlsSettings(
            sni=(SniSettings("a.example", one), SniSettings("a.example", two)),
            sni_regexps=(SniSettings("^b", one), SniSettings("b", two)),
        )
    )
    for name in ("a.example", "b"):
        entry = names.find(name)
        assert entry is not None
        assert entry.pair == one
        names.drop(entry)
    assert names.find("a.example") is None
    after = names.find("b")
    assert after is not None
    assert after.pair == two


def test_case_of_a_regular_expression_does_not_count() -> None:
    assert found(Names(TlsSettings(sni_regexps=sni("^WWW"))), "www.example") == "sni-regexp ^WWW"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("A.Example", "a.example"), ("a.example:8443", "a.example"), ("a.example.", "a.example"),
        ("a.example.:443", "a.example"), ("[::1]", ""), ("[::1]:443", ""), ("", ""), (":1", ""),
        ("10.0.0.1:1", "10.0.0.1"),
    ],
)  # fmt: skip
def test_host_names(host: str, name: str) -> None:
    assert host_name(host) == name


labels = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6).map(".".join)
patterns = st.tuples(st.sampled_from(["", "*.", "."]), labels).map("".join)


def expected(patterns_: list[str], name: str) -> str:
    """The documented order, the plain way."""
    if name in patterns_:
        return name
    fits = [p for p in patterns_ if p[0] == "*" and re.fullmatch(r"[^.]+" + re.escape(p[1:]), name)]
    fits = fits or [p for p in patterns_ if p[0] == "." and name.endswith(p) and name != p]
    return max(fits, key=len, default="")


@given(st.lists(patterns, max_size=8), labels)
def test_wildcards(patterns_: list[str], name: str) -> None:
    entry = Names(TlsSettings(sni=sni(*patterns_))).find(name)
    assert ("" if entry is None else entry.name) == expected(patterns_, name)
