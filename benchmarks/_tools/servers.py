"""The servers that are measured: the gateway as it is delivered, and the bare ones that it is held against.

Theory: the gateway runs as an operator runs it, by its command or Hypercorn's, from a configuration file with every
check on; only the bounds that a question is about to exceed are raised. The bare ones are the applications in
``apps``, in Hypercorn as it is released: they must not import the gateway, which would mend it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .loads import MODEL, TOKEN
from .stage import Server, Stage

APPS = Path(__file__).parent.parent / "apps"
# More turns at once than any question asks for; by default the rest would stand in line.
MAX_TURNS = 4096
BACKLOG = "4096"


def gateway_home(stage: Stage, name: str, *, upstream_path: str = "", **api: Any) -> dict[str, str]:
    """A folder with a configuration; give the environment that leads to it.

    Args:
        upstream_path: how the upstream is to answer, see ``upstream``.
        api: more keys of ``gateway.openai_api``.
    """
    base = f"http://127.0.0.1:{stage.upstream.port}{upstream_path}/v1"
    bounds = {"max_turns": MAX_TURNS, "max_waiting": MAX_TURNS}
    config = {
        "gateway": {
            "host": "127.0.0.1",
            "port": 0,
            "openai_api": {"enabled": True, "bearer_tokens": [TOKEN], "streaming": True, **bounds, **api},
        },
        "model_list": [{"model_name": MODEL, "model": f"openai/{MODEL}", "api_base": base, "api_key": "sk-upstream"}],
    }
    home = stage.home(name) / "picoclaw"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "config.json").write_text(json.dumps(config))
    return {"PICOCLAW_HOME": str(home)}


def start_gateway(
    stage: Stage, name: str, *, requests: Sequence[str] | None = None, upstream_path: str = "", **api: Any
) -> Server:
    """``picoclaw gateway`` with a folder of its own."""
    environment = gateway_home(stage, name, upstream_path=upstream_path, **api)
    command = [sys.executable, "-m", "picoclaw_trio", "gateway"]
    return stage.serve(name, command, environment=environment, requests=requests)


def gateway(stage: Stage) -> Server:
    """The gateway in front of an upstream that answers at once; one for all questions."""
    return stage.shared("gateway", lambda stage: start_gateway(stage, "gateway"))


def hypercorn_gateway(stage: Stage, workers: int) -> Server:
    """The gateway by Hypercorn's command, with each worker on a core of its own as far as there are enough."""
    name = f"gateway-{workers}-workers"
    cores = stage.cores if workers == 1 else stage.cores.two_for_server()
    return stage.shared(
        name,
        lambda stage: stage.serve(
            name,
            hypercorn("picoclaw_trio:app", workers),
            cores=cores.server,
            environment=gateway_home(stage, name),
            workers=workers,
        ),
    )


def echo(stage: Stage) -> Server:
    """Bare Hypercorn-trio: read the request, give a fixed answer."""
    return stage.shared("echo", lambda stage: stage.serve("echo", hypercorn(f"{APPS / 'echo.py'}:app", 1)))


def relay(stage: Stage, *, upstream_path: str, requests: Sequence[str]) -> Server:
    """Bare Hypercorn-trio: hand an upstream's event stream on, event by event."""
    upstream = f"http://127.0.0.1:{stage.upstream.port}{upstream_path}/v1/chat/completions"
    return stage.serve(
        "relay",
        hypercorn(f"{APPS / 'relay.py'}:app", 1),
        environment={"RELAY_UPSTREAM": upstream},
        requests=requests,
    )


def hypercorn(app: str, workers: int) -> list[str]:
    """The command that serves *app*; all else is Hypercorn's default, but for the length of the line of newcomers."""
    command = [sys.executable, "-m", "hypercorn", app, "--worker-class", "trio", "--workers", str(workers)]
    return [*command, "--bind", "127.0.0.1:0", "--backlog", BACKLOG]
