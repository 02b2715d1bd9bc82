"""The conversation at a real terminal: keys in, what is shown out."""

from __future__ import annotations

import os
import signal
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from commands import Ran, Terminal, at_terminal, converse, open_terminal, run
from fakes import Exchange, Script, ScriptedUpstream, answers, chunk, error_body, frame, hangs, streams, text_frames
from harness import ask, command, entry, make_config, make_environment, open_client, open_server, write_config
from serving import PATH, wait_until

XTERM = {"TERM": "xterm-256color", "NO_COLOR": ""}
# What a program says to a terminal that is, or is no more, to put the next two around what is pasted.
MARK_PASTES, LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
UP = "\x1b[A"


def says(*pieces: str) -> Script:
    return streams(*text_frames(*pieces))


def calls(*functions: tuple[str, Any], text: str = "") -> Script:
    """A reply that calls these tools."""
    listed = [
        {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(functions)
    ]
    delta = {"role": "assistant", "content": text or None, "tool_calls": listed}
    return streams(frame(chunk(delta)), frame(chunk({}, "tool_calls")), frame(b"[DONE]"))


def prepare(home: Path, upstream: ScriptedUpstream, *scripts: Script, **config: Any) -> None:
    upstream.scripts = scripts or (says("Hello!"),)
    models = make_config(entry("one", upstream.url), entry("two", upstream.url))
    write_config(home, {**models, **config})


def questions(upstream: ScriptedUpstream) -> list[str]:
    """The last message of each request."""
    return [asked.body["messages"][-1]["content"] for asked in upstream.asked]


def said(upstream: ScriptedUpstream, number: int = -1) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in upstream.asked[number].body["messages"]]


async def leave(terminal: Terminal) -> None:
    await terminal.see("> ")
    await terminal.type("\x04")
    assert 0 == await terminal.end()
    assert "Traceback" not in terminal.shown


# Questions of several lines


@pytest.mark.parametrize("name", ["dumb", "xterm-256color"])
@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ("one \\\rtwo\\\rthree\r", "one \ntwo\nthree"),
        ('"""\rone\r\r  two\r"""\r', "one\n\n  two"),
        ("two backslashes\\\\\r", "two backslashes\\\\"),
        ('"""\rone\r\x04', "one"),
        ('"""\r/help\r"""\r', "/help"),
    ],
    ids=["backslash", "block", "two backslashes", "end in a block", "slash in a block"],
)
async def test_question_of_several_lines(
    keys: str, asked: str, name: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", TERM=name) as terminal:
        await terminal.see("> ")
        for line in keys.splitlines(keepends=True):
            await terminal.type(line)
            if line != keys.splitlines(keepends=True)[-1]:
                await terminal.see("\n")
                await terminal.see(". ")
        await terminal.see("Hello!")
        await leave(terminal)
    assert [asked] == questions(upstream)


async def test_pasted_lines_are_one_question(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type(f"Why? {PASTE}/one\r\ttwo\r\rthree\r{PASTED}")
        await terminal.see("three")
        assert [] == upstream.asked
        await terminal.type("\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["Why? /one\n\ttwo\n\nthree"] == questions(upstream)


@pytest.mark.parametrize("environment", [{}, {"PYTHONPATH": "no readline"}], ids=["plain terminal", "no readline"])
async def test_lines_that_come_faster_than_typing_are_one_question(
    environment: dict[str, str], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **without_readline(tmp_path, environment)) as terminal:
        await terminal.see("> ")
        await terminal.type("one\r\rtwo\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["one\n\ntwo"] == questions(upstream)


def without_readline(home: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which Python has no readline, if it is asked for."""
    if "PYTHONPATH" not in environment:
        return environment
    folder = home / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['readline'] = None\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


async def test_pasted_slash_is_no_command(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type(f"{PASTE}/etc/passwd\rWhat is that?{PASTED}\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["/etc/passwd\nWhat is that?"] == questions(upstream)


# History


async def test_question_of_an_earlier_run_comes_back_whole(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type(f"{PASTE}first\rsecond{PASTED}\r")
        await terminal.see("Hello!")
        await terminal.see("> ")
        await terminal.type("third\r")
        await terminal.see("Hello!")
        await leave(terminal)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type(f"{UP}{UP}\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["first\nsecond", "third", "first\nsecond"] == questions(upstream)


async def test_history_is_the_owner_s_and_holds_what_was_typed_once_in_a_row(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    path = tmp_path / ".picoclaw" / "terminal_history"
    path.write_text('"old"\nspoilt\n')
    path.chmod(0o644)
    async with at_terminal(tmp_path, "agent") as terminal:
        for question in ("old", "new", "new", "/show model"):
            await terminal.see("> ")
            await terminal.type(f"{question}\r")
            await terminal.see("\n")
        await leave(terminal)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ['"old"', "spoilt", '"new"', '"/show model"'] == path.read_text().splitlines()


async def test_what_comes_through_a_pipe_is_not_in_the_history(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)

    ran = await run(tmp_path, "agent", typed="first\n")

    assert Ran(0, "Hello!\n", "") == ran
    assert not (tmp_path / ".picoclaw" / "terminal_history").exists()


async def test_history_that_cannot_be_kept_costs_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    (tmp_path / ".picoclaw" / "terminal_history").mkdir()
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("Hello!")
        await leave(terminal)


# Completion


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ("/swi\tm\tt\tt\t", "/switch model to two"),
        ("/sh\tm\t", "/show model"),
        ("/con\t", "/context"),
        ("/session wo\t", "/session work"),
        ("/exi\t", "/exit"),
    ],
    ids=["model", "words", "word", "session", "exit"],
)
async def test_tab_completes(keys: str, shown: str, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    assert 0 == (await run(tmp_path, "agent", "-m", "Hello", "-s", "work")).status
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type(keys)
        await terminal.see(shown)
        await terminal.type("\x03")
        await leave(terminal)


async def test_tab_lists_what_there_is(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("/switch model to \t")
        await terminal.see("one")
        await terminal.see("two")
        await terminal.see("> /switch model to ")
        await terminal.type("\x03")
        await leave(terminal)


# Ctrl-C


async def test_ctrl_c_during_a_turn_cancels_it_and_nothing_of_it_is_remembered(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async def begins(exchange: Exchange) -> None:
        await exchange.begin_events()
        await exchange.write(frame(chunk({"role": "assistant", "content": "Well"})))
        await exchange.asked.gone.wait()

    prepare(tmp_path, upstream, begins, says("Hello!"))
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("Well")
        await terminal.type("\x03")
        assert "\r\n" == await terminal.see("(cancelled)")
        with trio.fail_after(5):
            await upstream.asked[0].gone.wait()
        await terminal.see("> ")
        await terminal.type("second\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert [("user", "second")] == said(upstream)


@pytest.mark.parametrize(
    "environment", [XTERM, {}, {"PYTHONPATH": "no readline"}], ids=["xterm", "plain", "no readline"]
)
async def test_ctrl_c_clears_the_line(environment: dict[str, str], tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **without_readline(tmp_path, environment)) as terminal:
        await terminal.see("> ")
        for _ in range(3):
            await terminal.type("half a line")
            await terminal.see("half a line")
            await terminal.type("\x03")
            await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["first"] == questions(upstream)


async def test_ctrl_c_drops_a_block(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent") as terminal:
        for _ in range(3):
            await terminal.see("> ")
            await terminal.type('"""\r')
            await terminal.see(". ")
            await terminal.type("half a block\r")
            await terminal.see(". ")
            await terminal.type("\x03")
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert ["first"] == questions(upstream)


async def test_ctrl_c_at_an_empty_prompt_says_how_to_leave_and_leaves_the_second_time(tmp_path: Path) -> None:
    write_config(tmp_path, make_config())
    async with at_terminal(tmp_path, "agent") as terminal:
        before = terminal.modes()
        await terminal.see("> ")
        await terminal.type("\x03")
        await terminal.see("/exit or Ctrl-D ends")
        await terminal.see("> ")
        await terminal.type("Hello\r")
        await terminal.see("Hello\r\n")
        await terminal.see("> ")
        await terminal.type("\x03")
        await terminal.see("/exit or Ctrl-D ends")
        await terminal.see("> ")
        await terminal.type("\x03")
        assert 0 == await terminal.end()
        assert before == terminal.modes()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["prompt", "line", "turn"])
async def test_signal_ends_and_the_terminal_is_as_it_was(
    moment: str, signum: signal.Signals, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream, hangs)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        before = terminal.modes()
        await terminal.see("> ")
        if moment != "prompt":
            await terminal.type("half")
            await terminal.see("half")
        if moment == "turn":
            await terminal.type("\r")
            await upstream.wait_asked()
        terminal.process.send_signal(signum)
        assert 128 + signum == await terminal.end()
        assert before == terminal.modes()
        with trio.fail_after(5):
            await upstream.wait_all_gone()


async def test_keys_typed_during_a_turn_wait_for_the_prompt(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    go_on = trio.Event()

    async def waits(exchange: Exchange) -> None:
        await go_on.wait()
        await says("Hello!")(exchange)

    prepare(tmp_path, upstream, waits, says("Again!"))
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await upstream.wait_asked()
        await terminal.type("second\r")
        go_on.set()
        assert "second" not in await terminal.see("Hello!")
        await terminal.see("second")
        await terminal.see("Again!")
        await leave(terminal)
    assert ["first", "second"] == questions(upstream)


async def test_paste_during_a_turn_waits_for_the_prompt_as_one_question(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    go_on = trio.Event()

    async def waits(exchange: Exchange) -> None:
        await go_on.wait()
        await says("Hello!")(exchange)

    prepare(tmp_path, upstream, waits, says("Again!"))
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await upstream.wait_asked()
        await terminal.see(LEAVE_PASTES)
        await terminal.see(MARK_PASTES)
        await terminal.type(f"{PASTE}one\rtwo\r{PASTED}")
        go_on.set()
        await terminal.see("two")
        await terminal.type("three\r")
        await terminal.see("Again!")
        await leave(terminal)
    assert ["first", "one\ntwo\nthree"] == questions(upstream)


async def test_line_is_begun_again_after_a_stop(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """No shell is there to bring the program back, so the system lets it go on at once."""
    prepare(tmp_path, upstream)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        before = terminal.modes()
        await terminal.see("> ")
        await terminal.type("half a quest")
        await terminal.see("half a quest")
        await terminal.type("\x1a")
        await terminal.see("> half a quest")
        await terminal.type("ion\r")
        await terminal.see("Hello!")
        await leave(terminal)
        assert before == terminal.modes()
    assert ["half a question"] == questions(upstream)


async def test_terminal_is_given_back_for_a_stop_during_a_turn(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    go_on = trio.Event()

    async def waits(exchange: Exchange) -> None:
        await go_on.wait()
        await says("Hello!")(exchange)

    prepare(tmp_path, upstream, waits)
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        before = terminal.modes()
        await terminal.see("> ")
        await terminal.type("first\r")
        await upstream.wait_asked()
        await terminal.see(LEAVE_PASTES)
        await terminal.see(MARK_PASTES)
        during = terminal.modes()
        await terminal.type("\x1a")
        await terminal.see(LEAVE_PASTES)
        await terminal.see(MARK_PASTES)  # as in the test above it goes on at once
        assert during == terminal.modes()
        go_on.set()
        await terminal.see("Hello!")
        await leave(terminal)
        assert before == terminal.modes()


async def test_ctrl_c_ends_a_single_question(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, hangs)
    async with at_terminal(tmp_path, "agent", "-m", "first") as terminal:
        await upstream.wait_asked()
        await terminal.type("\x03")
        assert 128 + signal.SIGINT == await terminal.end()
        with trio.fail_after(5):
            await upstream.wait_all_gone()
    assert "Traceback" not in terminal.shown


# What is shown


HOSTILE = "\x1b]0;owned\x07 \x1b[2J\x9b31m a\x08b\r\x7f\u202e!"


async def test_nothing_that_a_model_says_is_an_order_to_the_terminal(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream, says("one\r\ntwo\tthree ", *HOSTILE, " end"))
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("first\r\n")
        shown = await terminal.see(" end")
        await leave(terminal)
    assert "one\r\ntwo\tthree ^[]0;owned^G ^[[2J<U+009B>31m a^Hb^M^?<U+202E>!" == shown


async def test_error_of_an_upstream_gives_no_orders_either(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, answers(400, error_body("\x1b[2JToo long.")))
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("error: ")
        assert "\x1b" not in await terminal.see("Too long.")
        await leave(terminal)
    async with at_terminal(tmp_path, "agent", "-m", "first") as terminal:
        await terminal.see("Error: ")
        assert "\x1b" not in await terminal.see("Too long.")
        assert 1 == await terminal.end()


async def test_a_pipe_gets_what_the_model_said(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, says(HOSTILE))

    ran = await run(tmp_path, "agent", "-m", "first")

    assert (0, f"{HOSTILE}\n", "") == (ran.status, ran.out, ran.err)


async def test_terminal_without_unicode_shows_question_marks(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, says("caf\u00e9 \U0001f99e"))
    async with at_terminal(tmp_path, "agent", PYTHONIOENCODING="ascii", PYTHONUTF8="0") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("caf? ?\r\n")
        await leave(terminal)


TOOLS = {"tools": {"allow": {"terminal": ["read_file", "list_dir"]}}}


async def test_tools_are_shown_while_they_run(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    arguments = orjson.dumps({"path": "notes/to\x1bdo.md"}).decode()
    called = calls(("read_file", arguments), text="Let me look.")
    prepare(tmp_path, upstream, called, says("There is", " no such file."), **TOOLS)
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("first\r\n")
        shown = await terminal.see("no such file.\r\n")
        await leave(terminal)
    assert "Let me look.\r\n· read_file notes/to^[do.md … failed\r\nThere is " == shown


async def test_tools_are_dim_where_there_are_colours(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, calls(("list_dir", "{}")), says("Nothing."), **TOOLS)
    (tmp_path / ".picoclaw" / "workspace").mkdir()
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("\x1b[2m· list_dir …\x1b[0m\x1b[2m ok\x1b[0m\r\nNothing.\r\n")
        await leave(terminal)


async def test_single_question_keeps_standard_output_for_the_answer(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, calls(("list_dir", "{}"), text="Let me look."), says("Nothing."), **TOOLS)

    ran = await run(tmp_path, "agent", "-m", "first")

    assert Ran(0, "Let me look.\n\nNothing.\n", "") == ran


def thinks(*pieces: str, field: str = "reasoning_content") -> Script:
    frames = [frame(chunk({"role": "assistant", field: piece})) for piece in pieces]
    return streams(*frames, *text_frames("Four."))


async def test_reasoning_is_told_and_shown_on_demand(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, thinks("Two and ", "two."))
    async with at_terminal(tmp_path, "agent", **XTERM) as terminal:
        await terminal.see("> ")
        await terminal.type("2 + 2\r")
        assert "Two" not in await terminal.see("\x1b[2m· thinking …\x1b[0m\r\nFour.\r\n")
        await terminal.see("> ")
        await terminal.type("/show reasoning\r")
        await terminal.see("Reasoning is shown.")
        await terminal.see("> ")
        await terminal.type("2 + 2\r")
        await terminal.see("\x1b[2mTwo and \x1b[0m\x1b[2mtwo.\x1b[0m\r\nFour.\r\n")
        await terminal.see("> ")
        await terminal.type("/hide reasoning\r")
        await terminal.see("Reasoning is hidden.")
        await leave(terminal)


async def test_what_is_unusual_about_an_answer_is_noted(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    cut_off = streams(frame(chunk({"content": "One, two"})), frame(chunk({}, "length")), frame(b"[DONE]"))
    upstream.scripts = [answers(401, {}), cut_off, says()]
    models = entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url)
    write_config(tmp_path, make_config(*models))
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("count\r")
        await terminal.see("count\r\n· two answers\r\nOne, two\r\n(cut off at the model's limit of tokens)\r\n")
        await terminal.see("> ")
        await terminal.type("again\r")
        await terminal.see("(the model gave no text)\r\n")
        await leave(terminal)


FOREIGN = {"model_name": "three", "model": "gemini/gemini-x", "api_key": "sk-x"}  # the configuration's own warning


@pytest.mark.parametrize(("level", "is_logged"), [("info", False), ("warn", False), ("debug", True)])
async def test_log_of_the_server_stays_out_of_the_conversation(
    level: str, is_logged: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    upstream.scripts = [answers(401, {}), says("Hello!")]
    models = entry("one", upstream.url, fallbacks=["two"]), entry("two", upstream.url), FOREIGN
    write_config(tmp_path, make_config(*models, gateway={"log_level": level}))

    ran = await run(tmp_path, "agent", typed="first\n")

    assert (0, "Hello!\n") == (ran.status, ran.out)
    assert is_logged == ("attempt failed" in ran.err)
    assert is_logged or ran.err == ""


async def test_ctrl_c_ends_the_tools_that_run(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    waits = calls(("exec", orjson.dumps({"program": "sleep", "args": ["600"]}).decode()))
    tools = {"allow": {"terminal": ["exec"]}, "exec": {"programs": ["sleep"]}}
    prepare(tmp_path, upstream, waits, says("Hello!"), tools=tools)
    (tmp_path / ".picoclaw" / "workspace").mkdir()
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("· exec sleep 600 …")
        await wait_until(lambda: is_sleeping(terminal))
        await terminal.type("\x03")
        assert "\r\n" == await terminal.see("(cancelled)")
        await terminal.see("> ")
        assert not is_sleeping(terminal)
        await terminal.type("second\r")
        await terminal.see("Hello!")
        await leave(terminal)
    assert [("user", "second")] == said(upstream)


def is_sleeping(terminal: Terminal) -> bool:
    """Whether a ``sleep`` is among what came from the command."""
    pids, names = [terminal.process.pid], []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append(Path(f"/proc/{pid}/comm").read_text())
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, task.read_text().split())
    return "sleep\n" in names


async def test_first_question_waits_for_the_mcp_servers(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    server = {"command": sys.executable, "args": [str(Path(__file__).with_name("mcp_server.py")), "stdio"]}
    broken = {"command": str(tmp_path / "none")}
    tools = {
        "allow": {"terminal": ["mcp_*"]},
        "mcp": {"enabled": True, "servers": {"good": server, "broken": broken}},
    }
    prepare(tmp_path, upstream, tools=tools)

    _, told = await converse(tmp_path, "first", "/tools")

    assert any(tool["function"]["name"].startswith("mcp_good_") for tool in upstream.asked[0].body["tools"])
    assert told[0].startswith("mcp_good_")
    assert any(line.startswith("MCP server broken: failed: ") for line in told)


async def test_ctrl_c_ends_the_waiting_for_mcp_servers(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    servers = {"slow": {"command": "sleep", "args": ["600"]}}
    tools = {"allow": {"terminal": ["mcp_*"]}, "mcp": {"enabled": True, "servers": servers}}
    prepare(tmp_path, upstream, tools=tools)
    async with at_terminal(tmp_path, "agent") as terminal:
        await terminal.see("> ")
        await terminal.type("first\r")
        await terminal.see("· waiting for MCP servers: slow …\r\n")
        await terminal.type("\x03")
        await terminal.see("(cancelled)")
        await leave(terminal)
    assert [] == upstream.asked


async def test_gateway_that_cannot_be_opened_is_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    (tmp_path / ".picoclaw" / "openai_history").write_text("no folder")

    for arguments in (["-m", "first"], []):
        ran = await run(tmp_path, "agent", *arguments)
        assert (1, "") == (ran.status, ran.out)
        assert ran.err.startswith("Error: ")
        assert "Traceback" not in ran.err


async def test_answers_go_where_standard_output_leads(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    path = tmp_path / "answers"
    with path.open("w") as file:
        async with open_terminal(tmp_path, ["agent"], {}, out=file.fileno()) as terminal:
            await terminal.see("Ctrl-D ends.\r\n")
            await terminal.type("first\r")
            await wait_until(lambda: "Hello!\n" == path.read_text())
            await terminal.type("second\r")
            await wait_until(lambda: "Hello!\nHello!\n" == path.read_text())
            await terminal.type("\x04")
            assert 0 == await terminal.end()
    assert ["first", "second"] == questions(upstream)


# Sessions


async def test_session_is_resumed_in_the_next_run(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, says("one"), says("two"), says("three"), says("four"))
    assert Ran(0, "one\n", "") == await run(tmp_path, "agent", "-s", "work", "-m", "first")
    async with at_terminal(tmp_path, "agent", "-s", "work") as terminal:
        await terminal.see("Session work: 2 messages, the last one 20")
        await terminal.see("> ")
        await terminal.type("second\r")
        await terminal.see("two")
        await leave(terminal)
    assert Ran(0, "three\n", "") == await run(tmp_path, "agent", "-s", "work", typed="third\n")
    assert Ran(0, "four\n", "") == await run(tmp_path, "agent", "-m", "other")

    before = [("user", "first"), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    assert [*before, ("user", "third")] == said(upstream, 2)
    assert [("user", "other")] == said(upstream, 3)


@pytest.mark.parametrize("arguments", [["agent", "-m", "second"], ["agent"]], ids=" ".join)
async def test_conversation_that_is_damaged_is_told_and_kept_aside(
    arguments: list[str], tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    assert 0 == (await run(tmp_path, "agent", "-m", "first")).status
    (path,) = (tmp_path / ".picoclaw" / "openai_history").iterdir()
    damaged = path.read_bytes().replace(b"first", b"fIrst")
    path.write_bytes(damaged)

    ran = await run(tmp_path, *arguments, typed="second\n")

    assert (0, "Hello!\n") == (ran.status, ran.out)
    assert ran.err.startswith(f"warning: {path} has a turn that cannot be read; ")
    (kept,) = path.parent.glob(f"{path.name}.damaged-*")
    assert damaged == kept.read_bytes()
    assert Ran(0, "Hello!\n", "") == await run(tmp_path, "agent", "-m", "third")
    assert [("user", "second"), ("assistant", "Hello!"), ("user", "third")] == said(upstream)


async def test_names_of_sessions_stand_in_columns(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    for name in ("long name", "\u4f60\u597d"):
        await run(tmp_path, "agent", "-s", name, "-m", "Hello")

    ((wide, long),) = await converse(tmp_path, "/sessions")

    assert wide.startswith("  \u4f60\u597d       2 messages")
    assert long.startswith("  long name  2 messages")


async def test_single_question_at_a_terminal_says_what_it_resumes(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    assert 0 == (await run(tmp_path, "agent", "-m", "first")).status
    async with at_terminal(tmp_path, "agent", "-m", "second") as terminal:
        await terminal.see("Session default: 2 messages")
        await terminal.see("Hello!\r\n")
        assert 0 == await terminal.end()


async def test_sessions_are_listed_changed_and_forgotten(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    lines = ["/sessions", "first", "/session work", "second", "/sessions", "/clear", "/sessions", "third"]
    lines += ["/sessions default", "/session", "fourth", "/session  ", f"/session {'x' * 201}", "/session nobody"]

    told = [line for lines in await converse(tmp_path, *lines) for line in lines]

    shown = [line.partition("  20")[0].partition(", the last")[0].rstrip() for line in told]
    assert [
        "No conversation is kept.",
        "Hello!",
        "Session work: new.",
        "Hello!",
        "* work     2 messages",
        "  default  2 messages",
        "The conversation is forgotten.",
        "  default  2 messages",
        "Hello!",
        "Session default: 2 messages",
        "Session default: 2 messages",
        "Hello!",
        "Session default: 4 messages",
        "The name of a session must be at most 200 printable characters.",
        "Session nobody: new.",
    ] == shown
    assert [("user", "third")] == said(upstream, 2)
    assert [("user", "first"), ("assistant", "Hello!"), ("user", "fourth")] == said(upstream, 3)


@pytest.mark.parametrize("name", ["", " ", " x", "a\nb", "\x1b[2J", "x" * 201])
async def test_name_that_no_session_can_have_is_wrong_usage(name: str, tmp_path: Path) -> None:
    write_config(tmp_path, make_config())

    ran = await run(tmp_path, "agent", "-s", name, "-m", "Hello")

    assert (2, "") == (ran.status, ran.out)
    assert "session" in ran.err
    assert "\x1b" not in ran.err


async def test_last_question_is_asked_again(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, says("one"), says("two"), says("2"), answers(401, {}), says("three"))
    assert [["Nothing has been asked yet."]] == await converse(tmp_path, "/retry")
    assert 0 == (await run(tmp_path, "agent", typed="first\nsecond\n")).status

    again, failed, once_more = await converse(tmp_path, "/retry", "third", "/retry")

    assert (["2"], ["three"]) == (again, once_more)
    assert "error: The model's server refused" in failed[-1]
    begin = [("user", "first"), ("assistant", "one"), ("user", "second")]
    assert begin == said(upstream, 2)
    assert [*begin, ("assistant", "2"), ("user", "third")] == said(upstream, 4)


async def test_question_that_is_typed_again_is_another_one(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, *map(says, ["one", "two", "2", "three"]))

    shown = await converse(tmp_path, "yes", "yes", "/retry", "yes")

    assert [["one"], ["two"], ["2"], ["three"]] == shown
    begin = [("user", "yes"), ("assistant", "one"), ("user", "yes")]
    assert begin == said(upstream, 1) == said(upstream, 2)
    assert [*begin, ("assistant", "2"), ("user", "yes")] == said(upstream, 3)


async def test_answer_of_several_steps_is_asked_again_as_a_whole(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    steps = [calls(("list_dir", "{}"), text="Let me look."), says("Nothing.")]
    prepare(tmp_path, upstream, *steps, says("two"), says("three"), **TOOLS)
    (tmp_path / ".picoclaw" / "workspace").mkdir()

    assert ["three"] == (await converse(tmp_path, "first", "second", "/retry"))[-1]

    assert said(upstream, 2) == said(upstream, 3)
    assert ["user", "assistant", "tool", "assistant", "user"] == [role for role, _ in said(upstream, 3)]


async def test_context_and_tools_are_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, **TOOLS)
    workspace = tmp_path / ".picoclaw" / "workspace"
    workspace.mkdir()
    (workspace / "SOUL.md").write_text("You are kind.")

    hello, (session, prompt, tools), (list_dir, read_file) = await converse(tmp_path, "first", "/context", "/tools")

    assert ["Hello!"] == hello
    assert session.startswith("Session default: 2 messages, about ")
    assert session.endswith(" tokens of a window of 131,072.")
    assert prompt.startswith("System prompt: about ")
    assert tools.startswith("Tools: list_dir, read_file; about ")
    assert [["list_dir"], ["read_file"]] == [line.split()[:1] for line in (list_dir, read_file)]


async def test_lines_of_a_pipe_are_questions_with_whatever_ends_them(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    assert 0 == (await run(tmp_path, "agent", typed="first\r\nsecond\nthird")).status
    assert ["first", "second", "third"] == questions(upstream)


async def test_tools_of_agent_md_that_are_not_there_are_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream, **TOOLS, gateway={"log_level": "debug"})
    workspace = tmp_path / ".picoclaw" / "workspace"
    workspace.mkdir()
    (workspace / "AGENT.md").write_text("---\ntools: [readfile]\n---\n")

    ran = await run(tmp_path, "agent", typed="first\nsecond\n")

    assert "tools" not in upstream.asked[0].body
    assert 1 == ran.err.count(f"{workspace}/AGENT.md: tools names none of those that are permitted and there")


async def test_it_is_told_when_the_oldest_turns_are_no_longer_sent(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Which is before the window is full, for the answer has its share of it."""
    window = {"context_window": 2000, "max_tokens": 1000}
    prepare(tmp_path, upstream, agents={"defaults": window})

    contexts = (await converse(tmp_path, *6 * (600 * "x", "/context")))[1::2]

    told = [any("outgrown" in line for line in context) for context in contexts]
    cut = [len(said(upstream, number)) < 2 * number + 1 for number in range(6)]
    assert [False, False, False, True, True, True] == told
    assert [False, False, False, False, True, True] == cut


async def test_no_tools_are_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)

    tools, context = await converse(tmp_path, "/tools", "/context")

    assert "tools.allow.terminal" in tools[0]
    assert "System prompt: none." in context


@pytest.mark.parametrize(
    ("allowed", "kept_to", "why"),
    [
        ("read_file", "write_file", "None: AGENT.md keeps to tools that tools.allow.terminal does not permit."),
        ("mcp_notes_*", "mcp_notes_*", "None: of what tools.allow.terminal permits nothing is there now."),
    ],
)
async def test_it_is_told_who_leaves_no_tools(
    allowed: str, kept_to: str, why: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream, tools={"allow": {"terminal": [allowed]}})
    (tmp_path / ".picoclaw" / "workspace").mkdir()
    (tmp_path / ".picoclaw" / "workspace" / "AGENT.md").write_text(f"---\ntools: ['{kept_to}']\n---\n")

    tools, context = await converse(tmp_path, "/tools", "/context")

    assert [why] == tools
    assert f"Tools: n{why[1:]}" == context[-1]


async def test_terminal_works_beside_a_server_on_the_same_session(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    prepare(tmp_path, upstream)
    async with open_server(tmp_path, None) as server, open_client(server.url) as client:
        assert 200 == (await client.post(PATH, json=ask())).status_code
        assert Ran(0, "Hello!\n", "") == await run(tmp_path, "agent", "-m", "first")
        assert 200 == (await client.post(PATH, json=ask())).status_code
        assert Ran(0, "Hello!\n", "") == await run(tmp_path, "agent", "-m", "second")
    assert [("user", "first"), ("assistant", "Hello!"), ("user", "second")] == said(upstream)


async def test_session_that_is_busy_in_another_terminal_is_told(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    upstream.scripts = [hangs]
    write_config(tmp_path, make_config(entry("one", upstream.url), session_wait=0.1))
    async with at_terminal(tmp_path, "agent", "-m", "first") as terminal:
        await upstream.wait_asked()
        ran = await run(tmp_path, "agent", "-m", "second")
        await terminal.type("\x03")
        await terminal.end()

    assert (1, "") == (ran.status, ran.out)
    assert "busy" in ran.err or "turn" in ran.err


@pytest.mark.parametrize(
    ("arguments", "closed", "out"),
    [("-m first", ">&-", b""), ("-m first", "2>&-", b"Hello!\n"), ("", "<&-", b""), ("-m first", "<&-", b"Hello!\n")],
)
async def test_stream_that_is_closed_costs_nothing(
    arguments: str, closed: str, out: bytes, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    prepare(tmp_path, upstream)
    with trio.fail_after(20):
        done = await trio.run_process(
            ["sh", "-c", f"{sys.executable} -m picoclaw_trio agent {arguments} {closed}"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=make_environment(tmp_path),
        )
    assert (0, out, b"") == (done.returncode, done.stdout, done.stderr)


async def test_reader_who_has_enough_is_no_failure_to_tell(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    read, write = os.pipe()
    os.close(read)
    prepare(tmp_path, upstream)
    try:
        with trio.fail_after(20):
            done = await trio.run_process(
                [*command("gateway")[:-1], "agent", "-m", "first"],
                stdout=write,
                capture_stderr=True,
                check=False,
                env=make_environment(tmp_path),
            )
    finally:
        os.close(write)
    assert (1, b"") == (done.returncode, done.stderr)
