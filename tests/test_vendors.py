from __future__ import annotations

import pytest

from picoclaw_trio.config.checks import check_url
from picoclaw_trio.config.vendors import ALIASES, VENDORS, UnknownVendorError, find_vendor, resolve

FOREIGN = {
    "anthropic-messages",
    "gemini",
    "bedrock",
    "azure",
    "github-copilot",
    "antigravity",
    "claude-cli",
    "codex-cli",
    "elevenlabs",
    "alibaba-coding-anthropic",
}


def split(provider: str | None, model: str) -> tuple[str, str]:
    vendor, model_id = resolve(provider, model)
    return vendor.name, model_id


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        (None, "groq/llama-3.3-70b", ("groq", "llama-3.3-70b")),
        (None, "nvidia/z-ai/glm-5.1", ("nvidia", "z-ai/glm-5.1")),
        (None, "openrouter/openai/gpt-5.4", ("openrouter", "openai/gpt-5.4")),
        (None, "Qwen/qwen3-max", ("qwen-portal", "qwen3-max")),
        (None, "meta-llama/llama-3", ("openai", "meta-llama/llama-3")),
        (None, "gpt-5.4", ("openai", "gpt-5.4")),
        (None, "groq", ("openai", "groq")),
        (None, "echo/anything", ("echo", "anything")),
        ("", "ollama/qwen3", ("ollama", "qwen3")),
        ("nvidia", "z-ai/glm-5.1", ("nvidia", "z-ai/glm-5.1")),
        ("openai", "openai/gpt-4o", ("openai", "openai/gpt-4o")),
        (" Claude ", "claude-opus-4-7", ("anthropic", "claude-opus-4-7")),
    ],
)
def test_provider_or_known_prefix_names_the_vendor(provider: str | None, model: str, expected: tuple[str, str]) -> None:
    assert expected == split(provider, model)


def test_unknown_provider_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UnknownVendorError, match=r"no vendor is called 'deepsek'; did you mean \"deepseek\"\?"):
        resolve("deepsek", "deepseek-chat")


def test_unknown_provider_near_to_none_is_refused_without_a_guess() -> None:
    with pytest.raises(UnknownVendorError, match=r"no vendor is called '%{59}$"):
        resolve("%" * 1_000_000, "m")


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_alias_is_another_spelling_of_a_vendor(alias: str, name: str) -> None:
    assert alias not in VENDORS
    assert VENDORS[name] == find_vendor(alias) == find_vendor(alias.upper())


@pytest.mark.parametrize("name", VENDORS)
def test_vendor_that_speaks_openai_has_an_address_and_no_other_has(name: str) -> None:
    vendor = VENDORS[name]
    assert name == vendor.name == name.lower()
    assert vendor.speaks_openai == (vendor.default_api_base is not None)
    if vendor.default_api_base is not None:
        assert vendor.default_api_base == check_url(vendor.default_api_base, ("http", "https"))


def test_foreign_vendors_and_echo_are_those_that_do_not_speak_openai() -> None:
    assert FOREIGN | {"echo"} == {vendor.name for vendor in VENDORS.values() if not vendor.speaks_openai}


def test_local_and_foreign_vendors_and_echo_need_no_key() -> None:
    local = {"ollama", "vllm", "lmstudio", "gpt4free"}
    assert FOREIGN | local | {"echo"} == {vendor.name for vendor in VENDORS.values() if not vendor.needs_key}
