"""What every error looks like on the wire, whichever layer made it."""

from __future__ import annotations

from typing import Any, cast

import httpx2
import orjson
from host_client import Answer

TYPES = {"invalid_request_error", "server_error", "rate_limit_error"}
# Headers that steer a client's next attempt: there where they are promised, and nowhere else.
STEERING = ("retry-after", "x-should-retry")


def error_in(body: bytes) -> dict[str, Any]:
    """The error object of *body*, if it is OpenAI's envelope to the letter."""
    envelope = orjson.loads(body)
    assert {"error"} == envelope.keys()
    error = cast(dict[str, Any], envelope["error"])
    assert {"message", "type", "param", "code"} == error.keys()
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in TYPES
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or (isinstance(error["code"], str) and not error["code"].isdigit())
    return error


def check_error(
    answer: httpx2.Response | Answer,
    status: int,
    code: str | None,
    *,
    type: str = "invalid_request_error",
    param: str | None = None,
    **headers: str,
) -> str:
    """Check an answer against status, code, type, param and headers (``_`` for ``-``); give the error's message."""
    if isinstance(answer, httpx2.Response):
        found, body = answer.status_code, answer.content
    else:
        found, body = answer.status, answer.body
    error = error_in(body)
    assert (status, code, type, param) == (found, error["code"], error["type"], error["param"])
    assert "application/json" == answer.headers["content-type"]
    assert str(len(body)) == answer.headers["content-length"]
    assert answer.headers["x-request-id"]
    for name, value in headers.items():
        assert value == answer.headers[name.replace("_", "-")]
    assert {name for name in STEERING if name.replace("-", "_") in headers} == {
        name for name in STEERING if name in answer.headers
    }
    return cast(str, error["message"])
