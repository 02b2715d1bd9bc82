"""The command ``llm``; run by its own Python, with a configuration folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

api, token = sys.argv[1:]
home = Path(os.environ["LLM_USER_PATH"])
home.mkdir(parents=True, exist_ok=True)
NAMES = ("talker", "locked", "breaker", "nobody")
(home / "extra-openai-models.yaml").write_text(
    "".join(f"- model_id: {name}\n  model_name: {name}\n  api_base: {api}\n  api_key_name: gateway\n" for name in NAMES)
)
(home / "keys.json").write_text(json.dumps({"gateway": token}))


def llm(*arguments: str) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).with_name("llm")), "prompt", "Hello", "--no-log", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0
    )


def output(*arguments: str) -> tuple[str, str]:
    out, err = llm(*arguments).communicate()
    return out.decode().rstrip("\n"), err.decode()


streamed, _ = output("-m", "talker")
result = {
    "whole": output("-m", "talker", "--no-stream")[0],
    "streamed": streamed,
    # How its output is cut into writes is the system's affair; that it prints as it reads is the SDK's, tested there.
    "pieces": list(streamed),
    "errors": {name: output("-m", name)[1] for name in ("nobody", "locked", "breaker")},
}
print(json.dumps(result))
