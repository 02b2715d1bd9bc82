"""Every benchmark runs and gives figures. How large they are is nobody's business here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 300
NEEDS_PEERS = {"peers"}
NEEDS_TWO_CORES = {"workers"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)


def names() -> set[str]:
    return {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}


@pytest.mark.slow
def test_every_question_gets_all_its_figures_in_a_brief_run(tmp_path: Path) -> None:
    done = run("--brief", "--out", str(tmp_path))

    assert 0 == done.returncode, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_bytes())
    questions = {question["name"]: question for question in results["questions"]}
    assert names() == questions.keys()
    skipped = {name for name, question in questions.items() if question["skipped"]}
    assert NEEDS_PEERS | (NEEDS_TWO_CORES if len(os.sched_getaffinity(0)) < 2 else set()) == skipped
    for name in questions.keys() - skipped:
        assert questions[name]["figures"], name
        assert all(question["rounds"] for question in questions[name]["figures"])
    assert {"machine", "versions", "method"} < results.keys()
    assert str(ROOT) not in json.dumps(results)
    assert "svg" == ElementTree.parse(tmp_path / "results.svg").getroot().tag.rpartition("}")[2]


def test_a_question_that_does_not_exist_is_told_with_those_that_do() -> None:
    done = run("nothing")

    assert 1 == done.returncode
    assert names() <= set(done.stderr.replace(",", " ").replace(";", " ").split())


def test_readme_names_every_question() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()

    assert [] == sorted(name for name in names() if f"`{name}`" not in text)
