"""Takes the port of the server."""

from __future__ import annotations

import ipaddress
import socket

from deit.core.errors import UserError
from deit.serve.settings import ServeSettings


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the port, without listening yet: who connects is refused until the models are open.

    Raises:
        UserError: The port is in use, or the address is not of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"The host {host!r} is no address of this machine ({error.strerror}).") from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            f"Cannot listen on {host}, port {port} ({error.strerror}). Pass another --port, or end what uses it."
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Returns the address of the server, such as "http://127.0.0.1:8080"."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the port."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
