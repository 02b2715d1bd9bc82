"""Keys that stand in PicoClaw's ``.security.yml`` beside the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_config import load, models, problems, target

KEYLESS = {"model_name": "m", "model": "openai/m"}


def write(folder: Path, text: str | bytes) -> None:
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / ".security.yml").write_bytes(raw)


def keys(folder: Path, *entries: Any, **environ: str) -> list[list[str]]:
    config = load(folder, models(*entries), **environ)
    return [[key.reveal() for key in model.api_keys] for model in config.model_list]


def test_keys_are_found_by_the_name_of_their_model(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
model_list:
  m:0:
    api_keys:
      - one
      - "two"
  größer:
    api_keys: [007]
channels:
  telegram:
    token: no part of this gateway
""",
    )
    assert [["one", "two"], ["007"]] == keys(tmp_path, KEYLESS, {**KEYLESS, "model_name": "größer"})


def test_entries_of_one_name_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "model_list: {m: {api_keys: [all]}, 'm:1': {api_keys: [second]}, 'n:1': {api_keys: [unused]}}")
    assert [["all"], [], ["second"], ["all"]] == keys(
        tmp_path, KEYLESS, {"model_name": "n", "model": "ollama/n"}, KEYLESS, KEYLESS
    )


def test_keys_replace_those_of_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, "model_list: {m: {api_keys: [new]}}")
    assert [["new"]] == keys(tmp_path, target(api_keys=["old"]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "model_list:",
        "model_list: {}",
        "model_list: {m: }",
        "model_list: {m: {api_keys: []}}",
        "null",
        "model_list: ~",
        "model_list: {m: null}",
        "model_list: {m: {api_keys: null}}",
        "web: {}",
    ],
)
def test_file_that_gives_no_keys_takes_none_away(text: str, tmp_path: Path) -> None:
    write(tmp_path, text)
    assert [["k"]] == keys(tmp_path, target())


def test_keys_may_stand_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    write(tmp_path, "model_list: {m: {api_keys: ['file://key', env:KEY]}}")
    assert [["from-file", "from-env"]] == keys(tmp_path, KEYLESS, KEY="from-env")


@pytest.mark.parametrize(
    ("text", "address", "message"),
    [
        ("model_list: {m: {api_keys: sk-secret}}", "$.model_list.m.api_keys", "expected a list, not a string"),
        ("model_list: {'m:0': {api_keys: [k, {}]}}", '$.model_list["m:0"].api_keys[1]', "expected a string"),
        (
            "model_list: {m: {api_keys: [k, 'enc://sk-secret']}}",
            "$.model_list.m.api_keys[1]",
            "is encrypted by PicoClaw",
        ),
        ("model_list: {m: {api_keys: ['sk-s ecret']}}", "$.model_list.m.api_keys[0]", "must be printable ASCII"),
        ("model_list: {m: sk-secret}", "$.model_list.m", "expected an object, not a string"),
        ("model_list: [sk-secret]", "$.model_list", "expected an object, not a list"),
        ("sk-secret", "$", "expected an object, not a string"),
        ("a: b\nc: 'sk-secret", "$", "is not YAML, first in line 2"),
        ("a: b\nc: !x [sk-secret", "$", "is not YAML, first in line 2"),
        ('a: "sk-secret\\U00110000"', "$", "is not YAML"),
        ('a: "sk-secret\\UFFFFFFFF"', "$", "is not YAML"),
        (b"a: \xff", "$", "is not UTF-8, first in line 1"),
        ("[" * 5000, "$", "is not YAML"),
        ("#" + "x" * 1024 * 1024, "$", "is larger than 1048576 bytes"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_without_the_keys(
    text: str | bytes, address: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, text)
    (where, what), *others = problems(tmp_path, models(target()))
    assert [] == others
    assert f".security.yml: {address}" == where
    assert what.startswith(message)
    assert "ecret" not in what


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "model_list: {a: x, b: {api_keys: ['ö']}}")
    found = problems(tmp_path, models({**target(), "model_name": "b", "rpm": -1}))
    assert ["$.model_list[0].rpm", ".security.yml: $.model_list.b.api_keys[0]", ".security.yml: $.model_list.a"] == [
        where for where, _ in found
    ]


def test_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / ".security.yml").mkdir()
    assert [(".security.yml: $", "cannot be read: Is a directory")] == problems(tmp_path, models(target()))
