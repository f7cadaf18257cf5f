"""The recipes for subscriptions as uWSGI's documentation has them.

The texts are what users have in their files. Tests replace addresses and files, and the application
where uWSGI's wheel lacks the language.
"""

from __future__ import annotations

GRACEFUL = """[uwsgi]
subscribe-to = 192.168.0.1:4040:unbit.it
unsubscribe-on-graceful-reload = true
; all of the required options ...
"""
"""The Art of Graceful Reloading, "Subscription system"."""

BROODLORD = """[uwsgi]
socket = 127.0.0.1:0
subscribe2 = server=127.0.0.1:4040,key=foobar.it
psgi = app.pl
processes = 4
vassal-sos = 3
[zerg]
socket = 127.0.0.1:0
subscribe2 = server=127.0.0.1:4040,key=foobar.it
psgi = app.pl
idle = 60
processes = 1
"""
"""Broodlord mode, "Under the hood"."""

RESOLVE = """[uwsgi]
; place the dns resolution of 'example.com' in the 'myserver' placeholder
resolve = myserver=example.com
; %(myserver) would now be 93.184.216.119
subscribe2 = server=%(myserver),key=foobar
"""
"""uWSGI 2.0.5, "the resolve option"; the server has no port there."""

NOTIFY = """[uwsgi]
; enable the notification socket
notify-socket = /tmp/notify.socket
; pass it in subscriptions
subscription-notify-socket = /tmp/notify.socket
"""
"""uWSGI 2.0.1, "simple notifications subsystem"."""

FEDERATION = """[uwsgi]
fastrouter = 192.168.0.1:3031
fastrouter-subscription-server = 127.0.0.1:5000
fastrouter-resubscribe = 192.168.0.2:5000
"""
"""uWSGI 2.0.1, "Resubscriptions"."""

SNI = "uwsgi --subscribe2 key=mydomain.it,socket=0,sni_key=/foo/bar.key,sni_crt=/foo/bar.crt"
"""SNI, "Subscription system and SNI"; without a server."""


def adapted(text: str, *pairs: tuple[str, str]) -> str:
    """``text`` with each old text replaced by a new one; all of them have to be there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text
