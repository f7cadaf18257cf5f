import json
import os
import socket

import pytest
from observe_render import make_facts, parse_exposition, render_json, render_metrics
from observe_samples import node, worker
from support.waiting import wait_until

from uwgate import __version__
from uwgate.observe.backlog import Queue, queues
from uwgate.observe.counters import Ledger


def test_document_has_uwsgi_keys_in_uwsgi_order() -> None:
    totals = Ledger().totals([worker(requests=2, connections=1, nodes=[node(hits=2)])])
    text = render_json(totals, [Queue("127.0.0.1:8080", 3, 100, 1)], make_facts())
    value = json.loads(text)
    router = ["version", "pid", "uid", "gid", "cwd", "active_sessions", "http"]
    router += ["static_nodes", "cheap"]
    assert [key for key in value if key in router] == router
    assert value["version"] == __version__
    assert value["pid"] == os.getpid()
    assert value["active_sessions"] == 1
    assert value["http"] == ["127.0.0.1:8080"]
    assert list(value["static_nodes"][0])[:3] == ["name", "hits", "grace"]
    assert value["listen_queue"] == 3
    assert value["sockets"][0]["max_queue"] == 100
    assert value["counters"]["requests"] == 2
    assert value["responses"] == {"200": 2}
    assert value["errors"]["no-node"] == 0


def test_document_is_tab_indented_like_uwsgis() -> None:
    text = render_json(Ledger().totals([worker()]), [], make_facts()).decode()
    assert text.startswith('{\n\t"version":"')
    assert text.endswith("}\n")
    assert '\n\t"http":[\n\t\t"127.0.0.1:8080"\n\t],\n' in text


def test_minified_document_is_one_line() -> None:
    text = render_json(Ledger().totals([worker()]), [], make_facts(minified=True))
    assert b"\n" not in text
    assert b"\t" not in text
    assert json.loads(text)["cheap"] == 0


def test_hostile_names_stay_inside_their_strings() -> None:
    name = 'x"},\n\x1b[2J\udcff\u2028'
    totals = Ledger().totals([worker(nodes=[node(name)])])
    text = render_json(totals, [], make_facts())
    assert text.isascii()
    assert b"\x1b" not in text
    assert json.loads(text)["static_nodes"][0]["name"] == 'x"},\n\x1b[2J\ufffd\u2028'


def test_worker_rows_have_all_keys_of_uwsgis() -> None:
    snapshot = worker(requests=4, time_micros=1000, tx=77, active_requests=1, status="busy")
    value = json.loads(render_json(Ledger().totals([snapshot]), [], make_facts()))
    (row,) = value["workers"]
    keys = "id pid accepting requests delta_requests exceptions harakiri_count signals signal_queue"
    keys += " status rss vsz running_time last_spawn respawn_count tx avg_rt"
    assert list(row)[:17] == keys.split()
    assert row["avg_rt"] == 250
    assert row["accepting"] == 1
    assert row["cores"][0]["in_request"] == 1
    assert row["apps"] == []


def test_no_static_nodes_key_without_nodes() -> None:
    value = json.loads(render_json(Ledger().totals([worker(nodes=[])]), [], make_facts()))
    assert "static_nodes" not in value


def test_a_removed_working_directory_is_no_error(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = os.path.join(tmp_path, "gone")
    os.mkdir(gone)
    monkeypatch.chdir(gone)
    os.rmdir(gone)
    value = json.loads(render_json(Ledger().totals([]), [], make_facts()))
    assert value["cwd"] == ""


def test_queue_of_a_tcp_listener_is_the_kernels(tmp_path: os.PathLike[str]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=7) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.create_connection(tcp.getsockname()),
        socket.create_connection(tcp.getsockname()),
    ):
        path = os.path.join(tmp_path, "s")
        unix.bind(path)
        abstract.bind(b"\0uwgate-test-%d\0" % os.getpid())
        closed = socket.socket()
        closed.close()
        # The last step of a connection may be the kernel's, a moment later.
        wait_until(lambda: queues([tcp])[0].waiting == 2, "both are in the queue")
        found = queues([tcp, unix, abstract, six, closed])
        assert found[0] == Queue(f"127.0.0.1:{tcp.getsockname()[1]}", 2, 7, 1)
        assert found[1] == Queue(path, 0, 0, 1)
        assert found[2].name == f"@uwgate-test-{os.getpid()}"
        assert found[3].name == f"[::1]:{six.getsockname()[1]}"
        assert len(found) == 4


def test_sockets_of_one_address_are_one_queue() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=5, reuse_port=True) as first:
        address = first.getsockname()
        with socket.create_server(address, backlog=5, reuse_port=True) as second:
            assert queues([first, second]) == [Queue(f"127.0.0.1:{address[1]}", 0, 10, 2)]


def test_metrics_of_the_instance() -> None:
    totals = Ledger().totals(
        [
            worker(1, requests=2, connections=1, rx=5, tx=6, time_micros=1_500_000),
            worker(2, requests=3, nodes=[node(hits=4, grace=9)]),
        ]
    )
    text = render_metrics(totals, [Queue("127.0.0.1:80", 1, 9, 1)], make_facts()).decode()
    series = parse_exposition(text)
    assert series["uwgate_requests_total"] == "5"
    assert series['uwgate_responses_total{code="200"}'] == "5"
    assert series['uwgate_errors_total{reason="node-timeout"}'] == "0"
    assert series["uwgate_connections"] == "1"
    assert series["uwgate_active_requests"] == "0"
    assert series["uwgate_received_bytes_total"] == "5"
    assert series["uwgate_sent_bytes_total"] == "6"
    assert series["uwgate_request_seconds_total"] == "1.5"
    assert series['uwgate_node_hits_total{node="127.0.0.1:3031",protocol="uwsgi"}'] == "4"
    assert series['uwgate_node_down_workers{node="127.0.0.1:3031",protocol="uwsgi"}'] == "1"
    assert series['uwgate_worker_requests_total{worker="2"}'] == "3"
    assert series['uwgate_listen_queue{listener="127.0.0.1:80"}'] == "1"
    assert series[f'uwgate_build_info{{version="{__version__}"}}'] == "1"
    assert series["uwgate_ready"] == "1"


def test_labels_are_escaped() -> None:
    totals = Ledger().totals([worker(nodes=[node('a"b\\c\nd')])])
    text = render_metrics(totals, [], make_facts()).decode()
    assert 'uwgate_node_hits_total{node="a\\"b\\\\c\\nd",protocol="uwsgi"} 0\n' in text
    parse_exposition(text)


def test_one_series_for_a_node_listed_twice_and_for_overlapping_workers() -> None:
    nodes = [node(hits=1), node(hits=2, fallback=1), node(hits=4, modifier1=5)]
    totals = Ledger().totals([worker(started=1, nodes=nodes), worker(started=2, nodes=[])])
    series = parse_exposition(render_metrics(totals, [], make_facts()).decode())
    assert series['uwgate_node_hits_total{node="127.0.0.1:3031",protocol="uwsgi"}'] == "7"
    assert series['uwgate_worker_start_time_seconds{worker="1"}'] == "2.0"
