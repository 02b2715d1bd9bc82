"""The models that are at hand: of servers on this machine, and of vendors whose key stands in the environment.

Theory: a local server is asked what it serves, the way any client would; a vendor is not asked anything, since its key
alone says that it can be. Whatever listens at a port is a stranger: its answer is bounded in time and size, and what
does not look like a list of models counts as no server.
Editing rule: nothing here connects to anything but a loopback address, and no key is read, only seen to be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import attrs
import h11
import orjson
import trio

from ..config import reachable
from ..config.vendors import VENDORS

# A server on this machine answers within milliseconds, or is busy loading a model.
ASK_TIMEOUT = 2.0
MAX_ANSWER_BYTES = 1024 * 1024
MAX_MODELS = 30
# Models that give numbers or sounds for an answer.
NOT_FOR_CHAT = re.compile(r"embed|rerank|minilm|whisper|(^|[/_-])(bge|tts)-", re.IGNORECASE)
ID = re.compile(r"(?!/)(?!.*//)[^\s]{1,200}(?<!/)")


@attrs.frozen
class Offer:
    """A model that could answer.

    Attributes:
        model: the id as its server knows it.
        vendor: a vendor's name, in front of the id in the configuration.
        source: where it is, for people.
        api_base: None for the vendor's own.
        variable: of the environment, that holds the key; None where none is needed.
    """

    model: str
    vendor: str
    source: str
    api_base: str | None = None
    variable: str | None = None

    def entry(self, alias: str) -> dict[str, str]:
        """The ``model_list`` entry."""
        entry = {"model_name": alias, "model": f"{self.vendor}/{self.model}"}
        if self.api_base is not None:
            entry["api_base"] = self.api_base
        if self.variable is not None:
            entry["api_key"] = f"env:{self.variable}"
        return entry


ECHO = Offer("echo", "echo", "repeats what it is asked, to try things out")


@attrs.frozen
class Server:
    """A kind of server that people run on their own machine; *base* is where it listens."""

    vendor: str
    title: str
    base: str

    @property
    def api_base(self) -> str | None:
        return None if self.base == VENDORS[self.vendor].default_api_base else self.base


def _usual(vendor: str, title: str) -> Server:
    return Server(vendor, title, VENDORS[vendor].default_api_base or "")


SERVERS = (_usual("ollama", "Ollama"), _usual("lmstudio", "LM Studio"), _usual("vllm", "vLLM"))


@attrs.frozen
class Cloud:
    """A vendor's key in the environment, and a model that the vendor has had under this id for long."""

    variable: str
    vendor: str
    title: str
    model: str
    api_base: str | None = None


CLOUDS = (
    Cloud("OPENAI_API_KEY", "openai", "OpenAI", "gpt-5.4"),
    Cloud("ANTHROPIC_API_KEY", "anthropic", "Anthropic", "claude-sonnet-4-6"),
    Cloud("OPENROUTER_API_KEY", "openrouter", "OpenRouter", "openrouter/auto"),
    Cloud("DEEPSEEK_API_KEY", "deepseek", "DeepSeek", "deepseek-chat"),
    Cloud("DASHSCOPE_API_KEY", "qwen", "Qwen", "qwen-plus"),
    Cloud("GROQ_API_KEY", "groq", "Groq", "llama-3.3-70b-versatile"),
    Cloud("MISTRAL_API_KEY", "mistral", "Mistral", "mistral-small-latest"),
    Cloud("CEREBRAS_API_KEY", "cerebras", "Cerebras", "llama-3.3-70b"),
    # Gemini's own protocol is another; at this address it speaks OpenAI's.
    Cloud(
        "GEMINI_API_KEY",
        "openai",
        "Gemini",
        "gemini-2.5-flash",
        "https://generativelanguage.googleapis.com/v1beta/openai",
    ),
)


def servers_at_hand(environ: Mapping[str, str]) -> tuple[Server, ...]:
    """The servers that may be on this machine; ``OLLAMA_HOST`` says where Ollama is, and if on another, it is not."""
    ollama, *others = SERVERS
    named = environ.get("OLLAMA_HOST", "").strip(" \"'")
    base = _ollama_base(named) if named else ollama.base
    return (*((attrs.evolve(ollama, base=base),) if base else ()), *others)


def _ollama_base(named: str) -> str | None:
    """``:11434`` or ``http://0.0.0.0:11434`` -> an address on loopback; None if it is elsewhere, or is no address."""
    try:
        parts = urlsplit(named if "://" in named else f"http://{named}")
        host, port = parts.hostname or "127.0.0.1", parts.port or (80 if "://" in named else 11434)
    except ValueError:
        return None
    # An address to listen on: every one of this machine's, loopback among them.
    host = reachable(host)
    if parts.scheme != "http" or not _is_loopback(host):
        return None
    if port == 11434 and host in ("localhost", "127.0.0.1"):
        return VENDORS["ollama"].default_api_base
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ("%" not in host and ip_address(host).is_loopback)
    except ValueError:
        return False


def find_keys(environ: Mapping[str, str]) -> tuple[Offer, ...]:
    """A model of each vendor whose key stands in the environment, in a shape that a header could hold."""
    return tuple(
        Offer(cloud.model, cloud.vendor, f"{cloud.title}, key in {cloud.variable}", cloud.api_base, cloud.variable)
        for cloud in CLOUDS
        if is_key(environ.get(cloud.variable, ""))
    )


def is_key(text: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]+", text) is not None


async def find_served(servers: tuple[Server, ...], timeout: float = ASK_TIMEOUT) -> tuple[Offer, ...]:
    """The models that *servers* serve, up to ``MAX_MODELS`` of each; all are asked at once, for *timeout* seconds."""
    found: dict[Server, tuple[Offer, ...]] = {}

    async def ask(server: Server) -> None:
        found[server] = tuple(
            Offer(model, server.vendor, f"{server.title} at {server.base}", server.api_base)
            for model in _ids(await _get_models(server.base))
        )

    with trio.move_on_after(timeout):
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(ask, server)
    return tuple(offer for server in servers for offer in found.get(server, ()))


def _ids(raw: bytes | None) -> list[str]:
    """The ids in a list of models; none if it is something else."""
    try:
        answer: Any = orjson.loads(raw or b"")
    except orjson.JSONDecodeError:
        return []
    rows = answer.get("data") if isinstance(answer, dict) else None
    ids = (row.get("id") for row in (rows if isinstance(rows, list) else ()) if isinstance(row, dict))
    return list(dict.fromkeys(name for name in ids if isinstance(name, str) and _is_usable(name)))[:MAX_MODELS]


def _is_usable(name: str) -> bool:
    """Whether the configuration could hold the id, a terminal could show it, and the model answers in words."""
    return name.isprintable() and ID.fullmatch(name) is not None and NOT_FOR_CHAT.search(name) is None


async def _get_models(base: str) -> bytes | None:
    """What ``GET {base}/models`` gives; None if that is no success.

    Raises:
        ValueError: *base* is not on this machine.
    """
    url = urlsplit(base)
    host = url.hostname or ""
    if not _is_loopback(host):
        raise ValueError(f"{base} is not on this machine")
    # What else a name may lead to is up to files and servers, so it is not looked up.
    for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
        try:
            async with await trio.open_tcp_stream(address, url.port or 80) as stream:
                return await _ask(stream, url.netloc, f"{url.path}/models")
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            continue
    return None


async def _ask(stream: trio.SocketStream, authority: str, path: str) -> bytes | None:
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", authority), ("Accept", "application/json"), ("Connection", "close")]
    request = http.send(h11.Request(method="GET", target=path, headers=headers)) or b""
    await stream.send_all(request + (http.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while len(body) <= MAX_ANSWER_BYTES:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif not isinstance(event, h11.Response | h11.InformationalResponse) or event.status_code >= 300:
            return None
    return None


def aliases(offers: tuple[Offer, ...]) -> Iterator[tuple[str, Offer]]:
    """Each offer with a name of its own: its id, or where another has that, its vendor and id."""
    taken: set[str] = set()
    for offer in offers:
        alias = offer.model if offer.model not in taken else f"{offer.vendor}/{offer.model}"
        if alias not in taken:
            taken.add(alias)
            yield alias, offer
