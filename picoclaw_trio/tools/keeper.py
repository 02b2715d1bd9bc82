"""The keeper of one program: starts it within bounds, and sees to it that nothing that came from it is left.

Theory: a process of its own, so that it outlives a gateway that is killed. As a subreaper (prctl 2) it becomes the
parent of every descendant whose own parent has gone, daemons too; so once it has no child at all, there is no
descendant, and nothing else counts as proof. A socket is its only tie to the gateway: an order comes in, a report goes
out, and when the gateway closes its end or dies, everything is ended. Nothing gains rights by being executed
(no_new_privs), so all of it can be killed.
Editing rule: run as a file, once for each call, under ``python -I -S``: no import of ours, and none that takes long.
One thread; the way out always leads through ``Family.end``. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

TICK = 0.02  # between two counts of the processes
GRACE = 1.0  # what a program gets to put its things in order after SIGTERM
REMOVE_TIMEOUT = 3.0  # of temporary files
MAX_OPEN_FILES, MIB = 1024, 1024 * 1024
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    control, folder = map(int, sys.argv[1:])
    for fd in (control, folder):
        os.set_inheritable(fd, False)
    order = json.loads(_read_line(control))
    for option in (PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS):
        _prctl(option, 1)
    try:
        report = _keep(order, control, folder)
    except OSError as exc:  # out of processes, of memory, of space for the temporary folder
        report = {"errno": exc.errno}
    with suppress(OSError):  # nobody is left to read it
        os.write(control, json.dumps(report).encode())


def _keep(order: Mapping[str, Any], control: int, folder: int) -> dict[str, Any]:
    """Start the program, wait for its end or bring it about; gives what became of it."""
    temporary = f"{order['temporary']}/picoclaw-{os.urandom(8).hex()}"
    os.mkdir(temporary, 0o700)
    family = Family(control)
    try:
        failure = family.start(order, folder, temporary)
        if failure:
            return {"errno": failure}
        ended = family.watch(order["timeout"], order["processes"])
    finally:
        family.end()
        _remove_tree(temporary)
    return {"status": family.status, "ended": ended}


class Family:
    """The program and all that comes from it."""

    def __init__(self, control: int) -> None:
        self.program = 0
        self.status: int | None = None  # of the program, as waitpid gives it
        self._strangers = set(_pids())  # they were here before us, so counting need not look at them again
        self._wake, wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake, False)
        # Handlers that do nothing, and not SIG_IGN, which a program would inherit.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._control = control
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(control, select.POLLIN)

    def start(self, order: Mapping[str, Any], folder: int, temporary: str) -> int:
        """Start the program; gives the errno of why that was impossible, else 0."""
        keeper, (reader, writer) = os.getpid(), os.pipe()
        self.program = os.fork()
        if self.program == 0:
            _become_program(order, folder, temporary, keeper, writer)
        os.close(writer)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):  # only the program and what it starts hold its streams now, so that their ends are seen
            os.dup2(null, fd)
        failure = os.read(reader, 16)  # nothing, if it was executed
        os.close(reader)
        return int(failure or b"0")

    def watch(self, timeout: float, max_processes: int) -> str | None:
        """Wait until the program has ended; gives why it was ended, None if it came to its end by itself."""
        reason = self._wait(time.monotonic() + timeout, max_processes)
        self._poll.unregister(self._control)
        if reason in ("timeout", "told"):
            with suppress(ProcessLookupError):
                os.killpg(self.program, signal.SIGTERM)
            self._wait(time.monotonic() + GRACE, max_processes)
        return reason

    def _wait(self, deadline: float, max_processes: int) -> str | None:
        while True:
            self._reap()
            if self.status is not None:
                return None
            if time.monotonic() > deadline:
                return "timeout"
            if self._count() > max_processes:
                return "processes"
            if self._is_told(TICK):
                return "told"

    def end(self) -> None:
        """Kill everything until nothing is left."""
        while self._reap():
            parents = {pid: _parent(pid) for pid in _pids()}
            ours = _descendants(parents)
            for pid in ours | _own_children():
                _kill(pid, parents.get(pid, os.getpid()), ours)
            # Woken by each end. The limit is for children of children, whose ends wake nobody here.
            self._is_told(TICK / 4)

    def _is_told(self, timeout: float) -> bool:
        """Wait for a signal or the gateway; True if the gateway has spoken, has closed its end or has gone."""
        ready = {fd for fd, _ in self._poll.poll(timeout * 1000)}
        if self._wake in ready:
            os.read(self._wake, 512)
        return self._control in ready

    def _reap(self) -> bool:
        """Take leave of the dead; False if there is no child left, dead or alive."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.program:
                self.status = status

    def _count(self) -> int:
        listed = set(_pids())
        self._strangers &= listed
        return len(_descendants({pid: _parent(pid) for pid in listed - self._strangers}))


def _become_program(order: Mapping[str, Any], folder: int, temporary: str, keeper: int, writer: int) -> NoReturn:
    """Turn this fork into the program; its errno goes to *writer* if that is impossible."""
    try:
        os.setsid()
        os.fchdir(folder)
        os.umask(0o077)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # killed before that was asked for
            os._exit(127)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        _stand_back()
        _set_limits(order)
        environment = {**order["environment"], "TMPDIR": temporary}
        os.execve(order["program"], [order["name"], *order["args"]], environment)  # noqa: S606 - no shell is the point
    except OSError as exc:
        os.write(writer, str(exc.errno).encode())
    finally:
        os._exit(127)


def _stand_back() -> None:
    """Be the last to get a busy processor, and the first to go when memory is short. Neither is vital."""
    with suppress(OSError):
        os.nice(5)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _set_limits(order: Mapping[str, Any]) -> None:
    for limit, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
        (resource.RLIMIT_FSIZE, order["file_mb"] * MIB, order["file_mb"] * MIB),
        (resource.RLIMIT_CPU, order["cpu"], order["cpu"] + 1),  # SIGXCPU, then SIGKILL
        (resource.RLIMIT_AS, order["memory_mb"] * MIB, order["memory_mb"] * MIB),
    ):
        _limit(limit, soft, hard)
    if os.getuid() != 0:  # who is bound by it
        most = _tasks_of_user() + order["user_tasks"]
        _limit(resource.RLIMIT_NPROC, most, most)


def _limit(limit: int, soft: int, hard: int) -> None:
    """Set a limit, or as much of it as is still allowed."""
    highest = resource.getrlimit(limit)[1]
    most = highest if highest != resource.RLIM_INFINITY else hard
    resource.setrlimit(limit, (min(soft, most), min(hard, most)))


def _tasks_of_user() -> int:
    """How many threads the user has now; the system bounds those of all programs of a user together."""
    count = 0
    for pid in _pids():
        with suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int:
    """The parent of a process; 0 if there is none, or no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _descendants(parents: Mapping[int, int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, to_visit = set(), [os.getpid()]
    while to_visit:
        more = children.get(to_visit.pop(), [])
        found.update(more)
        to_visit += more
    return found


def _own_children() -> set[int]:
    """The keeper's children, also those that /proc hides from their own user, where the system tells them."""
    with suppress(OSError), open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return set(map(int, file.read().split()))
    return set()


def _kill(pid: int, parent: int, ours: set[int]) -> None:
    """Kill one of ours. The number of a child of a child may mean another process by now, so that is looked at.

    Where the system knows no pidfd, such a one is killed as soon as its parent's death has made it our own child.
    """
    with suppress(OSError, AttributeError):
        if parent == os.getpid():  # nobody but us can have freed its number
            return os.kill(pid, signal.SIGKILL)
        handle = os.pidfd_open(pid)
        try:
            if _parent(pid) in ours | {os.getpid()}:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, as far as it goes in a few seconds; links are not followed."""
    deadline = time.monotonic() + REMOVE_TIMEOUT
    with suppress(OSError, RecursionError):
        for _, folders, files, folder in os.fwalk(path, topdown=False):
            for name in files + folders:  # a link to a folder is among the folders
                _remove(name, folder)
            if time.monotonic() > deadline:
                return
        os.rmdir(path)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.rmdir(name, dir_fd=folder)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 65536)
        if not piece:
            raise SystemExit  # the gateway has gone, or has been told to give up, before it gave an order
        line += piece
    return line


if __name__ == "__main__":
    main()
