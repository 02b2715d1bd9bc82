"""LiteLLM as a library; run by its own Python."""

# mypy: ignore-errors

import json
import sys

import litellm

api, token = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def ask(model, **fields):
    return litellm.completion(
        model=f"openai/{model}", api_base=api, api_key=token, messages=MESSAGES, max_retries=0, **fields
    )


def failure(model, **fields):
    try:
        for _ in ask(model, **fields):
            pass
    except Exception as exc:
        return str(exc)
    return "none"


pieces = [piece.choices[0].delta.content or "" for piece in ask("talker", stream=True)]
call = ask("caller", tools=TOOLS).choices[0].message.tool_calls[0]
streamed = litellm.stream_chunk_builder(list(ask("caller", tools=TOOLS, stream=True)))
assert call.function.arguments == streamed.choices[0].message.tool_calls[0].function.arguments
result = {
    "whole": ask("talker").choices[0].message.content,
    "streamed": "".join(pieces),
    "pieces": [piece for piece in pieces if piece],
    "called": [call.id, call.function.name, json.loads(call.function.arguments)],
    "errors": {name: failure(name, stream=name == "breaker") for name in ("nobody", "locked", "breaker")},
}
print(json.dumps(result))
