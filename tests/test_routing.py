from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest

from picoclaw_trio.config import AgentConfig, AgentDefaults, AgentsConfig, Config, ModelConfig, Secret
from picoclaw_trio.errors import UPSTREAM_FAILURES, RequestError
from picoclaw_trio.routing import FALL_BACK, GIVE_UP, ON_FAILURE, RETRY, Route, Router


def model(name: str, base: str = "http://one", *keys: str, **options: Any) -> ModelConfig:
    return ModelConfig(name, f"{name}-up", "openai", base, tuple(map(Secret, keys)), **options)


def router_of(*models: ModelConfig, agent: AgentConfig | None = None, **defaults: Any) -> Router:
    agents = AgentsConfig(AgentDefaults(**defaults), (agent,) if agent else ())
    return Router.from_config(Config(None, Path("/nowhere"), agents=agents, model_list=models))


def bases(route: Route) -> str:
    """The targets by their addresses, of which each has one letter."""
    return "".join((target.base or "?").removeprefix("http://") for target in route.targets)


# What follows a failure


def test_table_has_a_cell_for_every_kind_of_failure_before_and_after_the_first_text() -> None:
    assert set(itertools.product(UPSTREAM_FAILURES, (False, True))) == ON_FAILURE.keys()


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("rejected", GIVE_UP),
        ("auth", FALL_BACK),
        ("unknown_model", FALL_BACK),
        ("unsupported", FALL_BACK),
        ("rate_limited", RETRY),
        ("server", RETRY),
        ("backend_timeout", FALL_BACK),
        ("unreachable", RETRY),
        ("lost", FALL_BACK),
        ("garbled", FALL_BACK),
        ("timeout", FALL_BACK),
    ],
)
def test_action_before_the_first_text(kind: str, action: str) -> None:
    assert action == ON_FAILURE[kind, False]


@pytest.mark.parametrize("kind", UPSTREAM_FAILURES)
def test_after_the_first_text_nothing_is_asked_again(kind: str) -> None:
    assert GIVE_UP == ON_FAILURE[kind, True]


# Aliases


def test_aliases_stand_once_in_the_order_of_the_list() -> None:
    router = router_of(model("b"), model("a"), model("b", "http://two"))

    assert ["b", "a"] == list(router.aliases)


@pytest.mark.parametrize("alias", ["A", "a ", "", "b-up", "c"])
def test_alias_is_compared_exactly(alias: str) -> None:
    router = router_of(model("b"), model("a"))

    with pytest.raises(RequestError, match=r"Configured models: a, b\.$") as raised:
        router.check_alias(alias)

    assert (404, "model_not_found", "model") == (raised.value.status, raised.value.code, raised.value.param)


def test_known_alias_passes() -> None:
    router_of(model("b"), model("a")).check_alias("a")


def test_without_models_the_message_says_none() -> None:
    with pytest.raises(RequestError, match="none"):
        router_of().check_alias("a")


# Turns


def test_alias_with_one_target_always_has_that_one() -> None:
    router = router_of(model("a", "http://x"), model("b", "http://y"))

    assert ["x", "x"] == [bases(router.route("a", 0.0)) for _ in range(2)]


def test_entries_of_one_name_begin_in_turn_and_stand_in_for_each_other_in_turn() -> None:
    router = router_of(model("a", "http://x"), model("b", "http://o"), model("a", "http://y"), model("a", "http://z"))

    assert ["xyz", "yzx", "zxy", "xzy", "yxz", "zyx", "xyz"] == [bases(router.route("a", 0.0)) for _ in range(7)]


def keys(route: Route) -> str:
    """The targets by their keys, of which each has one digit."""
    return "".join(target.key.reveal() if target.key else "-" for target in route.targets)


def test_keys_of_one_entry_take_the_turns_of_that_entry_in_turn() -> None:
    router = router_of(model("a", "http://x", "1", "2", "3"), model("a", "http://y", "4"))

    assert ["1234", "4231", "2314", "4312", "3124", "4132"] == [keys(router.route("a", 0.0)) for _ in range(6)]


def test_entry_has_no_more_of_the_load_for_having_more_keys() -> None:
    router = router_of(model("a", "http://x", "1", "2", "3"), model("a", "http://y", "4"), model("a", "http://z", "5"))
    firsts = Counter(keys(router.route("a", 0.0))[0] for _ in range(900))

    assert {"1": 100, "2": 100, "3": 100, "4": 300, "5": 300} == firsts


def test_load_of_an_entry_that_cools_down_is_spread_over_all_the_others() -> None:
    router = router_of(*(model("a", f"http://{letter}") for letter in "wxyz"))
    router.route("a", 0.0).targets[0].health.note_failure("auth", None, 0.0, 0.0)
    firsts = Counter(bases(router.route("a", 1.0))[0] for _ in range(300))

    assert {"x": 100, "y": 100, "z": 100} == firsts


def test_load_of_a_key_that_cools_down_stays_with_its_entry() -> None:
    router = router_of(model("a", "http://x", "1", "2", "3"), model("a", "http://y", "4"))
    router.route("a", 0.0).targets[0].health.note_failure("auth", None, 0.0, 0.0)
    firsts = Counter(keys(router.route("a", 1.0))[0] for _ in range(400))

    assert {"2": 100, "3": 100, "4": 200} == firsts


def test_entry_whose_keys_all_cool_down_has_no_turn() -> None:
    router = router_of(model("a", "http://x", "1", "2"), model("a", "http://y", "3"), model("a", "http://z", "4"))
    for target in router.route("a", 0.0).targets[:2]:
        target.health.note_failure("auth", None, 0.0, 0.0)
    firsts = Counter(keys(router.route("a", 1.0))[0] for _ in range(200))

    assert {"3": 100, "4": 100} == firsts


def test_entries_that_all_cool_down_take_turns_all_the_same() -> None:
    router = router_of(model("a", "http://x"), model("a", "http://y"))
    for target in router.route("a", 0.0).targets:
        target.health.note_failure("auth", None, 0.0, 0.0)

    assert ["yx", "xy", "yx"] == [bases(router.route("a", 1.0)) for _ in range(3)]


def test_who_stands_in_for_a_target_that_has_just_failed_takes_turns() -> None:
    router = router_of(*(model("a", f"http://{letter}") for letter in "wxyz"))
    seconds = Counter(route[1] for _ in range(1200) if (route := bases(router.route("a", 0.0)))[0] == "w")

    assert {"x": 100, "y": 100, "z": 100} == seconds


def test_turns_of_one_alias_do_not_move_those_of_another() -> None:
    router = router_of(*(model(name, f"http://{letter}") for name in "ab" for letter in "xy"))

    assert ["xy", "xy", "yx", "yx"] == [bases(router.route(name, 0.0)) for name in "abab"]


def test_who_may_fall_back_to_an_alias_takes_no_turn_from_those_who_ask_for_it() -> None:
    router = router_of(model("a", "http://o", fallbacks=("b",)), model("b", "http://x"), model("b", "http://y"))

    assert ["oxy", "xy", "oyx", "yx", "oxy", "xy"] == [bases(router.route(name, 0.0)) for name in "ababab"]


def test_targets_that_cool_down_come_last_in_the_same_order() -> None:
    router = router_of(
        model("a", "http://x", fallbacks=("b",)), model("a", "http://y"), model("a", "http://z"), model("b", "http://o")
    )
    route = router.route("a", 0.0)
    x, y, z, o = route.targets
    x.health.note_failure("auth", None, 0.0, 0.0)
    z.health.note_failure("auth", None, 0.0, 0.0)

    assert [y, o, x, z] == [*route.in_order(1.0)]
    assert [x, y, z, o] == [*route.in_order(1000.0)]


# Fallbacks


def test_fallbacks_follow_in_the_order_of_entry_agent_and_defaults() -> None:
    router = router_of(
        model("a", "http://a", fallbacks=("d",)),
        *(model(name, f"http://{name}") for name in "bcde"),
        agent=AgentConfig(fallbacks=("c", "d")),
        model_fallbacks=("b", "c"),
    )

    assert "adcb" == bases(router.route("a", 0.0))
    assert "ecdb" == bases(router.route("e", 0.0))


def test_fallbacks_of_all_entries_of_a_name_count() -> None:
    router = router_of(
        model("a", "http://x", fallbacks=("b",)),
        model("a", "http://y", fallbacks=("c", "b")),
        model("b", "http://b"),
        model("c", "http://c"),
    )

    assert "xybc" == bases(router.route("a", 0.0))


def test_no_alias_falls_back_to_itself() -> None:
    router = router_of(model("a", "http://a", fallbacks=("a", "b")), model("b", "http://b"), model_fallbacks=("a",))

    assert ["ab", "ba"] == [bases(router.route(name, 0.0)) for name in "ab"]


def test_fallbacks_of_a_fallback_are_not_followed() -> None:
    router = router_of(
        model("a", "http://a", fallbacks=("b",)), model("b", "http://b", fallbacks=("c",)), model("c", "http://c")
    )

    assert "ab" == bases(router.route("a", 0.0))


def test_target_of_a_fallback_bears_its_own_alias() -> None:
    router = router_of(model("a", "http://a", fallbacks=("b",)), model("b", "http://b"))

    assert ["a", "b"] == [target.alias for target in router.route("a", 0.0).targets]


# Targets


def test_target_has_all_that_its_entry_says() -> None:
    entry = model(
        "a",
        "http://x",
        "k",
        max_tokens_field="max_output",
        extra_body={"top_k": 5},
        custom_headers={"X-Team": "garage"},
        user_agent="pico",
        request_timeout=7.0,
        proxy="http://proxy:1",
    )
    (target,) = router_of(entry).route("a", 0.0).targets

    assert ("a", "openai", "http://x", Secret("k")) == (target.alias, target.vendor, target.base, target.key)
    assert ("a-up", "max_output", {"top_k": 5}) == (
        target.settings.model,
        target.settings.max_tokens_field,
        target.settings.extra_body,
    )
    assert {"x-team": "garage", "user-agent": "pico"} == target.headers
    assert (7.0, "http://proxy:1") == (target.request_timeout, target.proxy)


def test_custom_header_wins_over_user_agent() -> None:
    (target,) = router_of(model("a", custom_headers={"User-Agent": "mine"}, user_agent="pico")).route("a", 0.0).targets

    assert {"user-agent": "mine"} == target.headers


def test_entry_without_a_key_has_one_target_without_a_key() -> None:
    (target,) = router_of(model("a")).route("a", 0.0).targets

    assert target.key is None


def test_defaults_of_the_agents_are_every_targets() -> None:
    router = router_of(model("a", fallbacks=("b",)), model("b"), max_tokens=100, temperature=0.0)

    assert [(100, 0.0), (100, 0.0)] == [
        (target.settings.max_tokens, target.settings.temperature) for target in router.route("a", 0.0).targets
    ]


def test_target_whose_entry_has_no_request_left_is_not_fit() -> None:
    (target,) = router_of(model("a", rpm=1)).route("a", 0.0).targets
    target.allowance.reserve(0.0)

    assert not target.is_fit(59.0)
    assert target.is_fit(60.0)


def reloaded(before: ModelConfig, *after: ModelConfig) -> list[bool]:
    """Whether the targets of *after* are fit where those of *before* were not."""
    router = router_of(before)
    for target in router.route(before.model_name, 0.0).targets:
        target.health.note_failure("auth", None, 0.0, 0.0)
    more = Router.from_config(Config(None, Path("/nowhere"), model_list=after), router)
    found = {target for name in more.aliases for target in more.route(name, 1.0).targets}
    return sorted(target.is_fit(1.0) for target in found)


WHOLE = model("a", "http://x", "k1", "k2", custom_headers={"x": "y"}, extra_body={"z": [1]}, proxy="http://p:1")


def test_target_that_is_the_same_after_a_reload_goes_on_cooling_down() -> None:
    assert [False, False] == reloaded(WHOLE, attrs.evolve(WHOLE, rpm=5, fallbacks=("a",)))
    assert [False, True] == reloaded(WHOLE, attrs.evolve(WHOLE, api_keys=(Secret("k2"), Secret("k3"))))


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "b"},
        {"model": "other"},
        {"vendor": "ollama"},
        {"api_base": "http://y"},
        {"api_keys": (Secret("k3"), Secret("k4"))},
        {"custom_headers": {"x": "z"}},
        {"extra_body": {"z": [2]}},
        {"proxy": None},
        {"request_timeout": 5.0},
        {"max_tokens_field": "max_output"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_target_that_is_asked_otherwise_after_a_reload_is_fit(change: dict[str, Any]) -> None:
    assert [True, True] == reloaded(WHOLE, attrs.evolve(WHOLE, **change))


def test_attempt_under_way_during_a_reload_is_still_learned_from() -> None:
    router = router_of(WHOLE)
    asked, _ = router.route("a", 0.0).targets
    after = Router.from_config(Config(None, Path("/nowhere"), model_list=(WHOLE,)), router)
    asked.health.note_failure("server", None, 0.0, 1.0)

    assert [True, False] == [target.is_fit(1.0) for target in after.route("a", 1.0).targets]


def test_keys_of_one_entry_share_its_requests_a_minute_after_a_reload_too() -> None:
    one, two = (model("a", "http://one", key, rpm=1) for key in ("k1", "k2"))
    both = attrs.evolve(one, api_keys=(*one.api_keys, *two.api_keys))
    after = Router.from_config(Config(None, Path("/nowhere"), model_list=(both,)), router_of(one, two))

    first, second = after.route("a", 0.0).targets
    assert first.allowance is second.allowance


def test_requests_that_were_used_up_stay_so_after_a_reload() -> None:
    entries = [ModelConfig(name, f"{name}-up", "openai", "http://x", rpm=2) for name in ("a", "b")]
    configs = [
        Config(None, Path("/nowhere"), model_list=tuple(attrs.evolve(entry, rpm=rpm) for entry in entries))
        for rpm in (2, 2, 3)
    ]
    before = Router.from_config(configs[0])
    (used,) = before.route("a", 0.0).targets
    assert [0.0, 0.0] == [used.allowance.reserve(0.0) for _ in range(2)]

    same, other = (Router.from_config(config, before) for config in configs[1:])
    assert [60.0, 0.0] == [same.route(name, 0.0).targets[0].allowance.wait(0.0) for name in "ab"]
    assert 0.0 == other.route("a", 0.0).targets[0].allowance.wait(0.0)
