"""Fetching pages from real servers on loopback, which are let in by name or by a resolver that the test gives."""

from __future__ import annotations

import gzip
import json
import ssl
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trustme
from raw_upstream import Script, answer, open_upstream, read_head, run_cancelled_at
from serving import wait_until

from picoclaw_trio.config.tools import WebFetchConfig
from picoclaw_trio.tools import ToolError
from picoclaw_trio.tools.web_client import Found
from picoclaw_trio.tools.web_fetch import web_fetch_tool

LOCAL = ("127.0.0.0/8",)


def page(body: bytes | str, *headers: str, kind: str = "text/plain; charset=utf-8", status: str = "200 OK") -> Script:
    return serve(
        {
            "/": answer(
                body.encode() if isinstance(body, str) else body, f"content-type: {kind}", *headers, status=status
            )
        }
    )


def serve(answers: dict[str, bytes], seen: list[bytes] | None = None) -> Script:
    async def script(stream: trio.abc.Stream) -> None:
        head, _ = await read_head(stream)
        if seen is not None:
            seen.append(head)
        if head:
            await stream.send_all(answers[head.split()[1].decode()])

    return script


def redirect(target: str, status: str = "302 Found") -> bytes:
    return answer(b"elsewhere", f"location: {target}", status=status)


async def fetch(url: str, **config: Any) -> str:
    return await web_fetch_tool(WebFetchConfig(**{"private_hosts": LOCAL, **config})).run({"url": url})


async def test_text_is_given_as_it_is() -> None:
    async with open_upstream(page("Grüße\r\nzwei")) as server:
        url = f"http://{server.address}/"
        assert f"{url} (status 200, text/plain, 13 bytes)\n\nGrüße\nzwei" == await fetch(url)


async def test_html_becomes_readable() -> None:
    source = "<title>Title</title><h1>Head</h1><p>Some <a href='/x'>link</a><script>no()</script>"
    async with open_upstream(page(source, kind="text/html")) as server:
        text = await fetch(f"http://{server.address}/")
        assert f"Title\n\n# Head\n\nSome [link](http://{server.address}/x)" == text.partition("\n\n")[2]


async def test_json_is_given_as_it_is() -> None:
    body = json.dumps({"a": [1, 2]})
    async with open_upstream(page(body, kind="application/ld+json")) as server:
        assert (await fetch(f"http://{server.address}/")).endswith(f"\n\n{body}")


@pytest.mark.parametrize(("kind", "body"), [("image/png", b"\x89PNG"), ("text/plain", b"a\0b"), ("", b"\0\1")])
async def test_what_is_no_text_is_told_by_type_and_size(kind: str, body: bytes) -> None:
    async with open_upstream(page(body, kind=kind)) as server:
        url = f"http://{server.address}/"
        assert f"{url} (status 200, {kind or 'no type'}, {len(body)} bytes)\n\n[no text: not shown]" == await fetch(url)


async def test_text_is_cut_where_asked_or_configured() -> None:
    async with open_upstream(page("x" * 1000)) as server:
        url = f"http://{server.address}/"
        assert (await fetch(url, max_chars=100)).endswith("\n\n" + "x" * 99 + "…\n\n[cut after 100 characters]")
        few = web_fetch_tool(WebFetchConfig(private_hosts=LOCAL, max_chars=50))
        assert "[cut after 50 characters]" in await few.run({"url": url})
        with pytest.raises(ToolError, match="max_chars"):
            await few.run({"url": url, "max_chars": 51})


async def test_request_bears_nothing_of_ours() -> None:
    seen: list[bytes] = []
    async with open_upstream(serve({"/p%20q?r=%C3%A9": answer(b"ok", "content-type: text/plain")}, seen)) as server:
        await fetch(f"http://{server.address}/p q?r=é#part")
    (head,) = seen
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert {b"host", b"user-agent", b"accept", b"accept-encoding", b"connection"} == names


async def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with open_upstream(page("direct")) as server:
        assert "direct" in await fetch(f"http://{server.address}/")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0"],
)
async def test_loopback_is_refused_however_it_is_spelt(host: str) -> None:
    async with open_upstream(page("secret")) as server:
        port = server.address.rpartition(":")[2]
        with pytest.raises(ToolError, match="not on the public internet"):
            await fetch(f"http://{host}:{port}/", private_hosts=())
        assert 0 == server.accepted


@pytest.mark.parametrize("target", ["http://127.0.0.2:{port}/", "//127.0.0.2:{port}/", "http://localhost:8080/"])
async def test_redirect_to_a_private_address_is_refused(target: str) -> None:
    answers = {"/": b"", "/secret": answer(b"secret")}
    async with open_upstream(serve(answers)) as server:
        answers["/"] = redirect(target.format(port=server.address.rpartition(":")[2]))
        tool = web_fetch_tool(
            WebFetchConfig(private_hosts=("127.0.0.1",)), resolve=at("127.0.0.1", localhost="10.0.0.1")
        )
        with pytest.raises(ToolError, match="not on the public internet"):
            await tool.run({"url": f"http://{server.address}/"})
        assert 1 == server.accepted


def at(*default: str, **hosts: str) -> Callable[[str, int], Any]:
    """A resolver that knows what it is told, and addresses."""

    async def resolve(host: str, port: int) -> list[Found]:
        addresses = [hosts[host]] if host in hosts else ([host] if host[0].isdigit() else list(default))
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    return resolve


async def test_host_with_one_private_address_is_refused() -> None:
    tool = web_fetch_tool(WebFetchConfig(), resolve=at("93.184.216.34", "10.0.0.1"))
    with pytest.raises(ToolError, match=r"example\.org is not on the public internet"):
        await tool.run({"url": "http://example.org/"})


async def test_connection_is_made_to_the_address_that_was_checked() -> None:
    """A name that points elsewhere when it is looked up again changes nothing: it is looked up once."""
    asked = []

    async def rebind(host: str, port: int) -> list[Found]:
        asked.append(host)
        address = ["127.0.0.1", "10.0.0.1"][len(asked) - 1]
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 0, "", (address, port))]

    async with open_upstream(page("once")) as server:
        tool = web_fetch_tool(WebFetchConfig(private_hosts=LOCAL), resolve=rebind)
        assert "once" in await tool.run({"url": f"http://rebind.example:{server.address.rpartition(':')[2]}/"})
    assert ["rebind.example"] == asked


async def test_name_that_points_elsewhere_after_a_redirect_is_refused() -> None:
    asked = []

    async def rebind(host: str, port: int) -> list[Found]:
        asked.append(host)
        address = ["127.0.0.1", "10.0.0.1"][len(asked) - 1]
        return [(trio.socket.AF_INET, trio.socket.SOCK_STREAM, 0, "", (address, port))]

    async with open_upstream(serve({"/": redirect("/again")})) as server:
        tool = web_fetch_tool(WebFetchConfig(private_hosts=LOCAL), resolve=rebind)
        with pytest.raises(ToolError, match="not on the public internet"):
            await tool.run({"url": f"http://rebind.example:{server.address.rpartition(':')[2]}/"})


async def test_next_address_is_tried_when_one_takes_no_connection() -> None:
    async with open_upstream(page("second")) as server:
        tool = web_fetch_tool(WebFetchConfig(private_hosts=LOCAL), resolve=at("127.0.0.9", "127.0.0.1"))
        assert "second" in await tool.run({"url": f"http://two.example:{server.address.rpartition(':')[2]}/"})


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://user:secret@example.org/",
        "http://",
        "http://exa mple/",
        "http://[::1/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://example.org:25/",
        "gopher",
        "",
    ],
)
async def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(ToolError) as caught:
        await web_fetch_tool(WebFetchConfig(), resolve=at("127.0.0.1")).run({"url": url})
    assert "secret" not in str(caught.value)


async def test_unknown_host_is_an_error() -> None:
    async def fail(host: str, port: int) -> list[Found]:
        raise OSError("no")

    with pytest.raises(ToolError, match=r"There is no host nowhere\.example"):
        await web_fetch_tool(WebFetchConfig(), resolve=fail).run({"url": "http://nowhere.example/"})


async def test_redirects_are_followed_to_their_bound() -> None:
    answers = {f"/{number}": redirect(f"/{number + 1}", "308 Permanent Redirect") for number in range(3)}
    async with open_upstream(serve({**answers, "/3": answer(b"there", "content-type: text/plain")})) as server:
        url = f"http://{server.address}/0"
        assert f"http://{server.address}/3 (status 200, text/plain, 5 bytes)\n\nthere" == await fetch(
            url, max_redirects=3
        )
        with pytest.raises(ToolError, match="more than 2 redirects"):
            await fetch(url, max_redirects=2)


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "http://u:p@127.0.0.1/", "http://[/", "http://x.example/" + "y" * 5000]
)
async def test_redirect_to_what_is_no_web_address_is_refused(target: str) -> None:
    async with open_upstream(serve({"/": redirect(target)})) as server:
        with pytest.raises(ToolError):
            await fetch(f"http://{server.address}/")


async def test_redirect_in_a_circle_ends() -> None:
    async with open_upstream(serve({"/": redirect("/")})) as server:
        with pytest.raises(ToolError, match="more than 5 redirects"):
            await fetch(f"http://{server.address}/")
        assert 6 == server.accepted


async def test_error_page_is_an_error_with_its_text() -> None:
    async with open_upstream(page("No such page. " * 1000, status="404 Not Found")) as server:
        with pytest.raises(ToolError, match=r"\(status 404, text/plain, 14000 bytes\)\n\nNo such page\. ") as caught:
            await fetch(f"http://{server.address}/")
        assert 3000 > len(str(caught.value))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_packed_page_is_unpacked(coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    async with open_upstream(page(pack(b"unpacked"), f"content-encoding: {coding}")) as server:
        assert (await fetch(f"http://{server.address}/")).endswith("\n\nunpacked")


@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "gzip"])
async def test_page_that_cannot_be_unpacked_is_an_error(coding: str) -> None:
    async with open_upstream(page(b"not packed", f"content-encoding: {coding}")) as server:
        with pytest.raises(ToolError, match="packed"):
            await fetch(f"http://{server.address}/")


@pytest.mark.parametrize(("coding", "member"), [("gzip", gzip.compress(b"")), ("deflate", b"\x03\0")])
async def test_page_of_empty_members_is_an_error(coding: str, member: bytes) -> None:
    async with open_upstream(page(member * 20_000, f"content-encoding: {coding}")) as server:
        with pytest.raises(ToolError, match="packed"):
            await fetch(f"http://{server.address}/")


async def test_packed_bomb_is_read_to_its_bound_only() -> None:
    bomb = gzip.compress(b"x" * 50_000_000)
    async with open_upstream(page(bomb, "content-encoding: gzip")) as server:
        text = await fetch(f"http://{server.address}/", max_bytes=100_000, max_chars=200_000)
        assert "more than 100000 bytes" in text
        assert 100_200 > len(text)
        await server.wait_open(0)


GZIP_HEAD = gzip.compress(b"")[:10]
EMPTY_BLOCK = b"\0\0\0\xff\xff"  # RFC 1951 section 3.2.4


@pytest.mark.parametrize(
    ("coding", "start", "piece"),
    [("identity", b"", b"x" * 1000), ("gzip", GZIP_HEAD, EMPTY_BLOCK * 200)],
    ids=["plain", "packed to nothing"],
)
async def test_body_without_end_is_read_to_its_bound_only(coding: str, start: bytes, piece: bytes) -> None:
    async def endless(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-encoding: {coding}\r\n\r\n"
        await stream.send_all(head.encode() + start)
        while True:
            await stream.send_all(piece)

    async with open_upstream(endless) as server:
        assert "more than" in await fetch(f"http://{server.address}/", max_bytes=50_000)
        await server.wait_open(0)


async def test_head_without_end_is_an_error() -> None:
    async def endless(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"x-more: " + b"y" * 1000 + b"\r\n")

    async with open_upstream(endless) as server:
        with pytest.raises(ToolError, match="did not answer in HTTP"):
            await fetch(f"http://{server.address}/")
        await server.wait_open(0)


@pytest.mark.parametrize(
    "data", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhi", b"HTTP/1.1 200 OK\r\n"]
)
async def test_half_an_answer_is_an_error(data: bytes) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        await stream.send_all(data)

    async with open_upstream(script) as server:
        with pytest.raises(ToolError, match="broke off"):
            await fetch(f"http://{server.address}/")


async def silent(stream: trio.abc.Stream) -> None:
    await read_head(stream)
    await stream.receive_some()


async def test_server_that_says_nothing_is_given_up() -> None:
    async with open_upstream(silent) as server:
        with pytest.raises(ToolError, match=r"not there within 0\.2 s"):
            await fetch(f"http://{server.address}/", timeout=0.2)
        await server.wait_open(0)


async def test_timeout_is_that_of_all_redirects_together() -> None:
    async def slow(stream: trio.abc.Stream) -> None:
        await read_head(stream)
        with trio.move_on_after(0.1):
            await stream.receive_some()
        await stream.send_all(redirect("/"))

    async with open_upstream(slow) as server:
        with pytest.raises(ToolError, match="not there within"):
            await fetch(f"http://{server.address}/", timeout=0.5, max_redirects=20)


async def test_cancellation_closes_the_connection() -> None:
    async with open_upstream(silent) as server, trio.open_nursery() as nursery:
        nursery.start_soon(fetch, f"http://{server.address}/")
        await wait_until(lambda: server.accepted == 1)
        nursery.cancel_scope.cancel()
    await server.wait_open(0)


async def test_cancellation_at_any_step_leaves_no_connection() -> None:
    async with open_upstream(
        page(gzip.compress(b"<p>text" * 1000), "content-encoding: gzip", kind="text/html")
    ) as server:
        number = 1
        while await run_cancelled_at(number, lambda: fetch(f"http://{server.address}/")):
            await server.wait_open(0)
            number += 1
    assert 5 < number


async def test_nobody_listening_is_an_error() -> None:
    async with open_upstream(silent) as server:
        url = f"http://{server.address}/"
    with pytest.raises(ToolError, match="No connection to"):
        await fetch(url)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(authority: trustme.CA, name: str) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(tls)
    return tls


def trusting(authority: trustme.CA) -> Callable[[], ssl.SSLContext]:
    def trust() -> ssl.SSLContext:
        tls = ssl.create_default_context()
        authority.configure_trust(tls)
        return tls

    return trust


async def test_certificate_is_checked_for_the_hosts_name(authority: trustme.CA) -> None:
    names: list[str | None] = []
    tls = tls_of(authority, "good.example")
    tls.sni_callback = lambda _socket, name, _tls: names.append(name)
    config = WebFetchConfig(private_hosts=LOCAL)
    tool = web_fetch_tool(config, resolve=at("127.0.0.1"), trust=trusting(authority))
    async with open_upstream(page("over TLS"), tls=tls) as server:
        port = server.address.rpartition(":")[2]
        assert "over TLS" in await tool.run({"url": f"https://good.example:{port}/"})
        with pytest.raises(ToolError, match=r"TLS with other\.example"):
            await tool.run({"url": f"https://other.example:{port}/"})
        strict = web_fetch_tool(config, resolve=at("127.0.0.1"))
        with pytest.raises(ToolError, match=r"TLS with good\.example"):
            await strict.run({"url": f"https://good.example:{port}/"})
    assert ["good.example", "other.example", "good.example"] == names


async def test_page_without_tls_is_no_answer_over_tls(authority: trustme.CA) -> None:
    async def plain(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer(b"plain"))

    tool = web_fetch_tool(WebFetchConfig(private_hosts=LOCAL), resolve=at("127.0.0.1"), trust=trusting(authority))
    async with open_upstream(plain) as server:
        with pytest.raises(ToolError, match="TLS with"):
            await tool.run({"url": f"https://{server.address}/"})


def test_exemption_that_is_no_address_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="wiki"):
        web_fetch_tool(WebFetchConfig(private_hosts=("wiki.example",)))
