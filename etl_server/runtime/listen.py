"""The socket that a server listens on: to take it, and to give it up without losing a connection."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct

from ..config import Settings
from ..errors import ConfigError

BACKLOG = 4096

_SO_ATTACH_FILTER = 26
_TCP_FLAGS, _SYN, _SYN_ACK = 13, 0x02, 0x12
"""Where a TCP header has its flags, and those of the segments that open a connection."""
_DROP_SYN = (  # classic BPF: code, jump if true, jump if false, operand
    (0x30, 0, 0, _TCP_FLAGS),  # load the byte
    (0x54, 0, 0, _SYN_ACK),  # and
    (0x15, 0, 1, _SYN),  # a segment that asks for a connection …
    (0x06, 0, 0, 0),  # … is dropped,
    (0x06, 0, 0, 0xFFFFFFFF),  # any other one is kept whole
)
_ACCEPT_QUEUE = slice(24, 28)
"""Where Linux' `struct tcp_info` has `tcpi_unacked`: for a listening socket, the connections that wait."""


def bind(settings: Settings) -> socket.socket:
    """A socket that has the address of the settings, and does not listen on it yet.

    Raises:
        ConfigError: the address is not free.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError(not_free(settings, error)) from None
    return listener


def not_free(settings: Settings, error: OSError) -> str:
    """What to say if the address cannot be had."""
    return f"ETL_HOST={settings.host}, ETL_PORT={settings.port}: expected an address that is free: {error.strerror}"


def url_of(listener: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def ignore_new(listener: socket.socket) -> None:
    """Have a listening socket ignore who asks for a connection from now on; who has asked already gets it.

    A socket that is closed resets every connection that waits in its queue, and while connections come, there is no
    moment at which none does. Who is ignored asks again after a second, and is answered by whoever listens by then: the
    next server on this port, or nobody, which refuses the connection. It takes Linux; elsewhere, nothing happens.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(program))
        )


def waiting(listener: socket.socket) -> int:
    """The connections that a listening socket has, and nobody has accepted; 0 where the system does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACCEPT_QUEUE.stop)
    except OSError:
        return 0
    return int(struct.unpack("I", info[_ACCEPT_QUEUE])[0])
