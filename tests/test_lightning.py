"""The callback for Lightning: what trains when, in every kind of loop that Lightning has, and after a kill."""

from __future__ import annotations

import doctest
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ftkit import (
    FreezeSchedule,
    ResumableLoader,
    freeze_except,
    load_checkpoint,
    load_delta,
    load_weights,
    param_groups,
    save_delta,
    trainable,
)
from ftkit.errors import FtkitError, SelectionError
from tests.test_docs_code import blocks

lightning = pytest.importorskip("lightning.pytorch")
from lightning.pytorch import callbacks  # noqa: E402

import ftkit.lightning  # noqa: E402
from ftkit.lightning import Freezing  # noqa: E402

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore"),  # Lightning's advice on workers, loggers and folders
]

SOURCE = Path(__file__).parents[1] / "src"
PHASES = {0: "net.4", 2: "net.2", 3: "net.0"}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def network() -> nn.Sequential:
    """A body with a norm, of three linear layers, and three classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


class Power(callbacks.Callback):
    """Fails after a number of batches, and writes down what trains in each epoch."""

    def __init__(self, batches: float = float("inf")) -> None:
        self.batches, self.trained = batches, {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.trained[trainer.current_epoch] = sorted({name.split(".")[-2] for name in trainable(pl_module)})
        if self.batches <= 0:
            raise RuntimeError("the power failed")
        self.batches -= 1


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(param_groups(self, lr=0.01, layer_decay=0.5))


class AllParameters(Module):
    """As in Lightning's own examples."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


class Filtered(Module):
    """As Lightning's page on fine-tuning has it."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(filter(lambda p: p.requires_grad, self.parameters()), lr=0.01)


class WarmUp(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 8))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OneCycle(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Sequential(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        parts = [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [1])]


class Plateau(Module):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class TwoOptimizers(Module):
    """Manual optimization, as for a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.net[:3].parameters(), lr=0.01), torch.optim.SGD(self.net[3:].parameters(), lr=0.1)

    def training_step(self, batch: Any, _: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = self.loss(batch)
            if loss.requires_grad:  # all of the first one's may be frozen
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            self.untoggle_optimizer(optimizer)


class BuiltLate(Module):
    def __init__(self) -> None:
        lightning.LightningModule.__init__(self)
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = network()


class Endless(IterableDataset[Any]):
    """The batches below, without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from data()


def data() -> TensorDataset:
    """Six batches of four."""
    torch.manual_seed(1)
    return TensorDataset(torch.randn(24, 4) + 3, torch.arange(24) % 3)


def fit(
    folder: Path,
    make: Callable[[], Any] = Module,
    *,
    schedule: FreezeSchedule | None = None,
    power: float = float("inf"),
    more: Any = (),
    checkpoint: Any = None,
    compiled: bool = False,
    dataset: Any = None,
    loader: Callable[..., Any] = DataLoader,
    **options: Any,
) -> tuple[Any, Power]:
    """Train for five epochs, from the newest checkpoint of the folder if there is one."""
    torch.manual_seed(0)
    watch, module = Power(power), make()
    saving = checkpoint or callbacks.ModelCheckpoint(folder, save_last=True)
    trainer = lightning.Trainer(
        **{"max_epochs": 5, **options},
        callbacks=[*more, Freezing(schedule or FreezeSchedule(PHASES)), watch, saving],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
    )
    last = folder / "last.ckpt"
    loaders = [loader(dataset or data(), batch_size=4), DataLoader(data(), batch_size=4)]
    whole = torch.compile(module, backend="eager") if compiled else module
    trainer.fit(whole, *loaders, ckpt_path=last if last.exists() else None)
    return module, watch


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def check_resumed(folder: Path, *args: Any, batches: int = 15, every: int | None = None, **options: Any) -> Any:
    """Train at once, and with a kill and a resume: both end with the same weights."""
    saving: Any = {} if every is None else {"save_last": True, "every_n_train_steps": every}

    def point(name: str) -> Any:
        return callbacks.ModelCheckpoint(folder / name, **saving) if saving else None

    whole, watch = fit(folder / "whole", *args, checkpoint=point("whole"), **options)
    with pytest.raises(RuntimeError, match="power"):
        fit(folder / "killed", *args, power=batches, checkpoint=point("killed"), **options)
    resumed, rest = fit(folder / "killed", *args, checkpoint=point("killed"), **options)
    assert rest.trained == {epoch: watch.trained[epoch] for epoch in rest.trained}
    assert 0 < len(rest.trained) < 5
    assert same(whole, resumed)
    return whole, watch


def in_a_loop(epochs: int = 5) -> nn.Module:
    """The same training in a loop of one's own."""
    model = nn.ModuleDict({"net": network()})
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, layer_decay=0.5))
    schedule = FreezeSchedule(PHASES)
    for epoch in range(epochs):
        schedule.step(epoch, model=model)
        model.train()
        for images, labels in DataLoader(data(), batch_size=4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model["net"](images), labels).backward()
            optimizer.step()
    return model


def test_it_trains_as_a_loop_does(tmp_path: Path) -> None:
    module, watch = fit(tmp_path)
    assert watch.trained == {0: ["4"], 1: ["4"], 2: ["2", "4"], 3: ["0", "2", "4"], 4: ["0", "2", "4"]}
    assert same(module, in_a_loop())


@pytest.mark.parametrize(
    "make", [Module, AllParameters, Filtered, WarmUp, OneCycle, Sequential, Plateau, TwoOptimizers, BuiltLate]
)
@pytest.mark.parametrize("batches", [9, 15])
def test_a_killed_run_resumes(make: type, batches: int, tmp_path: Path) -> None:
    """In the epoch before the first thaw, and in that of it."""
    check_resumed(tmp_path, make, batches=batches)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"compiled": True},
        {"check_val_every_n_epoch": 2},
        {"dataset": Endless()},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_with_an_option_of_the_trainer(options: dict[str, Any], tmp_path: Path) -> None:
    check_resumed(tmp_path, **options)


@pytest.mark.parametrize("every", [4, 7])
@pytest.mark.parametrize("make", [Module, WarmUp])
def test_a_checkpoint_in_mid_epoch(make: type, every: int, tmp_path: Path) -> None:
    """An epoch that goes on has no start; what trained in it trains in the rest of it too.

    With a plain loader Lightning reads the epoch from its first batch again, and the weights differ without ftkit too.
    """
    check_resumed(tmp_path, make, batches=17, every=every, loader=ResumableLoader)


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 4}])
def test_a_checkpoint_after_the_last_batch_of_an_epoch(options: dict[str, Any], tmp_path: Path) -> None:
    """Lightning goes on with the next epoch, and so does the loader: no epoch passes without batches."""
    every = 2 * options.get("limit_train_batches", 6)
    check_resumed(tmp_path, batches=every + 3, every=every, loader=ResumableLoader, **options)


@pytest.mark.parametrize("batches", [9, 15])
@pytest.mark.parametrize("loader", [DataLoader, ResumableLoader])
def test_random_numbers_go_on_as_the_page_has_it(loader: type, batches: int, tmp_path: Path) -> None:
    """Dropout and shuffling, with the callback that the page on Lightning shows."""
    names: dict[str, Any] = {}
    exec(blocks(SOURCE.parent / "docs/frameworks/lightning.md")[0], names)

    class Noisy(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(4, nn.Dropout(0.5))

    def shuffled(*args: Any, **options: Any) -> Any:
        return loader(*args, **options, shuffle=True)

    phases = {0: "net.5", 2: "net.2", 3: "net.0"}
    options: dict[str, Any] = {"loader": shuffled, "more": [names["RandomState"]()]}
    check_resumed(tmp_path, Noisy, schedule=FreezeSchedule(phases), batches=batches, **options)


def alternating(epoch: int) -> list[str]:
    return ["net.4", "net.0" if epoch % 2 else "net.2"]


@pytest.mark.parametrize("batches", [9, 15])
@pytest.mark.parametrize(
    "make", [lambda: FreezeSchedule({0: "net.4", 1: "net.2"}, period=3), lambda: FreezeSchedule(alternating)]
)
def test_turns(make: Callable[[], FreezeSchedule], batches: int, tmp_path: Path) -> None:
    check_resumed(tmp_path, schedule=make(), batches=batches)


def test_norms_that_thaw_keep_or_move_their_statistics_as_asked(tmp_path: Path) -> None:
    """Also after a kill: what was held is in the checkpoint."""
    phases = {0: "net.4", 2: ["net.1", "net.2"]}
    kept, _ = check_resumed(tmp_path / "kept", schedule=FreezeSchedule(phases))
    moved, _ = check_resumed(tmp_path / "moved", schedule=FreezeSchedule(phases, thaw_norm_stats=True))
    assert torch.equal(kept.net[1].running_mean, network()[1].running_mean)
    assert not torch.equal(moved.net[1].running_mean, network()[1].running_mean)


def test_one_callback_serves_several_trainers(tmp_path: Path) -> None:
    """As in cross-validation: each model is frozen from the start."""
    freezing = Freezing(FreezeSchedule({0: "net.4"}))
    for fold in range(2):
        module, watch = Module(), Power()
        trainer = lightning.Trainer(
            max_epochs=1, callbacks=[freezing, watch], accelerator="cpu", logger=False, default_root_dir=tmp_path
        )
        trainer.fit(module, DataLoader(data(), batch_size=4))
        assert watch.trained == {0: ["4"]}, fold


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    """``fit`` again with more epochs: the phase goes on, with a new optimizer for all."""
    watch, module = Power(), Module()
    trainer = lightning.Trainer(
        max_epochs=3,
        callbacks=[Freezing(FreezeSchedule(PHASES)), watch],
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(data(), batch_size=4))
    trainer.fit_loop.max_epochs = 5
    with pytest.raises(FtkitError, match=r"net\.0\.weight.*which no optimizer has"):
        trainer.fit(module, DataLoader(data(), batch_size=4))


def test_what_was_frozen_before_is_refused(tmp_path: Path) -> None:
    """The optimizer lacks what will thaw, and Lightning could not resume with the groups of later."""

    class Frozen(Filtered):
        def __init__(self) -> None:
            super().__init__()
            freeze_except(self, "net.4")

    with pytest.raises(FtkitError, match=r"trains net\..*which no optimizer has.*phase 0"):
        fit(tmp_path, Frozen)


def test_what_a_function_thaws_must_be_in_an_optimizer_too(tmp_path: Path) -> None:
    class Head(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net[4].parameters(), lr=0.1)

    phases = FreezeSchedule(lambda epoch: "net.4" if epoch < 1 else ["net.4", "net.2"])
    with pytest.raises(FtkitError, match=r"trains net\.2\.weight.*net\.2\.bias, which no optimizer has"):
        fit(tmp_path, Head, schedule=phases)


@pytest.mark.parametrize("schedule", [{0: "head"}, FreezeSchedule, None])
def test_only_a_schedule_is_taken(schedule: Any) -> None:
    with pytest.raises(FtkitError, match="takes a FreezeSchedule"):
        Freezing(schedule)


def test_a_wrong_name_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"net\.44"):
        fit(tmp_path, schedule=FreezeSchedule({0: "net.4", 9: "net.44"}))


def test_lightning_misses_the_callback_on_resuming(tmp_path: Path) -> None:
    """Its state is in the checkpoint, so leaving it out is noticed."""
    fit(tmp_path, max_epochs=1)
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"Please add the following callbacks:.*Freezing"):
        trainer.fit(Module(), DataLoader(data(), batch_size=4), ckpt_path=tmp_path / "last.ckpt")


def test_the_best_checkpoint_and_early_stopping(tmp_path: Path) -> None:
    """Lightning's own work as before."""
    best = callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=2, save_last=True)
    stopping = callbacks.EarlyStopping("val_loss", patience=1, min_delta=10.0)
    _, watch = fit(tmp_path, checkpoint=best, more=[stopping])
    assert set(watch.trained) == {0, 1}
    loaded = network()
    load_weights(loaded, best.best_model_path)
    assert same(Module.load_from_checkpoint(best.best_model_path).net, loaded)


@pytest.mark.parametrize("first", [True, False])
def test_weight_averaging_leaves_what_is_frozen(first: bool, tmp_path: Path) -> None:
    """Statistics and weights that were never trained are those of before, bit for bit, whichever callback is first."""
    swa = callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)
    schedule = FreezeSchedule({0: "net.4", 3: "net.2"})
    freezing = [swa] if first else []
    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=5,
        callbacks=[*freezing, Freezing(schedule), *([] if first else [swa])],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(data(), batch_size=4))
    before, after = network().state_dict(), module.net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias", "4.weight", "4.bias"}


def test_an_exponential_average_leaves_what_is_frozen(tmp_path: Path) -> None:
    average = callbacks.EMAWeightAveraging(decay=0.5)
    module, _ = fit(tmp_path, more=[average], schedule=FreezeSchedule({0: "net.4", 3: "net.2"}))
    before, after = network().state_dict(), module.net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias", "4.weight", "4.bias"}


def test_the_result_is_shared_as_a_delta(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, schedule=FreezeSchedule({0: "net.4"}))
    save_delta(module.net, tmp_path / "delta.safetensors", base=network())
    shared = network()
    load_delta(shared, tmp_path / "delta.safetensors")
    assert same(shared, module.net)


@pytest.mark.parametrize("part", [True, False])
def test_a_loop_of_ones_own_goes_on_with_a_checkpoint_of_lightning(part: bool, tmp_path: Path) -> None:
    """Weights and moments, whether the groups were made of the module or of the network in it."""

    class Part(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(param_groups(self.net, lr=0.01, layer_decay=0.5))

    module, _ = fit(tmp_path, Part if part else Module)
    model = network()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, layer_decay=0.5))
    checkpoint = load_checkpoint(tmp_path / "last.ckpt", model=model, optimizer=optimizer)
    assert same(model, module.net)
    assert checkpoint.epoch == 4
    theirs = module.optimizers().optimizer.state
    for own, other in zip(model.parameters(), module.net.parameters(), strict=True):
        assert (own in optimizer.state) == (other in theirs)
        if own in optimizer.state:
            assert torch.equal(optimizer.state[own]["exp_avg_sq"], theirs[other]["exp_avg_sq"])


def test_the_summary_of_lightning_counts_what_is_frozen(tmp_path: Path) -> None:
    """It is printed when training starts, after the callback."""

    class Peek(callbacks.ModelSummary):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.count = self._summary(trainer, pl_module).trainable_parameters

    peek = Peek()
    fit(tmp_path, more=[], max_epochs=1)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[Freezing(FreezeSchedule(PHASES)), peek],
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(), DataLoader(data(), batch_size=4))
    assert peek.count == 27


def test_evaluation_needs_no_schedule(tmp_path: Path) -> None:
    """``validate`` and ``predict`` with the same trainer, before any ``fit``."""
    trainer = lightning.Trainer(
        callbacks=[Freezing(FreezeSchedule(PHASES))], accelerator="cpu", logger=False, default_root_dir=tmp_path
    )
    trainer.validate(Module(), DataLoader(data(), batch_size=4))
    trainer.save_checkpoint(tmp_path / "untrained.ckpt")


def test_the_docstring_runs() -> None:
    assert doctest.testmod(ftkit.lightning).failed == 0


CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 5
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {folder}, name: "", version: ""}}}}
  enable_progress_bar: false
  callbacks:
    - class_path: ftkit.lightning.Freezing
      init_args:
        schedule:
          class_path: ftkit.FreezeSchedule
          init_args:
            phases: {{0: net.4, 2: [net.2], 3: [net.0]}}
    - class_path: tests.test_lightning.Power
      init_args: {{batches: {batches}}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {folder}, save_last: true}}
"""


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=4)


def test_the_command_line_of_lightning(tmp_path: Path) -> None:
    """From a YAML file; killed, and resumed by the configuration that it has written itself."""
    pytest.importorskip("jsonargparse")
    cli = pytest.importorskip("lightning.pytorch.cli").LightningCLI

    def run(*arguments: str) -> Any:
        return cli(Module, Data, args=["fit", *arguments], seed_everything_default=0)

    for name, batches in (("whole", 1000), ("killed", 15)):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(folder=tmp_path / name, batches=batches))
    whole = run("--config", str(tmp_path / "whole.yaml"))
    with pytest.raises(RuntimeError, match="power"):
        run("--config", str(tmp_path / "killed.yaml"))
    written = (tmp_path / "killed" / "config.yaml").rename(tmp_path / "written.yaml")
    written.write_text(written.read_text().replace("batches: 15", "batches: 1000"))
    resumed = run("--config", str(written), "--ckpt_path", str(tmp_path / "killed" / "last.ckpt"))
    assert resumed.trainer.current_epoch == 5
    assert same(whole.model, resumed.model)
    assert len(trainable(whole.model)) == 6


PACKAGES = """
import logging, sys, warnings
warnings.simplefilter("ignore")
{imports}
logging.getLogger(used.__name__).setLevel(logging.ERROR)
import torch
from ftkit import FreezeSchedule, trainable
class Module(used.LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    def training_step(self, batch, _):
        return self.head(self.body(batch)).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
assert isinstance(Freezing(FreezeSchedule({{0: "head"}})), used.Callback)
trainer = used.Trainer(
    max_epochs=1, callbacks=Freezing(FreezeSchedule({{0: "head"}})), accelerator="cpu", logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
module = Module()
trainer.fit(module, torch.utils.data.DataLoader(torch.ones(2, 2)))
print(sorted(trainable(module)), len({{"lightning.pytorch", "pytorch_lightning"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("imports", "count"),
    [
        ("import lightning.pytorch as used\nfrom ftkit.lightning import Freezing", 1),
        ("import pytorch_lightning as used\nfrom ftkit.lightning import Freezing", 1),
        ("from ftkit.lightning import Freezing\nimport pytorch_lightning as used", 2),
        ("from ftkit.lightning import Freezing\nimport lightning.pytorch as used", 2),
    ],
)
def test_both_packages_of_lightning(imports: str, count: int, tmp_path: Path) -> None:
    """Whichever is imported, and in whichever order; the other one is only imported where it can't be told."""
    pytest.importorskip("pytorch_lightning")
    done = subprocess.run(
        [sys.executable, "-c", PACKAGES.format(imports=imports)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        check=False,
    )
    assert done.stdout == f"['head.bias', 'head.weight'] {count}\n", done.stderr[-2000:]
