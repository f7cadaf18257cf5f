"""What a second reading of the data path found, one test a defect."""

from __future__ import annotations

import time

import pytest
from support.nodes import Connection, RawHttpNode, RawUwsgiNode, Seen, response
from support.uwgate import StartGateway
from support.waiting import dead_address

CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("times", [1, 3])
def test_a_chunked_body_that_was_complete_before_its_node_was_known(
    start_gateway: StartGateway, uwsgi_node: RawUwsgiNode, times: int
) -> None:
    # The HTTP node refuses; by then the whole body is here, and the next node needs its length.
    dead = f"http://{dead_address()}"
    gateway = start_gateway("--http-to", dead, "--http-fallback", uwsgi_node.spec)
    for _ in range(times):
        with gateway.connect() as client:
            assert client.ask(CHUNKED, b"POST").status == 200
    for seen in uwsgi_node.seen:
        assert seen.body == b"hello"
        assert seen.field(b"content-length") == [b"5"]


def test_the_answer_has_its_own_time_after_a_short_connect_limit(
    start_gateway: StartGateway, http_node: RawHttpNode
) -> None:
    def slow(connection: Connection, seen: Seen) -> None:
        time.sleep(3.5)  # longer than the connect limit and the clock's lateness
        connection.send(response(b"late"))

    http_node.play(slow)
    gateway = start_gateway("--http-to", http_node.spec, "--http-connect-timeout", "1")
    with gateway.connect() as client:
        reply = client.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (reply.status, reply.body) == (200, b"late")


def test_pipelined_requests_before_a_fin_are_all_answered(
    start_gateway: StartGateway, http_node: RawHttpNode
) -> None:
    gateway = start_gateway("--http-to", http_node.spec)
    for _ in range(20):
        with gateway.connect() as client:
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
            client.half_close()
            assert [client.read_response().status for _ in range(3)] == [200, 200, 200]


def test_a_kept_http_1_0_client_sees_the_end_of_an_error(start_gateway: StartGateway) -> None:
    gateway = start_gateway("--http-to", dead_address())
    with gateway.connect() as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"502 Bad Gateway" in client.read_to_end()
