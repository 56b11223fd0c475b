"""Watches that what the skipped part of a model reads stays as it was."""

from __future__ import annotations

import contextlib
import functools
import operator
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
import xxhash
from torch import nn

from ftkit._files import digest
from ftkit._models.contents import bytes_of
from ftkit._precompute.frontier import Cut
from ftkit._precompute.mentions import led_to, said
from ftkit._precompute.stands import own_forward
from ftkit._precompute.surroundings import Surroundings, names_child, of_torch, plain_attributes, read_in
from ftkit._precompute.trace import Key, has_foreign_hooks
from ftkit._torch import (
    buffers_of,
    children_of,
    global_hooks,
    hooks_made,
    hooks_of,
    parameters_of,
    pre_hooks_of,
    version_of,
    versions_of,
    without_transforms,
)
from ftkit._wording import shown, some
from ftkit.errors import FtkitError

_FEW: Final = 64  # modules and tensors, at all of which it looks each time
_ALWAYS: Final = 8  # tensors of a larger model, at which it looks each time
_SHARE: Final = 0.02  # of the time, for looks at more
_PLACES: Final = 8
_PIECE: Final = 1 << 14
_PIECES: Final = 16
_TRAINS: Final = operator.attrgetter("requires_grad")
_TABLES: Final = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}
_LOOKED_AT: Final = _TABLES | {"forward"}
_BESIDE: Final = frozenset(vars(nn.Module()).keys() - _TABLES)  # what a forward pass does not read, and the mode
_AGAIN: Final = "Call precompute() again, and use its loader from here on."


def parts_of(model: nn.Module, cut: Cut) -> dict[Key, list[nn.Module]]:
    """The modules in each skipped call."""
    named = dict(model.named_modules())
    return {key: list(named[key[0]].modules()) for key in cut.skips}


class _Look:
    """Lists of what is there, each made and compared at the speed of C; and what they were."""

    def __init__(self, *lists: Callable[[], Any]) -> None:
        self._lists = lists
        self._then = [one() for one in lists]

    def differs(self) -> bool:
        try:  # an attribute that is another object may refuse to be compared
            return [one() for one in self._lists] != self._then
        except (RuntimeError, ValueError, TypeError, KeyError, FtkitError):
            return True


class Guard:
    """Watches that what the skipped part reads stays as it was.

    Before each forward pass it looks at all that belongs to it: attributes, globals, parameters, buffers, modules,
    hooks, versions, what trains, places in memory and some bytes of each tensor. In a large model that takes as long as
    the step of a small head. So there it looks each time at the versions of some tensors, in turns, and at everything
    where a hook was added anywhere, and as often as takes a fiftieth of the time: before each step that takes longer
    than some milliseconds. What that leaves out is looked at when the block ends. Only where something differs it is
    found out what has changed.

    Attributes:
        settings: What the code of the frozen part, and of what is around it, finds.
        built: What the skipped modules, and those around and between them, are made of; ready for JSON.
        digests: Those of all tensors that it reads.
        passes: How often it was looked closely.
        free: Whether there is one call that is left, and no hook on the way to it that would have to run.
    """

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self._model = model
        named = {id(module): name for name, module in model.named_modules()}
        frozen = list(dict.fromkeys(chain.from_iterable(parts_of(model, cut).values())))
        prefixes = [(f"{named[id(part)]}." if named[id(part)] else "", part) for part in frozen]
        names = {prefix + key for prefix, part in prefixes for key, _ in part.named_parameters(recurse=False)}
        names |= {prefix + key for prefix, part in prefixes for key, _ in part.named_buffers(recurse=False)}
        owned = ((name, *name.rpartition(".")[::2]) for name in sorted(names | cut.read))
        self._owners = [(name, model.get_submodule(owner), key) for name, owner, key in owned]
        owners = {"", *(name[:at] for name, _ in cut.skips for at, one in enumerate(name) if one == ".")}
        inner = {*frozen, *map(model.get_submodule, owners)}
        self._changing = cut.changing
        self._forward = own_forward(model)  # around which frameworks put others later
        around, self._names, self._every = read_in(model)
        """What the code that a forward pass may come by mentions, and whether it reads attributes by other names."""
        beyond = set(map(model.get_submodule, cut.beyond))
        inner.update(one for one in around if one not in beyond and not any(True for _ in one.parameters()))
        self._plain = [(named[id(part)], part) for part in model.modules() if part in inner]
        mentioned = (around[part].mentioned for _, part in self._plain if part in around)
        inside = led_to(set(map(type, around)), frozenset[str]().union(*mentioned))
        self._others = [
            (name, part, inside - {one.removeprefix(f"{name}.").partition("[")[0].partition(".")[0].rstrip(":")
                                   for one in cut.changing if one.startswith(f"{name}.")})
            for name, part in model.named_modules() if part in around and part not in inner
        ]  # fmt: skip
        """What trains, and which names of it the code of the frozen part, and of what is around it, may read."""
        self.settings = self.read()
        self._also: dict[str, list[Any]] = {}  # other values of them that change nothing
        self._structure = {name: self._structure_of(name, part) for name, part in self._plain}
        whole = sorted({**{named[id(part)]: part for part in frozen}, **dict(self._plain)}.items())
        self.built = {name: [said(one) for one in (type(part), *_foreign(name, part))] for name, part in whole}
        self.digests = self._digests({name for name, *_ in self._owners})
        self._seen = self._look()
        self._everything: _Look | None = None
        self._turns: list[_Look] = []
        self._pieces: list[tuple[Any, int]] = []  # of the tensors' memory, and their hashes
        self._turn = self._piece = self.passes = self._hooks_made = 0
        self._kept: Any = None
        self._due = self._rests_until = 0.0
        self._is_small = self._doubtful = False
        self._told = ""
        left = set() if cut.tail is None else {model, *model.get_submodule(cut.tail).modules()}
        self._passed = [] if cut.tail is None else [one for one in model.modules() if one not in left]
        self.free = False
        parts = dict.fromkeys([*inner, *self._passed, *(module for _, module, _ in self._owners)])
        self._tables = [
            *global_hooks(),
            *(hooks for part in parts if part is not model for hooks in (pre_hooks_of(part), hooks_of(part))),
            *(own for part in parts for own in (parameters_of(part), buffers_of(part), children_of(part))),
        ]

    def _remember(self, around: list[Surroundings]) -> None:
        containers = [*{id(table): table for one in around for table in one.tables}.values()]
        own = [vars(part) for _, part in self._plain]
        state = [
            *(_tensor_of(module, key) for _, module, key in self._owners),
            *(t for one in around for t in one.tensors),
        ]
        there = {id(one): one for one in state if one is not None and not one.is_inference()}
        tensors = [one for one in there.values() if one.layout is torch.strided]
        self.free = bool(self._passed) and not any(map(has_foreign_hooks, self._passed))
        self._everything, self._due = None, 0.0
        if len(tensors) < len(there):
            return  # look closely each time
        kept = [(id(one), one.data_ptr(), version_of(one)) for one in tensors]
        if kept != self._kept:
            memory = (memoryview(bytes_of(one)) for one in tensors if _lies_plainly(one))
            pieces = (whole[at : at + _PIECE] for whole in memory for at in range(0, len(whole), _PIECE))
            self._pieces = [(piece, xxhash.xxh3_64_intdigest(piece)) for piece in pieces]
            self._kept = kept
        attributes = []
        for its, one in zip(own, around, strict=False):  # behind these, around are others, too
            if keys := (its.keys() if self._every else its.keys() & (self._names | one.names | _LOOKED_AT)) - _BESIDE:
                attributes.append((operator.itemgetter(*keys), its))
        tables = [*self._tables, *(one for one in containers if isinstance(one, dict))]
        lists = [one for one in containers if not isinstance(one, dict | tuple | frozenset)]
        gets = [get for one in around for get in one.places]
        gets += self._read_of_others().values()
        places = [*{(get.func, *map(id, get.args)): get for get in gets}.values()]
        lengths = [*own, *(vars(part) for _, part, _ in self._others)]
        empty, filled = [one for one in tables if not one], [one for one in tables if one]
        parts = [part for one in tensors if (part := _some_bytes(one)) is not None]
        sizes = {part.shape[1]: [one for one in parts if one.shape[1] == part.shape[1]] for part in parts}
        self._everything = _Look(
            *_counts(tensors),
            lambda: [get(one) for get, one in attributes],
            lambda: [*map(len, lengths)],
            lambda: any(empty),
            lambda: [*chain.from_iterable(map(dict.values, filled))],
            lambda: [*chain.from_iterable(lists)],
            lambda: [get() for get in places],
            of_torch,
            lambda: [np.concatenate(several).tobytes() for several in sizes.values()],
        )
        turns = 1 + len(tensors) // _ALWAYS
        where: dict[int, tuple[Any, str]] = {}
        for _, module, key in self._owners:
            table: Any = parameters_of(module) if key in parameters_of(module) else buffers_of(module)
            where[id(table.get(key))] = table, key
        held = [where.get(id(one), ({}, "")) for one in tensors]
        self._turns = [_Look(*_counts(tensors[at::turns]), _held(held[at::turns])) for at in range(turns)]
        self._is_small = len(own) + len(tensors) <= _FEW

    def looks_later(self) -> bool:
        """Whether a look at everything now would take too much of the time since the last one."""
        return time.perf_counter() < self._due and hooks_made() == self._hooks_made and not self._is_small

    def _differs(self) -> bool:
        if self.looks_later():
            self._turn += 1
            return self._turns[self._turn % len(self._turns)].differs()
        begin, self._hooks_made = time.perf_counter(), hooks_made()
        differs = self._everything is None or self._everything.differs() or self._moved()
        self._due = begin + (time.perf_counter() - begin) / _SHARE
        return differs

    def _moved(self) -> bool:
        """Whether some more of the weights are not what they were; so that in some looks all are looked at."""
        some_of = range(self._piece, self._piece + min(_PIECES, len(self._pieces)))
        self._piece += len(some_of)
        chosen = (self._pieces[at % len(self._pieces)] for at in some_of)
        self._doubtful = any(xxhash.xxh3_64_intdigest(piece) != hash_ for piece, hash_ in chosen)
        return self._doubtful

    def _surroundings(self) -> list[Surroundings]:
        forwards = ((name, part, own_forward(part) if name else self._forward) for name, part in self._plain)
        own = [Surroundings(part, name, self._names, every=self._every, forward=one) for name, part, one in forwards]
        return own + [Surroundings(part, name, others=names) for name, part, names in self._others]

    def read(self, around: list[Surroundings] | None = None) -> dict[str, Any]:
        """What the code of the frozen part, and of what is around it, finds; but for what each run changes."""
        found: dict[str, Any] = {}
        for one in around or self._surroundings():
            for where, value in one.values.items():
                is_other = where in found and not alike(found[where], value)  # of another class by the same name, say
                found[f"{where} (of {one.name or 'the model'})" if is_other else where] = value
        found |= {where: get() for where, get in self._read_of_others().items()}
        found |= of_torch()
        return {where: value for where, value in found.items() if where not in self._changing}

    def _read_of_others(self) -> dict[str, functools.partial[Any]]:
        each = (plain_attributes(part, name, names) for name, part, names in self._others)
        return {where: get for one in each for where, get in one.items()}

    def _structure_of(self, name: str, module: nn.Module) -> Any:
        """What a module consists of, beside its attributes and tensors; of the model, not what is hung around it."""
        children = [
            (key, one)
            for key, one in children_of(module).items()
            if self._every or names_child(module, key, self._names)
        ]
        return type(module), children, *((own_forward(module), has_foreign_hooks(module)) if name else ())

    def _look(self) -> dict[str, Any]:
        found = {}
        for name, module, key in self._owners:
            one = _tensor_of(module, key)
            some_bytes = None if one is None else _some_bytes(one)
            found[name] = one if one is None else (
                id(one), version_of(one), one.requires_grad, one.data_ptr() if one.layout is torch.strided else 0,
                None if some_bytes is None else some_bytes.tobytes(),
            )  # fmt: skip
        return found

    def _digests(self, names: Iterable[str]) -> dict[str, str]:
        state: dict[str, torch.Tensor] = dict(self._model.named_parameters(remove_duplicate=False))
        state.update(self._model.named_buffers(remove_duplicate=False))
        return {
            name: f"{one.dtype} {list(one.shape)} {one.device.type} {'' if one.is_meta else digest(bytes_of(one))}"
            for name in sorted(names)
            if (one := state.get(name)) is not None
        }

    def check(self, *, thoroughly: bool = False) -> None:
        """Compare, by what torch counts, or ``thoroughly``, by the bytes.

        Raises:
            FtkitError: Something has changed, or trains now.
        """
        if not thoroughly and not self._differs():
            return
        begin = time.perf_counter()
        try:
            self._compare(thoroughly=thoroughly or self._doubtful)
        except FtkitError as error:
            self._told = str(error)
            raise
        if thoroughly:
            self._rests_until = begin + (time.perf_counter() - begin) / _SHARE

    def _compare(self, *, thoroughly: bool) -> None:
        self.passes += 1
        owned = ((name, _tensor_of(module, key)) for name, module, key in self._owners)
        if inside := [name for name, one in owned if one is not None and without_transforms(one) is not one]:
            raise FtkitError(
                f"{some(inside, 4)} {'is' if len(inside) == 1 else 'are'} in a transform of torch.func, and what is "
                "kept was computed without it. Transform what trains, or call the model outside of the block."
            )
        around = self._surroundings()
        then, now = self.settings, self.read(around)
        if what := next(iter(self.differing(now)), ""):
            raise FtkitError(f"{_told(what, then, now)} {_AGAIN}")
        for name, part in self._plain:
            if self._structure_of(name, part) != self._structure[name]:
                raise FtkitError(
                    f"{name or 'The model'} has other submodules, hooks or another forward() than when the frozen part "
                    f"was computed. {_AGAIN}"
                )
        look = self._look()
        doubtful = {name for name in look if thoroughly or look[name] != self._seen[name]}
        if trains := sorted(name for name in doubtful if (look[name] or (0, 0, False))[2]):
            raise FtkitError(
                f"{some(trains, 4)} did not train when the frozen part was computed, but "
                f"{'trains' if len(trains) == 1 else 'train'} now: the model was unfrozen past the frontier. {_AGAIN}"
            )
        self._see_digests(doubtful)
        self._seen, self._doubtful, self._told = look, False, ""
        self._remember(around)

    def differing(self, now: dict[str, Any]) -> list[str]:
        """The places of settings that are neither what they were nor what was accepted for them."""
        then = self.settings
        new = [
            one for one in sorted(now.keys() - then.keys()) if not self._every or self._names.issuperset(_private(one))
        ]
        right = ((one, [then.get(one), *self._also.get(one, ())]) for one in (*then, *new))
        return [one for one, values in right if not any(alike(value, now.get(one)) for value in values)]

    @contextlib.contextmanager
    def accepting(self, others: dict[str, Any]) -> Iterator[None]:
        """Accept other values of settings from here on, beside those that were; not if the block ends with an error."""
        before = self.settings, self._also
        self._also = self._also | {one: [*self._also.get(one, ()), self.settings.get(one)] for one in others}
        self.settings = self.settings | others  # so that another run, which begins with these, finds the same file
        try:
            yield
        except BaseException:
            self.settings, self._also = before
            raise

    def _see_digests(self, names: Iterable[str]) -> None:
        digests = self._digests(names)
        if moved := sorted(name for name in names if digests.get(name) != self.digests.get(name)):
            raise FtkitError(
                f"{some(moved, 4)} changed since the frozen part was computed, so what is kept is out of date. {_AGAIN}"
            )

    @property
    def is_rested(self) -> bool:
        """Whether it is some time ago that all bytes were compared."""
        return time.perf_counter() > self._rests_until

    @property
    def has_told(self) -> bool:
        """Whether the last look found a change, of which someone has been told."""
        return bool(self._told)

    def finish(self) -> None:
        """Look at what earlier checks left out, and at all bytes, as some changes are seen by nothing else.

        Raises:
            FtkitError: As :meth:`check`.
        """
        told = self._told
        try:
            self.check(thoroughly=True)
        except FtkitError as error:
            if str(error) != told:  # which someone has caught, and knows of
                raise


def _told(where: str, then: dict[str, Any], now: dict[str, Any]) -> str:
    """What has become of a setting."""
    was, is_now = (shown(repr(one[where])) if where in one else "" for one in (then, now))
    what = f"The length of {where[:-1]}" if where.endswith(":") else shown(where)
    return f"{what} was {was or 'not there'} when the frozen part was computed, and is {is_now or 'gone'} now."


def _private(where: str) -> Iterator[str]:
    """The names on the way to a place that have an underscore."""
    return (one for one in where.split(".") if one.startswith("_"))


def _counts(tensors: list[torch.Tensor]) -> tuple[Callable[[], Any], ...]:
    places = functools.partial(map, torch.Tensor.data_ptr, tensors)
    return (lambda: versions_of(tensors)), (lambda: any(map(_TRAINS, tensors))), (lambda: [*places()])


def _held(places: list[tuple[Any, str]]) -> Callable[[], Any]:
    return lambda: [id(table.get(key)) for table, key in places]


def alike(one: Any, other: Any) -> bool:
    """Whether two settings are the same."""
    return type(one) is type(other) and (one == other or repr(one) == repr(other) == "nan")


def _foreign(name: str, module: nn.Module) -> Iterator[Any]:
    """What has been hung on a module: hooks, or another forward."""
    if name and has_foreign_hooks(module):
        yield from (*pre_hooks_of(module).values(), *hooks_of(module).values())
    if name and (own := own_forward(module)) is not None:
        yield own


def _tensor_of(module: nn.Module, key: str) -> torch.Tensor | None:
    one: torch.Tensor | None = parameters_of(module).get(key)
    return buffers_of(module).get(key) if one is None else one


def _some_bytes(tensor: torch.Tensor) -> Any:
    """Some elements of a tensor's memory, as it changes, in bytes; None for one that is not in the CPU's memory."""
    if tensor.layout is not torch.strided or not tensor.numel() or not _is_plain(tensor):
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = max(last // (_PLACES - 1), 1)
    first = tensor.detach().as_strided((1,), (1,)).view(torch.uint8).numpy()
    shape, strides = (min(_PLACES, last + 1), len(first)), (step * len(first), 1)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)


def _lies_plainly(tensor: torch.Tensor) -> bool:
    return _is_plain(tensor) and tensor.is_contiguous()


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and type(tensor) in (torch.Tensor, nn.Parameter)
