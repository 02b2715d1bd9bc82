"""``picoclaw sessions``: what is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from .failures import failures_told, load

if TYPE_CHECKING:
    from ..stored import Row, Stored


@click.group()
def sessions() -> None:
    """Look at the stored model selections and conversations; a running server notices what is deleted."""


@sessions.command("list")
def list_sessions() -> None:
    """List what is stored: key, model, when it changed, and how much was said.

    First come the keys with a model, then those with a conversation alone; of each the least recently used first.
    """

    async def show_all(stored: Stored) -> None:
        for row in await stored.rows():
            click.echo(row.line(), nl=False)

    _with_stored(show_all)


@sessions.command()
@click.argument("key")
def show(key: str) -> None:
    """Show what is stored under KEY, e.g. global, openai:default or openai:alice."""

    async def show_one(stored: Stored) -> None:
        click.echo(await stored.describe(await _find(stored, key)), nl=False)

    _with_stored(show_one)


@sessions.command()
@click.argument("key")
def delete(key: str) -> None:
    """Forget what is stored under KEY, its conversation too."""

    async def forget(stored: Stored) -> None:
        await stored.forget((await _find(stored, key)).key)

    _with_stored(forget)


@sessions.command()
@click.option("--conversations", is_flag=True, help="Print the kept conversations instead.")
def export(conversations: bool) -> None:
    """Print the stored selections as one JSON document, which can be put back as openai_sessions.json."""

    async def print_all(stored: Stored) -> None:
        if not conversations:
            click.echo(stored.export(), nl=False)
            return
        async for piece in stored.export_conversations():
            click.echo(piece, nl=False)

    _with_stored(print_all)


def _with_stored(work: Callable[[Stored], Awaitable[None]]) -> None:
    """Do *work* with what is stored."""
    import trio

    from ..stored import open_stored

    async def run() -> None:
        async with open_stored(load()) as stored:
            await work(stored)

    with failures_told():
        trio.run(run)


async def _find(stored: Stored, key: str) -> Row:
    row = await stored.find(key)
    if row is None:
        raise click.ClickException(f"Nothing is stored under {key!r}.")
    return row
