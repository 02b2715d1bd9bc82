"""LangChain's ChatOpenAI; run by its own Python."""

# mypy: ignore-errors

import json
import sys

from langchain_openai import ChatOpenAI

api, token = sys.argv[1:]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}]


def model(name, **fields):
    return ChatOpenAI(model=name, base_url=api, api_key=token, max_retries=0, **fields)


def failure(name):
    try:
        for _ in model(name).stream("Hello"):
            pass
    except Exception as exc:
        return str(exc)
    return "none"


chunks = list(model("talker", stream_usage=True).stream("Hello"))
assert chunks[-1].usage_metadata or any(chunk.usage_metadata for chunk in chunks)
(call,) = model("caller").bind_tools(TOOLS).invoke("Hello").tool_calls
joined = None
for chunk in model("caller").bind_tools(TOOLS).stream("Hello"):
    joined = chunk if joined is None else joined + chunk
assert [call] == joined.tool_calls
result = {
    "whole": model("talker").invoke("Hello").content,
    "streamed": "".join(chunk.content for chunk in chunks),
    "pieces": [chunk.content for chunk in chunks if chunk.content],
    "called": [call["id"], call["name"], call["args"]],
    "errors": {name: failure(name) for name in ("nobody", "locked", "breaker")},
}
print(json.dumps(result))
