"""What is used of torch beyond what it promises, as it is and as it may become."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import ftkit
from ftkit import FtkitError, _torch


@pytest.mark.parametrize("name", ["FakeTensor", "FakeTensorMode", "TorchDispatchMode", "tree_leaves"])
def test_private_modules_are_looked_up_when_asked(name, monkeypatch):
    """Each name is found; where its module is gone, the error says what is missing and which versions have it."""
    assert getattr(_torch, name).__name__ == name
    monkeypatch.setattr(_torch, "_ELSEWHERE", ("torch._no_such_module",))
    with pytest.raises(FtkitError, match=rf"has no torch\.{name}, which .* torch 2\.6 to"):
        getattr(_torch, name)


def test_a_name_of_nobody_is_an_attribute_error():
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _torch.nonsense  # noqa: B018


has_shortest_way = pytest.mark.skipif(
    _torch.fake_maker(_torch.FakeTensorMode()) is None, reason="This torch makes fake tensors in another way."
)


@has_shortest_way
def test_a_fake_made_by_the_shortest_way_is_one_by_the_constructor():
    """Same table, same keys of dispatch, and operators on it are followed."""
    mode = _torch.FakeTensorMode()
    make = _torch.fake_maker(mode)
    made = make(torch.empty(3, 4, device="meta"), torch.device("cpu"), True)
    own = mode.from_tensor(torch.empty(3, 4, requires_grad=True))
    assert (made.device, made.requires_grad, made.shape) == (own.device, own.requires_grad, own.shape)
    assert vars(made).keys() == vars(own).keys()
    assert torch._C._dispatch_keys(made) == torch._C._dispatch_keys(own)
    with mode:
        assert (made @ made.T).shape == (3, 3)


@has_shortest_way
def test_there_is_no_shortest_way_where_torch_has_changed(monkeypatch):
    """So that the mode itself is asked."""
    mode = _torch.FakeTensorMode()
    assert _torch.fake_maker(mode)
    monkeypatch.setattr(torch.Tensor, "_make_subclass", lambda *args: None, raising=False)
    assert _torch.fake_maker(mode) is None
    monkeypatch.undo()
    monkeypatch.delattr(torch._C, "_DisableTorchDispatch")
    assert _torch.fake_maker(mode) is None


def test_there_is_no_shortest_way_where_each_fake_has_something_of_its_own(monkeypatch):
    """A copied table would share it."""
    init = _torch.FakeTensor.__init__

    def numbered(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.number = object()

    monkeypatch.setattr(_torch.FakeTensor, "__init__", numbered)
    assert _torch.fake_maker(_torch.FakeTensorMode()) is None


def test_a_fake_passes_for_a_parameter():
    """For layers and optimizers that look at its type."""
    with _torch.FakeTensorMode():
        fake = torch.empty(3, requires_grad=True)
    assert isinstance(_torch.as_parameter(fake), nn.Parameter)


def test_operators_tell_their_names_and_whether_they_give_views():
    """Of any overload."""
    aten = torch.ops.aten
    assert [_torch.operator_name(func) for func in (aten.add.Tensor, aten.detach.default)] == [
        "aten::add",
        "aten::detach",
    ]
    assert (_torch.gives_views(aten.add.Tensor), _torch.gives_views(aten.detach.default)) == (False, True)
    assert _torch.gives_views(object())  # what tells nothing


def test_nodes_of_autograd_are_numbered():
    """In the order in which they are made."""
    x = torch.ones(2, requires_grad=True)
    before = _torch.nodes_made()
    y = x * 2
    assert before <= _torch.node_number(y.grad_fn) < _torch.nodes_made()
    assert _torch.node_running() is None
    seen = []
    y.register_hook(lambda grad: seen.append(_torch.node_running()))
    y.sum().backward()
    assert seen != [None]


def test_owners_are_counted_or_not_told(monkeypatch):
    """What shares the memory of a tensor is a tensor of its own."""
    x = torch.ones(3)
    memory, itself = _torch.owners(x)
    alias = x.detach()
    assert _torch.owners(x) == (memory + 1, itself)
    del alias
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    assert _torch.owners(x) is None


def test_a_compiled_module_is_called_without_its_graph():
    """Wrapped, or compiled in place."""
    layer = nn.Linear(2, 2)
    assert _torch.eager_call(torch.compile(layer)) is layer
    layer.compile()
    assert torch.equal(_torch.eager_call(layer)(torch.ones(2)), layer.forward(torch.ones(2)))


def test_no_other_room_knows_a_private_name_of_torch():
    """So that what a new torch breaks, it breaks in one room."""
    owners = nn.Linear(1, 1), torch.ones(1), torch.ones(1).untyped_storage(), DataLoader([0]), torch, torch.nn
    classes = torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, nn.parallel.DistributedDataParallel
    private = {name for owner in (*owners, *classes) for name in dir(owner) if re.match("_[^_]", name)}
    house = Path(ftkit.__file__).parent
    found = []
    for path in house.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.stem != "_torch" else ():
            if isinstance(node, ast.ImportFrom) and node.module and re.match(r"torch\b.*\._", node.module):
                found.append(f"{path.relative_to(house)}:{node.lineno} imports {node.module}")
            elif isinstance(node, ast.Attribute) and node.attr in private and ast.unparse(node.value) != "self":
                found.append(f"{path.relative_to(house)}:{node.lineno} {ast.unparse(node)}")
    assert found == []
