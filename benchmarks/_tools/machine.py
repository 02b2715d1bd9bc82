"""What a run was made on and with: enough to repeat it, and nothing that tells whose machine it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from .peers import PACKAGES
from .values import Settings

MEMORY = r"^MemTotal:\s+(\d+) kB"
LIBRARIES = (
    *("picoclaw-trio", "trio", "hypercorn", "quart", "quart-trio", "h11", "h2", "orjson", "attrs", "structlog"),
    *("prometheus-client", "httpcore2"),
)


def describe_machine() -> dict[str, object]:
    """Processor, memory, kernel, interpreter, and how busy it was before."""
    return {
        "processor": _first(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo")),
        "cores": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _first(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo")).split(),
        "memory": f"{int(_first(MEMORY, Path('/proc/meminfo'))) / 1e6:.0f} GB",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, {_optimisation()}",
        "load average before": round(os.getloadavg()[0], 2),
    }


def describe_versions(settings: Settings) -> dict[str, str]:
    """Library versions, and those of the peers that take part."""
    versions = {name: version for name in LIBRARIES if (version := _version(name)) is not None}
    return versions | {name: PACKAGES[name].version for name in sorted(settings.peers)}


def describe_method(settings: Settings, cores: Sequence[int]) -> list[str]:
    """How it was measured, in sentences."""
    where = (
        "The server has a core for itself; load generator and upstream share the rest."
        if len(cores) > 1
        else "There is one core, which server, load generator and upstream share."
    )
    return [
        where,
        "All servers are up; all but the one under test are stopped (SIGSTOP).",
        f"{settings.rounds} rounds, in each of which every question is measured: each side of a comparison for "
        f"{settings.seconds:g} s, after {settings.warm_up:g} s that do not count.",
        "What is compared takes turns of 0.1 s (deltas: of half of the time), each side with a generator of its own.",
        "A ratio is taken within a round. Shown is the median over the rounds, and the lowest and highest.",
        "Processor time is that of the server's whole process tree.",
        f"Load by {'our own generator' if settings.generator == 'own' else 'wrk, where it can, and our own'}.",
    ]


def _optimisation() -> str:
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return "optimised by profile" if "--enable-optimizations" in arguments else "not optimised by profile"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(), re.MULTILINE)
    return match[1].strip() if match else "0"
