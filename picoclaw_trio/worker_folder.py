"""A folder that the workers of one Hypercorn master share, for what each has to tell the others.

Theory: its name comes from what only they know, so that no other user can be there first, and no earlier master of the
same process id, as in a container, has left anything there. It is locked while a worker lives, which also keeps
systemd-tmpfiles from taking it away when it is old; the first worker of a later master removes those that are not.
Where no folder can be had, as in a container that is read-only throughout, each worker is on its own.
Editing rule: what is in it is the business of whoever puts it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

log = logging.getLogger("picoclaw_trio.worker_folder")


@lru_cache(maxsize=1)
def worker_folder() -> Path | None:
    """The folder, made and locked by the first call of a worker.

    None outside of a worker, and where there is no place for it, which the log tells.
    """
    if multiprocessing.parent_process() is None:
        return None
    try:
        return _make_folder()
    except OSError as exc:
        log.warning("no temporary folder for what workers share, so each has numbers of its own: %s", exc)
        return None


def _make_folder() -> Path:
    root, prefix, master = Path(tempfile.gettempdir()), f"picoclaw-workers-{os.getuid()}-", str(os.getppid())
    shared = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:32]
    own = root / f"{prefix}{master}-{shared}"
    own.mkdir(mode=0o700, exist_ok=True)
    fcntl.flock(os.open(own, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)  # as long as the process
    for folder in root.glob(f"{prefix}*"):
        process_id = folder.name.removeprefix(prefix).partition("-")[0]
        if folder != own and (process_id == master or not Path("/proc", process_id).exists()):
            _remove_unlocked(folder)
    return own


def _remove_unlocked(folder: Path) -> None:
    """Remove *folder*, unless it is in use, by a process of another container perhaps, or is no folder of ours."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(fd)
