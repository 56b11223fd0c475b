"""Samples that are known by their content: what is kept is looked up while the model is called with plain inputs."""

from __future__ import annotations

import contextlib
import functools
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from ftkit._models.contents import bytes_of
from ftkit._models.dryrun import turn
from ftkit._precompute.frontier import Cut, Slot
from ftkit._precompute.placeholders import Placeholder
from ftkit._precompute.record import is_recording
from ftkit._precompute.replay import FOR_THE_LOSS, Player, players_of
from ftkit._precompute.rows import Packing
from ftkit._precompute.samples import takes_of
from ftkit._precompute.spotcheck import Plain, own
from ftkit._precompute.stands import Stand, own_forward
from ftkit._precompute.store import KeyedFile
from ftkit._precompute.trace import PLAIN, autocast_state
from ftkit._torch import (
    FakeTensor,
    is_exporting,
    is_transformed,
    is_transforming,
    no_transforms,
    tree_leaves,
    tree_map_only,
    uncompiled,
)
from ftkit._wording import in_bytes, plural
from ftkit.errors import FtkitError

_NOTHING = Slot(None, None)
_ACTIVE: list[Lookup] = []


class Lookup:
    """Puts rows in the place of a model's inputs, by the bytes of each sample; what is new is computed and added.

    A call that is not like the one for which the frontier was looked for runs as before.

    Args:
        player: Who runs the model with rows.
        packing: How rows are kept.
        file: Where they are kept.
        most: The most bytes that the file may take.
        rows_of: Computes the rows of a call.
        call: One for which the frontier was looked for.
        tell: Is told how many samples there are, how many were computed, and in how many seconds.

    Attributes:
        found: How many samples were looked up.
        computed: How many were computed.
        seconds: How long that took.
        as_before: How many calls ran as before, by the reason.
    """

    def __init__(
        self,
        player: Player,
        packing: Packing,
        file: KeyedFile,
        most: float | None,
        rows_of: Callable[[Any, int], torch.Tensor],
        call: Any,
        tell: Callable[[int, int, float], None],
    ) -> None:
        self._player, self._packing, self.file, self._most, self._rows_of = player, packing, file, most, rows_of
        self.found, self.computed, self.seconds = 0, 0, 0.0
        self.as_before: dict[str, int] = {}
        self._tell = tell
        self._doubtful, self._full = True, False
        cut = player.cut
        self._inputs = [one for one in tree_leaves(cut.inputs) if isinstance(one, Slot)]
        self._like, self._call = skeleton(call), call
        self._forms = [_form(one) for one in _leaves(call)]
        self._takes = takes_of(player.model)
        self._fixed = [bytes(bytes_of(one)) for one in _leaves(call)]
        self._autocast = autocast_state(call)  # around the model, which may have its own inside
        self._forward = own_forward(player.model)
        self._inside: dict[Any, Any] = {}  # what autocast is inside of what others put around forward, by that around

    def __deepcopy__(self, _: dict[int, Any]) -> Lookup:
        return self

    def __reduce__(self) -> Any:
        return _Idle, ()

    def install(self) -> Callable[[], None]:
        """Begin with each call of the model; return what ends that."""
        hook = self._player.model.register_forward_pre_hook(self.begin, prepend=True, with_kwargs=True)
        _ACTIVE.append(self)

        def remove() -> None:
            hook.remove()
            _ACTIVE.remove(self)

        return remove

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Put rows in the place of inputs, before the model is called."""
        if is_exporting():
            return None
        if torch.compiler.is_compiling():
            return uncompiled(self.begin, module, args, kwargs)
        with no_transforms() if is_transforming() else contextlib.nullcontext():
            return self._begun(module, args, kwargs)

    def _begun(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if is_recording() or self._player.is_aside or module is not self._player.model:
            return None
        with turn():
            return self._looked_up(args, kwargs)

    def _looked_up(self, args: Any, kwargs: Any) -> Any:
        if self._player.learning or self._is_answered(args, kwargs):
            return None
        beside = {name: one for name, one in kwargs.items() if name in FOR_THE_LOSS - self._call[1].keys()}
        args, kwargs = self._arranged(args, {name: one for name, one in kwargs.items() if name not in beside})
        if why := self._unlike(args, kwargs):
            self.as_before[why] = self.as_before.get(why, 0) + 1
            return None
        keys, device = self._keys(args, kwargs)
        if self.file.missing(keys):
            self.file.refresh()  # another run may have them by now
        kept = self.file.find(keys)
        new = set(self.file.missing(keys))
        if kept is None and any(one._has(args, kwargs) for one in _ACTIVE if self._comes_before(one)):
            return None
        if kept is None:
            rows = self._computed(keys, (args, kwargs), new)
        else:
            rows = self._packing.unpack(torch.from_numpy(kept.copy()))
            if self._doubtful:
                self._recompute(rows, (args, kwargs))
            self.found += len(keys)
        rows = rows.to(device)
        call = args, kwargs
        self._player.note(Plain(rows, call, kept is None, lambda: self._keys(*call)[0] == keys))
        args, kwargs = put_rows(self._player.cut, args, kwargs, rows)
        return args, {**kwargs, **beside}

    def _arranged(self, args: Any, kwargs: Any) -> Any:
        """The arguments of a call as the one that was watched had them: by position or by name, without defaults."""
        if len(args) == len(self._call[0]) and list(kwargs) == list(self._call[1]):
            return args, kwargs
        try:
            bound, like = self._takes.bind(*args, **kwargs), self._takes.bind(*self._call[0], **self._call[1])
        except TypeError:
            return args, kwargs  # the model will say what is wrong with them
        defaults = {name: one.default for name, one in self._takes.parameters.items()}
        given = {name: one for name, one in bound.arguments.items() if one is not defaults[name]}
        if given.keys() != like.arguments.keys() or len(like.arguments) != len(self._call[0]) + len(self._call[1]):
            return args, kwargs
        names = list(self._takes.parameters)[: len(self._call[0])]
        return tuple(given[name] for name in names), {name: given[name] for name in self._call[1]}

    def _unlike(self, args: Any, kwargs: Any) -> str:
        """Why a call is not like the one that was watched; empty if it is."""
        model = self._player.model
        given = _leaves((args, kwargs))
        if not any(mode[1][0] == model.training for mode in self._player.cut.modes):
            return f"the frozen part gives something else in {'train' if model.training else 'eval'} mode"
        if skeleton((args, kwargs)) != self._like:
            return "other arguments"
        if any(map(is_transformed, given)):
            return "inputs that torch.func transforms"
        if any(one.requires_grad for one in given):
            return "inputs that want gradients"
        if any(
            isinstance(one, FakeTensor | Placeholder) or one.layout is not torch.strided or _overlaps(one)
            for one in given
        ):
            return "inputs without plain values"
        if why := self._other_autocast(args, kwargs):
            return why
        counts = set()
        for one, slot, fixed in zip(given, self._inputs, self._fixed, strict=True):
            layout = slot.layout
            if layout is None:
                continue
            if layout.dim is None and bytes_of(one) != fixed:
                return "other values of an input that all samples share"
            if one.dtype != layout.dtype or one.dim() != len(layout.shape):
                return "inputs of another type"
            sides = [side for at, side in enumerate(one.shape) if at != layout.dim]
            if sides != [side for at, side in enumerate(layout.shape) if at != layout.dim]:
                return "samples of another shape"
            if layout.dim is not None:
                counts.add(one.shape[layout.dim] / layout.shape[layout.dim])
        return "" if len(counts) == 1 and counts.pop() >= 1 else "batches that are not made of samples"

    def _other_autocast(self, args: Any, kwargs: Any) -> str:
        """Whether autocast is another one where the model's own forward begins: Accelerate hangs one around that."""
        model, state = self._player.model, autocast_state((args, kwargs))
        if own_forward(model) is not self._forward:
            top = vars(model)["forward"]
            if isinstance(top, Stand):
                return "another forward() around the model's own: call precompute() after what puts it there"
            if (top, state) not in self._inside:
                self._player.tell_autocast(functools.partial(self._inside.__setitem__, (top, state)))
                return "the first one with another forward() around the model's own"
            state = self._inside[top, state]
        return "" if state == self._autocast else "another autocast: call precompute() in the same one"

    def _keys(self, args: Any, kwargs: Any) -> tuple[list[bytes], torch.device]:
        given = _leaves((args, kwargs))
        tensors = [
            slot.layout.parts(one.detach().resolve_conj().resolve_neg()).cpu().contiguous()
            for one, slot in zip(given, self._inputs, strict=True)
            if slot.layout is not None and slot.layout.dim is not None
        ]
        parts = [
            np.frombuffer(bytes_of(one), np.uint8).reshape(len(one), math.prod(one.shape[1:]) * one.itemsize)
            for one in tensors
        ]
        seed = self._other_form(given)
        if len(parts) == 1:
            return [xxhash.xxh3_128_digest(one.data, seed) for one in parts[0]], given[0].device
        keys = []
        for sample in zip(*parts, strict=True):
            hasher = xxhash.xxh3_128(seed=seed)
            for part in sample:
                hasher.update(part)
            keys.append(hasher.digest())
        return keys, given[0].device

    def _other_form(self, given: list[torch.Tensor]) -> int:
        """A number for how inputs lie in memory; 0 if they do as those of the call that was watched.

        Kernels round differently then, and code can ask for it.
        """
        forms = [_form(one) for one in given]
        thens = [
            (tuple(at for at in then if at in now), whole)
            for (now, _), (then, whole) in zip(forms, self._forms, strict=True)
        ]
        return 0 if forms == thens else xxhash.xxh32_intdigest(repr(forms).encode())

    def _computed(self, keys: list[bytes], call: Any, new: set[int]) -> torch.Tensor:
        begin = time.perf_counter()
        self._player.guard.check(thoroughly=True)  # others will use these rows
        rows = self._rows_of(own(call), len(keys))
        kept = self._packing.pack(rows)
        if not self._full and (left := self.file.add(keys, kept.numpy(), self._most)):
            self._full = True
            warnings.warn(
                f"No room in {self.file.path} for {plural(left, 'sample')} more, at {in_bytes(self.file.nbytes)}: what "
                "is new from here on is computed each time. Allow more with max_bytes, or make room on the disk.",
                stacklevel=2,
            )
        self.computed += len(new)
        self.found += len(keys) - len(new)
        self.seconds += time.perf_counter() - begin
        self._tell(len(self.file), self.computed, self.seconds)
        return self._packing.unpack(kept)

    def _recompute(self, rows: torch.Tensor, call: Any) -> None:
        """Compute a batch that was kept by an earlier run once more, and compare.

        Raises:
            FtkitError: It differs, or the frozen part has changed.
        """
        self._player.guard.check(thoroughly=True)  # it says more precisely what has changed
        self._doubtful = False
        again = self._rows_of(own(call), len(rows))
        if not all(self._packing.near(one, other) for one, other in zip(rows, again, strict=True)):
            raise FtkitError(
                f"What the model gives for a sample differs from what {self.file.path} has for it: what it does has "
                "changed in a way that can't be seen from outside. Delete the file, and call precompute() again; if "
                "that fails too, the model can't be computed once."
            )

    def _is_answered(self, args: Any, kwargs: Any) -> bool:
        """Whether rows are there for a call, its own or those of another block around it."""
        players, given = players_of(self._player.model), _leaves((args, kwargs))
        others = (one for one in players if one is not self._player)
        return any(one.answers for one in others) or any(one.is_row(value) for one in players for value in given)

    def _comes_before(self, other: Lookup) -> bool:
        """Whether it gets the calls of the model before another one does, whose block is around its own."""
        same = other._player.model is self._player.model and not other._player.is_aside
        return same and _ACTIVE.index(other) < _ACTIVE.index(self)

    def _has(self, args: Any, kwargs: Any) -> bool:
        """Whether all samples of a call are there."""
        args, kwargs = self._arranged(args, kwargs)
        if self._unlike(args, kwargs):
            return False
        self.file.refresh()
        return not self.file.missing(self._keys(args, kwargs)[0])


def put_rows(cut: Cut, args: Any, kwargs: Any, rows: torch.Tensor) -> Any:
    """The arguments of a call, with rows in the place of the first one on which the frozen part depends."""
    where = _first_row(cut)
    if isinstance(where, int):
        return tuple(rows if at == where else one for at, one in enumerate(args)), kwargs
    return args, {name: rows if name == where else one for name, one in kwargs.items()}


class _Idle:
    """What a lookup is in a pickled model: also for its own method, as cloudpickle keeps that."""

    def begin(self, *_: Any) -> None:
        """Leave a call as it is."""

    _begun = begin


def _form(tensor: torch.Tensor) -> tuple[tuple[int, ...], bool]:
    """The dimensions of a tensor as they lie in memory, from the outermost on, and whether they do without gaps."""
    strides, sides = tensor.stride(), [at for at, side in enumerate(tensor.shape) if side > 1]
    return tuple(sorted(sides, key=lambda at: -strides[at])), tensor.is_contiguous()


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements share their memory, as those of an expanded tensor."""
    return 0 in tensor.stride() and any(
        side > 1 and not step for side, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _leaves(call: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(call) if isinstance(one, torch.Tensor)]


def skeleton(call: Any) -> str | None:
    """The arguments of a call without the values of tensors; None if there is anything but plain values beside them."""
    args, kwargs = call
    if all(isinstance(one, (torch.Tensor, *PLAIN)) for one in (*args, *kwargs.values())):  # in one step, as most are
        bare = {name: ... if isinstance(one, torch.Tensor) else one for name, one in kwargs.items()}
        return repr((tuple(... if isinstance(one, torch.Tensor) else one for one in args), bare))
    if not all(isinstance(one, (torch.Tensor, *PLAIN)) for one in tree_leaves(call)):
        return None
    return repr(tree_map_only(torch.Tensor, lambda _: ..., call))


def _first_row(cut: Cut) -> int | str:
    """The argument in the place of which a row goes."""

    def takes(tree: Any) -> bool:
        slots = [one for one in tree_leaves(tree) if isinstance(one, Slot)]
        return any(one != _NOTHING and one.layout is not None and one.layout.dim is not None for one in slots)

    args, kwargs = cut.inputs
    for at, one in enumerate(args):
        if takes(one):
            return at
    name: str = next(name for name, one in kwargs.items() if takes(one))
    return name
