"""The environment of an MCP server's process: little of ours, and what the configuration adds.

Theory: our own environment may hold keys of upstreams, so a server gets only what a program needs to run at all.
Editing rule: values are secrets: no error and no log line shows one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import trio

from ..config.tools import McpServerConfig

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TERM", "TMPDIR")
MAX_FILE_BYTES = 65_536
ASSIGNMENT = re.compile(r"""(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|'([^']*)'|(.*?))(?:(?:^|\s+)#.*)?""")


async def added_environment(config: McpServerConfig, folder: Path) -> dict[str, str]:
    """What the configuration adds: ``env`` beats ``env_file``, which is looked up in *folder*.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has a line that is no assignment; the text tells its number only.
    """
    added = {name: secret.reveal() for name, secret in config.env.items()}
    if config.env_file is None:
        return added
    text = await trio.to_thread.run_sync(_read, folder, config.env_file)
    return {**parse_assignments(text), **added}


def whole_environment(added: Mapping[str, str]) -> dict[str, str]:
    """*added* and the little of ours that it does not name otherwise."""
    return {**{name: os.environ[name] for name in PASSED_ON if name in os.environ}, **added}


def parse_assignments(text: str) -> dict[str, str]:
    """``NAME=value`` lines; quotes round a value, ``export``, empty lines and comments are understood.

    Raises:
        ValueError: a line is something else.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            match = ASSIGNMENT.fullmatch(stripped)
            if match is None:
                raise ValueError(f"line {number} of env_file is not NAME=value")
            name, *values = match.groups()
            found[name] = next((value for value in values if value is not None), "")
    return found


def _read(folder: Path, name: str) -> str:
    with (folder / Path(name).expanduser()).open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"env_file is larger than {MAX_FILE_BYTES} bytes")
    return raw.decode()
