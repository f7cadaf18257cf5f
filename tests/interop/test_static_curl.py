"""Static files with curl and with a browser: resumed downloads, conditions, variants, seeks."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from support.files import CHANGED, write
from support.uwgate import Gateway, running
from support.waiting import wait_until

from interop.peers import curl, start_browser

BYTES = random.Random(23).randbytes(3_000_000)
TEXT = b"".join(b"line %d\n" % number for number in range(20_000))
WAYS = {"sendfile": (), "reading": ("--disable-sendfile",), "threads": ("--offload-threads=2",)}


@dataclass
class Site:
    """A gateway that serves ``root``, and its request log."""

    gateway: Gateway
    root: Path
    log: Path

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.gateway.port}{path}"

    def logged(self, target: str) -> list[dict[str, Any]]:
        """The lines of the log for a target."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["target"] == target]


def _serving(root: Path, *options: str) -> Iterator[Site]:
    log = root.parent / "log"
    with running(
        *(f"--check-static={root}", "--static-gzip-ext=.txt", f"--http-log-file={log}"),
        *("--http-log-format=json", *options),
    ) as gateway:
        yield Site(gateway, root, log)


@pytest.fixture(scope="module", params=WAYS)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("curl") / "root"
    write(root / "large.bin", BYTES)
    write(root / "text.txt", TEXT)
    write(root / "text.txt.gz", gzip.compress(TEXT))
    yield from _serving(root, *WAYS[request.param])


@pytest.mark.parametrize(
    ("word", "start", "end"),
    [("0-0", 0, 1), ("100-199", 100, 200), ("2900000-", 2_900_000, None), ("-1000", -1000, None),
     ("1000-2000000", 1000, 2_000_001), ("10-99999999", 10, None)],
)  # fmt: skip
def test_a_range(site: Site, word: str, start: int, end: int | None) -> None:
    done = curl("-f", "-w", "%{stderr}%{http_code}", "-r", word, site.url("/large.bin"))
    assert (done.stderr[-3:], done.stdout == BYTES[start:end]) == (b"206", True)


def test_several_ranges(site: Site) -> None:
    done = curl("-f", "-D", "-", "-r", "0-9,1000-1009,-10", site.url("/large.bin"))
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert b"206 Partial Content" in head
    for part in (BYTES[:10], BYTES[1000:1010], BYTES[-10:]):
        assert b"\r\n\r\n" + part + b"\r\n--" in body


def test_a_range_that_is_none(site: Site) -> None:
    done = curl("-f", "-w", "%{http_code}", "-r", "9999999-", site.url("/large.bin"))
    assert (done.returncode, done.stdout) == (22, b"416")


def test_a_download_is_resumed(site: Site, tmp_path: Path) -> None:
    """``-C -``: from where the file ends; and once more when all of it is here."""
    file = tmp_path / "part"
    for size in (1, 40_000, 2_999_999):
        file.write_bytes(BYTES[:size])
        done = curl("-f", "-w", "%{http_code}", "-C", "-", "-o", str(file), site.url("/large.bin"))
        assert (done.returncode, done.stdout) == (0, b"206"), done.stderr
        assert file.read_bytes() == BYTES
    curl("-C", "-", "-o", str(file), site.url("/large.bin"))
    assert file.read_bytes() == BYTES  # 416 leaves it alone


def test_compressed(site: Site) -> None:
    done = curl("-f", "--compressed", "-w", "%{stderr}%{size_download}", site.url("/text.txt"))
    assert done.stdout == TEXT
    assert int(done.stderr.split()[-1]) < len(TEXT) // 2
    assert curl("-f", site.url("/text.txt")).stdout == TEXT
    assert gzip.decompress(curl("-f", site.url("/text.txt.gz")).stdout) == TEXT


def test_time_conditions(site: Site, tmp_path: Path) -> None:
    """``-z`` with a date, with the time of a file (kept with -R), and turned around."""
    kept = tmp_path / "kept"
    assert curl("-f", "-R", "-o", str(kept), site.url("/large.bin")).returncode == 0
    assert int(kept.stat().st_mtime) == CHANGED
    status = ("-o", os.devnull, "-w", "%{http_code}")
    for condition, wanted in (
        (str(kept), b"304"),
        ("Fri, 14 Jul 2017 02:40:00 GMT", b"304"),
        ("Fri, 14 Jul 2017 02:39:59 GMT", b"200"),
        ("-Fri, 14 Jul 2017 02:39:59 GMT", b"412"),
        ("-Fri, 14 Jul 2017 02:40:01 GMT", b"200"),  # of the same one curl itself says 304
    ):
        assert curl(*status, "-z", condition, site.url("/large.bin")).stdout == wanted, condition


def test_etags(site: Site, tmp_path: Path) -> None:
    saved, status = str(tmp_path / "etag"), ("-o", os.devnull, "-w", "%{http_code}")
    url = site.url("/text.txt")
    assert curl(*status, "--etag-save", saved, url).stdout == b"200"
    assert curl(*status, "--etag-compare", saved, url).stdout == b"304"
    assert curl(*status, "--compressed", "--etag-compare", saved, url).stdout == b"200"


def test_one_connection(site: Site) -> None:
    """Whole, part, head and nothing, without a new connection."""
    url = site.url("/large.bin")
    words = ["-w", "%{http_code} %{num_connects}\n", "-o", os.devnull]
    asked = [[*words, url], [*words, "-r", "5-9", url], [*words, "-I", url],
             [*words, "-r", "9999999-", url], [*words, site.url("/none")]]  # fmt: skip
    done = curl(*[word for each in asked for word in ("--next", *each)][1:])
    assert done.stdout.split(b"\n")[:5] == [b"200 1", b"206 0", b"200 0", b"416 0", b"404 0"]


def test_many_at_once(site: Site, tmp_path: Path) -> None:
    words = [w for n in range(20) for w in ("-o", str(tmp_path / f"{n}"), site.url("/large.bin"))]
    assert curl("-f", "--parallel", "--parallel-max", "20", *words).returncode == 0
    wanted = hashlib.sha256(BYTES).digest()
    assert all(hashlib.sha256(file.read_bytes()).digest() == wanted for file in tmp_path.iterdir())


# --- a browser ------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<meta charset="utf-8"><title>media</title><link rel="stylesheet" href="style.css">
<body><audio id="sound" preload="metadata" src="sound.wav"></audio>
<script type="module">
import {value} from "./module.mjs";
const sound = document.getElementById("sound"), say = {value};
const event = (name) => new Promise((done, fail) => {
  sound.addEventListener(name, done, {once: true});
  sound.addEventListener("error", () => fail(new Error("media")), {once: true});
});
try {
  if (sound.readyState < 1) await event("loadedmetadata");
  say.duration = Math.round(sound.duration);
  const sought = event("seeked");
  sound.currentTime = sound.duration - 5;
  await sought;
  say.at = Math.round(sound.currentTime);
  const part = await fetch("large.bin", {headers: {Range: "bytes=1000-1009"}});
  say.part = [part.status, part.headers.get("content-range"), (await part.blob()).size];
  const text = await fetch("text.txt");
  say.text = [text.headers.get("content-encoding"), (await text.text()).length];
  const whole = await (await fetch("large.bin")).arrayBuffer();
  const hash = await crypto.subtle.digest("SHA-256", whole);
  say.hash = [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  say.colour = getComputedStyle(document.body).color;
} catch (error) { say.error = String(error); }
fetch("said?" + encodeURIComponent(JSON.stringify(say)));  // for the log
</script>
"""


def _furnish(root: Path) -> None:
    write(root / "index.html", PAGE.encode())
    write(root / "style.css", b"body { color: rgb(1, 2, 3) }")
    write(root / "module.mjs", b"export const value = 7;")
    write(root / "large.bin", BYTES)
    write(root / "text.txt", TEXT)
    write(root / "text.txt.gz", gzip.compress(TEXT))
    with wave.open(str(root / "sound.wav"), "wb") as sound:  # 200 s, 17.6 MB
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes(random.Random(24).randbytes(200 * 44_100 * 2))


def _browse(site: Site, profile: Path) -> dict[str, object]:
    """What the page's script has asked for in the end, as the log has it."""
    process = start_browser(site.url("/"), profile)

    def said() -> list[str]:
        lines = [json.loads(line)["target"] for line in site.log.read_text().splitlines()]
        return [line for line in lines if line.startswith("/said?")]

    try:
        wait_until(said, "the end of the page's script", 60)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with all the processes it has started
        process.wait()
    value = json.loads(unquote(said()[0].partition("?")[2]))
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("way", WAYS)
def test_a_browser_seeks(way: str, tmp_path: Path) -> None:
    """Types, modules, variants, and the end of a sound without all that is before it."""
    root = tmp_path / "root"
    root.mkdir()
    _furnish(root)
    for site in _serving(root, "--static-index=index.html", *WAYS[way]):
        said = _browse(site, tmp_path / "profile")
        assert said == {
            "value": 7,
            "duration": 200,
            "at": 195,
            "part": [206, f"bytes 1000-1009/{len(BYTES)}", 10],
            "text": ["gzip", len(TEXT)],
            "hash": hashlib.sha256(BYTES).hexdigest(),
            "colour": "rgb(1, 2, 3)",
        }
        asked = site.logged("/sound.wav")
        assert {(each["node"], each["method"]) for each in asked} == {("static", "GET")}
        sizes = [each["response_body"] for each in asked if each["status"] == 206]
        assert len(sizes) > 1
        assert min(sizes) < 1_000_000  # the end of it, and not all that is before
