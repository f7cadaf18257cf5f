"""Which of the programs that take part are on this machine, and where."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# What to install for each program, as Debian and PyPI name it.
PACKAGES = {
    "wrk": "the load generator (Debian: wrk); without it nothing can be measured",
    "nginx": "peer and HTTP origin (Debian: nginx)",
    "haproxy": "peer (Debian: haproxy)",
    "uwsgi": "peer and uwsgi origin (PyPI: pyuwsgi)",
    "uwgate": "the router under test (this repository, with its dependency uvloop)",
    "gunicorn": "HTTP nodes of the soak test (PyPI: gunicorn)",
}

_VERSION_ARGUMENTS = {"wrk": "-v", "nginx": "-v", "haproxy": "-v", "uwsgi": "--version"}


@dataclass(frozen=True, slots=True)
class Tools:
    """Command prefixes by program name; absent programs are not keys."""

    commands: dict[str, list[str]]

    def has(self, name: str) -> bool:
        """Whether the program was found."""
        return name in self.commands

    def missing(self) -> list[str]:
        """One line for each program that was not found: its name and what it is for."""
        return [f"{name}: {why}" for name, why in PACKAGES.items() if name not in self.commands]

    def version(self, name: str) -> str:
        """First line of what the program says about its version, "" if it says nothing."""
        if name not in self.commands or name not in _VERSION_ARGUMENTS:
            return ""
        argv = [*self.commands[name], _VERSION_ARGUMENTS[name]]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[0] if lines else ""


def find_tools() -> Tools:
    """Look beside the running interpreter first (a virtualenv), then on PATH and in /usr/sbin."""
    commands: dict[str, list[str]] = {}
    for name in ("wrk", "nginx", "haproxy", "uwsgi"):
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.is_file() else shutil.which(name)
        found = found or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found:
            commands[name] = [found]
    if importlib.util.find_spec("uwgate") and importlib.util.find_spec("uvloop"):
        commands["uwgate"] = [sys.executable, "-m", "uwgate"]
    if importlib.util.find_spec("gunicorn"):
        commands["gunicorn"] = [sys.executable, "-m", "gunicorn"]
    return Tools(commands)
