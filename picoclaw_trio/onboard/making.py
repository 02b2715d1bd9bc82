"""New files and folders, made in one go or not at all.

Editing rule: nothing that was there before is written to, and nothing that was not made here is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from ..config import create_config, make_folders, write_new


@attrs.define
class Maker:
    """Makes files and folders, and remembers them in the order in which they were made."""

    files: list[Path] = attrs.field(factory=list)
    folders: list[Path] = attrs.field(factory=list)

    def make_missing(self, folder: Path, texts: Mapping[str, str]) -> None:
        """Make those of *texts* of which *folder* has nothing, not even a link that leads nowhere.

        Raises:
            OSError: one of them cannot be made.
        """
        for path in missing_files(folder, texts):
            make_folders(path.parent, self.folders.append)
            with suppress(FileExistsError):  # somebody else has just made it
                write_new(path, texts[os.fspath(path.relative_to(folder))].encode())
                self.files.append(path)

    def make_config(self, path: Path, json: Mapping[str, Any]) -> None:
        """Make the configuration.

        Raises:
            FileExistsError: there is one.
            ConfigError: it cannot be made.
        """
        with suppress(OSError):  # create_config meets the same obstacle, and has words for it
            make_folders(path.parent, self.folders.append)
        create_config(path, json)
        self.files.append(path)

    def undo(self) -> None:
        """Remove what was made, as far as that can be done; a folder only if nobody else has put something into it."""
        for path in reversed(self.files):
            with suppress(OSError):
                path.unlink()
        for folder in reversed(self.folders):
            with suppress(OSError):
                folder.rmdir()


def missing_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Those of *texts* that *folder* has nothing of."""
    return [folder / name for name in texts if not os.path.lexists(folder / name)]


@contextmanager
def all_or_nothing() -> Iterator[Maker]:
    """Give a maker, what it made is gone again if the block does not come to its end."""
    maker = Maker()
    try:
        yield maker
    except BaseException:
        maker.undo()
        raise
