"""Undoing gzip and deflate, piece by piece.

Theory: we ask for uncompressed answers, but some upstreams and proxies compress whatever they are asked for. A kilobyte
may unfold to a megabyte, so no more is unfolded than the reader takes: bytes are put in, bounded pieces are taken out.
And a member of gzip may be empty, so their number is bounded too.
Editing rule: no I/O, and nothing here holds more than what was put in last and one piece.
"""

from __future__ import annotations

import zlib

import attrs

MAX_PIECE = 65_536
# A gzip body is one member after the other (RFC 1952 section 2.2): mostly one, some packers begin one each 64 KiB.
MAX_MEMBERS = 1_000


@attrs.define(eq=False)
class Inflater:
    """One body's decoder. *coding* is as in the header: gzip or deflate (RFC 9110 section 8.4.1); others fail."""

    coding: str
    _packed: bytes = b""
    _more: bool = False
    _engine: zlib._Decompress | None = None
    _members: int = 0

    def put(self, packed: bytes) -> None:
        """Take over the next bytes of the body; all pieces of those before must have been taken."""
        self._packed = packed

    def take(self) -> bytes:
        """The next piece, or b"" when more must be put first.

        Raises:
            zlib.error: these are no such bytes, or nobody knows this coding.
        """
        while self._packed or self._more:
            if self._engine is None or self._engine.eof:
                self._engine = self._begin_member(self._packed[0])
            piece = self._engine.decompress(self._packed, MAX_PIECE)
            # Full to the brim: zlib may have more inside, even if it took all of the input.
            self._more = len(piece) == MAX_PIECE and not self._engine.eof
            self._packed = self._engine.unconsumed_tail or self._engine.unused_data
            if piece:
                return piece
        return b""

    def is_whole(self) -> bool:
        """Whether the body may end here. An empty one may: it is what is sent where there is nothing to pack."""
        return self._engine is None or self._engine.eof

    def _begin_member(self, first: int) -> zlib._Decompress:
        """What unfolds the member that begins with the byte *first*."""
        is_gzip = self.coding in ("gzip", "x-gzip")
        self._members += 1
        if self._members > (MAX_MEMBERS if is_gzip else 1) or not (is_gzip or self.coding == "deflate"):
            raise zlib.error
        # Deflate should be zlib's format, but some send the bare stream without its header.
        return zlib.decompressobj(31 if is_gzip else 15 if first & 0x0F == 8 else -15)
