"""Files to serve, and clients that take them fast or slowly."""

from __future__ import annotations

import os
import random
from pathlib import Path

from support.client import Client, Reply
from support.uwgate import Gateway

OLD = 1_700_000_000
SMALL = b"small file\n"
BIG = random.Random(5).randbytes(3_000_000)
MIDDLE = BIG[:100_000]


HUGE = BIG * 5  # more than the kernel takes for a client that does not read


def write(path: Path, data: bytes, when: int = OLD) -> None:
    """Put a file in its place at once, with a time that is long past."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    os.utime(new, (when, when))
    new.rename(path)


def get(target: bytes, *fields: bytes, method: bytes = b"GET") -> bytes:
    """A request."""
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: h", *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def fill(www: Path) -> None:
    """What most tests ask for."""
    (www / "d").mkdir()
    write(www / "small.txt", SMALL)
    write(www / "middle.bin", MIDDLE)
    write(www / "big.bin", BIG)
    write(www / "empty", b"")
    write(www / "d" / "index.html", b"<p>index")
    write(www / "page.php", b"code")


def asked(gateway: Gateway, request: bytes, method: bytes = b"GET") -> Reply:
    """The answer to a request on a connection of its own."""
    with gateway.connect() as client:
        return client.ask(request, method)


def slow_client(gateway: Gateway, target: bytes) -> Client:
    """One that has asked, and takes little until it reads on."""
    client = gateway.connect(20)
    client.send(get(target))
    client.read_until(b"\r\n\r\n")
    return client


def rest_of(client: Client) -> bytes:
    """All that comes until the gateway closes, or HUGE is complete."""
    data = bytearray(client.buffer)
    try:
        while len(data) < len(HUGE) and (more := client.sock.recv(1 << 20)):
            data += more
    except ConnectionResetError:
        pass
    return bytes(data)


def worker_of(gateway: Gateway) -> int:
    """The process id of its worker."""
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
    return int(children.read_text().split()[0])


def open_files(pid: int) -> list[str]:
    """The descriptors of a process."""
    return os.listdir(f"/proc/{pid}/fd")


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
