"""Log lines: one event a line, for people or as JSON, through the standard library's logging.

Theory: every room logs to ``structlog`` or to ``logging``; both end in one handler that this room sets up once for the
process. A request's id is bound to the context, so that each line of its work carries it.
Editing rule: no other room touches handlers, levels or formats.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import structlog

from .visible import visible

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}

# Libraries that say, at these levels and below, what a client's or a server's secrets are, or what a server wants
# them to say, as often as it likes. What matters of it is said again by the room that uses them.
QUIET = {
    "mcp": logging.CRITICAL,
    "client": logging.CRITICAL,  # the mcp package's session calls itself so
    "httpx2": logging.WARNING,
    "httpcore2": logging.WARNING,
}


def configure(level: str, format: str) -> None:
    """Send this process's log to standard error.

    Args:
        level: least severe level that is shown, a key of ``LEVELS``.
        format: ``console`` for people, ``json`` for one object a line.
    """
    number = LEVELS[level]
    steps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*steps, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.name = format
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*steps, structlog.stdlib.ExtraAdder()], processors=_last_steps(format)
        )
    )
    handler.addFilter(_is_not_yet_written)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(number, least))


def tell_problems(event: str, file: str, problems: Iterable[object]) -> None:
    """One line for each thing that is wrong with a file."""
    for problem in problems:
        structlog.stdlib.get_logger("picoclaw_trio.config").error(event, file=file, problem=str(problem))


def tell_remarks(file: object, warnings: Iterable[object], passed_over: Sequence[str]) -> None:
    """A warning for each thing of a file that will not work as one may think; a debug line for what is passed over."""
    log = structlog.stdlib.get_logger("picoclaw_trio.config")
    for warning in warnings:
        log.warning(str(warning), file=str(file))
    if passed_over:
        log.debug("keys of parts that this gateway does not have", file=str(file), keys=", ".join(passed_over))


def tell_failure(message: str) -> None:
    """One line for what has ended the process."""
    structlog.stdlib.get_logger("picoclaw_trio").critical(message)


def is_for_machines() -> bool:
    """Whether each line on standard error is to be JSON."""
    return any(getattr(handler, "name", None) == "json" for handler in logging.getLogger().handlers)


def _is_not_yet_written(record: logging.LogRecord) -> bool:
    """Hypercorn's own command gives its logger a handler, and hands each line to ours as well."""
    return not (record.name.startswith("hypercorn.") and logging.getLogger(record.name).handlers)


def _last_steps(format: str) -> list[Any]:
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if format == "json":
        return [without_meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Plain tracebacks: the pretty ones print local variables, and those may hold a key.
    plain = structlog.dev.plain_traceback
    return [
        without_meta,
        structlog.processors.format_exc_info,
        _make_visible,
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),
    ]


def _make_visible(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Whoever reads the log in a terminal is not to obey what a client wrote. JSON spells it out anyway."""
    return {name: visible(value) if isinstance(value, str) else value for name, value in event.items()}
