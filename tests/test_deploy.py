"""The files for operators."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import trio

DEPLOY = Path(__file__).parent.parent / "deploy"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
async def test_unit_exposes_less_than_two_in_ten() -> None:
    result = await trio.run_process(
        ["systemd-analyze", "security", "--offline=true", DEPLOY / "picoclaw.service"], capture_stdout=True, check=False
    )
    score = re.search(rb"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert score is not None
    assert float(score.group(1)) < 2.0


def test_service_gets_longer_to_stop_than_its_turns_do() -> None:
    unit = (DEPLOY / "picoclaw.service").read_text()
    assert "KillMode=mixed" in unit
    assert int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0]) > 30 + 2
