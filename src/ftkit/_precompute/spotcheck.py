"""Now and then, some of what is kept is computed anew and compared, whatever else says that it is right."""

from __future__ import annotations

import contextlib
import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from ftkit._precompute.frontier import Cut
from ftkit._precompute.heads import MAGIC, are_signed, begins, numbers_of, of_one_source, ways_of
from ftkit._precompute.record import record, undisturbed
from ftkit._precompute.trace import has_foreign_hooks
from ftkit._tensors.bytes import DTYPES
from ftkit._torch import tree_map_only, version_of
from ftkit._wording import plural, some
from ftkit.errors import FtkitError

SHARE: Final = 0.05
"""The most of the time of a training that checks take, after the first one of each kind."""
_FEW: Final = 4


@dataclass(frozen=True)
class Plain:
    """The batch in whose place some rows are.

    Attributes:
        rows: The rows.
        call: What the model was called with.
        is_new: Whether the rows were computed from that very call, so that they tell nothing about others.
        is_same: Tells whether the call still has the values that it had.
    """

    rows: torch.Tensor
    call: Any
    is_new: bool
    is_same: Callable[[], bool]


class SpotChecks:
    """When to compute a batch anew, and whether it is still what is kept.

    The first batch of a kind (its size, the mode of the model, whether gradients are recorded, the decisions that
    Python takes on it, and those that it took when a row was computed) is always computed anew, as a whole. Later,
    at random moments, the whole batch, or a few samples where nothing suggests that they depend on the others, so that
    all checks together take at most ``SHARE`` of the time since the first one, and the less, the more were right. So
    whatever makes rows wrong is met: at first at the latest after 30 times as long as a check takes, after a hundred
    checks ten times as late; and where the block ends, unless nothing ran since the last check.

    Args:
        model: The model.
        cut: Its frontier.
        inputs: Gives the positional and keyword arguments of the model for some samples, by their numbers; None where
            each batch comes with them.
        alike: Tells whether a value that was computed anew is the one that is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        cut: Cut,
        inputs: Callable[[list[int]], Any] | None,
        alike: Callable[[torch.Tensor, torch.Tensor], bool],
    ) -> None:
        self.model, self.cut, self.inputs, self.alike = model, cut, inputs, alike
        self._kinds: set[int] = set()  # hashes, as there may be many
        self._next = 0.0
        self._batch: tuple[Any, ...] | None = None  # the last one for which something was kept, until a check
        self._random = random.Random()  # noqa: S311  (its own, so that no one else's numbers change)
        self.done = 0
        """How many checks there were."""
        self.told = False
        """Whether it was said that there can be none."""

    def due(
        self,
        rows: torch.Tensor,
        decode: Callable[[torch.Tensor], dict[int, torch.Tensor]],
        plain: Plain | None,
        state: tuple[int, ...],
        decisions: tuple[bool, ...] | None,
    ) -> Check | None:
        """The check of a batch that is to be made now, in the state in which torch and the model are.

        Args:
            rows: What is kept for it.
            decode: Makes the kept tensors of rows.
            plain: The batch itself, if it is at hand.
            state: The forward of the model, and the modes of the modules on whose code the frozen part's inputs depend.
            decisions: Those that Python took on it; None if it takes none, or has not yet.
        """
        is_new = plain is not None and plain.is_new
        if not is_new:
            self._batch = rows, decode, plain, version_of(rows)
        count = rows.shape[0]
        if is_new and torch.is_grad_enabled() and self.model.training and count > 1:
            return None  # it would be computed once more as it has just been; but for one, the shape may be another
        kind = count, torch.is_grad_enabled(), state, is_new
        if decisions is None or is_new:
            kinds = {hash(kind)}
        else:
            kinds = {hash((*kind, decisions, way)) for way in ways_of(rows)}
        known = kinds <= self._kinds
        if known and time.monotonic() < self._next:
            return None
        return self._check(rows, decode, plain, kinds, few=known)

    def last(self) -> Check | None:
        """The check of the last batch, where a block ends, in the state in which its rows were computed."""
        batch, self._batch = self._batch, None
        if batch is None:
            return None
        rows, decode, plain, version = batch
        are_rows = version == version_of(rows) and begins(rows, MAGIC) and are_signed(rows)
        if not are_rows or (plain is not None and not plain.is_same()):
            return None  # they were the caller's meanwhile
        check = self._check(rows, decode, plain, set(), few=True)
        return None if check is None else check.as_computed()

    def _check(
        self,
        rows: torch.Tensor,
        decode: Callable[[torch.Tensor], dict[int, torch.Tensor]],
        plain: Plain | None,
        kinds: set[int],
        *,
        few: bool,
    ) -> Check | None:
        count = rows.shape[0]
        whole = list(range(count)) if plain is not None else of_one_source(rows)
        if len(whole) < count and self.cut.decides:
            return None
        if few and plain is None and not self.cut.decides and len(whole) > _FEW:
            whole = self._random.sample(whole, _FEW)
        return Check(self, rows, decode, whole, None if plain is None else plain.call, kinds)

    def begin(self) -> None:
        """Note that a check is made, after that of which nothing is left to be checked."""
        self._batch = None

    def note(self, kinds: set[int], seconds: float) -> None:
        """Note a check of a batch of some kinds that was right, and how long it took."""
        self._kinds |= kinds
        self.done += 1
        self._next = time.monotonic() + seconds / SHARE * math.sqrt(self.done) * self._random.uniform(1, 1.5)


class Check:
    """One check: some of a batch is to be computed anew, as it would be where this was made.

    Args:
        spots: Whose check it is.
        rows: What is kept for the batch.
        decode: Makes the kept tensors of rows.
        places: Where in the batch the samples are.
        call: What the model was called with, for the whole batch, if that is at hand.
        kinds: Those of the batch.
    """

    def __init__(
        self,
        spots: SpotChecks,
        rows: torch.Tensor,
        decode: Callable[[torch.Tensor], dict[int, torch.Tensor]],
        places: list[int],
        call: Any,
        kinds: set[int],
    ) -> None:
        self._spots, self._rows, self._decode, self._places = spots, rows, decode, places
        self._call, self._kinds = call, kinds
        self._grad = torch.is_grad_enabled()
        self._modes: list[tuple[nn.Module, bool]] = []
        self._trains = False
        self._autocast: list[tuple[str, bool, torch.dtype]] = []

    def kept(self) -> Check:
        """The same for later, when modes, autocast and the batch may be others."""
        self._modes = [(one, one.training) for one in self._spots.model.modules()]
        kinds = {"cpu", self._rows.device.type}
        self._autocast = [(one, torch.is_autocast_enabled(one), torch.get_autocast_dtype(one)) for one in kinds]
        self._call = own(self._call)
        return self

    def as_computed(self) -> Check | None:
        """The same in train mode, and in the autocast that the frozen part needs; None if it needs several."""
        states = {skip.autocast for skip in self._spots.cut.skips.values()}
        if len(states) > 1:
            return None
        self._grad = True
        self._trains = True
        wanted = [(kind, dtype) for state in states for kind, dtype in state]
        self._autocast = [
            (kind, dtype is not None, torch.get_autocast_dtype(kind) if dtype is None else DTYPES[dtype[6:]])
            for kind, dtype in wanted
        ]
        return self

    def make(self) -> FtkitError | None:
        """Compute anew and compare; return what is wrong, to be raised if nothing tells more precisely."""
        spots = self._spots
        # Hooks that someone else has put on the model would see the samples twice.
        if hooked := [name or "the model" for name, one in spots.model.named_modules() if has_foreign_hooks(one)]:
            if not spots.told:
                spots.told = True
                warnings.warn(
                    f"There are hooks on {some(hooked, 3)}, which would see batches twice. So no batches are computed "
                    "anew now and then, to see whether what is kept is still right. Remove the hooks if you don't "
                    "need them.",
                    stacklevel=2,
                )
            return None
        spots.begin()
        begin, values = time.monotonic(), self._decode(self._rows)
        try:
            found = undisturbed(spots.model, spots.cut, self._computed)
            for number in found:
                self._compare(number, found[number], values[number])
        except FtkitError as error:
            return error
        spots.note(self._kinds, time.monotonic() - begin)
        return None

    def _computed(self) -> dict[int, torch.Tensor]:
        with contextlib.ExitStack() as then:
            then.enter_context(torch.set_grad_enabled(self._grad))
            for kind, enabled, dtype in self._autocast:
                then.enter_context(torch.autocast(kind, dtype, enabled))
            if self._trains:
                self._spots.model.train()  # which may be a method of its own, that holds some in eval mode
            for module, mode in self._modes:
                module.training = mode
            call = own(self._call) if self._spots.inputs is None else self._spots.inputs(self._numbers())
            return record(self._spots.model, self._spots.cut, call)[0]

    def _numbers(self) -> list[int]:
        numbers = numbers_of(self._rows)
        return [numbers[at] for at in self._places]

    def _compare(self, number: int, found: torch.Tensor, kept: torch.Tensor) -> None:
        alike, point, layout = self._spots.alike, self._spots.cut.points[number], self._spots.cut.layouts[number]
        what = f"into {point[1][0]}" if point[0] == "arg" else f"out of {point[1][0]}" if point[0] == "out" else "input"
        if list(found.shape) != (expected := layout.shape_of(count := len(self._places))):
            raise FtkitError(
                f"What passes {what} has the shape {list(found.shape)} for a batch of {plural(count, 'sample')}, in "
                f"the place of {expected}, as larger ones have it. If squeeze() drops the batch, name a dimension in "
                "it, or set drop_last in the loader."
            )
        ones, others = layout.parts(found), layout.parts(kept)
        if layout.dim is not None:
            others = others[self._places]
        others = others.to(ones.device)
        if alike(ones, others):
            return
        wrong = [at for at, (one, other) in enumerate(zip(ones, others, strict=False)) if not alike(one, other)]
        by = ""
        if ones.shape == others.shape and ones.is_floating_point():
            by = f" by up to {float((ones.double() - others.double()).abs().nan_to_num().max()):.3g}"
        whose = ""
        if layout.dim is not None:
            numbers, where = (self._places, " of the batch") if self._call is not None else (self._numbers(), "")
            whose = f" for {some([f'sample {numbers[at]}' for at in wrong or [0]], 3)}{where}"
        raise FtkitError(
            f"What passes {what} was computed anew{whose} and differs{by} from what is kept. The model or the data "
            "set has changed in a way that can't be seen from outside, or the frozen part's results depend on more "
            "than the sample. Call precompute() again; if that does not help, train without it."
        )


def own(call: Any) -> Any:
    """A call with tensors of its own, which the model may write to, or the caller meanwhile."""
    return tree_map_only(torch.Tensor, _apart, call)


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that lies in memory as the tensor does, with gaps, too."""
    copy = tensor.clone()
    if copy.stride() == tensor.stride() or 0 in tensor.stride():
        return copy
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
