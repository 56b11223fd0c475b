"""Every block of Python on the pages runs, in order, with what the page takes for granted."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ftkit import CheckpointManager, restore, save_weights

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in sorted(ROOT.glob("docs/**/*.md"))
    if "```python" in path.read_text(encoding="utf-8") and path.stem != "your-own-loop"  # those are excerpts, below
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.frameworks,
    pytest.mark.skipif(not (ROOT / ".github").exists(), reason="An sdist lacks some of the papers."),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler"),  # where "..." stands for the loop
]


def blocks(path: Path) -> list[str]:
    """Return the code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def pictures() -> None:
    """Make ``data/pets`` with a train and a val folder, and a broken file."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("cats", "dogs"):
            folder = Path("data/pets", split, kind)
            folder.mkdir(parents=True)
            for number in range(3):
                picture = noise.integers(0, 255, (48, 48, 3), np.uint8)
                Image.fromarray(picture).save(folder / f"{number}.jpg")
    broken = Path("data/pets/train/cats/0.jpg")
    broken.write_bytes(broken.read_bytes()[:700])


def archives() -> None:
    """Make the archives that the page on them unpacks."""
    with zipfile.ZipFile("pets.zip", "w") as archive:
        archive.writestr("cats/tom.jpg", b"meow")
    Path("scans.zip").write_bytes(Path("pets.zip").read_bytes())
    Path("masks.tar.xz").write_bytes(Path("pets.zip").read_bytes())  # the content tells the format


def resnet50(**options: Any) -> nn.Module:
    """Stand for the pretrained ResNet-50: the same weights at each call."""
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet50", **options)


def weights_files() -> dict[str, Any]:
    """Make the files that the page on weights loads."""
    state = resnet50().state_dict()
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}}, "last.ckpt")
    torch.save({f"encoder.{name}": value for name, value in state.items() if "fc" not in name}, "encoder.pth")
    save_weights(state, "epoch-1.safetensors")
    save_weights(state | {"fc.bias": state["fc.bias"] + 1}, "epoch-9.safetensors")
    import timm

    save_weights(timm.create_model("vit_giant_patch14_224", depth=1), "giant.safetensors")
    return {}


def frozen() -> dict[str, Any]:
    """Return a small network with its data, and a trainer."""
    torch.manual_seed(0)
    samples = [(torch.randn(3, 8, 8), at % 3) for at in range(12)]
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(4, 10)))

    def fit(module: nn.Module, *loaders: Any) -> None:
        for loader in loaders:
            for rows, _ in loader:
                assert module(rows).shape == (12, 37)

    data = {"train_set": samples, "val_set": samples[::-1]}
    return data | {"model": model, "module": model, "trainer": SimpleNamespace(fit=fit)}


def loop() -> dict[str, Any]:
    """Return what a training loop has: a model, an optimizer, data, and functions of one's own."""
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randint(2, (8,)))

    def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Any, labels: Any) -> None:
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "dataset": data,
        "loader": torch.utils.data.DataLoader(data),
        "train_step": train_step,
        "train_one_epoch": lambda model, optimizer, loader: [train_step(model, optimizer, *batch) for batch in loader],
        "validate": lambda model: 1.0,
    }


def texts() -> dict[str, Any]:
    """Return what the Trainer's page trains on: six batches of tokens."""
    pytest.importorskip("transformers")
    tokens = torch.arange(48 * 8).view(48, 8) % 40 + 5
    return {"data": [{"input_ids": row, "labels": at % 3} for at, row in enumerate(tokens)]}


# Before a block of a page, by its number: functions that make files, or return names for what follows.
BEFORE: dict[tuple[str, int], Any] = {
    ("archives", 0): archives,
    ("checkpoints", 0): loop,
    ("checkpoints", 3): lambda: {"checkpoints": CheckpointManager("runs/dogs", monitor="val_loss")},  # another run
    ("deltas", 0): lambda: {"resnet50": resnet50},
    ("deltas", 2): lambda: save_weights(resnet50(), "resnet50.safetensors"),
    ("gallery", 0): pictures,
    ("images", 0): pictures,
    ("images", 2): lambda: Path("pets-chosen.txt").write_text("train/cats/0.jpg\n") and {},  # as saved in the browser
    ("images", 4): lambda: restore("data/pets-quarantine") and {},  # what was chosen, for all to be moved
    ("precompute", 0): frozen,
    ("trainer", 0): texts,
    ("weights", 1): weights_files,
}

# What a test can't have, and what stands for it.
INSTEAD = {
    "deltas": {'timm.create_model("resnet50", pretrained=True)': "resnet50()"},
    "archives": {', encoding="cp949")': ", encoding=None)"},  # into a folder that another encoding has filled: an error
    "checkpoints": {  # four batches, not thousands
        "num_workers=4": "num_workers=0",
        "batch_size=32": "batch_size=2",
        "step % 1000 == 999": "step == 1",
    },
    "images": {
        'Client("scheduler:8786")': "Client(n_workers=1, processes=False, dashboard_address=None)",
        '"/mnt/pets"': '"data/pets"',
    },
    "precompute": {"range(100)": "range(2)"},
    "weights": {'"vit_giant_patch14_224"': '"vit_giant_patch14_224", depth=1'},
}

# Blocks that the page shows with the error they raise.
RAISES = {("weights", 2): "0 of 320 tensors match"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, in one namespace and one folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks(path)):
        names |= BEFORE.get((path.stem, number), dict)() or {}
        for words, instead in INSTEAD.get(path.stem, {}).items():
            code = code.replace(words, instead)
        message = RAISES.get((path.stem, number))
        with pytest.raises(Exception, match=message) if message else contextlib.nullcontext():
            exec(compile(code, f"{path.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", sorted(INSTEAD))
def test_what_is_replaced_is_there(page: str) -> None:
    """A substitution that no longer applies is deleted."""
    code = "".join(block for path in PAGES if path.stem == page for block in blocks(path))
    assert [words for words in INSTEAD[page] if words not in code] == []


def test_the_table_of_what_freezing_saves_is_what_its_code_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, as rounded as the table has them."""
    from ftkit._wording import in_bytes

    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/tutorials/what-freezing-saves.md"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(blocks(page)[0], {})
    printed = [list(map(int, line.split())) for line in out.getvalue().splitlines()]
    cells = re.findall(r"^\|[^|]+\|(.+)\|$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[2:]
    table = [[cell.strip() for cell in row.split("|")] for row in cells]
    assert len(printed) == len(table) == 4
    for (params, flops, saved, peak, batch), row in zip(printed, table, strict=True):
        assert _number(row[0]) == pytest.approx(params, rel=0.01)
        assert _number(row[1].removesuffix("FLOP")) == pytest.approx(flops, rel=0.01)
        assert row[2:] == [in_bytes(saved), in_bytes(peak), str(batch)]


def _number(text: str) -> float:
    value, _, unit = text.strip().partition(" ")
    return float(value) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[unit.strip()]


@pytest.mark.filterwarnings("ignore")
def test_what_thaws_by_steps_resumes(tmp_path: Path) -> None:
    """As the Trainer's page has it: killed before the thaw and after it, and resumed, it ends with the same weights."""
    names = texts()
    exec(blocks(ROOT / "docs/frameworks/trainer.md")[0], names)
    from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed

    class Power(TrainerCallback):
        def __init__(self, steps: int) -> None:
            self.steps = steps

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == self.steps:
                raise KeyboardInterrupt

    def build() -> Any:
        set_seed(0)
        size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 3}
        return BertForSequenceClassification(BertConfig(**size, intermediate_size=16))

    def fit(folder: str, stop: int = 0, *, resume: bool | None = None) -> dict[str, torch.Tensor]:
        model = build()
        trainer = names["trainer"](model, tmp_path / folder)
        trainer.add_callback(Power(stop))
        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    before, whole = build().state_dict(), fit("whole")
    moved = {name for name in before if not torch.equal(before[name], whole[name])}
    assert moved == {name for name in before if "classifier" in name or ".layer.1." in name}
    for stop in (3, 5):  # saved after two steps, and after four
        fit(f"killed {stop}", stop)
        resumed = fit(f"killed {stop}", resume=True)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_the_excerpts_of_the_tutorial_are_lines_of_the_example() -> None:
    """Comments aside."""
    lines = {line.strip() for line in (ROOT / "examples/finetune.py").read_text(encoding="utf-8").splitlines()}
    shown = [line for block in blocks(ROOT / "docs/tutorials/your-own-loop.md") for line in block.splitlines()]
    code = {line.split("  #")[0].strip() for line in lines}
    assert [line for line in shown if line.split("  #")[0].strip() not in code] == []
