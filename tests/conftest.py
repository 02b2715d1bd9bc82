"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fakes import ScriptedUpstream, open_upstream

from picoclaw_trio import host

# The server under test is Hypercorn as our application mends it.
host.mend()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """A real HTTP server that says "Hello!" until its ``scripts`` are changed."""
    async with open_upstream() as opened:
        yield opened
