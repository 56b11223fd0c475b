"""What an epoch costs when the frozen part is computed once, beside a plain epoch and a loop cut by hand.

Ratios of CPU time in one run: ``python benchmarks/precompute.py [resnet50 bert efficientnet vit layer4]``.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ftkit import freeze_except, precompute, unfreeze

SAMPLES, BATCH = 64, 32


def resnet50() -> tuple[nn.Module, torch.Tensor, Callable[[torch.Tensor], torch.Tensor] | None, nn.Module | None]:
    model = timm.create_model("resnet50", num_classes=10)
    freeze_except(model, model.fc)
    return model, torch.randn(SAMPLES, 3, 224, 224), lambda x: model.global_pool(model.forward_features(x)), model.fc


def layer4() -> Any:
    model, inputs, _, _ = resnet50()
    unfreeze(model, "layer4")
    return model, inputs, None, None


def efficientnet() -> Any:
    model = timm.create_model("efficientnet_lite0", num_classes=10)
    freeze_except(model, "classifier", "blocks.6", "conv_head", "bn2")
    return model, torch.randn(SAMPLES, 3, 224, 224), None, None


def vit() -> Any:
    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    freeze_except(model, "head", "blocks.10", "blocks.11", "norm")
    return model, torch.randn(SAMPLES, 3, 224, 224), None, None


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, num_labels=10
    )
    model = BertForSequenceClassification(config)
    freeze_except(model, "classifier")
    return model, torch.randint(0, 30000, (SAMPLES, 128)), lambda x: model.bert(x).pooler_output, model.classifier


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


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SAMPLES} samples, batches of {BATCH}")
    for name in names:
        torch.manual_seed(0)
        model, inputs, features, head = globals()[name]()
        data = TensorDataset(inputs, torch.randint(0, 10, (SAMPLES,)))
        model.train()
        trained = [one for one in model.parameters() if one.requires_grad]
        plain = min(epoch(model, DataLoader(data, BATCH, shuffle=True), trained) for _ in range(2))
        with tempfile.TemporaryDirectory() as folder:
            begin = time.process_time()
            cached = precompute(model, data, folder, batch_size=BATCH)
            whole = time.process_time() - begin
            begin = time.process_time()
            cached = precompute(model, data, folder, batch_size=BATCH)
            frontier = time.process_time() - begin
            with cached:
                ours = min(epoch(model, cached.loader(batch_size=BATCH, shuffle=True), trained) for _ in range(5))
            loader = DataLoader(data, BATCH, shuffle=True)
            with precompute(model, loader, folder):
                first = epoch(model, loader, trained)
                epoch(model, loader, trained)  # in which a batch is computed once more
                content = min(epoch(model, loader, trained) for _ in range(5))
        with torch.no_grad():
            begin = time.process_time()
            model(inputs[:BATCH])
            forward = time.process_time() - begin
        line = (
            f"{name}: plain / ours {plain / ours:.1f}, first pass / plain {(whole - frontier) / plain:.2f}, "
            f"plain / by content {plain / content:.1f}, first epoch by content / plain {first / plain:.2f}, "
            f"opening / a forward of {BATCH} {frontier / forward:.1f}, kept {cached.bytes_per_sample:,} bytes"
        )
        if features is not None and head is not None:
            with torch.no_grad():
                kept = torch.cat([features(one) for one in inputs.split(BATCH)])
            table = DataLoader(TensorDataset(kept, data.tensors[1]), BATCH, shuffle=True)
            by_hand = min(epoch(head, table, trained) for _ in range(5))
            line += f", ours / cut by hand {ours / by_hand:.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["resnet50", "bert", "efficientnet", "vit", "layer4"])
