"""A turn that goes on when its client has gone away."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import structlog
import trio

from .errors import BusyError, GatewayError
from .gateway import Gateway
from .pipeline import answer, nothing
from .plan import Caller
from .replies import Progress, Reply
from .upstream import Emit
from .wire import ChatRequest

log = structlog.stdlib.get_logger("picoclaw_trio.detached")


async def answer_to_the_end(
    gateway: Gateway,
    request: ChatRequest,
    caller: Caller,
    emit: Emit,
    nursery: trio.Nursery,
    *,
    keep_text: bool = True,
    on_chosen: Callable[[str], None] = nothing,
    on_begun: Callable[[], None] = nothing,
) -> Reply:
    """Like ``answer``, but once the turn has begun a cancellation ends only the listening: it goes on in *nursery*.

    It is bounded by its deadline and by the nursery's end.
    """
    send, receive = trio.open_memory_channel[tuple[Progress, ...]](0)
    outcome: list[Reply | Exception] = []

    async def give(*events: Progress) -> None:
        with suppress(trio.BrokenResourceError):  # nobody listens any more
            await send.send(events)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        has_begun = trio.Event()

        def note_begun() -> None:
            has_begun.set()
            task_status.started()
            on_begun()

        with send:
            try:
                reply = await answer(
                    gateway, request, caller, give, keep_text=keep_text, on_chosen=on_chosen, on_begun=note_begun
                )
                outcome.append(reply)
            except Exception as exc:
                if not has_begun.is_set():
                    raise
                # It belongs to whoever listens; one turn's failure must not take the nursery's others down.
                outcome.append(exc)
                if send.statistics().open_receive_channels == 0:
                    expected = isinstance(exc, GatewayError)
                    log.warning("a turn failed without its client", error=repr(exc), exc_info=not expected)

    gateway.admission.check_open()  # or the nursery may have ended
    with receive:
        await nursery.start(run)
        async for events in receive:
            await emit(*events)
    if not outcome:
        raise BusyError("The gateway is shutting down.", "shutting_down")
    (result,) = outcome
    if isinstance(result, Exception):
        raise result
    return result
