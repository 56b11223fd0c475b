"""Whichever step of a change fails, the model is as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import adapt_input, replace_head, replace_modules
from ftkit._models.undo import Undo
from ftkit.errors import HeadError
from tests.heads.nets import Wired, features, wired


class StepError(Exception):
    """Raised in the place of a step."""


class Crf(nn.Module):
    """What tags have to do with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.num_tags = 5
        self.transitions = nn.Parameter(torch.randn(5, 5))


def classifier() -> nn.Module:
    """A model with everything that follows a head: counters, a bias, the weights of a loss, a CRF, labels."""
    model = wired(
        lambda self, x: self.head(self.body(x)) + self.bias,
        body=features(),
        head=nn.Linear(8, 5, bias=False),
        bias=nn.Parameter(torch.randn(5)),
        loss=nn.CrossEntropyLoss(weight=torch.arange(5.0)),
        crf=Crf(),
        num_classes=5,
    )
    model.also = model.head
    model.config = type("Config", (), {})()
    model.config.num_labels, model.config.problem_type = 5, "regression"
    model.config.id2label, model.config.label2id = dict(enumerate("abcde")), dict(zip("abcde", range(5), strict=True))
    return model


def tied() -> nn.Module:
    """A head that is one table with an embedding."""

    def forward(self: Wired, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(ids))

    model = wired(forward, table=nn.Embedding(9, 6, padding_idx=2), out=nn.Linear(6, 9))
    model.out.weight = model.table.weight
    model.out.weight.grad = torch.ones(9, 6)
    model.config = type("Config", (), {})()
    model.config.vocab_size, model.config.tie_word_embeddings = 9, True
    return model


def images() -> nn.Module:
    """Images enter twice, and counters say so."""
    model = wired(
        lambda self, x: self.left(x) + self.right(x), left=nn.Conv2d(3, 8, 3), right=nn.Conv2d(3, 8, 3), in_chans=3
    )
    model.config = {"num_channels": 3}
    return model


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "a count": (classifier, lambda m: replace_head(m, 3, at="head")),
    "a count, with classes kept": (classifier, lambda m: replace_head(m, 3, at="head", keep={0: 4, 2: 1})),
    "a module": (classifier, lambda m: replace_head(m, nn.Linear(8, 3), at="head", verify=False)),
    "a tied head that leaves": (tied, lambda m: replace_head(m, 4)),
    "a tied head that is cut": (tied, lambda m: replace_head(m, 4, keep={0: 2, 3: 8})),
    "the input": (images, lambda m: adapt_input(m, 1)),
    "modules": (classifier, lambda m: replace_modules(m, nn.BatchNorm2d, lambda name, old: nn.BatchNorm2d(8))),
}


def state(model: nn.Module) -> dict[str, Any]:
    """All that a change of the model could touch: identities, values, gradients, attributes, configurations."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found[f"{name}: keys"] = list(vars(module))
        for key, value in vars(module).items():
            listed = value.items() if isinstance(value, dict) else ((key, value),)
            found[f"{name}: {key}"] = [(k, id(v) if isinstance(v, nn.Module | torch.Tensor) else v) for k, v in listed]
    for name, tensor in model.state_dict(keep_vars=True).items():
        grad = None if tensor.grad is None else tensor.grad.tolist()
        found[f"{name}: values"] = (id(tensor), tensor.tolist(), grad, tensor.requires_grad)
    config = getattr(model, "config", None)
    found["config"] = dict(config if isinstance(config, dict) else vars(config))
    return found


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", CHANGES)
def test_any_step_that_fails_takes_back_all_before_it(change: str, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th step that is noted raises, before or after it is made, for each n."""
    build, call = CHANGES[change]
    left = 0

    def failing(method: Callable[..., None]) -> Callable[..., None]:
        def step(self: Undo, *args: object) -> None:
            nonlocal left
            left -= 1
            fatal = left == 0  # a step may be made of others
            if fatal and not late:
                raise StepError
            method(self, *args)
            if fatal:
                raise StepError

        return step

    model = build()
    before = state(model)
    for name in ("set_item", "remember", "callback"):
        monkeypatch.setattr(Undo, name, failing(getattr(Undo, name)))
    # Runs on fakes use Undo as well, for what belongs to the process; a failure there must leave the model alone too.
    failures = 0
    for fatal in range(1, 1000):
        left = fatal
        try:
            call(model)
        except StepError:
            failures += 1
            assert state(model) == before
        else:
            break
    assert failures >= 2
    assert state(model) != before


@pytest.mark.parametrize("change", CHANGES)
def test_an_error_at_the_end_takes_all_back(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the proof of the new head had failed."""
    build, call = CHANGES[change]
    model = build()
    before = state(model)
    leave = Undo.__exit__

    def fail(self: Undo, *args: object) -> None:
        leave(self, StepError, *args[1:])
        raise StepError

    monkeypatch.setattr(Undo, "__exit__", fail)
    with pytest.raises(StepError):
        call(model)
    assert state(model) == before


@pytest.mark.parametrize("head", [3, lambda width: nn.Linear(width, 3)], ids=["a count", "a module"])
def test_a_failed_attempt_draws_no_random_numbers(head: object) -> None:
    """What a new layer was started with is given back with it."""
    model = wired(lambda self, x: self.scale * self.readout(self.body(x)), body=features(), readout=nn.Linear(8, 5))
    model.scale = nn.Parameter(torch.ones(5))
    before = torch.get_rng_state()
    with pytest.raises(HeadError):
        replace_head(model, head, at="readout")
    assert torch.equal(torch.get_rng_state(), before)
