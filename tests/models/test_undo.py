"""Changes are all made or none, whatever they are and wherever they fail."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit._models.undo import Undo


class Config:
    """A bag of attributes, some of them containers."""

    def __init__(self) -> None:
        self.count, self.names, self.labels, self.seen = 3, ["a", "b"], {0: "a", 1: "b"}, {1, 2}


def set_entry(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    undo.set_item(table, key, value)


def set_attribute(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    undo.remember(config)
    setattr(config, key, value)


def drop_attribute(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    undo.remember(config)
    vars(config).pop(key, None)


def fill_containers(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    undo.remember(config)
    for container in list(vars(config).values()):
        if isinstance(container, list):
            container.append(value)
        elif isinstance(container, dict):
            container[value] = key
        elif isinstance(container, set):
            container.add(value)


def rewrite_table(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    undo.remember(table)
    table.clear()
    table[key] = value


def call_back(undo: Undo, table: dict[str, Any], config: Config, key: str, value: int) -> None:
    if key in table:
        undo.callback(table.__setitem__, key, table[key])
        table[key] = -value


CHANGES = [set_entry, set_attribute, drop_attribute, fill_containers, rewrite_table, call_back]
Change = tuple[Callable[..., None], str, int]
changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), st.sampled_from(["a", "b", "count", "names", "new"]), st.integers(0, 9)),
    max_size=12,
)


def content(table: dict[str, Any], config: Config) -> object:
    return copy.deepcopy((list(table.items()), list(vars(config).items())))


@given(changes)
def test_a_failure_after_any_changes_takes_all_of_them_back(several: list[Change]) -> None:
    """Values, the order of entries, and the identities of containers are as they were."""
    table: dict[str, Any] = {"a": 1, "b": 2, "count": 3}
    config = Config()
    before, containers = content(table, config), [id(value) for value in vars(config).values()]
    with pytest.raises(ZeroDivisionError), Undo() as undo:
        for change, key, value in several:
            change(undo, table, config, key, value)
        raise ZeroDivisionError
    assert content(table, config) == before
    assert [id(value) for value in vars(config).values()] == containers


@given(changes)
def test_without_a_failure_all_changes_stay(several: list[Change]) -> None:
    """What the same changes make of the same things outside of a block."""
    results = []
    for block in (True, False):
        table: dict[str, Any] = {"a": 1, "b": 2, "count": 3}
        config, undo = Config(), Undo()
        if block:
            with undo:
                for change, key, value in several:
                    change(undo, table, config, key, value)
        else:
            for change, key, value in several:
                change(undo, table, config, key, value)
        results.append(content(table, config))
    assert results[0] == results[1]


def test_a_step_that_fails_keeps_no_other_from_being_taken_back() -> None:
    """The last change is taken back first; the error of a step is raised at the end."""
    table = {"a": 1, "b": 2}

    def refuse() -> None:
        raise RuntimeError("not this one")

    undo = Undo()
    undo.set_item(table, "a", 5)
    undo.callback(refuse)
    undo.set_item(table, "b", 6)
    with pytest.raises(RuntimeError, match="not this one"):
        undo.take_back()
    assert table == {"a": 1, "b": 2}
    undo.take_back()  # nothing is left to do


def test_steps_are_taken_back_from_the_last_to_the_first() -> None:
    """An entry set twice has its first value again."""
    order: list[int] = []
    undo = Undo()
    for step in range(3):
        undo.callback(order.append, step)
    undo.take_back()
    assert order == [2, 1, 0]


def test_an_object_is_remembered_once_as_it_was_at_first() -> None:
    """A second note in the same block would remember what the block itself has changed."""
    config = Config()
    with pytest.raises(ZeroDivisionError), Undo() as undo:
        undo.remember(config)
        config.count = 4
        undo.remember(config)
        raise ZeroDivisionError
    assert config.count == 3


def test_another_thread_goes_over_what_is_taken_back() -> None:
    """What stays is there all the time, as another thread may read it."""
    config = Config()
    config.names, config.labels = OrderedDict(a=1, b=2), {0: "a", 1: "b"}
    undo = Undo()
    undo.remember(config)
    config.count, config.labels[0] = 4, "c"
    names, attributes = iter(config.names), iter(vars(config))
    next(names), next(attributes)
    undo.take_back()
    assert [*names] == ["b"]
    assert [*attributes] == [*vars(config)][1:]
    assert (config.count, config.labels) == (3, {0: "a", 1: "b"})


def test_a_module_has_its_tables_attributes_and_class_again() -> None:
    """Children, hooks and buffers of a module, and a lazy module's class."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    before = [dict(vars(module)) for module in model.modules()]
    kinds, weight = [type(module) for module in model.modules()], model[0].weight
    undo = Undo()
    for module in model.modules():
        undo.remember(module)
    model(torch.zeros(1, 2))
    model.append(nn.ReLU())
    model[0].register_forward_hook(lambda *args: None)
    model[0].register_buffer("scale", torch.ones(1))
    model[0].weight = nn.Parameter(torch.zeros(2, 2))
    undo.take_back()
    assert [type(module) for module in model.modules()] == kinds
    assert model[0].weight is weight
    assert not model[0]._forward_hooks
    assert not model[0]._buffers
    for module, attributes in zip(model.modules(), before, strict=True):
        assert {key: id(value) for key, value in vars(module).items()} == {
            key: id(value) for key, value in attributes.items()
        }


def test_containers_keep_their_kinds() -> None:
    """An OrderedDict among the attributes is the same one, in the same order."""
    config = Config()
    config.labels = OrderedDict(a=1, b=2)
    held = config.labels
    undo = Undo()
    undo.remember(config)
    held.move_to_end("a")
    undo.take_back()
    assert config.labels is held
    assert list(held) == ["a", "b"]


def test_buffers_of_a_script_are_put_back_by_value() -> None:
    """Nobody else can reach them."""
    with pytest.warns() if torch.__version__ >= "2.9" else pytest.MonkeyPatch.context():
        script = torch.jit.script(nn.BatchNorm1d(2))
    undo = Undo()
    undo.remember(script)
    script(torch.randn(8, 2) + 5)
    assert script.running_mean.abs().max() > 0
    undo.take_back()
    assert script.running_mean.tolist() == [0, 0]
    assert script.num_batches_tracked == 0
