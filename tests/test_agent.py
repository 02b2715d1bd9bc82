"""The agent behind the endpoint: identity, tools and memory, from the official SDK to the upstream and back."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx2
import openai
import orjson
import pytest
import trio
from fakes import (
    Script,
    ScriptedUpstream,
    answers,
    error_body,
    hangs,
    says,
    streams,
    text_frames,
)
from harness import TOKEN, Here, ask, entry, make_config, open_client, open_server, serve_here
from streams import call, calls, open_stream, says_as_asked, until

NOTES = Path(__file__).parent / "mcp_notes.py"
BUY: Any = {"type": "function", "function": {"name": "buy", "parameters": {"type": "object"}}}


@attrs.frozen
class Agent:
    """A server with an agent, its workspace, and the model behind it."""

    here: Here
    workspace: Path
    upstream: ScriptedUpstream
    sdk: openai.AsyncOpenAI

    async def ask(self, content: Any, *, stream: bool = False, user: str = "ada", **fields: Any) -> str:
        """The answer's text. *content*: of one user's message, or all messages."""
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        request: dict[str, Any] = {"model": "m", "messages": messages, "user": user, **fields}
        if not stream:
            reply = await self.sdk.chat.completions.create(**request)
            return reply.choices[0].message.content or ""
        chunks = await self.sdk.chat.completions.create(stream=True, **request)
        return "".join([part.choices[0].delta.content or "" async for part in chunks])

    def script(self, *scripts: Script) -> None:
        self.upstream.asked.clear()
        self.upstream.scripts = scripts

    def sent(self, index: int = -1) -> list[dict[str, Any]]:
        """The messages of one request to the model."""
        messages: list[dict[str, Any]] = self.upstream.asked[index].body["messages"]
        return messages

    def offered(self, index: int = -1) -> list[str]:
        return [tool["function"]["name"] for tool in self.upstream.asked[index].body.get("tools", ())]


@asynccontextmanager
async def open_agent(
    home: Path, upstream: ScriptedUpstream, allow: Sequence[str] = (), tools: Any = None, agents: Any = None, **api: Any
) -> AsyncIterator[Agent]:
    workspace = home / "workspace"
    workspace.mkdir(exist_ok=True)
    config = {
        **make_config(entry("m", upstream.url), streaming=True, **api),
        "agents": {"defaults": {"workspace": str(workspace), **(agents or {})}},
        "tools": {"allow": {"http": list(allow)}, **(tools or {})},
    }
    async with serve_here(home, config) as here:
        http = httpx2.AsyncClient(trust_env=False)
        async with openai.AsyncOpenAI(api_key=TOKEN, base_url=here.api, http_client=http, max_retries=0) as sdk:
            yield Agent(here, workspace, upstream, sdk)


MCP = {"mcp": {"enabled": True, "servers": {"notes": {"command": sys.executable, "args": [str(NOTES)]}}}}
ALL = ("read_file", "list_dir", "write_file", "mcp_notes_*")


# The whole of it


@pytest.mark.parametrize("stream", [False, True])
async def test_the_agent_works_with_files_and_an_mcp_server_and_remembers(
    stream: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_agent(tmp_path, upstream, ALL, MCP, history="session") as agent:
        (agent.workspace / "AGENT.md").write_text("You are Pico.")
        (agent.workspace / "letter.txt").write_text("Dear Ada")
        mcp = agent.here.gateway.tools.mcp
        await until(lambda: "mcp_notes_add" in {tool.name for tool in mcp.tools()})
        agent.script(
            calls(call("1", "read_file", path="letter.txt"), call("2", "mcp_notes_add", text="Ada's"), text="I look."),
            calls(call("3", "write_file", path="reply.txt", content="Hello, Ada"), call("4", "mcp_notes_read")),
            says_as_asked("It is ", "done."),
        )
        assert "I look.\n\nIt is done." == await agent.ask("Answer the letter.", stream=stream)

        assert "Hello, Ada" == (agent.workspace / "reply.txt").read_text()
        assert "You are Pico." in agent.sent(0)[0]["content"]
        results = {one["tool_call_id"]: one["content"] for one in agent.sent() if one["role"] == "tool"}
        assert "Dear Ada" in results["1"]
        assert ("1 kept", "Ada's") == (results["2"], results["4"])

        agent.script(says_as_asked("Yours."))
        assert "Yours." == await agent.ask("Whose was it?", stream=stream)
        roles = ["system", "user", "assistant", "tool", "tool", "assistant", "tool", "tool", "assistant", "user"]
        assert roles == [one["role"] for one in agent.sent()]
        assert "Whose was it?" == agent.sent()[-1]["content"]


async def test_memory_outlives_the_server(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        await agent.ask("I am Ada.")
    async with open_agent(tmp_path, upstream, history="session") as agent:
        await agent.ask("Who am I?")
        assert ["I am Ada.", "Hello!", "Who am I?"] == [one["content"] for one in agent.sent()]


# Identity


async def test_the_agents_prompt_stands_before_the_clients_system_message(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_agent(tmp_path, upstream) as agent:
        (agent.workspace / "SOUL.md").write_text("Be kind.")
        await agent.ask([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        assert ["Be kind.", "Be brief.", "Hi"] == [one["content"] for one in agent.sent()]


async def test_a_changed_file_counts_from_the_next_request(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream) as agent:
        for soul in ("Be kind.", "Be bold."):
            (agent.workspace / "SOUL.md").write_text(soul)
            await agent.ask("Hi")
            assert soul == agent.sent()[0]["content"]
        (agent.workspace / "SOUL.md").unlink()
        await agent.ask("Hi")
        assert ["user"] == [one["role"] for one in agent.sent()]


async def test_an_empty_workspace_adds_nothing(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream) as agent:
        await agent.ask("Hi")
        assert [{"role": "user", "content": "Hi"}] == agent.sent()


async def test_the_agents_own_file_names_its_model_and_narrows_its_tools(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_agent(tmp_path, upstream, ALL) as agent:
        (agent.workspace / "AGENT.md").write_text(
            "---\nmodel: m\ntools: [list_dir, exec]\nmaxTurns: 2\n---\nYou are Pico."
        )
        agent.script(calls(call("1", "list_dir")))
        with pytest.raises(openai.APIStatusError) as caught:
            await agent.ask("Hi", model="")
        assert ["list_dir"] == agent.offered()
        assert (2, "too_many_steps") == (len(agent.upstream.asked), caught.value.code)


# Tools


async def test_no_tool_is_offered_or_run_unless_it_is_allowed(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, tools={"allow": {"terminal": ["write_file"]}}) as agent:
        agent.script(calls(call("1", "write_file", path="x", content="y")))
        reply = await agent.sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert "tools" not in agent.upstream.asked[0].body
        assert "tool_calls" == reply.choices[0].finish_reason  # nobody's: whoever asked gets them as they are
        assert [] == list(agent.workspace.iterdir())


async def test_a_call_of_a_tool_that_is_not_allowed_is_refused(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, ["list_dir"]) as agent:
        agent.script(calls(call("1", "write_file", path="x", content="y")), says("No."))
        assert "No." == await agent.ask("Hi")
        assert "There is no tool 'write_file' here. There are: list_dir." in agent.sent()[-1]["content"]
        assert [] == list(agent.workspace.iterdir())


async def test_going_on_calling_tools_is_an_honest_error(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, ["list_dir"], agents={"max_tool_iterations": 3}) as agent:
        agent.script(calls(call("1", "list_dir")))
        with pytest.raises(openai.APIStatusError) as caught:
            await agent.ask("Hi")
        assert (502, "too_many_steps") == (caught.value.status_code, caught.value.code)
        assert 3 == len(agent.upstream.asked)


FORCED: Any = {"type": "function", "function": {"name": "list_dir"}}


@pytest.mark.parametrize(
    "choice",
    ["required", FORCED, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FORCED]}}],
    ids=["any", "one", "one of some"],
)
async def test_a_forced_call_of_ours_is_forced_once(choice: Any, tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async def obeys(exchange: Any) -> None:
        is_forced = exchange.asked.body.get("tool_choice") == choice
        await (calls(call("1", "list_dir")) if is_forced else says("It is empty."))(exchange)

    async with open_agent(tmp_path, upstream, ["list_dir"]) as agent:
        agent.script(obeys)
        assert "It is empty." == await agent.ask("What is there?", tool_choice=choice)


ALLOWED: Any = {"mode": "required", "tools": [FORCED, {"type": "function", "function": {"name": "buy"}}]}


@pytest.mark.parametrize("choice", ["required", {"type": "allowed_tools", "allowed_tools": ALLOWED}])
async def test_a_forced_call_of_the_clients_stays_forced(
    choice: Any, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_agent(tmp_path, upstream, ["list_dir"]) as agent:
        agent.script(calls(call("1", "list_dir")), calls(call("2", "buy")))
        await agent.ask("Buy it.", tools=[BUY], tool_choice=choice)
        assert [choice, choice] == [asked.body["tool_choice"] for asked in upstream.asked]


@pytest.mark.parametrize("history", ["client", "session"])
async def test_calls_of_ours_and_of_the_clients_at_once_both_work(
    history: str, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with open_agent(tmp_path, upstream, ["read_file"], history=history) as agent:
        (agent.workspace / "price").write_text("7 gold")
        agent.script(calls(call("1", "read_file", path="price"), call("2", "buy", n=1)), says("Bought."))
        question: Any = {"role": "user", "content": "Buy it."}
        reply = await agent.sdk.chat.completions.create(model="m", messages=[question], tools=[BUY], user="ada")
        message: Any = reply.choices[0].message
        assert ["buy"] == [one.function.name for one in message.tool_calls]

        result: Any = {"role": "tool", "tool_call_id": "2", "content": "paid"}
        assert "Bought." == await agent.ask([question, message, result], tools=[BUY])
        assert ["user", "assistant", "tool", "tool"] == [one["role"] for one in agent.sent()]
        assert ["1", "2"] == [one["id"] for one in agent.sent()[1]["tool_calls"]]
        assert "7 gold" in agent.sent()[2]["content"]
        assert "paid" == agent.sent()[3]["content"]


async def test_what_ours_gave_is_not_shown_to_another_caller(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, ["read_file"]) as agent:
        (agent.workspace / "price").write_text("7 gold")
        agent.script(calls(call("1", "read_file", path="price"), call("2", "buy")), says("Well."))
        question: Any = {"role": "user", "content": "Buy it."}
        reply = await agent.sdk.chat.completions.create(model="m", messages=[question], tools=[BUY], user="ada")
        message: Any = reply.choices[0].message
        result: Any = {"role": "tool", "tool_call_id": "2", "content": "paid"}
        await agent.ask([question, message, result], tools=[BUY], user="eve")
        assert b"7 gold" not in orjson.dumps(agent.sent())


async def test_a_clients_tool_of_the_same_name_is_the_clients(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    mine: Any = {"type": "function", "function": {"name": "read_file", "parameters": {}}}
    async with open_agent(tmp_path, upstream, ["read_file", "list_dir"]) as agent:
        agent.script(calls(call("1", "read_file", path="x")))
        reply = await agent.sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], tools=[mine]
        )
        assert ["read_file", "list_dir"] == agent.offered()
        assert "tool_calls" == reply.choices[0].finish_reason
        assert 1 == len(agent.upstream.asked)


async def test_a_stream_carries_comments_while_a_tool_runs(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, ["list_dir"]) as agent, open_client(agent.here.url) as client:
        agent.script(calls(call("1", "list_dir")), streams(*text_frames("Done.")))
        async with open_stream(client, model="m") as frames:
            blocks = await frames.rest()
        comments = [block for block in blocks if block.startswith(b":")]
        assert [b": tool list_dir started", b": tool list_dir finished"] == comments
        assert not any(b"tool_calls" in block for block in blocks)


async def test_hanging_up_ends_a_running_tool(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    settings = {"exec": {"programs": ["sleep"]}}
    async with open_agent(tmp_path, upstream, ["exec"], settings) as agent, open_client(agent.here.url) as client:
        agent.script(calls(call("1", "exec", program="sleep", args=["1234.5"])))
        async with open_stream(client, model="m") as frames:
            while b"tool exec started" not in (await frames.next() or b""):
                pass
            await until(lambda: running("1234.5"))
        await until(lambda: not running("1234.5"))
        await until(lambda: 0 == agent.here.gateway.admission.statistics().running)


def running(argument: str) -> bool:
    """Whether a process with this argument is there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"sleep\0{argument}".encode() in path.read_bytes():
                return True
        except OSError:  # it has just gone
            continue
    return False


async def test_a_failure_after_a_step_of_a_stream_is_its_last_frame(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, ["list_dir"]) as agent:
        agent.script(calls(call("1", "list_dir")), answers(401, error_body("no")))
        with pytest.raises(openai.APIError) as caught:
            await agent.ask("Hi", stream=True)
        assert "upstream_auth" == caught.value.code


# Memory


async def test_a_client_with_a_history_of_its_own_is_not_doubled(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        talk: list[Any] = []
        for text in ("One.", "Two.", "Three."):
            talk.append({"role": "user", "content": text})
            talk.append({"role": "assistant", "content": await agent.ask(list(talk))})
        assert ["One.", "Hello!", "Two.", "Hello!", "Three."] == [one["content"] for one in agent.sent()]


async def test_an_edited_message_replaces_what_came_after(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        for text in ("One.", "Two.", "Three."):
            await agent.ask(text)
        said = ["One.", "Hello!", "Zwei."]
        await agent.ask([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)])
        assert said == [one["content"] for one in agent.sent()]
        await agent.ask("Four.")
        assert [*said, "Hello!", "Four."] == [one["content"] for one in agent.sent()]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("has_history", [False, True])
async def test_a_function_call_of_the_old_kind_is_remembered(
    has_history: bool, stream: bool, tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    called = {"name": "buy", "arguments": "{}"}
    functions = [{"name": "buy", "parameters": {"type": "object"}}]
    question, answer = {"role": "user", "content": "Buy it."}, {"role": "assistant", "function_call": called}
    result = {"role": "function", "name": "buy", "content": "bought"}
    async with open_agent(tmp_path, upstream, history="session") as agent:
        agent.script(says(None, function_call=called, finish_reason="function_call"), says("Done."))
        await agent.ask([question], functions=functions, stream=stream)
        assert "Done." == await agent.ask([question, answer, result] if has_history else [result], functions=functions)

        assert ["user", "assistant", "tool"] == [one["role"] for one in agent.sent()]
        assert [{"id": "buy", "type": "function", "function": called}] == agent.sent()[1]["tool_calls"]


async def test_system_messages_steer_one_request_and_are_not_kept(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        await agent.ask([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One."}])
        assert "Be brief." == agent.sent()[0]["content"]
        await agent.ask("Two.")
        assert ["One.", "Hello!", "Two."] == [one["content"] for one in agent.sent()]


async def test_a_failed_turn_is_not_kept(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        agent.script(answers(401, error_body("no")), says("Yes."))
        with pytest.raises(openai.APIStatusError):
            await agent.ask("One.")
        await agent.ask("Two.")
        assert ["Two."] == [one["content"] for one in agent.sent()]


async def test_users_do_not_see_each_others_conversation(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        await agent.ask("I am Ada.", user="ada")
        await agent.ask("I am Bo.", user="bo")
        assert ["I am Bo."] == [one["content"] for one in agent.sent()]


async def test_a_header_names_the_session_where_the_configuration_says_so(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    headers = ["X-Other", "X-OpenWebUI-Chat-Id"]
    async with open_agent(tmp_path, upstream, history="session", session_headers=headers) as agent:
        for chat, text in (("c1", "One."), ("c2", "Two."), ("c1", "Three.")):
            await agent.ask(text, extra_headers={"X-OpenWebUI-Chat-Id": chat})
        assert ["One.", "Hello!", "Three."] == [one["content"] for one in agent.sent()]
        with pytest.raises(openai.BadRequestError):
            await agent.ask("Four.", extra_headers={"X-OpenWebUI-Chat-Id": "c" * 513})


async def test_one_turn_of_a_session_at_a_time_and_the_next_waits(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        go_on = trio.Event()

        async def waits(exchange: Any) -> None:
            await go_on.wait()
            await says("First.")(exchange)

        agent.script(waits, says("Second."))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.ask, "One.")
            await upstream.wait_asked(1)
            nursery.start_soon(agent.ask, "Two.")
            await agent.ask("Other.", user="bo")  # another session is not held up
            go_on.set()
        assert ["One.", "First.", "Two."] == [one["content"] for one in agent.sent()]


async def test_a_session_in_use_for_too_long_is_busy(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session", session_wait=0.05) as agent:
        agent.script(hangs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.ask, "One.")
            await upstream.wait_asked(1)
            with pytest.raises(openai.ConflictError) as caught:
                await agent.ask("Two.")
            nursery.cancel_scope.cancel()
        assert ("session_busy", "1") == (caught.value.code, caught.value.response.headers["retry-after"])


async def test_the_sdk_waits_and_asks_again_when_a_session_is_busy(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session", session_wait=0.05) as agent:
        was_busy = trio.Event()

        async def waits(exchange: Any) -> None:
            await was_busy.wait()
            await says("First.")(exchange)

        async def note_busy(response: httpx2.Response) -> None:
            if response.status_code == 409:
                was_busy.set()

        agent.script(waits, says("Second."))
        http = httpx2.AsyncClient(trust_env=False, event_hooks={"response": [note_busy]})
        patient = attrs.evolve(agent, sdk=agent.sdk.with_options(max_retries=2, http_client=http))
        async with http, trio.open_nursery() as nursery:
            nursery.start_soon(agent.ask, "One.")
            await upstream.wait_asked(1)
            assert "Second." == await patient.ask("Two.")
        assert ["One.", "First.", "Two."] == [one["content"] for one in agent.sent()]


async def test_a_refused_request_stores_no_model(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    options: dict[str, Any] = {"history": "session", "session_wait": 0.05, "model_scope": "session"}
    async with open_agent(tmp_path, upstream, **options) as agent:
        agent.script(hangs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.ask("One.", model=""))
            await upstream.wait_asked(1)
            with pytest.raises(openai.ConflictError):
                await agent.ask("Two.")
            nursery.cancel_scope.cancel()
        assert agent.here.gateway.sessions.selected("openai:ada") is None


async def test_what_a_front_end_asks_by_itself_is_not_remembered(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    task = (
        "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
        "### Chat History:\n<chat_history>\nUSER: One.\nASSISTANT: Hello!\n</chat_history>"
    )
    async with open_agent(tmp_path, upstream, ["list_dir"], history="session") as agent:
        await agent.ask("One.")
        await agent.ask(task)
        assert [task] == [one["content"] for one in agent.sent()]
        assert [] == agent.offered()
        await agent.ask("Two.")
        assert ["One.", "Hello!", "Two."] == [one["content"] for one in agent.sent()]


async def test_what_does_not_fit_is_left_out_at_a_turns_boundary(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session", agents={"context_window": 600}) as agent:
        for number in range(8):
            await agent.ask(f"{number} " + "x" * 300)
            assert "user" == agent.sent()[0]["role"]
            assert len(orjson.dumps(agent.sent())) < 2400
        assert agent.sent()[-1]["content"].startswith("7 ")


async def test_what_is_left_out_is_summed_up_where_that_is_wanted(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    agents = {"context_window": 600, "summarize_history": True}

    async def script(exchange: Any) -> None:
        sums_up = "Sum up" in exchange.asked.body["messages"][0]["content"]
        await says("They sent many x." if sums_up else "Hello!")(exchange)

    async with open_agent(tmp_path, upstream, history="session", agents=agents) as agent:
        agent.script(script)
        for number in range(8):
            await agent.ask(f"{number} " + "x" * 300)
        assert "system" == agent.sent()[0]["role"]
        assert agent.sent()[0]["content"].endswith("They sent many x.")


async def test_a_client_that_left_is_not_remembered(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session") as agent:
        agent.script(hangs, says("Hello!"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.ask, "One.")
            await upstream.wait_asked(1)
            nursery.cancel_scope.cancel()
        await agent.ask("Two.")
        assert ["Two."] == [one["content"] for one in agent.sent()]


async def test_a_turn_that_goes_on_without_its_client_is_remembered(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    async with open_agent(tmp_path, upstream, history="session", on_disconnect="finish") as agent:
        go_on = trio.Event()

        async def waits(exchange: Any) -> None:
            await go_on.wait()
            await says("Still here.")(exchange)

        agent.script(waits, says("Hello!"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.ask, "One.")
            await upstream.wait_asked(1)
            nursery.cancel_scope.cancel()
        go_on.set()
        await agent.ask("Two.")
        assert ["One.", "Still here.", "Two."] == [one["content"] for one in agent.sent()]


async def test_workers_share_the_conversation(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = make_config(entry("m", upstream.url), history="session")
    async with (
        open_server(tmp_path, config, "hypercorn", "--workers", "2") as server,
        open_client(server.url) as client,
    ):
        for number in range(6):
            reply = await client.post("/v1/chat/completions", json=ask(f"{number}", model="m", user="ada"))
            assert 200 == reply.status_code, reply.text
        sent = [one["content"] for one in upstream.asked[-1].body["messages"] if one["role"] == "user"]
        assert [str(number) for number in range(6)] == sent
