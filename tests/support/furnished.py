"""Certificates for the configurations of examples and of documents."""

from __future__ import annotations

import re
from pathlib import Path

from support.certificates import Authority

TLS = "/etc/uwgate/tls"
_FILE = re.compile(rf"{TLS}/([A-Za-z0-9./_-]+)\.crt")
SITE = "site.example"


class Furnished:
    """Makes the files that a text names under ``/etc/uwgate/tls``: a certificate for the name in
    the file's name and for all of its subdomains, ``clients-ca.pem``, a directory ``sites`` with
    one certificate."""

    def __init__(self, where: Path) -> None:
        self.where = where / "tls"
        (self.where / "sites").mkdir(parents=True)
        self.authority = Authority(self.where)
        (self.where / "clients-ca.pem").write_bytes(self.authority.file.read_bytes())
        self.authority.issue(SITE, file=f"sites/{SITE}")

    def adapt(self, text: str) -> str:
        """The text with names of files that exist."""
        for name in set(_FILE.findall(text)):
            if not (self.where / f"{name}.crt").exists():
                self.authority.issue(name, f"*.{name}", f"*.www.{name}", file=name)
        return text.replace(TLS, str(self.where))
