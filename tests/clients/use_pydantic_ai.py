"""pydantic-ai; run by its own Python."""

# mypy: ignore-errors

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

api, token = sys.argv[1:]
provider = OpenAIProvider(base_url=api, api_key=token)
provider.client.max_retries = 0
LOOK = ToolDefinition(name="look", parameters_json_schema={"type": "object"})
MESSAGES = [ModelRequest.user_text_prompt("Hello")]
WITH_TOOLS = ModelRequestParameters(function_tools=[LOOK])


def model(name):
    return OpenAIChatModel(name, provider=provider)


async def stream(name):
    async with Agent(model(name)).run_stream("Hello") as answer:
        return [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]


async def call(name):
    whole = await model_request(model(name), MESSAGES, model_request_parameters=WITH_TOOLS)
    async with model_request_stream(model(name), MESSAGES, model_request_parameters=WITH_TOOLS) as answer:
        async for _ in answer:
            pass
    (part,) = [part for part in whole.parts if part.part_kind == "tool-call"]
    (streamed,) = [part for part in answer.get().parts if part.part_kind == "tool-call"]
    assert part.args_as_dict() == streamed.args_as_dict()
    return [part.tool_call_id, part.tool_name, part.args_as_dict()]


async def failure(name):
    try:
        await stream(name)
    except Exception as exc:
        return str(exc)
    return "none"


async def main():
    pieces = await stream("talker")
    return {
        "whole": (await Agent(model("talker")).run("Hello")).output,
        "streamed": "".join(pieces),
        "pieces": pieces,
        "called": await call("caller"),
        "errors": {name: await failure(name) for name in ("nobody", "locked", "breaker")},
    }


print(json.dumps(asyncio.run(main())))
