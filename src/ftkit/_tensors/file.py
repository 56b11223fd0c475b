"""Open files of weights, and those that hold tensors by name: what all their readers can do, whatever the format."""

from __future__ import annotations

import io
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from ftkit._tensors.budget import Budget
from ftkit._tensors.bytes import in_threads, mark_changed, memory_of
from ftkit._wording import shown
from ftkit.errors import CheckpointError, DamagedFileError, did_you_mean


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says about one of its tensors.

    Attributes:
        name: The name it is stored under. Looked up by another name of a tied tensor, it differs from that.
        dtype: Its type.
        shape: Its shape.
        offset: Where in the file its bytes begin.
        digest: Their XXH3-128 digest, or ``None`` where the file holds none.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    digest: str | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes its values take."""
        return math.prod(self.shape) * self.dtype.itemsize


class OpenFile:
    """A file of weights that is open; whoever opened it keeps it until the reader stands, which then closes it.

    Attributes:
        path: What it was opened as, in words for messages: nothing opens it again.
        format: What the format is called.
        verified: Whether any damage to a tensor will be noticed.
        budget: What working on its words may still cost.
    """

    format: ClassVar[str]
    verified: bool = False

    def __init__(self, file: io.FileIO) -> None:
        self.path: str = shown(file.name)
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.budget = Budget(self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Leaving a ``with`` block does it too."""
        self._file.close()


class TensorFile(OpenFile, ABC):
    """A file of tensors by name: what it lists at once, its tensors on demand.

    A reader of a format sets the attributes when it gets the file, and says how to :meth:`fill` one tensor.

    Attributes:
        metadata: The text that it contains besides its tensors.
        tensors: What it holds, by name, the other names of tied tensors included.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]

    @abstractmethod
    def fill(self, info: TensorInfo, target: Tensor) -> None:
        """Fill a tensor of the same shape in place, from any thread.

        Raises:
            DamagedFileError: The bytes are not the ones that were written.
        """

    def check(self, info: TensorInfo) -> None:
        """Read the bytes of a tensor and keep nothing, from any thread.

        Raises:
            DamagedFileError: The bytes are not the ones that were written.
        """
        self.fill(info, torch.empty(info.shape, dtype=info.dtype))

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return tensors as new CPU tensors, verified. Names of one tied tensor share one memory.

        Args:
            names: Which ones; all if left out.

        Raises:
            CheckpointError: The file has no tensor of that name.
            DamagedFileError: The bytes are not the ones that were written.
        """
        wanted = list(self.tensors if names is None else names)
        infos = {name: self._info(name) for name in wanted}
        fresh = {info.name: torch.empty(info.shape, dtype=info.dtype) for info in infos.values()}
        self.read_into(fresh)
        return {name: fresh[info.name] for name, info in infos.items()}

    def read_into(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors in place with what the file holds under their names, verifying on the way.

        The bytes go straight into a target's memory where it is contiguous, on the CPU and of the
        stored type; else they are converted, one tensor at a time. Of several targets that are the
        same memory, the last one counts.

        Args:
            targets: Tensors to fill, by the names in the file. Gradients do not see the change.

        Raises:
            CheckpointError: A name is not in the file, or a shape differs. No target was touched.
            DamagedFileError: Some bytes are not the ones that were written. It names the tensor. The targets
                may hold part of the file by then: fill them again from an intact one.
        """
        wanted: dict[object, tuple[TensorInfo, Tensor]] = {}
        for name, target in targets.items():
            info = self._info(name)
            if tuple(target.shape) != info.shape:
                raise CheckpointError(
                    f"{name!r} has shape {list(info.shape)} in {self.path} and {list(target.shape)} in the target."
                )
            if target.is_meta:
                raise CheckpointError(f"{name!r} is on the meta device: it has no memory to read into. Use read().")
            wanted[memory_of(target) or name] = info, target.detach()
        jobs = sorted(wanted.values(), key=lambda job: job[0].offset)
        try:
            in_threads(lambda job: self.fill(*job), jobs, sum(info.nbytes for info, _ in jobs))
        finally:
            for _, target in jobs:
                mark_changed(target)

    def verify(self) -> None:
        """Read every byte and compare the digests, keeping nothing.

        Raises:
            DamagedFileError: Some bytes are not the ones that were written, or the file has no digests.
        """
        if not self.verified:
            raise DamagedFileError(f"{self.path} contains no digests, so damage can't be detected.")
        jobs = sorted({info.name: info for info in self.tensors.values()}.values(), key=lambda info: info.offset)
        in_threads(self.check, jobs, sum(info.nbytes for info in jobs))

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            hint = did_you_mean(name, self.tensors)
            raise CheckpointError(f"{self.path} has no tensor {name!r}; it has {len(self.tensors)}.{hint}")
        return self.tensors[name]
