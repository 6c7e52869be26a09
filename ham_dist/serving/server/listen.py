"""Sockets that a server listens on."""

import socket
from collections.abc import Sequence

from ham_dist.errors import ConfigError


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Returns a socket that is bound and does not listen yet.

    Args:
        host: Name or address.
        port: TCP port; 0 for a free one.
        shared: Other sockets of this user may be bound to the same port.
    Raises:
        ConfigError: The address cannot be used.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; expected an address of this machine "
            "and a free port.\n  Stop what listens there, or give another port (0 takes a free one)."
        ) from None


def urls_of(bound: Sequence[socket.socket]) -> list[str]:
    """The URLs of the socket of HTTP and, if there is one, of gRPC."""
    found = []
    for each, scheme in zip(bound, ("http", "grpc"), strict=False):
        host, port = each.getsockname()[:2]
        found.append(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    return found
