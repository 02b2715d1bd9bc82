"""Pages in a browser may call us, if their origin is configured.

Theory: a browser asks first (preflight) and then looks at each answer's headers; without them it hides the answer
from the page. The headers that it asks for are granted as they stand: SDKs send a dozen, and new ones each year. No
cookie is ever looked at, so ``*`` gives a page nothing that it could not get without a browser.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

# Beside the first, what the official SDKs read: a page that cannot see them asks again in vain.
EXPOSED = "x-request-id, x-picoclaw-model, x-should-retry, retry-after"
METHODS = "GET, POST, OPTIONS"
DAY = "86400"
# RFC 9110 section 5.6.2: names of headers, with commas between them.
HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]+")


def allow(origin: str | None, origins: Collection[str]) -> Mapping[str, str]:
    """Headers of any answer to a page of *origin*; none where it is not configured or no page asks."""
    if "*" in origins:
        return {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
    if not origins:
        return {}
    # What browsers send is ASCII, and so is a header of ours.
    if origin is None or not origin.isascii() or origin.lower() not in origins:
        return {"vary": "Origin"}
    return {"access-control-allow-origin": origin, "access-control-expose-headers": EXPOSED, "vary": "Origin"}


def allow_preflight(requested_headers: str | None, wants_private_network: bool) -> Mapping[str, str]:
    """Further headers of the answer to a preflight.

    Args:
        requested_headers: value of ``Access-Control-Request-Headers``.
        wants_private_network: a page of the public Internet asks for an address like 127.0.0.1 or 192.168.0.2.
    """
    granted = {"access-control-allow-methods": METHODS, "access-control-max-age": DAY}
    if requested_headers and HEADER_NAMES.fullmatch(requested_headers):
        granted["access-control-allow-headers"] = requested_headers
    if wants_private_network:
        granted["access-control-allow-private-network"] = "true"
    return granted
