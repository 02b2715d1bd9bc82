"""Other gateways, each in a virtual environment of its own in the user's cache folder.

Theory: a peer is installed once, in the version that stands here, and started with a configuration that asks the
benchmarks' upstream. Nothing of it is downloaded while it runs.
Editing rule: a version is raised by hand, after a look at what it brings; an install in the name of a measurement must
not be the way in which a spoiled release comes onto somebody's machine.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from .loads import MESSAGES, MODEL, TOKEN, request
from .stage import Server, Stage
from .values import BenchmarkError, Peer

START_TIMEOUT = 180.0
SESSIONS = 5000


@attrs.frozen
class Package:
    """What is installed for a peer; the first requirement is the peer itself."""

    requirements: tuple[str, ...]
    command: str

    @property
    def folder(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = self.requirements[0].partition("[")[0].partition("==")[0]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cache / "picoclaw_trio-benchmarks" / f"{name}-{self.version}-python{python}"

    @property
    def version(self) -> str:
        return self.requirements[0].partition("==")[2]

    def installed(self) -> Path:
        """Its command; installs it where that has not been done.

        Raises:
            BenchmarkError: it cannot be installed.
        """
        mark = self.folder / "installed"
        if not mark.exists():
            print(f"installing {' '.join(self.requirements)} ...", file=sys.stderr, flush=True)
            python = self.folder / "bin" / "python"
            _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
            _run([str(python), "-m", "pip", "install", "-q", *self.requirements])
            mark.touch()
        return self.folder / "bin" / self.command


PACKAGES: dict[Peer, Package] = {
    "litellm": Package(("litellm[proxy]==1.106.2",), "litellm"),
    "nanobot": Package(("nanobot-ai==0.3.5", "aiohttp"), "nanobot"),
}


def start(stage: Stage, name: Peer) -> Server:
    """The peer, installed if need be, up, and held still."""
    command = PACKAGES[name].installed()
    return {"litellm": start_litellm, "nanobot": start_nanobot}[name](stage, command)


def start_litellm(stage: Stage, command: Path) -> Server:
    base = f"http://127.0.0.1:{stage.upstream.port}/v1"
    model = {"model": f"openai/{MODEL}", "api_base": base, "api_key": "sk-upstream"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "general_settings": {"master_key": TOKEN},
    }
    path = stage.home("litellm") / "config.yaml"
    path.write_text(json.dumps(config))  # every JSON text is one in YAML too
    port = free_port()
    return stage.serve(
        "litellm",
        [command, "--config", path, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"],
        port=port,
        environment={"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        timeout=START_TIMEOUT,
    )


def start_nanobot(stage: Stage, command: Path) -> Server:
    base = f"http://127.0.0.1:{stage.upstream.port}/v1"
    home = stage.home("nanobot")
    config = {
        "agents": {"defaults": {"model": MODEL, "provider": "custom", "workspace": str(home / "workspace")}},
        "providers": {"custom": {"apiKey": "sk-upstream", "apiBase": base}},
        "api": {"apiKey": TOKEN},
    }
    path = home / "config.json"
    path.write_text(json.dumps(config))
    port = free_port()
    # It takes one message a request, and the requests of one session one after the other.
    requests = [request(messages=MESSAGES[-1:], session_id=f"benchmark-{number}") for number in range(SESSIONS)]
    return stage.serve(
        "nanobot",
        [command, "serve", "-c", path, "-p", str(port)],
        port=port,
        requests=requests,
        timeout=START_TIMEOUT,
    )


def free_port() -> int:
    """A port on which nobody listens just now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command[1:])} failed: {done.stderr[-500:]}")
