"""Words: whatever a file calls its parts, a terminal only shows it, and no line is forged."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ftkit import diff_checkpoints, inspect_checkpoint, load_checkpoint, load_delta, load_model, load_weights
from ftkit._cli import main
from ftkit.errors import FtkitError

EVIL = "w\x1b[2J\x1b[1;1H\nLoaded OK (verified)\r\x9b31m\u202egpj\x07"


class Named(nn.Module):
    """A model with a parameter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(2)))


def as_safetensors(path: Path) -> None:
    save_file({EVIL: torch.ones(2), "b": torch.ones(1)}, path, {EVIL: EVIL})


def as_checkpoint(path: Path) -> None:
    torch.save({"model": {EVIL: torch.ones(2)}, EVIL: EVIL, "epoch": 1, f"{EVIL}{EVIL}": {EVIL: torch.ones(1)}}, path)


def with_code(path: Path) -> None:
    kind = type(EVIL, (), {"__module__": __name__})
    globals()[EVIL] = kind
    try:
        torch.save({"w": torch.ones(2), EVIL: kind(), f"{EVIL}2": [kind()]}, path, pickle_protocol=4)
    finally:
        del globals()[EVIL]


def with_attributes(path: Path) -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.call = print  # type: ignore[attr-defined]
    torch.save({"model": {EVIL: weight}, EVIL: weight}, path)


def as_index(path: Path) -> None:
    save_file({EVIL: torch.ones(2)}, path.with_name("a.safetensors"))
    index = {
        "metadata": {EVIL: EVIL, "total_size": 9},
        "weight_map": {EVIL: "a.safetensors", "w": f"{EVIL}.safetensors"},
    }
    path.with_name("x.json").write_text(json.dumps(index))
    as_safetensors(path)


def damaged(path: Path) -> None:
    path.write_bytes(EVIL.encode() * 40)


def twice(path: Path) -> None:
    (path.parent / "folder").mkdir(exist_ok=True)
    for name in ("a", EVIL):
        as_safetensors(path.parent / "folder" / f"{name[:40]}.safetensors")
    as_safetensors(path)


WRITERS = [as_safetensors, as_checkpoint, with_code, with_attributes, as_index, damaged, twice]
CALLS: list[Callable[[Path], Any]] = [
    inspect_checkpoint,
    load_model,
    lambda path: load_model(path, allow=[EVIL]),
    lambda path: load_weights(Named("w"), path),
    lambda path: load_weights(Named("w"), path, strict=False),
    lambda path: load_weights(Named(EVIL), path),
    lambda path: load_weights(Named(EVIL), path, rename={"b": "x"}, strict=False),
    lambda path: diff_checkpoints(path, path),
    lambda path: diff_checkpoints(path, {EVIL: torch.zeros(2), "b": torch.ones(3)}),
    lambda path: diff_checkpoints({EVIL: torch.zeros(2)}, path),
    lambda path: load_checkpoint(path, model=Named("w")),
    lambda path: load_checkpoint(path, model=Named("w"), scheduler=nn.Linear(1, 1)),
    lambda path: load_delta(Named("w"), path),
]


def harmless(text: str) -> bool:
    """Whether a terminal only shows a text, none of whose lines is the file's own."""
    return all(line.isprintable() and not line.startswith("Loaded OK") for line in text.split("\n"))


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("name", ["x.pt", f"{EVIL}.pt"], ids=["plain", "evil"])
def test_words_of_a_file_are_only_shown(tmp_path, capsys, caplog, write, name):
    """Reports, errors, warnings and the command line show what a file says, and never obey it."""
    path = tmp_path / name
    write(path)
    paths = [path, tmp_path / "folder", tmp_path / "x.json", tmp_path / f"no {name}"]
    said: list[str] = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        for call in CALLS:
            for given in paths:
                try:
                    report = call(given)
                    said += [repr(report), str(report)] if not isinstance(report, dict | nn.Module) else []
                except FtkitError as error:
                    said.append(str(error))
        for given in paths:
            for words in (["inspect"], ["inspect", "--json"], ["diff", str(path)], ["diff", str(path), "--json"]):
                with contextlib.suppress(SystemExit):
                    main([*words, str(given)])
        with contextlib.suppress(SystemExit):
            main(["inspect", str(path), EVIL])
    out, err = capsys.readouterr()
    assert out or write is damaged
    assert len(said) > len(CALLS)
    for text in (*said, out, err, caplog.text, *(str(warning.message) for warning in warned)):
        assert harmless(text), text
