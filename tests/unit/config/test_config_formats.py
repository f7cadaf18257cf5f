"""INI, YAML, JSON and XML, with the peculiarities that uWSGI gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uwgate.config.formats import (
    Entry,
    FormatError,
    Parsed,
    parse_ini,
    parse_json,
    parse_xml,
    parse_yaml,
)

USUAL = ("uwsgi", "uwgate")
Parser = Callable[[str, Sequence[str]], Parsed]


def pairs(parsed: Parsed) -> list[tuple[str, str]]:
    return [(entry.key, entry.value) for entry in parsed[0]]


def error_of(parser: Parser, text: str) -> tuple[int, str]:
    with pytest.raises(FormatError) as caught:
        parser(text, USUAL)
    return caught.value.line, str(caught.value)


def test_ini() -> None:
    text = (
        "lost = 1\n[uwsgi]\r\n; a comment\n# another\n\n a = 1 ; kept \r\nflag\nempty =\n"
        "b = x = y\n[other]\nlost = 2\n[uwsgi]\na = 2"
    )
    entries, found = parse_ini(text, USUAL)
    assert found
    assert entries == [
        Entry("a", "1 ; kept", 6),
        Entry("flag", "", 7),
        Entry("empty", "", 8),
        Entry("b", "x = y", 9),
        Entry("a", "2", 13),
    ]


def test_ini_sections() -> None:
    text = "[uwsgi]\na = 1\n[uwgate]\nb = 2\n[three]\nc = 3\n"
    assert pairs(parse_ini(text, USUAL)) == [("a", "1"), ("b", "2")]
    assert pairs(parse_ini(text, ("three",))) == [("c", "3")]
    assert parse_ini(text, ("four",)) == ([], False)


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [("[uwsgi\na = 1", 1, "no closing ']'"), ("[uwsgi]\n= 1", 2, "no key before '='")],
)
def test_ini_refused(text: str, line: int, complaint: str) -> None:
    where, why = error_of(parse_ini, text)
    assert where == line
    assert complaint in why


def test_yaml() -> None:
    text = (
        "# comment\nuwsgi:\n  http: :8080\n  chmod-socket: 0660\n  flag: true\n  nothing:\n"
        "  null-word: ~\n  time: 1:30\n  quoted: \"a: b\"\n  http-to:\n    - one:1\n    - two:2\n"
        "  flow: [x, y]\nother:\n  lost: 1\nuwgate:\n  more: 1.50\n"
    )
    entries, found = parse_yaml(text, USUAL)
    assert found
    assert entries == [
        Entry("http", ":8080", 3),
        Entry("chmod-socket", "0660", 4),
        Entry("flag", "true", 5),
        Entry("nothing", "", 6),
        Entry("null-word", "", 7),
        Entry("time", "1:30", 8),
        Entry("quoted", "a: b", 9),
        Entry("http-to", "one:1", 11),
        Entry("http-to", "two:2", 12),
        Entry("flow", "x", 13),
        Entry("flow", "y", 13),
        Entry("more", "1.50", 17),
    ]


def test_yaml_without_content() -> None:
    assert parse_yaml("", USUAL) == ([], False)
    assert parse_yaml("uwsgi:\n", USUAL) == ([], True)
    assert parse_yaml("other:\n  a: 1\n", USUAL) == ([], False)


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("uwsgi:\n  a: [1", 2, "not valid YAML"),
        ("uwsgi:\n\ta: 1", 2, "not valid YAML"),
        ("uwsgi:\n  a: %x", 2, "not valid YAML"),
        ("a: \x1b", 0, "not valid YAML"),
        ("- 1", 1, "expected a section such as 'uwsgi:'"),
        ("uwsgi: 3", 1, "uwsgi: expected 'key: value' lines"),
        ("uwsgi:\n  a:\n    b: 1", 3, "a: expected a value or a list of values"),
        ("uwsgi:\n  a:\n    - [1]", 3, "a: expected a value or a list of values"),
        ("x: &x {b: 1}\nuwsgi:\n  <<: *x", 3, "merge keys"),
        ("? [a]\n: 1", 1, "section: expected a value"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML"),
    ],
)
def test_yaml_refused(text: str, line: int, complaint: str) -> None:
    where, why = error_of(parse_yaml, text)
    assert complaint in why
    assert where == line


def test_yaml_makes_no_objects() -> None:
    parsed = parse_yaml("uwsgi:\n  a: !!python/object/apply:os.system [id]\n", USUAL)
    assert pairs(parsed) == [("a", "id")]


def test_deep_nesting_is_an_error() -> None:
    assert "not valid YAML" in error_of(parse_yaml, "[" * 20000)[1]
    assert "not valid JSON" in error_of(parse_json, "[" * 200000)[1]


def test_json() -> None:
    text = (
        '{"other": {"http": 1},\n "uwsgi": {\n  "http": [":8080", 80],\n  "on": true,\n'
        '  "off": false,\n  "null": null,\n  "n": 1.50,\n  "b\\u00e9": "x"\n}}'
    )
    entries, found = parse_json(text, USUAL)
    assert found
    assert entries == [
        Entry("http", ":8080", 3),
        Entry("http", "80", 3),
        Entry("on", "1", 4),
        Entry("off", "0", 5),
        Entry("null", "0", 6),
        Entry("n", "1.50", 7),
        Entry("bé", "x", 8),
    ]
    assert parse_json("{}", USUAL) == ([], False)


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ('{"uwsgi": {\n"a" 1}}', 2, "not valid JSON: Expecting ':'"),
        ("[]", 1, 'expected an object with the key "uwsgi"'),
        ('{\n"uwsgi": []}', 2, "uwsgi: expected an object"),
        ('{"uwsgi": {\n"a": {"b": 1}}}', 2, "a: expected a value or a list of values"),
        ('{"uwsgi": {\n"a": [[1]]}}', 2, "a: expected a value or a list of values"),
        ('{"uwsgi": {"a": 1,\n"a": 2}}', 1, "a is given twice"),
        ('{"uwsgi": {"a": NaN}}', 0, "NaN is not a JSON value"),
    ],
)
def test_json_refused(text: str, line: int, complaint: str) -> None:
    where, why = error_of(parse_json, text)
    assert complaint in why
    assert where == line


def test_xml() -> None:
    text = (
        "<uwsgi>\n <http> :8080 </http>\n <master/>\n <http-to>a:1</http-to>\n"
        " <http-to>b:1</http-to>\n</uwsgi>"
    )
    entries, found = parse_xml(text, USUAL)
    assert found
    assert entries == [
        Entry("http", ":8080", 2),
        Entry("master", "1", 3),
        Entry("http-to", "a:1", 4),
        Entry("http-to", "b:1", 5),
    ]


def test_xml_sections() -> None:
    text = '<all><uwsgi><a>1</a></uwsgi><uwsgi id="x"><a>2</a></uwsgi><other/></all>'
    assert pairs(parse_xml(text, USUAL)) == [("a", "1")]
    assert pairs(parse_xml(text, ("x",))) == [("a", "2")]
    assert parse_xml("<all/>", USUAL) == ([], False)
    assert pairs(parse_xml("<uwsgi><uwgate><b>2</b></uwgate></uwsgi>", USUAL)) == [("b", "2")]


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("<uwsgi>\n<a></uwsgi>", 2, "not valid XML"),
        ("", 1, "not valid XML"),
        ("<uwsgi>\n<a><b/></a></uwsgi>", 2, "<a>: expected text"),
        ('<!DOCTYPE x [<!ENTITY e "v">]>\n<uwsgi><a>&e;</a></uwsgi>', 0, "document type"),
        ("<uwsgi>\udcff</uwsgi>", 0, "not valid XML"),
    ],
)
def test_xml_refused(text: str, line: int, complaint: str) -> None:
    where, why = error_of(parse_xml, text)
    assert complaint in why
    assert where == line


KEYS = st.from_regex(r"[a-z][a-z0-9\-]{0,12}", fullmatch=True)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1
).map(str.strip).filter(bool)
LISTS = st.dictionaries(KEYS, st.lists(VALUES, min_size=1, max_size=3), max_size=4)


@given(LISTS)
def test_all_formats_agree(lists: dict[str, list[str]]) -> None:
    expected = [(key, value) for key, values in lists.items() for value in values]
    ini = "[uwsgi]\n" + "".join(f"{key} = {value}\n" for key, value in expected)
    as_json = json.dumps({"uwsgi": lists})
    assert pairs(parse_ini(ini, USUAL)) == expected
    assert pairs(parse_json(as_json, USUAL)) == expected
    assert pairs(parse_yaml(json.dumps({"uwsgi": lists}, ensure_ascii=False), USUAL)) == expected


@given(st.text(max_size=200))
def test_any_text_is_read_or_a_format_error(text: str) -> None:
    for parser in (parse_ini, parse_yaml, parse_json, parse_xml):
        with suppress(FormatError):
            parser(text, USUAL)
