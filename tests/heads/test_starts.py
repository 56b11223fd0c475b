"""A new head starts as the head of a freshly built model does, however that is started, and whoever starts it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ftkit import replace_head
from ftkit._heads.untrained import draw_like, is_untrained, shows_its_law
from tests.heads.nets import as_a_layer
from tests.heads.oracle import starts_otherwise
from tests.heads.starting import (
    STARTS,
    BiasOfAnotherSize,
    BiasThatIsRead,
    ByParametersOfItsOwn,
    FunctionThatReads,
    MappedHelper,
    OfAnotherLayer,
    Reading,
    ReadingHelper,
)

OUTSIDE = {name for name in STARTS if name.startswith("outside-")}
UNKNOWN = {"ByParametersOfItsOwn", "WeightNormOfLength"}  # once they are trained


@pytest.mark.parametrize("name", STARTS)
def test_a_new_head_starts_like_a_fresh_one(name: str) -> None:
    """Where the old one is as it started, that tells, whether any code does or not."""
    torch.manual_seed(0)
    model, fresh = STARTS[name](11).eval(), STARTS[name](7).eval()
    head = replace_head(model, 7, verify=False)
    assert not starts_otherwise(model, fresh, head.names)


@pytest.mark.parametrize("name", sorted(STARTS.keys() - OUTSIDE - UNKNOWN))
def test_a_trained_head_is_followed_by_one_that_the_models_code_starts(name: str) -> None:
    """Its numbers tell nothing any more; what stands in the classes does."""
    torch.manual_seed(0)
    model, fresh = STARTS[name](11).eval(), STARTS[name](7).eval()
    train(model)
    head = replace_head(model, 7, verify=False)
    assert not starts_otherwise(model, fresh, head.names)


def train(model: nn.Module) -> None:
    """Move all numbers of a model as training does: each row by another measure, and not alike."""
    with torch.no_grad():
        for value in model.parameters():
            scale = torch.rand(len(value)).view(-1, *[1] * (value.dim() - 1))
            value.add_(torch.randn_like(value) * scale * 0.3 + torch.randn_like(value) ** 3 * 0.1)


@pytest.mark.parametrize(
    "kind",
    [ByParametersOfItsOwn, ReadingHelper, MappedHelper, FunctionThatReads, BiasThatIsRead, BiasOfAnotherSize],
)
def test_a_start_that_nothing_tells_is_not_passed_over_in_silence(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says how the new head starts instead."""
    model = kind(11)
    train(model)
    with caplog.at_level(logging.WARNING, "ftkit"):
        replace_head(model, 7, verify=False)
    assert "could not be repeated for 'fc'" in caplog.text
    assert {len(value) for value in model.fc.parameters()} == {7}


def test_the_start_of_another_layer_is_no_reason_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It says nothing of how the head starts."""
    model = OfAnotherLayer(11)
    train(model)
    replace_head(model, 7, verify=False)
    assert not caplog.text


def test_nothing_but_starts_is_run_again(tmp_path: object) -> None:
    """A constructor that reads, writes and counts beside starting its layers does none of it again."""
    model = Reading(11)
    train(model)
    before = list(Reading.calls)
    replace_head(model, 7, verify=False)
    assert Reading.calls == before
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)


LAWS = {
    "uniform": nn.init.kaiming_uniform_,
    "normal": lambda weight: nn.init.normal_(weight, std=0.02),
    "cut": lambda weight: nn.init.trunc_normal_(weight, 0, 0.02, -0.04, 0.04),
    "orthogonal": nn.init.orthogonal_,
}


@pytest.mark.parametrize("shape", [(11, 32), (7, 512), (1000, 64), (20, 16, 3, 3)])
@pytest.mark.parametrize("law", LAWS)
def test_an_untrained_layer_shows_its_law(law: str, shape: tuple[int, ...]) -> None:
    """Nearly always: of fifty, forty-five at least."""
    torch.manual_seed(0)
    found = [shows_its_law(LAWS[law](torch.empty(shape))) for _ in range(50)]
    assert sum(found) >= 45


def test_a_trained_layer_is_not_taken_for_an_untrained_one() -> None:
    """Not even when its bias stayed as it was."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(512, 64), torch.randint(10, (512,))
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    nn.init.zeros_(model[2].bias).requires_grad_(False)
    assert is_untrained(as_a_layer(model[2]))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert not shows_its_law(model[2].weight)
    assert not is_untrained(as_a_layer(model[2]))


@pytest.mark.parametrize(("outputs", "others"), [(1000, 2), (2, 1000)])
def test_starts_that_hang_on_the_number_of_outputs_follow_it(outputs: int, others: int) -> None:
    """Xavier's, and He's by the outputs; the others stay as they are."""
    torch.manual_seed(0)
    for law in (
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
        lambda weight: nn.init.kaiming_normal_(weight, mode="fan_out"),
        lambda weight: nn.init.normal_(weight, std=0.01),
    ):
        source, drawn = law(torch.empty(outputs, 512)), torch.empty(others, 512)
        draw_like(source, drawn)
        assert drawn.std().item() == pytest.approx(law(torch.empty(others, 512)).std().item(), rel=0.1)
