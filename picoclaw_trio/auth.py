"""Is this bearer token one of ours.

Theory: the header's token and every listed one are compared by their digests, all of them, so that neither the time
taken nor its length tells anything about a token.

Source: RFC 6750 section 2.1 (the header), RFC 9110 section 11.1 (the scheme is case-insensitive).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

import attrs

from .errors import AuthError


@attrs.frozen(repr=False)
class BearerTokens:
    """The tokens that let a client in. Holds digests only; with none listed, nobody is let in."""

    _digests: tuple[bytes, ...]

    @classmethod
    def from_plain(cls, tokens: Iterable[str]) -> BearerTokens:
        return cls(tuple(hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest() for token in tokens))

    def check(self, authorization: str | None) -> int:
        """The place of the header's token in the list of tokens, which may serve as a name for its holder.

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
        return matches.index(True)
