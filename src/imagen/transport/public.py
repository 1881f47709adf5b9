"""Which addresses on the network belong to everybody: the only ones that a stranger may have us call."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import SplitResult, urlsplit

from imagen.errors import InvalidInput, Problem

LONGEST_URL = 2048
_LONGEST_HOST = 253

_NOT_PUBLIC_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT; clouds have their metadata here
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services, as every machine there sees them
        "169.254.0.0/16",  # link-local; clouds have their metadata here
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # for protocols, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
"""How a network without IPv4 shows the rest of the world: with the IPv4 address in the last 32 bits."""

_PRINTABLE = re.compile(r"[!#-;=?-\[\]-~]+")
"""ASCII without spaces, double quotes, backslashes and angle brackets: on those, parsers of addresses do not agree."""
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A last label that makes a host a number: some would take it for an address of four, three, two parts or one."""
_INSIDE = ("localhost", "local", "internal", "home.arpa", "localdomain", "lan")
"""Names under which the world has nothing."""


def is_public(address: str) -> bool:
    """Whether an IP address, written as the system's resolver writes it, belongs to the public internet.

    Whatever is not plainly an address is not public. IPv6 addresses that carry an IPv4 one are judged by that.
    """
    try:
        return _is_public_4(IPv4Address(address))
    except AddressValueError:
        pass
    try:
        return _is_public_6(IPv6Address(address))
    except AddressValueError:
        return False


def check_webhook_url(url: str, *, private: bool) -> str:
    """Refuse an address to which no events are delivered. Asks no name server: what a name leads to is checked at each call.

    Args:
        url: as a caller gave it.
        private: whether addresses that are not public are allowed, and plain HTTP.

    Returns:
        The address.

    Raises:
        InvalidInput: naming the field `webhook` and what is allowed.
    """
    if wrong := _wrong(url, private=private):
        raise InvalidInput([Problem("webhook", wrong)])
    return url


def _wrong(url: str, *, private: bool) -> str | None:
    if len(url) > LONGEST_URL:
        return f"may have at most {LONGEST_URL} characters"
    if not _PRINTABLE.fullmatch(url):
        return "must be made of ASCII characters, without spaces, double quotes, backslashes and < >"
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return "is no address"
    if parts.scheme != "https" and not (private and parts.scheme == "http"):
        return "must begin with https://"
    if "@" in parts.netloc:
        return "must have no user name and no password"
    if parts.fragment:
        return "must have no part behind #"
    if not host or port == 0 or not _is_host(parts, host):
        return "must name a host as https://host/path does"
    if not private and not _may_be_public(host):
        return "must lead to a public address"
    return None


def _is_host(parts: SplitResult, host: str) -> bool:
    """Whether it is an IPv6 address in brackets, an IPv4 one in four decimal parts, or a name."""
    if "[" in parts.netloc:
        return _is_address(host, IPv6Address)
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return _is_address(host, IPv4Address)
    return len(host) <= _LONGEST_HOST and all(_LABEL.fullmatch(label) for label in host.split("."))


def _may_be_public(host: str) -> bool:
    if ":" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
        return is_public(host)
    return "." in host and not any(host == name or host.endswith(f".{name}") for name in _INSIDE)


def _is_address(host: str, kind: type[IPv4Address | IPv6Address]) -> bool:
    try:
        kind(host)
    except AddressValueError:
        return False
    return "%" not in host


def _is_public_4(address: IPv4Address) -> bool:
    return not any(address in network for network in _NOT_PUBLIC_4)


def _is_public_6(address: IPv6Address) -> bool:
    if address.scope_id is not None:
        return False
    if address in _MAPPED or address in _NAT64:
        return _is_public_4(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)
