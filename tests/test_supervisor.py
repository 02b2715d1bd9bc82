"""What the service manager's environment variables say."""

from __future__ import annotations

import os

import pytest
from structlog.testing import capture_logs

from picoclaw_trio.supervisor import Supervisor


@pytest.mark.parametrize(
    ("environ", "supervisor"),
    [
        ({}, Supervisor(None, None)),
        ({"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000"}, Supervisor("/run/notify", 30.0)),
        ({"NOTIFY_SOCKET": "", "WATCHDOG_USEC": ""}, Supervisor(None, None)),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, Supervisor(None, 0.5)),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": ""}, Supervisor(None, 0.5)),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, Supervisor(None, None)),
        ({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": "1"}, Supervisor(None, None)),
    ],
)
def test_supervisor_is_what_the_environment_says(environ: dict[str, str], supervisor: Supervisor) -> None:
    with capture_logs() as lines:
        assert supervisor == Supervisor.from_environment(environ)
    assert [] == lines


@pytest.mark.parametrize("value", ["soon", "0", "-1", "1.5", " ", "\u0661", "1_000", "9" * 5000])
def test_watchdog_that_is_no_number_is_none_and_told(value: str) -> None:
    with capture_logs() as lines:
        assert Supervisor(None, None) == Supervisor.from_environment({"WATCHDOG_USEC": value})
    assert [value[:100]] == [line["value"] for line in lines]
