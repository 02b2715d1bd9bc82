"""A server without the protocol's package, which does what no good one does: ``mcp_odd_server.py <habit>``.

It speaks the revision of 2025, and ``MCP_TEST_FILE`` names a file to which it adds a line for each message it gets.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

habit = sys.argv[1]
seen = Path(os.environ["MCP_TEST_FILE"])
SCHEMA = {"type": "object", "properties": {}}
DEEP: Any = {}
for _ in range(300):
    DEEP = {"properties": DEEP}


def note(text: str) -> None:
    with seen.open("a") as file:
        file.write(f"{text}\n")


def write(**fields: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **fields}, separators=(",", ":")), flush=True)


def tools() -> list[dict[str, Any]]:
    named = [{"name": name, "inputSchema": SCHEMA} for name in ("ask", "huge", "huge_tail", "wrong", "freeze")]
    if habit == "odd-tools":
        return [{"name": f"tool{number:03}", "inputSchema": SCHEMA} for number in range(200)]
    if habit == "deep-schema":
        return [{"name": "deep", "inputSchema": DEEP}]
    if habit == "odd-schemas":
        return [
            {"name": "large", "inputSchema": {**SCHEMA, "description": "x" * 40_000}},
            {"name": "wordy", "inputSchema": SCHEMA, "description": "\x1b[31m" + "x" * 10_000},
        ]
    return named


def answer(message: dict[str, Any]) -> None:
    number = message.get("id")
    match message["method"]:
        case "initialize":
            serve = {"tools": {"listChanged": True}}
            info = {"name": "odd", "version": "1"}
            result = {"protocolVersion": "2025-11-25", "capabilities": serve, "serverInfo": info}
            write(id=number, result=result)
        case "tools/list":
            write(id=number, result={"tools": tools()})
        case "tools/call":
            call(number, message["params"]["name"])
        case _ if number is not None:
            if habit == "shy":
                sys.exit(4)
            write(id=number, error={"code": -32601, "message": "no such method"})


def call(number: Any, name: str) -> None:
    text = [{"type": "text", "text": "x" * (9 * 1024 * 1024)}]
    match name:
        case "ask":
            write(id="s1", method="sampling/createMessage", params={"messages": [], "maxTokens": 1})
            write(id="e1", method="elicitation/create", params={"message": "?", "requestedSchema": SCHEMA})
            write(id="r1", method="roots/list")
            replies = [json.loads(sys.stdin.readline()) for _ in range(3)]
            codes = sorted(f"{reply['id']} {'error' in reply}" for reply in replies)
            write(id=number, result={"content": [{"type": "text", "text": ", ".join(codes)}]})
        case "huge":
            write(id=number, result={"content": text})
        case "huge_tail":
            body = json.dumps({"result": {"content": text}}, separators=(",", ":"))
            print(f'{body[:-1]},"jsonrpc":"2.0","id":{number}}}', flush=True)
        case "wrong":
            write(id=number, result={"content": "not a list"})
        case "freeze":
            time.sleep(600)


def main() -> None:
    note(f"pid {os.getpid()}")
    if habit == "silent":
        time.sleep(600)
    if habit == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if habit == "parent":
        # The child holds our output open.
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note(f"pid {child.pid}")
    if habit == "chatty":
        print("Welcome to the server!", flush=True)
        print("{}\n[1, 2]\n\xff\n\n" * 10, flush=True)
    while habit == "garbage":
        print("no message", flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        note(f"{message.get('method')} {json.dumps(message.get('params'))}")
        answer(message)
    if habit == "deaf":
        time.sleep(600)


if __name__ == "__main__":
    main()
