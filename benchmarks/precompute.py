"""What an epoch costs when the frozen part is computed once, beside a plain epoch and a loop cut by hand.

Ratios of CPU time in one run: ``python benchmarks/precompute.py [resnet50 bert efficientnet vit layer4]``. With
``photos`` the head of a ResNet-50 trains on photos, which are decoded; ``--plot PNG`` draws where the time of that
goes. With ``growth`` a small network computes 1,000 to 100,000 samples, in time and memory.

``python benchmarks/precompute.py zoo [WORD]`` judges models of many families (tests/precompute/zoo.py), each in a
process with a limit, and prints what is kept beside the least that would do.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ftkit import freeze_except, precompute, unfreeze

SAMPLES, BATCH, ROUNDS, EPOCHS, FIRSTS = 64, 32, 5, 3, 3
PHOTOS, AT_ONCE = 48, 16


Cut = tuple[nn.Module, torch.Tensor, Callable[[Any], torch.Tensor], Callable[[Any], torch.Tensor]]
"""A model, what it takes, and its two halves as they would be cut by hand: what is frozen, and what trains."""


def resnet50() -> Cut:
    model = timm.create_model("resnet50", num_classes=10)
    freeze_except(model, model.fc)
    return model, torch.randn(SAMPLES, 3, 224, 224), lambda x: model.global_pool(model.forward_features(x)), model.fc


def layer4() -> Cut:
    model, inputs, _, _ = resnet50()
    unfreeze(model, "layer4")
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool, model.layer1, model.layer2, model.layer3)
    return model, inputs, stem, nn.Sequential(model.layer4, model.global_pool, model.fc)


def efficientnet() -> Cut:
    model = timm.create_model("efficientnet_lite0", num_classes=10)
    freeze_except(model, "classifier", "blocks.6", "conv_head", "bn2")
    stem = nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:6])
    stage = nn.Sequential(model.blocks[6], model.conv_head, model.bn2)
    return model, torch.randn(SAMPLES, 3, 224, 224), stem, lambda x: model.forward_head(stage(x))


def vit() -> Cut:
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    freeze_except(model, "head", "blocks.10", "blocks.11", "norm")

    def tokens(x: torch.Tensor) -> torch.Tensor:
        return model.blocks[:10](model.norm_pre(model._pos_embed(model.patch_embed(x))))

    stage = nn.Sequential(*model.blocks[10:], model.norm)
    return model, torch.randn(SAMPLES, 3, 224, 224), tokens, lambda x: model.forward_head(stage(x))


def bert() -> Cut:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, num_labels=10
    )
    model = BertForSequenceClassification(config)
    freeze_except(model, "classifier")
    head = nn.Sequential(model.dropout, model.classifier)
    return model, torch.randint(0, 30000, (SAMPLES, 128)), lambda x: model.bert(x).pooler_output, head


def epoch(model: Callable[[Any], Any], loader: Iterable[Any], trained: list[nn.Parameter]) -> float:
    """The CPU time of one epoch of a plain loop."""
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    begin = time.process_time()
    for inputs, labels in loader:
        output = model(inputs)
        loss = nn.functional.cross_entropy(output if isinstance(output, torch.Tensor) else output.logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - begin


def several(model: Callable[[Any], Any], loader: Iterable[Any], trained: list[nn.Parameter]) -> float:
    """The CPU time of an epoch of several, after one in which what comes first is done."""
    epoch(model, loader, trained)
    return min(epoch(model, loader, trained) for _ in range(EPOCHS))


def first_passes(model: nn.Module, data: TensorDataset, trained: list[nn.Parameter]) -> dict[str, float]:
    """The CPU time of a first pass, by index and by content, and what stands beside it."""
    loader = DataLoader(data, BATCH, shuffle=True)
    times = {"plain": epoch(model, loader, trained)}
    begin = time.process_time()
    with torch.no_grad():
        model(data.tensors[0][:BATCH])
    times["forward"] = time.process_time() - begin
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        precompute(model, data, folder, batch_size=BATCH)
        whole = time.process_time() - begin
        begin = time.process_time()
        precompute(model, data, folder, batch_size=BATCH)
        times["opening"] = time.process_time() - begin
        times["index"] = whole - times["opening"]
        with precompute(model, loader, folder):
            times["content"] = epoch(model, loader, trained)
    return times


def jpegs(folder: Path) -> ImageFolder:
    """Photos of a usual size, of smooth noise."""
    random = np.random.default_rng(0)
    for at in range(PHOTOS):
        pixels = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        path = folder / str(at % 10) / f"{at}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return ImageFolder(folder, transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()]))


def photos(picture: str | None) -> None:
    """Where the time of an epoch goes when images are read from files."""
    model, _, _, head = resnet50()
    model.train()
    trained = list(head.parameters())
    with tempfile.TemporaryDirectory() as folder:
        loader = DataLoader(jpegs(Path(folder, "photos")), AT_ONCE, shuffle=True)
        begin = time.process_time()
        for _ in loader:
            pass
        read = time.process_time() - begin
        features = DataLoader(TensorDataset(torch.randn(PHOTOS, 2048), torch.arange(PHOTOS) % 10), AT_ONCE)
        trains = min(epoch(head, features, trained) for _ in range(5))
        plain = epoch(model, loader, trained)
        first, later = {"plain": plain}, {"plain": plain}
        begin = time.process_time()
        cached = precompute(model, loader.dataset, folder, batch_size=AT_ONCE)
        whole = time.process_time() - begin
        begin = time.process_time()
        precompute(model, loader.dataset, folder, batch_size=AT_ONCE)
        opening = time.process_time() - begin  # which does not grow with the photos
        first["index"] = whole - opening
        with cached:
            epochs = [epoch(model, cached.loader(batch_size=AT_ONCE, shuffle=True), trained) for _ in range(6)]
            later["index"] = min(epochs)
        with precompute(model, loader, folder):
            first["content"] = epoch(model, loader, trained)
            epoch(model, loader, trained)  # in which a batch is computed once more
            later["content"] = min(epoch(model, loader, trained) for _ in range(3))
    print(
        f"photos: plain {plain:.2f} s of CPU (reading {read:.2f}), by content {later['content']:.2f} "
        f"({plain / later['content']:.1f} times), by index {later['index']:.4f} ({plain / later['index']:.0f} times); "
        f"first pass / plain {first['content'] / plain:.2f} by content, {first['index'] / plain:.2f} by index, "
        f"opening {opening:.1f} s"
    )
    if picture:
        draw(picture, read, trains, first, later)


NAMES = {"plain": "plain loop", "content": "your own loader", "index": "cached.loader()"}
COLORS = {"plain": "#8a8a8a", "content": "#e07a1f", "index": "#2a6f97"}


def draw(picture: str, read: float, trains: float, first: dict[str, float], later: dict[str, float]) -> None:
    """Bars of one epoch, by what takes its time; and the sum of many."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plain = later["plain"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained", width_ratios=(1.25, 1))
    kinds = {"what is frozen": "#9bb8c9", "reading images": "#d9d9d9", "look-ups, and what trains": "#b5651d"}
    for at, name in enumerate(NAMES):
        whole = later[name]
        reads = 0.0 if name == "index" else min(read, whole)
        frozen = whole - reads - trains if name == "plain" else 0.0
        parts = (frozen, reads, whole - reads - frozen)
        start = 0.0
        for part, (kind, color) in zip(parts, kinds.items(), strict=True):
            left.barh(at, 100 * part / plain, 0.55, start, color=color, label=None if at else kind)
            start += 100 * part / plain
        times = "" if name == "plain" else f"    {plain / whole:,.0f} times faster"
        share = 100 * whole / plain
        left.text(share + 1.5, at, f"{share:.2g}%{times}" if share < 99 else "100%", va="center", color=COLORS[name])
    keys = {"plain": "", "content": "\nkeyed by content", "index": "\nkeyed by index"}
    left.set_yticks(range(3), [NAMES[name] + keys[name] for name in NAMES])
    left.invert_yaxis()
    left.set(title="Time of an epoch, once the first is over", xlim=(0, 114))
    left.xaxis.set_major_formatter("{x:.0f}%")
    left.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.43), handlelength=1.2)
    epochs = np.arange(1, 21)
    for name, color in COLORS.items():
        sums = (first[name] + later[name] * (epochs - 1)) / plain
        right.plot(epochs, sums, color=color, linewidth=2)
        below = name == "index"
        right.annotate(
            NAMES[name], (20, sums[-1]), (0, -5 if below else 5), textcoords="offset points", ha="right",
            va="top" if below else "bottom", color=color,
        )  # fmt: skip
    right.set(
        title="All epochs so far, in plain ones (log scale)", xlabel="epoch", yscale="log", ylim=(0.5, 32), xlim=(1, 20)
    )
    right.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    right.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    right.xaxis.set_major_locator(mpl.ticker.FixedLocator([1, 5, 10, 15, 20]))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, axis="x" if axes is left else "both")
        axes.set_axisbelow(True)
    left.spines["left"].set_visible(False)
    left.tick_params(axis="y", length=0)
    figure.savefig(picture, dpi=130)
    plt.close(figure)


def growth() -> None:
    """The first pass over more and more samples of 64 numbers."""
    import resource

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    freeze_except(model, "2")
    for samples in (1_000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            data = Numbers(samples)
            begin = time.process_time()
            cached = precompute(model, data, folder, batch_size=256)
            first = time.process_time() - begin
            begin = time.process_time()
            with cached:
                for rows, _ in cached.loader(batch_size=256, shuffle=True):
                    model(rows)
            later = time.process_time() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(
            f"growth: {samples:,} samples, first pass {1e6 * first / samples:.0f} us each, an epoch "
            f"{1e6 * later / samples:.0f} us each, {cached.bytes_per_sample} bytes each, peak {peak} MiB",
            flush=True,
        )


class Numbers(Dataset[Any]):
    """Samples that take no memory."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> Any:
        return torch.full((64,), float(index)), index % 10


def zoo(word: str) -> None:
    """Each outcome as it comes, and the counts."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.precompute.zoo import CASES, judged, share_same

    done = []
    for one in judged(case for case in CASES if word in case):
        done.append(one)
        ratio = f", {one.kept / one.least:.2f} of the least" if one.least else ""
        print(f"{one.case}: {one.verdict}, {one.kept:,} bytes{ratio}, {one.seconds:.0f} s {one.why[:400]}", flush=True)
    print(*(f"{count:5} {verdict}" for verdict, count in Counter(one.verdict for one in done).most_common()), sep="\n")
    wide = [one for one in done if one.kept > 1.1 * one.least > 0]
    print(f"{share_same(done):.1%} the same; {len(wide)} keep more than 1.1 of the least")


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    if names[0] == "zoo":
        zoo("".join(names[1:]))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SAMPLES} samples, batches of {BATCH}")
    picture = names[names.index("--plot") + 1] if "--plot" in names else None
    for name in names[: names.index("--plot")] if picture else names:
        torch.manual_seed(0)
        if name in ("photos", "growth"):
            photos(picture) if name == "photos" else growth()
            continue
        model, inputs, features, head = globals()[name]()
        data = TensorDataset(inputs, torch.randint(0, 10, (SAMPLES,)))
        model.train()
        trained = [one for one in model.parameters() if one.requires_grad]
        loader = DataLoader(data, BATCH, shuffle=True)
        epoch(model, loader, trained)
        with torch.no_grad():
            kept = torch.cat([features(one) for one in inputs.split(BATCH)])
        table = DataLoader(TensorDataset(kept, data.tensors[1]), BATCH, shuffle=True)
        firsts = [first_passes(model, data, trained) for _ in range(FIRSTS)]  # in turns with plain epochs
        plain = min(one["plain"] for one in firsts)
        opening, first_pass, first_content = (
            statistics.median(one[kind] / one[beside] for one in firsts)
            for kind, beside in (("opening", "forward"), ("index", "plain"), ("content", "plain"))
        )
        with tempfile.TemporaryDirectory() as folder:
            cached, by_content = (precompute(model, one, folder, batch_size=BATCH) for one in (data, loader))
            with by_content:
                epoch(model, loader, trained)
                epoch(model, loader, trained)  # in which a batch is computed once more
            times: dict[str, list[float]] = {"ours": [], "content": [], "hand": []}
            for _ in range(ROUNDS):  # in turns, so that what else the machine does is shared
                times["hand"].append(several(head, table, trained))
                with cached:
                    times["ours"].append(several(model, cached.loader(batch_size=BATCH, shuffle=True), trained))
                with by_content:
                    times["content"].append(several(model, loader, trained))
        ours, content, by_hand = (min(times[one]) for one in ("ours", "content", "hand"))
        line = (
            f"{name}: plain / ours {plain / ours:.1f}, plain / cut by hand {plain / by_hand:.1f}, ours / cut by hand "
            f"{ours / by_hand:.2f}, plain / by content {plain / content:.1f}, first pass / plain "
            f"{first_pass:.2f}, first epoch by content / plain {first_content:.2f}, opening / a "
            f"forward of {BATCH} {opening:.1f}, kept {cached.bytes_per_sample:,} bytes"
        )
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "bert", "efficientnet", "vit", "layer4", "photos", "growth"])
