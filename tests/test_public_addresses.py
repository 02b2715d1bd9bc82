"""Which addresses are public, and which spelling of an address hides another."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.tools.public_addresses import AddressRules, is_public

NONE = AddressRules()
PRIVATE = (
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
)


@pytest.mark.parametrize("address", [*PRIVATE, "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1"])
def test_private_address_is_refused(address: str) -> None:
    assert not NONE.permit(address)


@pytest.mark.parametrize("address", ["2001:db8::1", "ff02::1", "100::1", "64:ff9b:1::8.8.8.8", "::8.8.8.8", "4000::1"])
def test_address_of_no_public_range_is_refused(address: str) -> None:
    assert not NONE.permit(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1"])
def test_public_address_is_permitted(address: str) -> None:
    assert NONE.permit(address)


def dressed(inside: IPv4Address) -> list[IPv6Address]:
    """IPv6 addresses that carry *inside*: mapped, NAT64, 6to4, Teredo as client and as server."""
    number = int(inside)
    public = int(IPv4Address("8.8.8.8"))
    teredo = 0x20010000 << 96
    return [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address((0x64FF9B << 96) | number),
        IPv6Address((0x2002 << 112) | number << 80),
        IPv6Address(teredo | public << 64 | number ^ 0xFFFFFFFF),
        IPv6Address(teredo | number << 64 | public ^ 0xFFFFFFFF),
    ]


@given(st.ip_addresses(v=4))
def test_address_in_another_counts_as_itself(inside: IPv4Address) -> None:
    assert [is_public(inside)] * 5 == [is_public(address) for address in dressed(inside)]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_address_stays_private_in_any_dress(text: str) -> None:
    assert not any(is_public(address) for address in dressed(IPv4Address(text)))


@given(st.ip_addresses())
def test_public_means_at_least_what_the_library_calls_global(address: IPv4Address | IPv6Address) -> None:
    if is_public(address) and isinstance(address, IPv4Address):
        assert address.is_global


def test_exempt_networks_and_addresses_are_permitted() -> None:
    rules = AddressRules.parse(["10.0.0.0/8", "192.168.1.7", "fd00::/8"])
    permitted = ("10.9.9.9", "192.168.1.7", "fd00::1", "::ffff:10.1.1.1", "8.8.8.8")
    assert [True] * 5 == [rules.permit(address) for address in permitted]
    assert [False] * 3 == [rules.permit(address) for address in ("192.168.1.8", "fe80::1", "127.0.0.1")]


def test_exemption_that_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="wiki"):
        AddressRules.parse(["wiki.example"])


def test_what_is_no_address_is_refused() -> None:
    assert not NONE.permit("example.org")
    assert ip_address("8.8.8.8").is_global
