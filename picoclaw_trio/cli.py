"""The command line ``picoclaw``: arguments to one call, and exit codes.

Theory: 0 is fine, 1 a failure that was told on standard error, 2 wrong usage. Standard output holds what was asked for
and nothing else. Heavy rooms are imported by the command that needs them, so that ``picoclaw version`` is quick.
Editing rule: nothing but this file, ``terminal`` and ``onboard`` prints.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

import click

from ._version import __version__

if TYPE_CHECKING:
    from .config import Config
    from .stored import Row, Stored

MAX_PORT = 65535


class Commands(click.Group):
    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Help and version are printed outside of any command's own care for failures."""
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:
            click.echo(f"Error: {exc.strerror or exc}", err=True)
            sys.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """PicoClaw's gateway: your own agent and models behind the OpenAI API."""
    # A standard stream that is closed leads nowhere, and no file that is opened later takes its place.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # as long as the process


@main.command()
def version() -> None:
    """Print the version."""
    click.echo(f"picoclaw_trio {__version__}")


def _check_host(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """What would be wrong in the configuration is wrong usage here."""
    from .config.checks import Hosts
    from .config.strict import Wrong

    try:
        return None if text is None else str(get_args(Hosts)[1](text))
    except Wrong as exc:
        raise click.BadParameter(exc.found[0][1]) from None


def _check_port(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    if text is None or (re.fullmatch("[0-9]{1,5}", text) and int(text) <= MAX_PORT):
        return text
    raise click.BadParameter(f"must be a whole number from 0 to {MAX_PORT}; 0 is any port that is free")


@main.command()
@click.option("--host", metavar="HOST", callback=_check_host, help="Serve this address instead of the configured one.")
@click.option("--port", metavar="PORT", callback=_check_port, help="Serve this port instead of the configured one.")
def gateway(host: str | None, port: str | None) -> None:
    """Serve the OpenAI API at the configured host and port.

    Without a configuration one is written first: loopback only, a fresh token, and a model that echoes.
    """
    overrides = {"PICOCLAW_GATEWAY_HOST": host, "PICOCLAW_GATEWAY_PORT": port}
    environ = {**os.environ, **{name: value for name, value in overrides.items() if value is not None}}
    with _failures_told():
        from .config import config_path, load_config
        from .server import run_gateway

        path = config_path(environ)
        is_first = not (path.exists() or path.is_symlink())
        tokens: list[str] = []  # what is told once
        load = partial(load_config, environ, may_lack=is_first)
        begin = partial(_write_first_config, path, tokens.append) if is_first else lambda: False
        run_gateway(load, partial(_say_ready, tokens), begin=begin)


def _write_first_config(path: Path, tell: Callable[[str], None]) -> bool:
    """Write the first configuration, and *tell* the token in it. Its defaults are those of no configuration."""
    from .config import create_first_config

    with suppress(FileExistsError):  # another first start was quicker
        tell(create_first_config(path))
        _say(f"There was no configuration, so a first one was written: {path}")
    return True


def _say_ready(first_tokens: list[str], config: Config, addresses: list[str]) -> None:
    """For the person at the terminal; a machine that reads the log has Hypercorn's own line."""
    if config.gateway.log_format == "json":
        return
    for address in addresses:
        _say(f"Serving {address}")
    known = [token.reveal() for token in config.gateway.openai_api.bearer_tokens]  # the environment's, where it has any
    if usable := [token for token in first_tokens if token in known]:
        from .onboard import curl_line

        _say(f"Try it:\n{curl_line(addresses[0], usable[0])}")


def _say(line: str) -> None:
    """Tell whoever looks on; a server serves also where that leads to a full disk or to nobody."""
    with suppress(OSError):
        click.echo(line, err=True)


@main.command()
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: take what is found.")
def onboard(yes: bool) -> None:
    """Make a configuration and a workspace for your agent, by asking.

    Finds models of Ollama, LM Studio and vLLM on this machine, and vendors' keys in the environment. What is there
    already is left as it is.
    """
    with _failures_told():
        from .onboard import set_up

        set_up(os.environ, ask=not yes)


@main.command()
@click.option("-m", "--message", help="Ask this one question, print the reply and end.")
@click.option("--model", help="Answer with this model_name; nothing is stored.")
@click.option("-s", "--session", default="default", show_default=True, help="Name of the conversation.")
def agent(message: str | None, model: str | None, session: str) -> None:
    """Talk to the agent in the terminal: one question with -m, a conversation without.

    Where standard input is no terminal, each of its lines is a question; with -m it is not read.
    """
    with _failures_told():
        from . import logs

        # The log is the server's: here its lines would stand within the conversation, which tells what went wrong.
        logs.configure("error", "console")
        config = _load()
        if config.gateway.log_level in ("debug", "fatal"):
            logs.configure(config.gateway.log_level, "console")
        from . import terminal

        if message is not None and not message.strip():
            raise click.BadParameter("There is no question in it.", param_hint="--message")
        if problem := terminal.session_name_problem(session):
            raise click.BadParameter(problem, param_hint="--session")
        if message is None:
            sys.exit(0 if terminal.run_conversation(config, model=model, session=session) else 1)
        terminal.run_once(config, message, model=model, session=session)


@main.command()
def models() -> None:
    """List the configured models; * marks the one that answers where none is named."""
    with _failures_told():
        config = _load()
        from .gateway import default_alias
        from .workspace import Workspace

        default = default_alias(config, Workspace(config.workspace))
        for entry in config.model_list:
            mark = "*" if entry.model_name == default else " "
            click.echo(f"{mark} {entry.model_name}\t{entry.vendor}/{entry.model}\t{entry.where}")


@main.command()
def status() -> None:
    """Show the configuration as it stands now and whether a server answers at its address."""
    with _failures_told():
        from .status import describe

        for line in describe(_load, os.environ):
            click.echo(line)


@main.group()
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

    from .stored import open_stored

    async def run() -> None:
        async with open_stored(_load()) as stored:
            await work(stored)

    with _failures_told():
        trio.run(run)


async def _find(stored: Stored, key: str) -> Row:
    row = await stored.find(key)
    if row is None:
        raise click.ClickException(f"Nothing is stored under {key!r}.")
    return row


@main.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
def check() -> None:
    """Tell every problem of the configuration, or that there is none, and what may not be meant."""
    with _failures_told():
        loaded = _load()
        from .visible import visible

        count = len(loaded.warnings)
        verdict = f"can be used, with {count} warning{'' if count == 1 else 's'}" if count else "fine"
        click.echo(f"{loaded.path or 'no configuration file, only defaults'}: {verdict}")
        for warning in loaded.warnings:
            click.echo(visible(f"  warning: {warning}"))
        if loaded.passed_over:
            click.echo(visible(f"  passed over, of other parts of PicoClaw: {', '.join(loaded.passed_over)}"))


def _load() -> Config:
    from .config import load_config

    return load_config(os.environ)


class Failure(click.ClickException):
    """What is told on standard error, in the format that the log has by then."""

    def show(self, file: IO[Any] | None = None) -> None:
        from . import logs

        if logs.is_for_machines():
            logs.tell_failure(self.message)
        else:
            super().show(file)


@contextmanager
def _failures_told() -> Iterator[None]:
    """A failure that has words of its own is told on standard error, and the exit status is 1."""
    from .errors import GatewayError, StateError

    try:
        yield
    except StateError as exc:  # what it says to clients is of a request, and here there was none
        raise Failure(f"The stored state cannot be used. {exc.reason}") from exc
    except GatewayError as exc:
        from .visible import visible

        message = exc.told_here  # it may hold an upstream's own words
        raise Failure(visible(message) if sys.stderr.isatty() else message) from exc
    except BrokenPipeError:
        raise  # whoever read our output has had enough of it; click ends quietly
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        raise Failure(f"{where}{exc.strerror or exc}") from exc
