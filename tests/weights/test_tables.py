"""Tables: all tensors are found under dotted names, whatever they are nested in, and nothing is walked forever."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit import inspect_checkpoint
from ftkit._weights.tables import tables_in

trees = st.recursive(
    st.integers(0, 3).map(lambda size: torch.ones(size)) | st.integers() | st.text(max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def listed(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    """The tensors in dicts and lists, by what leads to them."""
    if isinstance(tree, torch.Tensor):
        return [(path, tree)]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, part in pairs for found in listed(part, (*path, str(key)))]


@given(trees)
def test_every_table_lists_what_is_below_it(tree):
    """A table holds the tensors below its path and no others; each path above a tensor has a table."""
    everything = listed(tree)
    tables = {table.path: table for table in tables_in(tree)}
    assert len(tables) == len(tables_in(tree))
    assert set(tables) == {path[:end] for path, _ in everything for end in range(max(len(path), 1))}
    for path, table in tables.items():
        below = {".".join(keys[len(path) :]): tensor for keys, tensor in everything if keys[: len(path)] == path}
        assert table.entries.keys() == below.keys()
        assert all(table.entries[name].stored is tensor for name, tensor in below.items())
    assert sorted(map(len, tables)) == list(map(len, tables))


def test_what_is_shared_comes_once_in_each_table():
    """A part in two places is listed under the first, in the whole and in each table that leads there."""
    part = {"w": torch.ones(1)}
    tables = {table.path: list(table.entries) for table in tables_in({"a": part, "b": part, "c": {"d": part}})}
    assert tables == {(): ["a.w"], ("a",): ["w"], ("c",): ["d.w"]}


def test_a_tensor_with_two_names_has_both():
    """Tied tensors are listed under each name."""
    tied = torch.ones(1)
    assert list(tables_in({"a": tied, "b": tied})[0].entries) == ["a", "b"]


def test_a_circle_ends():
    """A table that holds itself is walked once, and a chain that is deep is walked to a limit."""
    circle: dict[str, Any] = {"w": torch.ones(1)}
    circle["self"] = [circle]
    assert [table.path for table in tables_in(circle)] == [(), ("self",)]
    deep: Any = torch.ones(1)
    for _ in range(1000):
        deep = {"a": deep}
    assert tables_in(deep) == []


def test_arrays_are_tensors():
    """Arrays of numbers count, those of words and objects don't."""
    tree = {"f": np.ones(2), "i": np.arange(3, dtype=">i4"), "s": np.array(["a"]), "o": np.array([{}], dtype=object)}
    entries = tables_in(tree)[0].entries
    assert {name: (entry.shape, entry.dtype) for name, entry in entries.items()} == {
        "f": ((2,), torch.float64),
        "i": ((3,), torch.int32),
    }


class Pairs(OrderedDict[str, Any]):
    """Pickles as an object to which pairs are added."""


class Numbers(list[Any]):
    """Pickles as an object to which items are added."""


def test_objects_with_items_of_any_length(tmp_path: Path):
    """Of what would have been added to an object, pairs with a name count; nothing else does harm."""
    held = Numbers([(), ("a",), ("w", np.ones(2)), ("x", 1, 2), (["no name"], np.ones(1))])
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"list": held, "table": Pairs(v=np.ones(3))}, 4))
    assert list(inspect_checkpoint(tmp_path / "x.pkl").tensors) == ["list.w", "table.v"]


def test_modules_in_a_pickle_list_their_state_dict(tmp_path: Path):
    """The tensors of a pickled model have the names of its state dict: buffers that it does not keep are left out."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("passing", torch.ones(1), persistent=False)
    torch.save(model, tmp_path / "x.pt")
    assert set(inspect_checkpoint(tmp_path / "x.pt").tensors) == set(model.state_dict())
