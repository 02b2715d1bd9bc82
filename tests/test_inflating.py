from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.connections.inflating import MAX_MEMBERS, MAX_PIECE, Inflater


def bare_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


PACKERS: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("gzip", "gzip"): gzip.compress,
    ("x-gzip", "gzip"): gzip.compress,
    ("deflate", "zlib"): zlib.compress,
    ("deflate", "bare"): bare_deflate,
}


def unpack(coding: str, *parts: bytes) -> list[bytes]:
    inflater = Inflater(coding)
    pieces = []
    for part in parts:
        inflater.put(part)
        while piece := inflater.take():
            pieces.append(piece)
    assert inflater.is_whole()
    return pieces


@pytest.mark.parametrize("kind", PACKERS, ids="-".join)
@given(data=st.binary(max_size=200), size=st.integers(1, 50))
def test_what_was_packed_comes_out_however_it_is_cut(kind: tuple[str, str], data: bytes, size: int) -> None:
    packed = PACKERS[kind](data)
    parts = [packed[start : start + size] for start in range(0, len(packed), size)]

    assert data == b"".join(unpack(kind[0], *parts))


@pytest.mark.parametrize("kind", PACKERS, ids="-".join)
@pytest.mark.parametrize("length", [MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 20 * MAX_PIECE])
def test_pieces_are_bounded(kind: tuple[str, str], length: int) -> None:
    pieces = unpack(kind[0], PACKERS[kind](b"x" * length))

    assert b"x" * length == b"".join(pieces)
    assert MAX_PIECE >= max(map(len, pieces))


def test_several_gzip_members_are_one_body() -> None:
    assert b"hello world" == b"".join(unpack("gzip", gzip.compress(b"hello ") + gzip.compress(b"world")))


def test_number_of_members_is_bounded() -> None:
    assert [] == unpack("gzip", gzip.compress(b"") * MAX_MEMBERS)
    with pytest.raises(zlib.error):
        unpack("gzip", gzip.compress(b"") * MAX_MEMBERS, gzip.compress(b"one more"))


@pytest.mark.parametrize("pack", [zlib.compress, bare_deflate])
@pytest.mark.parametrize("more", [bare_deflate(b""), zlib.compress(b"world"), b"\0"])
def test_nothing_may_follow_the_end_of_deflate(pack: Callable[[bytes], bytes], more: bytes) -> None:
    for parts in ((pack(b"hello") + more,), (pack(b"hello"), more)):
        with pytest.raises(zlib.error):
            unpack("deflate", *parts)


def test_empty_body_is_whole() -> None:
    assert [] == unpack("gzip", b"")


def test_cut_off_body_is_not_whole() -> None:
    inflater = Inflater("gzip")
    inflater.put(gzip.compress(b"hello")[:-1])
    inflater.take()

    assert not inflater.is_whole()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_bytes_that_are_not_packed_so_are_refused(coding: str) -> None:
    inflater = Inflater(coding)
    inflater.put(b"hello")
    with pytest.raises(zlib.error):
        inflater.take()
