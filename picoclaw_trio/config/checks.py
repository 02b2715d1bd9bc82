"""What a value must be, beyond its JSON type: ranges, names, addresses, headers. Types of fields are made of these.

Theory: a check takes a value of the right type and returns it, maybe in better shape, or raises ``Wrong``.
Editing rule: no I/O, and no message that repeats the value.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from itertools import chain
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson

from .secret import Secret
from .strict import quoted, wrong

Check = Callable[[Any], Any]


def satisfies(test: Callable[[Any], bool], message: str) -> Check:
    def check(value: Any) -> Any:
        if not test(value):
            raise wrong(message)
        return value

    return check


def between(low: float, high: float = math.inf) -> Check:
    text = f"must be {low} or more" if high == math.inf else f"must be between {low} and {high}"
    return satisfies(lambda number: low <= number <= high, text)


def above(low: float) -> Check:
    return satisfies(lambda number: number > low, f"must be greater than {low}")


def zero_means(meaning: Any) -> Check:
    return lambda number: number or meaning


def one_of(*choices: str) -> Check:
    return satisfies(lambda text: text in choices, f"must be {' or '.join(map(quoted, choices))}")


def matches(pattern: str, message: str) -> Check:
    compiled = re.compile(pattern)
    return satisfies(lambda text: compiled.fullmatch(text) is not None, message)


def hides(check: Check) -> Check:
    """*check* for the text of a secret."""

    def check_hidden(secret: Secret) -> Secret:
        check(secret.reveal())
        return secret

    return check_hidden


HOST_NAME = re.compile(r"(?!-)(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what "*" asks for


def is_host(text: str) -> bool:
    """Whether *text* is a name or an address that a socket could be given; an IPv6 address stands without brackets."""
    try:
        return bool(HOST_NAME.fullmatch(text) or ipaddress.ip_address(text))
    except ValueError:
        return False


def hosts_of(host: str) -> tuple[str, ...]:
    """``"localhost, [::1]"`` -> ``("localhost", "::1")``; ``*`` is every address of IPv4 and of IPv6."""
    parts = (part.strip(" ") for part in host.split(","))
    hosts = (EVERYWHERE if part == "*" else (re.sub(r"^\[(.*)\]$", r"\1", part),) for part in parts)
    return tuple(dict.fromkeys(chain.from_iterable(hosts)))


def reachable(host: str) -> str:
    """Where a server that listens at *host* can be asked: on loopback, if it listens everywhere."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound


def check_url(text: str, schemes: tuple[str, ...], *, may_have_user: bool = False) -> str:
    """*text* without slashes at its end, if it is an address that a client could connect to.

    Raises:
        Wrong: it is not.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise wrong("must be an address of printable ASCII without spaces")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise wrong("is not a well-formed address") from None
    if parts.scheme not in schemes:
        raise wrong(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if not is_host(host) or port == 0:
        raise wrong("names no host and port that could be connected to")
    if "@" in parts.netloc and not may_have_user:
        raise wrong("must not hold a user name or a password; a key belongs into api_keys")
    if max(len(parts.username or ""), len(parts.password or "")) > 255:
        raise wrong(
            "must not hold a user name or a password of more than 255 characters"
        )  # RFC 1929 has one byte for it
    if "?" in text or "#" in text:
        raise wrong("must not hold a query or a fragment")
    return text.rstrip("/")


def check_writable_json(value: Any) -> Any:
    """What was read may be nested deeper than can be written again."""
    try:
        orjson.dumps(dict(value))
    except TypeError:
        raise wrong("is nested too deeply") from None
    return value


# The connection sets these itself; a second opinion would break the framing of a request.
OWN_HEADERS = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})

Seconds = Annotated[float, above(0)]
Count = Annotated[int, between(1)]
# What may become a header or a line of the log must not be able to end it.
Name = Annotated[
    str,
    matches(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+", "must not be empty or hold control characters"),
    satisfies(lambda text: text == text.strip(), "must not begin or end with white space"),
]
ModelId = Annotated[
    str,
    matches(r"[^\s\x00-\x1f\x7f-\x9f]+", "must not be empty or hold white space"),
    satisfies(lambda text: not text.startswith("/") and "//" not in text, 'must not begin with "/" or hold "//"'),
    satisfies(lambda text: not text.endswith("/"), 'must not end with "/": the id is missing'),
]
FieldName = Annotated[str, matches(r"[A-Za-z_]\w*", "must be the name of a JSON field")]
HeaderName = Annotated[
    str,
    matches(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", "is not a legal name of an HTTP header"),
    satisfies(lambda name: name.lower() not in OWN_HEADERS, "is a header that the gateway sets itself"),
]
# A session is named in the log, on disk and in lists.
SessionHeader = Annotated[
    HeaderName,
    satisfies(lambda name: name.lower() not in SECRET_HEADERS, "bears a secret, and names of sessions are logged"),
]
HEADER_VALUE = matches(
    r"([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?", "must be printable ASCII without spaces around it"
)
HeaderValue = Annotated[str, HEADER_VALUE]
# A key stands behind a word in a header.
Key = Annotated[
    Secret,
    hides(matches(r"(?s:.+)", "is empty")),
    hides(matches(r"[\x21-\x7e]+", "must be printable ASCII without spaces")),
]
HiddenHeaderValue = Annotated[Secret, hides(HEADER_VALUE)]
# What a program is started with.
NO_NUL = matches(r"[^\0]*", "must not hold a NUL")
Argument = Annotated[str, NO_NUL]
HiddenText = Annotated[Secret, hides(NO_NUL)]
Hosts = Annotated[
    str, satisfies(lambda text: all(map(is_host, hosts_of(text))), "must be a host, or several with commas between")
]
LogLevel = Annotated[str, str.lower, one_of("debug", "info", "warn", "warning", "error", "fatal")]
ProxyUrl = Annotated[str, lambda text: check_url(text, ("http", "https", "socks5", "socks5h"), may_have_user=True)]
Origin = Annotated[
    str,
    satisfies(str.isascii, "must be ASCII: a name beyond it is sent by browsers in its Punycode form, xn--..."),
    str.lower,
    matches(r"\*|[a-z][a-z0-9+.-]*://[^\s/,?#@]+", 'must be "*" or scheme://host[:port], without a slash at its end'),
]
