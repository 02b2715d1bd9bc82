"""A turn cancelled at every single one of its checkpoints leaves nothing behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import orjson
import pytest
import trio
from fakes import Script, ScriptedUpstream, answers, cuts, error_body, says, streams, text_frames
from harness import ask, entry, make_config, make_environment, write_config
from streams import call, calls

from picoclaw_trio.config import load_config
from picoclaw_trio.gateway import Gateway, open_gateway
from picoclaw_trio.pipeline import answer
from picoclaw_trio.replies import Progress
from picoclaw_trio.upstream import RetryPolicy
from picoclaw_trio.wire import decode_chat_request

SCRIPTS: dict[str, tuple[Script, ...]] = {
    "plain": (says(),),
    "streamed": (streams(*text_frames("Hel", "lo!")),),
    "retried": (answers(500, error_body("busy")), says()),
    "fallen back": (cuts, says()),
    "with two tools": (
        calls(call("1", "list_dir"), call("2", "write_file", path="a/b", content="c", overwrite=True)),
        says(),
    ),
}
TOOLS = {"allow": {"http": ["list_dir", "write_file"]}}


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels *scope* when the tasks below *root* have stopped at a checkpoint for the time number *at*."""

    root: trio.lowlevel.Task
    scope: trio.CancelScope
    at: int
    steps: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._is_below_root(task):
            self.steps += 1
            if self.steps == self.at:
                self.scope.cancel()

    def _is_below_root(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self.root:
            task = task.parent_nursery.parent_task if task.parent_nursery else None
        return task is not None


async def cancel_at(step: int, turn: Callable[[], Awaitable[object]]) -> bool:
    """Run *turn* in a task of its own, cancelled at its checkpoint number *step*; False where it was over before."""

    async def run() -> None:
        instrument = CancelAtStep(trio.lowlevel.current_task(), nursery.cancel_scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await turn()
        finally:
            trio.lowlevel.remove_instrument(instrument)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
    return nursery.cancel_scope.cancelled_caught


async def slow_to_listen(*events: Progress) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("history", ["client", "session"])
@pytest.mark.parametrize("case", SCRIPTS)
async def test_nothing_is_left_by_a_turn_cancelled_at_any_checkpoint(
    case: str, history: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    pairs = (("one", "two"), ("two", "one"))
    entries = [entry(name, upstream.url, fallbacks=[other]) for name, other in pairs]
    write_config(tmp_path, {**make_config(*entries, history=history), "tools": TOOLS if "tools" in case else {}})
    stream = case == "streamed"
    async with open_gateway(load_config(make_environment(tmp_path))) as gateway:
        gateway.upstream.policy = RetryPolicy(base_delay=0.001)
        caller = gateway.http_caller("alice", None)
        tasks = trio.lowlevel.current_statistics().tasks_living
        step, was_cancelled = 0, True
        while was_cancelled:
            step += 1
            # The scripts are taken from the first on, and each turn changes the stored alias, so that it is written.
            upstream.asked.clear()
            upstream.scripts = SCRIPTS[case]
            body = ask(model=("one", "two")[step % 2], stream=stream)
            request = decode_chat_request(orjson.dumps(body), streaming=True)
            was_cancelled = await cancel_at(step, lambda: answer(gateway, request, caller, slow_to_listen))  # noqa: B023 - called at once
            await _check_clean(gateway, upstream)
        with trio.fail_after(5):  # only the upstream's own tasks for kept-alive connections stay
            while upstream.open_connections < trio.lowlevel.current_statistics().tasks_living - tasks:
                await trio.sleep(0.001)
        turns = await gateway.memory.show(caller.session)
    assert step > 5, "a turn has more checkpoints than that"
    home = tmp_path / ".picoclaw"
    left_over = {"openai_sessions.journal", "openai_sessions.json", "openai_sessions.lock", "openai_history"}
    assert left_over == {path.name for path in home.iterdir()} - {"config.json", "workspace"}
    assert {".jsonl", ".lock"} >= {path.suffix for path in (home / "openai_history").iterdir()}
    written = {str(path.relative_to(home)) for path in (home / "workspace").rglob("*")}
    assert ({"workspace/a", "workspace/a/b"} if "tools" in case else set()) == written
    # Turns are kept whole or not at all.
    roles = ["user", "assistant", *(["tool", "tool", "assistant"] if "tools" in case else [])]
    kept = [said.message.role for said in turns]
    assert roles * (len(kept) // len(roles)) == kept
    assert (history == "session") == bool(kept)


async def _check_clean(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    statistics = gateway.admission.statistics()
    assert 0 == statistics.running
    assert 0 == statistics.waiting
    with trio.fail_after(5):
        while upstream.open_connections > 1:  # one may be kept alive
            await trio.sleep(0.001)
