"""Request heads for the load, and the wrk script that sends them byte for byte.

Heads are written with LF here and sent with CRLF. ``<n>`` becomes a number that is new in every
request, ``<id>`` a UUID-like text and ``<hex>`` 16 hexadecimal digits that are new in every
request. ``<file>`` is one of ``MANY`` numbers of four digits; none comes again before all
others did, and no neighbours follow each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.wrk import REPORT

MANY = 10_000

# The least a client can send.
TINY = "GET / HTTP/1.1\nHost: www.example.com\n"

# Chrome 126 on Windows, a page of a shop behind a cookie banner and analytics.
CHROME_FIELDS = """\
Host: www.example.com
Connection: keep-alive
Cache-Control: max-age=0
sec-ch-ua: "Not/A)Brand";v="8", "Chromium";v="126", "Google Chrome";v="126"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Windows"
Upgrade-Insecure-Requests: 1
User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/126.0.0.0 Safari/537.36
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8
Sec-Fetch-Site: none
Sec-Fetch-Mode: navigate
Sec-Fetch-User: ?1
Sec-Fetch-Dest: document
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9
"""
BROWSER = "GET /shop/list HTTP/1.1\n" + CHROME_FIELDS
VARYING = "GET /shop/item/<n>?ref=list HTTP/1.1\n" + CHROME_FIELDS
UNIQUE = VARYING + "X-Request-Id: <id>\n"
UNIQUE2 = UNIQUE + "traceparent: 00-<hex><hex>-<hex>-01\n"

# What programs send: recorded from the clients named in each (curl 7.88, wget 1.21, Node 18,
# requests, httpx, aiohttp, boto3), health checks in the form of kubelet, AWS and Google load
# balancers and Prometheus. Those that ask to close were left out: this set is for keep-alive.
MIXED = (
    "GET /healthz HTTP/1.1\nHost: www.example.com\nUser-Agent: curl/7.88.1\nAccept: */*\n",
    "GET /api/v1/items?limit=20&after=<n> HTTP/1.1\nHost: www.example.com\n"
    "User-Agent: curl/7.88.1\nAccept: */*\nContent-Type: application/json\n",
    "GET /download/<n> HTTP/1.1\nHost: www.example.com\nUser-Agent: Wget/1.21.3\nAccept: */*\n"
    "Accept-Encoding: identity\nConnection: Keep-Alive\n",
    "GET /api/cart/<n> HTTP/1.1\nhost: www.example.com\nconnection: keep-alive\naccept: */*\n"
    "accept-language: *\nsec-fetch-mode: cors\nuser-agent: node\n"
    "accept-encoding: gzip, deflate\n",
    "GET /api/status HTTP/1.1\nHost: www.example.com\nConnection: keep-alive\n",
    "GET /api/users/<n> HTTP/1.1\nHost: www.example.com\nUser-Agent: python-requests/2.32.3\n"
    "Accept-Encoding: gzip, deflate\nAccept: */*\nConnection: keep-alive\n"
    "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl\n",
    "GET /api/orders/<n> HTTP/1.1\nHost: www.example.com\nAccept: */*\n"
    "Accept-Encoding: gzip, deflate\nConnection: keep-alive\nUser-Agent: python-httpx/0.28.1\n",
    "GET /api/trace/<n> HTTP/1.1\nHost: www.example.com\n"
    "traceparent: 00-<hex><hex>-<hex>-01\nAccept: */*\nAccept-Encoding: gzip, deflate\n"
    "User-Agent: Python/3.11 aiohttp/3.10.5\n",
    "GET /bucket/key-<n> HTTP/1.1\nHost: www.example.com\nAccept-Encoding: identity\n"
    "x-amz-checksum-mode: ENABLED\n"
    "User-Agent: Boto3/1.35.5 md/Botocore#1.35.5 ua/2.0 os/linux md/arch#x86_64 "
    "lang/python#3.11.7 md/pyimpl#CPython cfg/retry-mode#standard Botocore/1.35.5\n"
    "X-Amz-Date: 20260801T084456Z\n"
    "X-Amz-Content-SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/20260801/eu-central-1/s3/"
    "aws4_request, SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date, "
    "Signature=<hex><hex><hex><hex>\n"
    "amz-sdk-invocation-id: <id>\namz-sdk-request: attempt=1; max=2\n",
    "GET /readyz HTTP/1.1\nHost: www.example.com\nUser-Agent: kube-probe/1.30\nAccept: */*\n",
    "GET /health HTTP/1.1\nHost: www.example.com\nConnection: keep-alive\n"
    "User-Agent: ELB-HealthChecker/2.0\nAccept-Encoding: gzip, compressed\n",
    "GET / HTTP/1.1\nHost: www.example.com\nUser-Agent: GoogleHC/1.0\nConnection: Keep-alive\n",
    "GET /metrics HTTP/1.1\nHost: www.example.com\nUser-Agent: Prometheus/2.53.0\n"
    "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\n"
    "Accept-Encoding: gzip\nX-Prometheus-Scrape-Timeout-Seconds: 10\n",
)

_MARK = re.compile("<(n|id|hex|file)>")

# One part of a head is text (even positions) or the kind of a value to make (odd positions).
_MIXER = """
local n = 0
local function value(kind)
  if kind == 'n' then return string.format('%d', n) end
  if kind == 'file' then return string.format('%04d', n * 6181 % 10000) end
  local low = (n * 40503 + 977) % 4294967296
  if kind == 'id' then
    return string.format('%08x-7c1e-4b0a-9d52-0000%08x', low, n % 4294967296)
  end
  return string.format('%08x%08x', low, n % 4294967296)
end
request = function()
  n = n + 1
  local head = heads[n % #heads + 1]
  if #head == 1 then return head[1] end
  local made = head[1]
  for i = 2, #head, 2 do made = made .. value(head[i]) .. head[i + 1] end
  return made
end
"""


def parts(head: str) -> list[str]:
    """Split a head at its marks, with the line ends of the wire and the blank line at the end."""
    return _MARK.split(head.replace("\n", "\r\n") + "\r\n")


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\r", "\\r").replace("\n", "\\n") + '"'


def lua_script(heads: Sequence[str]) -> str:
    """The wrk script that sends ``heads`` in turn and reports in the form `wrk.parse` reads."""
    rows = ",\n".join("  {" + ", ".join(map(_quote, parts(head))) + "}" for head in heads)
    if len(heads) == 1 and len(parts(heads[0])) == 1:
        ask = f"local head = {_quote(parts(heads[0])[0])}\nrequest = function() return head end\n"
        return ask + REPORT
    return f"local heads = {{\n{rows}\n}}\n{_MIXER}{REPORT}"
