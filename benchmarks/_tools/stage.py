"""Where all servers of a run stand: which cores are whose, and the one upstream.

Theory: all servers of a run are up at the same time and are held still (SIGSTOP) but for the one that is measured. The
server has the first core for itself; the load and the upstream share the others.
Editing rule: nothing here knows what a server is, or how it is measured.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from .loads import Generator, ask_once, request
from .processes import Process, start
from .values import BenchmarkError, Settings

UPSTREAM = Path(__file__).with_name("upstream.py")
START_TIMEOUT = 60.0
ASK_DELAY = 0.1


@attrs.frozen
class Cores:
    """Numbers of processor cores: the server's, and those of load and upstream. With one core all is one."""

    server: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> Cores:
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset([first]), frozenset(others or [first]))

    @property
    def are_apart(self) -> bool:
        return not self.server & self.load

    def two_for_server(self) -> Cores:
        """Two cores for the server; load and upstream have the rest, or, where there is none, share these two."""
        first, second, *others = sorted(self.server | self.load)
        return Cores(frozenset([first, second]), frozenset(others or [first, second]))


@attrs.frozen
class Server:
    """A server that is up, and what it is to be asked; None for the plain request."""

    process: Process
    port: int
    requests: Sequence[str] | None = None


@attrs.define
class Stage:
    """The servers of one run. ``open_stage`` makes it."""

    settings: Settings
    cores: Cores
    folder: Path
    stack: ExitStack
    _servers: dict[str, Server] = attrs.field(factory=dict)

    @property
    def generator(self) -> Generator:
        return Generator(self.cores.load, self.settings.generator)

    @property
    def upstream(self) -> Server:
        """The model server that all gateways ask. It is never held still."""
        if "upstream" not in self._servers:
            process = self.start("upstream", [sys.executable, UPSTREAM], cores=self.cores.load)
            self._servers["upstream"] = Server(process, process.wait_address(START_TIMEOUT))
        return self._servers["upstream"]

    def shared(self, name: str, make: Callable[[Stage], Server]) -> Server:
        """The server of that *name*, which several questions may ask; *make* starts it where nobody has."""
        if name not in self._servers:
            self._servers[name] = make(self)
        return self._servers[name]

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        cores: Collection[int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a process that ends with the stage at the latest, in a folder of its own."""
        folder = self.home(name)
        process = start(
            command,
            cores=self.cores.server if cores is None else cores,
            folder=folder,
            environment={**clean_environment(), "HOME": str(folder), **(environment or {})},
            log=self.folder / f"{name}.log",
        )
        self.stack.callback(process.stop)
        return process

    def serve(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        port: int | None = None,
        requests: Sequence[str] | None = None,
        cores: Collection[int] | None = None,
        environment: Mapping[str, str] | None = None,
        timeout: float = START_TIMEOUT,
        workers: int = 1,
    ) -> Server:
        """Start a server, wait until it has answered once, and hold it still.

        Args:
            port: None where it says itself where it listens.

        Raises:
            BenchmarkError: it did not within *timeout* seconds.
        """
        process = self.start(name, command, cores=cores, environment=environment)
        try:
            port = process.wait_address(timeout, workers) if port is None else port
            wait_answer(process, port, (requests or [request()])[0], timeout)
        except BaseException:
            process.stop()
            raise
        process.pause()
        return Server(process, port, requests)

    def home(self, name: str) -> Path:
        """The folder of the process of that *name*."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return folder


@contextmanager
def open_stage(settings: Settings) -> Iterator[Stage]:
    """An empty stage; leaving it ends all that was started on it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cores, ours = Cores.of_this_machine(), os.sched_getaffinity(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a turn takes two of the gateway's descriptors
    os.sched_setaffinity(0, cores.load)
    try:
        with tempfile.TemporaryDirectory(prefix="picoclaw-benchmarks-") as folder, ExitStack() as stack:
            yield Stage(settings, cores, Path(folder), stack)
    finally:
        os.sched_setaffinity(0, ours)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def clean_environment() -> dict[str, str]:
    """This process's environment without what would make a server another one than its configuration says."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("PICOCLAW_", "PYTHONDONTWRITEBYTECODE"))
    }


def wait_answer(process: Process, port: int, text: str, timeout: float) -> None:
    """Return when the server has answered the request *text* with 200.

    Raises:
        BenchmarkError: it ended, or did not for so long.
    """
    ends_at, status = time.monotonic() + timeout, 0
    while time.monotonic() < ends_at and process.popen.poll() is None:
        try:
            status = ask_once(port, text, timeout)
        except OSError:
            status = 0
        if status == 200:
            return
        time.sleep(ASK_DELAY)
    raise BenchmarkError(f"a server does not answer with 200 but {status}; it said: {process.said()[-1500:]}")
