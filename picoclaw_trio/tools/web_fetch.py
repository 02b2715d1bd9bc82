"""The tool that reads a web page.

Theory: what the model gets to fetch is what anybody on the internet could, and nothing that only this machine or its
network can: addresses are checked at every step, and nothing that belongs to us goes along (no cookies, no
credentials, no proxy of the environment). Time, bytes and characters each have a bound.
Editing rule: redirects are followed here and nowhere else, so that each is checked like the first address.
"""

from __future__ import annotations

import re
from email.message import Message
from functools import partial
from urllib.parse import urljoin

import attrs
import trio

from ..config.tools import WebFetchConfig
from ..connections.addresses import Url, parse_url
from ..connections.dialing import trust_system
from .arguments import make_tool, text, whole_number
from .clean import clean_text
from .public_addresses import AddressRules
from .values import Tool, ToolError
from .web_client import Page, Resolve, Trust, WebClient, resolve_host
from .web_text import decode_text, page_text

MAX_URL = 4_096
MAX_ERROR_CHARS = 2_000
REDIRECTS = (301, 302, 303, 307, 308)
HTML = ("text/html", "application/xhtml+xml")
TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|javascript|x-ndjson|x-yaml|toml|sql)")
LOOKS_LIKE_HTML = re.compile(rb"\s*<(!doctype html|html)[\s>]", re.IGNORECASE)
# Pages that are turned into text at the same time, each in a thread.
MAX_THREADS = 2


def web_fetch_tool(config: WebFetchConfig, *, resolve: Resolve = resolve_host, trust: Trust = trust_system) -> Tool:
    """``web_fetch``: GET a page and give it as text.

    Only hosts of the public internet, at each redirect too, and those of ``config.private_hosts``. No cookies, no
    credentials; the proxies of the environment are not used, since the check of the addresses must be ours.

    Args:
        resolve: gives all addresses of a host; what it gives is connected to.
        trust: gives the TLS settings; called once, in a thread.

    Raises:
        ValueError: one of ``config.private_hosts`` is neither a network nor an address.
    """
    client = WebClient(AddressRules.parse(config.private_hosts), resolve, trust, config.max_bytes)
    threads = trio.CapacityLimiter(MAX_THREADS)
    most = config.max_chars

    @attrs.frozen
    class Arguments:
        url: str = text("Address of the page, with http:// or https://.", min_chars=1, max_chars=MAX_URL)
        max_chars: int = whole_number("Characters at most.", minimum=1, maximum=most, default=most)

    async def run(arguments: Arguments) -> str:
        with trio.move_on_after(config.timeout):
            url, page = await _follow(client, arguments.url, config.max_redirects)
            work = partial(_tell, url, page, arguments.max_chars)
            told = await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=threads)
            if page.status >= 400:
                raise ToolError(told)
            return told
        raise ToolError(f"The page was not there within {config.timeout:g} s.")

    description = "Read a public web page, or a text or JSON file on the web, by its address. Gives its text."
    return make_tool("web_fetch", description, Arguments, run)


async def _follow(client: WebClient, address: str, max_redirects: int) -> tuple[str, Page]:
    """The page at the end of all redirects, and its address."""
    for _ in range(max_redirects + 1):
        page = await client.get(_parse(address))
        location = page.headers.get("location")
        if page.status not in REDIRECTS or location is None:
            return address, page
        address = _join(address, location)
    raise ToolError(f"There are more than {max_redirects} redirects.")


def _parse(address: str) -> Url:
    try:
        return parse_url(address)
    except ValueError as exc:
        raise ToolError(f"This cannot be fetched: {exc}.") from exc


def _join(address: str, location: str) -> str:
    try:
        joined = urljoin(address, location)
    except ValueError as exc:
        raise ToolError("A redirect leads to what is no address.") from exc
    if len(joined) > MAX_URL:
        raise ToolError(f"A redirect leads to an address of more than {MAX_URL} characters.")
    return joined


def _tell(url: str, page: Page, max_chars: int) -> str:
    """What the model gets: a line about the page, then its text."""
    kind, charset = _content_type(page)
    size = f"more than {len(page.body)}" if page.is_cut else f"{len(page.body)}"
    about = f"{clean_text(url, MAX_URL)} (status {page.status}, {kind or 'no type'}, {size} bytes)"
    if page.status >= 400:
        max_chars = min(max_chars, MAX_ERROR_CHARS)
    is_html = kind in HTML or (not kind and LOOKS_LIKE_HTML.match(page.body) is not None)
    is_binary = b"\0" in page.body[:4096] and not (charset or "").lower().startswith("utf-")
    if is_binary or not (is_html or TEXT.fullmatch(kind) or not kind):
        return f"{about}\n\n[no text: not shown]"
    source = decode_text(page.body, charset, is_html=is_html)
    found = page_text(source, url, max_chars) if is_html else source.replace("\r\n", "\n")
    if len(found) > max_chars:
        return f"{about}\n\n{clean_text(found, max_chars)}\n\n[cut after {max_chars} characters]"
    cut = "\n\n[the page is longer: the rest was not fetched]" if page.is_cut else ""
    return f"{about}\n\n{clean_text(found, max_chars)}{cut}"


def _content_type(page: Page) -> tuple[str, str | None]:
    header = Message()
    header["content-type"] = page.headers.get("content-type", "")[:300].replace("\n", " ")
    kind = header.get_content_type() if "/" in page.headers.get("content-type", "") else ""
    charset = header.get_param("charset")
    return kind, charset if isinstance(charset, str) else None
