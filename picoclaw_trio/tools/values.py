"""What a tool is to the rest of the house: a name, a schema, and something to await.

Theory: a tool gives text or raises ``ToolError``, whose words the model gets to read; anything else that it raises is
a bug of the tool's, is logged, and costs the turn nothing but that call.
Editing rule: no tool knows who called it, and none knows another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import attrs

from ..shapes import Json


class ToolError(Exception):
    """A call could not be carried out; the text is for the model, and holds nothing that it may not know."""


@attrs.frozen
class Tool:
    """One tool that an agent may call.

    Attributes:
        name: as the model calls it; unique among all tools.
        description: what it does, for the model.
        parameters: JSON Schema of its arguments, an object.
        run: carries out one call; gives the text that the model gets.
            Raises: ToolError. Cancellation: whatever the call started is ended before the cancellation goes on.
    """

    name: str
    description: str
    parameters: Mapping[str, Json]
    run: Callable[[Mapping[str, Json]], Awaitable[str]] = attrs.field(repr=False)
