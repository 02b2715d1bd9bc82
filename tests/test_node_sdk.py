"""The official Node SDK streams from both servers. npm installs it into a cache folder when it is not there yet."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from fakes import USAGE, Exchange, ScriptedUpstream, answers, error_body, text_frames
from harness import KINDS, TOKEN, Kind, entry, make_config, open_server
from streams import by_model
from test_sdk import SCRIPTS

SDK = "openai@7.57.0"
INSTALL_TIMEOUT = 120.0
RUN_TIMEOUT = 30.0
SCRIPT = Path(__file__).with_name("node_sdk.mjs")


@pytest.fixture(scope="session")
def sdk_folder() -> Path:
    """A folder with the SDK in it; it stays for the next run."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    cache = Path(os.environ.get("PICOCLAW_TEST_CACHE") or Path(tempfile.gettempdir()) / "picoclaw_trio-test-cache")
    folder = cache / SDK.replace("@", "-")
    if not folder.exists():
        install(folder)
    return folder


def install(folder: Path) -> None:
    """Whole or not at all, also where two runs do it at once."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        (Path(name) / "new").mkdir()
        (Path(name) / "new" / "package.json").write_text("{}")
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", SDK]
        subprocess.run(command, cwd=Path(name) / "new", check=True, timeout=INSTALL_TIMEOUT, stdin=subprocess.DEVNULL)
        try:
            (Path(name) / "new").rename(folder)
        except OSError:
            assert folder.exists()


async def starts(exchange: Exchange) -> None:
    await exchange.begin_events()
    await exchange.write(b"".join(text_frames("a")[:2]))
    await exchange.asked.gone.wait()


NODE_SCRIPTS = {
    **SCRIPTS,
    "starter": starts,
    "locked": answers(401, error_body("bad key")),
    "down": answers(500, error_body("oh")),
}


async def run_script(folder: Path, api: str) -> Any:
    with trio.fail_after(RUN_TIMEOUT):
        done = await trio.run_process(
            ["node", str(SCRIPT), str(folder), api, TOKEN], capture_stdout=True, capture_stderr=True, check=False
        )
    assert 0 == done.returncode, done.stderr.decode()
    return orjson.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
async def test_node_sdk_gets_all_from_both_servers(
    kind: Kind, sdk_folder: Path, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = (by_model(NODE_SCRIPTS),)
    config = make_config(*(entry(name, upstream.url) for name in NODE_SCRIPTS), streaming=True)
    async with open_server(tmp_path, config, kind) as server:
        seen = await run_script(sdk_folder, server.api)
        (left,) = [asked for asked in upstream.asked if asked.body["model"] == "starter-up"]
        with trio.fail_after(RUN_TIMEOUT):
            await left.gone.wait()

    assert [*NODE_SCRIPTS] == seen["models"]
    assert "Hello, wörld 🦀" == seen["whole"] == seen["streamed"] == seen["helped"]
    assert "req-mine" == seen["requestId"]
    assert 1 == seen["ids"]
    assert USAGE == seen["usage"]
    assert 2 * [["call_1", "function", "look", '{"at": "sea"}']] == seen["called"]
    assert "application/json" == seen["rawType"]
    check_failures(seen)


def check_failures(seen: Any) -> None:
    broken, failures = seen["broken"], seen["failures"]
    assert ("Hel", "APIError", "upstream_error", 1) == tuple(
        broken[key] for key in ("said", "name", "code", "attempts")
    )
    assert {
        "value": ("BadRequestError", 400, "unsupported_value", "n", 1),
        "token": ("AuthenticationError", 401, "invalid_api_key", None, 1),
        "model": ("NotFoundError", 404, "model_not_found", "model", 1),
        "key": ("InternalServerError", 502, "upstream_auth", None, 1),
        "broken": ("InternalServerError", 502, "upstream_error", None, 3),
    } == {
        name: tuple(error[key] for key in ("name", "status", "code", "param", "attempts"))
        for name, error in failures.items()
    }
    assert all(error["hasId"] for error in failures.values())
