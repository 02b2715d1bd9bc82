"""Where a configuration comes from: the file, environment variables, secrets that stand elsewhere, or the first run.

Theory: a variable that is set takes the place of the file's value before anything is judged, so that the same checks
hold for both; a problem there is then told under the variable's name.
Editing rule: nothing here knows what a value means. No message repeats a secret, or a text that may be one.
"""

from __future__ import annotations

import os
import re
import secrets
import select
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from ..errors import ConfigError, Problem
from .parts import doubled_keys, is_deeper
from .secret import Secret
from .strict import Place, Wrong, expect, wrong

MAX_CONFIG_BYTES = 16 * 1024 * 1024
# Of objects and lists within each other: the reader of Python 3.11 gives up at some 990, that of 3.13 later.
MAX_LEVELS = 600
MAX_SECRET_BYTES = 64 * 1024
PIPE_TIMEOUT = 5.0


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the configuration is looked for: ``$PICOCLAW_CONFIG``, else ``config.json`` in ``config_home``."""
    named = environ.get("PICOCLAW_CONFIG", "").strip()
    return expand(named, environ).absolute() if named else config_home(environ) / "config.json"


def config_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the gateway's own files: ``$PICOCLAW_HOME``, else ``~/.picoclaw``."""
    return expand(environ.get("PICOCLAW_HOME", "").strip() or "~/.picoclaw", environ).absolute()


def expand(path: str, environ: Mapping[str, str]) -> Path:
    """*path* with a leading ``~`` replaced by ``$HOME``, or by what the system knows where that is not set."""
    first, _, rest = path.partition("/")
    return Path(environ.get("HOME") or os.path.expanduser("~"), rest) if first == "~" else Path(path)


def read_json(path: Path) -> tuple[dict[str, Any], list[Place]]:
    """The object in a file of JSON, and the places of the keys in it that stand twice in their object.

    A byte order mark is passed over. A key that begins with ``_`` is a comment, and may stand as often as it likes.

    Raises:
        FileNotFoundError: there is no such file.
        Wrong: it is something else than a file with one JSON object.
    """
    text = read_text(path, MAX_CONFIG_BYTES)
    if not text.strip():
        raise wrong("is empty; a configuration holds at least {}")
    try:
        json = expect(dict, orjson.loads(text))
    except orjson.JSONDecodeError as exc:
        # Not "from exc": the exception holds the whole text, and its secrets.
        raise wrong(f"is not JSON: {exc.msg} in line {exc.lineno}, column {exc.colno}") from None
    if is_deeper(json, MAX_LEVELS):
        raise wrong("is nested too deeply")
    return json, doubled_keys(text)


def read_text(path: Path, max_bytes: int) -> str:
    """A file's text in UTF-8, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        Wrong: it cannot be read, is no UTF-8, or too large.
    """
    try:
        raw = _read_file(path, max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError from None
    except (OSError, ValueError) as exc:
        raise wrong(f"cannot be read: {getattr(exc, 'strerror', None) or 'this is no path'}") from None
    if len(raw) > max_bytes:
        raise wrong(f"is larger than {max_bytes} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise wrong(f"is not UTF-8, first in line {raw.count(10, 0, exc.start) + 1}") from None


def _read_file(path: Path, max_bytes: int) -> bytes:
    """What is there. A pipe that nobody writes to counts as ended: a running server must not hang."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        data, waiting = b"", select.poll()
        waiting.register(fd, select.POLLIN)
        while waiting.poll(PIPE_TIMEOUT * 1000) and (piece := os.read(fd, max_bytes - len(data))):
            data += piece
        return data
    finally:
        os.close(fd)


def read_secret(text: str, folder: Path, environ: Mapping[str, str]) -> Secret:
    """The secret that *text* is, or that it names: ``env:NAME``, ``file:PATH``, PicoClaw's ``file://PATH``.

    Args:
        folder: where a relative path begins.

    Raises:
        Wrong: there is none.
    """
    if text.startswith("enc://"):
        raise wrong("is encrypted by PicoClaw, and only PicoClaw can read it; give it as env:NAME or file:PATH")
    if text.startswith("env:"):
        text = _secret_of_variable(text.removeprefix("env:"), environ)
    elif text.startswith("file:"):
        path = text.removeprefix("file:").removeprefix("//")
        text = _secret_of_file(folder / expand(path, environ), folder)
    return Secret(text)


def _secret_of_variable(name: str, environ: Mapping[str, str]) -> str:
    if not environ.get(name):
        # A name in capitals is no secret; anything else might be one, put after env: by mistake.
        shown = f" {name}" if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,60}", name) else ""
        raise wrong(f"names the environment variable{shown}, which is {'empty' if name in environ else 'not set'}")
    return environ[name]


def _secret_of_file(path: Path, folder: Path) -> str:
    try:
        return read_text(path, MAX_SECRET_BYTES).rstrip("\r\n")
    except FileNotFoundError:
        raise wrong(f"names a file that does not exist; a relative path begins at {folder}") from None
    except Wrong as exc:
        raise wrong(f"names a file that {exc.found[0][1]}") from None


def _boolean(text: str) -> bool:
    choices = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in choices:
        raise wrong("must be true, false, 1 or 0")
    return choices[text.lower()]


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise wrong("must be a whole number")
    return int(text)


def _comma_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


# {variable: (place of the value that it replaces, how its text is read)}
VARIABLES: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "PICOCLAW_GATEWAY_HOST": (("gateway", "host"), str),
    "PICOCLAW_GATEWAY_PORT": (("gateway", "port"), _whole_number),
    "PICOCLAW_LOG_LEVEL": (("gateway", "log_level"), str),
    "PICOCLAW_GATEWAY_OPENAI_API_ENABLED": (("gateway", "openai_api", "enabled"), _boolean),
    "PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS": (("gateway", "openai_api", "bearer_tokens"), _comma_list),
    "PICOCLAW_GATEWAY_OPENAI_API_MODEL_SCOPE": (("gateway", "openai_api", "model_scope"), str),
    "PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME": (("agents", "defaults", "model_name"), str),
}


def apply_variables(json: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[Place, str], tuple[Problem, ...]]:
    """Put the values of the environment into *json*. A blank variable counts as not set.

    Returns:
        {place: variable that its value came from}, and what is wrong with variables that could not be read.
    """
    origins: dict[Place, str] = {}
    problems = []
    for variable, (place, read) in VARIABLES.items():
        text = environ.get(variable, "").strip()
        try:
            if text and _put(json, place, read(text)):
                origins[place] = variable
        except Wrong as exc:
            problems.append(Problem(variable, exc.found[0][1]))
    return origins, tuple(problems)


def _put(json: dict[str, Any], place: tuple[str, ...], value: Any) -> bool:
    """Set the value at *place*; False if the file has something else than an object above it."""
    *parents, key = place
    for parent in parents:
        if json.get(parent) is None:
            json[parent] = {}
        json = json[parent]
        if type(json) is not dict:
            return False
    json[key] = value
    return True


def create_first_config(path: Path) -> str:
    """Write a configuration that works on a bare machine: on loopback, with the model ``echo``, for a fresh token.

    Returns:
        the token.

    Raises:
        FileExistsError, ConfigError: see ``create_config``.
    """
    first = first_config()
    create_config(path, first)
    return str(first["gateway"]["openai_api"]["bearer_tokens"][0])


def first_config() -> dict[str, Any]:
    """What ``create_first_config`` writes."""
    openai_api = {"enabled": True, "bearer_tokens": [f"sk-{secrets.token_urlsafe(32)}"]}
    return {
        "gateway": {"host": "127.0.0.1", "port": 18790, "openai_api": openai_api},
        "agents": {"defaults": {"model_name": "echo"}},
        "model_list": [{"model_name": "echo", "model": "echo/echo"}],
    }


def create_config(path: Path, json: Mapping[str, Any]) -> None:
    """Write a new configuration.

    Only its owner can read the file, and its folder if that was not there; both are on disk before this returns.

    Raises:
        FileExistsError: there is one already, which is left as it is.
        ConfigError: it could not be written, and nothing is left of it.
    """
    try:
        make_folders(path.parent)
        write_new(path, orjson.dumps(json, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    except FileExistsError:
        raise
    except OSError as exc:
        raise ConfigError(str(path), (Problem("$", f"cannot be written: {exc.strerror}"),)) from exc


def make_folders(folder: Path, note: Callable[[Path], object] = lambda made: None) -> None:
    """Make *folder* and what is missing above it, for its owner alone and on disk; *note* is told each at once."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.is_dir()]):
        with suppress(FileExistsError):  # by a folder, or by what makes the next step fail
            missing.mkdir(mode=0o700)
            note(missing)
            _sync_folder(missing.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read; it is on disk before this returns.

    Raises:
        FileExistsError: there is something of that name already, which is left as it is.
        OSError: it could not be written, and nothing is left of it.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        _sync_folder(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
