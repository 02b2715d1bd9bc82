"""``picoclaw gateway``: its options, the first configuration, and what it says to the person at the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from .failures import failures_told

if TYPE_CHECKING:
    from ..config import Config

MAX_PORT = 65535


def _check_host(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """What would be wrong in the configuration is wrong usage here."""
    from ..config.checks import Hosts
    from ..config.strict import Wrong

    try:
        return None if text is None else str(get_args(Hosts)[1](text))
    except Wrong as exc:
        raise click.BadParameter(exc.found[0][1]) from None


def _check_port(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    if text is None or (re.fullmatch("[0-9]{1,5}", text) and int(text) <= MAX_PORT):
        return text
    raise click.BadParameter(f"must be a whole number from 0 to {MAX_PORT}; 0 is any port that is free")


@click.command()
@click.option("--host", metavar="HOST", callback=_check_host, help="Serve this address instead of the configured one.")
@click.option("--port", metavar="PORT", callback=_check_port, help="Serve this port instead of the configured one.")
def gateway(host: str | None, port: str | None) -> None:
    """Serve the OpenAI API at the configured host and port.

    Without a configuration one is written first: loopback only, a fresh token, and a model that echoes.
    """
    overrides = {"PICOCLAW_GATEWAY_HOST": host, "PICOCLAW_GATEWAY_PORT": port}
    environ = {**os.environ, **{name: value for name, value in overrides.items() if value is not None}}
    with failures_told():
        from ..config import config_path, load_config
        from ..server import run_gateway

        path = config_path(environ)
        is_first = not (path.exists() or path.is_symlink())
        tokens: list[str] = []  # what is told once
        load = partial(load_config, environ, may_lack=is_first)
        begin = partial(_write_first_config, path, tokens.append) if is_first else lambda: False
        run_gateway(load, partial(_say_ready, tokens), begin=begin)


def _write_first_config(path: Path, tell: Callable[[str], None]) -> bool:
    """Write the first configuration, and *tell* the token in it. Its defaults are those of no configuration."""
    from ..config import create_first_config

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
        from ..onboard import curl_line

        _say(f"Try it:\n{curl_line(addresses[0], usable[0])}")


def _say(line: str) -> None:
    """Tell whoever looks on; a server serves also where that leads to a full disk or to nobody."""
    with suppress(OSError):
        click.echo(line, err=True)
