"""One after the other: look, ask, make, tell.

Theory: everything is decided before anything is made, and what is made is loaded the way the server will load it before
it is left in place. A configuration that is there already is somebody's, and is only read.
Editing rule: looking is ``finding``, asking ``questions``, making ``making``; here is nothing but their order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import trio

from ..config import Config, config_home, config_path, first_config, load_config
from ..errors import ConfigError, Problem
from .finding import ECHO, Offer, Server, aliases, find_keys, find_served, servers_at_hand
from .making import Maker, all_or_nothing, missing_files
from .questions import Wishes, ask_wishes, say
from .report import describe, list_paths
from .starter import starter_files


def set_up(environ: Mapping[str, str], *, ask: bool, servers: tuple[Server, ...] | None = None) -> None:
    """Make a configuration and a workspace where they are missing; all that is new, or nothing.

    Args:
        ask: whether to ask; else the first model that is found answers, and the others may be named.
        servers: those on this machine that may serve models; None: the usual ones, at the usual ports.

    Raises:
        ConfigError: the configuration that is there cannot be used, or the new one cannot be made.
        OSError: a file of the workspace cannot be made.
        click.Abort: somebody ended it before anything was made.
    """
    path = config_path(environ)
    if path.exists():
        _complete_workspace(path, environ, ask)
    elif path.is_symlink():
        raise ConfigError(str(path), (Problem("$", "is a link that leads nowhere"),))
    else:
        _begin(path, environ, ask, _usual_servers(environ) if servers is None else servers)


def _usual_servers(environ: Mapping[str, str]) -> tuple[Server, ...]:
    servers = servers_at_hand(environ)
    if "ollama" not in [server.vendor for server in servers]:
        say("OLLAMA_HOST names no address of this machine, so no Ollama is asked.")
    return servers


def _begin(path: Path, environ: Mapping[str, str], ask: bool, servers: tuple[Server, ...]) -> None:
    say("Looking for models on this machine and for keys in the environment.")
    found = (*_look(servers), *find_keys(environ))
    usual = config_home(environ) / "workspace"
    wishes = ask_wishes(found, usual, environ) if ask else Wishes(found or (ECHO,))
    workspace, json = wishes.workspace or usual, _config(wishes)
    texts = _texts(workspace, wishes.user)
    if ask:
        _confirm([path, *missing_files(workspace, texts)])
    with all_or_nothing() as maker:
        maker.make_config(path, json)  # first: of two that begin at once, one ends here
        config = load_config(environ)
        maker.make_missing(workspace, texts)
    token = json["gateway"]["openai_api"]["bearer_tokens"][0]
    is_ours = token in [known.reveal() for known in config.gateway.openai_api.bearer_tokens]
    _tell(config, maker, texts, wishes.offers, token if is_ours else None)


def _look(servers: tuple[Server, ...]) -> tuple[Offer, ...]:
    """What these servers have. Ctrl-C while they are asked is one like at any question."""
    try:
        return trio.run(find_served, servers)
    except BaseExceptionGroup as group:  # an interrupt that met a nursery comes in a group
        if group.split(KeyboardInterrupt)[1] is None:
            raise click.Abort from None
        raise


def _config(wishes: Wishes) -> dict[str, Any]:
    named = list(aliases(wishes.offers))
    json = first_config()
    json["gateway"]["openai_api"]["streaming"] = True
    json["agents"]["defaults"]["model_name"] = named[0][0]
    if wishes.workspace is not None:
        json["agents"]["defaults"]["workspace"] = str(wishes.workspace)
    json["model_list"] = [offer.entry(alias) for alias, offer in named]
    return json


def _texts(workspace: Path, user: str) -> dict[str, str]:
    """The files of a new workspace. ``AGENT.md`` would take the place of an older ``AGENTS.md``, so that is kept."""
    texts = starter_files(user)
    if os.path.lexists(workspace / "AGENTS.md"):
        del texts["AGENT.md"]
    return texts


def _complete_workspace(path: Path, environ: Mapping[str, str], ask: bool) -> None:
    config = load_config(environ)
    say(f"There is a configuration already, and it is left as it is: {path}")
    say("To be asked about models, move it away and run this again.")
    texts = _texts(config.workspace, "")
    missing = missing_files(config.workspace, texts)
    if ask and missing:
        _confirm(missing)
    with all_or_nothing() as maker:
        maker.make_missing(config.workspace, texts)
    _tell(config, maker, texts, (), None)


def _confirm(paths: list[Path]) -> None:
    for line in list_paths("These files will be written:", paths):
        say(line)
    click.confirm("Go on?", default=True, abort=True, err=True)


def _tell(config: Config, maker: Maker, texts: Mapping[str, str], offers: tuple[Offer, ...], token: str | None) -> None:
    files = [config.workspace / name for name in texts]
    variables = list(dict.fromkeys(offer.variable for offer in offers if offer.variable is not None))
    say()
    for line in (
        *list_paths("Written:", maker.files),
        *list_paths("Kept as it was:", [file for file in files if file not in maker.files]),
        "",
        *describe(config, variables, token),
    ):
        say(line)
