"""Runs of a model in which what is frozen does not run; and before, the run that notes what passes over."""

from __future__ import annotations

import functools
import operator
import secrets
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
import xxhash
from torch import nn

from ftkit._files import digest
from ftkit._freezing.holding import is_held
from ftkit._models.contents import bytes_of
from ftkit._precompute.frontier import Cut, Skip, Slot, near
from ftkit._precompute.placeholders import Placeholder, allowed
from ftkit._precompute.spotcheck import SpotChecks
from ftkit._precompute.stands import install, own_forward
from ftkit._precompute.surroundings import Surroundings, said
from ftkit._precompute.trace import Decisions, Key, autocast_state, has_foreign_hooks, objects_in
from ftkit._torch import (
    buffers_of,
    children_of,
    global_hooks,
    hooks_of,
    parameters_of,
    pre_hooks_of,
    tree_leaves,
    tree_map_only,
    version_of,
    versions_of,
)
from ftkit._wording import some
from ftkit.errors import FtkitError

ALIGN: Final = 16
_ODD: Final = 0x1E3779B97F4A7C15
_FOR_THE_LOSS: Final = frozenset({"num_items_in_batch"})  # transformers' Trainer has it passed to every layer
_PLACES: Final = 8
_PIECE: Final = 1 << 14
_PIECES: Final = 4
_SOURCE: Final = 32  # the bit from which the number of a sample says which data set it is of
_MODE: Final = operator.itemgetter("training")
_TRAINS: Final = operator.attrgetter("requires_grad")
MAGIC: Final = b"ftkitrow"
"""Bytes at the start of each row, by which it is known."""
TAG: Final = 16
"""Bytes at the start of each row, with those, that say which cut it belongs to."""
_NUMBER: Final = 24
"""Where the number of the sample ends, which follows."""
HEAD: Final = 32
"""Where what is kept begins, behind a sum by which it is seen whether someone has changed it."""


def numbered(rows: torch.Tensor, numbers: list[int], source: int) -> torch.Tensor:
    """Note in rows, in place, which samples they are of, and of which player's data set."""
    whole = torch.tensor(numbers, dtype=torch.int64) + (source << _SOURCE)
    rows[:, TAG:_NUMBER] = whole.view(torch.uint8).view(len(rows), -1)
    return rows


def _numbers(rows: torch.Tensor) -> list[int]:
    numbers: list[int] = rows[:, TAG:_NUMBER].contiguous().view(torch.int64)[:, 0].tolist()
    return numbers


def _sums(rows: torch.Tensor) -> torch.Tensor:
    """A sum of what each row keeps, in which each place counts differently."""
    words = rows[:, HEAD:].view(torch.int64)
    weights = torch.arange(1, 2 * words.shape[1], 2, device=rows.device) * _ODD
    return (words * weights).sum(1)


def signed(rows: torch.Tensor) -> torch.Tensor:
    """Note in rows, in place, the sum of what each keeps."""
    rows[:, _NUMBER:HEAD] = _sums(rows)[:, None].view(torch.uint8)
    return rows


def parts_of(model: nn.Module, cut: Cut) -> dict[Key, list[nn.Module]]:
    """The modules in each skipped call."""
    named = dict(model.named_modules())
    return {key: list(named[key[0]].modules()) for key in cut.skips}


class Guard:
    """Watches that what the skipped part reads stays as it was.

    A look at all of it before each forward pass compares lists at the speed of C: attributes, parameters, buffers and
    modules by identity, hooks by their keys, versions, places in memory, and some bytes of each tensor on the CPU. Only
    where one differs it is found out what has changed.
    """

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        self._model = model
        self._names = set(cut.read)
        named = {id(module): name for name, module in model.named_modules()}
        for parts in parts_of(model, cut).values():
            for part in parts:
                prefix = f"{named[id(part)]}." if named[id(part)] else ""
                self._names.update(prefix + name for name, _ in part.named_parameters(recurse=False))
                self._names.update(prefix + name for name, _ in part.named_buffers(recurse=False))
        self._owners = [
            (name, model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in self._names
        ]
        around = {"", *(name[:at] for name, _ in cut.skips for at, one in enumerate(name) if one == ".")}
        inner = {part for several in parts_of(model, cut).values() for part in several}
        inner.update(model.get_submodule(name) for name in around)
        inner.update(one for one in model.modules() if not any(True for _ in one.parameters()))
        self._plain = [(named[id(part)], part) for part in model.modules() if part in inner]
        self._changing = cut.changing
        self._whole = {named[id(part)]: part for several in parts_of(model, cut).values() for part in several}
        self.settings = self._read_settings()
        self._structure = {name: _structure(name, part) for name, part in self._plain}
        self.digests = self._digests(self._names)
        self._seen = self._look()
        self._quiet: Any = None
        self.passes = 0
        """How often it was looked closely."""
        owners = [*self._whole.values(), *(module for _, module, _ in self._owners)]
        self._attributes = [vars(part) for _, part in self._plain]
        self._tables: list[dict[str, Any]] = [
            table for part in dict.fromkeys(owners) for table in (parameters_of(part), buffers_of(part))
        ] + [children_of(part) for _, part in self._plain]  # fmt: skip
        own = [table for name, part in self._plain if name for table in (pre_hooks_of(part), hooks_of(part))]
        self._hooks = [*own, *global_hooks()]
        self._lists: list[Any] = []
        self._dicts: list[dict[Any, Any]] = []
        self._places: list[Callable[[], Any]] = []
        self._tensors: list[torch.Tensor] = []
        self._bytes: list[list[Any]] = []
        self._turns: list[tuple[Any, int]] = []  # pieces of the tensors' memory, and their hashes
        self._turn = 0
        self._kept: Any = None

    def _glance(self) -> Any:
        return (
            [*chain.from_iterable(map(dict.values, self._attributes))],
            [*chain.from_iterable(self._lists)],
            [*chain.from_iterable(map(dict.values, self._dicts))],
            [get() for get in self._places],
            [*chain.from_iterable(map(dict.values, self._tables))],
            [*chain.from_iterable(self._hooks)],
            versions_of(self._tensors),
            [*map(torch.Tensor.data_ptr, self._tensors)],
            any(map(_TRAINS, self._tensors)),
            [np.concatenate(several).tobytes() for several in self._bytes],
        )

    def _changed(self) -> bool:
        if self._quiet is None:
            return True
        try:  # an attribute that is another object may refuse to be compared
            return bool(self._glance() != self._quiet)
        except (RuntimeError, ValueError, TypeError, FtkitError):
            return True

    def _remember(self) -> None:
        around = self._surroundings()
        tables = {id(table): table for one in around for table in one.tables}.values()
        self._dicts = [one for one in tables if isinstance(one, dict)]
        self._lists = [one for one in tables if not isinstance(one, dict)]
        self._places = list({(get.func, *map(id, get.args)): get for one in around for get in one.places}.values())
        state = [
            *(_tensor_of(module, key) for _, module, key in self._owners),
            *(t for one in around for t in one.tensors),
        ]
        tensors = {id(one): one for one in state if one is not None and not one.is_inference()}
        self._tensors = [one for one in tensors.values() if one.layout is torch.strided]
        if len({*map(id, self._tensors)}) < len(tensors):
            self._quiet = None  # look closely each time
            return
        parts = [part for one in self._tensors if (part := _some_bytes(one)) is not None]
        self._bytes = [[part for part in parts if part.shape[1] == size] for size in {part.shape[1] for part in parts}]
        kept = [(id(one), one.data_ptr(), version_of(one)) for one in self._tensors]
        if kept != self._kept:
            memory = (memoryview(bytes_of(one)) for one in self._tensors if _lies_plainly(one))
            pieces = (whole[at : at + _PIECE] for whole in memory for at in range(0, len(whole), _PIECE))
            self._turns = [(piece, xxhash.xxh3_64_intdigest(piece)) for piece in pieces]
            self._kept = kept
        self._quiet = self._glance()

    def _piece_changed(self) -> bool:
        """Whether one more piece of the weights is not what it was; so that in some steps all are looked at."""
        self._turn = (self._turn + 1) % len(self._turns)
        piece, hash_ = self._turns[self._turn]
        return xxhash.xxh3_64_intdigest(piece) != hash_

    def _surroundings(self) -> list[Surroundings]:
        return [Surroundings(part, name) for name, part in self._plain]

    def _read_settings(self) -> dict[str, Any]:
        """What the code of the frozen part, and of what is around it, finds; but for what each run changes."""
        found = {where: value for one in self._surroundings() for where, value in one.values.items()}
        return {where: value for where, value in found.items() if where not in self._changing}

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

    def built(self) -> dict[str, Any]:
        """What the skipped modules, and those around and between them, are made of; ready for JSON."""
        parts = sorted({**self._whole, **dict(self._plain)}.items())
        return {name: [said(one) for one in (type(part), *_foreign(name, part))] for name, part in parts}

    def _digests(self, names: Iterable[str]) -> dict[str, str]:
        state: dict[str, torch.Tensor] = dict(self._model.named_parameters(remove_duplicate=False))
        state.update(self._model.named_buffers(remove_duplicate=False))
        return {
            name: f"{one.dtype} {list(one.shape)} {one.device.type} {digest(bytes_of(one))}"
            for name in sorted(names)
            if (one := state.get(name)) is not None
        }

    def check(self, *, thoroughly: bool = False) -> None:
        """Compare, by what torch counts, or ``thoroughly``, by the bytes.

        Raises:
            FtkitError: Something has changed, or trains now.
        """
        changed = any(self._piece_changed() for _ in range(min(len(self._turns), _PIECES)))
        if not thoroughly and not changed and not self._changed():
            return
        thoroughly = thoroughly or changed
        self.passes += 1
        then, now = self.settings, self._read_settings()
        new = (one for one in now.keys() - then.keys() if not any(part.startswith("_") for part in one.split(".")))
        if what := next((one for one in (*then, *sorted(new)) if not _alike(then.get(one), now.get(one))), ""):
            raise FtkitError(
                f"{what} was {then.get(what)!r} when the frozen part was computed, and is {now.get(what)!r} now. Call "
                "precompute() again, and use its loader from here on."
            )
        for name, part in self._plain:
            if _structure(name, part) != self._structure[name]:
                raise FtkitError(
                    f"{name or 'The model'} has other submodules, hooks or another forward() than when the frozen part "
                    "was computed. Call precompute() again, and use its loader from here on."
                )
        look = self._look()
        doubtful = {name for name in look if thoroughly or look[name] != self._seen[name]}
        if trains := sorted(name for name in doubtful if (look[name] or (0, 0, False))[2]):
            raise FtkitError(
                f"{some(trains, 4)} did not train when the frozen part was computed, and does now: it was unfrozen "
                "past the frontier. Call precompute() again, and use its loader from here on."
            )
        digests = self._digests(doubtful)
        if moved := sorted(name for name in doubtful if digests.get(name) != self.digests.get(name)):
            raise FtkitError(
                f"{some(moved, 4)} changed since the frozen part was computed, so what is kept is out of date. Call "
                "precompute() again, and use its loader from here on."
            )
        self._seen = look
        self._remember()


@dataclass
class _Run:
    """One forward pass."""

    samples: int
    device: torch.device
    values: dict[int, torch.Tensor]
    rows: torch.Tensor
    wrong: FtkitError | None = None
    straight: bool = False
    decisions: Decisions | None = None
    count: Counter[str] = field(default_factory=Counter)
    unfilled: list[Any] = field(default_factory=list)  # objects that skipped calls would have filled


_ACTIVE: list[Player] = []
_SOURCES: weakref.WeakValueDictionary[int, SpotChecks] = weakref.WeakValueDictionary()


class Player:
    """Runs a model with kept tensors in the place of its frozen part.

    Args:
        model: The model.
        cut: Its frontier.
        tag: The bytes at the start of the rows of this cut.
    """

    def __init__(self, model: nn.Module, cut: Cut, tag: bytes) -> None:
        self.model, self.cut, self.tag = model, cut, tag
        self.guard = Guard(model, cut)
        self.offsets: dict[int, int] = {}
        self.row_bytes = HEAD
        for number in cut.per_sample:
            self.offsets[number] = self.row_bytes
            self.row_bytes += -(-cut.layouts[number].nbytes // ALIGN) * ALIGN
        taken = [one.layout for one in tree_leaves(cut.inputs) if isinstance(one, Slot)]
        self._taken = [one for one in taken if one is not None]
        while any(self.row_bytes in one.shape for one in self._taken):  # so that no input has the shape of rows
            self.row_bytes += ALIGN
        self.spots: SpotChecks | None = None
        self.source = secrets.randbits(30)
        """By which its rows are known, among those of other data sets."""
        self._parts = parts_of(model, cut)
        self._around = _around(model, cut)
        self._modes = {key: [vars(part) for part in parts] for key, parts in self._parts.items()}
        self._all_modes = [vars(part) for part in dict.fromkeys(p for parts in self._parts.values() for p in parts)]
        self._fine: dict[Any, Any] = {}  # the modes in which a call was last seen to be right
        self._simple = {
            key: len(skip.args[0]) if not skip.args[1] and all(isinstance(one, Slot) for one in skip.args[0]) else -1
            for key, skip in cut.skips.items()
        }
        self._here = threading.local()
        self.learning = False
        self._undo: list[Callable[[], object]] = []
        self._passed: list[Any] = []  # the hooks of the modules that need not even be called, and their keys
        self._hooks: list[Any] = []
        self._entered = 0
        self._pending: tuple[torch.Tensor, tuple[bool, ...]] | None = None

    # ---------------- rows

    def encode(self, values: Mapping[int, torch.Tensor], samples: int) -> torch.Tensor:
        """Make a row for each sample."""
        rows = torch.zeros(samples, self.row_bytes, dtype=torch.uint8)
        rows[:, :TAG] = torch.frombuffer(bytearray(self.tag), dtype=torch.uint8)
        for number, offset in self.offsets.items():
            layout = self.cut.layouts[number]
            part = layout.encode(values[number])
            if part.shape != (samples, layout.nbytes):
                raise FtkitError(
                    f"A sample has another shape than the first: {self.cut.points[number][1][0] or 'an input'} gives "
                    f"{list(values[number].shape)} for {samples} samples. Pad or crop all samples to one size."
                )
            rows[:, offset : offset + layout.nbytes] = part.cpu()
        return signed(rows)

    def watch(self, inputs: Callable[[list[int]], Any], alike: Callable[[torch.Tensor, torch.Tensor], bool]) -> None:
        """Compute samples anew now and then; ``inputs`` gives the model's arguments for those of some numbers.

        ``alike`` tells whether a value that was computed anew is the one that is kept.
        """
        self.spots = SpotChecks(self.model, self.cut, inputs, alike)
        _SOURCES[self.source] = self.spots

    def _decode(self, rows: torch.Tensor) -> dict[int, torch.Tensor]:
        values = {
            number: self.cut.layouts[number].decode(rows[:, offset : offset + self.cut.layouts[number].nbytes])
            for number, offset in self.offsets.items()
        }
        return values | {number: tensor.to(rows.device).clone() for number, tensor in self.cut.once.items()}

    def is_row(self, value: Any) -> bool:
        """Whether a value is a batch of rows of this cut."""
        return _begins(value, self.tag) and bool(value.shape[1] == self.row_bytes)

    def near(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two rows differ by no more than kernels for different batch sizes do."""
        ones, others = self._decode(one[None]), self._decode(other[None])
        return all(near(ones[number], others[number]) for number in self.offsets)

    # ---------------- the model

    def __enter__(self) -> None:
        """Let the model take rows."""
        if not self._entered:
            self.guard.check(thoroughly=True)
            self._install()
        self._entered += 1

    def _install(self) -> None:
        before = self.model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        after = self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True)
        named = dict(self.model.named_modules())
        names = {key[0] for key in self.cut.skips} | {key[0] for kind, key, _ in self.cut.points if kind == "arg"}
        forwards = {id(named[name]): self._through(name) for name in names}
        self._passed = []
        if self.cut.tail is not None and "" not in names:
            forwards[id(self.model)] = self._straight
            inside = set(named[self.cut.tail[0][0]].modules()) | {self.model}
            passed = [one for one in self.model.modules() if one not in inside]
            if not any(map(has_foreign_hooks, passed)):
                self._passed = [table for one in passed for table in (pre_hooks_of(one), hooks_of(one))]
        self._hooks = [*chain.from_iterable(self._passed)]
        remove = install(forwards, self.model)
        _ACTIVE.append(self)
        self._undo = [remove, before.remove, after.remove, functools.partial(_ACTIVE.remove, self)]

    def __exit__(self, *exception: object) -> None:
        """Take what let the model take rows away, and check the last batch."""
        self._entered -= 1
        if not self._entered:
            for step in self._undo:
                step()
            self._undo = []
        self._pending = self._pending if exception == (None, None, None) else None
        self._settle()

    def __deepcopy__(self, _: dict[int, Any]) -> Player:
        return self

    def __reduce__(self) -> Any:
        return _Idle, ()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        given = given if all(map(_is_tensor_or_none, given)) else tree_leaves(given)
        leaves = [one for one in given if self.is_row(one)]
        if not leaves:
            rowlike = [one for one in given if _begins(one, MAGIC)]
            if rowlike and not any(one.is_row(rowlike[0]) for one in _ACTIVE if one.model is self.model):
                raise FtkitError(
                    "The model was called with rows that were computed for another state of it, or of another model. "
                    "Take them from the loader of the with block around."
                )
            if any(map(self._was_row, given)):
                raise FtkitError(
                    "The model was called with rows of kept bytes that something has changed on the way: normalized, "
                    "cast, mixed or cut. Pass them to the model as the loader gives them, and do to the images what is "
                    "to be done to images in the transform of the data set."
                )
            return None
        if module is not self.model:
            raise FtkitError("A copy of the model was called with kept rows: only the model itself takes them.")
        if len(leaves) > 1:
            raise FtkitError("The model was called with several batches of kept rows: one is expected.")
        rows = leaves[0]
        if not torch.equal(_sums(rows), rows[:, _NUMBER:HEAD].contiguous().view(torch.int64)[:, 0]):
            raise FtkitError(
                "Rows of kept bytes were changed on the way to the model. Pass them as the loader gives them: they are "
                "no images that could be mixed, cut or scaled."
            )
        values = self._decode(rows)
        run = _Run(len(rows), rows.device, values, rows)
        if not self.learning:
            self.guard.check()
            self._settle()
            run.wrong = self._spot(rows)
        run.straight = len(given) == 1 and self._goes_straight()
        call = (args, kwargs) if run.straight else self._call(args, kwargs, run)
        self._here.run = run
        if self.cut.decides:
            run.decisions = Decisions()
            run.decisions.__enter__()
        allowed().__enter__()
        return call

    def _spot(self, rows: torch.Tensor, decisions: tuple[bool, ...] = ()) -> FtkitError | None:
        """Compute some of a batch anew, if it is time for it, in this process or where its rows come from.

        Not while a forward pass waits for its backward pass: buffers may be written to, and put back.

        Returns:
            What is wrong, to be raised if nothing tells more precisely.
        """
        spots = _SOURCES.get(_numbers(rows[:1])[0] >> _SOURCE)
        kind = len(rows), torch.is_grad_enabled(), tuple(map(_MODE, map(vars, self._around))), decisions
        places = [] if spots is None else spots.due(kind, len(rows))
        # Hooks that someone else has put on the model would see the samples twice.
        if spots is not None and places and not any(map(has_foreign_hooks, self.model.modules())):
            numbers = [one & ((1 << _SOURCE) - 1) for one in _numbers(rows)]
            try:
                spots.compare(places, numbers, self._decode(rows))
            except FtkitError as error:
                return error
        return None

    def _settle(self) -> None:
        """Check the batch before, for which Python has taken decisions."""
        pending, self._pending = self._pending, None
        if pending is not None and (error := self._spot(*pending)) is not None:
            raise error

    def _was_row(self, value: Any) -> bool:
        """Whether a tensor that is no row has the shape of some, and no input has it."""
        if not isinstance(value, torch.Tensor) or value.dim() != 2 or _begins(value, MAGIC):
            return False
        own = any(len(one.shape) == 2 and one.dtype is value.dtype for one in self._taken)
        return value.shape[1] == self.row_bytes or (value.dtype is torch.uint8 and not own)

    def _call(self, args: Any, kwargs: Any, run: _Run) -> Any:
        """What the model would have been called with."""
        traced_args, traced_kwargs = self.cut.inputs
        given, named = list(args), dict(kwargs)
        for at, traced in enumerate(traced_args):
            if at < len(given):
                if self.is_row(given[at]):
                    given[at] = self._filled(traced, run)
            elif _fills(traced):
                given.append(self._filled(traced, run))
            else:
                break
        for name, traced in traced_kwargs.items():
            if _fills(traced) and (name not in named or self.is_row(named[name])):
                named[name] = self._filled(traced, run)
        more = {f"number {at}": one for at, one in enumerate(given[len(traced_args) :], start=len(traced_args) + 1)}
        more |= {name: one for name, one in named.items() if name not in traced_kwargs and name not in _FOR_THE_LOSS}
        if extra := [name for name, one in more.items() if one is not None]:
            raise FtkitError(
                f"The model was called with kept rows and with an argument that it did not get when they were computed "
                f"({some(extra, 3)}), on which its frozen part may depend. Let the samples of the data set be dicts "
                "with all that the model is called with, and call precompute() again."
            )
        if any(self.is_row(one) for one in (*given, *named.values())):
            raise FtkitError("The model was called with kept rows where it took no input when they were computed.")
        return tuple(given), named

    def _filled(self, tree: Any, run: _Run) -> Any:
        if isinstance(tree, Slot):
            return self._value(tree, run)
        return tree_map_only(Slot, lambda slot: self._value(slot, run), tree)

    def _value(self, slot: Slot, run: _Run) -> torch.Tensor:
        if slot.kept is not None:
            return run.values[slot.kept]
        assert slot.layout is not None
        return slot.layout.stand_in(run.samples, run.device)

    def _end(self, _: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        run: _Run | None = getattr(self._here, "run", None)
        if run is None:
            return None
        self._here.run = None
        allowed().__exit__()
        if run.decisions is not None:
            run.decisions.__exit__(None, None, None)
        if any(isinstance(one, Placeholder) for one in tree_leaves(output)):
            raise FtkitError(
                "The model gives back a value of its frozen part that was not kept. It takes another way through its "
                "forward pass than when its frontier was looked for: call precompute() with it in this state."
            )
        if run.wrong is not None and output is not None:
            raise run.wrong
        if run.decisions is not None and not self.learning:
            self._pending = run.rows, tuple(run.decisions.seen)
        if run.unfilled:  # what they would hold is not there, so nobody may take them for whole
            return tree_map_only(object, lambda one: None if any(one is it for it in run.unfilled) else one, output)
        return None

    def _through(self, name: str) -> Callable[..., Any]:
        replaced: dict[Key, list[tuple[int, int]]] = {key: [] for kind, key, _ in self.cut.points if kind == "arg"}
        for number, (kind, key, at) in enumerate(self.cut.points):
            if kind == "arg":
                replaced[key].append((at, number))

        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            run: _Run | None = getattr(self._here, "run", None)
            if run is None or run.straight:
                return original(*args, **kwargs)
            key = name, run.count[name]
            run.count[name] += 1
            if key in replaced:
                args, kwargs = _with(args, kwargs, {at: run.values[number] for at, number in replaced[key]})
            skip = self.cut.skips.get(key)
            if skip is None:
                return original(*args, **kwargs)
            self._check(key, skip, args, kwargs)
            if skip.fills:
                run.unfilled += objects_in((args, kwargs))
            return self._filled(skip.output, run)

        return forward

    def _goes_straight(self) -> bool:
        """Whether the tail can be called at once, without the way there, on which nothing happens.

        Raises:
            FtkitError: As :meth:`_check`.
        """
        if not self._passed or self._hooks != [*chain.from_iterable(self._passed)]:
            return False
        for state in {skip.autocast for skip in self.cut.skips.values()}:
            self._check_autocast(tuple((kind, _autocast(kind)) for kind, _ in state), state)
        switches = self.guard.passes, self.model.training, *map(_MODE, self._all_modes)
        if self.learning or self._fine.get("all") != switches:
            for key in self.cut.skips:
                self._check_modes(key)
            self._fine["all"] = switches
        return True

    def _straight(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        run: _Run | None = getattr(self._here, "run", None)
        if run is None or not run.straight or self.cut.tail is None:
            return original(*args, **kwargs)
        (name, _), takes = self.cut.tail
        given, named = self._filled(takes, run)
        return self.model.get_submodule(name)(*given, **named)

    def _check(self, key: Key, skip: Skip, args: Any, kwargs: Any) -> None:
        """See that a skipped call is the call that it was.

        A mask may be there in one batch and None in the next, as its values decide.
        """
        simple = not kwargs and self._simple[key] == len(args) and all(isinstance(one, torch.Tensor) for one in args)
        if not simple:
            telling = {name: value for name, value in kwargs.items() if name not in _FOR_THE_LOSS}
            now = tree_map_only(torch.Tensor, lambda _: Slot(None, None), (args, telling))
            if _plain(now) != _plain(skip.args):
                raise FtkitError(
                    f"{key[0]} is called with other arguments than when its results were computed. Call the model in "
                    "the same way, or precompute() with it called in this way."
                )
        self._check_autocast(autocast_state(args if simple else (args, kwargs)), skip.autocast)
        self._check_modes(key)

    def _check_autocast(self, now: Any, then: Any) -> None:
        if now != then:
            raise FtkitError(
                "Autocast differs from what it was when the frozen part was computed. Call precompute() inside "
                "torch.autocast(...), with the same settings, or on the model that your framework has prepared."
            )

    def _check_modes(self, key: Key) -> None:
        switches = self.model.training, *map(_MODE, self._modes[key])
        if self._fine.get(key) == (self.guard.passes, switches):
            return
        # What is held is in eval mode when it runs, whatever it says now.
        parts = [part.training and not is_held(part) for part in self._parts[key]]
        modes = key, (self.model.training, *parts)
        if self.learning:
            self.cut.modes.add(modes)
        elif modes not in self.cut.modes:
            raise FtkitError(
                f"{key[0]} is in another mode (train or eval) than when its results were computed. ftkit.freeze() "
                "holds what it freezes in eval mode."
            )
        self._fine[key] = self.guard.passes, switches


def _around(model: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules whose own code leads to the skipped calls, and the parts of them without parameters."""
    names = {name[:at] for name, _ in cut.skips for at, one in enumerate(name) if one == "."}
    modules = [model, *map(model.get_submodule, sorted(names))]
    bare = [one for module in modules for one in module.children() if not any(True for _ in one.parameters())]
    return list(dict.fromkeys([*modules, *bare]))


def _alike(one: Any, other: Any) -> bool:
    return type(one) is type(other) and (one == other or repr(one) == repr(other) == "nan")


def _autocast(kind: str) -> str | None:
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def _structure(name: str, module: nn.Module) -> Any:
    """What a module consists of, beside its attributes and tensors; of the model, not what is hung around it."""
    return (
        type(module),
        list(children_of(module).items()),
        *((own_forward(module), has_foreign_hooks(module)) if name else ()),
    )


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
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.numel():
        return None
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = max(last // (_PLACES - 1), 1)
    first = tensor.detach().as_strided((1,), (1,)).view(torch.uint8).numpy()
    shape, strides = (min(_PLACES, last + 1), len(first)), (step * len(first), 1)
    return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)


def _lies_plainly(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and type(tensor) in (torch.Tensor, nn.Parameter)


def _is_tensor_or_none(value: Any) -> bool:
    return value is None or isinstance(value, torch.Tensor)


def _begins(value: Any, with_what: bytes) -> bool:
    """Whether a value is a batch of rows that all begin with some bytes."""
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.uint8 or value.dim() != 2 or not len(value):
        return False
    start = value[:, : len(with_what)].detach().cpu().numpy().tobytes()
    return start == with_what * len(value)


class _Idle:
    """What a player is in a pickled model."""

    def _begin(self, *_: Any) -> None:
        """Leave a call as it is."""

    def _end(self, *_: Any) -> None:
        """Leave what a call gives as it is."""


def _fills(tree: Any) -> bool:
    """Whether rows fill a part of the inputs; what stays in the batch is left to the caller."""
    return any(isinstance(one, Slot) and one != Slot(None, None) for one in tree_leaves(tree))


def _plain(tree: Any) -> list[Any]:
    nothing = Slot(None, None)
    return [
        nothing if one is None else one if isinstance(one, (Slot, bool, int, float, str)) else type(one)
        for one in tree_leaves(tree)
    ]


def _with(args: Any, kwargs: Any, values: Mapping[int, torch.Tensor]) -> Any:
    counter = iter(range(1 << 30))

    def put(tensor: torch.Tensor) -> torch.Tensor:
        return values.get(next(counter), tensor)

    return tree_map_only(torch.Tensor, put, (args, kwargs))
