"""Tool calls in pieces, so that whoever joins them gets whole calls.

Theory: SDKs join the strings of a call as they come, by the call's index. So each call gets an index of its own, its id
and type with its first piece, and neither they nor its name a second time; upstreams repeat them, leave them out, or
give several calls one index.
Editing rule: no text of a call is changed here, and its arguments are not looked at.

Source: https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import attrs

from .replies import ToolCallDelta
from .shapes import Json


@attrs.define
class _Call:
    """One call: its place among all, the id that the upstream gave it, and the name that was told."""

    index: int
    id: str | None
    name: str | None = None


@attrs.define
class CallPieces:
    """The calls of one reply."""

    _count: int = attrs.field(default=0, init=False)
    # {the upstream's index: the call that it stands for now}
    _calls: dict[int, _Call] = attrs.field(factory=dict, init=False)

    def mend(self, piece: ToolCallDelta) -> ToolCallDelta:
        """*piece* as it is to be given on."""
        call = self._calls.get(piece.index)
        given = piece.call.get("id") or None
        if call is None or (given and call.id and given != call.id):
            call = self._calls[piece.index] = _Call(self._count, given)
            self._count += 1
            identity = {"id": given or f"call_{secrets.token_hex(12)}", "type": piece.call.get("type") or "function"}
        else:
            identity = {}
        rest = {name: value for name, value in piece.call.items() if name not in ("id", "type")}
        return ToolCallDelta(call.index, {**identity, **_name_once(call, rest)})


def _name_once(call: _Call, rest: Mapping[str, Json]) -> Mapping[str, Json]:
    function = rest.get("function")
    if not isinstance(function, dict) or "name" not in function:
        return rest
    if function["name"] and function["name"] != call.name:
        call.name = function["name"]
        return rest
    return {**rest, "function": {name: value for name, value in function.items() if name != "name"}}
