"""Addresses of upstreams and proxies: parsed once, when the configuration is read, never per request.

Theory: a ``Url`` is all that a request line and a Host header need, ready to be sent; a ``Proxy`` is a way round to it.
Editing rule: no text of an error and no repr holds a user name or a password.
"""

from __future__ import annotations

import re
from base64 import b64encode
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, quote, unquote_to_bytes, urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # the stubs lack proxy_bypass_environment
    getproxies_environment,
    proxy_bypass_environment,
)

import attrs

DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080}
HOST_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]{0,252}")
SOCKS = re.compile(r"\Asocks(5h)?://", re.IGNORECASE)
# RFC 3986 section 3.3 and 3.4: what may stand unquoted in a path or query. "%" is in it: paths come quoted already.
SAFE_IN_TARGET = "/?%:@!$&'()*+,;=~-._"


@attrs.frozen(cache_hash=True)
class Address:
    """Where to connect, and how: ``scheme`` is http, https or socks5, ``host`` has no brackets."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen
class Url:
    """What to ask: an address with all that a request line and a Host header need, ready to be sent."""

    address: Address
    authority: bytes
    target: bytes


@attrs.frozen
class Proxy:
    """A proxy and, where it wants them, a user name and a password. Its repr shows neither."""

    address: Address
    user: bytes = attrs.field(default=b"", repr=False)
    password: bytes = attrs.field(default=b"", repr=False)

    def forwards(self, address: Address) -> bool:
        """Whether requests for *address* are sent to the proxy itself, not through it (RFC 9112 section 3.2.2)."""
        return address.scheme == "http" and self.address.scheme != "socks5"

    def authorization(self) -> list[tuple[bytes, bytes]]:
        """The headers that make an HTTP proxy let us in: none or one."""
        if not self.user and not self.password:
            return []
        return [(b"proxy-authorization", b"Basic " + b64encode(self.user + b":" + self.password))]


def parse_url(text: str) -> Url:
    """Parse the address of an upstream's endpoint, ``http[s]://host[:port][/path][?query]``.

    Raises:
        ValueError: it is something else. The message does not repeat *text*, which may hold a password.
    """
    address, parts = _split(text, ("http", "https"))
    if "@" in parts.netloc:
        raise ValueError("a user name or password in the address is not supported; send a header instead")
    target = quote(parts.path or "/", safe=SAFE_IN_TARGET)
    if parts.query:
        target += "?" + quote(parts.query, safe=SAFE_IN_TARGET)
    authority = str(address)
    if address.port == DEFAULT_PORTS[address.scheme]:
        authority = authority.rpartition(":")[0]
    return Url(address, authority.encode("ascii"), target.encode("ascii"))


def parse_proxy(text: str) -> Proxy:
    """Parse ``[scheme://][user:password@]host[:port]`` with scheme http (if absent), https, socks5, socks5h or socks.

    Under each name a SOCKS proxy is given the host's name and resolves it. Desktops write the last one into ALL_PROXY.

    Raises:
        ValueError: it is something else. The message does not repeat *text*.
    """
    text = SOCKS.sub("socks5://", text) if "://" in text else f"http://{text}"
    address, parts = _split(text, tuple(DEFAULT_PORTS))
    proxy = Proxy(address, unquote_to_bytes(parts.username or ""), unquote_to_bytes(parts.password or ""))
    if max(len(proxy.user), len(proxy.password)) > 255:
        raise ValueError("a proxy's user name and password may have at most 255 bytes")
    return proxy


def environment_proxy(address: Address) -> Proxy | None:
    """The proxy that the environment names for *address*, read as curl does: HTTPS_PROXY, ALL_PROXY, NO_PROXY ...

    A loopback address has none, whatever the environment says: no proxy elsewhere could reach it, and those who set the
    variables think of the internet, not of the model that runs beside us. An explicit proxy is used all the same.

    Raises:
        ValueError: the variable's value is no proxy.
    """
    if _is_loopback(address.host):
        return None
    proxies = getproxies_environment()
    text = proxies.get(address.scheme) or proxies.get("all")
    if not text or proxy_bypass_environment(str(address), proxies):
        return None
    return parse_proxy(text)


def parse_ip(host: str) -> IPv4Address | IPv6Address | None:
    """The address that *host* spells, or None where it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def _split(text: str, schemes: tuple[str, ...]) -> tuple[Address, SplitResult]:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").encode("idna").decode("ascii")
        port = parts.port
    except ValueError:  # the library's text would show what was meant as a password
        host, port = "", 0
    if not (parse_ip(host) or HOST_NAME.fullmatch(host)) or port == 0 or parts.scheme not in schemes:
        raise ValueError(f"an address must look like {schemes[0]}://host:port, with one of {', '.join(schemes)}")
    return Address(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port), parts


def _is_loopback(host: str) -> bool:
    ip = parse_ip(host)
    return ip.is_loopback if ip else host == "localhost" or host.endswith(".localhost")
