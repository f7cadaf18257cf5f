"""A page of 200 resources, of real uWSGI, in a real browser, and a WebSocket (RFC 8441)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from support.certificates import Authority
from support.uwgate import running
from support.waiting import free_port, wait_until

from interop.peers import accepts, needs, start_browser, uwsgi


def test_a_page_of_200_resources_and_a_websocket(tmp_path: Path) -> None:
    pair, port = Authority(tmp_path).issue("one.test"), free_port()
    base = f"https://127.0.0.1:{port}"

    def heard() -> list[list[object]]:
        curl = [needs("curl"), "-sk", "--http2", "--max-time", "20", f"{base}/heard"]
        done = subprocess.run(curl, capture_output=True, check=True)
        return [json.loads(each) for each in json.loads(done.stdout)]

    with (
        uwsgi(tmp_path, f"127.0.0.1:{free_port()}", module="page") as node,
        running(
            "--http-to", node.address, "--https", f"127.0.0.1:{port},{pair.cert},{pair.key}",
            "--http-log",
        ) as gateway,
    ):
        wait_until(lambda: accepts(f"127.0.0.1:{port}"), "the listener")
        browser = start_browser(base + "/", tmp_path / "profile", "--ignore-certificate-errors")
        try:
            wait_until(heard, "the end of the page's script", 60)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)  # with all the processes it has started
            browser.wait()
        assert heard() == [[200, ["h2"], True]]
        wait_until(lambda: "/websocket" in gateway.log, "the tunnel in the request log")
        (line,) = [each for each in gateway.log.splitlines() if "/websocket" in each]
        assert "HTTP/2.0" in line
