"""Runs of a model in which what is frozen does not run; and before, the run that notes what passes over."""

from __future__ import annotations

import functools
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from ftkit._files import digest
from ftkit._freezing.holding import is_held
from ftkit._models.contents import bytes_of
from ftkit._precompute.frontier import Cut, Skip, Slot, near
from ftkit._precompute.placeholders import Placeholder, allowed
from ftkit._precompute.trace import Key, Stand, autocast_state, has_foreign_hooks, install, instead
from ftkit._torch import (
    buffers_of,
    children_of,
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
_FOR_THE_LOSS: Final = frozenset({"num_items_in_batch"})  # transformers' Trainer has it passed to every layer
_NUMBERS: Final = frozenset({int, float})
_MODE: Final = operator.itemgetter("training")
_TRAINS: Final = operator.attrgetter("requires_grad")
_PLAIN_VALUES: Final = frozenset({bool, int, float, str, type(None)})
MAGIC: Final = b"ftkitrow"
"""Bytes at the start of each row, by which it is known."""
TAG: Final = 16
"""Bytes at the start of each row, with those, that say which cut it belongs to."""


class Enough(BaseException):
    """Ends a forward pass once all that is kept has been seen."""


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
        self._plain = [(named[id(part)], part) for part in inner if named[id(part)] not in cut.moody]
        self._whole = {named[id(part)]: part for several in parts_of(model, cut).values() for part in several}
        self.settings = {name: _settings(part) for name, part in self._plain}
        self._structure = {name: _structure(part) for name, part in self._whole.items()}
        self.built = {
            name: f"{type(part).__module__}.{type(part).__qualname__}" for name, part in sorted(self._whole.items())
        }
        self.digests = self._digests(self._names)
        self._seen = self._look()
        self._quiet: Any = None
        self.passes = 0
        """How often it was looked closely."""
        watched = [*self._whole.values(), *(part for name, part in self._plain if name not in self._whole)]
        owners = [*self._whole.values(), *(module for _, module, _ in self._owners)]
        self._attributes = [vars(part) for part in watched]
        self._tables: list[dict[str, Any]] = [
            table for part in dict.fromkeys(owners) for table in (parameters_of(part), buffers_of(part))
        ] + [children_of(part) for part in self._whole.values()]  # fmt: skip
        self._hooks = [table for part in self._whole.values() for table in (pre_hooks_of(part), hooks_of(part))]
        self._tensors: list[torch.Tensor] = []
        self._bytes: list[Any] = []

    def _glance(self) -> Any:
        return (
            [*chain.from_iterable(map(dict.values, self._attributes))],
            [*chain.from_iterable(map(dict.values, self._tables))],
            [*chain.from_iterable(self._hooks)],
            versions_of(self._tensors),
            [*map(torch.Tensor.data_ptr, self._tensors)],
            any(map(_TRAINS, self._tensors)),
            np.concatenate(self._bytes).tobytes() if self._bytes else b"",
        )

    def _changed(self) -> bool:
        if self._quiet is None:
            return True
        try:  # an attribute that is another object may refuse to be compared
            return bool(self._glance() != self._quiet)
        except (RuntimeError, ValueError, TypeError):
            return True

    def _remember(self) -> None:
        state = (_tensor_of(module, key) for _, module, key in self._owners)
        tensors = {id(one): one for one in state if one is not None and not one.is_inference()}
        self._tensors = [one for one in tensors.values() if one.layout is torch.strided]
        if len({*map(id, self._tensors)}) < len(tensors):
            self._quiet = None  # look closely each time
            return
        self._bytes = [bytes_ for one in self._tensors if (bytes_ := _first_bytes(one)) is not None]
        self._quiet = self._glance()

    def _look(self) -> dict[str, Any]:
        found = {}
        for name, module, key in self._owners:
            one = _tensor_of(module, key)
            some_bytes = None if one is None else _first_bytes(one)
            found[name] = one if one is None else (
                id(one), version_of(one), one.requires_grad, one.data_ptr() if one.layout is torch.strided else 0,
                None if some_bytes is None else some_bytes.tobytes(),
            )  # fmt: skip
        return found

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
        if not thoroughly and not self._changed():
            return
        self.passes += 1
        for name, part in self._plain:
            then, now = self.settings[name], _settings(part)
            names = [one for one in {**then, **now} if one in then or not one.startswith("_")]
            if what := next((one for one in names if then.get(one) != now.get(one)), ""):
                raise FtkitError(
                    f"{name or 'the model'}.{what} was {then.get(what)!r} when the frozen part was computed, and is "
                    f"{now.get(what)!r} now. Call precompute() again, and use its loader from here on."
                )
        for name, part in self._whole.items():
            if _structure(part) != self._structure[name]:
                raise FtkitError(
                    f"{name} has other submodules, hooks, or another forward() than when the frozen part was computed. "
                    "Call precompute() again, and use its loader from here on."
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
    count: Counter[str] = field(default_factory=Counter)


def record(model: nn.Module, cut: Cut, call: Any, *, to_the_end: bool = False) -> tuple[dict[int, torch.Tensor], Any]:
    """Run a model, and return the tensors that pass over, by their number, and the output if it ran to the end."""
    wanted = {point: number for number, point in enumerate(cut.points)}
    found: dict[int, torch.Tensor] = {}
    count: Counter[str] = Counter()
    by_module = {id(module): name for name, module in model.named_modules()}
    names = {key[0] for kind, key, _ in cut.points if kind != "input"}

    def note(tree: Any, kind: str, key: Key) -> None:
        for at, tensor in enumerate(one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)):
            if (number := wanted.get((kind, key, at))) is not None:
                found[number] = tensor.detach().clone()
        if len(found) == len(wanted) and not to_the_end:
            raise Enough

    def through(name: str) -> Callable[..., Any]:
        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            key = name, count[name]
            count[name] += 1
            note((args, kwargs), "arg", key)
            output = original(*args, **kwargs)
            note(output, "out", key)
            return output

        return forward

    output = None
    with instead({one: through(name) for one, name in by_module.items() if name in names}, model):
        try:
            note(call, "input", ("", 0))
            output = model(*call[0], **call[1])
        except Enough:
            pass
    if missing := [cut.points[number] for number in wanted.values() if number not in found]:
        raise FtkitError(f"The forward pass did not come by {some([p[1][0] for p in missing], 3)} for these samples.")
    return found, output


_ACTIVE: list[Player] = []


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
        self.row_bytes = TAG
        for number in cut.per_sample:
            self.offsets[number] = self.row_bytes
            self.row_bytes += -(-cut.layouts[number].nbytes // ALIGN) * ALIGN
        self._parts = parts_of(model, cut)
        self._modes = {key: [vars(part) for part in parts] for key, parts in self._parts.items()}
        self._fine: dict[Key, Any] = {}  # the modes in which a call was last seen to be right
        self._simple = {
            key: len(skip.args[0]) if not skip.args[1] and all(isinstance(one, Slot) for one in skip.args[0]) else -1
            for key, skip in cut.skips.items()
        }
        self._here = threading.local()
        self.learning = False
        self._undo: list[Callable[[], object]] = []
        self._entered = 0

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
        return rows

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
        self.enter()

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Let the model take rows."""
        self._entered += 1
        if self._entered > 1:
            return
        self.guard.check(thoroughly=True)
        before = self.model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        after = self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True)
        named = dict(self.model.named_modules())
        names = {key[0] for key in self.cut.skips} | {key[0] for kind, key, _ in self.cut.points if kind == "arg"}
        remove = install({id(named[name]): self._through(name) for name in names}, self.model)
        _ACTIVE.append(self)
        self._undo = [remove, before.remove, after.remove, functools.partial(_ACTIVE.remove, self)]

    def leave(self) -> None:
        """Take what enter() put into the model away."""
        self._entered -= 1
        if not self._entered:
            for step in self._undo:
                step()
            self._undo = []

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
            return None
        if module is not self.model:
            raise FtkitError("A copy of the model was called with kept rows: only the model itself takes them.")
        if len(leaves) > 1:
            raise FtkitError("The model was called with several batches of kept rows: one is expected.")
        if not self.learning:
            self.guard.check()
        rows = leaves[0]
        values = self._decode(rows)
        run = _Run(len(rows), rows.device, values)
        call = self._call(args, kwargs, run)
        self._here.run = run
        allowed().__enter__()
        return call

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

    def _end(self, _: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if getattr(self._here, "run", None) is None:
            return
        self._here.run = None
        allowed().__exit__()
        if any(isinstance(one, Placeholder) for one in tree_leaves(output)):
            raise FtkitError(
                "The model gives back a value of its frozen part that was not kept. It takes another way through its "
                "forward pass than when its frontier was looked for: call precompute() with it in this state."
            )

    def _through(self, name: str) -> Callable[..., Any]:
        replaced: dict[Key, list[tuple[int, int]]] = {key: [] for kind, key, _ in self.cut.points if kind == "arg"}
        for number, (kind, key, at) in enumerate(self.cut.points):
            if kind == "arg":
                replaced[key].append((at, number))

        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            run: _Run | None = getattr(self._here, "run", None)
            if run is None:
                return original(*args, **kwargs)
            key = name, run.count[name]
            run.count[name] += 1
            if key in replaced:
                args, kwargs = _with(args, kwargs, {at: run.values[number] for at, number in replaced[key]})
            skip = self.cut.skips.get(key)
            if skip is None:
                return original(*args, **kwargs)
            self._check(key, skip, args, kwargs)
            return self._filled(skip.output, run)

        return forward

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
        if autocast_state(args if simple else (args, kwargs)) != skip.autocast:
            raise FtkitError(
                "Autocast differs from what it was when the frozen part was computed. Call precompute() inside "
                "torch.autocast(...), with the same settings, or on the model that your framework has prepared."
            )
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


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain values among a module's attributes: rates, sizes, switches. Its mode is looked at elsewhere.

    Of names with an underscore only numbers count: frameworks mark with the others what they have prepared.
    """
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and type(value) in (_NUMBERS if name.startswith("_") else _PLAIN_VALUES)
    }


def _structure(module: nn.Module) -> Any:
    """What a module consists of, beside its attributes and tensors."""
    forward = vars(module).get("forward")
    while isinstance(forward, Stand):
        forward = forward.before
    return type(module), list(children_of(module).items()), forward, has_foreign_hooks(module)


def _tensor_of(module: nn.Module, key: str) -> torch.Tensor | None:
    one: torch.Tensor | None = parameters_of(module).get(key)
    return buffers_of(module).get(key) if one is None else one


def _first_bytes(tensor: torch.Tensor) -> Any:
    """Some of a tensor's memory, as it changes; None for one that is not in the memory of the CPU."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or not tensor.numel():
        return None
    if type(tensor) not in (torch.Tensor, nn.Parameter):
        return None
    return tensor.detach().as_strided((1,), (1,)).view(torch.uint8).numpy()


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
