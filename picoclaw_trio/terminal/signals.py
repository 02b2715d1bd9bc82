"""What Ctrl-C and the signals to end do to the terminal's own thread.

Theory: Python runs signal handlers in the main thread, between any two steps of it. To raise there is safe only where
whatever the step has just done may be lost; elsewhere a signal becomes a message. Where nobody listens it is kept for
the next who does.
Editing rule: a place that may wait for long, for a person or a model, listens; clean-up never does.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn, TypeAlias

import attrs

TO_END = (signal.SIGTERM, signal.SIGHUP)
NUDGE = signal.SIGUSR1
# Seconds until each nudge. The first will do but on a machine that is busy with something else.
NUDGE_DELAYS = (0.02, 0.1, 0.5)


class Ended(BaseException):
    """A signal asks the program to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


Interrupt: TypeAlias = KeyboardInterrupt | Ended
Tell: TypeAlias = Callable[[Interrupt], None]


@attrs.define
class Signals:
    """The handlers of SIGINT, SIGTERM and SIGHUP, while ``handled`` lasts."""

    _tell: Tell | None = None
    _to_end: int | None = None
    _is_interrupted: bool = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within; what comes out as ``KeyboardInterrupt`` or ``Ended`` becomes an exit status.

        A signal that is ignored from the start, as ``nohup`` does it, stays ignored.

        Raises:
            SystemExit: 128 and the signal's number, as a shell counts it.
        """
        heeded = [signum for signum in (signal.SIGINT, *TO_END) if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, self._on_signal) for signum in heeded}
        try:
            with _noticed():
                yield
        except KeyboardInterrupt as exc:
            raise SystemExit(128 + signal.SIGINT) from exc
        except Ended as exc:
            raise SystemExit(128 + exc.signum) from exc
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextmanager
    def told(self, tell: Tell) -> Iterator[None]:
        """Give each signal to *tell*, which runs in the middle of anything; first one that nobody has heard."""
        before, self._tell = self._tell, tell
        try:
            if self._to_end is not None:
                tell(Ended(self._to_end))
            elif self._is_interrupted:
                self._is_interrupted = False
                tell(KeyboardInterrupt())
            yield
        finally:
            self._tell = before

    def raised(self) -> AbstractContextManager[None]:
        """
        Raises:
            KeyboardInterrupt: Ctrl-C.
            Ended: the program is to end.
        """
        return self.told(self._raise)

    def pass_over(self) -> None:
        """A Ctrl-C that nobody has heard was meant for something that is over."""
        self._is_interrupted = False

    @contextmanager
    def deadly(self) -> Iterator[None]:
        """Whoever signals within does not want to wait for what is done there: the signal kills."""
        handlers = {
            signum: signal.signal(signum, signal.SIG_DFL)
            for signum in (signal.SIGINT, *TO_END)
            if signal.getsignal(signum) == self._on_signal
        }
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGINT:
            self._to_end = signum
            # In the background giving the terminal back would stop us, and a stopped program does not end.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        if self._tell is None:
            self._is_interrupted = signum == signal.SIGINT
        else:
            self._tell(KeyboardInterrupt() if signum == signal.SIGINT else Ended(signum))

    def _raise(self, interrupt: Interrupt) -> NoReturn:
        self._tell = None  # whoever deals with this one is not to be interrupted by the next
        raise interrupt


@contextmanager
def _noticed() -> Iterator[None]:
    """Have each signal's handler run soon.

    Python runs it when the main thread comes back from whatever it does in C. A signal that arrives in the moment
    before that begins to wait, for a key or for a lock, would be noticed after the wait; a nudge interrupts it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(NUDGE, lambda signum, frame: None)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    is_over = threading.Event()
    thread = threading.Thread(target=_nudge, args=[reader, is_over], name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        is_over.set()
        writer.close()
        thread.join()
        reader.close()
        signal.signal(NUDGE, before)


def _nudge(reader: socket.socket, is_over: threading.Event) -> None:
    """Read the numbers of the signals that arrive, until there will be no more."""
    main = threading.main_thread().ident
    assert main is not None
    while number := reader.recv(1):
        for delay in NUDGE_DELAYS if number[0] != NUDGE else ():
            if not is_over.wait(delay):
                signal.pthread_kill(main, NUDGE)
