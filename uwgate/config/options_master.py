"""Rows of the master's work: reloads, lives of workers, orders, zergs, rotation of the log."""

from __future__ import annotations

from uwgate.config import master_values, values
from uwgate.config.model import Kind, Option, State

_RELOAD = "reload"
_ZERG = "zerg"
_LOGS = "logs"
_PROCESS = "process"
_SOCKETS = "sockets"


def _life(
    name: str,
    kind: Kind,
    text: str,
    field: str,
    *,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    uwsgi: bool = True,
) -> Option:
    parse = values.boolean if kind is Kind.FLAG else values.seconds(0.0)
    return Option(
        name, kind, _RELOAD, text,
        aliases=aliases, field=f"life.{field}", parse=parse, unit=unit, uwsgi=uwsgi,
    )  # fmt: skip


def _touch(action: str, text: str) -> Option:
    return Option(
        f"touch-{action}",
        Kind.STRING,
        _RELOAD,
        text,
        parse=master_values.touched(action),
        unit={"exec": "FILE COMMAND", "signal": "FILE SIGNAL"}.get(action, "file"),
        repeatable=True,
    )


_RELOAD_ROWS = (
    _life(
        "reload-mercy",
        Kind.INT,
        "How long a replaced worker may finish what is under way.",
        "reload_mercy",
        unit="seconds",
        aliases=("worker-reload-mercy",),
    ),
    _life(
        "drain-delay",
        Kind.INT,
        "On SIGTERM, how long to go on accepting while /readyz says 503 already.",
        "drain_delay",
        unit="seconds",
        uwsgi=False,
    ),
    _life(
        "exit-on-reload",
        Kind.FLAG,
        "End on a reload, for a supervisor that starts anew.",
        "exit_on_reload",
    ),
    Option(
        "harakiri",
        Kind.INT,
        _RELOAD,
        "Kill and replace a worker whose event loop stands still for so long.",
        short="t",
        parse=values.seconds(0.0),
        unit="seconds",
        default="0",
    ),
    Option(
        "http-harakiri",
        Kind.INT,
        _RELOAD,
        "The same; it goes before harakiri, which may be meant for an application in the same"
        " file.",
        aliases=("fastrouter-harakiri",),
        field="life.harakiri",
        parse=values.seconds(0.0),
        unit="seconds",
        default="harakiri",
    ),
    _life(
        "max-worker-lifetime",
        Kind.INT,
        "Replace workers that are so old.",
        "max_lifetime",
        unit="seconds",
    ),
    _life(
        "min-worker-lifetime",
        Kind.INT,
        "Replace none for its size that is younger.",
        "min_lifetime",
        unit="seconds",
    ),
    Option(
        "reload-on-rss",
        Kind.INT,
        _RELOAD,
        "Replace workers that take up more memory.",
        field="life.reload_on_rss",
        parse=master_values.megabytes,
        unit="MB",
    ),
    _life("cheap", Kind.FLAG, "Start without workers, and wait for a connection.", "cheap"),
    _life(
        "idle",
        Kind.INT,
        "Without a request for so long, send the workers home until somebody connects.",
        "idle",
        unit="seconds",
    ),
    _life("die-on-idle", Kind.FLAG, "With idle: end instead.", "die_on_idle"),
    _life(
        "no-orphans",
        Kind.FLAG,
        "Workers are killed with their master; else they finish their requests.",
        "no_orphans",
    ),
    Option(
        "master-fifo",
        Kind.STRING,
        _RELOAD,
        "FIFO that takes orders of one letter; the first is slot 0, ten at most.",
        parse=values.filename,
        unit="file",
        repeatable=True,
    ),
    Option(
        "control-socket",
        Kind.STRING,
        _RELOAD,
        "Unix socket for uwgate reload, stop, status and nodes.",
        field="life.control",
        parse=master_values.socket_path,
        unit="file",
        uwsgi=False,
    ),
    _touch("reload", "Reload when the file is touched."),
    _touch("chain-reload", "Reload one worker after the other when the file is touched."),
    _touch("workers-reload", "Replace the workers when the file is touched."),
    _touch("logreopen", "Open the log files again when the file is touched."),
    _touch("logrotate", "Rotate the main log when the file is touched."),
    _touch("exec", "Run a command when the file is touched."),
    _touch("signal", "Send the master a signal when the file is touched."),
    Option(
        "safe-fd",
        Kind.STRING,
        _RELOAD,
        "Keep a descriptor over reloads; those that are used are kept anyway.",
        aliases=("fd-safe",),
        repeatable=True,
        state=State.NOTHING,
    ),
)

_ZERG_ROWS = (
    Option(
        "zerg-server",
        Kind.STRING,
        _ZERG,
        "Unix socket where other instances get all listening sockets of this one.",
        parse=master_values.unix_address,
        unit="path or @name",
        repeatable=True,
    ),
    Option(
        "zerg-pool",
        Kind.STRING,
        _ZERG,
        "Bind addresses and hand their sockets out at the unix socket CONTROL.",
        aliases=("zergpool",),
        parse=master_values.zerg_pool,
        unit="CONTROL:ADDRESS[,ADDRESS]",
        repeatable=True,
    ),
    *(
        Option(
            name,
            Kind.STRING,
            _ZERG,
            f"Listen on the sockets of a zerg server{of}.",
            parse=master_values.unix_address,
            unit="path or @name",
            repeatable=True,
        )
        for name, of in (
            ("zerg", ", as the only gateway of this instance"),
            ("http-zerg", ", as the HTTP router"),
            ("fastrouter-zerg", ", as the fastrouter"),
        )
    ),
    Option(
        "zerg-fallback",
        Kind.FLAG,
        _ZERG,
        "Start without the sockets of a zerg server that is away.",
        field="zerg.fallback",
        parse=values.boolean,
    ),
)

_LOG_ROWS = (
    Option(
        "log-maxsize",
        Kind.INT,
        _LOGS,
        "Rotate the main log when it is larger.",
        field="main_log.max_size",
        parse=values.size(),
        unit="bytes",
    ),
    Option(
        "log-backupname",
        Kind.STRING,
        _LOGS,
        "Name of the rotated main log; else its name, a dot and the second of the epoch.",
        field="main_log.backup_name",
        parse=values.filename,
        unit="file",
    ),
    Option(
        "log-reopen",
        Kind.FLAG,
        _LOGS,
        "Open the main log again on a reload.",
        field="main_log.reopen",
        parse=values.boolean,
    ),
    Option(
        "log-truncate",
        Kind.FLAG,
        _LOGS,
        "Empty the main log at start.",
        field="main_log.truncate",
        parse=values.boolean,
    ),
    Option(
        "logfile-chmod",
        Kind.STRING,
        _LOGS,
        "Mode of the main log.",
        field="main_log.mode",
        parse=master_values.log_mode,
        unit="octal",
    ),
    Option(
        "logfile-chown",
        Kind.OPTIONAL_STRING,
        _LOGS,
        "Owner of the main log; without a value (as in uWSGI) those of uid and gid.",
        parse=master_values.log_owner,
        unit="USER[:GROUP]",
    ),
    Option(
        "daemonize",
        Kind.STRING,
        _LOGS,
        "Go into the background, and log to the file.",
        short="d",
        field="process.daemonize",
        parse=values.filename,
        unit="file",
    ),
    Option(
        "daemonize2",
        Kind.STRING,
        _LOGS,
        "The same, once everything is up.",
        field="process.daemonize2",
        parse=values.filename,
        unit="file",
    ),
)

_PROCESS_ROWS = (
    *(
        Option(
            name,
            Kind.STRING,
            _PROCESS,
            text,
            field=f"process.{name.replace('-', '_')}",
            parse=values.filename,
            unit="file",
        )
        for name, text in (
            ("pidfile2", "Another pidfile, written as the user that the master has become."),
            ("safe-pidfile", "Another pidfile, written when all workers serve."),
            ("safe-pidfile2", "Another pidfile, written when all workers serve."),
        )
    ),
    Option(
        "add-gid",
        Kind.STRING,
        _PROCESS,
        "Another group of the processes.",
        parse=values.group,
        unit="name or number",
        repeatable=True,
    ),
    Option(
        "chroot",
        Kind.STRING,
        _PROCESS,
        "Root directory of the workers; the master stays outside, as root.",
        field="process.chroot",
        parse=values.filename,
        unit="directory",
    ),
    Option(
        "cap",
        Kind.STRING,
        _PROCESS,
        "Capabilities that the master keeps when it changes its user.",
        field="process.capabilities",
        parse=master_values.capabilities,
        unit="NAME[,NAME]",
    ),
)

_SOCKET_ROWS = (
    Option(
        "chown-socket",
        Kind.STRING,
        _SOCKETS,
        "Owner of unix sockets.",
        field="process.chown_socket",
        parse=master_values.owner,
        unit="USER[:GROUP]",
    ),
    Option(
        "so-keepalive",
        Kind.FLAG,
        _SOCKETS,
        "Have the kernel probe connections of clients that are silent.",
        field="process.keepalive_probes",
        parse=values.boolean,
    ),
    Option(
        "socket-sndbuf",
        Kind.INT,
        _SOCKETS,
        "Send buffer of clients' connections.",
        field="process.send_buffer",
        parse=values.size(0, 1 << 30),
        unit="bytes",
    ),
    Option(
        "socket-rcvbuf",
        Kind.INT,
        _SOCKETS,
        "Receive buffer of clients' connections.",
        field="process.receive_buffer",
        parse=values.size(0, 1 << 30),
        unit="bytes",
    ),
    Option(
        "tcp-fast-open",
        Kind.INT,
        _SOCKETS,
        "Take data with the SYN (TCP Fast Open) of so many connections at a time.",
        aliases=("tcp-fastopen",),
        field="process.fast_open",
        parse=values.integer(0, 65535),
    ),
)

MASTER_OPTIONS = _RELOAD_ROWS + _ZERG_ROWS + _LOG_ROWS + _PROCESS_ROWS + _SOCKET_ROWS
"""Topics ``reload`` and ``zerg``, and more of ``logs``, ``process`` and ``sockets``."""

COMMANDS = tuple(
    Option(
        name,
        Kind.STRING,
        "config",
        text,
        aliases=aliases,
        unit="pidfile",
        repeatable=True,
        state=State.COMMAND_LINE,
    )
    for name, aliases, text in (
        ("reload", (), "Reload the instance with that pidfile (SIGHUP)."),
        ("stop", (), "Stop the instance with that pidfile (SIGINT)."),
        (
            "pause",
            ("suspend", "resume"),
            "Pause the instance with that pidfile, or let it go on (SIGTSTP).",
        ),
    )
)
"""What uWSGI's binary does to another instance."""

