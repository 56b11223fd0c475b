"""peft's LoRA: what trains, kill and resume, share a delta. On a small BERT of random weights, in seconds on a CPU.

python examples/frameworks/with_peft.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from parts import Pictures, prove
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

import ftkit

SIZE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}


def pretrained() -> nn.Module:
    """Stands for ``BertForSequenceClassification.from_pretrained(...)``."""
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZE, vocab_size=100, num_labels=2))


# -- copy from here
def adapted() -> PeftModel:
    """Return the pretrained model with LoRA in its attention, and a new head."""
    model = pretrained()
    torch.manual_seed(0)
    ftkit.replace_head(model, 3)  # before peft wraps the model
    return get_peft_model(model, LoraConfig(r=4, target_modules=["query", "value"]))


def train(folder: Path, data: Pictures) -> PeftModel:
    """Train adapters and head for two epochs, then the last block too; resume if possible."""
    model = adapted()
    # peft has set requires_grad; ftkit also holds Dropout, and lets the head train.
    ftkit.freeze_except(model, "**.lora_*", "**.classifier")
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=1e-3))

    checkpoints = ftkit.CheckpointManager(folder, delta=True)  # not the whole model
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), 4):
        if epoch == 2:
            ftkit.unfreeze(model, "**.encoder.layer.3", optimizer=optimizer)
        model.train()
        for images, labels in DataLoader(data, batch_size=8, shuffle=True):
            tokens = (images[:, 0, 0, :16].abs() * 10).long() + 5
            tokens[:, 0] = labels  # stands for text
            optimizer.zero_grad()
            model(input_ids=tokens, labels=labels).loss.backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- to here


if __name__ == "__main__":
    prove(train, adapted)
