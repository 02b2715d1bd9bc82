"""Undoing gzip and deflate, piece by piece.

Theory: we ask for uncompressed answers, but some upstreams and proxies compress whatever they are asked for. A kilobyte
may unfold to a megabyte, so no more is unfolded than the reader takes: bytes are put in, bounded pieces are taken out.
Editing rule: no I/O, and nothing here holds more than what was put in last and one piece.
"""

from __future__ import annotations

import zlib

import attrs

MAX_PIECE = 65_536


@attrs.define(eq=False)
class Inflater:
    """One body's decoder. *coding* is as in the header: gzip or deflate (RFC 9110 section 8.4.1); others fail."""

    coding: str
    _packed: bytes = b""
    _more: bool = False
    _engine: zlib._Decompress | None = None

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
                self._engine = zlib.decompressobj(self._window(self._packed[0]))
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

    def _window(self, first: int) -> int:
        """What zlib calls wbits. Deflate should be zlib's format, but some send the bare stream without its header."""
        if self.coding in ("gzip", "x-gzip"):
            return 31
        if self.coding != "deflate":
            raise zlib.error
        return 15 if first & 0x0F == 8 else -15
