"""``python -m uwgate.config.docs`` prints the options page (docs/options.md)."""

from __future__ import annotations

import sys

from uwgate.config.help import options_page


def main() -> None:
    """Write the page to standard output."""
    sys.stdout.write(options_page())


if __name__ == "__main__":
    main()
