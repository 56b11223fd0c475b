"""The bytes of a tensor, wherever it lives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor: its own memory if that is contiguous on the CPU, else a copy."""
    if not tensor.numel():
        return memoryview(b"")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.as_strided((plain.numel(),), (1,))  # a side of one element may have any stride
    # numpy's types hide that it is a buffer before Python 3.12; and after .numpy() a tensor can't be resized any more
    array: Any = np.from_dlpack(flat.view(torch.uint8))
    return memoryview(array)
