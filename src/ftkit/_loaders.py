"""A DataLoader that can stop after any batch and resume with the next, in another process, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ftkit._arguments import came, entries_of, whole_number
from ftkit._models.dryrun import alone
from ftkit._reports import to_text
from ftkit._torch import IndexedLoader
from ftkit._wording import plural
from ftkit.errors import CheckpointError, FtkitError

T_co = TypeVar("T_co", covariant=True)

_COUNTS: Final = frozenset({"batch_size", "num_workers", "prefetch_factor"})


class ResumableLoader(IndexedLoader[T_co]):
    """A ``DataLoader`` whose position within an epoch can be saved in a checkpoint.

    It takes the same arguments and yields the same batches; their order depends only on a seed drawn at
    the start of each epoch, whatever the sampler. Pass it as ``sampler=`` to :func:`ftkit.save_checkpoint`
    after a step, and to :func:`ftkit.load_checkpoint`: it resumes with the batch after that step, and skips
    completed batches without loading them. If it was saved in the loop's body after the last batch, the epoch is
    still in progress: on resume it yields no more batches, and whatever your loop does after an epoch is run.

    With worker processes, the random numbers that a dataset draws depend only on the epoch and the batch, so
    they are the same after a resume, with any number of workers. Without workers, they come from the global
    generators, which the checkpoint saves.

    Iterate over the loader itself: ``Accelerator.prepare`` replaces it with a plain one that loses its position.

    Args:
        *args: As for ``torch.utils.data.DataLoader``.
        **options: As for ``torch.utils.data.DataLoader``. The dataset must be map-style (indexable).

    Raises:
        FtkitError: The dataset is an ``IterableDataset``, whose position only it can know.

    Example:
        >>> from ftkit import ResumableLoader
        >>> loader = ResumableLoader(list(range(8)), batch_size=2, shuffle=True)
        >>> done = []
        >>> for batch in loader:
        ...     done += batch.tolist()
        ...     if len(done) == 4:
        ...         state = loader.state_dict()
        ...         break
        >>> again = ResumableLoader(list(range(8)), batch_size=2, shuffle=True)
        >>> again.load_state_dict(state)
        >>> sorted(done + [int(number) for batch in again for number in batch])
        [0, 1, 2, 3, 4, 5, 6, 7]
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._seed: int | None = None  # of the epoch in progress
        self._position = 0  # batches yielded in it
        self._resuming = False
        self._unused = True  # since it was made
        if len(args) == 2 and "batch_size" not in options:
            options["batch_size"] = args[1]
            args = args[:1]
        for name in _COUNTS & options.keys():
            if options[name] is not None:  # one of NumPy's is a number too
                options[name] = whole_number(name, options[name], least=0)
        try:
            super().__init__(*args, **options)
        except ValueError as error:
            raise FtkitError(f"torch can't build a DataLoader from these arguments: {error}.") from error
        dataset: object = self.dataset
        if isinstance(dataset, str) or not hasattr(dataset, "__getitem__"):
            raise FtkitError(f"The dataset must be map-style (indexable), such as a list, not {came(dataset)}.")
        if isinstance(self.dataset, IterableDataset):
            raise FtkitError(
                "A ResumableLoader needs a map-style dataset; only an IterableDataset itself knows its position. Give "
                "it state_dict() and load_state_dict(), and pass the dataset as sampler= to save_checkpoint."
            )

    def __repr__(self) -> str:
        length = _length(self)
        count = "? batches" if length is None else plural(length, "batch", "batches")
        place = f"{self._position:,} of {count} done" if self.mid_epoch else f"{count}, none done"
        return to_text([f"<ResumableLoader over a {type(self.dataset).__name__}: {place}>"])

    @property
    def mid_epoch(self) -> bool:
        """Whether an epoch is in progress."""
        return self._seed is not None

    def state_dict(self) -> dict[str, Any]:
        """Return the position within the epoch, and what it is a position in."""
        generator = None if self.generator is None else self.generator.get_state()
        return {"seed": self._seed, "position": self._position, "generator": generator, **self._order()}

    def _order(self) -> dict[str, Any]:
        """What tells an epoch's order from that of another loader; None is what is not known."""
        by_batch = self.batch_size is None and self.batch_sampler is not None
        return {
            "samples": _length(self.dataset),
            "batch_size": self.batch_size,
            "batches": _length(self),
            "sampler": type(self.batch_sampler if by_batch else self.sampler).__name__,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at the next iteration from a position that ``state_dict`` returned.

        Raises:
            CheckpointError: ``state`` is not that of a ResumableLoader; or an epoch is in progress in it, and this
                loader has other data, another batch size or another kind of sampler: it would skip or repeat samples.
        """
        state = entries_of("ResumableLoader", state, ("seed", "position", "generator"), CheckpointError)
        own = self._order()
        if other := [name for name in own if state["seed"] is not None and state.get(name, own[name]) != own[name]]:
            saved, here = (", ".join(f"{name} {order[name]}" for name in other) for order in (state, own))
            raise CheckpointError(
                f"The epoch in progress was saved with {saved}; this loader has {here}, and would skip or repeat "
                "samples. Resume with the same loader, from a checkpoint saved at an epoch's end, or without sampler=, "
                "which starts the epoch over."
            )
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        self._unused = False
        self._seed, self._position = state["seed"], state["position"]
        self._resuming = self._seed is not None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises a class of its own
        self._unused = False
        if not self._resuming or self._seed is None:
            self._seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.generator))
            self._position = 0
        self._resuming = False
        with self._seeded():  # torch draws a seed for workers that must not disturb a resumed run's own numbers
            batches = super().__iter__()
        return self._count(batches, self._seed)

    def _count(self, batches: Iterator[Any], seed: int) -> Iterator[Any]:
        for batch in batches:
            self._position += 1
            yield batch
        if self._seed == seed:  # no newer iteration has begun
            self._seed, self._position = None, 0

    def _indices(self, sampler: Iterable[Any]) -> Iterator[Any]:
        assert self._seed is not None
        seed, done = self._seed, self._position
        with self._seeded():  # a sampler draws its order when its first index is taken
            indices = iter(sampler)
            start = list(itertools.islice(indices, done + 1))[done:]
        for number, index in enumerate(itertools.chain(start, indices), done):
            yield _Sealed(index, seed, number) if self.num_workers else index

    @contextlib.contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed every generator that a sampler may draw from with the epoch's number, for a while."""
        assert self._seed is not None
        own = self.generator
        with alone():
            before = random.getstate(), np.random.get_state(), torch.get_rng_state(), own and own.get_state()  # noqa: NPY002
            _seed_all(self._seed, 0)
            if own is not None:
                own.manual_seed(self._seed)
            try:
                yield
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002
                torch.set_rng_state(before[2])
                if own is not None and before[3] is not None:
                    own.set_state(before[3])


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except (TypeError, AttributeError, NotImplementedError):  # as of a sampler that draws for ever
        return None


def is_unused(loader: object) -> bool:
    """Tell whether this is a ResumableLoader that was never iterated over or resumed."""
    return isinstance(loader, ResumableLoader) and loader._unused


class _Sealed:
    """The indices of a batch on their way to a worker, whose generators are seeded when they arrive."""

    def __init__(self, index: Any, seed: int, number: int) -> None:
        self.content = index, seed, number

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, self.content


def _arrive(index: Any, seed: int, number: int) -> Any:
    if get_worker_info() is not None:
        _seed_all(seed, number + 1)
    return index


def _seed_all(seed: int, number: int) -> None:
    words = np.random.SeedSequence([seed & (2**64 - 1), number]).generate_state(4)
    random.seed(words[0].item())
    np.random.seed(words[1].item())  # noqa: NPY002
    torch.default_generator.manual_seed((words[2].item() << 32) + words[3].item())
