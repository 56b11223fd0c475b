"""The bytes of a tensor, wherever it lives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Memory:
    """The memory of a flat tensor, as NumPy takes it in; it lives as long as an array of it."""

    def __init__(self, flat: Tensor) -> None:
        self._flat = flat
        data = flat.data_ptr(), False
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": tuple(flat.shape), "data": data}


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: its own memory if that is contiguous on the CPU, else a copy."""
    if not tensor.numel():
        return memoryview(b"")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # a side of one element may have any stride
    # After .numpy() a tensor can't be resized any more, and from_dlpack() gives memory that can't be written to before
    # NumPy 2.1. NumPy's types hide that an array is a buffer before Python 3.12.
    array: Any = np.asarray(_Memory(flat.view(torch.uint8)))
    return memoryview(array)
