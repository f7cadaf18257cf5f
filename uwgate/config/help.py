"""Texts made from the registry: ``--help``, one topic of it, and the options page."""

from __future__ import annotations

import textwrap

from uwgate import __version__
from uwgate.config.model import Kind, Option, State
from uwgate.config.options import TOPICS, foreign, in_topic
from uwgate.config.show import default_text

_WIDTH = 78
_INTRODUCTION = """\
Usage: uwgate [OPTION]... [FILE[:SECTION]]...

An HTTP router in front of application servers that speak uwsgi or HTTP.

  uwgate --http :8080 --http-to 127.0.0.1:3031
  uwgate router.ini
  uwgate --check router.ini        say what is wrong with a configuration
  uwgate --show-config router.ini  show every value and where it comes from
  uwgate announce --help           announce any server to routers
  uwgate nodes --help              ask a running router who serves which key

Files end in .ini, .yaml, .json or .xml; '-' is an INI text on standard input.
uWSGI's environment variables (UWSGI_HTTP_TO and so on) count, too.

Options by topic (uwgate --help TOPIC):

"""


def _argument(row: Option) -> str:
    unit = row.unit.upper() if row.unit and " " not in row.unit else "VALUE"
    if row.kind.argument == "none":
        return ""
    return f"[={unit}]" if row.kind.argument == "optional" else f" {unit}"


def _names(row: Option) -> str:
    short = f"-{row.short}, " if row.short else ""
    others = "".join(f", --{alias}" for alias in row.aliases)
    return f"  {short}--{row.name}{_argument(row)}{others}"


def _describe(row: Option) -> str:
    text = row.help
    default = default_text(row)
    if default and row.state is State.ACTIVE and row.kind is not Kind.FLAG:
        text += f" Default: {default}."
    elif default == "true":
        text += " Default: on."
    if row.repeatable and row.state is State.ACTIVE:
        text += " May be repeated."
    return textwrap.fill(text, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def help_topic(topic: str) -> str:
    """All options of one topic."""
    lines = [f"{TOPICS[topic]}:", ""]
    for row in in_topic(topic):
        lines += [_names(row), _describe(row)]
    return "\n".join(lines) + "\n"


def help_overview() -> str:
    """What ``--help`` prints: usage, and the option names of every topic."""
    text = _INTRODUCTION
    for topic, title in TOPICS.items():
        names = " ".join(row.name for row in in_topic(topic))
        text += f"{topic}: {title}\n"
        text += textwrap.fill(
            names, _WIDTH, initial_indent="    ", subsequent_indent="    ",
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip
        text += "\n"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _row(row: Option) -> str:
    names = ", ".join(f"`{name}`" for name in (row.name, *row.aliases))
    if row.short:
        names += f", `-{row.short}`"
    default = default_text(row)
    cells = (
        names,
        row.kind.letter + ("+" if row.repeatable and row.state is State.ACTIVE else ""),
        row.unit,
        f"`{default}`" if default else "",
        "yes" if row.uwsgi else "no",
        row.help,
    )
    return "| " + " | ".join(map(_cell, cells)) + " |"


_PAGE = """\
# Options

This page is made from the option registry by `python -m uwgate.config.docs`; a test holds it up
to date. How values are written, and what differs from uWSGI, is told in
[configuration.md](configuration.md).

Kinds: **F** flag, **B** boolean that needs a value on the command line, **I** number, **I?**
number that may be left out, **S** text, **S?** text that may be left out, **L** list, **A**
address; **+** may be given several times. Optional values are written `--option=value` on the
command line. Durations take `ms`, `s`, `m`, `h`; sizes take `k`, `m`, `g`. The column *uWSGI* says
whether uWSGI 2.0 knows the name.
"""

_FOREIGN = (
    (
        State.REFUSED,
        "Refused in this version",
        "Ignoring these would change what is served, so they are errors.",
    ),
    (
        State.COMMAND,
        "Commands of the uWSGI binary",
        "uwgate does not have these; they are errors.",
    ),
    (
        State.LATER,
        "Without effect in this version",
        "These belong to gateways, sockets or processes; each gives a warning.",
    ),
    (
        State.SERVER,
        "Options of the application server",
        "These are accepted, with their arguments, and named in one summary line.",
    ),
)


def options_page() -> str:
    """The text of ``docs/options.md``."""
    parts = [_PAGE]
    for topic, title in TOPICS.items():
        parts.append(f"\n## {title} (`--help {topic}`)\n")
        parts.append("| Option | Kind | Value | Default | uWSGI | Meaning |")
        parts.append("|---|---|---|---|---|---|")
        parts += [_row(row) for row in in_topic(topic)]
    for state, title, sentence in _FOREIGN:
        names = ", ".join(f"`{row.name}`" for row in foreign(state))
        text = textwrap.fill(names, 98, break_on_hyphens=False, break_long_words=False)
        parts.append(f"\n## {title}\n\n{sentence}\n\n{text}")
    parts.append(f"\nuwgate {__version__}")
    return "\n".join(parts) + "\n"
