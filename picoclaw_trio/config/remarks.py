"""What a configuration that can be used has to tell: what will not work as one may think, and keys that nobody reads.

Theory: none of it keeps the gateway from starting. It is found here and told by whoever has loaded the configuration,
once the log has its level and its format, which stand in the same file.
Editing rule: no message repeats a value, but for names of models and vendors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs

from .parts import dict_of, each, references
from .strict import Place, quoted
from .tools import ExecConfig, McpConfig, McpServerConfig, ToolsConfig, WebFetchConfig
from .values import AgentEntry, AgentsEntry, Config, ConfigFile, DefaultsEntry, GatewayConfig, ModelChoice
from .vendors import ECHO, VENDORS

# Shapes in which a key that we do not know belongs to a part of PicoClaw that we lack.
LENIENT = frozenset(
    {
        ConfigFile,
        GatewayConfig,
        AgentsEntry,
        DefaultsEntry,
        AgentEntry,
        ModelChoice,
        ToolsConfig,
        ExecConfig,
        WebFetchConfig,
        McpConfig,
        McpServerConfig,
    }
)


# What PicoClaw calls its own, and is no slip of the pen.
NO_SLIPS = frozenset({"image_model_fallbacks"})
# Above it no other key of PicoClaw's is like one of ours: its "timeout_seconds", our "max_cpu_seconds".
LIKENESS = 0.75


def find_passed_over(value: Any, hint: Any = ConfigFile, place: Place = ()) -> Iterator[tuple[Place, str | None]]:
    """The place of each key of JSON that loads although nobody reads it, and the known one that it is nearly like.

    Args:
        value: JSON that has passed as a *hint*.
    """
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        for inner, item in each(place, value):
            yield from find_passed_over(item, parts[0], inner)
    elif get_origin(hint) is Mapping:
        for key, item in dict_of(value).items():
            yield from find_passed_over(item, parts[1], (*place, key))
    elif get_origin(hint) is Annotated:
        yield from find_passed_over(value, parts[0], place)
    elif attrs.has(hint):
        hints = _hints(hint)
        for key, item in dict_of(value).items():
            if key in hints:
                yield from find_passed_over(item, hints[key], (*place, key))
            elif hint in LENIENT and not key.startswith("_"):
                yield (*place, key), _near(key, hints)


@cache
def _hints(shape: type) -> dict[str, Any]:
    return get_type_hints(shape, include_extras=True)


def _near(key: str, known: Iterable[str]) -> str | None:
    found = () if key in NO_SLIPS else difflib.get_close_matches(key[:100].lower(), known, n=1, cutoff=LIKENESS)
    return next(iter(found), None)


def find_warnings(json: dict[str, Any], config: Config) -> Iterator[tuple[Place, str]]:
    """What is no mistake but will not work, or not as one may think; *json* is what *config* was made of."""
    for place, near in find_passed_over(json):
        if near is not None:
            yield place, f"is not a known key, and is passed over; did you mean {quoted(near)}?"
    yield from _of_the_endpoint(config)
    if not config.model_list:
        yield from _of_no_models(json, config)
    yield from _of_models(config)
    yield from _of_agents(config)


def _of_the_endpoint(config: Config) -> Iterator[tuple[Place, str]]:
    place, api = ("gateway", "openai_api"), config.gateway.openai_api
    if not api.enabled:
        yield (*place, "enabled"), "the OpenAI API is off: set it to true, and list a token in bearer_tokens"
    elif not api.bearer_tokens:
        yield (*place, "bearer_tokens"), "is empty, so every request will be refused"


def _of_no_models(json: dict[str, Any], config: Config) -> Iterator[tuple[Place, str]]:
    if json.get("providers"):
        yield (
            ("providers",),
            "is how PicoClaw's first versions name models, and is not read: a newer PicoClaw makes model_list of it "
            "when it starts, or write your models there by hand",
        )
    if config.gateway.openai_api.enabled:
        yield ("model_list",), "is empty, so there is no model that could answer"
    for place, name in references(json):
        if isinstance(name, str) and name:
            yield place, f"{quoted(name)} names nothing, since model_list is empty"


def _of_models(config: Config) -> Iterator[tuple[Place, str]]:
    for index, model in enumerate(config.model_list):
        place, vendor, name = ("model_list", index), VENDORS[model.vendor], quoted(model.model_name)
        if model.model_name in model.fallbacks:
            inner = (*place, "fallbacks", model.fallbacks.index(model.model_name))
            yield inner, "is the entry's own model_name, and is passed over: entries of one name are tried anyway"
        if not model.is_usable:
            yield place, f"{name} {model.where}"
        elif not vendor.speaks_openai and vendor.name != ECHO:
            yield place, f"{name} is asked in OpenAI's protocol, not in that of {vendor.name}"


def _of_agents(config: Config) -> Iterator[tuple[Place, str]]:
    marked = [index for index, agent in enumerate(config.agents.list) if agent.default]
    for index in marked[1:]:
        yield (
            ("agents", "list", index, "default"),
            f"counts for nothing: $.agents.list[{marked[0]}] is the default agent",
        )
