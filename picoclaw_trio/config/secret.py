"""A text that must not show."""

from __future__ import annotations


class Secret:
    """A text that shows only where it is revealed: ``str`` and ``repr`` give ``***``. Equal and hashed by value."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))
