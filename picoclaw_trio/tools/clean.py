"""Somebody else's text, made fit to be shown: no control characters, no more than was asked for.

Editing rule: what is done to a text here takes time that grows with its length and no faster.
"""

from __future__ import annotations

import re

# All of C0 but tab and newline, DEL, C1, and halves of characters, which no UTF-8 can carry.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_text(text: str, limit: int) -> str:
    """*text* with a mark for each control character but newline and tab, cut to *limit* characters."""
    cleaned = UNFIT.sub("\N{REPLACEMENT CHARACTER}", text[: limit + 1])
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"
