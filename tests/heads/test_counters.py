"""Numbers that say how many classes there are, wherever a model keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ftkit import replace_head
from ftkit._heads.counters import counters, counts_classes, told
from ftkit._models.undo import Undo
from tests.heads.nets import features, wired
from tests.models.hostile import HOSTILE


class Config:
    """Counts by a property, as the configurations of transformers do."""

    def __init__(self) -> None:
        self.id2label = {0: "a", 1: "b", 2: "c"}

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label = {index: str(index) for index in range(value)}


class Sizes(NamedTuple):
    num_classes: int
    depth: int


class Text:
    def __init__(self) -> None:
        self.vocab_size = 3


PLACES: dict[str, tuple[object, Callable[[nn.Module], object]]] = {  # what the model has, and how it is read
    "num_classes": (3, lambda m: m.num_classes),
    "nb_classes": (3, lambda m: m.nb_classes),
    "config": (Config(), lambda m: m.config.num_labels),
    "hparams": ({"n_classes": 3}, lambda m: m.hparams["n_classes"]),
    "sizes": (Sizes(3, 3), lambda m: m.sizes.num_classes),
    "cfg": ({"text": Text()}, lambda m: m.cfg["text"].vocab_size),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_counter_is_found_set_and_taken_back(place: str) -> None:
    """In an attribute, a property, a dictionary, a named tuple, and in a part of a configuration."""
    held, read = PLACES[place]
    model = wired(lambda self, x: self.fc(self.body(x)), body=features(), fc=nn.Linear(8, 3), **{place: held})
    found = [counter for counter in counters(model, ["fc"]) if counter.value == 3]
    assert len(found) == 1
    assert 3 in told(model, ["fc"])
    undo = Undo()
    found[0].set(5, undo)
    assert read(model) == 5
    undo.take_back()
    assert read(model) == 3


def test_channels_and_classes_are_counted_apart() -> None:
    """A model's number of channels says nothing of its classes."""
    model = wired(lambda self, x: x, in_chans=3, num_classes=5, depth=7)
    assert [(c.name, c.value) for c in counters(model, [])] == [("num_classes", 5)]
    assert [(c.name, c.value) for c in counters(model, [], of="channels")] == [("in_chans", 3)]


def test_classes_tell_more_than_a_vocabulary() -> None:
    """A language model with a classifier on top counts both."""
    model = wired(lambda self, x: x, config={"vocab_size": 99, "num_labels": 2})
    assert told(model, []) == [2, 99]


def test_what_is_not_on_the_way_does_not_count() -> None:
    """Another head's counter is not asked, a loss's is."""

    def head(**counts: Any) -> nn.Module:
        return wired(lambda self, x: self.fc(x), fc=nn.Linear(8, 4), **counts)

    model = wired(lambda self, x: x, ours=head(num_classes=4), other=head(num_classes=9), loss=nn.Module())
    model.loss.num_classes = 4
    assert [counter.value for counter in counters(model, ["ours.fc"])] == [4, 4]


@pytest.mark.parametrize("make", HOSTILE)
def test_a_module_that_answers_to_everything_counts_nothing(make: Callable[[], nn.Module]) -> None:
    """Only what it has is asked, by name; an error of its own is no answer."""
    model = wired(lambda self, x: x, guest=make(), num_classes=5)
    assert [(counter.owner is model, counter.value) for counter in counters(model, [])] == [(True, 5)]


@given(
    st.sampled_from(["num", "n", "nb", "number_of"]),
    st.sampled_from(["classes", "labels", "categories", "tags", "cls"]),
)
def test_names_that_count_classes(number: str, what: str) -> None:
    """Whatever the library calls them."""
    assert counts_classes(f"{number}_{what}")
    assert counts_classes(f"_{number}_{what}".upper())
    assert not counts_classes(f"{number}_{what}_per_image")
    assert not counts_classes(f"{number}_layers")


def test_parts_that_pass_a_count_on_follow() -> None:
    """An encoder that notes the outputs of the whole; but not one that has so many itself."""

    def part(width: int) -> nn.Module:
        layer = nn.Linear(8, width)
        layer.output_dim = 5
        return layer

    model = wired(lambda self, x: self.out(self.a(x)[:, :4] + self.b(x)[:, :4]), a=part(6), b=part(5), output_dim=5)
    model.out = nn.Linear(4, 5)
    replace_head(model, 3)
    assert (model.output_dim, model.a.output_dim, model.b.output_dim) == (3, 3, 5)


@pytest.mark.parametrize("name", ["c_out", "_n_outputs"])
def test_the_words_of_time_series(name: str) -> None:
    """They count what a model gives."""
    model = wired(lambda self, x: self.out(x), out=nn.Linear(8, 5), **{name: 5})
    replace_head(model, 3)
    assert getattr(model, name) == 3


def test_parts_whose_heads_are_gone_follow() -> None:
    """A hybrid of two nets, each of which counts the outputs that the hybrid alone has; a third one has its own."""

    def part(layer: nn.Module) -> nn.Module:
        return wired(lambda self, x: self.last(x), last=layer, _n_outputs=5)

    model = wired(lambda self, x: self.final(self.a(x)), a=part(nn.Linear(8, 4)), b=part(nn.Linear(8, 5)))
    model.final = nn.Linear(4, 5)
    replace_head(model, 3, at="final")
    assert (model.a._n_outputs, model.b._n_outputs) == (3, 5)
