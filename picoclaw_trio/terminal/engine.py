"""The gateway in a thread of its own, so that the terminal's thread may wait for a person.

Theory: line editing and Ctrl-C belong to the main thread and block it; connections, leases and MCP servers need their
event loop all the time. So Trio runs beside, and the main thread gives it one piece of work after the other. What the
work says comes back event by event, and the next is not made before the terminal has shown the last.
Editing rule: nothing in Trio's thread touches the terminal, and nothing outside it the gateway, but through ``run``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
import trio

from ..config import Config
from ..gateway import Gateway, open_gateway
from ..replies import Progress
from ..upstream import Emit
from .signals import Interrupt, Signals

T = TypeVar("T")
Work: TypeAlias = Callable[[Gateway, Emit], Awaitable[T]]


class Show(Protocol):
    """Puts events on the screen, those that came together in one call."""

    def __call__(self, *events: Progress) -> None: ...


def show_nothing(*events: Progress) -> None:
    """For work that says nothing."""


class _Given(BaseException):
    """The work was cancelled before it came to a result."""


@attrs.frozen
class _Said:
    """Events to show, and who waits for it."""

    events: tuple[Progress, ...] = ()
    shown: trio.Event = attrs.field(factory=trio.Event)


@attrs.frozen
class _Done:
    """The end: a value or an error."""

    value: Any = None
    error: BaseException | None = None


@attrs.define(eq=False)
class _Job:
    """A piece of work in Trio's thread, and its way to tell; signals of the main thread come in between."""

    answers: SimpleQueue[_Said | _Done | Interrupt] = attrs.field(factory=SimpleQueue)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def emit(self, *events: Progress) -> None:
        said = _Said(events)
        self.answers.put(said)
        await said.shown.wait()

    async def do(self, work: Work[Any], gateway: Gateway) -> None:
        done = _Done(error=_Given())
        try:
            with self.scope:
                done = _Done(await work(gateway, self.emit))
        except Exception as exc:  # it belongs to the thread that waits for the work
            done = _Done(error=exc)
        finally:
            self.answers.put(done)


@attrs.define(eq=False)
class Engine:
    """The running gateway, as the main thread sees it. Made by ``open_engine``.

    Attributes:
        gateway: for work, in Trio's thread.
    """

    _signals: Signals
    gateway: Gateway = attrs.field(init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(init=False)
    _nursery: trio.Nursery = attrs.field(init=False)
    _life: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _steps: SimpleQueue[None] = attrs.field(factory=SimpleQueue, init=False)  # begun, open, ended
    _error: BaseException | None = attrs.field(default=None, init=False)  # of Trio's thread, which has ended then

    def run(self, work: Work[T], show: Show = show_nothing) -> T:
        """Have *work* done, put on the screen what it emits, and give its result.

        Raises:
            KeyboardInterrupt, Ended: a signal came. The work has been cancelled and has come to its end; a result that
                was there all the same is given after Ctrl-C.
            Exception: whatever the work or *show* raised; nothing of the work goes on.
        """
        job = _Job()
        try:
            self._token.run_sync_soon(self._begin, job, work)
        except trio.RunFinishedError:
            raise self._last_error() from None
        done = self._follow(job, show)
        if isinstance(done.error, _Given):
            raise self._last_error()  # nobody here has cancelled it
        if done.error is not None:
            raise done.error
        value: T = done.value
        return value

    def _follow(self, job: _Job, show: Show) -> _Done:
        try:
            with self._signals.told(job.answers.put):
                while not isinstance(answer := job.answers.get(), _Done):
                    if not isinstance(answer, _Said):
                        raise answer
                    with self._signals.raised():  # the screen may keep us waiting too
                        show(*answer.events)
                    self._soon(answer.shown.set)
                return answer
        except BaseException as exc:  # a signal, or a screen that is gone
            done = self._cancel(job)
            if isinstance(exc, KeyboardInterrupt) and not isinstance(done.error, _Given):
                return done
            raise

    def _cancel(self, job: _Job) -> _Done:
        """End the work; give the end that it came to."""
        self._soon(job.scope.cancel)
        while not isinstance(answer := job.answers.get(), _Done):
            pass
        return answer

    def _begin(self, job: _Job, work: Work[Any]) -> None:
        self._nursery.start_soon(job.do, work, self.gateway)

    def _soon(self, step: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(step)

    def _last_error(self) -> BaseException:
        """Why Trio's thread has ended, though nobody asked it to."""
        self._steps.get()
        return self._error or RuntimeError("the gateway has ended")

    def _start(self, config: Config) -> Thread:
        thread = Thread(target=self._run_thread, args=[config], name="gateway")
        thread.start()
        self._steps.get()
        return thread

    def _wait_open(self) -> None:
        with self._signals.raised():
            self._steps.get()
        if self._error is not None:
            raise self._error

    def _run_thread(self, config: Config) -> None:
        try:
            trio.run(self._live, config)
        except BaseException as exc:  # it belongs to the thread that waits
            self._error = exc
        finally:
            self._steps.put(None)

    async def _live(self, config: Config) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._steps.put(None)
        with self._life:
            async with open_gateway(config) as self.gateway, trio.open_nursery() as self._nursery:
                self._steps.put(None)
                await trio.sleep_forever()


@contextmanager
def open_engine(config: Config, signals: Signals) -> Iterator[Engine]:
    """Open the gateway beside, and close it.

    Raises:
        GatewayError: it cannot be opened, or has failed.
        KeyboardInterrupt, Ended: a signal came while it was opened.
    """
    engine = Engine(signals)
    thread = engine._start(config)
    try:
        engine._wait_open()
        yield engine
    finally:
        with signals.deadly():
            engine._soon(engine._life.cancel)
            thread.join()
    if engine._error is not None:
        raise engine._error
