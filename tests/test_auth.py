"""Which bearer tokens let a client in."""

from __future__ import annotations

import hashlib

import pytest
import strategies  # noqa: F401  # loads the profile
from hypothesis import example, given
from hypothesis import strategies as st

from picoclaw_trio.auth import BearerTokens
from picoclaw_trio.errors import AuthError

TOKENS = BearerTokens.from_plain(["sk-one", "sk-two", "sk-three"])


def is_let_in(tokens: BearerTokens, authorization: str | None) -> bool:
    try:
        tokens.check(authorization)
    except AuthError:
        return False
    return True


@pytest.mark.parametrize("others", [["b"], ["b", "c"], ["c", "b"], ["b", "b"], ["c", "b", "b"]])
def test_a_holder_is_the_same_in_any_list(others: list[str]) -> None:
    assert BearerTokens.from_plain(["b"]).check("Bearer b") == BearerTokens.from_plain(others).check("bearer  b ")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_case_insensitive(scheme: str) -> None:
    assert TOKENS.check("Bearer sk-one") == TOKENS.check(f"{scheme} sk-one")


@pytest.mark.parametrize("header", ["Bearer   sk-one", "Bearer sk-one ", "Bearer \tsk-one\t "])
def test_space_around_the_token_is_no_part_of_it(header: str) -> None:
    assert TOKENS.check("Bearer sk-one") == TOKENS.check(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer    ",
        "sk-one",
        "Basic sk-one",
        "Bearersk-one",
        "Bearer:sk-one",
        "Bearer=sk-one",
        "Bearer sk-On",
        "Bearer SK-ONE",
        "Bearer sk-one2",
        "Bearer k-one",
        "Bearer sk-one sk-two",
        "Bearer sk-one,sk-two",
        "Bearer Bearer sk-one",
        'Bearer "sk-one"',
        "Bearer sk-one\x00",
        "Bearer sk-one\xa0",
        "Bearer \xe9\xff",
        "Beär sk-one",
        "Bearer \u0100\udc80\ud800",
        "Bearer " + "x" * 100_000,
    ],
)
def test_anything_else_is_refused_in_the_same_words(header: str | None) -> None:
    with pytest.raises(AuthError) as caught:
        TOKENS.check(header)

    assert str(AuthError()) == caught.value.message
    assert (401, "invalid_api_key") == (caught.value.status, caught.value.code)
    assert {"WWW-Authenticate": "Bearer"} == caught.value.headers


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer sk-one"])
def test_with_no_token_listed_nobody_is_let_in(header: str | None) -> None:
    assert not is_let_in(BearerTokens.from_plain([]), header)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "bearer \t "])
def test_a_listed_token_that_is_empty_lets_nobody_in(header: str | None) -> None:
    assert not is_let_in(BearerTokens.from_plain(["", "sk-one"]), header)


def test_a_token_beyond_ascii_is_compared_as_utf_8() -> None:
    # Headers are bytes that we read as Latin-1; the configuration is UTF-8.
    as_header = "пароль-é-à".encode().decode("latin-1")

    assert is_let_in(BearerTokens.from_plain(["пароль-é-à"]), f"Bearer {as_header}")


def test_a_token_of_raw_bytes_in_the_environment_is_compared_as_these_bytes() -> None:
    from_environment = b"\xff\xfe".decode("utf-8", "surrogateescape")

    assert is_let_in(BearerTokens.from_plain([from_environment]), "Bearer \xff\xfe")


VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


@given(st.lists(VISIBLE, min_size=1))
def test_there_are_as_many_holders_as_different_tokens(tokens: list[str]) -> None:
    listed = BearerTokens.from_plain(tokens)

    assert len(set(tokens)) == len({listed.check(f"Bearer {token}") for token in tokens})


@given(st.lists(VISIBLE), VISIBLE)
def test_a_token_is_let_in_if_and_only_if_it_is_listed(tokens: list[str], token: str) -> None:
    assert (token in tokens) == is_let_in(BearerTokens.from_plain(tokens), f"Bearer {token}")


@given(st.text(st.characters()) | st.text().map(lambda text: f"Bearer {text}"))
@example("Bearer ?")
def test_any_header_without_a_listed_token_is_refused(header: str) -> None:
    assert not is_let_in(TOKENS, header)


@pytest.mark.parametrize("shown", [TOKENS, TOKENS.check("Bearer sk-one")])
def test_neither_tokens_nor_holders_show_a_token_or_its_digest(shown: object) -> None:
    digest = hashlib.sha256(b"sk-one").digest()
    for text in (repr(shown), str(shown)):
        assert "sk-one" not in text
        assert digest.hex() not in text
        assert repr(digest) not in text
