"""The trust gate: nothing runs unasked, and what was admitted is made as pickle makes it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import freeze_except, load_model, save_model, trainable, unfreeze
from ftkit._formats import open_file
from ftkit._pickles.gate import load_parts, save_pickle
from ftkit.errors import CheckpointError, UntrustedFileError
from tests.pickles.states import Custom, alike, load


def test_self_reference(tmp_path):
    """A table that contains itself comes back containing itself."""
    table: dict[str, object] = {"w": torch.ones(2)}
    table["me"] = [table]
    torch.save(table, tmp_path / "x.pt")
    back = load(tmp_path / "x.pt")
    assert back["me"][0] is back


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_gate(tmp_path, options):
    """A whole model is refused with a list; admitting what is listed, or trusting, opens it."""
    path = tmp_path / "model.pt"
    model = Custom()
    model.layer.bias.requires_grad = False
    torch.save(model, path, **options)
    with pytest.raises(UntrustedFileError) as error:
        load(path)
    listed = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    assert listed == [f"{Custom.__module__}.Custom", "torch.nn.modules.linear.Linear"]
    with pytest.raises(UntrustedFileError) as error:
        load(path, allow=[nn.Linear])
    assert "Custom" in str(error.value)
    assert "modules.linear" not in str(error.value)
    for opened in (load(path, allow=[Custom, nn.Linear]), load(path, trusted=True)):
        assert type(opened) is Custom
        assert alike(opened.state_dict(), model.state_dict())
        assert [parameter.requires_grad for parameter in opened.parameters()] == [True, False]
        assert torch.equal(opened.layer(torch.ones(3)), model.layer(torch.ones(3)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_gate_opens_real_models(tmp_path, protocol):
    """Whole models of timm come back by their listed classes, with tied weights tied and the same outputs."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", num_classes=3).eval()
    model.tied = nn.Linear(64, 64)
    model.tied.weight = model.blocks[0].attn.proj.weight
    torch.save(model, tmp_path / "x.pt", pickle_protocol=protocol)
    with open_file(tmp_path / "x.pt") as file:
        listed = file.wanted
    opened = load(tmp_path / "x.pt", allow=listed)
    picture = torch.randn(1, 3, *model.pretrained_cfg["input_size"][1:])
    assert torch.equal(opened(picture), model(picture))
    assert opened.tied.weight is opened.blocks[0].attn.proj.weight
    assert all(type(parameter) is nn.Parameter for parameter in opened.parameters())


def test_gate_opens_frozen_models(tmp_path):
    """A frozen model needs its own classes and no more; it is held as before; a hook is nothing to call."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", num_classes=3)
    freeze_except(model, "fc")
    save_model(model, tmp_path / "x.pt")
    opened = load_model(tmp_path / "x.pt", allow=[type(module) for module in model.modules()])
    assert list(trainable(opened)) == ["fc.weight", "fc.bias"]
    opened.train()
    opened(torch.randn(2, 3, 64, 64))
    assert alike(opened.state_dict(), model.state_dict())
    unfreeze(opened, "**")
    assert all(parameter.requires_grad for parameter in opened.parameters())
    (tmp_path / "y.pkl").write_bytes(b"\x80\x02cftkit._freezing.holding\nstay_in_eval\nNN\x86R.")
    with pytest.raises(UntrustedFileError, match="would call"):
        load(tmp_path / "y.pkl")


class Keyworded:
    """An object that is made with keywords."""

    def __new__(cls, *, size: int) -> Self:
        made = super().__new__(cls)
        made.size = size
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}


def test_objects_made_with_keywords(tmp_path):
    """Objects that are made with keywords come back where their class is admitted."""
    torch.save([Keyworded(size=3)], tmp_path / "x.pt", pickle_protocol=4)
    assert load(tmp_path / "x.pt", allow=[Keyworded])[0].size == 3


def test_allow_by_name(tmp_path):
    """Names admit too; one that can't be imported is an error."""
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    assert isinstance(load(tmp_path / "x.pt", allow=["torch.nn.modules.linear.Linear"]), nn.Linear)
    with pytest.raises(CheckpointError, match="nowhere"):
        load(tmp_path / "x.pt", allow=["nowhere.Linear"])


def test_allow_ends_with_the_call(tmp_path):
    """What one call admits is not admitted to the next."""
    torch.save(nn.Linear(2, 2), tmp_path / "x.pt")
    load(tmp_path / "x.pt", allow=[nn.Linear])
    with pytest.raises(UntrustedFileError):
        load(tmp_path / "x.pt")
    assert nn.Linear not in torch.serialization.get_safe_globals()


def test_rare_tensors_beside_what_torch_refuses(tmp_path):
    """Torch alone builds sparse tensors, and refuses numbers of numpy beside them: an error that says so."""
    torch.save({"w": torch.eye(2).to_sparse(), "best": np.float64(0.5)}, tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match="sparse tensors, which only torch"):
        load(tmp_path / "x.pt")
    assert load(tmp_path / "x.pt", trusted=True)["best"] == 0.5


def test_paths_of_any_system_are_plain(tmp_path):
    """Paths, which training scripts keep beside weights, need no trust, wherever they were written."""
    there = {"here": Path("a/b"), "posix": PurePosixPath("/a"), "windows": PureWindowsPath("C:/a")}
    torch.save(there, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt") == there


def test_settings_of_plain_classes_need_no_trust(tmp_path):
    """A range, a slice or an ellipsis in a configuration is made as it was."""
    torch.save(settings := {"epochs": range(3), "crop": slice(2), "rest": ...}, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt") == settings


def test_a_number_that_torch_cannot_read_is_refused(tmp_path):
    """Plain files are those that torch opens by itself; an instruction that it lacks is an error like a class is."""
    with pytest.raises(CheckpointError, match="a very large number or text"):
        save_pickle({"seed": 1 << 3000}, tmp_path / "x.pt", plain=True)
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_a_class_of_its_own(tmp_path):
    """It comes back as one where the class is admitted; a checkpoint gets its values, and says what was left out."""
    weight = torch.ones(2).as_subclass(Marked)
    weight.note = "mine"
    torch.save({"w": weight}, tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match="Marked"):
        load(tmp_path / "x.pt")
    for trust in ({"allow": [Marked]}, {"trusted": True}):
        back = load(tmp_path / "x.pt", **trust)["w"]
        assert (type(back), back.note, back.tolist()) == (Marked, "mine", [1, 1])
    with open_file(tmp_path / "x.pt") as file:
        whole, left_out = load_parts(file)
    assert (type(whole["w"]), whole["w"].note) == (torch.Tensor, "mine")
    assert left_out == {"w: the class of a tensor": [f"{Marked.__module__}.Marked"]}


class Marked(torch.Tensor):
    """A tensor of the user's own class."""
