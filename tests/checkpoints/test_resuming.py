"""All objects get their states, or none does and everything is as it was."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ftkit import EarlyStopping, freeze, freeze_except, load_checkpoint, replace_head, save_checkpoint
from ftkit._checkpoints import resuming
from ftkit._freezing.holding import is_held
from ftkit._loaders import ResumableLoader
from ftkit._models.undo import Undo
from ftkit.errors import CheckpointError, FtkitError
from tests.checkpoints.runs import flat, make, steps


def test_load_changes_all_or_nothing(tmp_path: Path) -> None:
    """A state that does not fit leaves every object as it was."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "run.safetensors", model=model, optimizer=optimizer, scheduler=None, epoch=1)
    other = nn.Sequential(*make()[:4], nn.Linear(8, 3))
    opt = torch.optim.AdamW(other.parameters(), 0.7)
    before = flat(other)
    with pytest.raises(CheckpointError, match=r"4.weight: \[2, 8\] in the file"):
        load_checkpoint(tmp_path / "run.safetensors", model=other, optimizer=opt)
    assert torch.equal(flat(other), before)
    assert opt.param_groups[0]["lr"] == 0.7
    assert not opt.state


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda m: {"optimizer": torch.optim.SGD(m.parameters(), 0.1)}, "is of class AdamW, this one of class SGD"),
        (lambda m: {"scheduler": torch.optim.lr_scheduler.StepLR(torch.optim.SGD(m.parameters()), 1)}, "scheduler="),
        (lambda m: {"histroy": EarlyStopping(1, mode="min")}, "Did you mean 'history'"),
        (lambda m: {"history": []}, "has no load_state_dict"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, build: Any, words: str) -> None:
    """Each wrong target is an error of ours, and the model keeps its weights."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    steps(model, optimizer)
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, history=[1])
    other = make()
    before = flat(other)
    with pytest.raises(FtkitError) as caught:
        load_checkpoint(tmp_path / "a.safetensors", model=other, **build(other))
    assert words in str(caught.value)
    assert torch.equal(flat(other), before)


def test_a_failure_at_the_very_end_takes_everything_back(tmp_path: Path) -> None:
    """If the model refuses, the optimizer and the scheduler are as they were."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps(model, optimizer)
    scheduler.step()
    save_checkpoint(tmp_path / "a.safetensors", model=model, optimizer=optimizer, scheduler=scheduler)
    other = make()
    opt = torch.optim.AdamW(other.parameters(), 0.7)
    plan = torch.optim.lr_scheduler.StepLR(opt, 9)
    other.register_load_state_dict_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    groups, state, planned = opt.param_groups, opt.state, dict(plan.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        load_checkpoint(tmp_path / "a.safetensors", model=other, optimizer=opt, scheduler=plan)
    assert opt.param_groups is groups
    assert opt.state is state
    assert plan.state_dict() == planned


# ---- all or nothing


class Guarded(nn.Module):
    """A module with a method of its own for loading, which refuses what it has half taken."""

    def __init__(self, refuses: bool) -> None:
        super().__init__()
        self.refuses = refuses
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.history: list[str] = []

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        self.history.append("loaded")
        self.note = "half"
        self.first.load_state_dict({"weight": state_dict["first.weight"], "bias": state_dict["first.bias"]})
        if self.refuses:
            raise RuntimeError("this module refuses")
        return super().load_state_dict(state_dict, *args, **options)


class Run:
    """A run with one of everything that can be resumed."""

    def __init__(self, seed: int, *, refuses: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = make()
        freeze(self.model, ("0", "1")[seed % 2])
        self.ema = torch.optim.swa_utils.AveragedModel(make())
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 0.1 * (seed + 1))
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [seed + 2, seed + 4])
        self.sampler = ResumableLoader(list(range(8)), 2, generator=torch.Generator().manual_seed(seed))
        self.guarded = Guarded(refuses)
        self.stopping = EarlyStopping(patience=3, mode="min")
        self.dice = torch.Generator().manual_seed(seed)
        for _ in range(seed + 1):
            steps(self.model, self.optimizer)
            self.scheduler.step()
            self.stopping.step(0.5 + seed)

    @property
    def parts(self) -> dict[str, Any]:
        """All of it, as the functions take it."""
        return dict(vars(self))

    def picture(self) -> dict[str, Any]:
        """Everything that a resume might change: values, identities, and the states of the process."""
        modules = {
            f"{part}.{name}": module
            for part in ("model", "ema", "guarded")
            for name, module in vars(self)[part].named_modules()
        }
        tensors = {
            f"{name}.{key}": tensor
            for name, module in modules.items()
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }
        return {
            "modules": {name: (id(module), module.training, is_held(module)) for name, module in modules.items()},
            "tensors": {name: (id(tensor), tensor.requires_grad, value_of(tensor)) for name, tensor in tensors.items()},
            "guarded": (dict.fromkeys(vars(self.guarded)), list(self.guarded.history)),
            "groups": [id(self.optimizer.param_groups), *map(id, self.optimizer.param_groups)],
            "options": [{**group, "params": list(map(id, group["params"]))} for group in self.optimizer.param_groups],
            "history": {id(parameter): values_of(state) for parameter, state in self.optimizer.state.items()},
            "history's place": id(self.optimizer.state),
            "scheduler": {key: (id(value), repr(value)) for key, value in vars(self.scheduler).items()},
            "stopping": dict(vars(self.stopping)),
            "sampler": repr(self.sampler.state_dict()),
            "dice": value_of(self.dice.get_state()),
            "random": (random.getstate(), repr(np.random.get_state()), value_of(torch.get_rng_state())),  # noqa: NPY002
        }


def value_of(tensor: torch.Tensor) -> bytes:
    """A tensor's values, to compare."""
    return tensor.detach().numpy().tobytes()


def values_of(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The values of several, by name."""
    return {name: value_of(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a run."""
    run = Run(1)
    next(iter(run.sampler))
    save_checkpoint(tmp_path / "run.safetensors", **run.parts)
    return tmp_path / "run.safetensors"


def test_a_resume_changes_all_that_the_picture_shows(saved: Path) -> None:
    """The picture that the tests below compare would show any of it."""
    run = Run(0)
    before = run.picture()
    load_checkpoint(saved, **run.parts)
    after = run.picture()
    assert {key for key in before if before[key] == after[key]} <= {"history's place"}


class Failure(Exception):
    """What is raised in the middle."""


# Optimizer, scheduler, loader, early stopping, generator, names of classes in the model and in its average, the guarded
# module, what is frozen, rng, weights.
STEPS = 11


# Copying values that were compared, the last change, does not fail midway.
@pytest.mark.parametrize(("at", "when"), [(at, when) for at in range(STEPS) for when in ("instead", "after")][:-1])
def test_any_change_that_fails_takes_all_back(saved: Path, monkeypatch: pytest.MonkeyPatch, at: int, when: str) -> None:
    """Whichever change fails, before or after it was made, everything is as it was, to the bit and to the object."""
    made = resuming._plans

    def failing(*arguments: Any) -> list[Any]:
        plans = made(*arguments)
        assert len(plans) == STEPS
        change = plans[at]

        def fail(undo: Undo) -> None:
            if when == "after":
                change(undo)
            raise Failure

        return [*plans[:at], fail, *plans[at + 1 :]]

    monkeypatch.setattr(resuming, "_plans", failing)
    run = Run(0)
    before = run.picture()
    with pytest.raises(Failure):
        load_checkpoint(saved, **run.parts)
    assert run.picture() == before


def test_a_module_that_refuses_while_it_loads(saved: Path) -> None:
    """What a module's own load_state_dict changed before it raised is taken back, and nothing else has moved."""
    run = Run(0, refuses=True)
    before = run.picture()
    with pytest.raises(RuntimeError, match="this module refuses"):
        load_checkpoint(saved, **run.parts)
    assert run.picture() == before


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("other", ["model", "ema"])
def test_another_architecture_is_refused_before_anything_moves(tmp_path: Path, suffix: str, other: str) -> None:
    """The module that fits is not overwritten before the one that does not is refused."""
    save_checkpoint(tmp_path / f"run{suffix}", model=make(), ema=make())
    given = {"model": make(), "ema": make(), other: nn.Sequential(nn.Linear(4, 9))}
    before = {name: flat(module) for name, module in given.items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path / f"run{suffix}", **given)
    assert all(torch.equal(flat(module), before[name]) for name, module in given.items())


@pytest.mark.parametrize("hook", ["before", "after"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_hook_that_raises_while_the_model_loads(tmp_path: Path, hook: str, prefix: str) -> None:
    """Somebody's hook stops the model, under our names or other people's: the average keeps its values."""
    state = {f"{prefix}{name}": value for name, value in make().state_dict().items()}
    if prefix:
        del state["module.4.bias"]  # so that the model's own method is asked
    torch.save({"model": state, "ema": make().state_dict()}, tmp_path / "theirs.pt")
    model, ema = make(), make()

    def refuse(*_: Any) -> None:
        raise RuntimeError("the hook refuses")

    if hook == "before":
        model[4].register_load_state_dict_pre_hook(refuse)
    else:
        model[1].register_load_state_dict_post_hook(refuse)
    before = flat(model), flat(ema)
    with pytest.raises((RuntimeError, CheckpointError), match="the hook refuses"):
        load_checkpoint(tmp_path / "theirs.pt", model=model, ema=ema)
    assert torch.equal(flat(model), before[0])
    assert torch.equal(flat(ema), before[1])


def test_the_layers_of_a_delta_are_taken_out_again(tmp_path: Path) -> None:
    """If what follows fails, the base has its own head, and its configuration counts the classes of that."""

    def base() -> Any:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5))
        model.config = SimpleNamespace(num_labels=5)
        return model

    tuned = base()
    freeze_except(tuned, replace_head(tuned, 3, at="1"))
    assert tuned.config.num_labels == 3
    save_checkpoint(tmp_path / "d.safetensors", model=tuned, delta=True, guarded=Guarded(refuses=False))
    model, guarded = base(), Guarded(refuses=True)
    before = dict(model.named_modules()), flat(model), flat(guarded)
    with pytest.raises(RuntimeError, match="this module refuses"):
        load_checkpoint(tmp_path / "d.safetensors", model=model, guarded=guarded)
    assert dict(model.named_modules()) == before[0]
    assert torch.equal(flat(model), before[1])
    assert torch.equal(flat(guarded), before[2])
    assert model.config.num_labels == 5
    load_checkpoint(tmp_path / "d.safetensors", model=model, guarded=Guarded(refuses=False))
    assert torch.equal(flat(model), flat(tuned))
    assert model.config.num_labels == 3


def test_another_model_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    """The message says which file does not fit, and speaks of load_weights only where it shows arguments of it."""
    save_checkpoint(tmp_path / "run.pt", model=make(), ema=make())
    with pytest.raises(CheckpointError, match=r"The model in .*run\.pt does not fit the Linear") as error:
        load_checkpoint(tmp_path / "run.pt", model=nn.Linear(9, 9))
    assert "load_weights" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"The ema in .*run\.pt does not fit the Sequential.*"):
        load_checkpoint(tmp_path / "run.pt", ema=nn.Sequential(nn.Linear(4, 9)))
