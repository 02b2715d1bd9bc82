"""What is asked, and what the answers come to.

Theory: each question has a default that works, so pressing Return all the way is a sensible setup, the one that
``--yes`` makes. An answer that cannot work is told at once and asked for again. The end of the input is a refusal.
Editing rule: nothing here writes a file or connects to anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import attrs
import click

from ..config import expand
from ..config.checks import ModelId, check_url
from ..config.strict import Wrong
from .finding import ECHO, Offer, is_key

MAX_NAME_CHARS = 100


@attrs.frozen
class Wishes:
    """What somebody wants.

    Attributes:
        offers: the models that the gateway is to know; the first answers where none is named.
        workspace: None for the usual folder.
        user: what the agent may call its user; may be empty.
    """

    offers: tuple[Offer, ...]
    workspace: Path | None = None
    user: str = ""


def say(text: str = "") -> None:
    """All that is said goes where the questions go: the last of it holds a token, and nobody asked to have it piped."""
    click.echo(text, err=True)


def ask_wishes(found: tuple[Offer, ...], usual_workspace: Path, environ: Mapping[str, str]) -> Wishes:
    """Ask for everything.

    Raises:
        click.Abort: the input has ended, or Ctrl-C was pressed.
    """
    offers = _ask_offers(found, environ)
    workspace = _ask_workspace(usual_workspace, environ)
    user = _ask("What may the agent call you? (Return: nothing)", default="", read=_read_name)
    return Wishes(offers, None if workspace == usual_workspace else workspace, user)


def _ask_offers(found: tuple[Offer, ...], environ: Mapping[str, str]) -> tuple[Offer, ...]:
    """The chosen model, and after it the others if they are wanted too."""
    rows = [(offer.model, offer.source) for offer in (*found, ECHO)]
    rows.append(("another", "of a server that you name, and that speaks OpenAI's protocol"))
    say()
    _show_rows(rows)
    say()
    number = _ask_number("Which model shall answer?", len(rows))
    if number == len(rows):
        chosen = _ask_server(environ)
    elif number == len(rows) - 1:
        chosen = ECHO
    else:
        chosen = _ask_id(found[number - 1])
    others = tuple(offer for place, offer in enumerate(found, 1) if place != number)
    if others and not click.confirm(
        f"Shall the others ({len(others)}) answer too, where a request names them?", default=True, err=True
    ):
        others = ()
    return (chosen, *others)


def _show_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = min(40, max(len(name) for name, _ in rows))
    for number, (name, source) in enumerate(rows, 1):
        say(f"{number:4}  {name:{width}}  {source}")


def _ask_id(offer: Offer) -> Offer:
    """A vendor has many models, and which of them is wanted only its user knows."""
    if offer.variable is None:
        return offer
    model = _ask("Which of its models, as the vendor calls it?", default=offer.model, read=_read_id)
    return attrs.evolve(offer, model=model)


def _ask_server(environ: Mapping[str, str]) -> Offer:
    base = _ask("Its address, as in http://192.168.1.5:8080/v1", read=_read_address)
    model = _ask("The model, as the server calls it", read=_read_id)

    def read_variable(text: str) -> str:
        if text and not is_key(environ.get(text, "")):
            raise click.BadParameter("there is no such variable here, or it holds no key")
        return text

    text = "The environment variable that holds its key (Return: it wants none)"
    variable = _ask(text, default="", read=read_variable)
    return Offer(model, "openai", base, base, variable or None)


def _ask_workspace(usual: Path, environ: Mapping[str, str]) -> Path:
    def read(text: str) -> Path:
        if not text.isprintable():
            raise click.BadParameter("this is no path")
        return expand(text, environ).absolute()

    return Path(_ask("Folder of the agent's workspace", default=str(usual), read=read))


def _ask_number(text: str, last: int) -> int:
    def read(answer: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", answer) or not 1 <= int(answer) <= last:
            raise click.BadParameter(f"it must be a number from 1 to {last}")
        return int(answer)

    return int(_ask(text, default="1", read=read))


def _ask(text: str, *, read: Any, default: str | None = None) -> Any:
    """Ask until *read* makes something of the answer; it raises ``click.BadParameter`` to ask again."""
    return click.prompt(text, default=default, show_default=bool(default), value_proc=read, err=True)


def _read_id(text: str) -> str:
    return _checked(text, *get_args(ModelId)[1:])


def _read_address(text: str) -> str:
    return _checked(text, lambda given: check_url(given, ("http", "https")))


def _checked(text: str, *checks: Any) -> str:
    try:
        if not text.isprintable():
            raise click.BadParameter("it holds what cannot be printed")
        for check in checks:
            text = check(text)
    except Wrong as exc:
        raise click.BadParameter(f"it {exc.found[0][1]}") from None
    return text


def _read_name(text: str) -> str:
    """One line for a prompt; what cannot be printed is left out."""
    return re.sub(r"\s+", " ", "".join(letter for letter in text if letter.isprintable())).strip()[:MAX_NAME_CHARS]
