"""A small WebSocket server that speaks HTTP: echoes every message (wsproto, a thread each)."""

from __future__ import annotations

import socket
import threading

import wsproto
from wsproto import events as ws


def serve_echo(listener: socket.socket) -> None:
    """A WebSocket echo server: a thread a connection; ends when the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    peer = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    with connection:
        while True:
            data = connection.recv(65536)
            try:
                peer.receive_data(data or None)
            except wsproto.utilities.RemoteProtocolError:
                return
            for event in peer.events():
                answer: ws.Event | None = None
                if isinstance(event, ws.Request):
                    answer = ws.AcceptConnection()
                elif isinstance(event, ws.Ping | ws.CloseConnection):
                    answer = event.response()
                elif isinstance(event, ws.Message):
                    answer = type(event)(data=event.data, message_finished=event.message_finished)
                if answer is not None:
                    try:
                        connection.sendall(peer.send(answer))
                    except (OSError, wsproto.utilities.LocalProtocolError):
                        return
                if isinstance(event, ws.CloseConnection):
                    return  # RFC 6455 §7.1.1: the server ends the TCP connection first
            if not data:
                return
