"""The tool exec: what may be run, within which bounds, and that nothing of it is left, however it ends."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.config import AgentDefaults, AgentsConfig, Config
from picoclaw_trio.config.tools import AllowConfig, ExecConfig, ToolsConfig
from picoclaw_trio.tools import Tool, ToolError, open_tools
from picoclaw_trio.tools.output import Output, share
from picoclaw_trio.tools.programs import MAX_AT_ONCE, PATH, exec_tool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux only")

PYTHON = sys.executable
GONE_TIMEOUT = 10.0


@attrs.frozen
class Runner:
    """The tool in a workspace of its own, with Python and some small programs."""

    workspace: Path
    tool: Tool

    async def __call__(self, program: str, *args: str, **arguments: Any) -> str:
        with trio.fail_after(60):
            return await self.tool.run({"program": program, "args": list(args), **arguments})

    async def error(self, program: str, *args: str, **arguments: Any) -> str:
        with pytest.raises(ToolError) as caught:
            await self(program, *args, **arguments)
        return str(caught.value)

    async def python(self, code: str, *args: str, **arguments: Any) -> str:
        """Run *code* as a file of the workspace, so that its processes can be told by their command line."""
        path = self.workspace / "code.py"
        path.write_text(code)
        return await self(PYTHON, str(path), *args, **arguments)

    def living(self) -> list[int]:
        """Processes whose command line names the workspace."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_here(pid)]

    def _is_here(self, pid: int) -> bool:
        try:
            return str(self.workspace).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, which is empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [] == list(folder.iterdir())


@pytest.fixture
def make_runner(tmp_path: Path, temporary: Path) -> Callable[..., Runner]:
    def make(*programs: str, **config: Any) -> Runner:
        workspace = tmp_path / "workspace"
        workspace.mkdir(exist_ok=True)
        listed = ("ls", "echo", "cat", "env", "sleep", PYTHON, *programs)
        return Runner(workspace, exec_tool(ExecConfig(programs=listed, **config), workspace))

    return make


@pytest.fixture
def run(make_runner: Callable[..., Runner]) -> Runner:
    return make_runner()


async def appears(path: Path) -> str:
    """Wait until a process has written a whole line to *path*, and give it."""
    with trio.fail_after(GONE_TIMEOUT):
        while not content(path).endswith("\n"):
            await trio.sleep(0.01)  # what another process does sets no event here
    return content(path)


def content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def check_gone(runner: Runner, *pids: int) -> None:
    """Wait until no process of the workspace is left, nor one of *pids*, where nobody here waits for them."""
    with trio.fail_after(GONE_TIMEOUT):
        while runner.living() or any(map(is_alive, pids)):
            await trio.sleep(0.01)  # what another process does sets no event here


# What may be run


async def test_program_of_the_list_is_run_with_its_arguments(run: Runner) -> None:
    assert "exit status: 0\nstdout:\na b -n\n" == await run("echo", "a b", "-n")
    assert "exit status: 0" == await run(PYTHON, "-c", "")


@pytest.mark.parametrize(
    "program",
    [
        "rm",
        "/bin/ls",
        "/usr/bin/../bin/ls",
        "./ls",
        "../workspace/ls",
        "~/ls",
        "ls ",
        "ls\0",
        "ls;id",
        "ls\n",
        "LS",
        "",
        "/",
    ],
)
async def test_nothing_else_is_run(run: Runner, program: str) -> None:
    (run.workspace / "ls").write_text("#!/bin/sh\necho planted\n")
    (run.workspace / "ls").chmod(0o755)

    assert "is not one of the programs that may be run: ls, echo, cat" in await run.error(program)


async def test_without_a_list_nothing_is_run(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="may be run: none"):
        await exec_tool(ExecConfig(), tmp_path).run({"program": "ls"})


async def test_planted_program_is_not_found(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_runner().workspace
    for name in ("ls", "planted"):
        (workspace / name).write_text("#!/bin/sh\necho planted\n")
        (workspace / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{workspace}:.:{os.environ['PATH']}")
    monkeypatch.chdir(workspace)
    run = make_runner("planted", str(workspace / "planted"))

    assert "code" not in await run("ls", "-d", "ls")
    assert "exit status: 0\nstdout:\nls\n" == await run("ls", "-d", "ls")
    assert '"planted" cannot be run on this host' == await run.error("planted")
    assert "cannot be run on this host" in await run.error(str(workspace / "planted"))


async def test_link_into_the_workspace_is_not_run(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    workspace = make_runner().workspace
    (workspace / "planted").write_text("#!/bin/sh\necho planted\n")
    (workspace / "planted").chmod(0o755)
    (tmp_path / "link").symlink_to(workspace / "planted")

    assert "cannot be run on this host" in await make_runner(str(tmp_path / "link")).error(str(tmp_path / "link"))


@pytest.mark.parametrize(
    "text", ["; id", "$(id)", "`id`", "| id", "&& id", "> out", "*", "$HOME", "~", "a\nid", "\\", "'", '"']
)
async def test_what_a_shell_would_understand_stays_text(run: Runner, text: str) -> None:
    assert f"exit status: 0\nstdout:\n{text}\n" == await run("echo", text)
    assert [] == list(run.workspace.iterdir())


async def test_arguments_are_checked(run: Runner) -> None:
    assert 'the argument "args" must be a list of strings, not a string' == await error_of(run, args="a b")
    assert 'the argument "args[1]" must be a string, not a number' == await error_of(run, args=["a", 1])
    assert 'the argument "args[0]" must not have a NUL' == await error_of(run, args=["a\0"])
    assert "131072 are possible" in await error_of(run, args=["a" * 60_000] * 3)
    assert 'the argument "timeout" must be at most 60' == await error_of(run, timeout=61)
    assert 'there is no argument "command"' in await error_of(run, command="ls")
    assert "must be between" in await error_of(run, timeout=0)


async def error_of(run: Runner, **arguments: Any) -> str:
    with pytest.raises(ToolError) as caught:
        await run.tool.run({"program": "ls", **arguments})
    return str(caught.value)


async def test_what_the_system_cannot_execute_is_an_error(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    path = tmp_path / "nonsense"
    path.write_text("nonsense")
    path.chmod(0o755)
    run = make_runner(str(path))

    assert f'"{path}" could not be started: exec format error' == await run.error(str(path))


# Where, with what


async def test_first_program_makes_the_workspace(run: Runner) -> None:
    run.workspace.rmdir()

    assert "there is no such file or folder" in await run.error("echo", folder="notes")
    assert not run.workspace.exists()
    assert "exit status: 0\nstdout:\nHello\n" == await run("echo", "Hello")
    assert 0o700 == stat.S_IMODE(run.workspace.stat().st_mode)


async def test_program_runs_in_a_folder_of_the_workspace(run: Runner, tmp_path: Path) -> None:
    (run.workspace / "notes").mkdir()
    (run.workspace / "link").symlink_to(tmp_path)
    code = "import os; print(os.getcwd())"

    assert f"exit status: 0\nstdout:\n{run.workspace}\n" == await run(PYTHON, "-c", code)
    assert f"exit status: 0\nstdout:\n{run.workspace}/notes\n" == await run(PYTHON, "-c", code, folder="notes")
    for folder in ("..", "link", "/", "missing", "notes/..", "/proc/self/cwd"):
        assert folder in await run.error(PYTHON, "-c", code, folder=folder)


async def test_environment_holds_nothing_that_was_not_named(
    make_runner: Callable[..., Runner], temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS", "OPENAI_API_KEY", "LD_PRELOAD", "PYTHONPATH", "OTHER"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.delenv("LANG", raising=False)
    run = make_runner(environment=("TZ", "MISSING"))

    head, *lines = (await run("env")).removesuffix("\n").split("\n")
    seen = dict(line.partition("=")[::2] for line in lines[1:])
    assert seen.pop("TMPDIR").startswith(f"{temporary}/picoclaw-")
    assert "exit status: 0" == head
    assert {"PATH": PATH, "HOME": str(run.workspace), "LANG": "C.UTF-8", "TZ": "Asia/Tokyo"} == seen


async def test_keeper_has_no_secret_either(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    code = (
        "import os; print(open(f'/proc/{os.getppid()}/environ').read(), open(f'/proc/{os.getppid()}/cmdline').read())"
    )
    assert "secret" not in await run(PYTHON, "-c", code)


async def test_temporary_files_are_removed(run: Runner) -> None:
    code = """
import os, sys, tempfile
folder = tempfile.mkdtemp()
open(folder + "/a", "w").close()
os.symlink(sys.argv[1], folder + "/link")
os.makedirs(folder + "/b/c")
print(tempfile.gettempdir())
"""
    (run.workspace / "kept").touch()
    said = await run.python(code, str(run.workspace))
    folder = said.split("\n")[2]

    assert os.path.basename(folder).startswith("picoclaw-")
    assert not is_there(folder)
    assert (run.workspace / "kept").exists()


async def test_input_is_given_and_ends(run: Runner) -> None:
    assert "exit status: 0\nstdout:\nä\nb" == await run("cat", input="ä\nb")
    assert "exit status: 0" == await run("cat", input="")
    assert "exit status: 0" == await run("cat")


async def test_input_that_is_not_read_does_no_harm(run: Runner) -> None:
    assert "exit status: 0\nstdout:\nhere\n" == await run("echo", "here", input="x" * 1_000_000)


async def test_descriptors_of_the_gateway_are_not_inherited(run: Runner) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        said = await run("ls", "/proc/self/fd")
    finally:
        os.close(reader)
        os.close(writer)
    assert "exit status: 0\nstdout:\n0\n1\n2\n3\n" == said  # 3 is ls reading that folder


# How it ended


async def test_streams_are_labelled_and_the_status_is_told(run: Runner) -> None:
    said = await run.python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert "exit status: 7\nstdout:\nout\n\nstderr:\nerr\n" == said


async def test_bytes_that_are_no_text_are_replaced(run: Runner) -> None:
    said = await run.python("import sys; sys.stdout.buffer.write(b'a\\xffb\\xe2\\x82')")
    assert "exit status: 0\nstdout:\na\ufffdb\ufffd" == said


async def test_signal_is_told_by_name(run: Runner) -> None:
    said = await run.python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert "ended by signal SIGSEGV" == said


async def test_signals_have_their_defaults(run: Runner) -> None:
    said = await run("cat", "/proc/self/status")
    assert re.search(r"SigBlk:\s+0{16}\nSigIgn:\s+0{16}\n", said)


# Bounds


async def test_output_is_bounded_and_counted(make_runner: Callable[..., Runner]) -> None:
    run = make_runner(max_output_chars=100)
    said = await run.python("print('a' * 60 + 'b' * 1000 + 'z' * 60, end='')")
    left = 1120 - 100
    assert f"exit status: 0\nstdout:\n{'a' * 50}\n[… {left} characters are left out here …]\n{'z' * 50}" == said


async def test_huge_output_costs_little_memory(run: Runner) -> None:
    code = "import sys\nfor _ in range(1600): sys.stdout.write('x' * 65536)\nprint('end', file=sys.stderr)"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = await run.python(code)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    assert f"[… {1600 * 65536 - 9996} characters are left out here …]" in said
    assert said.endswith("stderr:\nend\n")


@pytest.mark.slow
async def test_output_without_end_is_ended(make_runner: Callable[..., Runner]) -> None:
    run = make_runner("yes")
    assert (await run("yes")).startswith("ended: it wrote more than 1073741824 bytes\nstdout:\ny\ny\n")


@given(first=st.text(max_size=60), second=st.text(max_size=60), most=st.integers(1, 50), step=st.integers(1, 7))
def test_shared_output_keeps_to_its_bound(first: str, second: str, most: int, step: int) -> None:
    def kept(text: str) -> Output:
        output, data = Output(most), text.encode()
        for start in range(0, len(data), step):
            output.add(data[start : start + step])
        output.add(b"", final=True)
        return output

    shown = share(kept(first), kept(second), most)
    without = [re.sub(r"\n\[… \d+ characters are left out here …\]\n", "", text) for text in shown]
    assert len(without[0]) + len(without[1]) <= most
    if len(first) + len(second) <= most:
        assert (first, second) == shown
    else:
        assert most == len(without[0]) + len(without[1])


async def test_program_that_runs_too_long_is_ended(make_runner: Callable[..., Runner]) -> None:
    run = make_runner(timeout=2)
    assert "ended: it was still running after 2 s\nstdout:\nbegun\n" == await run.python(
        "import time; print('begun', flush=True); time.sleep(60)"
    )
    assert "ended: it was still running after 0.2 s" == await run("sleep", "60", timeout=0.2)
    assert [] == run.living()


async def test_sigterm_comes_first(run: Runner) -> None:
    code = """
import signal, sys, time
def stop(*_):
    print("tidied up", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
    said = await run.python(code, timeout=3)
    assert "ended: it was still running after 3 s\nstdout:\nready\ntidied up\n" == said


async def test_memory_is_bounded(make_runner: Callable[..., Runner]) -> None:
    said = await make_runner(max_memory_mb=256).python("bytearray(512 * 1024 * 1024)")
    assert said.startswith("exit status: 1\nstderr:\n")
    assert "MemoryError" in said


async def test_processor_time_is_bounded(make_runner: Callable[..., Runner]) -> None:
    said = await make_runner(max_cpu_seconds=1).python("while True: pass")
    assert "ended by signal SIGXCPU: more than 1 s of processor time" == said


async def test_files_are_bounded(make_runner: Callable[..., Runner]) -> None:
    code = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
fd = os.open("big", os.O_WRONLY | os.O_CREAT)
while True: os.write(fd, bytes(1 << 20))
"""
    run = make_runner(max_file_mb=2)
    assert "ended by signal SIGXFSZ: a file of more than 2 MiB" == await run.python(code)
    assert 2 * 1024 * 1024 == (run.workspace / "big").stat().st_size


async def test_limits_cannot_be_raised_and_no_rights_gained(run: Runner) -> None:
    said = await run("cat", "/proc/self/limits", "/proc/self/status")
    assert re.search(r"Max core file size +0 +0 ", said)
    assert re.search(r"Max open files +1024 +1024 ", said)
    assert "NoNewPrivs:\t1" in said


# Both end by themselves after some 100 processes, so that a failing test does not harm the machine.
BOMBS = {
    "many children": "import os, time\nfor _ in range(100):\n    if os.fork() == 0: break\ntime.sleep(60)",
    "children of children": "import os, time\nfor _ in range(7): os.fork()\ntime.sleep(60)",
    "daemons": """
import os, time
for _ in range(60):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        break
time.sleep(60)
""",
}


@pytest.mark.parametrize("code", BOMBS.values(), ids=list(BOMBS))
async def test_program_that_multiplies_is_ended(make_runner: Callable[..., Runner], code: str) -> None:
    run = make_runner(max_processes=10)
    said = await run.python(code)
    # Whoever is not root may meet the system's own limit before the processes are counted.
    is_refused = os.getuid() != 0 and os.strerror(errno.EAGAIN) in said
    assert is_refused or said == "ended: there were more than 10 processes"
    assert [] == run.living()


async def test_as_many_processes_as_allowed_may_run(make_runner: Callable[..., Runner]) -> None:
    code = """
import os, time
for _ in range(9):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
for _ in range(9): os.wait()
"""
    assert "exit status: 0" == await make_runner(max_processes=10).python(code)


async def test_programs_run_side_by_side(run: Runner) -> None:
    said: list[str] = []

    async def run_one(number: int) -> None:
        said.append(await run("echo", str(number)))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(run_one, number)
    assert {f"exit status: 0\nstdout:\n{number}\n" for number in range(20)} == set(said)


# What is left: nothing

# Refuses to go, and leaves a daemon that does, too: forked twice, in a session of its own, without our streams.
STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    os.setsid()
    os.chdir("/")
    for fd in (0, 1, 2): os.close(fd)
    os.write(writer, f"{os.getpid()}\\n".encode())
    time.sleep(60)
    os._exit(0)
daemon = os.read(reader, 20).decode()
with open(sys.argv[1], "w") as file: file.write(f"{os.getpid()} {daemon}")
time.sleep(float(sys.argv[2]))
"""


def pids_of(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def is_alive(pid: int) -> bool:
    return is_there(f"/proc/{pid}")


def is_there(path: str) -> bool:
    return os.path.lexists(path)


async def test_daemon_does_not_outlive_its_program(run: Runner) -> None:
    assert "exit status: 0" == await run.python(STUBBORN, "pids", "0")
    assert [False, False] == [is_alive(pid) for pid in pids_of((run.workspace / "pids").read_text())]


async def test_timeout_ends_a_program_that_refuses_and_its_daemon(run: Runner) -> None:
    assert "ended: it was still running after 3 s" == await run.python(STUBBORN, "pids", "60", timeout=3)
    assert [False, False] == [is_alive(pid) for pid in pids_of((run.workspace / "pids").read_text())]


async def test_cancellation_ends_a_program_that_refuses_and_its_daemon(run: Runner) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run.python, STUBBORN, "pids", "60"))
        pids = pids_of(await appears(run.workspace / "pids"))
        assert [True, True] == [is_alive(pid) for pid in pids]
        nursery.cancel_scope.cancel()

    assert [False, False] == [is_alive(pid) for pid in pids]


async def test_cancellation_at_any_moment_leaves_nothing(run: Runner) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(12):
        with trio.move_on_after(number * 0.008):
            await run.python("import time; time.sleep(60)")
        assert [] == run.living()
    assert descriptors == len(os.listdir("/proc/self/fd"))


async def test_stopped_program_is_ended(run: Runner) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    assert "ended: it was still running after 0.5 s" == await run.python(code, timeout=0.5)
    assert [] == run.living()


async def test_death_of_the_keeper_is_told_and_ends_the_program(run: Runner, temporary: Path) -> None:
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    path = run.workspace / "code.py"
    path.write_text(code)
    assert "the program was lost: its keeper was killed" == await run.error(PYTHON, str(path))
    await check_gone(run)
    os.rmdir(temporary / os.listdir(temporary)[0])  # who was killed could not remove it


GATEWAY = """
import sys, tempfile, trio
from pathlib import Path
from picoclaw_trio.config.tools import ExecConfig
from picoclaw_trio.tools.programs import exec_tool

workspace, code = Path(sys.argv[1]), sys.argv[2]
tool = exec_tool(ExecConfig(programs=(sys.executable,)), workspace)
tempfile.tempdir = str(workspace.parent / "temporary")
trio.run(tool.run, {"program": sys.executable, "args": [code, "pids", "60"]})
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_death_of_the_gateway_leaves_nothing(run: Runner, temporary: Path, signum: signal.Signals) -> None:
    (run.workspace / "code.py").write_text(STUBBORN)
    command = [PYTHON, "-c", GATEWAY, str(run.workspace), str(run.workspace / "code.py")]
    async with trio.open_nursery() as nursery:
        gateway: trio.Process = await nursery.start(
            partial(trio.run_process, command, check=False, stderr=subprocess.DEVNULL)
        )
        pids = pids_of(await appears(run.workspace / "pids"))
        assert [True, True] == [is_alive(pid) for pid in pids]
        gateway.send_signal(signum)

    await check_gone(run, *pids)
    with trio.fail_after(GONE_TIMEOUT):
        while os.listdir(temporary):
            await trio.sleep(0.01)  # what another process does sets no event here


async def test_programs_at_once_are_counted_over_a_reload(tmp_path: Path) -> None:
    settings = ToolsConfig(allow=AllowConfig(http=("exec",)), exec=ExecConfig(programs=("true",)))
    config = Config(None, tmp_path, agents=AgentsConfig(AgentDefaults(workspace=tmp_path)), tools=settings)
    ended: list[str] = []
    async with open_tools(config) as tools:
        others = [object() for _ in range(MAX_AT_ONCE)]
        for other in others:
            tools.programs.acquire_on_behalf_of_nowait(other)
        reloaded = tools.with_config(config)

        async def run_true() -> None:
            ended.append(await reloaded.built_in["exec"].run({"program": "true"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_true)
            await trio.testing.wait_all_tasks_blocked()
            assert 1 == tools.programs.statistics().tasks_waiting
            tools.programs.release_on_behalf_of(others[0])
        assert ["exit status: 0"] == ended
