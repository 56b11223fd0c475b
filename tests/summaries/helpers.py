"""A model that several tests of summaries look at."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(self.norm(x))


class Network(nn.Module):
    """An embedding, blocks and a head that shares the embedding's weight."""

    def __init__(self, blocks=4, width=64):
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.spare = nn.Linear(width, width)
        self.head = nn.Linear(width, 1000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.blocks(self.embed(tokens)))


TOKENS = {"input_size": (2, 16), "dtypes": torch.long}
