"""Web pages as text: what is kept, what is dropped, and that no page takes long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoclaw_trio.tools.web_text import MAX_MARKUP, decode_text, page_text

BASE = "https://example.org/a/b"
PAGE = """<!DOCTYPE html>
<html><head><title>A &amp; B</title><style>p { color: red }</style>
<script>if (a < b) document.write("<p>no</p>")</script></head>
<body><!-- <p>hidden</p> --><h1>Head\ning</h1>
<p>One   <b>bold</b> word,<br>and <a href="/c?x=1&amp;y=2">a link</a>.</p>
<ul><li>first<li>second</ul>
<pre>  kept
   as it is</pre>
<table><tr><th>k<th>v<tr><td>1<td>2</table>
<p title='a > b'>last &lt;one&gt;</p><img alt="a cat" src=x.png><a href="javascript:x()">no link</a>
</body></html>"""
TEXT = """A & B

# Head ing

One bold word,
and [a link](https://example.org/c?x=1&y=2).

- first
- second

kept
as it is

| k | v
| 1 | 2

last <one>

[image: a cat]no link"""


def test_page_is_told_as_it_reads() -> None:
    assert TEXT == page_text(PAGE, BASE, 10_000)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a < b & c", "a < b & c"),
        ("<p>cut <b", "cut"),
        ("<p title='it>text</p><p>more</p>", "text\n\nmore"),
        ("<script>no end", ""),
        ("before<!-- no end", "before"),
        ("<SCRIPT>x</ScRiPt >after", "after"),
        ("<a>no address</a> <a href=#top>top</a> <a href='http://[/'>bad</a>", "no address top bad"),
        ("&#" + "9" * 5000 + ";", "&#" + "9" * 5000 + ";"),
        ("<textarea>typed</textarea>seen", "seen"),
    ],
)
def test_broken_page_gives_what_can_be_read(source: str, text: str) -> None:
    assert text == page_text(source, BASE, 10_000)


def test_reading_stops_where_nobody_wants_more() -> None:
    assert 1_200 > len(page_text("<p>" + "word <b>word</b> " * 100_000, BASE, 1_000))


@pytest.mark.parametrize(
    "piece", ["<!--", "<a '>' ", "<a x", "<", "<script>", "&#x", "<a href='", '<a "', "</", "<p>", "<![CDATA["]
)
def test_hostile_page_is_read_to_its_end(piece: str) -> None:
    """A parser that goes back to the start for each of them would need hours here."""
    page_text(piece * (500_000 // len(piece)), BASE, 10_000_000)


@pytest.mark.parametrize("piece", ["<a>", "</a>", "<!---->", "<?>", "<p x=1>", "<script></script>", "<a>&amp;"])
def test_page_of_nothing_but_tags_is_not_read_to_its_end(piece: str) -> None:
    assert "seen" in page_text(f"{piece * (MAX_MARKUP - 1)}seen", BASE, 10_000_000)
    assert "seen" not in page_text(f"{piece * MAX_MARKUP}seen", BASE, 10_000_000)


@pytest.mark.parametrize("name", ["2href", "x-href", f"{'x' * 30}href", "_href"])
def test_attribute_is_known_by_its_whole_name(name: str) -> None:
    assert "text" == page_text(f"<a {name}=/x>text</a>", BASE, 1_000)


@given(st.text(alphabet="<>/!-='\"&;# abscriptle\n", max_size=200))
def test_any_text_is_some_page(source: str) -> None:
    page_text(source, BASE, 1_000)


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("é".encode(), None, "é"),
        ("é".encode("latin-1"), None, "é"),
        ("“é”".encode("cp1252"), "iso-8859-1", "“é”"),
        ("é".encode("utf-16"), None, "é"),
        ("日本".encode("shift_jis"), "Shift_JIS", "日本"),
        (b'<meta charset="koi8-r">' + "да".encode("koi8-r"), None, '<meta charset="koi8-r">да'),
        ("é".encode(), "no-such-charset", "é"),
        ("é".encode(), "punycode", "é"),
        ("é".encode(), "unicode_escape", "é"),
        ("é".encode(), "rot13", "é"),
        ("\ufeffé".encode(), "latin-1", "é"),
    ],
)
def test_charset_is_found(body: bytes, charset: str | None, text: str) -> None:
    assert text == decode_text(body, charset, is_html=True)
