"""From an alias to the targets that can answer it, and what to do when one of them fails.

Theory: the entries of ``model_list`` become targets once, when the configuration is read; a request only takes a turn
at them. What follows a failure is decided by its kind and by whether the client has seen text, never by a message.
Editing rule: every decision to try again stands in ``ON_FAILURE``. Nothing else asks twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeVar

import attrs

from .config import AgentDefaults, Config, ModelConfig, Secret
from .errors import UPSTREAM_FAILURES, RequestError
from .health import Allowance, Health
from .upstream_request import ModelSettings

Action: TypeAlias = Literal["retry", "fall_back", "give_up"]
RETRY: Action = "retry"  # the same target again, after a pause
FALL_BACK: Action = "fall_back"  # the next target
GIVE_UP: Action = "give_up"  # this failure is the answer

# {(kind of failure, has the client been given text): action}
ON_FAILURE: Mapping[tuple[str, bool], Action] = MappingProxyType(
    {
        ("rejected", False): GIVE_UP,  # another model would refuse it too, or answer another question
        ("auth", False): FALL_BACK,
        ("unknown_model", False): FALL_BACK,
        ("unsupported", False): FALL_BACK,
        ("rate_limited", False): RETRY,  # honours Retry-After while it is short, then falls back
        ("server", False): RETRY,
        ("backend_timeout", False): FALL_BACK,  # a proxy gave up; who it asked may still be at work
        ("unreachable", False): RETRY,
        ("lost", False): FALL_BACK,  # the upstream may still be at work: never the same question there again
        ("garbled", False): FALL_BACK,  # likewise: we have stopped reading
        ("timeout", False): FALL_BACK,  # likewise
        # A second answer would follow half of the first.
        **{(kind, True): GIVE_UP for kind in UPSTREAM_FAILURES},
    }
)


# After these the upstream may still be at work on the request, unheard: the same model there is not asked again, under
# another key neither.
MAY_STILL_RUN = frozenset({"backend_timeout", "lost", "garbled", "timeout"})


@attrs.frozen(eq=False)
class Target:
    """One base address with a model id and a key.

    Attributes:
        alias: the ``model_name`` that it stands under.
        vendor: the protocol's name, ``echo`` for the one in process.
        base: address without a trailing slash; None for ``echo``, and where the vendor's protocol is not spoken.
        key: None where the upstream wants none.
        request_timeout: seconds for one attempt; for a stream, until its first byte and between two.
        allowance: requests a minute, which it shares with the other keys of its entry.
        health: what was learned of it. These two change.
    """

    alias: str
    vendor: str
    base: str | None
    key: Secret | None
    settings: ModelSettings
    headers: Mapping[str, str]
    request_timeout: float
    proxy: str | None
    allowance: Allowance = attrs.field(factory=lambda: Allowance(0))
    health: Health = attrs.field(factory=Health)

    def is_fit(self, now: float) -> bool:
        """Whether it is to be preferred to a target that is not."""
        return self.health.is_well(now) and self.allowance.wait(now) == 0.0

    def is_of(self, entry: ModelConfig) -> bool:
        """Whether the requests a minute of *entry* are those that this target has a share in."""
        return (self.base, self.settings.model, self.allowance.rpm) == (entry.api_base, entry.model, entry.rpm)

    def is_as(self, other: Target) -> bool:
        """Whether both are asked alike in all that may have been the fault of a failure."""
        return all(getattr(self, name) == getattr(other, name) for name in ASKED)


# All that a target is, without what changes of it.
ASKED = tuple(field.name for field in attrs.fields(Target) if field.name not in ("allowance", "health"))
Entry: TypeAlias = tuple[Target, ...]  # one entry of ``model_list``: a target for each key


@attrs.frozen
class Route:
    """The targets for one request, the preferred one first. Never empty."""

    targets: tuple[Target, ...]

    def in_order(self, now: float) -> Sequence[Target]:
        """The targets as they are tried: those that are not fit to be asked now come last.

        Args:
            now: the time on the clock of the targets' health.
        """
        if len(self.targets) == 1:
            return self.targets
        return sorted(self.targets, key=lambda target: not target.is_fit(now))

    def only(self, alias: str) -> Route:
        """The targets of *alias* alone; it has some."""
        return Route(tuple(target for target in self.targets if target.alias == alias))


@attrs.define
class Router:
    """Gives each request its route; requests for one alias take its entries in turn, and of an entry its keys."""

    _entries: Mapping[str, tuple[Entry, ...]]
    _fallbacks: Mapping[str, tuple[str, ...]]
    # {(alias that was asked for, alias whose entries or entry whose keys take turns): turns taken}. Whoever only falls
    # back to an alias takes no turn from those who ask for it.
    _turns: defaultdict[tuple[str, str | Entry], int] = attrs.field(factory=lambda: defaultdict(int), init=False)

    @classmethod
    def from_config(cls, config: Config, before: Router | None = None) -> Router:
        """
        Args:
            before: the one whose place it takes; what entries have used of their requests a minute stays used, and
                what was learned of targets that are the same as before still holds.
        """
        entries: dict[str, tuple[Entry, ...]] = {}
        for entry in config.model_list:
            alias = entry.model_name
            known = () if before is None else [*chain.from_iterable(before._entries.get(alias, ()))]
            targets = tuple(_targets(entry, config.agents.defaults, known))
            entries[alias] = (*entries.get(alias, ()), targets)
        return cls(entries, {alias: tuple(_fallbacks(config, alias)) for alias in entries})

    @property
    def aliases(self) -> Iterable[str]:
        return self._entries.keys()

    def check_alias(self, alias: str) -> None:
        """
        Raises:
            RequestError: status 404, code ``model_not_found``; the message lists the aliases that there are.
        """
        if alias not in self._entries:
            names = ", ".join(sorted(self._entries)) or "none"
            raise RequestError(
                f"The model '{alias}' is not configured here. Configured models: {names}.",
                "model",
                "model_not_found",
                status=404,
            )

    def route(self, alias: str, now: float) -> Route:
        """The targets of *alias*, beginning with the one whose turn it is, then those of its fallbacks.

        Args:
            now: the time on the clock of the targets' health; a turn goes to one that is fit then.
        """
        names = (alias, *self._fallbacks[alias])
        return Route(tuple(chain.from_iterable(self._in_turn(alias, name, now) for name in names)))

    def _in_turn(self, asked: str, alias: str, now: float) -> Iterator[Target]:
        entries = _in_turn(
            self._entries[alias],
            self._turns[asked, alias],
            lambda entry: any(target.is_fit(now) for target in entry),
        )
        for entry in entries:
            yield from _in_turn(entry, self._turns[asked, entry], lambda target: target.is_fit(now))
        self._turns[asked, alias] += 1
        self._turns[asked, entries[0]] += 1


T = TypeVar("T")


def _in_turn(members: Sequence[T], turn: int, is_fit: Callable[[T], bool]) -> Sequence[T]:
    """*members*, beginning with the one whose turn it is of those that are fit.

    The others follow from there on; who is next to it, and so stands in for it, takes turns as well.
    """
    if len(members) == 1:
        return members
    able = [index for index, member in enumerate(members) if is_fit(member)] or range(len(members))
    first = able[turn % len(able)]
    others = [*members[first + 1 :], *members[:first]]
    second = turn // len(able) % len(others)
    return [members[first], *others[second:], *others[:second]]


def _targets(entry: ModelConfig, defaults: AgentDefaults, known: Sequence[Target]) -> Iterator[Target]:
    """
    Args:
        known: those that had its name before.
    """
    settings = ModelSettings(
        entry.model, entry.max_tokens_field, entry.extra_body, defaults.max_tokens, defaults.temperature
    )
    keys = entry.api_keys or (None,)
    limits = (one.allowance for one in known if one.key in keys and one.is_of(entry))
    allowance = next(limits, None) or Allowance(entry.rpm)
    for key in keys:
        target = Target(
            alias=entry.model_name,
            vendor=entry.vendor,
            base=entry.api_base,
            key=key,
            settings=settings,
            headers=_headers(entry),
            request_timeout=entry.request_timeout,
            proxy=entry.proxy,
            allowance=allowance,
        )
        health = next((one.health for one in known if one.is_as(target)), target.health)
        yield attrs.evolve(target, health=health)


def _headers(entry: ModelConfig) -> Mapping[str, str]:
    agent = {} if entry.user_agent is None else {"user-agent": entry.user_agent}
    return {**agent, **{name.lower(): value for name, value in entry.custom_headers.items()}}


def _fallbacks(config: Config, alias: str) -> Iterator[str]:
    """Aliases to try after *alias*: its entries' own, then the default agent's, then everybody's."""
    own = [name for entry in config.model_list if entry.model_name == alias for name in entry.fallbacks]
    names = dict.fromkeys([*own, *config.default_agent.fallbacks, *config.agents.defaults.model_fallbacks])
    return (name for name in names if name != alias)
