from __future__ import annotations

import shutil
import socket
import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trustme
from raw_upstream import (
    Script,
    always,
    answer,
    http_proxy,
    open_upstream,
    read_request,
    run_cancelled_at,
    socks_proxy,
)

from picoclaw_trio.connections import ConnectionPool, open_pool
from picoclaw_trio.connections.addresses import Address, parse_proxy, parse_url
from picoclaw_trio.connections.dialing import ConnectError, Wire, dial, trust_system
from picoclaw_trio.plain_socket import PlainSocket

PROXIES = ("http", "https", "socks5")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    return tls


def server_tls(authority: trustme.CA, *names: str, not_after: datetime | None = None) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert(*(names or ("127.0.0.1",)), not_after=not_after).configure_cert(tls)
    return tls


def proxy_script(scheme: str, seen: list[bytes], user: str = "") -> Script:
    return socks_proxy(seen, user=user.encode()) if scheme == "socks5" else http_proxy(seen, user=user)


async def ask(pool: ConnectionPool, url: str, proxy: str | None = None) -> bytes:
    async with pool.post(parse_url(url), [], b"{}", proxy=proxy) as response:
        return await response.read(1000)


async def dial_url(url: str, tls: ssl.SSLContext | None = None) -> Wire:
    return await dial(parse_url(url).address, None, trust_system if tls is None else lambda: tls)


# TCP


async def test_stream_sends_at_once_and_notices_a_silent_death() -> None:
    async with open_upstream(always(answer())) as upstream:
        wire = await dial_url(upstream.url)
        assert isinstance(wire.socket, PlainSocket)
        sock = wire.socket.socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert 60 == sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        wire.close()
        await upstream.wait_open(0)


async def test_refused_connection_says_so() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    listener.socket.close()
    with pytest.raises(ConnectError, match=rf"^cannot connect to 127\.0\.0\.1:{port}: Connection refused$"):
        await dial_url(f"http://127.0.0.1:{port}")


async def test_unknown_host_says_so() -> None:
    with pytest.raises(ConnectError, match=r"^cannot connect to no-such-host\.invalid:80: "):
        await dial_url("http://no-such-host.invalid")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_localhost_is_either_family(host: str) -> None:
    try:
        names = {entry[4][0] for entry in socket.getaddrinfo("localhost", 80)}
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"no {host} here")
    async with open_upstream(always(answer()), host=host) as upstream, open_pool() as pool:
        assert b"hello" == await ask(pool, upstream.url)
        if host in names:
            assert b"hello" == await ask(pool, upstream.url.replace(upstream.address.rpartition(":")[0], "localhost"))


# TLS


async def test_certificate_of_a_trusted_authority_is_accepted(
    authority: trustme.CA, client_tls: ssl.SSLContext
) -> None:
    chosen = []

    async def script(stream: trio.abc.Stream) -> None:
        await read_request(stream)
        assert isinstance(stream, trio.SSLStream)
        chosen.append(stream.selected_alpn_protocol())
        await stream.send_all(answer())

    async with open_upstream(script, tls=server_tls(authority)) as upstream, open_pool(tls=client_tls) as pool:
        assert b"hello" == await ask(pool, upstream.url)
    assert ["http/1.1"] == chosen


async def test_tls_connection_is_reused(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    async with (
        open_upstream(always(answer()), tls=server_tls(authority, "localhost")) as upstream,
        open_pool(tls=client_tls) as pool,
    ):
        url = upstream.url.replace("127.0.0.1", "localhost")
        assert [b"hello"] * 3 == [await ask(pool, url) for _ in range(3)]
        assert (1, 2) == (upstream.accepted, pool.statistics().reused)


async def test_certificate_of_an_unknown_authority_is_refused(authority: trustme.CA) -> None:
    async with open_upstream(always(answer()), tls=server_tls(authority)) as upstream:
        with pytest.raises(ConnectError, match=r"TLS with .* failed: .*(issuer|self-signed).*SSL_CERT_FILE"):
            await dial_url(upstream.url)
        await upstream.wait_open(0)


async def test_expired_certificate_is_refused(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    async with open_upstream(always(answer()), tls=server_tls(authority, not_after=yesterday)) as upstream:
        with pytest.raises(ConnectError, match=r"certificate has expired"):
            await dial_url(upstream.url, client_tls)
        await upstream.wait_open(0)


async def test_certificate_of_another_host_is_refused(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    async with open_upstream(always(answer()), tls=server_tls(authority, "other.example")) as upstream:
        with pytest.raises(ConnectError, match=r"not valid for '127\.0\.0\.1'"):
            await dial_url(upstream.url, client_tls)
        await upstream.wait_open(0)


async def test_server_without_tls_is_refused(client_tls: ssl.SSLContext) -> None:
    async def plain(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(answer(status="400 Bad Request"))
        await stream.receive_some()

    async with open_upstream(plain) as upstream:
        with pytest.raises(ConnectError, match=r"wrong version number|record layer failure"):
            await dial_url(upstream.url.replace("http:", "https:"), client_tls)
        await upstream.wait_open(0)


# Proxies


@pytest.mark.parametrize("scheme", PROXIES)
@pytest.mark.parametrize("target", ["http", "https"])
async def test_proxy_leads_to_the_upstream(
    authority: trustme.CA, client_tls: ssl.SSLContext, scheme: str, target: str
) -> None:
    seen: list[bytes] = []
    tls = server_tls(authority)
    async with (
        open_upstream(always(answer()), tls=tls if target == "https" else None) as upstream,
        open_upstream(proxy_script(scheme, seen, "me:p@ss"), tls=tls if scheme == "https" else None) as proxy,
        open_pool(tls=client_tls) as pool,
    ):
        is_forwarded = target == "http" and scheme != "socks5"
        got = [await ask(pool, upstream.url, f"{scheme}://me:p%40ss@{proxy.address}") for _ in range(2)]

        assert [b"forwarded" if is_forwarded else b"hello"] * 2 == got
        assert (2 if is_forwarded else 1) == len(seen)
    if is_forwarded:
        assert seen[0].startswith(b"POST http://127.0.0.1:")
        assert b"\r\nhost: " + upstream.address.encode() in seen[0].lower()


@pytest.mark.parametrize("scheme", PROXIES)
@pytest.mark.parametrize("login", ["", "me:secret@"])
async def test_proxy_that_does_not_let_us_in_says_so(
    authority: trustme.CA, client_tls: ssl.SSLContext, scheme: str, login: str
) -> None:
    tls = server_tls(authority) if scheme == "https" else None
    async with (
        open_upstream(proxy_script(scheme, [], "other:user"), tls=tls) as proxy,
        open_pool(tls=client_tls) as pool,
    ):
        with pytest.raises(ConnectError, match=r"refused a tunnel to .* with status 407|did not let us in") as caught:
            await ask(pool, "https://model.example/v1", f"{scheme}://{login}{proxy.address}")
        await proxy.wait_open(0)
    assert "secret" not in str(caught.value)


async def test_names_are_resolved_by_the_proxy(client_tls: ssl.SSLContext) -> None:
    seen: list[bytes] = []
    async with open_upstream(socks_proxy(seen, reply=4)) as proxy, open_pool(tls=client_tls) as pool:
        with pytest.raises(ConnectError, match=r"could not reach model\.invalid:443: host unreachable"):
            await ask(pool, "https://model.invalid/v1", f"socks5://{proxy.address}")
    assert [b"model.invalid"] == seen


async def test_addresses_reach_a_socks_proxy_as_such() -> None:
    seen: list[bytes] = []
    async with open_upstream(socks_proxy(seen, reply=1)) as proxy, open_pool() as pool:
        for host in ("10.1.2.3", "[2001:db8::1]"):
            with pytest.raises(ConnectError, match=r"general failure"):
                await ask(pool, f"http://{host}/v1", f"socks5://{proxy.address}")
    assert [socket.inet_aton("10.1.2.3"), socket.inet_pton(socket.AF_INET6, "2001:db8::1")] == seen


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("nonsense", [b"", b"\x05", b"HTTP/1.1 200", b"SSH-2.0-x\r\n\r\n"])
async def test_proxy_that_is_none_is_a_failed_connection(scheme: str, nonsense: bytes) -> None:
    async def script(stream: trio.abc.Stream) -> None:
        await stream.receive_some()
        await stream.send_all(nonsense)

    async with open_upstream(script) as proxy:
        with pytest.raises(ConnectError):
            await dial(Address("https", "model.example", 443), parse_proxy(f"{scheme}://{proxy.address}"), trust_system)
        await proxy.wait_open(0)


@pytest.mark.parametrize("value", ["socks4://user:secret@10.0.0.1", "http://", "http://[secret"])
async def test_environments_proxy_that_is_none_is_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("http_proxy", value)
    monkeypatch.delenv("no_proxy", raising=False)
    async with open_pool() as pool:
        with pytest.raises(ConnectError, match=r"the environment names for model\.example:80 cannot be used") as caught:
            await ask(pool, "http://model.example/v1")

    assert "secret" not in str(caught.value)


async def test_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    async with open_upstream(http_proxy(seen)) as proxy, open_upstream(always(answer())) as upstream:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with open_pool() as pool:
            assert b"forwarded" == await ask(pool, "http://model.example/v1")
            assert b"hello" == await ask(pool, upstream.url)
    assert [b"POST http://model.example/v1 HTTP/1.1"] == [head.partition(b"\r\n")[0] for head in seen]


@pytest.mark.parametrize("scheme", PROXIES)
async def test_cancelling_a_dial_at_any_step_leaves_nothing(
    authority: trustme.CA, client_tls: ssl.SSLContext, scheme: str
) -> None:
    tls = server_tls(authority)
    async with (
        open_upstream(always(answer()), tls=tls) as upstream,
        open_upstream(proxy_script(scheme, [], "me:it"), tls=tls if scheme == "https" else None) as proxy,
    ):

        async def scenario() -> None:
            way = parse_proxy(f"{scheme}://me:it@{proxy.address}")
            wire = await dial(parse_url(upstream.url).address, way, lambda: client_tls)
            wire.close()

        number = 1
        while await run_cancelled_at(number, scenario):
            await proxy.wait_open(0)
            await upstream.wait_open(0)
            number += 1
        assert 10 < number


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_our_fake_proxies_suit_curl(scheme: str) -> None:
    seen: list[bytes] = []
    async with (
        open_upstream(always(answer())) as upstream,
        open_upstream(proxy_script(scheme[:6], seen, "me:it")) as proxy,
    ):
        command = ["curl", "-sS", "--noproxy", "", "-p", "-x", f"{scheme}://me:it@{proxy.address}"]
        result = await trio.run_process([*command, "-d", "{}", upstream.url], capture_stdout=True)
    assert b"hello" == result.stdout
    assert 1 == len(seen)


def test_the_systems_certificates_are_checked() -> None:
    tls = trust_system()

    assert (ssl.CERT_REQUIRED, True) == (tls.verify_mode, tls.check_hostname)
