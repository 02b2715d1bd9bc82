"""The tools of one turn, and running the calls that its model makes.

Theory: whatever a model asks for gets an answer: a result, or an error in words, cut to size. So a wrong name, broken
arguments, a tool that fails, hangs or floods cost the turn one call, and the model may mend it. Calls of one reply run
side by side, within limits, and die with the turn.
Editing rule: what a tool says reaches the model as text and nothing else; it is never looked into here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

import attrs
import orjson
import structlog
import trio

from .. import metrics
from ..replies import Progress, ToolFinished, ToolStarted
from ..shapes import Json
from .values import Tool, ToolError

log = structlog.stdlib.get_logger("picoclaw_trio.tools")

# Calls of one reply that are looked at. A model that makes more is out of its mind.
MAX_CALLS = 64
# Objects and lists within others. What a tool takes has a few; parsers behind it give up at various depths, some badly.
MAX_DEPTH = 64


class Tell(Protocol):
    """Is given what happens, and may take its time."""

    def __call__(self, *events: Progress) -> Awaitable[None]: ...


@attrs.frozen
class Limits:
    """Bounds of a turn's calls.

    Attributes:
        timeout: seconds that one may take, once it runs.
        max_result_chars: of its result, beyond which the middle is left out.
        turn, everyone: how many run side by side, in this turn and in the process.
    """

    timeout: float
    max_result_chars: int
    turn: trio.CapacityLimiter
    everyone: trio.CapacityLimiter


@attrs.frozen
class ToolResult:
    """What one call came to: the text for the model, and whether it is an error."""

    call_id: str
    text: str
    failed: bool


@attrs.frozen
class ToolBox:
    """The tools that one turn may use; ``{name: tool}``."""

    tools: Mapping[str, Tool]
    limits: Limits

    def schemas(self) -> list[Json]:
        """OpenAI's ``tools`` entries, in the order of their names, so that an upstream's prompt cache holds."""
        return [_schema(self.tools[name]) for name in sorted(self.tools)]

    async def run(self, calls: Sequence[Mapping[str, Json]], tell: Tell) -> list[ToolResult]:
        """Run *calls*, OpenAI's ``tool_calls`` objects, side by side; gives a result for each, in their order.

        Cancellation: every tool that runs is ended.
        """
        results: list[ToolResult] = [_too_many(call) for call in calls]

        async def run_one(index: int) -> None:
            async with self.limits.turn, self.limits.everyone:
                results[index] = await self._run_call(calls[index], tell)

        async with trio.open_nursery() as nursery:
            for index in range(min(len(calls), MAX_CALLS)):
                nursery.start_soon(run_one, index)
        return results

    async def _run_call(self, call: Mapping[str, Json], tell: Tell) -> ToolResult:
        call_id, function = call["id"], call["function"]
        name = str(function.get("name") or "")
        await tell(ToolStarted(call_id, name, str(function.get("arguments") or "")))
        began_at, outcome = trio.current_time(), "cancelled"
        try:
            text, outcome = await self._try(name, function.get("arguments"))
        finally:
            known = name if name in self.tools else "unknown"
            metrics.note_tool_call(known, outcome, trio.current_time() - began_at)
        failed = outcome != "ok"
        await tell(ToolFinished(call_id, name, failed))
        return ToolResult(call_id, self._cut(f"Error: {text}" if failed else text), failed)

    async def _try(self, name: str, arguments: Json) -> tuple[str, str]:
        """The text of the result or of what went wrong, and the outcome."""
        try:
            tool = self._find(name)
            with trio.fail_after(self.limits.timeout):
                return await tool.run(_decode_arguments(arguments)), "ok"
        except ToolError as exc:
            return str(exc), "error"
        except trio.TooSlowError:
            return f"{name} gave no result within {self.limits.timeout:g} seconds.", "timeout"
        except Exception:
            # A bug of that tool's, or of a server behind it: the turn goes on without its result.
            log.exception("a tool failed", tool=name)
            return f"{name} failed for a reason of its own.", "error"

    def _find(self, name: str) -> Tool:
        if name not in self.tools:
            raise ToolError(f"There is no tool {name!r} here. There are: {', '.join(sorted(self.tools))}.")
        return self.tools[name]

    def _cut(self, text: str) -> str:
        """*text* as what JSON can carry, without its middle where it is too long."""
        text = text.encode("utf-8", "replace").decode()
        over = len(text) - self.limits.max_result_chars
        if over <= 0:
            return text
        half = self.limits.max_result_chars // 2
        return f"{text[:half]}\n[... {over} characters left out ...]\n{text[len(text) - half :]}"


def _schema(tool: Tool) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _decode_arguments(arguments: Json) -> Mapping[str, Json]:
    """
    Raises:
        ToolError: they are no JSON object, or one that is nested too deep.
    """
    try:
        # Some upstreams give the object itself.
        decoded = arguments if isinstance(arguments, dict) else orjson.loads(arguments or "{}")
    except (orjson.JSONDecodeError, TypeError):
        decoded = None
    if not isinstance(decoded, dict):
        raise ToolError("The arguments are not a JSON object.")
    if _is_deep(decoded):
        raise ToolError(f"The arguments are nested deeper than {MAX_DEPTH}.")
    return decoded


def _is_deep(value: Json) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        items = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in items if isinstance(inner, dict | list)]
    return bool(level)


def _too_many(call: Mapping[str, Json]) -> ToolResult:
    return ToolResult(call["id"], f"Error: not run. No more than {MAX_CALLS} calls are run at once.", True)
