from __future__ import annotations

import pytest

from picoclaw_trio.connections.addresses import Address, Proxy, Url, environment_proxy, parse_proxy, parse_url

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
UPSTREAM = Address("https", "api.example.com", 443)
OUR_PROXY = Address("http", "proxy.example.com", 3128)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://Example.com", Url(Address("http", "example.com", 80), b"example.com", b"/")),
        ("https://example.com/v1", Url(Address("https", "example.com", 443), b"example.com", b"/v1")),
        ("http://10.0.0.1:80/v1", Url(Address("http", "10.0.0.1", 80), b"10.0.0.1", b"/v1")),
        ("https://my_box:80/", Url(Address("https", "my_box", 80), b"my_box:80", b"/")),
        ("http://[::1]:8080/v1", Url(Address("http", "::1", 8080), b"[::1]:8080", b"/v1")),
        ("http://[::1]/v1", Url(Address("http", "::1", 80), b"[::1]", b"/v1")),
        ("http://a/v1?version=2&b=c#x", Url(Address("http", "a", 80), b"a", b"/v1?version=2&b=c")),
        ("http://a/a b/%20/\u00fc?\u00fc", Url(Address("http", "a", 80), b"a", b"/a%20b/%20/%C3%BC?%C3%BC")),
        (
            "http://b\u00fccher.example/",
            Url(Address("http", "xn--bcher-kva.example", 80), b"xn--bcher-kva.example", b"/"),
        ),
    ],
)
def test_url_is_parsed_into_what_a_request_needs(text: str, url: Url) -> None:
    assert url == parse_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/v1",
        "ftp://example.com",
        "socks5://example.com",
        "http://",
        "http:///v1",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://key:sk-secret/",
        "http://user:sk-secret@example.com/",
        "http://user:sk-secret@exam ple.com/",
        "http://[sk-secret/",
        "http://sk-secret\u2100/",
        "http://.example.com/",
        "http://a..b/",
    ],
)
def test_what_is_no_url_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"address") as caught:
        parse_url(text)

    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy.example.com:3128", Proxy(OUR_PROXY)),
        ("proxy.example.com:3128", Proxy(OUR_PROXY)),
        ("https://proxy.example.com", Proxy(Address("https", "proxy.example.com", 443))),
        ("socks5://a:p%40ss@10.0.0.1", Proxy(Address("socks5", "10.0.0.1", 1080), b"a", b"p@ss")),
        ("socks5h://10.0.0.1:9", Proxy(Address("socks5", "10.0.0.1", 9))),
        ("socks://10.0.0.1:9/", Proxy(Address("socks5", "10.0.0.1", 9))),
        ("SOCKS5h://10.0.0.1", Proxy(Address("socks5", "10.0.0.1", 1080))),
    ],
)
def test_proxy_is_parsed(text: str, proxy: Proxy) -> None:
    assert proxy == parse_proxy(text)


@pytest.mark.parametrize("text", ["", "socks4://a", "http://a:secret", f"socks5://a:{'secret' * 50}@b"])
def test_what_is_no_proxy_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|255") as caught:
        parse_proxy(text)

    assert "secret" not in str(caught.value)


def test_a_proxys_password_does_not_show() -> None:
    assert "secret" not in repr(parse_proxy("http://user:secret@a"))


@pytest.mark.parametrize(
    ("name", "value", "proxy"),
    [
        ("HTTPS_PROXY", "http://proxy.example.com:3128", Proxy(OUR_PROXY)),
        ("https_proxy", "proxy.example.com:3128", Proxy(OUR_PROXY)),
        ("ALL_PROXY", "socks5://10.0.0.1", Proxy(Address("socks5", "10.0.0.1", 1080))),
        ("HTTP_PROXY", "http://proxy.example.com:3128", None),
        ("HTTPS_PROXY", "", None),
    ],
)
def test_environment_names_the_proxy(
    environment: pytest.MonkeyPatch, name: str, value: str, proxy: Proxy | None
) -> None:
    environment.setenv(name, value)

    assert proxy == environment_proxy(UPSTREAM)


@pytest.mark.parametrize(
    ("exempt", "is_exempt"),
    [
        ("*", True),
        ("example.com", True),
        (".example.com", True),
        ("a.b, api.example.com:443", True),
        ("ample.com", False),
    ],
)
def test_no_proxy_names_the_exempt(environment: pytest.MonkeyPatch, exempt: str, is_exempt: bool) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy.example.com:3128")
    environment.setenv("NO_PROXY", exempt)

    assert is_exempt == (environment_proxy(UPSTREAM) is None)


@pytest.mark.parametrize("host", ["localhost", "ollama.localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_has_no_proxy_of_the_environments(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("ALL_PROXY", "http://proxy.example.com:3128")

    assert environment_proxy(Address("http", host, 11434)) is None
