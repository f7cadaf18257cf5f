"""Rows of the process, its sockets, logs and statistics, and of the configuration itself."""

from __future__ import annotations

from uwgate.config import addresses, values
from uwgate.config.model import Kind, Option, State

_PROCESS = "process"
_SOCKETS = "sockets"
_LOGS = "logs"
_STATS = "stats"
_CONFIG = "config"

_SOCKET_ROWS = (
    Option(
        "shared-socket",
        Kind.ADDRESS,
        _SOCKETS,
        "Socket bound before privileges are dropped; http = =N serves on the N-th (from 0).",
        parse=addresses.bindable,
        unit="address",
        repeatable=True,
    ),
    Option(
        "undeferred-shared-socket",
        Kind.ADDRESS,
        _SOCKETS,
        "As shared-socket (same numbering), but without TCP_DEFER_ACCEPT.",
        parse=addresses.bindable,
        unit="address",
        repeatable=True,
    ),
    Option(
        "socket",
        Kind.LIST,
        _SOCKETS,
        "Address of an application server that runs elsewhere; a node if no other is named.",
        aliases=("uwsgi-socket",),
        short="s",
        unit="address",
        repeatable=True,
    ),
    Option(
        "listen",
        Kind.INT,
        _SOCKETS,
        "Length of the queue of connections not yet accepted.",
        short="l",
        field="process.listen",
        parse=values.integer(1, 65535),
    ),
    Option(
        "reuse-port",
        Kind.FLAG,
        _SOCKETS,
        "Let another instance listen on the same TCP addresses.",
        field="process.reuse_port",
        parse=values.boolean,
    ),
    Option(
        "freebind",
        Kind.FLAG,
        _SOCKETS,
        "Allow addresses that this machine does not have yet.",
        field="process.freebind",
        parse=values.boolean,
    ),
    Option(
        "chmod-socket",
        Kind.OPTIONAL_STRING,
        _SOCKETS,
        "Mode of unix sockets; without a value 666.",
        aliases=("chmod",),
        short="C",
        field="process.chmod_socket",
        parse=values.mode,
        unit="octal",
    ),
    Option(
        "socket-timeout",
        Kind.INT,
        _SOCKETS,
        "How long the kernel keeps back a connection whose client sends nothing.",
        short="z",
        field="process.defer_accept",
        parse=values.integer(0, 3600, "seconds"),
        unit="seconds",
    ),
    Option(
        "no-defer-accept",
        Kind.FLAG,
        _SOCKETS,
        "Accept connections before their first byte.",
        parse=values.boolean,
        default="false",
    ),
    Option(
        "tcp-nodelay",
        Kind.FLAG,
        _SOCKETS,
        "Send small packets at once; always so here.",
        state=State.NOTHING,
    ),
)

_PROCESS_ROWS = (
    Option(
        "uid",
        Kind.STRING,
        _PROCESS,
        "User to become after binding.",
        field="process.uid",
        parse=values.user,
        unit="name or number",
    ),
    Option(
        "gid",
        Kind.STRING,
        _PROCESS,
        "Group to become after binding.",
        field="process.gid",
        parse=values.group,
        unit="name or number",
    ),
    Option(
        "pidfile",
        Kind.STRING,
        _PROCESS,
        "File that gets the master's process id.",
        field="process.pidfile",
        parse=values.filename,
        unit="file",
    ),
    Option(
        "chdir",
        Kind.STRING,
        _PROCESS,
        "Directory to work in.",
        field="process.chdir",
        parse=values.filename,
        unit="directory",
    ),
    Option(
        "umask",
        Kind.STRING,
        _PROCESS,
        "Permission bits that new files and unix sockets do not get.",
        field="process.umask",
        parse=values.creation_mask,
        unit="octal",
    ),
    Option(
        "vacuum",
        Kind.FLAG,
        _PROCESS,
        "Remove unix sockets and the pidfile at exit.",
        field="process.vacuum",
        parse=values.boolean,
    ),
    Option(
        "procname",
        Kind.STRING,
        _PROCESS,
        "Name of the processes.",
        aliases=("procname-master",),
        field="process.procname",
        parse=values.process_name,
    ),
    Option(
        "procname-prefix",
        Kind.STRING,
        _PROCESS,
        "Text before the name of the processes.",
        parse=values.process_name,
    ),
    Option(
        "procname-prefix-spaced",
        Kind.STRING,
        _PROCESS,
        "Text before the name of the processes, with a blank between.",
        parse=values.process_name,
    ),
    Option(
        "procname-append",
        Kind.STRING,
        _PROCESS,
        "Text after the name of the processes.",
        parse=values.process_name,
    ),
    Option(
        "auto-procname",
        Kind.FLAG,
        _PROCESS,
        "Give the processes telling names; always so here.",
        state=State.NOTHING,
    ),
    Option(
        "master",
        Kind.FLAG,
        _PROCESS,
        "Run a master process; always so here.",
        short="M",
        state=State.NOTHING,
    ),
    Option(
        "die-on-term",
        Kind.FLAG,
        _PROCESS,
        "Stop on SIGTERM; always so here.",
        state=State.NOTHING,
    ),
    Option(
        "thunder-lock",
        Kind.FLAG,
        _PROCESS,
        "Serialize accept(); not needed, as each worker has a queue of its own.",
        state=State.NOTHING,
    ),
    Option(
        "skip-zero",
        Kind.FLAG,
        _PROCESS,
        "Do not look at descriptor 0; never done here.",
        state=State.NOTHING,
    ),
    Option(
        "ignore-sigpipe",
        Kind.FLAG,
        _PROCESS,
        "Do not report SIGPIPE; always so here.",
        state=State.NOTHING,
    ),
)

_LOG_ROWS = (
    Option(
        "logto",
        Kind.STRING,
        _LOGS,
        "File for messages, instead of standard error.",
        aliases=("logto2",),
        field="process.log_file",
        parse=values.filename,
        unit="file",
    ),
    Option(
        "http-log",
        Kind.FLAG,
        _LOGS,
        "Write a line for every request.",
        aliases=("log-requests",),
        field="request_log.enabled",
        parse=values.boolean,
        uwsgi=False,
    ),
    Option(
        "http-log-format",
        Kind.STRING,
        _LOGS,
        "Form of the request log: default, json or a template; switches the log on.",
        aliases=("log-format", "logformat"),
        field="request_log.format",
        parse=values.log_format,
        unit="default, json or template",
    ),
    Option(
        "http-log-file",
        Kind.STRING,
        _LOGS,
        "File of the request log, instead of standard output; switches the log on.",
        field="request_log.path",
        parse=values.filename,
        unit="file",
        uwsgi=False,
    ),
    Option(
        "disable-logging",
        Kind.FLAG,
        _LOGS,
        "No request log, unless http-log asks for it.",
        short="L",
        parse=values.boolean,
        default="false",
    ),
    Option(
        "log-x-forwarded-for",
        Kind.FLAG,
        _LOGS,
        "Log the address of X-Forwarded-For instead of the peer's.",
        field="request_log.x_forwarded_for",
        parse=values.boolean,
    ),
    Option(
        "log-master",
        Kind.FLAG,
        _LOGS,
        "Let the master write the log; not needed here.",
        state=State.NOTHING,
    ),
)

_STATS_ROWS = (
    Option(
        "http-stats",
        Kind.STRING,
        _STATS,
        "Address of the statistics: JSON, and over HTTP also metrics and health checks.",
        aliases=("http-stats-server", "http-ss"),
        field="process.stats",
        parse=addresses.bindable,
        unit="address",
    ),
    Option(
        "stats-minified",
        Kind.FLAG,
        _STATS,
        "Statistics without blanks and line ends.",
        aliases=("stats-min",),
        field="process.stats_minified",
        parse=values.boolean,
    ),
    Option(
        "stats-http",
        Kind.FLAG,
        _STATS,
        "Put an HTTP head before the statistics, whatever the peer sends.",
        field="process.stats_http",
        parse=values.boolean,
    ),
)


def _config(
    name: str, kind: Kind, text: str, *aliases: str, short: str = "", unit: str = ""
) -> Option:
    return Option(
        name,
        kind,
        _CONFIG,
        text,
        aliases=aliases,
        short=short,
        unit=unit,
        repeatable=True,
        state=State.CONFIG,
    )


def _condition(name: str, text: str, unit: str, *aliases: str) -> tuple[Option, Option]:
    kind = Kind.STRING if unit else Kind.FLAG
    return (
        _config(f"if-{name}", kind, f"What follows, up to end-if, counts if {text}.", *aliases,
                unit=unit),
        _config(f"if-not-{name}", kind, f"What follows, up to end-if, counts unless {text}.",
                unit=unit),
    )  # fmt: skip


_CONFIG_ROWS = (
    _config("ini", Kind.STRING, "Read an INI file here.", unit="file[:section]"),
    _config("yaml", Kind.STRING, "Read a YAML file here.", "yml", short="y", unit="file[:key]"),
    _config("json", Kind.STRING, "Read a JSON file here.", "js", short="j", unit="file[:key]"),
    _config("xml", Kind.STRING, "Read an XML file here.", "xmlconfig", short="x", unit="file[:id]"),
    _config("include", Kind.STRING, "Read a file here; its ending says how.", "config",
            unit="file[:section]"),
    _config("inherit", Kind.STRING, "Read a file after everything else.", unit="file[:section]"),
    _config("set", Kind.STRING, "Set a placeholder or an option.", short="S", unit="KEY=VALUE"),
    _config("set-placeholder", Kind.STRING, "Set a placeholder.", "set-ph", unit="KEY=VALUE"),
    _config("strict", Kind.FLAG, "Refuse option names that nobody knows."),
    _config("print", Kind.STRING, "Write a text to standard error.", "iprint", unit="text"),
    _config("for", Kind.STRING, "Repeat what follows, up to end-for, for each word.", unit="words"),
    _config("for-glob", Kind.STRING, "The same for each file that matches.", unit="pattern"),
    _config("for-times", Kind.STRING, "The same for each number from 1 to N.", unit="N"),
    _config("for-readline", Kind.STRING, "The same for each line of a file.", unit="file"),
    _config("end-for", Kind.OPTIONAL_STRING, "End of a for.", "endfor"),
    *_condition("opt", "the option was set before (to the value)", "NAME[=VALUE]"),
    *_condition("env", "the environment variable is set (to the value)", "NAME[=VALUE]", "ifenv"),
    *_condition("reload", "the instance was reloaded", ""),
    *_condition("hostname", "this machine has the name", "name"),
    *_condition("hostname-match", "this machine's name matches", "regular expression"),
    *_condition("exists", "the path exists", "path", "ifexists"),
    *_condition("plugin", "uWSGI had the plugin (here: http)", "name", "ifplugin"),
    *_condition("file", "the path is a file", "path"),
    *_condition("dir", "the path is a directory", "path", "ifdir", "if-directory"),
    _config("end-if", Kind.OPTIONAL_STRING, "End of an if.", "endif", "end"),
)  # fmt: skip


def _command(
    name: str, text: str, *aliases: str, short: str = "", unit: str = "", uwsgi: bool = True
) -> Option:
    kind = Kind.STRING if unit else Kind.FLAG
    return Option(
        name,
        kind,
        _CONFIG,
        text,
        aliases=aliases,
        short=short,
        unit=unit,
        uwsgi=uwsgi,
        state=State.COMMAND_LINE,
    )


_COMMAND_ROWS = (
    _command("check", "Check the configuration and say what is wrong with it.", uwsgi=False),
    _command("show-config", "Print the effective configuration and where it comes from."),
    _command("get", "Print the first value of a key.", unit="KEY"),
    _command("help", "Print this help; --help TOPIC prints one part.", "usage", short="h"),
    _command("version", "Print the version."),
)

PROCESS_OPTIONS = (
    _SOCKET_ROWS + _PROCESS_ROWS + _LOG_ROWS + _STATS_ROWS + _CONFIG_ROWS + _COMMAND_ROWS
)
"""Topics ``sockets``, ``process``, ``logs``, ``stats`` and ``config``."""
