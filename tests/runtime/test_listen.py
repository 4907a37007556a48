"""Giving up a port: who has asked for a connection gets it, and who asks now gets it from the next server."""

from __future__ import annotations

import socket

import pytest

from etl_server import Settings
from etl_server.errors import ConfigError
from etl_server.runtime.listen import bind, ignore_new, waiting
from tests.raw_client import PATIENCE


def listening(port: int = 0, *, reuse_port: bool = True) -> socket.socket:
    listener = bind(Settings.load(host="127.0.0.1", port=port, reuse_port=reuse_port))
    listener.listen()
    return listener


def test_connections_that_wait_are_counted() -> None:
    with listening() as listener:
        assert waiting(listener) == 0
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert waiting(listener) == 3
        listener.accept()[0].close()
        assert waiting(listener) == 2
        for client in clients:
            client.close()


def test_who_asks_an_old_server_that_ignores_it_is_answered_by_the_new_one() -> None:
    with listening() as old, socket.socket() as late:
        early = socket.create_connection(old.getsockname(), PATIENCE)
        ignore_new(old)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):  # neither taken nor refused
            late.connect(old.getsockname())
        assert waiting(old) == 1
        connection, _ = old.accept()
        early.sendall(b"what was there goes on")
        assert connection.recv(100) == b"what was there goes on"
        with listening(old.getsockname()[1]) as new:
            old.close()
            new.settimeout(PATIENCE)
            accepted, peer = new.accept()
            assert peer == late.getsockname()
            accepted.close()
        connection.close()
        early.close()


def test_a_port_is_shared_by_those_who_all_want_to() -> None:
    with listening() as first:
        port = first.getsockname()[1]
        listening(port).close()
        with pytest.raises(ConfigError, match=f"ETL_PORT={port}: expected an address that is free"):
            listening(port, reuse_port=False)
