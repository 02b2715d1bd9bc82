"""Makes the environments, serves what the clients ask for, and compares."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio
from fakes import answers, error_body, frame, open_upstream, streams, text_frames
from harness import KINDS, TOKEN, Kind, entry, make_config, make_environment, open_server
from streams import by_model, says_as_asked
from test_sdk import calls_as_asked

from picoclaw_trio import host

FOLDER = Path(__file__).parent
INSTALL_TIMEOUT = 400.0
RUN_TIMEOUT = 90.0


@attrs.frozen
class Client:
    """A client: what pip installs, and whether its script asks for a tool call."""

    name: str
    requirements: tuple[str, ...]
    calls_tools: bool


CLIENTS = (
    Client("litellm", ("litellm>=1.100,<2", "mcp>=2,<3"), calls_tools=True),
    Client("langchain", ("langchain-openai>=1,<2",), calls_tools=True),
    Client("pydantic_ai", ("pydantic-ai-slim[openai]>=2,<3",), calls_tools=True),
    Client("llm", ("llm>=0.27,<1",), calls_tools=False),
)
# {alias that was asked: what the client's own error must tell}
ERRORS = {
    "nobody": "The model 'nobody' is not configured here.",
    "locked": "The model's server refused the gateway's credentials.",
    "breaker": "The model's server failed",
}
PIECES = ("Hel", "lo, ", "wörld 🦀")
SCRIPTS = {
    "talker": says_as_asked(*PIECES),
    "caller": calls_as_asked(),
    "locked": answers(401, error_body("bad key")),
    "breaker": streams(*text_frames("Hel")[:2], frame(error_body("overheated"))),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="clients to run; all without one")
    parser.add_argument("--kind", choices=KINDS, default="gateway", help="which server to run them against")
    chosen = parser.parse_args()
    clients = [client for client in CLIENTS if not chosen.names or client.name in chosen.names]
    host.mend()
    problems = trio.run(run_all, clients, chosen.kind)
    failed = sum(bool(found) for found in problems.values())
    print(f"{len(problems) - failed} passed, {failed} failed")
    return 1 if failed else 0


async def run_all(clients: list[Client], kind: Kind) -> dict[str, list[str]]:
    """{client: what was not as it should be}"""
    problems = {}
    with tempfile.TemporaryDirectory() as name:
        async with open_upstream(by_model(SCRIPTS)) as upstream:
            entries = [entry(alias, upstream.url) for alias in SCRIPTS]
            async with open_server(Path(name), make_config(*entries, streaming=True), kind) as server:
                for client in clients:
                    begun_at = time.monotonic()
                    found = await run_client(client, server.api, Path(name))
                    took = time.monotonic() - begun_at
                    print(f"{describe(client):28} {took:6.1f} s ", "; ".join(found) or "fine", flush=True)
                    problems[client.name] = found
    return problems


async def run_client(client: Client, api: str, home: Path) -> list[str]:
    python = await trio.to_thread.run_sync(make_python, client)
    with trio.fail_after(RUN_TIMEOUT):
        done = await trio.run_process(
            [str(python), str(FOLDER / f"use_{client.name}.py"), api, TOKEN],
            env={**make_environment(home), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LLM_USER_PATH": str(home / "llm")},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    if done.returncode != 0:
        return [f"exit status {done.returncode}: {done.stderr.decode()[-2000:]}"]
    return check(client, orjson.loads(done.stdout.splitlines()[-1]))


def check(client: Client, seen: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    text = "".join(PIECES)
    expected: dict[str, Any] = {"whole": text, "streamed": text}
    if client.calls_tools:
        expected["called"] = ["call_1", "look", {"at": "sea"}]
    problems = [f"{name}: {seen[name]!r}" for name, value in expected.items() if value != seen[name]]
    if len(seen["pieces"]) < len(PIECES):
        problems.append(f"pieces: {seen['pieces']!r}")
    for asked, told in ERRORS.items():
        if told not in seen["errors"][asked]:
            problems.append(f"error of {asked}: {seen['errors'][asked]!r}")
    return problems


def describe(client: Client) -> str:
    """What was installed: the client's own package and its version."""
    name = re.split(r"[\[<>=]", client.requirements[0])[0]
    places = [str(place) for place in folder_of(client).glob("lib/python*/site-packages")]
    found = next(iter(importlib.metadata.distributions(name=name, path=places)))
    return f"{name} {found.version}"


def folder_of(client: Client) -> Path:
    cache = Path(os.environ.get("PICOCLAW_TEST_CACHE") or Path(tempfile.gettempdir()) / "picoclaw_trio-test-cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / f"{'+'.join(client.requirements)}-py{version}"


def make_python(client: Client) -> Path:
    """The Python of the client's environment, which is made if it is not there."""
    folder = folder_of(client)
    if not (folder / "done").exists():
        run = partial(subprocess.run, check=True, timeout=INSTALL_TIMEOUT, stdin=subprocess.DEVNULL)
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
        run([str(folder / "bin" / "pip"), "install", "-qq", *client.requirements])
        (folder / "done").touch()
    return folder / "bin" / "python"
