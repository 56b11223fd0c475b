"""Hugging Face's Trainer: freeze, thaw by epoch, kill and resume, share a delta. A ViT and a BERT of random weights.

python examples/frameworks/with_trainer.py
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from parts import Pictures, PowerCut, compare
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import ftkit
from ftkit.transformers import FreezingCallback


class Images(Pictures):
    """The pictures as a ViT takes them."""

    def __getitem__(self, index: int) -> dict:
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


class Texts(Pictures):
    """Rows of tokens, each with its class as the first one."""

    def __getitem__(self, index: int) -> dict:
        image, label = super().__getitem__(index)
        tokens = (image[0, 0, :16].abs() * 10).long() + 5
        tokens[0] = label
        return {
            "input_ids": tokens,
            "attention_mask": torch.ones(16, dtype=torch.long),
            "labels": label,
        }


SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def vit() -> nn.Module:
    """Stands for ``ViTForImageClassification.from_pretrained(...)``."""
    set_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZE, image_size=64, num_labels=1000))


def bert() -> nn.Module:
    """Stands for ``BertForSequenceClassification.from_pretrained(...)``."""
    set_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZE, vocab_size=100, num_labels=2))


def train(pretrained: Callable[[], nn.Module], data: Dataset, folder: Path) -> nn.Module:
    """Train the head for two epochs, then the last two blocks too; resume if possible."""
    model = pretrained()
    head = ftkit.replace_head(model, 3)
    schedule = ftkit.FreezeSchedule({0: head, 2: ftkit.last_blocks(model, 2)})
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=1e-3, layer_decay=0.75))
    arguments = TrainingArguments(
        folder,
        num_train_epochs=4,
        per_device_train_batch_size=8,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        save_strategy="epoch",
        save_total_limit=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        optimizers=(optimizer, None),
        callbacks=[FreezingCallback(schedule)],
    )
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return model


def main() -> None:
    for pretrained, data in ((vit, Images), (bert, Texts)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            whole = train(pretrained, data(), folder / "whole")
            with contextlib.suppress(PowerCut):
                train(pretrained, data(power=24 * 3 + 10), folder / "killed")  # in the fourth epoch
            resumed = train(pretrained, data(), folder / "killed")
            compare(f"{pretrained.__name__}, killed and resumed", whole, resumed)

            ftkit.save_delta(resumed, folder / "delta.safetensors")
            shared = pretrained()
            ftkit.load_delta(shared, folder / "delta.safetensors")
            compare(f"{pretrained.__name__}, pretrained network + delta", resumed, shared)


if __name__ == "__main__":
    main()
