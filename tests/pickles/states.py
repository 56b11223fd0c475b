"""A model of the user's own, and when two state dicts are alike."""

from __future__ import annotations

import torch
from torch import nn


class Custom(nn.Module):
    """A model of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)


def alike(back: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts hold the same."""
    return back.keys() == state.keys() and all(
        back[name].dtype == tensor.dtype
        and back[name].shape == tensor.shape
        and (name == "expanded" or torch.equal(back[name].to(torch.complex128), tensor.to(torch.complex128)))
        for name, tensor in state.items()
    )
