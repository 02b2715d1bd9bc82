"""Is this bearer token one of ours.

Theory: the header's token and every listed one are compared by their digests, all of them, so that neither the time
taken nor its length tells anything about a token. By its digest the holder is known afterwards, too: a place in the
list would be another's when a reload has changed the list.

Source: RFC 6750 section 2.1 (the header), RFC 9110 section 11.1 (the scheme is case-insensitive).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import attrs

from .errors import AuthError


@attrs.frozen
class Holder:
    """Who has a certain token: equal for the same one, whatever list it stands in. Shows nothing of it."""

    _digest: bytes = attrs.field(repr=False)


@attrs.frozen(repr=False)
class BearerTokens:
    """The tokens that let a client in. Holds digests only; with none listed, nobody is let in."""

    _digests: tuple[bytes, ...]

    @classmethod
    def from_plain(cls, tokens: Iterable[str]) -> BearerTokens:
        return cls(tuple(hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest() for token in tokens))

    def check(self, authorization: str | None) -> Holder:
        """Who holds the header's token.

        Args:
            authorization: value of the ``Authorization`` header, read as Latin-1; None where there is none.

        Raises:
            AuthError: no bearer token, or one that is not listed.
        """
        scheme, _, token = (authorization or "").partition(" ")
        raw = token.strip(" \t").encode("latin-1", "replace")
        given = hashlib.sha256(raw).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not raw or not any(matches):
            raise AuthError
        return Holder(given)
