"""What a web page says, as text for a model.

Theory: one pass over the page from left to right, which drops what no reader sees and keeps titles, headings, lists and
links roughly as Markdown has them. It is no parser of HTML: where a page breaks the rules the text is still there. The
standard library's parser is not used, since there are pages on which it takes minutes.
Editing rule: the time for a page grows with its length and no faster: whatever is looked for and is not there ends the
page. No I/O here.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import attrs

MAX_LINK = 500
MAX_TITLE = 300
MAX_TAG = 65_536
# Tags and comments that are read; a long page has some 20,000.
MAX_MARKUP = 100_000
# Tags whose end is not where it should be; past that many the page is not read on, since each costs a search.
MAX_BROKEN = 1_000
# What decoders are lent to strangers; some others take long, or are none.
CHARSETS = re.compile(r"(utf-(8|16|32)|ascii|latin|iso8859|iso2022|cp\d|koi8|gb|big5|euc|shift_jis|mac|tis)")
META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

MARKUP = re.compile("<[!?/a-zA-Z]")
TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,40})")
ATTRIBUTES = re.compile(r"""(?>[^>"']+|"[^"]*"|'[^']*')*+>""")
# Begun at a name's beginning only, and never gone back in: a name may be thousands of characters long.
ATTRIBUTE = re.compile(r"""(?<![\w-])([a-zA-Z][\w-]{0,20}+)\s*+=\s*+(?:"([^"]*)"|'([^']*)'|([^\s>"']+))""")
SPACE = re.compile(r"\s+")
HIDDEN = {"script", "style", "noscript", "template", "iframe", "svg", "object", "textarea", "select", "canvas"}
END = {name: re.compile(rf"</{name}[\s/>]", re.IGNORECASE) for name in HIDDEN | {"title"}}
# {element: what stands before it and after it}
BREAKS = {
    **dict.fromkeys(("p", "div", "section", "article", "main", "header", "footer", "nav", "aside"), "\n\n"),
    **dict.fromkeys(("ul", "ol", "dl", "table", "form", "blockquote", "figure", "pre", "hr", "details"), "\n\n"),
    **dict.fromkeys(("br", "tr", "dt", "dd", "option", "summary", "figcaption", "legend"), "\n"),
}
MARKS = {"li": "\n- ", "td": " | ", "th": " | ", **{f"h{level}": f"\n\n{'#' * level} " for level in range(1, 7)}}
MANY_BREAKS = re.compile(r"\n{3,}")


def decode_text(body: bytes, charset: str | None, *, is_html: bool) -> str:
    """*body* in the charset that its first bytes, the header (*charset*) or the page name, else UTF-8."""
    for bom, name in BOMS.items():
        if body.startswith(bom):
            return body.decode(name, errors="replace")
    declared = META_CHARSET.search(body[:4096]) if is_html else None
    for label in (charset, declared and declared[1].decode("ascii")):
        if label and (decoder := _decoder(label)):
            return body.decode(decoder, errors="replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252" if is_html else "utf-8", errors="replace")


def _decoder(label: str) -> str | None:
    try:
        name = codecs.lookup(label).name if re.fullmatch(r"[\w.:-]{1,40}", label, re.ASCII) else ""
    except LookupError:
        return None
    # Pages that say Latin-1 mean the superset that browsers read it as.
    name = "cp1252" if name in ("iso8859-1", "ascii") else name
    return name if CHARSETS.match(name) else None


def page_text(source: str, base: str, max_chars: int) -> str:
    """The text of an HTML page, its title first.

    Args:
        base: the page's address, which its links are relative to.
        max_chars: reading stops once there are more.
    """
    page = _Page(base)
    size = 0
    for piece in page.read(source):
        page.pieces.append(piece)
        size += len(piece)
        if size > max_chars:
            break
    lines = (line.strip() for line in "".join(page.pieces).split("\n"))
    text = MANY_BREAKS.sub("\n\n", "\n".join(lines)).strip()
    return f"{page.title}\n\n{text}" if page.title else text


@attrs.define
class _Page:
    """Where the reading of one page stands."""

    base: str
    title: str = ""
    pieces: list[str] = attrs.field(factory=list)
    _links: list[str | None] = attrs.field(factory=list)
    _in_pre: bool = False
    _broken: int = 0

    def read(self, source: str) -> Iterator[str]:
        at = 0
        for _ in range(MAX_MARKUP):
            markup = MARKUP.search(source, at)
            yield self._words(source[at : markup.start() if markup else len(source)])
            if markup is None:
                return
            at, piece = self._take_markup(source, markup.start())
            yield piece

    def _words(self, text: str) -> str:
        words = _unescape(text)
        return words if self._in_pre else SPACE.sub(" ", words)

    def _take_markup(self, source: str, start: int) -> tuple[int, str]:
        """Where the markup at *start* ends, and what it becomes."""
        if source.startswith("<!--", start):
            return _after(source, "-->", start + 4), ""
        if source.startswith(("<!", "<?"), start):
            return _after(source, ">", start), ""
        tag = TAG.match(source, start)
        if tag is None:
            return start + 1, "<"
        end = ATTRIBUTES.match(source, tag.end(), tag.end() + MAX_TAG)
        if end is None:
            self._broken += 1
            return _after(source, ">", tag.end()) if self._broken <= MAX_BROKEN else len(source), ""
        name = tag[2].lower()
        if tag[1]:
            return end.end(), self._close(name)
        if name in END:
            return self._skip(source, name, end.end()), ""
        return end.end(), self._open(name, end[0])

    def _skip(self, source: str, name: str, at: int) -> int:
        """Past an element that is read for its title, or not at all."""
        end = END[name].search(source, at)
        if end is None:
            return len(source)
        if name == "title" and not self.title:
            self.title = SPACE.sub(" ", _unescape(source[at : end.start()][: 4 * MAX_TITLE])).strip()[:MAX_TITLE]
        return _after(source, ">", end.start())

    def _open(self, name: str, attributes: str) -> str:
        if name == "a":
            self._links.append(self._link(_attribute(attributes, "href")))
            return "[" if self._links[-1] else ""
        if name == "img":
            alt = SPACE.sub(" ", _attribute(attributes, "alt")).strip()
            return f"[image: {alt}]" if alt else ""
        if name == "pre":
            self._in_pre = True
        return BREAKS.get(name) or MARKS.get(name, "")

    def _close(self, name: str) -> str:
        if name == "a" and self._links:
            link = self._links.pop()
            return f"]({link})" if link else ""
        if name == "pre":
            self._in_pre = False
        if name in MARKS:
            return "\n\n" if name.startswith("h") and name != "th" else ""
        return BREAKS.get(name, "") if name != "br" else ""

    def _link(self, href: str) -> str | None:
        try:
            link = urljoin(self.base, href.strip()) if href and not href.startswith("#") else ""
        except ValueError:  # no address at all
            return None
        return link if link.startswith(("http://", "https://")) and len(link) <= MAX_LINK else None


def _attribute(attributes: str, wanted: str) -> str:
    for name, *values in ATTRIBUTE.findall(attributes[:8192]):
        if name.lower() == wanted:
            return _unescape("".join(values))
    return ""


def _after(source: str, text: str, start: int) -> int:
    found = source.find(text, start)
    return len(source) if found < 0 else found + len(text)


def _unescape(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a number of thousands of digits for a character
        return text
