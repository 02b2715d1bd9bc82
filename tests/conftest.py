"""Fixtures for all tests."""

from __future__ import annotations

import faulthandler
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fakes import ScriptedUpstream, open_upstream
from small_disk import SmallDisk, open_small_disk

from picoclaw_trio import host

# The server under test is Hypercorn as our application mends it.
host.mend()


@pytest.fixture(autouse=True)
def slow_tests_take_their_time(request: pytest.FixtureRequest) -> None:
    """They have limits of their own, and a soak lasts for hours: no stacks of all threads are shown meanwhile."""
    if request.node.get_closest_marker("slow"):
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A real HTTP server that says "Hello!" until its ``scripts`` are changed."""
    async with open_upstream() as opened:
        yield opened


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A real file system of 256 kB, where one may mount; else a disk that refuses."""
    with open_small_disk(tmp_path) as disk:
        yield disk
