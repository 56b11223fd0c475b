"""Numbers, in modules and in configurations, that say how many classes or channels there are."""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ftkit._heads.layers import distinct, has_parameters, holders, read
from ftkit._heads.vocabulary import LOSSES, says
from ftkit._models.undo import Undo

_log = logging.getLogger("ftkit")

_CLASSES = re.compile(
    r"_?((num|nb|n|number)_?(of_)?(class|classes|labels?|categor(y|ies)|cls|tags?|columns)|(class|classes|label|labels)_(num|count)|classes)"
)
_OUTPUTS = re.compile(
    r"_?((num|n)_?(outputs?|out|targets?|logits|\w+_(labels|classes))|out(put)?_(num_)?(features|channels|dim|dims|size|classes)"
    r"|nf|n_?out|c_out)|vocab_size"
)
_OUTPUTS_ALL = re.compile(r"_?(n|num)_outputs")  # of a model itself: those of EEG, which may be for numbers
_CHANNELS = re.compile(r"_?(in_?(chans|channels|ch|planes)|num_?channels|input_channels|n_?channels)")
_COUNTING = {
    "classes": re.compile(f"({_CLASSES.pattern})|({_OUTPUTS.pattern})"),
    "channels": _CHANNELS,
    "inputs": re.compile(rf"({_CHANNELS.pattern})|_?(n_?in|c_in|in(put)?_(features|dim|dims|size))"),
}
_CONFIGS = ("config", "cfg", "hparams", "args", "opt", "opts", "yaml", "_hub_mixin_config", "model_config")
_SHORT = {"nc": ("no", "nl", "backbone")}  # counts classes in a detector: beside one of these
_NO_CONFIGS = (nn.Module, torch.Tensor, str, int, float, type(None))


@dataclass(frozen=True, eq=False)
class Counter:
    """A number that says how many classes, or channels, there are."""

    owner: Any  # the module, configuration or dictionary that has it
    name: str
    value: int
    key: str = ""  # the owner's attribute, where that is a named tuple with the counter in it

    def set(self, value: int, undo: Undo) -> None:
        """Write another count."""
        undo.remember(self.owner)
        if self.key:
            setattr(self.owner, self.key, getattr(self.owner, self.key)._replace(**{self.name: value}))
        elif isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


def counters(
    model: nn.Module, names: Collection[str], *, of: Literal["classes", "channels", "inputs"] = "classes"
) -> list[Counter]:
    """List the counters that could speak of the classes: in the model, on the way to ``names`` and in losses.

    Args:
        model: The model.
        names: Dotted names of the head's layers.
        of: What is counted: classes, the channels of images, or what a layer takes.
    """
    places = distinct([*holders(model, *names), *losses(model, names)])
    found = itertools.chain(
        itertools.chain.from_iterable(map(_in_named_tuples, places)),
        itertools.chain.from_iterable(map(_in_attributes, distinct(_owners(places)))),
    )
    return [one for one in found if _COUNTING[of].fullmatch(one.name.lower()) or (of == "classes" and _is_short(one))]


def own_configs(model: nn.Module, owners: Iterable[object], undo: Undo) -> None:
    """Give a model copies of those of its configurations that are about to change: another model may have them too.

    Args:
        model: The model.
        owners: What will be written to: configurations, or parts of them.
        undo: What undoes it.
    """
    changing = {id(owner) for owner in owners}
    places = [
        (vars(module), name, config)
        for module in model.modules()
        for name in _CONFIGS
        if not isinstance(config := vars(module).get(name), _NO_CONFIGS)
    ]
    copies: dict[int, Any] = {}  # what two configurations share stays shared
    for _, _, config in places:
        if not changing.isdisjoint(map(id, (config, *_values(config).values()))):
            _copy(config, copies)
    for table, name, config in places:
        if id(config) in copies:
            undo.set_item(table, name, copies[id(config)])


def _copy(config: Any, copies: dict[int, Any]) -> None:
    """Copy a configuration, but no model or tensor that is in it; by the identity of all that is copied."""
    memo = {id(value): value for value in _values(config).values() if isinstance(value, nn.Module | torch.Tensor)}
    memo |= copies
    try:
        copy.deepcopy(config, memo)
    except Exception as error:  # noqa: BLE001 -- whatever somebody else's object raises that can't be copied
        _log.debug("The %s stays shared, since it can't be copied: %s", type(config).__name__, error)
    else:
        copies.update(memo)


def _is_short(counter: Counter) -> bool:
    return any(name in _values(counter.owner) for name in _SHORT.get(counter.name, ()))


def shifted(counter: Counter) -> Iterator[Counter]:
    """The counters beside one of the classes that count more outputs than these: a detector's, with its boxes."""
    if counter.name in _SHORT:
        yield from (one for one in _in_attributes(counter.owner) if one.name == "no" and one.value > counter.value)


def repeated(model: nn.Module, found: Iterable[Counter], classes: int) -> Iterator[Counter]:
    """The same number in parts of a model that have no tensor of that size: they pass it on, or their heads are gone.

    A part counts by the name by which what holds it does, or by one that speaks of the classes of a whole model.
    """
    owners = [one for one in found if isinstance(one.owner, nn.Module) and not one.key]
    names: dict[int, set[str]] = {}
    for one in owners:
        for part in one.owner.modules():
            names.setdefault(id(part), set()).add(one.name)
    known = {id(one.owner) for one in owners}
    for part in (part for part in model.modules() if id(part) not in known):
        counting = [
            Counter(part, name, classes)
            for name, value in vars(part).items()
            if type(value) is int and value == classes
            if name in names.get(id(part), ()) or counts_classes(name) or _OUTPUTS_ALL.fullmatch(name)
        ]
        tensors = itertools.chain(part.parameters(), part.buffers()) if counting else ()
        if not any(classes in tensor.shape for tensor in tensors):
            yield from counting


def counts_classes(name: str) -> bool:
    """Whether an attribute's name says that it counts classes, and nothing else."""
    return _CLASSES.fullmatch(name.lower()) is not None


def told(model: nn.Module, names: Collection[str]) -> list[int]:
    """Return the counts of classes that the counters tell, the most telling first."""
    found = [counter for counter in counters(model, names) if counter.value > 0]
    classes = [counter.value for counter in found if counts_classes(counter.name) or counter.name in _SHORT]
    outputs = [counter.value for counter in found if counter.owner is model and _OUTPUTS_ALL.fullmatch(counter.name)]
    words = [counter.value for counter in found if counter.name == "vocab_size"]
    return list(dict.fromkeys(classes + outputs + words))


def losses(model: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The losses, metrics and the like beside a head: they may count classes too, and hold few parameters or none."""
    return [
        module
        for holder in holders(model, *names)
        for name, child in holder.named_children()
        if not has_parameters(child) or says(name, LOSSES)
        for module in child.modules()
    ]


def _owners(places: list[nn.Module]) -> Iterator[Any]:
    """What could have counters: modules, their configurations, and the parts of these that speak of a vocabulary.

    Where such a part is the configuration of a module on the way to the head, as a decoder's, the others are not asked.
    """
    configs = {place: _configs(place) for place in places}
    own = {id(config) for config in itertools.chain.from_iterable(configs.values())}
    for place in places:
        yield place
        for config in configs[place]:
            yield config
            inner = [part for part in _values(config).values() if "vocab_size" in _values(part)]
            yield from [part for part in inner if id(part) in own] or inner


def _configs(place: nn.Module) -> list[Any]:
    found = [read(place, name) for name in _CONFIGS]
    return [config for config in found if not isinstance(config, _NO_CONFIGS)]


def _values(owner: Any) -> Mapping[Any, Any]:
    return owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})


def _in_attributes(owner: Any) -> list[Counter]:
    values = dict(_values(owner))
    if isinstance(getattr(type(owner), "num_labels", None), property):  # as transformers' configurations have it
        values["num_labels"] = owner.num_labels
    return [Counter(owner, str(name), value) for name, value in values.items() if type(value) is int]


def _in_named_tuples(place: nn.Module) -> list[Counter]:
    return [
        Counter(place, name, getattr(value, name), key)
        for key, value in vars(place).items()
        if isinstance(value, tuple)
        for name in getattr(value, "_fields", ())
        if type(getattr(value, name)) is int
    ]
