"""The memory of tensors: what it can take, reads at a position, and several threads that do both."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import BinaryIO, Final, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

CHUNK: Final = 1 << 20
"""Bytes to go through at a time: few enough to be hashed while they are still in the processor's cache."""

DTYPES: Final = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
"""Torch's types by name. What a file names is looked up here: ``getattr(torch, name)`` would import what it names."""

_THREADS: Final = 2
_SEEKING: Final = threading.Lock()  # for systems without positional reads


def memory_of(tensor: Tensor) -> tuple[object, ...] | None:
    """What tells the elements of a tensor from those of any other; None where it has no plain memory."""
    if tensor.layout is not torch.strided or not tensor.numel() or not tensor.data_ptr():
        return None
    view = tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()
    return tensor.device, tensor.data_ptr(), *view


def rare_kind(tensor: Tensor) -> str:
    """What to call a tensor whose values are no plain run of numbers, such as ``sparse_coo``; "" for all others."""
    return "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.").replace("strided", "")


def takes_bytes(target: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a tensor's memory can be filled with the stored bytes of a contiguous tensor as they are."""
    plain = not (target.is_conj() or target.is_neg())
    return target.device.type == "cpu" and target.dtype == dtype and target.is_contiguous() and plain


def mark_changed(target: Tensor) -> None:
    """Tell autograd of a change behind its back, lest a backward pass use new values for an old forward pass."""
    if not target.is_inference():
        torch.autograd.graph.increment_version(target)


def read_at(file: BinaryIO, into: memoryview, position: int) -> None:
    """Fill ``into`` with the bytes at a position of a raw file, from any thread.

    Raises:
        EOFError: The file ends before.
    """
    done = 0
    while done < len(into):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [into[done:]], position + done)
        else:
            with _SEEKING:
                file.seek(position + done)
                count = file.readinto(into[done:]) or 0  # type: ignore[attr-defined]  # a raw file has it
        if count == 0:
            raise EOFError
        done += count


def chunks(data: memoryview) -> Iterable[memoryview]:
    """Cut bytes into pieces that the processor's cache holds."""
    return (data[begin : begin + CHUNK] for begin in range(0, len(data), CHUNK))


def in_threads(work: Callable[[T], None], jobs: Iterable[T], nbytes: int) -> None:
    """Do all jobs, or raise the first error when none is running any more."""
    if nbytes <= CHUNK:  # starting threads would take longer
        for job in jobs:
            work(job)
        return
    queue = deque(jobs)
    errors: list[BaseException] = []

    def worker() -> None:
        while queue and not errors:
            try:
                job = queue.popleft()
            except IndexError:  # the other thread took the last one
                return
            try:
                work(job)
            except BaseException as error:  # noqa: BLE001  (raised again below, in the caller's thread)
                errors.append(error)

    # Plain threads on one queue: an executor wakes the caller for every job, at a quarter of the speed.
    threads = [threading.Thread(target=worker, name="ftkit-files") for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # an interrupt: no thread may write into the targets after this returns
        errors.append(error)
        for thread in threads:
            thread.join()
        raise
    if errors:
        raise errors[0]
