"""Now and then, some of what is kept is computed anew and compared, whatever else says that it is right."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable
from typing import Any, Final

import torch
from torch import nn

from ftkit._precompute.frontier import Cut
from ftkit._precompute.record import record, undisturbed
from ftkit._wording import some
from ftkit.errors import FtkitError

SHARE: Final = 0.05
"""The most of the time of a training that checks take, after the first one of each kind."""
_FEW: Final = 4
_KINDS: Final = 16


class SpotChecks:
    """When to compute a batch anew, and whether it is still what is kept.

    The first batch of a kind (its size, the mode of the model, the decisions that Python took) is always computed anew,
    as a whole. Later, a few samples at random moments, so that all checks together take at most ``SHARE`` of the time
    since the first one, and the less, the more were right. So whatever makes rows wrong is met: at first at the latest
    after 30 times as long as a check takes, after a hundred checks ten times as late.

    Args:
        model: The model.
        cut: Its frontier.
        inputs: Gives the positional and keyword arguments of the model for some samples, by their numbers.
        alike: Tells whether a value that was computed anew is the one that is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        cut: Cut,
        inputs: Callable[[list[int]], Any],
        alike: Callable[[torch.Tensor, torch.Tensor], bool],
    ) -> None:
        self._model, self._cut, self._inputs, self._alike = model, cut, inputs, alike
        self._kinds: set[Hashable] = set()
        self._next = 0.0
        self._random = random.Random()  # noqa: S311  (its own, so that no one else's numbers change)
        self.done = 0
        """How many checks there were."""

    def due(self, kind: Hashable, samples: int) -> list[int]:
        """The places in a batch of the samples that are to be computed now."""
        if kind not in self._kinds and len(self._kinds) < _KINDS:
            self._kinds.add(kind)
            return list(range(samples))
        if time.monotonic() < self._next:
            return []
        return self._random.sample(range(samples), min(samples, _FEW))

    def compare(self, places: list[int], numbers: list[int], values: dict[int, torch.Tensor]) -> None:
        """Compute some samples of a batch anew.

        Args:
            places: Where they are in the batch.
            numbers: The numbers that the samples of the whole batch have in the data set.
            values: The kept tensors of the whole batch.

        Raises:
            FtkitError: They differ from what is kept.
        """
        begin = time.monotonic()
        grad = torch.is_grad_enabled()

        def computed() -> dict[int, torch.Tensor]:
            with torch.set_grad_enabled(grad):
                return record(self._model, self._cut, self._inputs([numbers[at] for at in places]))[0]

        found = undisturbed(self._model, self._cut, computed)
        for number, point in enumerate(self._cut.points):
            self._compare(number, point, found[number], values[number], [numbers[at] for at in places], places)
        self.done += 1
        now = time.monotonic()
        self._next = now + (now - begin) / SHARE * math.sqrt(self.done) * self._random.uniform(1, 1.5)

    def _compare(
        self,
        number: int,
        point: Any,
        found: torch.Tensor,
        kept: torch.Tensor,
        numbers: list[int],
        places: list[int],
    ) -> None:
        layout = self._cut.layouts[number]
        ones, others = layout.parts(found), layout.parts(kept)
        if layout.dim is not None:
            others = others[places]
        others = others.to(ones.device)
        if self._alike(ones, others):
            return
        wrong = [at for at, (one, other) in enumerate(zip(ones, others, strict=False)) if not self._alike(one, other)]
        what = f"into {point[1][0]}" if point[0] == "arg" else f"out of {point[1][0]}" if point[0] == "out" else "input"
        by = ""
        if ones.shape == others.shape and ones.is_floating_point():
            by = f" by up to {float((ones.double() - others.double()).abs().nan_to_num().max()):.3g}"
        whose = f"for {some([f'sample {numbers[at]}' for at in wrong or [0]], 3)}" if layout.dim is not None else ""
        raise FtkitError(
            f"What passes {what} was computed anew {whose} and differs{by} from what is kept. The model or the data "
            "set has changed in a way that can't be seen from outside, or the frozen part's results depend on more "
            "than the sample. Call precompute() again; if that does not help, train without it."
        )
