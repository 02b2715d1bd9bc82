"""What shows that the configuration's files have changed, without reading them.

Theory: a stamp holds the time of the last change of a file's status beside that of its content: a tool may write into
a file and set the latter back (``rsync --times --inplace``), but the former nobody sets.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from .security_file import security_path

Stamp: TypeAlias = tuple[int, ...] | None


def stamps_of(path: Path | None) -> tuple[Stamp, ...]:
    """Of the configuration at *path*, and of the keys beside it."""
    return (_stamp(path), _stamp(security_path(path))) if path else (None,)


def _stamp(path: Path) -> Stamp:
    """What changes when a file does; None while there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
