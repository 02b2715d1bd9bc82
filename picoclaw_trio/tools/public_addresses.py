"""Which addresses belong to the public internet, however they are dressed up.

Theory: what counts is the address that a connection is made to, never the text of a URL. Where an IPv6 address carries
an IPv4 address inside (mapped, 6to4, Teredo, NAT64), a router may bring us to that one, so it must be public as well.
Editing rule: pure; a range is public only if something here says so.

Source: the IANA special-purpose address registries, as the standard library's ``ipaddress`` has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import attrs

Address = IPv4Address | IPv6Address
# RFC 4291 section 2.4: all that has been given out so far.
GLOBAL_UNICAST = IPv6Network("2000::/3")
# RFC 6052
NAT64 = IPv6Network("64:ff9b::/96")


@attrs.frozen
class AddressRules:
    """What may be connected to: the public internet, and *exempt* networks."""

    exempt: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, networks: Iterable[str]) -> AddressRules:
        """From networks, ``10.0.0.0/8``, and addresses.

        Raises:
            ValueError: one of them is neither.
        """
        return cls(tuple(ip_network(text, strict=False) for text in networks))

    def permit(self, address: str) -> bool:
        """Whether a connection may be made to *address*, as the resolver gave it."""
        try:
            found = ip_address(address)
        except ValueError:
            return False
        mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
        return is_public(found) or any((mapped or found) in network for network in self.exempt)


def is_public(address: Address) -> bool:
    """Whether *address*, and every address that is inside it, is one of the public internet."""
    inside = list(_inside(address))
    if inside:
        return all(map(is_public, inside))
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_private)


def _inside(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses to which a router may bring what is sent to *address*."""
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if address in NAT64:
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
