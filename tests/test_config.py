from __future__ import annotations

import json
import logging
import os
import resource
import stat
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picoclaw_trio.config import (
    AgentConfig,
    Config,
    ModelConfig,
    Secret,
    config_home,
    config_path,
    create_first_config,
    load_config,
    reachable,
)
from picoclaw_trio.config.checks import check_url
from picoclaw_trio.config.sources import read_secret
from picoclaw_trio.config.strict import Wrong, strict_converter
from picoclaw_trio.config.values import ConfigFile, ModelChoice
from picoclaw_trio.connections import parse_proxy, parse_url
from picoclaw_trio.errors import ConfigError, Problem

EXAMPLE = Path(__file__).parent.parent / "config.example.json"
MARKER = "sk-Marker-7f3a"
ECHO = {"model_name": "echo", "model": "echo/echo"}


def load(folder: Path, content: object, **environ: str) -> Config:
    """Load *content*, bytes as they are and anything else as JSON, from a home folder of its own."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "config.json").write_bytes(raw)
    return load_config({"PICOCLAW_HOME": str(folder), "HOME": "/home/pico", **environ})


def refusal(folder: Path, content: object, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, content, **environ)
    return caught.value


def problems(folder: Path, content: object, **environ: str) -> list[tuple[str, str]]:
    return [(problem.address, problem.message) for problem in refusal(folder, content, **environ).problems]


def addresses(folder: Path, content: object, **environ: str) -> list[str]:
    return [address for address, _ in problems(folder, content, **environ)]


def api(**keys: object) -> dict[str, object]:
    return {"gateway": {"openai_api": keys}}


def told(config: Config) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    return config.warnings, config.passed_over


def warnings(config: Config) -> list[str]:
    return list(map(str, config.warnings))


def models(*entries: object) -> dict[str, object]:
    return {"model_list": list(entries)}


ON = api(enabled=True, bearer_tokens=["t"])


def target(**keys: object) -> dict[str, object]:
    return {"model_name": "m", "model": "openai/m", "api_key": "k", **keys}


# Where it is looked for


@pytest.mark.parametrize(
    ("environ", "path", "home"),
    [
        ({"HOME": "/h"}, "/h/.picoclaw/config.json", "/h/.picoclaw"),
        ({"HOME": "/h", "PICOCLAW_HOME": "/p"}, "/p/config.json", "/p"),
        ({"HOME": "/h", "PICOCLAW_HOME": "~/p", "PICOCLAW_CONFIG": ""}, "/h/p/config.json", "/h/p"),
        ({"HOME": "/h", "PICOCLAW_CONFIG": "/etc/c.json"}, "/etc/c.json", "/h/.picoclaw"),
        ({"HOME": "/h", "PICOCLAW_HOME": "/p", "PICOCLAW_CONFIG": "~/c.json"}, "/h/c.json", "/p"),
    ],
)
def test_path_and_home_come_from_the_environment(environ: dict[str, str], path: str, home: str) -> None:
    assert Path(path) == config_path(environ)
    assert Path(home) == config_home(environ)


def test_relative_path_begins_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tmp_path / "c.json" == config_path({"PICOCLAW_CONFIG": "c.json"})


def test_missing_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_config({"PICOCLAW_HOME": str(tmp_path)})

    assert Config(path=None, home=tmp_path) == attrs.evolve(config, agents=Config(None, tmp_path).agents)
    assert tmp_path / "workspace" == config.agents.defaults.workspace
    assert not config.gateway.openai_api.enabled
    assert config.default_alias is None


def test_missing_file_leaves_the_environment_in_force(tmp_path: Path) -> None:
    config = load_config({"PICOCLAW_HOME": str(tmp_path), "PICOCLAW_GATEWAY_PORT": "1"})
    assert 1 == config.gateway.port


def test_home_that_is_no_folder_gives_the_defaults() -> None:
    assert load_config({"HOME": "/dev/null"}).path is None


def test_missing_file_that_is_named_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"PICOCLAW_CONFIG": str(tmp_path / "none.json")})
    assert (Problem("PICOCLAW_CONFIG", "names a file that does not exist"),) == caught.value.problems


def test_path_and_home_are_in_the_config(tmp_path: Path) -> None:
    config = load(tmp_path, {})
    assert (tmp_path / "config.json", tmp_path) == (config.path, config.home)


# Files that are no configuration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; a configuration holds at least {}"),
        (b" \n", "is empty; a configuration holds at least {}"),
        (b"[]", "expected an object, not a list"),
        (b"null", "expected an object, not null"),
        (b"\xff\xfe{\x00}\x00", "is not UTF-8, first in line 1"),
        (b'{"a":\n"\xe9"}', "is not UTF-8, first in line 2"),
        (b" " * (16 * 1024 * 1024 + 1), "is larger than 16777216 bytes"),
    ],
)
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert [("$", message)] == problems(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "line", "column"),
    [('{\n  "gateway": {,}\n}', 2, 15), ('{"é": tru}', 1, 7), ('{"a": NaN}', 1, 7), ("[" * 5000, 1, 1026)],
)
def test_syntax_error_tells_line_and_column(tmp_path: Path, content: str, line: int, column: int) -> None:
    ((address, message),) = problems(tmp_path, content.encode())
    assert "$" == address
    assert message.startswith("is not JSON: ")
    assert message.endswith(f" in line {line}, column {column}")


def test_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert 7 == load(tmp_path, b'\xef\xbb\xbf{"gateway": {"port": 7}}').gateway.port


def test_key_that_stands_twice_is_refused_with_its_address_beside_all_other_problems(tmp_path: Path) -> None:
    content = b"""{"model_list": [], "gateway": {"port": 1, "port": "2"},
        "agents": {"list": [{}, {"id": "a", "id": "b", "id": "c"}]}, "model_list": [], "channels": {"x": 1, "x": 2}}"""
    twice = "stands twice in its object"
    assert [
        ("$.model_list", twice),
        ("$.gateway.port", twice),
        ("$.gateway.port", "expected a whole number, not a string"),
        ("$.agents.list[1].id", twice),
        ("$.channels.x", twice),
    ] == problems(tmp_path, content)


def test_comments_of_one_object_may_be_several(tmp_path: Path) -> None:
    assert 2 == load(tmp_path, b'{"gateway": {"_comment": "a", "port": 2, "_comment": "b"}}').gateway.port


@pytest.mark.parametrize("levels", [600, 1010])
def test_file_that_is_nested_too_deeply_is_refused(levels: int, tmp_path: Path) -> None:
    content = b'{"channels": ' + b"[" * levels + b"]" * levels + b"}"
    assert [("$", "is nested too deeply")] == problems(tmp_path, content)


def test_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\$: cannot be read: Is a directory"):
        load_config({"PICOCLAW_CONFIG": str(tmp_path)})


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match=r"\$: cannot be read: Too many levels of symbolic links"):
        load_config({"PICOCLAW_CONFIG": str(loop)})


def test_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\$: cannot be read: this is no path"):
        load_config({"PICOCLAW_CONFIG": "/a\0b"})


# Strict types


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        (bool, "false", "expected true or false, not a string"),
        (bool, 1, "expected true or false, not a number"),
        (int, "8080", "expected a whole number, not a string"),
        (int, True, "expected a whole number, not a boolean"),
        (int, 8080.0, "expected a whole number, not a decimal number"),
        (float, True, "expected a number, not a boolean"),
        (float, "1.5", "expected a number, not a string"),
        (float, float("nan"), "expected a finite number"),
        (float, float("-inf"), "expected a finite number"),
        (str, None, "expected a string, not null"),
        (str, 5, "expected a string, not a number"),
        (tuple[str, ...], "abc", "expected a list, not a string"),
        (tuple[str, ...], {"a": 1}, "expected a list, not an object"),
        (ModelChoice, [], "expected an object, not a list"),
    ],
)
def test_nothing_is_coerced(shape: Any, value: object, message: str) -> None:
    with pytest.raises(Wrong) as caught:
        strict_converter(lambda shape, key: None).structure(value, shape)
    assert (((), message),) == caught.value.found


def test_whole_number_will_do_for_a_float(tmp_path: Path) -> None:
    timeout = load(tmp_path, api(turn_timeout=5)).gateway.openai_api.turn_timeout
    assert (float, 5.0) == (type(timeout), timeout)


def test_empty_text_and_null_list_or_object_mean_not_given(tmp_path: Path) -> None:
    empty = target(provider="", api_base="", proxy="", max_tokens_field="", user_agent="", fallbacks=None)
    empty |= {"api_keys": None, "custom_headers": None, "extra_body": None}
    content = {
        "gateway": {"host": "", "log_level": "", "openai_api": {"bearer_tokens": None, "model_scope": ""}},
        "agents": {"defaults": {"model_name": "", "model": "", "workspace": ""}, "list": None},
        "model_list": [empty],
    }
    plain = {"model_list": [target()]}

    assert load(tmp_path, plain) == load(tmp_path, content)
    assert load(tmp_path, {}) == load(tmp_path, {"gateway": None, "agents": None, "model_list": None})


# Every problem at once, in the order of the file, each with its address


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    content = {
        "model_list": [
            target(api_base="ftp://x", rpm=-1),
            {"model": "a//b", "provider": "opnai"},
            7,
            target(custom_headers={"X-Ok": "y", "bad name": "x", "X-Bad": "a\nb"}, api_bas="x", fallbacks=["m", "n"]),
        ],
        "version": 4,
        "agents": {"defaults": {"model_name": "k", "model_fallbacks": ["m", 1, "l"]}, "list": [{"model": "j"}]},
        "gateway": {"port": 70000, "openai_api": {"max_wait": 0, "history": "server"}},
    }
    assert [
        ("$.model_list[0].api_base", "must begin with http:// or https://"),
        ("$.model_list[0].rpm", "must be 0 or more"),
        ("$.model_list[1].model", 'must not begin with "/" or hold "//"'),
        ("$.model_list[1].provider", "no vendor is called 'opnai'; did you mean \"openai\"?"),
        ("$.model_list[1].model_name", "is missing"),
        ("$.model_list[2]", "expected an object, not a number"),
        ('$.model_list[3].custom_headers["bad name"]', "is not a legal name of an HTTP header"),
        ("$.model_list[3].custom_headers.X-Bad", "must be printable ASCII without spaces around it"),
        ("$.model_list[3].api_bas", 'is not a known key; did you mean "api_base"?'),
        ("$.model_list[3].fallbacks[1]", '"n" is not a model_name of model_list'),
        ("$.version", "must be between 1 and 3"),
        ("$.agents.defaults.model_name", '"k" is not a model_name of model_list'),
        ("$.agents.defaults.model_fallbacks[1]", "expected a string, not a number"),
        ("$.agents.defaults.model_fallbacks[2]", '"l" is not a model_name of model_list'),
        ("$.agents.list[0].model", '"j" is not a model_name of model_list'),
        ("$.gateway.port", "must be between 0 and 65535"),
        ("$.gateway.openai_api.max_wait", "must be greater than 0"),
        ("$.gateway.openai_api.history", 'must be "client" or "session"'),
    ] == problems(tmp_path, content)


def test_error_names_the_file_and_each_address(tmp_path: Path) -> None:
    text = str(refusal(tmp_path, api(enabled="false")))
    assert f"{tmp_path}/config.json:\n  $.gateway.openai_api.enabled: expected true or false, not a string" == text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_scope", "gobal"),
        ("model_scope", "Global"),
        ("history", "server"),
        ("on_disconnect", "wait"),
        ("max_body_bytes", 0),
        ("body_timeout", 0),
        ("turn_timeout", -1),
        ("max_turns", 0),
        ("max_waiting", -1),
        ("max_wait", 0),
        ("write_timeout", 0),
        ("ping_interval", 0),
        ("cors_origins", "*"),
    ],
)
def test_value_outside_of_its_range_is_refused(tmp_path: Path, key: str, value: object) -> None:
    assert [f"$.gateway.openai_api.{key}"] == addresses(tmp_path, api(**{key: value}))


@pytest.mark.parametrize("origin", ["*", "http://localhost:3000", "https://chat.example", "app://obsidian.md"])
def test_origin_is_a_scheme_and_a_host(tmp_path: Path, origin: str) -> None:
    assert (origin,) == load(tmp_path, api(cors_origins=[origin])).gateway.openai_api.cors_origins


@pytest.mark.parametrize("origin", ["http://localhost:3000/", "localhost", "", "http://a http://b", "http://u@h"])
def test_what_is_no_origin_is_refused(tmp_path: Path, origin: str) -> None:
    assert ["$.gateway.openai_api.cors_origins[0]"] == addresses(tmp_path, api(cors_origins=[origin]))


@pytest.mark.parametrize("origin", ["http://ex\u00e4mple.de", "http://\u212a.de"])
def test_origin_that_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    ((address, message),) = problems(tmp_path, api(cors_origins=[origin]))
    assert "$.gateway.openai_api.cors_origins[0]" == address
    assert "Punycode" in message


def test_capitals_of_an_origin_do_not_count(tmp_path: Path) -> None:
    assert ("http://nas.lan",) == load(tmp_path, api(cors_origins=["HTTP://NAS.lan"])).gateway.openai_api.cors_origins


@pytest.mark.parametrize("name", ["Authorization", "cookie", "Proxy-Authorization", "X Chat"])
def test_header_with_a_secret_or_an_illegal_name_names_no_session(name: str, tmp_path: Path) -> None:
    assert ["$.gateway.openai_api.session_headers[1]"] == addresses(tmp_path, api(session_headers=["X-Chat", name]))


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("localhost", ("localhost",)),
        ("*", ("0.0.0.0", "::")),
        ("*, ::1, *", ("0.0.0.0", "::", "::1")),
        ("::1", ("::1",)),
        ("127.0.0.1, [::1],nas.lan", ("127.0.0.1", "::1", "nas.lan")),
        ("fe80::1%eth0", ("fe80::1%eth0",)),
    ],
)
def test_host_may_be_several(tmp_path: Path, host: str, hosts: tuple[str, ...]) -> None:
    gateway = load(tmp_path, {"gateway": {"host": host}}).gateway
    assert (host, hosts) == (gateway.host, gateway.hosts)


@pytest.mark.parametrize(
    ("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.0.0.1", "10.0.0.1"), ("nas.lan", "nas.lan")]
)
def test_server_that_listens_everywhere_is_asked_on_loopback(host: str, asked: str) -> None:
    assert asked == reachable(host)


@pytest.mark.parametrize("host", ["a b", "a,", "http://x", "x:80", "[::1", ":::", "a..b", "h\n"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    assert ["$.gateway.host"] == addresses(tmp_path, {"gateway": {"host": host}})


@pytest.mark.parametrize("level", ["debug", "info", "warn", "warning", "error", "fatal", "INFO"])
def test_log_level_is_known_in_any_case(tmp_path: Path, level: str) -> None:
    assert level.lower() == load(tmp_path, {"gateway": {"log_level": level}}).gateway.log_level


@pytest.mark.parametrize(
    "gateway", [{"log_level": "loud"}, {"log_format": "xml"}, {"grace": -1}, {"port": -1}, {"port": 65536}]
)
def test_gateway_value_that_means_nothing_is_refused(tmp_path: Path, gateway: dict[str, object]) -> None:
    assert [f"$.gateway.{key}" for key in gateway] == addresses(tmp_path, {"gateway": gateway})


# Keys that are not ours


def test_unknown_key_of_the_endpoint_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    assert [
        ("$.gateway.openai_api.bearer_token", 'is not a known key; did you mean "bearer_tokens"?'),
        ("$.gateway.openai_api.xyz", "is not a known key"),
    ] == problems(tmp_path, api(bearer_token=["t"], xyz=1))


def test_parts_of_picoclaw_that_we_lack_are_passed_over(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {
            "_comment": "x",
            "channels": {"telegram": {"token": 5}},
            "tools": {
                "cron": {},
                "exec": {"enabled": True},
                "mcp": {"discovery": {}, "servers": {"one": {"deferred": True}}},
            },
            "gateway": {"hot_reload": True, "_comment": ""},
            "agents": {
                "dispatch": {},
                "defaults": {"split_on_marker": True},
                "list": [{"skills": []}, {"model": {"x": 1}}],
            },
        },
    )
    assert (
        "$.channels",
        "$.tools.cron",
        "$.tools.exec.enabled",
        "$.tools.mcp.discovery",
        "$.tools.mcp.servers.one.deferred",
        "$.gateway.hot_reload",
        "$.agents.dispatch",
        "$.agents.defaults.split_on_marker",
        "$.agents.list[0].skills",
        "$.agents.list[1].model.x",
    ) == config.passed_over


@pytest.mark.parametrize(
    ("json", "address", "near"),
    [
        ({"gateway": {"hosts": "*"}}, "$.gateway.hosts", "host"),
        ({"gateway": {"Port": 1}}, "$.gateway.Port", "port"),
        ({"model_lists": []}, "$.model_lists", "model_list"),
        ({"agents": {"defaults": {"modelname": "m"}}}, "$.agents.defaults.modelname", "model_name"),
        ({"agents": {"list": [{"defualt": True}]}}, "$.agents.list[0].defualt", "default"),
        ({"tools": {"max_paralel": 1}}, "$.tools.max_paralel", "max_parallel"),
    ],
)
def test_key_that_is_nearly_a_known_one_loads_with_a_warning(
    tmp_path: Path, json: dict[str, Any], address: str, near: str
) -> None:
    config = load(tmp_path, {**models(ECHO), **json})
    (warning,) = [warning for warning in config.warnings if warning.address == address]
    assert f'is not a known key, and is passed over; did you mean "{near}"?' == warning.message
    assert () == config.passed_over


def test_no_key_of_picoclaws_own_is_taken_for_a_slip(tmp_path: Path) -> None:
    keys = "image_model image_model_fallbacks context_manager max_parallel_turns summarize_token_percent light_model"
    parts = "session channels channel_list bindings providers events hooks skills voice heartbeat isolation devices"
    tools = {
        **dict.fromkeys(("web", "cron", "skills", "spawn", "read_file", "allow_read_paths")),
        "exec": {"timeout_seconds": 60, "enabled": True},
        "web_fetch": {"private_host_whitelist": [], "fetch_limit_bytes": 1},
    }
    config = load(
        tmp_path,
        {
            **models(ECHO),
            **ON,
            **dict.fromkeys(parts.split()),
            "agents": {"defaults": dict.fromkeys(keys.split(), 1)},
            "tools": tools,
        },
    )
    assert [] == warnings(config)
    assert 12 + 6 + 6 + 4 == len(config.passed_over)


def test_endpoint_without_a_model_loads_with_a_warning(tmp_path: Path) -> None:
    expected = ["$.model_list: is empty, so there is no model that could answer"]
    assert expected == warnings(load(tmp_path, ON))


def test_alias_that_names_nothing_since_there_are_no_models_is_told(tmp_path: Path) -> None:
    config = load(tmp_path, {**ON, "agents": {"defaults": {"model": "m"}}})
    assert '$.agents.defaults.model: "m" names nothing, since model_list is empty' in warnings(config)


def test_models_of_picoclaws_first_versions_are_told_with_what_to_do(tmp_path: Path) -> None:
    config = load(tmp_path, {"providers": {"openai": {"api_key": MARKER}}})
    (warning,) = [warning for warning in config.warnings if warning.address == "$.providers"]
    assert "a newer PicoClaw makes model_list of it" in warning.message
    assert [] == warnings(load(tmp_path, {"providers": {"openai": {}}, **models(ECHO), **ON}))


def test_loading_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """How to log stands in what is loaded."""
    caplog.set_level(logging.DEBUG)
    load(tmp_path, {"channels": {}, **api(enabled=True)})
    assert [] == caplog.record_tuples


def test_nothing_is_told_where_nothing_is_odd(tmp_path: Path) -> None:
    assert ((), ()) == told(load(tmp_path, {**models(ECHO, target()), **ON}))


def test_known_keys_of_an_entry_that_mean_nothing_to_us_load_silently(tmp_path: Path) -> None:
    unused = {
        "auth_method": "oauth",
        "connect_mode": "grpc",
        "workspace": "/w",
        "thinking_level": "high",
        "tool_schema_transform": "simple",
        "streaming": {"enabled": True},
        "enabled": False,
    }
    config = load(tmp_path, {**models(target(**unused)), **ON})
    assert load(tmp_path, {**models(target()), **ON}) == config
    assert ((), ()) == told(config)


def test_comments_are_allowed_everywhere(tmp_path: Path) -> None:
    comment = {"_comment": ["anything", 1], "_": None}
    commented = {
        **comment,
        "gateway": {**comment, "openai_api": comment},
        "agents": {**comment, "defaults": comment, "list": [{**comment, "model": {**comment, "primary": "m"}}]},
        "model_list": [target(**comment, custom_headers={"_comment": 1, "X": "y"}, extra_body={"_comment": 1, "a": 2})],
    }
    config = load(tmp_path, commented)
    assert {"X": "y"} == config.model_list[0].custom_headers
    assert {"a": 2} == config.model_list[0].extra_body


# Both generations of PicoClaw


def test_old_generation_loads(tmp_path: Path) -> None:
    content = {
        "agents": {"defaults": {"model": "glm", "workspace": "~/.picoclaw/workspace", "provider": "zhipu"}},
        "providers": {"zhipu": {"api_key": "x", "api_base": ""}},
        "channels": {"telegram": {"enabled": False}},
        "model_list": [{"model_name": "glm", "model": "zhipu/glm-4.7", "api_key": "zk", "api_base": ""}],
        "gateway": {"host": "0.0.0.0", "port": 18790},
    }
    config = load(tmp_path, content)

    assert "glm" == config.default_alias == config.agents.defaults.model_name
    assert Path("/home/pico/.picoclaw/workspace") == config.agents.defaults.workspace
    (model,) = config.model_list
    expected = ("zhipu", "glm-4.7", "https://open.bigmodel.cn/api/paas/v4", (Secret("zk"),))
    assert expected == (model.vendor, model.model, model.api_base, model.api_keys)


def test_new_generation_loads(tmp_path: Path) -> None:
    content = {
        "version": 3,
        "agents": {
            "defaults": {"model_name": "gpt", "model_fallbacks": ["claude"], "max_tokens": 8192, "temperature": 0.7},
            "list": [
                {"id": "a", "model": "claude"},
                {"id": "b", "default": True, "model": {"primary": "gpt", "fallbacks": ["claude"]}, "workspace": "b"},
            ],
        },
        "model_list": [
            {"model_name": "gpt", "provider": "openai", "model": "gpt-5.4", "api_keys": ["k1", "k2"]},
            {"model_name": "claude", "model": "claude/claude-opus", "api_keys": ["k"], "request_timeout": 0, "rpm": 3},
        ],
        "channel_list": {},
        "gateway": {"host": "localhost", "port": 18790, "log_level": "fatal", "hot_reload": False},
    }
    config = load(tmp_path, content)

    assert ("localhost", "fatal") == (config.gateway.host, config.gateway.log_level)
    assert (8192, 0.7) == (config.agents.defaults.max_tokens, config.agents.defaults.temperature)
    assert ("claude",) == config.agents.defaults.model_fallbacks
    assert (
        AgentConfig("a", model="claude"),
        AgentConfig("b", default=True, model="gpt", fallbacks=("claude",), workspace=tmp_path / "b"),
    ) == config.agents.list
    openai, anthropic = "https://api.openai.com/v1", "https://api.anthropic.com/v1"
    assert (
        ModelConfig("gpt", "gpt-5.4", "openai", openai, (Secret("k1"), Secret("k2"))),
        ModelConfig("claude", "claude-opus", "anthropic", anthropic, (Secret("k"),), request_timeout=120.0, rpm=3),
    ) == config.model_list


def test_picoclaws_new_name_of_a_key_beats_the_old(tmp_path: Path) -> None:
    agents = {"agents": {"defaults": {"model": "old", "model_name": "m"}}}
    assert "m" == load(tmp_path, {**agents, **models(target())}).default_alias


def test_api_key_comes_before_api_keys_and_each_key_once(tmp_path: Path) -> None:
    (model,) = load(tmp_path, models(target(api_key="a", api_keys=["b", "a"]))).model_list
    assert (Secret("a"), Secret("b")) == model.api_keys


@pytest.mark.parametrize("version", [1, 2, 3])
def test_known_version_loads(tmp_path: Path, version: int) -> None:
    load(tmp_path, {"version": version})


@pytest.mark.parametrize("version", [0, 4, "3", 3.0, True])
def test_other_version_is_refused(tmp_path: Path, version: object) -> None:
    assert ["$.version"] == addresses(tmp_path, {"version": version})


# Entries of model_list


@pytest.mark.parametrize("model", ["", "/m", "a//b", "a b", "openai/", "m\n", "\x00"])
def test_model_without_a_sane_id_is_refused(tmp_path: Path, model: str) -> None:
    assert ["$.model_list[0].model"] == addresses(tmp_path, models(target(model=model)))


@pytest.mark.parametrize("name", ["", " ", "a\nb", " a", "a\x7f"])
def test_model_name_that_could_end_a_line_is_refused(tmp_path: Path, name: str) -> None:
    assert ["$.model_list[0].model_name"] == addresses(tmp_path, models(target(model_name=name)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://localhost:11434/v1/", "http://localhost:11434/v1"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://api.example//", "https://api.example"),
        ("http://llm_host", "http://llm_host"),
    ],
)
def test_api_base_loses_its_trailing_slash(tmp_path: Path, given: str, expected: str) -> None:
    assert expected == load(tmp_path, models(target(api_base=given))).model_list[0].api_base


@pytest.mark.parametrize(
    "url",
    [
        "api.openai.com/v1",
        "//x/v1",
        "ftp://x",
        "http://",
        "http:///v1",
        "http://a b/",
        "http://a..b/",
        "http://x:port/",
        "http://x:99999/",
        "http://x:0/",
        "http://[::1/",
        "http://x/?api-version=1",
        "http://x/#f",
        "http://ex\nample/",
        "http://exämple/",
        "http://user:pw@x/",
        f"http://{'a' * 64}/",
    ],
)
def test_api_base_that_cannot_be_connected_to_is_refused(tmp_path: Path, url: str) -> None:
    assert ["$.model_list[0].api_base"] == addresses(tmp_path, models(target(api_base=url)))


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:7890", "https://p", "socks5://user:pw@p:1", "socks5h://p:1"])
def test_proxy_is_an_http_or_socks_address(tmp_path: Path, proxy: str) -> None:
    assert proxy == load(tmp_path, models(target(proxy=proxy))).model_list[0].proxy


@pytest.mark.parametrize("proxy", ["127.0.0.1:7890", "socks4://p:1", "http://", "http://p:x"])
def test_what_is_no_proxy_is_refused(tmp_path: Path, proxy: str) -> None:
    assert ["$.model_list[0].proxy"] == addresses(tmp_path, models(target(proxy=proxy)))


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "Content-Length", "transfer-encoding", "Host"])
def test_header_with_an_illegal_or_reserved_name_is_refused(tmp_path: Path, name: str) -> None:
    assert 1 == len(addresses(tmp_path, models(target(custom_headers={name: "v"}))))


@pytest.mark.parametrize("value", ["a\r\nb", "é", " a", "a ", 5, None, ["a"]])
def test_header_with_an_illegal_value_is_refused(tmp_path: Path, value: object) -> None:
    address = "$.model_list[0].custom_headers.X-A"
    assert [address] == addresses(tmp_path, models(target(custom_headers={"X-A": value})))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("request_timeout", -1),
        ("request_timeout", "30"),
        ("rpm", 1.5),
        ("max_tokens_field", "max tokens"),
        ("extra_body", []),
        ("user_agent", "a\nb"),
        ("fallbacks", "m"),
        ("fallbacks", [""]),
    ],
)
def test_option_of_an_entry_is_checked(tmp_path: Path, key: str, value: object) -> None:
    (address,) = addresses(tmp_path, models(target(**{key: value})))
    assert address.startswith(f"$.model_list[0].{key}")


def test_extra_body_that_could_not_be_sent_is_refused(tmp_path: Path) -> None:
    deep = b'{"model_list": [{"model_name": "m", "model": "echo/m", "extra_body": {"a": %s}}]}'
    nested = deep % (b"[" * 500 + b"]" * 500)
    assert [("$.model_list[0].extra_body", "is nested too deeply")] == problems(tmp_path, nested)


def test_entries_of_one_name_are_a_group(tmp_path: Path) -> None:
    config = load(tmp_path, models(target(), ECHO, target(model="groq/x")))
    assert ("m", "echo") == config.aliases
    assert ["openai", "echo", "groq"] == [model.vendor for model in config.model_list]


def test_echo_needs_nothing_and_has_no_address(tmp_path: Path) -> None:
    (model,) = load(tmp_path, models(ECHO)).model_list
    assert ModelConfig("echo", "echo", "echo", None) == model
    assert model.is_usable


@pytest.mark.parametrize("empty", [{}, {"api_key": ""}, {"api_keys": []}, {"api_base": ""}])
def test_vendor_that_needs_a_key_is_refused_without_key_and_address(tmp_path: Path, empty: dict[str, object]) -> None:
    entry = {"model_name": "m", "model": "groq/m", **empty}
    message = "has neither api_key nor api_keys nor api_base, and groq needs a key"
    assert [("$.model_list[0]", message)] == problems(tmp_path, models(entry))


@pytest.mark.parametrize("options", [{"api_base": "http://x"}, {"provider": "ollama"}, {"model": "vllm/m"}])
def test_address_or_local_vendor_needs_no_key(tmp_path: Path, options: dict[str, object]) -> None:
    (model,) = load(tmp_path, models({"model_name": "m", "model": "m", **options})).model_list
    assert () == model.api_keys


def test_foreign_vendor_without_an_address_loads_with_a_warning(tmp_path: Path) -> None:
    entries = (
        {"model_name": "g", "model": "google/gemini-3", "api_keys": ["k"]},
        {"model_name": "b", "model": "bedrock/claude", "api_base": "eu-central-1"},
        {"model_name": "c", "model": "copilot/x", "api_base": "localhost:4321"},
    )
    config = load(tmp_path, {**models(*entries), **ON})
    for model in config.model_list:
        assert model.api_base is None
        assert not model.is_usable
    assert 3 == len(config.warnings)
    assert str(config.warnings[1]).startswith('$.model_list[1]: "b" cannot be asked: bedrock speaks its own protocol')


@pytest.mark.parametrize("method", ["oauth", "token", "OAuth"])
def test_entry_that_picoclaw_logs_in_for_loads_with_a_warning(tmp_path: Path, method: str) -> None:
    entry = {"model_name": "c", "model": "anthropic/claude", "auth_method": method, "api_keys": []}
    config = load(tmp_path, {**models(ECHO, entry), **ON})

    assert [True, False] == [model.is_usable for model in config.model_list]
    (warning,) = warnings(config)
    assert warning.startswith('$.model_list[1]: "c" cannot be asked: it has no key')


@pytest.mark.parametrize("more", [{"api_key": "k"}, {"api_base": "http://bridge/v1"}])
def test_entry_that_picoclaw_logs_in_for_is_asked_where_it_can_be(tmp_path: Path, more: dict[str, object]) -> None:
    entry = {"model_name": "c", "model": "anthropic/claude", "auth_method": "oauth", **more}
    config = load(tmp_path, {**models(entry), **ON})
    assert ([True], []) == ([model.is_usable for model in config.model_list], warnings(config))


@pytest.mark.parametrize("end", ["/chat/completions", "/chat/completions/"])
def test_api_base_that_is_the_endpoint_itself_is_refused(tmp_path: Path, end: str) -> None:
    expected = "must end before /chat/completions, which the gateway adds"
    assert [("$.model_list[0].api_base", expected)] == problems(tmp_path, models(target(api_base=f"http://x/v1{end}")))


def test_fallback_of_an_entry_to_itself_loads_with_a_warning(tmp_path: Path) -> None:
    config = load(tmp_path, {**models(target(fallbacks=["echo", "m"]), ECHO), **ON})
    assert ["$.model_list[0].fallbacks[1]"] == [warning.address for warning in config.warnings]


def test_second_default_agent_loads_with_a_warning(tmp_path: Path) -> None:
    agents = [{"id": "a"}, {"id": "b", "default": True}, {"id": "c", "default": True}]
    config = load(tmp_path, {**models(ECHO), **ON, "agents": {"list": agents}})
    assert "b" == config.default_agent.id
    assert ["$.agents.list[2].default: counts for nothing: $.agents.list[1] is the default agent"] == warnings(config)


def test_entry_without_a_key_and_a_login_is_refused(tmp_path: Path) -> None:
    entry = {"model_name": "c", "model": "anthropic/claude", "auth_method": "api_key"}
    assert ["$.model_list[0]"] == addresses(tmp_path, models(entry))


def test_foreign_vendor_with_an_address_is_asked_in_openais_protocol(tmp_path: Path) -> None:
    entry = {"model_name": "g", "model": "gemini/gemini-3", "api_base": "http://bridge/v1"}
    config = load(tmp_path, {**models(entry), **ON})
    (model,) = config.model_list

    assert ("gemini", "gemini-3", "http://bridge/v1") == (model.vendor, model.model, model.api_base)
    assert model.is_usable
    assert ['$.model_list[0]: "g" is asked in OpenAI\'s protocol, not in that of gemini'] == warnings(config)


def test_address_of_a_foreign_vendor_is_checked_too(tmp_path: Path) -> None:
    entry = {"model_name": "a", "model": "azure/a", "api_base": "htps://x"}
    assert ["$.model_list[0].api_base"] == addresses(tmp_path, models(entry))


def test_endpoint_that_lets_nobody_in_loads_with_a_warning(tmp_path: Path) -> None:
    config = load(tmp_path, {**models(ECHO), **api(enabled=True)})
    assert ["$.gateway.openai_api.bearer_tokens: is empty, so every request will be refused"] == warnings(config)


def test_endpoint_that_is_off_loads_with_a_warning(tmp_path: Path) -> None:
    (warning,) = warnings(load(tmp_path, models(ECHO)))
    assert warning.startswith("$.gateway.openai_api.enabled: the OpenAI API is off")


def test_warning_about_a_value_of_the_environment_names_the_variable(tmp_path: Path) -> None:
    config = load(tmp_path, models(ECHO), PICOCLAW_GATEWAY_OPENAI_API_ENABLED="false")
    assert ["PICOCLAW_GATEWAY_OPENAI_API_ENABLED"] == [warning.address for warning in config.warnings]


# Secrets


def test_secret_is_taken_from_a_variable_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a").write_text("from-file\r\n\n")
    (tmp_path / "b").write_text("\ufefffrom-url\n")
    keys = ["plain", "env:A_KEY", "file:keys/a", "file://b", f"file:{tmp_path}/b", "file:~/b"]
    (model,) = load(tmp_path, models(target(api_keys=keys)), A_KEY="from-env", HOME=str(tmp_path)).model_list
    assert ["k", "plain", "from-env", "from-file", "from-url"] == [key.reveal() for key in model.api_keys]


def test_secret_files_are_sought_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    (tmp_path / "c.json").write_text(json.dumps(api(bearer_tokens=["file:token"])))
    config = load_config({"PICOCLAW_CONFIG": str(tmp_path / "c.json"), "PICOCLAW_HOME": "/elsewhere"})
    assert (Secret("t"),) == config.gateway.openai_api.bearer_tokens


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("", "is empty"),
        ("a b", "must be printable ASCII without spaces"),
        ("tökn", "must be printable ASCII without spaces"),
        ("a\n", "must be printable ASCII without spaces"),
        ("env:NOT_SET", "names the environment variable NOT_SET, which is not set"),
        ("env:BLANK", "names the environment variable BLANK, which is empty"),
        ("env:", "names the environment variable, which is not set"),
        ("env:SPACED", "must be printable ASCII without spaces"),
        ("file:none", "names a file that does not exist; a relative path begins at FOLDER"),
        ("file:", "names a file that cannot be read: Is a directory"),
        ("file:a\0b", "names a file that cannot be read: this is no path"),
        ("file:empty", "is empty"),
        ("file:binary", "names a file that is not UTF-8, first in line 1"),
        ("file:large", "names a file that is larger than 65536 bytes"),
        ("enc://x", "is encrypted by PicoClaw, and only PicoClaw can read it; give it as env:NAME or file:PATH"),
        (5, "expected a string, not a number"),
        (None, "expected a string, not null"),
    ],
)
def test_token_that_cannot_be_used_is_refused(tmp_path: Path, token: object, message: str) -> None:
    (tmp_path / "empty").write_bytes(b"\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "large").write_bytes(b"x" * 65537)
    found = problems(tmp_path, api(bearer_tokens=["ok", token]), BLANK="", SPACED="a b")
    assert [("$.gateway.openai_api.bearer_tokens[1]", message.replace("FOLDER", str(tmp_path)))] == found


def test_pipe_that_nobody_writes_to_is_empty(tmp_path: Path) -> None:
    """A reload must not wait for it, since nobody is served meanwhile."""
    os.mkfifo(tmp_path / "pipe")
    found = problems(tmp_path, api(bearer_tokens=["file:pipe"]))
    assert [("$.gateway.openai_api.bearer_tokens[0]", "is empty")] == found


def test_secret_may_come_through_a_pipe(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb"), open(writer, "wb") as file:
        file.write(b"sk-piped\n")
        file.close()
        assert "sk-piped" == read_secret(f"file:/dev/fd/{reader}", tmp_path, {}).reveal()


@pytest.mark.parametrize("place", ["agents.defaults", "agents.list[0]"])
def test_path_that_none_can_have_is_refused(tmp_path: Path, place: str) -> None:
    agents = {"defaults": {"workspace": "a\0b"}} if place == "agents.defaults" else {"list": [{"workspace": "a\0b"}]}
    assert [(f"$.{place}.workspace", "must not hold a NUL")] == problems(tmp_path, {"agents": agents})


LEAKS: list[object] = [
    {MARKER: MARKER},
    [MARKER, [MARKER]],
    f"{MARKER} x",
    f"{MARKER}\n",
    f"é{MARKER}",
    f"enc://{MARKER}",
    f"env:{MARKER}",
    f"file:{MARKER}",
    f"file://{MARKER}\0",
    f"http://{MARKER}:{MARKER}",
]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("key", ["api_key", "api_keys", "api_base", "proxy", "user_agent", "max_tokens_field", "rpm"])
def test_no_refusal_of_an_entry_repeats_what_may_be_a_secret(tmp_path: Path, key: str, leak: object) -> None:
    error = refusal(tmp_path, models(target(**{key: leak}), 5))
    assert MARKER not in "".join((str(error), repr(error), *traceback.format_exception(error)))


@pytest.mark.parametrize("leak", [MARKER, *LEAKS])
@pytest.mark.parametrize("key", ["bearer_tokens", "model_scope", "enabled", "port", "history"])
def test_no_refusal_of_the_endpoint_repeats_what_may_be_a_secret(tmp_path: Path, key: str, leak: object) -> None:
    content = {"gateway": {"port": 1 if key != "port" else leak, "openai_api": {key: leak} if key != "port" else {}}}
    error = refusal(tmp_path, {"version": 9, **content})
    assert MARKER not in "".join((str(error), repr(error), *traceback.format_exception(error)))


def test_no_refusal_of_broken_json_repeats_the_text(tmp_path: Path) -> None:
    whole = json.dumps(api(bearer_tokens=[MARKER])).encode()
    for end in range(1, len(whole)):
        error = refusal(tmp_path, whole[:end])
        assert MARKER not in "".join((str(error), *traceback.format_exception(error)))
        assert error.__cause__ is None
        assert error.__suppress_context__


def test_secrets_of_a_config_do_not_show(tmp_path: Path) -> None:
    entry = target(
        api_key=MARKER,
        api_keys=[MARKER],
        proxy=f"http://u:{MARKER}@p",
        custom_headers={"Authorization": MARKER},
        extra_body={"key": MARKER},
    )
    config = load(tmp_path, {**api(bearer_tokens=[MARKER]), **models(entry)})
    assert MARKER not in f"{config} {config!r} {config.model_list[0].api_keys} {attrs.asdict(config.gateway)}"
    assert MARKER == config.gateway.openai_api.bearer_tokens[0].reveal()


def test_secret_is_equal_by_value_and_hides_it() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert 1 == len({Secret("a"), Secret("a")})
    assert "a" != Secret("a")
    assert ("***", "***", "***") == (str(Secret("a")), repr(Secret("a")), f"{Secret('a')}")


# The environment


def test_environment_beats_the_file(tmp_path: Path) -> None:
    content = {
        "gateway": {
            "host": "1.2.3.4",
            "port": "wrong",
            "log_level": "fatal",
            "openai_api": {"enabled": "wrong", "bearer_tokens": ["x"], "model_scope": "wrong"},
        },
        "agents": {"defaults": {"model_name": "wrong"}},
        **models(ECHO, target()),
    }
    config = load(
        tmp_path,
        content,
        PICOCLAW_GATEWAY_HOST="localhost",
        PICOCLAW_GATEWAY_PORT=" 0 ",
        PICOCLAW_GATEWAY_OPENAI_API_ENABLED="True",
        PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS="a, env:T",
        PICOCLAW_GATEWAY_OPENAI_API_MODEL_SCOPE="session",
        PICOCLAW_LOG_LEVEL="DEBUG",
        PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME="m",
        T="b",
    )
    gateway, endpoint = config.gateway, config.gateway.openai_api
    assert ("localhost", 0, "debug", "m") == (gateway.host, gateway.port, gateway.log_level, config.default_alias)
    assert (True, (Secret("a"), Secret("b")), "session") == (
        endpoint.enabled,
        endpoint.bearer_tokens,
        endpoint.model_scope,
    )


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("FALSE", False), ("0", False)])
def test_switch_in_the_environment_is_a_word_or_a_digit(tmp_path: Path, text: str, value: bool) -> None:
    assert value == load(tmp_path, {}, PICOCLAW_GATEWAY_OPENAI_API_ENABLED=text).gateway.openai_api.enabled


def test_blank_variables_are_not_set(tmp_path: Path) -> None:
    blank = dict.fromkeys(("PICOCLAW_GATEWAY_HOST", "PICOCLAW_GATEWAY_PORT", "PICOCLAW_LOG_LEVEL"), " ")
    assert load(tmp_path, {}) == load(tmp_path, {}, **blank)


def test_bad_variables_are_told_by_their_names_after_the_files_own_problems(tmp_path: Path) -> None:
    content = {
        "agents": {"defaults": {"model_name": "m", "max_tokens": -1}},
        "gateway": {"port": 1, "grace": -1},
        **models(target()),
    }
    assert [
        ("$.agents.defaults.max_tokens", "must be 0 or more"),
        ("$.gateway.grace", "must be 0 or more"),
        ("PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME", '"n" is not a model_name of model_list'),
        ("PICOCLAW_GATEWAY_HOST", "must be a host, or several with commas between"),
        ("PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS[1]", "is empty"),
        ("PICOCLAW_GATEWAY_OPENAI_API_MODEL_SCOPE", 'must be "global" or "session"'),
        ("PICOCLAW_GATEWAY_PORT", "must be a whole number"),
        ("PICOCLAW_GATEWAY_OPENAI_API_ENABLED", "must be true, false, 1 or 0"),
    ] == problems(
        tmp_path,
        content,
        PICOCLAW_AGENTS_DEFAULTS_MODEL_NAME="n",
        PICOCLAW_GATEWAY_HOST="a b",
        PICOCLAW_GATEWAY_PORT="80 80",
        PICOCLAW_GATEWAY_OPENAI_API_ENABLED="yes",
        PICOCLAW_GATEWAY_OPENAI_API_BEARER_TOKENS="a,,b",
        PICOCLAW_GATEWAY_OPENAI_API_MODEL_SCOPE="x",
    )


@pytest.mark.parametrize("port", ["65536", "-1", "1_0", "٣", "0x10", "9" * 5000, "1.0"])
def test_bad_port_in_the_environment_is_refused(tmp_path: Path, port: str) -> None:
    assert ["PICOCLAW_GATEWAY_PORT"] == addresses(tmp_path, {}, PICOCLAW_GATEWAY_PORT=port)


def test_variable_below_something_that_is_no_object_leaves_the_files_problem(tmp_path: Path) -> None:
    assert ["$.gateway"] == addresses(tmp_path, {"gateway": [1]}, PICOCLAW_GATEWAY_PORT="1")


# Who answers by default


@pytest.mark.parametrize(
    ("agents", "alias"),
    [
        ({}, "m"),
        ({"defaults": {"model_name": "echo"}}, "echo"),
        ({"defaults": {"model": "echo"}}, "echo"),
        ({"defaults": {"model_name": "m"}, "list": [{"model": "echo"}, {"model": "m"}]}, "echo"),
        ({"defaults": {"model_name": "m"}, "list": [{"model": "m"}, {"model": "echo", "default": True}]}, "echo"),
        ({"defaults": {"model_name": "echo"}, "list": [{"id": "a"}]}, "echo"),
        ({"list": [{"model": ""}]}, "m"),
        ({"list": [{"model": {"primary": ""}}]}, "m"),
    ],
)
def test_default_alias_is_the_default_agents_then_the_defaults_then_the_first(
    tmp_path: Path, agents: object, alias: str
) -> None:
    assert alias == load(tmp_path, {"agents": agents, **models(target(), ECHO)}).default_alias


def test_default_model_needs_no_entry_while_there_are_none(tmp_path: Path) -> None:
    assert load(tmp_path, {"agents": {"defaults": {"model": "glm-4.7"}}}).default_alias is None


def test_unknown_default_model_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    content = {"agents": {"defaults": {"model": "ecko"}, "list": [{"model": {"primary": "ECHO"}}]}, **models(ECHO)}
    assert [
        ("$.agents.defaults.model", '"ecko" is not a model_name of model_list; did you mean "echo"?'),
        ("$.agents.list[0].model.primary", '"ECHO" is not a model_name of model_list; did you mean "echo"?'),
    ] == problems(tmp_path, content)


def test_agent_of_the_defaults_is_there_when_none_is_listed(tmp_path: Path) -> None:
    assert AgentConfig(id="main", default=True) == load(tmp_path, {}).default_agent


# The first run


def test_first_config_loads_and_lets_its_token_in(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.json"
    token = create_first_config(path)
    config = load_config({"PICOCLAW_CONFIG": str(path)})

    assert token.startswith("sk-")
    assert (Secret(token),) == config.gateway.openai_api.bearer_tokens
    assert ("127.0.0.1", True) == (config.gateway.host, config.gateway.openai_api.enabled)
    assert ("echo", "echo") == (config.default_alias, config.model_list[0].vendor)


def test_first_config_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        create_first_config(tmp_path / "new" / "config.json")
    finally:
        os.umask(umask)
    assert 0o700 == stat.S_IMODE((tmp_path / "new").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "new" / "config.json").stat().st_mode)


def test_first_config_is_for_reading(tmp_path: Path) -> None:
    create_first_config(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_first_config_has_a_token_of_its_own(tmp_path: Path) -> None:
    assert create_first_config(tmp_path / "a.json") != create_first_config(tmp_path / "b.json")


@pytest.mark.parametrize("target", ["x", "none"])
def test_first_config_overwrites_nothing(tmp_path: Path, target: str) -> None:
    (tmp_path / "x").write_text("mine")
    (tmp_path / "link.json").symlink_to(tmp_path / target)
    for name in ("x", "link.json"):
        with pytest.raises(FileExistsError):
            create_first_config(tmp_path / name)
    assert "mine" == (tmp_path / "x").read_text()
    assert {"x", "link.json"} == {path.name for path in tmp_path.iterdir()}


def test_first_config_that_cannot_be_written_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(ConfigError, match=r"\$: cannot be written: Not a directory"):
        create_first_config(tmp_path / "x" / "config.json")


def test_first_config_on_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(ConfigError, match=r"\$: cannot be written: File too large"):
            create_first_config(tmp_path / "config.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [] == list(tmp_path.iterdir())


# The example


def load_example(folder: Path) -> Config:
    for name in ("tokens/laptop", "keys/qwen"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("from-a-file\n")
    variables = ("PICOCLAW_TOKEN", "OPENAI_API_KEY", "OPENAI_API_KEY_2", "OPENROUTER_API_KEY")
    return load(folder, EXAMPLE.read_bytes(), **dict.fromkeys(variables, "from-the-environment"))


def test_example_loads_without_a_word(tmp_path: Path) -> None:
    config = load_example(tmp_path)

    assert ("gpt", "qwen3-coder-plus", "local", "echo") == config.aliases
    assert all(model.is_usable for model in config.model_list)
    assert ((), ()) == told(config)


def test_example_shows_every_key_that_is_read() -> None:
    shown = set(paths_of(json.loads(EXAMPLE.read_bytes())))
    assert [] == [path for path in paths_of_shape(ConfigFile) if path not in shown]


def test_example_shows_the_defaults_of_the_gateway(tmp_path: Path) -> None:
    gateway = load_example(tmp_path).gateway
    chosen = ("enabled", "bearer_tokens", "streaming", "cors_origins", "session_headers", "session_ttl")
    default = Config(None, tmp_path).gateway
    shown = attrs.evolve(gateway.openai_api, **{name: getattr(default.openai_api, name) for name in chosen})
    assert default == attrs.evolve(gateway, openai_api=shown)


def paths_of(value: object, path: str = "") -> Iterator[str]:
    """``a.list.b`` for each key of *value*, at any depth; an index of a list is no step."""
    for key, item in value.items() if isinstance(value, dict) else ():
        yield f"{path}.{key}"
        yield from paths_of(item, f"{path}.{key}")
    for item in value if isinstance(value, list) else ():
        yield from paths_of(item, path)


def paths_of_shape(hint: Any, path: str = "") -> Iterator[str]:
    """The same for each field of an attrs class, and of those within it; old spellings left out."""
    if attrs.has(hint):
        hints = get_type_hints(hint)
        for field in attrs.fields(hint):
            if "old spelling of" not in field.metadata:
                yield f"{path}.{field.name}"
                yield from paths_of_shape(hints[field.name], f"{path}.{field.name}")
    elif get_origin(hint) in (tuple, Annotated):
        yield from paths_of_shape(get_args(hint)[0], path)


# Whatever a file holds

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["m", "echo/m", "openai", "http://x", "env:HOME", "file:config.json", "file:/", "enc://", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def base() -> dict[str, Any]:
    return json.loads(EXAMPLE.read_bytes())  # type: ignore[no-any-return]  # it holds an object


def places_of(value: object, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from places_of(item, (*place, key))


def put(document: Any, place: tuple[str | int, ...], value: object) -> None:
    for key in place[:-1]:
        document = document[key]
    document[place[-1]] = value


PLACES = [*places_of(base()), ("agents", "defaults", "model"), ("model_list", 1, "api_keys"), ("providers",)]


@settings(deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_loading_raises_nothing_but_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str | int, ...], object]]
) -> None:
    document = base()
    for place, value in sorted(changes, key=lambda change: -len(change[0])):
        put(document, place, value)
    loads_or_refuses(tmp_path_factory.getbasetemp(), json.dumps(document).encode())


@settings(deadline=None)
@given(document=st.dictionaries(st.sampled_from(["version", "gateway", "agents", "model_list", "x"]), JSON) | JSON)
def test_loading_any_json_raises_nothing_but_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, document: object
) -> None:
    loads_or_refuses(tmp_path_factory.getbasetemp(), json.dumps(document).encode())


@settings(deadline=None)
@given(content=st.binary(max_size=50))
def test_loading_any_bytes_raises_nothing_but_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    loads_or_refuses(tmp_path_factory.getbasetemp(), content)


URL_PARTS = st.sampled_from("/:@[]%.?#a-_98 \té\u2100") | st.sampled_from(
    ["http", "https", "socks5h", "://", "::1", "80", "xn--", "u:p@", "127.0.0.1", "x" * 63, "x" * 64, "y" * 256]
)


@settings(deadline=None)
@given(start=st.sampled_from(["http://", "https://", "socks5://", ""]), rest=st.lists(URL_PARTS, max_size=6))
def test_every_address_that_passes_can_be_connected_to(start: str, rest: list[str]) -> None:
    text = start + "".join(rest)
    with suppress(Wrong):
        parse_url(check_url(text, ("http", "https")) + "/chat/completions")
    with suppress(Wrong):
        parse_proxy(check_url(text, ("http", "https", "socks5", "socks5h"), may_have_user=True))


def loads_or_refuses(folder: Path, content: bytes) -> None:
    try:
        config = load(folder, content)
    except ConfigError as refused:
        found = [str(problem) for problem in refused.problems]
    else:
        found = []
        assert config.default_alias in (*config.aliases, None)
    assert [] == [problem for problem in found if not problem.startswith("$")]
    assert len(set(found)) == len(found)
