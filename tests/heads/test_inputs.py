"""Inputs are made up for models that take several, or one size only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ftkit import find_head, replace_head
from tests.heads.nets import Wired, features, wired


def fused(self: Wired, image: torch.Tensor, tabular: torch.Tensor) -> torch.Tensor:
    return self.fuse(torch.cat([self.cnn(image), self.mlp(tabular)], 1))


def tables(self: Wired, x_cat: torch.Tensor, x_cont: torch.Tensor) -> torch.Tensor:
    found = [table(x_cat[:, index]) for index, table in enumerate(self.embeds)]
    return self.out(torch.cat([*found, self.norm(x_cont)], 1))


def packed(self: Wired, text: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    pack, pad = nn.utils.rnn.pack_padded_sequence, nn.utils.rnn.pad_packed_sequence
    rows, (state, _) = self.rnn(pack(self.table(text), lengths, batch_first=True, enforce_sorted=False))
    return self.out(state[-1] + pad(rows, batch_first=True)[0].mean(1))


def convolved(self: Wired, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
    return (adj @ self.second(torch.relu(adj @ self.first(x)))).log_softmax(1)


def edges(self: Wired, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    x = self.first(x)
    x = x.index_add(0, edge_index[1], x[edge_index[0]])
    return self.second(x.new_zeros(int(batch.max()) + 1, x.shape[1]).index_add(0, batch, x))


def towers(self: Wired, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return self.out(torch.relu(self.first(left) + self.second(right)))


SEVERAL_INPUTS = {
    "image and table": (
        lambda: wired(
            fused, cnn=features(), mlp=nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), fuse=nn.Linear(16, 5)
        ),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 6)),
    ),
    "categories and numbers": (
        lambda: wired(
            tables,
            embeds=nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(3, 2)]),
            norm=nn.BatchNorm1d(5),
            out=nn.Sequential(nn.Linear(11, 7), nn.ReLU(), nn.Linear(7, 5)),
        ),
        (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 5)),
    ),
    "text and lengths": (
        lambda: wired(
            packed, table=nn.Embedding(20, 6), rnn=nn.LSTM(6, 8, batch_first=True), extra=None, out=nn.Linear(8, 5)
        ),
        (torch.zeros(2, 4, dtype=torch.long), torch.tensor([4, 2])),
    ),
    "graph by matrix": (
        lambda: wired(convolved, first=nn.Linear(12, 8), second=nn.Linear(8, 5)),
        (torch.zeros(2, 12), torch.eye(2)),
    ),
    "graph by edges": (
        lambda: wired(edges, first=nn.Linear(12, 8), second=nn.Linear(8, 5)),
        (torch.zeros(2, 12), torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1])),
    ),
    "two towers": (
        lambda: wired(towers, first=nn.Linear(6, 8), second=nn.Linear(9, 8), out=nn.Linear(8, 5)),
        (torch.zeros(2, 6), torch.zeros(2, 9)),
    ),
}


@pytest.mark.parametrize("case", SEVERAL_INPUTS)
def test_models_of_several_inputs(case: str) -> None:
    """Inputs are made up from the names of the arguments and the layers that could take them."""
    build, inputs = SEVERAL_INPUTS[case]
    model = build()
    head = replace_head(model, 7)
    assert len(head.names) == 1
    assert model(*inputs).shape == (2, 7)


@pytest.mark.parametrize("side", [20, 75])
def test_an_image_of_the_one_size_that_fits_is_found(side: int) -> None:
    """A linear layer after a flatten takes one size of images alone."""
    width = 6 * ((side - 4) // 2) ** 2

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(nn.functional.max_pool2d(self.conv(x), 2).flatten(1)))
        return self.second(x) if side else self.unused(x)

    model = wired(
        forward, conv=nn.Conv2d(1, 6, 5), first=nn.Linear(width, 16), second=nn.Linear(16, 5), unused=nn.Linear(16, 9)
    )
    assert find_head(model).names == ("second",)


@pytest.mark.parametrize("noted", [("n_chans", "n_times"), ("c_in", "seq_len")], ids=["EEG", "time series"])
def test_recordings_are_as_long_as_the_model_says(noted: tuple[str, str]) -> None:
    """A filter over time and one over all channels: nothing else fits what comes after."""

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = self.space(self.time(x.unsqueeze(1)))
        return self.final_layer(self.pool(x).flatten(1))

    model = wired(
        forward,
        time=nn.Conv2d(1, 4, (1, 25)),
        space=nn.Conv2d(4, 8, (6, 1)),
        pool=nn.AvgPool2d((1, 16)),
        final_layer=nn.Linear(8 * ((200 - 24) // 16), 4),
        **dict(zip(noted, (6, 200), strict=True)),
    )
    head = replace_head(model, 3)
    assert head.proven
    assert model(torch.zeros(2, 6, 200)).shape == (2, 3)


def test_a_series_that_the_model_cuts_itself() -> None:
    """No convolution says that a series comes in, nor does anything how long it is."""

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(2, (-1, 16)).transpose(1, 2).flatten(2)
        return self.out(self.patch(x).mean(1))

    model = wired(forward, patch=nn.Linear(3 * 16, 8), out=nn.Linear(8, 4))
    assert replace_head(model, 3).proven


def test_outputs_that_a_model_counts_are_its_classes_even_if_it_never_runs() -> None:
    """A model of recordings notes how many outputs it has, and takes what nobody can guess."""

    def forward(self: Wired, x: torch.Tensor) -> torch.Tensor:
        if x.shape != (2, 7, 77, 777):
            raise ValueError("not what I take")
        return self.final_layer(self.first(x.flatten(1)))

    model = wired(forward, first=nn.Linear(7 * 77 * 777, 5), final_layer=nn.Linear(5, 4), _n_outputs=4)
    head = replace_head(model, 3)
    assert (head.names, head.proven, model._n_outputs) == (("final_layer",), False, 3)
    assert replace_head(model, 6, example_inputs=torch.zeros(2, 7, 77, 777)).proven
