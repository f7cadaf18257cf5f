"""Magic letters, ``$(ENV)``, ``@(file)`` and ``%(name)``."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from config_tools import BASE, configured, ini_errors, values_in
from hypothesis import given
from hypothesis import strategies as st

from uwgate import __version__
from uwgate.config import placeholders
from uwgate.config.placeholders import Magic, djb33x, evaluate, names_in


def value(text: str, key: str = "x", **environ: str) -> str:
    return values_in(text, key, environ=environ)[0]


def test_hash_is_the_one_of_uwsgi() -> None:
    assert djb33x(b"example.com") % 65535 == 30778  # as uWSGI's stats show it


def test_fixed_letters() -> None:
    magic = Magic("1.2", "/bin/uwgate")
    text = "%v|%h|%V|%k|%u|%U|%g|%G|%b|%%|%[|%(a)|a%qb|%t"
    uid, gid = os.getuid(), os.getgid()
    parts = magic.replace(text).split("|")
    assert parts[:-1] == [
        os.getcwd(),
        socket.gethostname(),
        "1.2",
        str(os.cpu_count()),
        str(uid),
        pwd.getpwuid(uid).pw_name,
        str(gid),
        grp.getgrgid(gid).gr_name,
        "/bin/uwgate",
        "%",
        "\x1b",
        "%(a)",
        "ab",
    ]
    assert abs(int(parts[-1]) * 1_000_000 - int(magic.replace("%T"))) < 2_000_000
    assert magic.replace("50%\nnext") == "50\nnext"
    assert magic.replace("%p%n") == ""


def test_users_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    monkeypatch.setattr(os, "getgid", lambda: 4_000_000_002)
    assert Magic("", "").replace("%U %G") == "4000000001 4000000002"


def hash_letters(path: str) -> str:
    return struct.pack("<I", djb33x(path.encode())).hex().upper()


def test_hash_of_a_path_is_the_one_of_uwsgi() -> None:
    assert hash_letters("/tmp/a.ini") == "6DB1F0AD"  # uWSGI 2.0.30


def test_file_letters(tmp_path: Path) -> None:
    folder = tmp_path.resolve() / "real"
    folder.mkdir()
    (folder / "a.b.ini").write_text("")
    (tmp_path / "link").symlink_to(folder)
    path = str(tmp_path / "link" / "a.b.ini")
    magic = Magic("", "")
    magic.enter(path, path, "sec")
    parts = str(folder).strip("/").split("/")
    assert magic.replace("%o|%s|%n|%e|%p|%d|%c|%x") == (
        f"{path}|a.b.ini|a.b|ini|{folder}/a.b.ini|{folder}/|real|sec"
    )
    assert magic.replace("%0/%1") == "/".join(parts[:2])
    assert magic.replace("%9") == (parts[9] if len(parts) > 9 else "")
    assert magic.replace("%i") == str(os.lstat(path).st_ino)
    assert magic.replace("%j") == hash_letters(f"{folder}/a.b.ini")
    magic.enter("other", "/no-such-file", "")
    assert magic.replace("%o|%n|%e|%d|%c|%i|%0") == "other|no-such-file||/|||"
    assert magic.replace("%O|%S|%N|%X") == f"{path}|a.b.ini|a.b|sec"
    magic.enter("-", None, "")
    assert magic.replace("%o|%n") == "-|no-such-file"


def test_magic_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gate.ini"
    path.write_text("[uwsgi]\nx = %n and %%n and 100%%\ny = %(x)\n")
    made = configured(*BASE, str(path))
    values = {item.key: item.value for item in made.items}
    assert values["x"] == "gate and %n and 100%"
    assert values["y"] == "gate and %n and 100%"


def test_magic_is_not_for_the_command_line() -> None:
    assert values_in("", "procname", "--procname", "%n%%") == ["%n%%"]


def test_letters_of_an_included_file(tmp_path: Path) -> None:
    inner = tmp_path / "inner.ini"
    outer = tmp_path / "outer.ini"
    inner.write_text("[uwsgi]\na = %n\nb = %N\n")
    outer.write_text(f"[uwsgi]\ninclude = {inner}\nc = %n\nd = %(a)%(b)%(c)\n")
    made = configured(*BASE, str(outer))
    values = {item.key: item.value for item in made.items}
    assert (values["a"], values["b"], values["c"]) == ("inner", "outer", "outer")
    assert values["d"] == "innerouterouter"


def test_version_letter() -> None:
    assert value("x = %V") == __version__


def test_environment() -> None:
    assert value("x = $(A)-$(B)$(A", A="1") == "1-$(B)$(A"
    assert values_in("", "procname", "--procname", "g$(A)", environ={"A": "1"}) == ["g1"]


def test_environment_left_over_is_told() -> None:
    made = configured(*BASE, "--procname", "$(NOPE)", environ={})
    assert [str(each) for each in made.problems.warnings] == [
        "command line: procname: $(NOPE) is not set in the environment; left as it is"
    ]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("gate\n\n")
    assert value(f"x = <@({tmp_path}/name)>") == "<gate\n>"
    assert value("x = @($(HERE)/name)", HERE=str(tmp_path)) == "gate\n"


def test_files_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholders, "_MAX_FILE", 4)
    (tmp_path / "big").write_text("12345")
    assert ini_errors("x = @(/no/such)") == [
        "standard input:2: x: @(/no/such): No such file or directory"
    ]
    assert "only plain files" in ini_errors("x = @(http://h/x)")[0]
    assert "larger than 4 bytes" in ini_errors(f"x = @({tmp_path}/big)")[0]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("num", "4"),
        ("num + 3", "7"),
        ("num * 2 + 1", "9"),
        ("num - 10", "-6"),
        ("num / 3", "1"),
        ("num - 10 / 4", "-1"),
        ("num ++", "5"),
        ("num --", "3"),
        ("num num", "44"),
        ("num + num", "8"),
        ("num + foo", "4"),
        ("foo  num", "bar4"),
        ("num + -3", "1"),
        ("nope", None),
        ("num + nope", "4"),
        ("nope num", "4"),
        ("nope nope", None),
        ("num++", None),
    ],
)
def test_arithmetic(expression: str, expected: str | None) -> None:
    known = {"num": "4", "foo": "bar"}
    assert evaluate(expression, known.get) == expected


def test_names() -> None:
    assert value("x = %(later)%(nope)\nlater = 1$(A)", A="!") == "1!%(nope)"
    assert value("a = 1\na = 2\nx = %(a)") == "1"
    assert value("x = %(http-to)") == "127.0.0.1:3031"
    assert values_in("a = 1\na = %(a)2", "a") == ["1", "12"]


def test_names_that_cannot_be_replaced() -> None:
    assert ini_errors("x = %(x)") == ["standard input:2: x: %(x): refers to itself"]
    found = ini_errors("a = %(b)\nb = %(a)")
    assert len(found) == 1
    assert "refers to itself" in found[0]
    assert ini_errors("a = 0\nx = %(a / a)") == [
        "standard input:3: x: %(a / a): division by zero"
    ]


def test_names_in() -> None:
    assert names_in("%(a + b)%(c)%d") == {"a", "+", "b", "c"}


@given(st.text(max_size=40))
def test_any_expression_has_a_value_or_a_clear_error(text: str) -> None:
    with suppress(placeholders.PlaceholderError):
        evaluate(text, {"a": "1", "b": "x"}.get)


@given(st.integers(-1000, 1000), st.integers(-1000, 1000).filter(bool))
def test_division_is_the_one_of_c(a: int, b: int) -> None:
    names = {"a": str(a), "b": str(b)}
    assert evaluate("a / b", names.get) == str(int(a / b))
