"""YAML without its types: a value is a text, a list or an object and nothing else.

Theory: so no date, no number and no tag can go wrong on the way, and ``007`` stays what was written. For each token
PyYAML looks at every bracket that is open, so a few thousand of them would take seconds; the scanner stops before.
Editing rule: what is raised holds nothing of the text, which may be a secret.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.scanner import ScannerError

# Brackets within brackets. What people write has three or four.
MAX_DEPTH = 32


class NotYamlError(ValueError):
    """The text is not YAML, or nested too deep. ``line`` is where, from 0, if that is known."""

    def __init__(self, line: int | None) -> None:
        super().__init__()
        self.line = line


class _Loader(yaml.BaseLoader):
    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise ScannerError(None, None, "nested too deep", self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


def read_yaml(text: str) -> Any:
    """The only document in *text*; None if there is none.

    Raises:
        NotYamlError: it cannot be read.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - makes texts, lists and dicts, nothing else
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as exc:  # the last two of escapes too large
        mark = getattr(exc, "problem_mark", None)
        # Not "from exc": that one holds the text.
        raise NotYamlError(mark.line if mark else None) from None
