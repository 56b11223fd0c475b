"""What all readers of tensors by name do alike, shown by one whose file is a dict."""

from __future__ import annotations

import pytest
import torch

from ftkit._tensors.file import TensorFile, TensorInfo
from ftkit.errors import CheckpointError, DamagedFileError


class Kept(TensorFile):
    """Tensors in memory as a file; those called bad are damaged."""

    def __init__(self, tensors: dict[str, torch.Tensor], *, verified: bool = True) -> None:
        self.path = "memory"
        self.metadata = {}
        self.verified = verified
        self.filled: list[str] = []
        self.closed = False
        self._kept = tensors
        self.tensors = {
            name: TensorInfo(name, tensor.dtype, tuple(tensor.shape), -index)
            for index, (name, tensor) in enumerate(tensors.items())
        }
        self.tensors["other"] = next(iter(self.tensors.values()))

    def close(self) -> None:
        self.closed = True

    def fill(self, info: TensorInfo, target: torch.Tensor) -> None:
        if info.name == "bad":
            raise DamagedFileError("memory is damaged")
        self.filled.append(info.name)
        target.copy_(self._kept[info.name])


VALUES = {"a": torch.arange(3), "b": torch.ones(2, 2, dtype=torch.float16)}


def test_reads_all_or_some():
    """Everything, or what is named, comes as new tensors in the order of the file; a tied one is read once."""
    with Kept(VALUES) as file:
        assert {name: tensor.tolist() for name, tensor in file.read().items()} == {
            **{name: tensor.tolist() for name, tensor in VALUES.items()},
            "other": [0, 1, 2],
        }
        assert file.filled == ["b", "a"]
        some = file.read(["other", "a"])
        assert some["other"] is some["a"]
        assert file.tensors["b"].nbytes == 8
    assert file.closed


def test_checks_all_targets_before_the_first_is_touched():
    """A name that is not there, another shape, and a target without memory are errors that change nothing."""
    file, good = Kept(VALUES), torch.zeros(3, dtype=torch.int64)
    for targets, says in (
        ({"a": good, "c": good}, "no tensor 'c'; it has 3"),
        ({"a": good, "b": torch.zeros(4)}, r"shape \[2, 2\] in memory and \[4\]"),
        ({"a": good, "b": torch.zeros(2, 2, device="meta")}, "on the meta device"),
    ):
        with pytest.raises(CheckpointError, match=says):
            file.read_into(targets)
    assert file.filled == []


def test_of_several_targets_in_one_memory_the_last_counts():
    """One memory is filled once, so that no two threads write into it."""
    file, memory = Kept(VALUES | {"c": torch.full((3,), 7)}), torch.zeros(3, dtype=torch.int64)
    file.read_into({"a": memory, "c": memory.view(3)})
    assert (file.filled, memory.tolist()) == (["c"], [7, 7, 7])


def test_verifies_every_tensor_once():
    """Each tensor is read and nothing kept; damage is told, and so is that nobody could tell."""
    file = Kept(VALUES)
    file.verify()
    assert sorted(file.filled) == ["a", "b"]
    with pytest.raises(DamagedFileError, match="memory is damaged"):
        Kept(VALUES | {"bad": torch.ones(1)}).verify()
    with pytest.raises(DamagedFileError, match="contains no digests"):
        Kept(VALUES, verified=False).verify()
