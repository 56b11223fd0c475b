"""Inspection: what a file holds, and what changed between two, in few words and to the bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ftkit import (
    diff_checkpoints,
    inspect_checkpoint,
    load_weights,
    save_weights,
)
from ftkit.errors import CheckpointError, DamagedFileError
from tests.weights.nets import Net, filled


def test_inspect(tmp_path):
    """Looking into a file lists its tensors, its metadata and the code it names, in every format."""
    model = Net()
    save_weights(model, tmp_path / "x.safetensors")
    torch.save({"epoch": 3, "model": model}, tmp_path / "x.pt")
    info = inspect_checkpoint(tmp_path / "x.safetensors")
    assert info.tensors["stem.weight"] == ((4, 3, 3, 3), torch.float32)
    assert info.nbytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    assert "stem.weight" in str(info)
    info = inspect_checkpoint(tmp_path / "x.pt")
    assert info.metadata == {"epoch": 3}
    assert info.tensors["model.stem.weight"] == ((4, 3, 3, 3), torch.float32)
    assert f"{Net.__module__}.Net" in info.wanted
    assert "would run code" in str(info)


def test_inspect_lists_what_optimizers_keep(tmp_path):
    """An optimizer keeps its tensors under the numbers of parameters: alone or beside weights, they are listed."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    info = inspect_checkpoint(tmp_path / "optimizer.pt")
    assert info.tensors["state.0.exp_avg"] == ((2, 3), torch.float32)
    assert (len(info.tensors), info.nbytes) == (6, 2 * (24 + 8) + 2 * 4)  # two moments of each, and a step
    both = inspect_checkpoint(tmp_path / "both.pt").tensors
    assert both.keys() == {"model.weight", "model.bias"} | {f"optimizer.{name}" for name in info.tensors}
    assert not diff_checkpoints(tmp_path / "optimizer.pt", tmp_path / "optimizer.pt")


def test_what_optimizers_keep_is_no_weight(tmp_path):
    """Weights beside an optimizer's tensors load as before; an optimizer alone does not fit."""
    model = nn.Linear(3, 2)
    kept = {"state": {0: {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}}
    torch.save(model.state_dict() | {"optimizer": kept}, tmp_path / "flat.pt")
    report = load_weights(nn.Linear(3, 2), tmp_path / "flat.pt")
    assert (len(report.loaded_keys), report.unexpected_keys) == (2, [])
    torch.save(kept, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(nn.Linear(3, 2), tmp_path / "optimizer.pt")


def test_inspect_is_short(tmp_path):
    """A file of thousands of tensors prints in a few dozen lines."""
    save_weights({f"w{index}": torch.ones(1) for index in range(3000)}, tmp_path / "x.safetensors")
    assert len(str(inspect_checkpoint(tmp_path / "x.safetensors")).splitlines()) < 60


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.safetensors"), ("a.pt", "b.pt")])
def test_diff(tmp_path, names):
    """A diff tells what changed and by how much, what is identical, and what was added and removed."""
    model = filled(Net(), 7)
    save_weights(model, tmp_path / names[0])
    with torch.no_grad():
        model.body.weight[0, 0] += 0.5
    model.head = nn.Linear(8, 3)
    model.extra = nn.Linear(1, 1, bias=False)
    del model.scale
    save_weights(model, tmp_path / names[1])
    diff = diff_checkpoints(tmp_path / names[0], tmp_path / names[1])
    assert [change.name for change in diff.changed] == ["body.weight"]
    assert diff.changed[0].largest == 0.5
    assert diff.changed[0].relative == pytest.approx(0.5 / (7 * 32**0.5))
    assert diff.reshaped[0] == ("head.weight", "float32 [10, 8]", "float32 [3, 8]")
    assert (diff.only_in_a, diff.only_in_b) == (["scale"], ["extra.weight"])
    assert "stem.weight" in diff.same
    assert bool(diff)
    assert "by up to 0.5" in str(diff)


def flipped(path, values):
    """Damage a file where these values lie in it."""
    data = bytearray(path.read_bytes())
    data[data.index(values.numpy().tobytes())] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("names", [("a.safetensors", "b.safetensors"), ("a.pt", "b.pt"), ("a.safetensors", "b.pt")])
def test_a_diff_is_no_proof_of_damaged_files(tmp_path, names):
    """A byte that changed on the disk is noticed in either file, though digests and checksums agree."""
    state = {"w": torch.randn(99), "b": torch.ones(2)}
    for damaged in names:
        for name in names:
            save_weights(state, tmp_path / name)
        assert not diff_checkpoints(*(tmp_path / name for name in names)).unverified
        flipped(tmp_path / damaged, state["w"])
        with pytest.raises(DamagedFileError):
            diff_checkpoints(*(tmp_path / name for name in names))


def test_a_diff_without_digests_says_so_at_once(tmp_path):
    """Where a file has no digests, nobody can tell damage from a change: the first line says it."""
    state = {"w": torch.randn(99), "b": torch.ones(2)}
    save_file(state, tmp_path / "theirs.safetensors")
    save_weights(state, tmp_path / "ours.safetensors")
    diff = diff_checkpoints(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors")
    assert diff.unverified == [str(tmp_path / "theirs.safetensors")]
    assert "not verified: no digests in" in str(diff).splitlines()[0]
    assert not diff
    assert "not verified" not in str(diff_checkpoints(state, tmp_path / "ours.safetensors"))


def test_diff_sees_the_smallest_bit(tmp_path):
    """A change of one bit, of a sign of zero or inside a NaN is a change; equal NaNs are none."""
    a = {"nan": torch.tensor(float("nan")), "zero": torch.tensor(0.0), "one": torch.tensor(1.0)}
    b = {"nan": torch.tensor(float("nan")), "zero": torch.tensor(-0.0), "one": torch.nextafter(a["one"], a["zero"])}
    diff = diff_checkpoints(a, b)
    assert diff.same == ["nan"]
    assert {change.name for change in diff.changed} == {"zero", "one"}


def test_diff_across_nests(tmp_path):
    """Weights alone are compared with the same weights inside a checkpoint."""
    model = filled(Net(), 7)
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, tmp_path / "x.ckpt")
    assert not diff_checkpoints(model, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="in common"):
        diff_checkpoints(model, {"foo": torch.ones(1)})
