"""Web servers in front of the fastrouter (nginx, uWSGI's own router), real uWSGI behind it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.fast import fastrouter
from support.waiting import free_port, wait_until

from interop import peers
from interop.apps.workhorse import blob, blob_digest
from interop.clients import WebSocket, fetch
from interop.peers import Peer

CONFIG = """
daemon off;
master_process off;
pid {where}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {where}/body;
    proxy_temp_path {where}/proxy;
    fastcgi_temp_path {where}/fastcgi;
    uwsgi_temp_path {where}/uwsgi;
    scgi_temp_path {where}/scgi;
    client_max_body_size 100m;
    large_client_header_buffers 4 64k;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param CONTENT_TYPE $content_type;
            uwsgi_param CONTENT_LENGTH $content_length;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param DOCUMENT_ROOT $document_root;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param REQUEST_SCHEME $scheme;
            uwsgi_param HTTPS $https if_not_empty;
            uwsgi_param REMOTE_ADDR $remote_addr;
            uwsgi_param REMOTE_PORT $remote_port;
            uwsgi_param SERVER_PORT $server_port;
            uwsgi_param SERVER_NAME $server_name;
            uwsgi_pass {router};
            uwsgi_buffer_size 64k;
            uwsgi_buffers 4 64k;
            {more}
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(where: Path, router: str, more: str = "") -> Iterator[int]:
    """nginx with ``uwsgi_pass`` to ``router``; its port."""
    where.mkdir(exist_ok=True)
    port = free_port()
    config = where / "nginx.conf"
    target = f"unix:{router}" if "/" in router else router
    config.write_text(CONFIG.format(where=where, port=port, router=target, more=more))
    argv = [peers.needs("nginx"), "-e", "stderr", "-p", str(where), "-c", str(config)]
    with peers.peer(argv, [f"127.0.0.1:{port}"], where / "nginx.log"):
        yield port


@contextlib.contextmanager
def uwsgi_router(where: Path, router: str) -> Iterator[int]:
    """uWSGI's HTTP router, which speaks uwsgi to ``router``; its port."""
    where.mkdir(exist_ok=True)
    port = free_port()
    argv = [peers.script("uwsgi"), "--master", "--die-on-term", "--http", f"127.0.0.1:{port}"]
    argv += ["--http-to", router, "--http-websockets", "--http-chunked-input"]
    with peers.peer(argv, [f"127.0.0.1:{port}"], where / "front.log"):
        yield port


@dataclass
class Stage:
    """Three real instances behind a fastrouter behind a web server on ``port``."""

    port: int
    nodes: list[Peer]


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    where = tmp_path_factory.mktemp("instances")
    with contextlib.ExitStack() as held:
        yield [
            held.enter_context(peers.uwsgi(where, str(where / f"{name}.sock"), name=name))
            for name in ("one", "two", "three")
        ]


@pytest.fixture(scope="module", params=["nginx-unix", "nginx-tcp", "uwsgi"])
def stage(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    instances: list[Peer],
) -> Iterator[Stage]:
    where = tmp_path_factory.mktemp(request.param)
    listen = "" if request.param == "nginx-tcp" else str(where / "router.sock")
    options = [word for node in instances for word in ("--fastrouter-to", node.address)]
    front = uwsgi_router if request.param == "uwsgi" else nginx
    with fastrouter(*options, listen=listen) as gateway, front(where, gateway.listen) as port:
        yield Stage(port, instances)


def test_instances_take_turns(stage: Stage) -> None:
    names = [fetch(stage.port, "/name").json()["name"] for _ in range(9)]
    assert sorted(names) == sorted(["one", "two", "three"] * 3)


def test_variables_arrive(stage: Stage) -> None:
    fields = [("X-Probe", "yes"), ("Cookie", "c" * 5000)]
    found = fetch(stage.port, "/env?a=b", fields=fields).json()
    assert found["HTTP_X_PROBE"] == "yes"
    assert found["HTTP_COOKIE"] == "c" * 5000
    assert found["QUERY_STRING"] == "a=b"
    assert found["REMOTE_ADDR"] == "127.0.0.1"


def test_downloads(stage: Stage) -> None:
    for path in ("/download", "/unframed"):
        reply = fetch(stage.port, f"{path}?size={3 << 20}", keep=False)
        assert (reply.status, reply.size) == (200, 3 << 20)
        assert reply.sha256 == blob_digest(3 << 20)


def test_uploads(stage: Stage) -> None:
    for size in (1, 65536, 3 << 20):
        body = b"".join(blob(size))
        reply = fetch(stage.port, "/digest", method="POST", body=body)
        assert hashlib.sha256(body).hexdigest() in reply.body.decode()


def test_head(stage: Stage) -> None:
    reply = fetch(stage.port, "/name", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")


def test_websockets(stage: Stage) -> None:
    with WebSocket(stage.port, "/websocket") as client:
        for text in ("hello", "", "0123456789abcdef" * 4096):
            assert client.echo(text) == text


def test_websockets_through_nginx_and_an_http_node(tmp_path: Path, echo_server: str) -> None:
    with (
        fastrouter("--fastrouter-to", f"http://{echo_server}") as gateway,
        nginx(tmp_path, gateway.listen) as port,
        WebSocket(port, "/websocket") as client,
    ):
        assert client.echo("hello") == "hello"


def test_an_instance_is_killed_and_nobody_notices(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        nodes = [
            held.enter_context(peers.uwsgi(tmp_path, str(tmp_path / f"{name}.sock"), name=name))
            for name in ("one", "two", "three")
        ]
        options = [word for node in nodes for word in ("--fastrouter-to", node.address)]
        gateway = held.enter_context(fastrouter(*options, listen=str(tmp_path / "r.sock")))
        port = held.enter_context(nginx(tmp_path / "nginx", gateway.listen))
        os.killpg(nodes[1].process.pid, signal.SIGKILL)
        wait_until(lambda: not peers.accepts(nodes[1].address), "the instance to be gone")
        replies = [fetch(port, "/name") for _ in range(12)]
        assert {reply.status for reply in replies} == {200}
        assert {reply.json()["name"] for reply in replies} == {"one", "three"}


def test_errors_reach_the_client_of_nginx(tmp_path: Path) -> None:
    with (
        fastrouter("--fastrouter-to", str(tmp_path / "nobody.sock")) as gateway,
        nginx(tmp_path, gateway.listen) as port,
    ):
        assert fetch(port, "/").status == 502
        reply = fetch(port, "/")
        assert (reply.status, reply.get("retry-after")) == (503, "1")
        assert b"not available" in reply.body


def test_post_buffering(tmp_path: Path, instances: list[Peer]) -> None:
    """nginx hands a body on as it comes; the fastrouter holds it until it is whole."""
    options = ["--fastrouter-to", instances[0].address, "--fastrouter-post-buffering", "65536"]
    body = b"".join(blob(1 << 20))
    with (
        fastrouter(*options) as gateway,
        nginx(tmp_path, gateway.listen, "uwsgi_request_buffering off;") as port,
    ):
        reply = fetch(port, "/digest", method="POST", body=body)
        assert hashlib.sha256(body).hexdigest() in reply.body.decode()
