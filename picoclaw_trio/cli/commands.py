"""The group of all commands, and those that need few words."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from .._version import __version__
from .failures import failures_told, load
from .serve import gateway
from .sessions import sessions


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


@main.command()
@click.option("-y", "--yes", is_flag=True, help="Ask nothing: take what is found.")
def onboard(yes: bool) -> None:
    """Make a configuration and a workspace for your agent, by asking.

    Finds models of Ollama, LM Studio and vLLM on this machine, and vendors' keys in the environment. What is there
    already is left as it is.
    """
    with failures_told():
        from ..onboard import set_up

        set_up(os.environ, ask=not yes)


@main.command()
@click.option("-m", "--message", help="Ask this one question, print the reply and end.")
@click.option("--model", help="Answer with this model_name; nothing is stored.")
@click.option("-s", "--session", default="default", show_default=True, help="Name of the conversation.")
def agent(message: str | None, model: str | None, session: str) -> None:
    """Talk to the agent in the terminal: one question with -m, a conversation without.

    Where standard input is no terminal, each of its lines is a question; with -m it is not read.
    """
    with failures_told():
        from .. import logs

        # The log is the server's: here its lines would stand within the conversation, which tells what went wrong.
        logs.configure("error", "console")
        config = load()
        if config.gateway.log_level in ("debug", "fatal"):
            logs.configure(config.gateway.log_level, "console")
        from .. import terminal

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
    with failures_told():
        config = load()
        from ..gateway import default_alias
        from ..workspace import Workspace

        default = default_alias(config, Workspace(config.workspace))
        for entry in config.model_list:
            mark = "*" if entry.model_name == default else " "
            click.echo(f"{mark} {entry.model_name}\t{entry.vendor}/{entry.model}\t{entry.where}")


@main.command()
def status() -> None:
    """Show the configuration as it stands now and whether a server answers at its address."""
    with failures_told():
        from ..status import describe

        for line in describe(load, os.environ):
            click.echo(line)


@main.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
def check() -> None:
    """Tell every problem of the configuration, or that there is none, and what may not be meant."""
    with failures_told():
        loaded = load()
        from ..visible import visible

        count = len(loaded.warnings)
        verdict = f"can be used, with {count} warning{'' if count == 1 else 's'}" if count else "fine"
        click.echo(f"{loaded.path or 'no configuration file, only defaults'}: {verdict}")
        for warning in loaded.warnings:
            click.echo(visible(f"  warning: {warning}"))
        if loaded.passed_over:
            click.echo(visible(f"  passed over, of other parts of PicoClaw: {', '.join(loaded.passed_over)}"))


main.add_command(gateway)
main.add_command(sessions)
