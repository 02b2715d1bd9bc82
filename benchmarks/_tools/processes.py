"""Processes: started on chosen cores, held still while others are measured, and looked at through /proc.

Theory: a server is a tree of processes in a session of its own. What it costs is read from /proc for the whole tree.
Editing rule: nothing here knows what runs; whoever starts a process stops it, by way of ``Process.stop``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from .values import BenchmarkError

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STOP_TIMEOUT = 5.0
POLL_DELAY = 0.02
SHOWN_OF_LOG = 1500
ADDRESS = re.compile(r"(?:Serving|Running on) http://[^\s/]+:(\d+)")


@attrs.frozen
class Memory:
    """Bytes of a tree: resident, and resident with shared pages divided among those who share them."""

    rss: int
    pss: int


@attrs.define
class Process:
    """A running process with all that come from it. ``start`` makes one."""

    popen: subprocess.Popen[bytes]
    log: Path

    def pids(self) -> list[int]:
        """The process itself first."""
        found = [self.popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    found += map(int, children.read_text().split())
        return found

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let it run for as long as the block lasts."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def _signal(self, signum: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def cpu_seconds(self) -> float:
        """Processor time so far, of all that are alive."""
        return sum(self.cpu_of_each().values())

    def cpu_of_each(self) -> dict[int, float]:
        """{process id: its processor time so far}"""
        return {pid: _cpu_ticks(pid) / TICKS for pid in self.pids()}

    def memory(self) -> Memory:
        return _memory(self.pids())

    def resident(self) -> int:
        """Bytes as in ``memory().rss``, without asking the kernel to look at each page."""
        return sum(_resident_pages(pid) for pid in self.pids()) * PAGE

    def memory_of_largest(self) -> Memory:
        """Of the one process of the tree that has most: the worker, where a master and helpers are with it."""
        return max((_memory([pid]) for pid in self.pids()), key=lambda memory: memory.rss)

    def pin(self, cores: Collection[int]) -> None:
        """Move all of it, every thread, to these cores."""
        for pid in self.pids():
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), cores)

    def wait_address(self, timeout: float, workers: int = 1) -> int:
        """The port that it says it serves, once each of its workers has said so: one that is held still in the middle
        of its start would fail when it goes on.

        Raises:
            BenchmarkError: it ended, or said nothing for so long.
        """
        ends_at = time.monotonic() + timeout
        while time.monotonic() < ends_at and self.popen.poll() is None:
            ports = ADDRESS.findall(self.said())
            if len(ports) >= workers:
                return int(ports[0])
            time.sleep(POLL_DELAY)
        raise BenchmarkError(f"{self.popen.args!r} does not serve; it said: {self.said()[-SHOWN_OF_LOG:]}")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        """Ask it to end, and make it."""
        group = self.popen.pid
        if self.popen.poll() is None:
            self.resume()
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.popen.wait()


def start(
    command: Sequence[str | Path], *, cores: Collection[int], folder: Path, environment: Mapping[str, str], log: Path
) -> Process:
    """Start *command* in *folder*; what it says goes to *log*."""
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    return Process(popen, log)


def _cpu_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])  # proc(5): utime and stime, the 14th and 15th


def _resident_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def _memory(pids: Sequence[int]) -> Memory:
    rss = pss = 0
    for pid in pids:
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            rss += _kilobytes(text, "Rss:") * 1024
            pss += _kilobytes(text, "Pss:") * 1024
    return Memory(rss, pss)


def _kilobytes(text: str, name: str) -> int:
    match = re.search(rf"^{name}\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) if match else 0
