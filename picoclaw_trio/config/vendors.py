"""Which vendor a model is asked of: ``groq/llama-3.3-70b`` -> Groq's address and the id that Groq knows.

Theory: PicoClaw names a vendor in ``provider``, or as a prefix of ``model``. This gateway speaks one protocol, OpenAI's
chat completions; of a vendor that speaks only its own, the name is known, so that PicoClaw's files load.
Editing rule: a vendor is one row of VENDORS, another spelling of it one row of ALIASES. Nothing else names a vendor.
"""

from __future__ import annotations

import difflib

import attrs


@attrs.frozen
class Vendor:
    """One row of the table.

    Attributes:
        name: canonical spelling, e.g. ``openai``.
        default_api_base: address in front of ``/chat/completions``, for entries without one; None where there is none.
        needs_key: whether an entry that gives neither a key nor an address can only be a mistake.
        speaks_openai: whether it can be asked as it is; if not, only through an address that the entry gives.
    """

    name: str
    default_api_base: str | None
    needs_key: bool = True
    speaks_openai: bool = True


class UnknownVendorError(LookupError):
    """A ``provider`` that is in neither table; its text names the nearest that is."""


def _cloud(name: str, api_base: str) -> Vendor:
    return Vendor(name, api_base)


def _local(name: str, api_base: str) -> Vendor:
    return Vendor(name, api_base, needs_key=False)


def _foreign(name: str) -> Vendor:
    return Vendor(name, None, needs_key=False, speaks_openai=False)


ECHO = "echo"
DEFAULT_VENDOR = "openai"

VENDORS: dict[str, Vendor] = {
    vendor.name: vendor
    for vendor in (
        Vendor(ECHO, None, needs_key=False, speaks_openai=False),  # answers in process: no address, no key
        _cloud("openai", "https://api.openai.com/v1"),
        _cloud("anthropic", "https://api.anthropic.com/v1"),
        _cloud("deepseek", "https://api.deepseek.com/v1"),
        _cloud("openrouter", "https://openrouter.ai/api/v1"),
        _cloud("qwen-portal", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
        _cloud("qwen-intl", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
        _cloud("qwen-us", "https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
        _cloud("moonshot", "https://api.moonshot.cn/v1"),
        _cloud("volcengine", "https://ark.cn-beijing.volces.com/api/v3"),
        _cloud("zhipu", "https://open.bigmodel.cn/api/paas/v4"),
        _cloud("zai", "https://api.z.ai/api/coding/paas/v4"),
        _cloud("groq", "https://api.groq.com/openai/v1"),
        _cloud("mistral", "https://api.mistral.ai/v1"),
        _cloud("nvidia", "https://integrate.api.nvidia.com/v1"),
        _cloud("cerebras", "https://api.cerebras.ai/v1"),
        _cloud("venice", "https://api.venice.ai/api/v1"),
        _cloud("shengsuanyun", "https://router.shengsuanyun.com/api/v1"),
        _cloud("siliconflow", "https://api.siliconflow.cn/v1"),
        _cloud("vivgrid", "https://api.vivgrid.com/v1"),
        _cloud("minimax", "https://api.minimaxi.com/v1"),
        _cloud("longcat", "https://api.longcat.chat/openai"),
        _cloud("modelscope", "https://api-inference.modelscope.cn/v1"),
        _cloud("mimo", "https://api.xiaomimimo.com/v1"),
        _cloud("avian", "https://api.avian.io/v1"),
        _cloud("alibaba-coding", "https://coding-intl.dashscope.aliyuncs.com/v1"),
        _cloud("novita", "https://api.novita.ai/openai"),
        _cloud("litellm", "http://localhost:4000/v1"),
        _local("ollama", "http://localhost:11434/v1"),
        _local("vllm", "http://localhost:8000/v1"),
        _local("lmstudio", "http://localhost:1234/v1"),
        _local("gpt4free", "http://localhost:1337/v1"),
        _foreign("anthropic-messages"),
        _foreign("gemini"),
        _foreign("azure"),
        _foreign("bedrock"),
        _foreign("github-copilot"),
        _foreign("antigravity"),
        _foreign("claude-cli"),
        _foreign("codex-cli"),
        _foreign("elevenlabs"),
        _foreign("alibaba-coding-anthropic"),
    )
}

# {another spelling: canonical name}
ALIASES: dict[str, str] = {
    "gpt": "openai",
    "claude": "anthropic",
    "google": "gemini",
    "qwen": "qwen-portal",
    "qwen-international": "qwen-intl",
    "dashscope-intl": "qwen-intl",
    "dashscope-us": "qwen-us",
    "glm": "zhipu",
    "z.ai": "zai",
    "z-ai": "zai",
    "azure-openai": "azure",
    "copilot": "github-copilot",
    "google-antigravity": "antigravity",
    "claudecli": "claude-cli",
    "codexcli": "codex-cli",
    "g4f": "gpt4free",
    "coding-plan": "alibaba-coding",
    "qwen-coding": "alibaba-coding",
    "coding-plan-anthropic": "alibaba-coding-anthropic",
}


def find_vendor(name: str) -> Vendor | None:
    """The vendor of that name or alias, in whatever case; None if there is none."""
    name = name.strip().lower()
    return VENDORS.get(ALIASES.get(name, name))


def resolve(provider: str | None, model: str) -> tuple[Vendor, str]:
    """Find the vendor of a ``model_list`` entry, and the id under which that vendor knows the model.

    With *provider* the id is *model*, unchanged. Without, what stands before the first slash is taken off if it names a
    vendor; if it does not, or there is no slash, the whole is an id of OpenAI's.

    Raises:
        UnknownVendorError: *provider* is not None, not empty, and names no vendor.
    """
    if provider:
        return _known(provider), model
    prefix, slash, rest = model.partition("/")
    vendor = find_vendor(prefix) if slash else None
    return (vendor, rest) if vendor else (VENDORS[DEFAULT_VENDOR], model)


def _known(provider: str) -> Vendor:
    vendor = find_vendor(provider)
    if vendor is None:
        near = difflib.get_close_matches(provider[:60].lower(), [*VENDORS, *ALIASES], n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise UnknownVendorError(f"no vendor is called {provider!r:.60}{hint}")
    return vendor
