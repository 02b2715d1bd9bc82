"""What an operator does with a running server: reload, watch, measure, let in and keep out."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import trio
from commands import run
from fakes import Exchange, ScriptedUpstream, answers, error_body, hangs, open_upstream, says
from harness import (
    HEADERS,
    Kind,
    Server,
    ask,
    children_that_catch,
    command,
    entry,
    make_config,
    open_client,
    open_process,
    open_server,
    serve_here,
    write_config,
)
from serving import logged
from small_disk import SmallDisk

PATH = "/v1/chat/completions"
WAIT = 15.0


async def wait_logged(server: Server, text: bytes, count: int = 1) -> None:
    with trio.fail_after(WAIT):
        while server.log.count(text) < count:
            await trio.sleep(0.02)


# Files


@pytest.mark.parametrize("kind", ["gateway", "hypercorn"])
async def test_server_takes_the_file_descriptors_that_it_may_have(kind: Kind, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        async with open_server(tmp_path, make_config(), kind) as server:
            limits = [resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] for pid in server.pids()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert min(hard, 65_536) == max(limits)


# Reload


async def test_sighup_brings_new_models_and_tokens_and_drops_no_request(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    go_on = trio.Event()

    async def says_later(exchange: Exchange) -> None:
        await go_on.wait()
        await says("old")(exchange)

    upstream.scripts = [says_later, says("new")]
    async with (
        open_server(tmp_path, make_config(entry("old", upstream.url))) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        running: list[httpx2.Response] = []

        async def post() -> None:
            running.append(await client.post(PATH, json=ask()))

        nursery.start_soon(post)
        await upstream.wait_asked()
        write_config(tmp_path, make_config(entry("new", upstream.url), bearer_tokens=["sk-second"]))
        server.process.send_signal(signal.SIGHUP)
        await wait_logged(server, b"configuration reloaded")

        answer = await client.post(PATH, json=ask(model="new"), headers={"Authorization": "Bearer sk-second"})
        assert (200, "new") == (answer.status_code, answer.json()["model"])
        assert 401 == (await client.post(PATH, json=ask())).status_code
        go_on.set()
    assert [(200, "old")] == [(each.status_code, each.json()["model"]) for each in running]


async def test_reload_forgets_no_cool_down(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [answers(401, error_body("Wrong key."))]
    async with open_upstream() as second:
        config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", second.url))
        async with open_server(tmp_path, config) as server, open_client(server.url) as client:
            for number in range(2):
                for _ in range(2):
                    assert "two" == (await client.post(PATH, json=ask(model="one"))).json()["model"]
                server.process.send_signal(signal.SIGHUP)
                await wait_logged(server, b"configuration reloaded", number + 1)
    assert (1, 4) == (len(upstream.asked), len(second.asked))


async def test_signal_that_comes_while_the_server_starts_is_obeyed_when_it_has(tmp_path: Path) -> None:
    """The start waits for the lock of the stored selections, which is held here until the signal has been sent."""
    home = write_config(tmp_path, make_config()).parent

    async def send(task_status: trio.TaskStatus[None]) -> None:
        with (home / "openai_sessions.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            task_status.started()
            while not (pids := children_that_catch(signal.SIGHUP)):
                await trio.sleep(0.01)
            os.kill(pids[0], signal.SIGHUP)

    async with trio.open_nursery() as nursery:
        await nursery.start(send)
        async with open_server(tmp_path, None) as server:
            await wait_logged(server, b"configuration reloaded")
            assert 0 == await server.stop()


async def test_workspace_that_leads_nowhere_does_not_end_the_server(tmp_path: Path) -> None:
    for name, other in (("here", "there"), ("there", "here")):
        (tmp_path / name).symlink_to(tmp_path / other)
    tools = {"allow": {"http": ["read_file", "exec"]}, "exec": {"programs": ["true"]}}
    async with open_server(tmp_path, make_config()) as server, open_client(server.url) as client:
        write_config(
            tmp_path,
            {**make_config(), "tools": tools, "agents": {"defaults": {"workspace": str(tmp_path / "here")}}},
        )
        server.process.send_signal(signal.SIGHUP)
        await wait_logged(server, b"configuration reloaded")
        assert 200 == (await client.post(PATH, json=ask())).status_code


async def test_a_file_that_a_signal_had_read_is_not_read_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, make_config(entry("old", upstream.url))) as server:
        for name in ("new", "newer"):
            write_config(tmp_path, make_config(entry(name, upstream.url)))
            server.process.send_signal(signal.SIGHUP)
            await wait_logged(server, f"models=['{name}']".encode())
            # By then the look at the file, every two seconds, has come after the signal, too.
            await trio.sleep(2.5)
        assert 2 == server.log.count(b"configuration reloaded")


@pytest.mark.parametrize(("kind", "workers"), [("gateway", 1), ("hypercorn", 1), ("hypercorn", 2)])
async def test_changed_file_is_read_again_and_a_bad_one_is_told(
    kind: Kind, workers: int, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    arguments = ["--workers", str(workers)] if kind == "hypercorn" else []
    async with open_server(tmp_path, make_config(entry("old", upstream.url)), kind, *arguments) as server:
        await wait_logged(server, b"unning on", workers)
        (tmp_path / ".picoclaw" / "config.json").write_text('{"gateway": {"port": "x"}}')
        await wait_logged(server, b"$.gateway.port", workers)
        assert {200} == await statuses(server, model="old")

        write_config(tmp_path, make_config(entry("new", upstream.url)))
        await wait_logged(server, b"configuration reloaded", workers)
        assert {200} == await statuses(server, model="new")
        assert {404} == await statuses(server, model="old")


async def test_file_that_is_gone_changes_nothing_until_it_is_back(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, make_config(entry("old", upstream.url))) as server:
        file = tmp_path / ".picoclaw" / "config.json"
        file.unlink()
        server.process.send_signal(signal.SIGHUP)
        await wait_logged(server, b"the file is gone")
        assert str(file).encode() in server.log
        assert {200} == await statuses(server, model="old")

        write_config(tmp_path, make_config(entry("new", upstream.url)))
        await wait_logged(server, b"configuration reloaded")
        assert {200} == await statuses(server, model="new")


async def test_file_that_is_written_in_place_with_its_time_set_back_is_read_again(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """As by ``rsync --times --inplace``."""
    async with open_server(tmp_path, make_config(entry("old", upstream.url))) as server:
        file = tmp_path / ".picoclaw" / "config.json"
        before = file.stat()
        write_config(tmp_path, make_config(entry("new", upstream.url)))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = file.stat()
        assert (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)
        await wait_logged(server, b"configuration reloaded")
        assert {200} == await statuses(server, model="new")


async def test_file_that_has_gone_is_told_once_and_changes_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_server(tmp_path, make_config(entry("old", upstream.url))) as server:
        (tmp_path / ".picoclaw" / "config.json").unlink()
        await wait_logged(server, b"the configuration file is gone")
        await trio.sleep(4.5)  # two more looks
        assert {200} == await statuses(server, model="old")

        write_config(tmp_path, make_config(entry("new", upstream.url)))
        await wait_logged(server, b"configuration reloaded")
    assert 1 == server.log.count(b"is gone")


async def test_what_needs_a_restart_stays_as_it_was_and_is_told_each_time(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("m", upstream.url), gateway={"grace": 0.5})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        config["gateway"]["grace"] = 60
        write_config(tmp_path, config)
        for number in (1, 2):
            server.process.send_signal(signal.SIGHUP)
            await wait_logged(server, b"needs_restart=['gateway.grace']", number)
        async with trio.open_nursery() as nursery:

            async def post() -> None:
                answer = await client.post(PATH, json=ask())
                assert (503, "shutting_down") == (answer.status_code, answer.json()["error"]["code"])

            nursery.start_soon(post)
            await upstream.wait_asked(1)
            assert 0 == await server.stop()


async def test_changed_keys_beside_the_file_are_read_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    security = tmp_path / ".picoclaw" / ".security.yml"
    async with open_server(tmp_path, make_config(entry("m", upstream.url))) as server:
        for number, key in enumerate(("sk-first", "sk-second"), 1):
            security.write_text(f"model_list: {{m: {{api_keys: [{key}]}}}}")
            await wait_logged(server, b"configuration reloaded", number)
            assert {200} == await statuses(server)
            assert f"Bearer {key}" == upstream.asked[-1].header("authorization")
        security.unlink()
        await wait_logged(server, b"configuration reloaded", 3)
    assert b"sk-" not in server.log


async def statuses(server: Server, **fields: Any) -> set[int]:
    """Of the answers on several connections, which several workers take."""
    seen = set()
    for _ in range(8):
        async with open_client(server.url) as client:
            seen.add((await client.post(PATH, json=ask(**fields))).status_code)
    return seen


FAILING = """
import sys
from pathlib import Path
from picoclaw_trio import server
from picoclaw_trio.config import load_config

class Bug(Exception): ...

def load():
    if read:
        raise Bug
    read.append(True)
    return load_config()

read = []
try:
    server.run_gateway(
        load, lambda config, addresses: print("Serving", *addresses, file=sys.stderr, flush=True), begin=lambda: False
    )
except server.FailedError as error:
    sys.exit(str(error.message))
"""


async def test_server_with_a_failed_task_lets_turns_finish_and_ends_with_status_1(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """Or nobody would watch the configuration, the connections and the grace period any more."""
    go_on = trio.Event()

    async def says_later(exchange: Exchange) -> None:
        await go_on.wait()
        await says("Hello!")(exchange)

    upstream.scripts = [says_later]
    config = make_config(entry("one", upstream.url))
    async with (
        open_process(tmp_path, config, [sys.executable, "-c", FAILING]) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        answers: list[httpx2.Response] = []

        async def post() -> None:
            answers.append(await client.post(PATH, json=ask()))

        nursery.start_soon(post)
        await upstream.wait_asked()
        write_config(tmp_path, config)
        await wait_logged(server, b"a task of the server has failed")
        go_on.set()
        with trio.fail_after(WAIT):
            assert 1 == await server.process.wait()
    assert [200] == [answer.status_code for answer in answers]
    assert server.log.endswith(b"Its log has the details.\n")


# Wrong tokens


async def test_address_that_keeps_sending_wrong_tokens_is_slowed_down(tmp_path: Path) -> None:
    config = make_config(wrong_tokens_per_minute=3)
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        wrong = {"Authorization": "Bearer sk-wrong"}
        with logged() as lines:
            statuses = [(await client.post(PATH, json=ask(), headers=wrong)).status_code for _ in range(4)]
            right = await client.post(PATH, json=ask())

    told = [(line["log_level"], line["client"]) for line in lines if "too many wrong tokens" in line["event"]]
    assert [("warning", "127.0.0.1")] == told
    assert [401, 401, 401, 429] == statuses
    assert 429 == right.status_code
    assert "too_many_failures" == right.json()["error"]["code"]
    assert 1 <= int(right.headers["retry-after"]) <= 20


async def test_wrong_tokens_are_as_many_as_one_likes_where_that_is_switched_off(tmp_path: Path) -> None:
    config = make_config(wrong_tokens_per_minute=0)
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        wrong = {"Authorization": "Bearer sk-wrong"}
        assert {401} == {(await client.post(PATH, json=ask(), headers=wrong)).status_code for _ in range(200)}


# Numbers and lines


def number(text: str, line: str) -> float:
    """The value of the metric's line that begins so."""
    return sum(float(found.rsplit(" ", 1)[1]) for found in text.splitlines() if found.startswith(line))


@pytest.mark.parametrize(("kind", "arguments"), [("gateway", ()), ("hypercorn", ("--workers", "2"))])
async def test_metrics_tell_of_all_workers(
    kind: Kind, arguments: tuple[str, ...], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_server(tmp_path, make_config(entry("one", upstream.url)), kind, *arguments) as server:
        for _ in range(20):
            async with open_client(server.url, Connection="close") as client:
                assert 200 == (await client.post(PATH, json=ask(model="one"))).status_code
        async with open_client(server.url) as client:
            await client.get(PATH)
            text = (await client.get("/metrics")).text
            with trio.fail_after(WAIT):
                while number(text, "picoclaw_turns_running"):  # workers tell of themselves once a second
                    await trio.sleep(0.1)
                    text = (await client.get("/metrics")).text
            assert 401 == (await client.get("/metrics", headers={"Authorization": ""})).status_code

    assert 20 == number(text, 'picoclaw_requests_total{status="200"}')
    assert 1 == number(text, 'picoclaw_requests_total{status="405"}')
    assert 20 == number(text, 'picoclaw_turn_seconds_count{model="one"}')
    assert 20 == number(text, 'picoclaw_upstream_attempt_seconds_count{model="one",outcome="ok"}')
    assert 20 * 11 == number(text, 'picoclaw_tokens_total{kind="prompt",model="one"}')
    assert 20 * 7 == number(text, 'picoclaw_tokens_total{kind="completion",model="one"}')


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


async def test_numbers_of_an_earlier_master_of_the_same_process_id_are_gone(tmp_path: Path) -> None:
    """As in a container, whose first process always has the same id; or put there by someone else."""
    old = f"{tmp_path}/picoclaw-workers-{os.getuid()}-$$"
    prepare = f'mkdir {old} && echo garbled > {old}/gauge_livesum_1.db && exec "$@"'
    words = ["sh", "-c", prepare, "sh", *command("hypercorn", "--workers", "2")]
    async with open_process(tmp_path, make_config(), words, TMPDIR=str(tmp_path)) as server:
        await wait_logged(server, b"unning on", 2)
        assert {200} == await statuses(server)
        async with open_client(server.url) as client:
            answer = await client.get("/metrics")
        (folder,) = tmp_path.glob("picoclaw-workers-*")  # noqa: ASYNC240  # a name or two
        assert 0o700 == folder.stat().st_mode & 0o777
        # Whoever takes away what is old, as systemd-tmpfiles does, asks for this lock first.
        with open_folder(folder) as fd, pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    assert 200 == answer.status_code
    assert 8 == number(answer.text, 'picoclaw_requests_total{status="200"}')


MODELS = [f"m{number}" for number in range(30)]  # the numbers of all of them take more than the first blocks
MANY_MODELS = {**make_config(), "model_list": [{"model_name": name, "model": "echo/echo"} for name in MODELS]}


async def test_full_temp_folder_spoils_no_answer(
    small_disk: SmallDisk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small_disk.home.mkdir()
    home, temp = tmp_path_factory.mktemp("home"), str(small_disk.home)
    async with open_server(home, MANY_MODELS, "hypercorn", TMPDIR=temp) as server, open_client(server.url) as client:
        small_disk.fill()
        assert {200} == {(await client.post(PATH, json=ask(model=name))).status_code for name in MODELS}
        text = (await client.get("/metrics")).text
        assert 0 == await server.stop()
    assert {1} == {number(text, f'picoclaw_turn_seconds_count{{model="{name}"}}') for name in MODELS}


async def test_temp_folder_that_goes_spoils_no_answer(tmp_path: Path) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    async with open_server(tmp_path, MANY_MODELS, "hypercorn", "--workers", "2", TMPDIR=str(temp)) as server:
        await wait_logged(server, b"unning on", 2)
        shutil.rmtree(temp)
        assert {200} == {status for name in MODELS for status in await statuses(server, model=name)}
        async with open_client(server.url) as client:
            assert [200, 200] == [(await client.get(path)).status_code for path in ("/metrics", "/ready")]
            text = (await client.get("/metrics")).text
        assert 0 == await server.stop()
    assert 0 < number(text, 'picoclaw_requests_total{status="200"}') <= 8 * len(MODELS)
    assert 1 <= server.log.count(b"numbers are not shared") <= 2


# As where everything is read-only; root may write everywhere, so it is the standard library that says it.
NO_PLACE = "import tempfile; tempfile._get_default_tempdir = lambda: open('/nowhere/at/all')"


async def test_workers_serve_and_stop_without_a_temp_folder(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_PLACE)
    arguments = ("--workers", "2")
    async with open_server(tmp_path, make_config(), "hypercorn", *arguments, PYTHONPATH=str(tmp_path)) as server:
        await wait_logged(server, b"unning on", 2)
        assert {200} == await statuses(server)
        async with open_client(server.url) as client:
            text = (await client.get("/metrics")).text
        assert 0 == await server.stop()
    assert 0 < number(text, 'picoclaw_requests_total{status="200"}') <= 8
    assert 2 == server.log.count(b"no temporary folder")


async def test_metrics_wait_for_no_thread_of_others(tmp_path: Path) -> None:
    let_go = threading.Event()
    threads = trio.to_thread.current_default_thread_limiter()
    async with (
        serve_here(tmp_path, make_config(metrics_open=True)) as server,
        open_client(server.url) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(int(threads.total_tokens)):
            nursery.start_soon(trio.to_thread.run_sync, let_go.wait, 60)
        with trio.fail_after(WAIT):
            while threads.available_tokens:
                await trio.sleep(0.01)
            assert 200 == (await client.get("/metrics")).status_code
        let_go.set()


@pytest.mark.parametrize(("kind", "arguments"), [("gateway", ()), ("hypercorn", ("--workers", "2"))])
async def test_turns_in_flight_and_requests_in_line_are_those_of_all_workers(
    kind: Kind, arguments: tuple[str, ...], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [hangs]
    config = make_config(entry("one", upstream.url), max_turns=2, max_wait=60)
    clients = 8
    async with (
        open_server(tmp_path, config, kind, *arguments) as server,
        open_client(server.url) as watcher,
        trio.open_nursery() as nursery,
    ):

        async def post() -> None:
            async with open_client(server.url) as client:
                await client.post(PATH, json=ask())

        for _ in range(clients):
            nursery.start_soon(post)
        running = waiting = 0.0
        with trio.fail_after(WAIT):
            while clients > running + waiting or running < len(upstream.asked):
                text = (await watcher.get("/metrics")).text
                running, waiting = number(text, "picoclaw_turns_running"), number(text, "picoclaw_requests_waiting")
                await trio.sleep(0.1)  # workers tell of themselves once a second
        assert (clients, len(upstream.asked)) == (running + waiting, running)
        nursery.cancel_scope.cancel()


async def test_metrics_are_open_where_that_is_configured(tmp_path: Path) -> None:
    config = make_config(metrics_open=True)
    async with serve_here(tmp_path, config) as server, open_client(server.url) as client:
        answer = await client.get("/metrics", headers={"Authorization": ""})

    assert 200 == answer.status_code
    assert answer.headers["content-type"].startswith("text/plain")


async def test_request_is_one_line_of_json_without_its_content_or_a_secret(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    gateway = {"log_level": "info", "log_format": "json"}
    async with (
        open_server(tmp_path, make_config(entry("one", upstream.url), gateway=gateway)) as server,
        open_client(server.url) as client,
    ):
        await client.post(PATH, json=ask("a private word", user="alice"), headers={"X-Request-Id": "mine-1"})
        await wait_logged(server, b'"event":"request"' if b'"event":"request"' in server.log else b'"request"')
        log = bytes(server.log)

    (line,) = [orjson.loads(line) for line in log.splitlines() if b"mine-1" in line]
    expected = {
        "request_id": "mine-1",
        "status": 200,
        "model": "one",
        "upstream_model": "up-model-2026",
        "session": "openai:alice",
        "prompt_tokens": 11,
        "completion_tokens": 7,
    }
    assert expected == {name: line[name] for name in expected}
    assert 0 <= line["seconds"] < 60
    assert b"private word" not in log
    assert b"Hello!" not in log
    assert HEADERS["Authorization"].split()[1].encode() not in log
    assert b"sk-up-secret" not in log


ODD = {"channels": {}, "model_list": [{"model_name": "g", "model": "gemini/g"}]}


@pytest.mark.parametrize("kind", ["gateway", "hypercorn"])
async def test_what_the_configuration_has_to_tell_is_told_once_in_the_format_of_the_log(
    kind: Kind, tmp_path: Path
) -> None:
    gateway = {"log_level": "debug", "log_format": "json"}
    async with open_server(tmp_path, {**make_config(gateway=gateway, bearer_tokens=[]), **ODD}, kind) as server:
        assert 0 == await server.stop()

    # Hypercorn's own command has lines of its own, before and after.
    ours = [line for line in server.log.splitlines() if kind == "gateway" or line.startswith(b"{")]
    lines = [line for line in map(orjson.loads, ours) if line["logger"] == "picoclaw_trio.config"]
    assert ["warning", "warning", "debug"] == [line["level"] for line in lines]
    assert lines[0]["event"].startswith("$.gateway.openai_api.bearer_tokens: ")
    assert lines[1]["event"].startswith('$.model_list[0]: "g" cannot be asked')
    assert "$.channels" == lines[2]["keys"]
    assert str(tmp_path / ".picoclaw" / "config.json") == lines[2]["file"]


@pytest.mark.parametrize(("level", "count"), [("fatal", 0), ("warn", 2)])
async def test_what_the_configuration_has_to_tell_obeys_the_level(level: str, count: int, tmp_path: Path) -> None:
    config = make_config(gateway={"log_level": level}, bearer_tokens=[])
    async with open_server(tmp_path, {**config, **ODD}) as server:
        assert 0 == await server.stop()
    assert (count, 1) == (server.log.count(b"[warning"), server.log.count(b"Serving"))


async def test_reload_tells_what_the_new_configuration_has_to_tell(tmp_path: Path) -> None:
    async with open_server(tmp_path, make_config()) as server:
        write_config(tmp_path, {**make_config(), **ODD})
        server.process.send_signal(signal.SIGHUP)
        await wait_logged(server, b"configuration reloaded")
        assert 1 == server.log.count(b"cannot be asked")


async def test_failure_to_start_is_json_where_the_log_is(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway = {"log_level": "fatal", "log_format": "json", "port": taken.getsockname()[1]}
        write_config(tmp_path, make_config(gateway=gateway))
        ran = await run(tmp_path, "gateway")

    (line,) = ran.err.splitlines()
    assert (1, "critical") == (ran.status, orjson.loads(line)["level"])
    assert "cannot serve at" in orjson.loads(line)["event"]


async def test_line_for_people_tells_the_same(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), gateway={"log_level": "info", "log_format": "console"})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        await client.post(PATH, json=ask("a private word", user="alice"), headers={"X-Request-Id": "mine-1"})
        await wait_logged(server, b"mine-1")
        assert 0 == await server.stop()

    (line,) = [line for line in server.log.decode().splitlines() if "mine-1" in line]
    words = {"status=200", "model=one", "upstream_model=up-model-2026", "session=openai:alice", "prompt_tokens=11"}
    assert words < {*line.split()}
    assert "private word" not in line


async def test_line_for_people_gives_their_terminal_no_orders(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("one", upstream.url), gateway={"log_level": "info", "log_format": "console"})
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        for user in ("\x1b]0;title\x07red", "\x9b31m", "\u202eecila", "two\nlines"):
            await client.post(PATH, json=ask(user=user))
        await wait_logged(server, b"session=", 4)
        assert 0 == await server.stop()

    log = server.log.decode()
    assert {"session=openai:^[]0;title^Gred", "session=openai:<U+009B>31m", "session=openai:<U+202E>ecila"} < {
        *log.split()
    }
    assert r"session='openai:two\nlines'" in log
    assert all(line.isprintable() for line in log.splitlines())


# The service manager


async def test_service_manager_is_told_of_readiness_life_and_the_stop(tmp_path: Path) -> None:
    address = os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(WAIT)
        async with open_server(tmp_path, make_config(), NOTIFY_SOCKET=address, WATCHDOG_USEC="300000") as server:
            heard = await trio.to_thread.run_sync(lambda: [listener.recv(4096) for _ in range(4)])
            assert 0 == await server.stop()
        listener.setblocking(False)
        while b"STOPPING=1" not in heard[-1]:
            heard.append(listener.recv(4096))

    assert 1 == sum(b"READY=1" in message for message in heard)
    assert 2 <= sum(message == b"WATCHDOG=1" for message in heard)


async def test_metrics_count_retries_fallbacks_state_writes_and_clients_that_left(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(500, b"{}"), answers(401, b"{}"), says(), hangs]
    config = make_config(entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url))
    config["agents"] = {"defaults": {"llm_retry_backoff_secs": 0.01}}
    async with open_server(tmp_path, config) as server, open_client(server.url) as client:
        assert "two" == (await client.post(PATH, json=ask(model="one"))).json()["model"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.post(PATH, json=ask()))
            left = await upstream.wait_asked(4)
            nursery.cancel_scope.cancel()
        with trio.fail_after(WAIT):
            await left.gone.wait()
        await wait_logged(server, b"client went away")
        text = (await client.get("/metrics")).text

    assert 1 == number(text, 'picoclaw_retries_total{kind="server",model="one"}')
    assert 1 == number(text, 'picoclaw_fallbacks_total{kind="auth",model="two"}')
    assert 1 == number(text, 'picoclaw_state_writes_total{outcome="ok"}')
    assert 1 == number(text, 'picoclaw_requests_total{status="499"}')


@pytest.mark.parametrize("kind", ["gateway", "hypercorn"])
async def test_mcp_server_may_be_ended_by_a_signal(kind: Kind, tmp_path: Path) -> None:
    """It inherits what its starter ignores, and a shell could not even catch that."""
    script = "trap 'echo was asked to end >&2; exit' TERM; kill $$; exec sleep 60"
    servers = {"one": {"command": "sh", "args": ["-c", script]}}
    tools = {"allow": {"http": ["mcp_one_*"]}, "mcp": {"enabled": True, "servers": servers}}
    async with open_server(tmp_path, {**make_config(), "tools": tools}, kind) as server:
        await wait_logged(server, b"was asked to end")
