"""Whose address a request comes from: the peer's, or what a trusted proxy says of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def client_address(peer: str | None, forwarded: Iterable[str], *, trusted: Sequence[Network]) -> Address | None:
    """The nearest address that is no trusted proxy's; None where the peer has none.

    `forwarded` are the values of X-Forwarded-For. Each proxy appends who it was asked by, so they are read from the right,
    and only as far as trusted proxies have written them: the rest is whatever the client likes.
    """
    address = _parse(peer or "")
    if address is None or not trusted:
        return address
    told = [part for value in forwarded for part in value.split(",")]
    while told and any(address in network for network in trusted):
        before = _parse(told.pop().strip())
        if before is None:
            break
        address = before
    return address


def neighbourhood(address: Address | None) -> Hashable:
    """What is limited as one: an IPv4 address, or the /64 of an IPv6 one, which a single host may fill as it likes."""
    if isinstance(address, IPv6Address):
        return ip_network((address, 64), strict=False)
    return address


@lru_cache(maxsize=1024)
def _parse(text: str) -> Address | None:
    """An address, with or without a port. A zone (%eth0) is any text, and is cut off; ::ffff:1.2.3.4 is IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
