"""What every command does: read the configuration, and tell a failure in words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..config import Config


def load() -> Config:
    """
    Raises:
        ConfigError: there is none that could be used.
    """
    from ..config import load_config

    return load_config(os.environ)


class Failure(click.ClickException):
    """What is told on standard error, in the format that the log has by then."""

    def show(self, file: IO[Any] | None = None) -> None:
        from .. import logs

        if logs.is_for_machines():
            logs.tell_failure(self.message)
        else:
            super().show(file)


@contextmanager
def failures_told() -> Iterator[None]:
    """A failure that has words of its own is told on standard error, and the exit status is 1."""
    from ..errors import GatewayError, StateError

    try:
        yield
    except StateError as exc:  # what it says to clients is of a request, and here there was none
        raise Failure(f"The stored state cannot be used. {exc.reason}") from exc
    except GatewayError as exc:
        from ..visible import visible

        message = exc.told_here  # it may hold an upstream's own words
        raise Failure(visible(message) if sys.stderr.isatty() else message) from exc
    except BrokenPipeError:
        raise  # whoever read our output has had enough of it; click ends quietly
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        raise Failure(f"{where}{exc.strerror or exc}") from exc
