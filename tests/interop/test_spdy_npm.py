"""npm's SPDY client, over TLS with ALPN, before real uWSGI.

Node.js has to find the package ``spdy`` (4.0): ``npm install spdy`` somewhere, and NODE_PATH says
where. What that is not there for skips.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from support import spdy_site
from support.certificates import Authority
from support.spdy_site import listener
from support.uwgate import running
from support.waiting import free_port, wait_until

from interop.apps.workhorse import blob_digest
from interop.observing import stats
from interop.peers import Peer, accepts, needs

authority = spdy_site.authority

CLIENT = Path(__file__).parent / "apps" / "spdy_client.js"


@pytest.fixture(scope="module")
def node() -> str:
    """Node.js, which knows the package."""
    program = needs("node")
    known = subprocess.run([program, "-e", "require('spdy')"], capture_output=True, timeout=30)
    if known.returncode:
        pytest.skip("npm's spdy is not installed (npm install spdy; NODE_PATH=…/node_modules)")
    return program


def test_npm_spdy(node: str, uwsgi_app: Peer, authority: Authority) -> None:
    port, value = listener(authority)
    watched = f"127.0.0.1:{free_port()}"
    with running(
        "--https2", value, "--http-to", uwsgi_app.address, "--http-stats", watched, "--http-log"
    ) as gateway:
        wait_until(lambda: accepts(watched), "the statistics")
        done = subprocess.run(
            [node, str(CLIENT), str(port)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        seen = stats(watched)["spdy"]
        wait_until(lambda: "GET /env?n=49 SPDY/3.1" in gateway.log, "the request log")
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["settings"] == {"initial_window_size": 65536, "max_concurrent_streams": 100}

    variables = json.loads(found["get"]["text"])
    assert variables["QUERY_STRING"] == "a=b"
    assert variables["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert variables["HTTPS"] == variables["SPDY"] == "on"
    assert (variables["SPDY.version"], variables["SPDY.stream"]) == ("3", "1")
    assert variables["UWSGI_SCHEME"] == variables["wsgi.url_scheme"] == "https"

    digest = hashlib.sha256(b"x" * 300_000).hexdigest()
    for name in ("post", "unknown"):
        said = json.loads(found[name]["text"])
        assert (said["length"], said["sha256"]) == (300_000, digest)
    assert found["large"]["sha256"] == blob_digest(3_000_000)

    parallel = [json.loads(each["text"]) for each in found["parallel"]]
    assert [each["QUERY_STRING"] for each in parallel] == [f"n={number}" for number in range(50)]
    assert len({each["SPDY.stream"] for each in parallel}) == 50

    assert found["after"]["status"] == 200  # behind RST_STREAM and PING
    assert seen["resets"].keys() == {"client:CANCEL"}
    assert seen["requests"] == 56
    assert seen["goaways"] == {}
