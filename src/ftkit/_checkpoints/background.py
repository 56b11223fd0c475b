"""Writing while training goes on: copies of what will change, and a thread that steps back."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Any, Final

import torch
from torch import Tensor

_NICENESS: Final = 10  # a third less of training is lost; at 19 a busy machine would write for many times as long


class Copies:
    """Memory for the copies of tensors, which is kept from one save to the next."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def of(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors."""
        copies: dict[str, Tensor] = {}
        made: dict[tuple[Any, ...], Tensor] = {}
        for name, tensor in tensors.items():
            if tensor.layout is not torch.strided or tensor.is_meta:
                copies[name] = tensor  # the writer says why it can't be kept
                continue
            key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            if key not in made or not tensor.numel():
                old = self._kept.get(name)
                if old is None or (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
                    old = torch.empty(tensor.shape, dtype=tensor.dtype)
                made[key] = old.copy_(tensor)
            copies[name] = made[key]
        self._kept = copies
        return copies


def give_way() -> None:
    """Lower this thread's priority below that of the training threads."""
    if sys.platform == "linux":  # elsewhere that would take the whole process along
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)
