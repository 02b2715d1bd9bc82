"""The tool exec: programs from a list, without a shell, in the workspace, within bounds.

Theory: a program is found once, along a fixed path, and run by that full path under a keeper, with an environment of
its own. It runs as the gateway's user and may do to other files whatever that user may: the list is the protection,
and a program that can start others, or is an interpreter, is as good as a shell.
Editing rule: no shell, no search for a program after the start, no variable of our own environment unless it is named.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

from ..config.tools import ExecConfig
from ..shapes import Json
from .arguments import make_tool, number, quoted, text, texts
from .output import share
from .running import MAX_READ_BYTES, Kept
from .sandbox import MAX_PATH_CHARS, Place, Sandbox, real_path
from .values import Tool, ToolError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Programs that run at once, over all turns; others wait in line.
MAX_AT_ONCE = 8
MAX_ARGUMENTS, MAX_ARGUMENT_CHARS, MAX_ALL_ARGUMENTS_BYTES = 1000, 65_536, 131_072
MAX_INPUT_CHARS = 1024 * 1024
MAX_TIMEOUT = 24 * 3600.0

log = logging.getLogger("picoclaw_trio.tools")


def exec_tool(config: ExecConfig, workspace: Path, running: trio.CapacityLimiter | None = None) -> Tool:
    """The tool that runs the programs of *config*, found along a fixed path now, in *workspace*.

    Args:
        running: bounds how many run at once; None: a bound of its own.

    Cancellation: the program and all that came from it have ended before the cancellation goes on.
    """
    description = (
        "Run a program in the workspace and get its output and exit status. There is no shell: no pipes, redirections,"
        f" variables or patterns. At most {config.timeout:g} s. Programs: {', '.join(config.programs) or 'none'}."
    )
    programs = Programs(config, Sandbox(workspace), limiter=running or program_limiter())
    return make_tool("exec", description, Exec, programs.run)


def program_limiter() -> trio.CapacityLimiter:
    """What bounds the programs that run at once, over all tools that it is given to."""
    return trio.CapacityLimiter(MAX_AT_ONCE)


@attrs.frozen
class Exec:
    program: str = text("one of the programs, written as in the tool's description", max_chars=MAX_PATH_CHARS)
    args: tuple[str, ...] = texts(
        "its arguments, each as it is", max_items=MAX_ARGUMENTS, max_chars=MAX_ARGUMENT_CHARS, default=()
    )
    input: str | None = text("what it reads from standard input", max_chars=MAX_INPUT_CHARS, default=None)
    timeout: float | None = number("seconds that it may run", minimum=0.001, maximum=MAX_TIMEOUT, default=None)
    folder: str = text("where it runs, relative to the workspace", max_chars=MAX_PATH_CHARS, default=".")


def find_programs(config: ExecConfig, workspace: Path) -> dict[str, str | None]:
    """{program as configured: its full path, None if it is missing or a model could change it}."""
    found: dict[str, str | None] = {}
    inside = (workspace.absolute(), real_path(workspace))
    for name in config.programs:
        path = shutil.which(name, path=PATH)
        if path is None:
            log.warning("tools.exec.programs: %s is not on this host", name)
        elif any(Path(spelling).is_relative_to(root) for spelling in (path, os.path.realpath(path)) for root in inside):
            log.warning("tools.exec.programs: %s is inside the workspace, where a model could change it", path)
            path = None
        found[name] = path
    return found


@attrs.define
class Programs:
    """Runs programs. ``paths`` is what was found when it was made."""

    config: ExecConfig
    sandbox: Sandbox
    paths: Mapping[str, str | None] = attrs.field(
        default=attrs.Factory(lambda self: find_programs(self.config, self.sandbox.root), takes_self=True)
    )
    limiter: trio.CapacityLimiter = attrs.field(kw_only=True)

    async def run(self, call: Exec) -> str:
        """Run one program to its end.

        Raises:
            ToolError: it could not be started; how it ended is no error, but told.
        """
        order = self._order(call)
        place = self.sandbox.place(call.folder)
        async with self.limiter:
            folder = await trio.to_thread.run_sync(_open_folder, self.sandbox, place)
            try:
                kept = Kept(self.config.max_output_chars)
                report = await kept.run(order, folder, call.input)
            finally:
                os.close(folder)
        return Ending(self.config, kept, report).text(order["timeout"], call.program)

    def _order(self, call: Exec) -> dict[str, Json]:
        """What the keeper is to do; its place is a descriptor."""
        if sys.platform != "linux":
            raise ToolError("programs can be run on Linux only")
        return {
            "program": self._path(call.program),
            "name": call.program,
            "args": _check_args(call.args),
            "timeout": self._timeout(call.timeout),
            "processes": self.config.max_processes,
            "user_tasks": self.config.max_processes * MAX_AT_ONCE,
            "memory_mb": self.config.max_memory_mb,
            "file_mb": self.config.max_file_mb,
            "cpu": self.config.max_cpu_seconds,
            "environment": self._environment(),
            "temporary": tempfile.gettempdir(),
        }

    def _path(self, program: str) -> str:
        if program not in self.paths:
            names = ", ".join(self.paths) or "none"
            raise ToolError(f"{quoted(program)} is not one of the programs that may be run: {names}")
        path = self.paths[program]
        if path is None:
            raise ToolError(f"{quoted(program)} cannot be run on this host")
        return path

    def _timeout(self, asked: float | None) -> float:
        if asked is not None and asked > self.config.timeout:
            raise ToolError(f'the argument "timeout" must be at most {self.config.timeout:g}')
        return asked or self.config.timeout

    def _environment(self) -> dict[str, str]:
        named = {name: os.environ[name] for name in self.config.environment if name in os.environ}
        fixed = {"PATH": PATH, "HOME": str(self.sandbox.root), "LANG": os.environ.get("LANG", "C.UTF-8")}
        return fixed | named


def _check_args(args: tuple[str, ...]) -> list[str]:
    for index, arg in enumerate(args):
        if "\0" in arg:
            raise ToolError(f'the argument "args[{index}]" must not have a NUL')
    size = sum(len(arg.encode()) + 1 for arg in args)
    if size > MAX_ALL_ARGUMENTS_BYTES:
        raise ToolError(f'the argument "args" has {size} bytes; at most {MAX_ALL_ARGUMENTS_BYTES} are possible')
    return list(args)


def _open_folder(sandbox: Sandbox, place: Place) -> int:
    # A program runs before the first file is written, too; other folders are for the model to make.
    with place.explained(), sandbox.open_folder(place, create=not place.names) as folder:
        return os.dup(folder)


@attrs.frozen
class Ending:
    """How a program ended, in words for the model."""

    config: ExecConfig
    kept: Kept
    report: Mapping[str, Json]

    def text(self, timeout: float, program: str) -> str:
        """How it ended, and what it wrote.

        Raises:
            ToolError: it was not even started.
        """
        if "errno" in self.report:
            raise ToolError(f"{quoted(program)} could not be started: {os.strerror(self.report['errno']).lower()}")
        first, second = share(self.kept.stdout, self.kept.stderr, self.config.max_output_chars)
        streams = [f"{name}:\n{shown}" for name, shown in (("stdout", first), ("stderr", second)) if shown]
        return "\n".join([self._how(timeout), *streams])

    def _how(self, timeout: float) -> str:
        if self.kept.is_flooding:
            return f"ended: it wrote more than {MAX_READ_BYTES} bytes"
        if self.report["ended"] == "timeout":
            return f"ended: it was still running after {timeout:g} s"
        if self.report["ended"] == "processes":
            return f"ended: there were more than {self.config.max_processes} processes"
        code = os.waitstatus_to_exitcode(self.report["status"])
        return f"exit status: {code}" if code >= 0 else f"ended by signal {self._signal(-code)}"

    def _signal(self, number: int) -> str:
        reasons: dict[int, str] = {
            signal.SIGXCPU: f": more than {self.config.max_cpu_seconds} s of processor time",
            signal.SIGXFSZ: f": a file of more than {self.config.max_file_mb} MiB",
        }
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return name + reasons.get(number, "")
