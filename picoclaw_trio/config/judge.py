"""The configuration file -> a frozen ``Config``, or every problem that it has, each with its address.

Theory: the JSON is judged twice: part by part by the types of ``values``, and as a whole by the checks here.
These read the JSON too, not the values, so that one bad part does not hide what is wrong between two others. Only what
passes both becomes a ``Config``.
Editing rule: what one value alone can show is a check in its type, not here. No message repeats a value that may be a
secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from cattrs import Converter

from ..errors import ConfigError, Problem
from .checks import Name, check_url
from .models import ModelConfig, ModelEntry, UpstreamOptions
from .parts import dict_of, entries, list_of, references, text_of
from .remarks import LENIENT, find_passed_over, find_warnings
from .secret import Secret
from .security_file import apply_security_file
from .sources import (
    apply_variables,
    config_home,
    config_path,
    expand,
    read_json,
    read_secret,
)
from .strict import Place, Tray, Wrong, address, did_you_mean, expect, quoted, strict_converter, wrong
from .tools import check_server
from .values import (
    AgentConfig,
    AgentDefaults,
    AgentEntry,
    AgentsConfig,
    Config,
    ConfigFile,
    DefaultsEntry,
    ModelChoice,
)
from .vendors import DEFAULT_VENDOR, ECHO, VENDORS, UnknownVendorError, Vendor, resolve

# Keys of a PicoClaw entry that say nothing to us.
UNUSED_MODEL_KEYS = (
    "auth_method",
    "connect_mode",
    "enabled",
    "streaming",
    "thinking_level",
    "tool_schema_transform",
    "workspace",
)
ENDPOINT = "/chat/completions"
# Values of auth_method for which PicoClaw has the credentials elsewhere, from a login.
LOGINS = ("oauth", "token")


def load_config(environ: Mapping[str, str] = os.environ, *, may_lack: bool = False) -> Config:
    """Read the configuration, and the keys that stand beside it.

    A file that is not there is one in which nothing is set, unless ``PICOCLAW_CONFIG`` names it. Logs nothing: how to
    log stands in what is read here. What there is to tell is in ``warnings`` and ``passed_over``.

    Args:
        may_lack: also a file that ``PICOCLAW_CONFIG`` names need not be there yet.

    Raises:
        ConfigError: with every problem of the file, in its order, then those of the environment.
    """
    path = config_path(environ)
    try:
        json, doubled = read_json(path)
    except FileNotFoundError:
        if environ.get("PICOCLAW_CONFIG", "").strip() and not may_lack:
            raise ConfigError(str(path), (Problem("PICOCLAW_CONFIG", "names a file that does not exist"),)) from None
        return _judge({}, (), path, environ)
    except Wrong as exc:
        raise ConfigError(str(path), tuple(Problem(address(place), text) for place, text in exc.found)) from None
    return attrs.evolve(_judge(json, doubled, path, environ), path=path)


def _judge(json: dict[str, Any], doubled: Iterable[Place], path: Path, environ: Mapping[str, str]) -> Config:
    origins, problems = apply_variables(json, environ)
    keys, more = apply_security_file(json, path)
    origins, problems = origins | keys, problems + more
    tray = Tray()
    tray.found += [(place, "stands twice in its object") for place in doubled]
    file = None
    with tray.at():
        file = _converter(path.parent, environ).structure(json, ConfigFile)
    _check_aliases(json, tray)
    for place, entry in entries(json):
        _check_target(place, entry, tray)
    mcp = dict_of(dict_of(json.get("tools")).get("mcp"))
    for name, server in dict_of(mcp.get("servers")).items() if mcp.get("enabled") is True else ():
        with tray.at("tools", "mcp", "servers", name):
            check_server(dict_of(server))
    if file is None or tray.found or problems:
        raise ConfigError(str(path), (*_problems(tray.found, json, origins), *problems))
    config = _config(file, config_home(environ))
    return attrs.evolve(
        config,
        warnings=tuple(_problems(find_warnings(json, config), json, origins)),
        passed_over=tuple(address(place) for place, near in find_passed_over(json) if near is None),
    )


def _problems(found: Iterable[tuple[Place, str]], json: Any, origins: Mapping[Place, str]) -> Iterator[Problem]:
    """What was found, in the order of *json*, and last what came from variables."""

    def origin(place: Place) -> Place:
        return next((origin for origin in origins if place[: len(origin)] == origin), ())

    for place, message in sorted(found, key=lambda one: (origin(one[0]) != (), _position(json, one[0]))):
        begin = origin(place)
        yield Problem(address(place[len(begin) :], origins.get(begin, "$")), message)


def _position(json: Any, place: Place) -> list[int]:
    position = []
    for part in place:
        if isinstance(part, int):
            position.append(part)
            json = list_of(json)[part]
        else:
            keys = list(dict_of(json))
            position.append(keys.index(part) if part in keys else len(keys))
            json = dict_of(json).get(part)
    return position


def _converter(folder: Path, environ: Mapping[str, str]) -> Converter:
    def on_unknown_key(shape: type, key: str) -> None:
        unused = UNUSED_MODEL_KEYS if shape is ModelEntry else ()
        if shape not in LENIENT and key not in unused:
            raise wrong(f"is not a known key{did_you_mean(key, (*attrs.fields_dict(shape), *unused))}")

    converter = strict_converter(on_unknown_key)
    converter.register_structure_hook(Path, lambda value, _: expand(_path(value), environ))
    converter.register_structure_hook(Secret, lambda value, _: read_secret(expect(str, value), folder, environ))
    choice, name = converter.get_structure_hook(ModelChoice), converter.get_structure_hook(Name)

    def structure_choice(value: object, kind: object) -> ModelChoice:
        if type(value) is not str:
            return choice(value, kind)  # type: ignore[no-any-return]  # cattrs' hooks are untyped
        return ModelChoice(name(value, Name) if value else None)

    converter.register_structure_hook(ModelChoice, structure_choice)
    return converter


def _path(value: Any) -> str:
    text: str = expect(str, value)
    if "\0" in text:
        raise wrong("must not hold a NUL")
    return text


def _check_aliases(json: Any, tray: Tray) -> None:
    """Whatever names an alias must name one that there is."""
    aliases = dict.fromkeys(name for _, entry in entries(json) if (name := text_of(entry, "model_name")))
    for place, name in references(json) if aliases else ():
        if isinstance(name, str) and name and name not in aliases:
            with tray.at(*place):
                raise wrong(f"{quoted(name)} is not a model_name of model_list{did_you_mean(name, aliases)}")


def _check_target(place: Place, entry: dict[str, Any], tray: Tray) -> None:
    """A ``model_list`` entry must say whom to ask, and have what is needed for it."""
    vendor = None
    with tray.at(*place, "provider"):
        try:
            vendor, _ = resolve(text_of(entry, "provider"), text_of(entry, "model"))
        except UnknownVendorError as exc:
            raise wrong(str(exc)) from None
    with tray.at(*place, "api_base"):
        _api_base(vendor or VENDORS[DEFAULT_VENDOR], text_of(entry, "api_base"))
    has_login = text_of(entry, "auth_method").lower() in LOGINS
    if vendor and _lacks_key(vendor, *map(entry.get, ("api_base", "api_key", "api_keys"))) and not has_login:
        with tray.at(*place):
            raise wrong(f"has neither api_key nor api_keys nor api_base, and {vendor.name} needs a key")


def _lacks_key(vendor: Vendor, *given: object) -> bool:
    return vendor.needs_key and not any(given)


def _api_base(vendor: Vendor, given: str | None) -> str | None:
    # A vendor with a protocol of its own may have a region or a bare host there, which is no address for us.
    if vendor.name == ECHO or (given and not vendor.speaks_openai and "://" not in given):
        return None
    return _check_base(given) if given else vendor.default_api_base


def _check_base(given: str) -> str:
    base = check_url(given, ("http", "https"))
    if base.endswith(ENDPOINT):
        raise wrong(f"must end before {ENDPOINT}, which the gateway adds")
    return base


def _config(file: ConfigFile, home: Path) -> Config:
    return Config(
        path=None,
        home=home,
        gateway=file.gateway,
        agents=AgentsConfig(
            _defaults(file.agents.defaults, home), tuple(_agent(entry, home) for entry in file.agents.list)
        ),
        model_list=tuple(map(_model, file.model_list)),
        tools=file.tools,
    )


def _defaults(entry: DefaultsEntry, home: Path) -> AgentDefaults:
    values = {name: getattr(entry, name) for name in attrs.fields_dict(AgentDefaults)}
    values |= {"model_name": entry.model_name or entry.model, "workspace": home / entry.workspace}
    return AgentDefaults(**values)


def _agent(entry: AgentEntry, home: Path) -> AgentConfig:
    workspace = home / entry.workspace if entry.workspace else None
    return AgentConfig(entry.id, entry.default, entry.name, entry.model.primary, entry.model.fallbacks, workspace)


def _model(entry: ModelEntry) -> ModelConfig:
    vendor, model = resolve(entry.provider, entry.model)
    keys = dict.fromkeys((entry.api_key, *entry.api_keys) if entry.api_key else entry.api_keys)
    options = {name: getattr(entry, name) for name in attrs.fields_dict(UpstreamOptions)}
    base = None if _lacks_key(vendor, entry.api_base, keys) else _api_base(vendor, entry.api_base)
    return ModelConfig(entry.model_name, model, vendor.name, base, tuple(keys), **options)
