"""The real server as a process of its own, with a home of its own, on a port that the system chose."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import httpx2
import orjson
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.run import worker_serve

from picoclaw_trio.config import load_config
from picoclaw_trio.gateway import Gateway, open_gateway
from picoclaw_trio.listening import listen
from picoclaw_trio.server import hypercorn_config
from picoclaw_trio.web import GatewayApp

TOKEN = "sk-test-token-1"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
START_TIMEOUT = 30.0
STOP_TIMEOUT = 20.0
LOG_TIMEOUT = 5.0  # for the rest of what an ended server has logged, unless something of it still lives
Kind = Literal["gateway", "hypercorn"]
KINDS: tuple[Kind, ...] = ("gateway", "hypercorn")
ADDRESS = re.compile(rb"(?:Serving|Running on) (http://[^\s/]+:\d+)")


def entry(name: str, base: str, **fields: Any) -> dict[str, Any]:
    return {"model_name": name, "model": f"openai/{name}-up", "api_base": base, "api_key": "sk-up-secret", **fields}


def make_config(*entries: dict[str, Any], gateway: Mapping[str, Any] | None = None, **api: Any) -> dict[str, Any]:
    """A configuration on a free loopback port with one token; *api* goes into ``gateway.openai_api``."""
    openai_api = {"enabled": True, "bearer_tokens": [TOKEN], **api}
    echo = {"model_name": "echo", "model": "echo/echo"}
    return {
        "gateway": {"host": "127.0.0.1", "port": 0, "log_level": "info", **(gateway or {}), "openai_api": openai_api},
        "model_list": list(entries) or [echo],
    }


def make_environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PICOCLAW_")}
    return {**kept, "HOME": str(home), "PICOCLAW_HOME": str(home / ".picoclaw")}


def write_config(home: Path, config: Mapping[str, Any]) -> Path:
    folder = home / ".picoclaw"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_bytes(orjson.dumps(config))
    return path


def command(kind: Kind, *arguments: str) -> list[str]:
    if kind == "gateway":
        return [sys.executable, "-m", "picoclaw_trio", "gateway", *arguments]
    hypercorn = [sys.executable, "-m", "hypercorn", "picoclaw_trio:app", "--worker-class", "trio"]
    return [*hypercorn, "--bind", "127.0.0.1:0", *arguments]


@attrs.define
class Server:
    """A running server."""

    process: trio.Process
    url: str
    log: bytearray

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def api(self) -> str:
        return f"{self.url}/v1"

    def pids(self) -> list[int]:
        """The process and all that come from it."""
        found = [self.process.pid]
        for pid in found:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                for task in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, task.read_text().split())
        return found

    async def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send the signal and give the exit status."""
        self.process.send_signal(signum)
        with trio.fail_after(STOP_TIMEOUT):
            return await self.process.wait()


@asynccontextmanager
async def open_server(
    home: Path, config: Mapping[str, Any] | None, kind: Kind = "gateway", *arguments: str, **environment: str
) -> AsyncIterator[Server]:
    """Start the server, wait until it serves; end it if the test has not."""
    async with open_process(home, config, command(kind, *arguments), **environment) as server:
        yield server


@asynccontextmanager
async def open_process(
    home: Path, config: Mapping[str, Any] | None, words: list[str], **environment: str
) -> AsyncIterator[Server]:
    """The same for any command that says where it serves."""
    if config is not None:
        write_config(home, config)
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            words,
            env={**make_environment(home), **environment},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        server = Server(process, "", bytearray())
        try:
            with trio.fail_after(START_TIMEOUT):
                server.url = await nursery.start(_follow_log, server)
            yield server
        finally:
            pids = server.pids() if process.returncode is None else []
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + LOG_TIMEOUT


async def _follow_log(server: Server, task_status: trio.TaskStatus[str]) -> None:
    """Keep what the server logs, and tell its address as soon as it is there."""
    assert server.process.stderr is not None
    started = False
    async for data in server.process.stderr:
        server.log += data
        match = None if started else ADDRESS.search(server.log)
        if match:
            started = True
            task_status.started(match.group(1).decode())
    if not started:
        raise RuntimeError(f"the server did not start:\n{server.log.decode()}")


@attrs.define
class Here:
    """A server within the test's own process: real Hypercorn, real port."""

    url: str
    gateway: Gateway
    app: GatewayApp

    @property
    def api(self) -> str:
        return f"{self.url}/v1"


@asynccontextmanager
async def serve_here(home: Path, config: Mapping[str, Any]) -> AsyncIterator[Here]:
    """Serve *config* from this process, with its state in *home*."""
    write_config(home, config)
    loaded = load_config(make_environment(home))
    hypercorn = hypercorn_config(loaded)
    stop = trio.Event()
    async with open_gateway(loaded) as gateway, trio.open_nursery() as nursery:
        app = GatewayApp(lambda: nullcontext(gateway))
        serve = partial(
            worker_serve, ASGIWrapper(app), hypercorn, sockets=listen(hypercorn), shutdown_trigger=stop.wait
        )
        (address,) = await nursery.start(serve)
        yield Here(address, gateway, app)
        stop.set()


def children_that_catch(signum: int) -> list[int]:
    """Our child processes that handle the signal by now."""
    pids = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    caught = {pid: re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids}
    return [pid for pid, found in caught.items() if found and int(found[1], 16) >> (signum - 1) & 1]


def open_client(url: str, **headers: str) -> httpx2.AsyncClient:
    """A plain HTTP client that bears the token."""
    # It speaks to our own servers only, so it need not spend 60 ms on reading the system's certificates.
    return httpx2.AsyncClient(base_url=url, headers={**HEADERS, **headers}, timeout=20.0, trust_env=False, verify=False)


def ask(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """The body of a request with one user message."""
    return {"messages": [{"role": "user", "content": text}], **fields}
