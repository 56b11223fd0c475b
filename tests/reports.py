"""One of everything that ftkit gives back and that people print, with names of files that are hard to print."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import ftkit
from ftkit.selection import select

HARD = "dög-고양이<b>&\x1b[31m\u202egpj"


def model_of_blocks() -> nn.Sequential:
    """Return a model with a list of equal blocks, for a summary to fold."""
    blocks = [nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(*blocks, nn.Linear(16, 5))


def of_models(folder: Path) -> dict[str, Any]:
    """Return what tells of a model."""
    model = model_of_blocks()
    reports: dict[str, Any] = {"summary without an input": ftkit.summary(model)}
    reports["summary"] = before = ftkit.summary(model, (8, 16))
    reports["freezing"] = ftkit.freeze(model, "0", "1", "2")
    reports["summary, frozen"] = ftkit.summary(model, (8, 16))
    reports["comparison"] = ftkit.compare(before, reports["summary, frozen"])
    reports["head"] = ftkit.find_head(model)
    reports["selection"] = select(model, "1")
    reports["groups"] = ftkit.param_groups(model, 1e-3, layer_decay=0.75)
    schedule = ftkit.FreezeSchedule({0: "6", 3: ["1", model[2], nn.LayerNorm]})
    schedule.step(0, model=model)
    model = model_of_blocks()
    ftkit.freeze_except(model, "6")
    samples = [(torch.randn(16), at) for at in range(4)]
    reports["once"] = ftkit.precompute(model, samples, folder / HARD)
    reports["once, rounded"] = ftkit.precompute(model, samples, folder / HARD, dtype=torch.bfloat16)
    loader = torch.utils.data.DataLoader(samples, 2)
    with ftkit.precompute(model, loader, folder / HARD) as reports["once, by content"]:
        for inputs, _ in (*loader, *loader):
            model(inputs)
        model(inputs[None])
    return reports | {"schedule": schedule, "schedule by a function": ftkit.FreezeSchedule(lambda epoch: "6")}


def of_files(folder: Path) -> dict[str, Any]:
    """Return what tells of files, in a folder with a hard name."""
    model, path = model_of_blocks(), folder / f"{HARD}.safetensors"
    ftkit.save_weights(model, path)
    reports: dict[str, Any] = {"file": ftkit.inspect_checkpoint(path), "loading": ftkit.load_weights(model, path)}
    ftkit.replace_head(model, 3)
    reports["loading what misfits"] = ftkit.load_weights(model, path, strict=False, drop_mismatched=True)
    reports["mismatch"] = reports["loading what misfits"].mismatched_keys[0]
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter += 1  # the bias of a norm was zero
    reports["difference"] = ftkit.diff_checkpoints(path, model)
    reports["change"] = reports["difference"].changed[0]
    reports["manager"] = manager = ftkit.CheckpointManager(folder / HARD, monitor="val_loss")
    for epoch in range(3):
        manager.save(epoch, model=nn.Linear(2, 2), metrics={"val_loss": abs(epoch - 1)}, note="x")
    assert manager.last_path is not None
    reports["checkpoint"] = ftkit.load_checkpoint(manager.last_path)
    reports["loader"] = ftkit.ResumableLoader(list(range(8)), batch_size=2)
    reports["stopping"] = stopping = ftkit.EarlyStopping(2, monitor="verlust_für_고양이", mode="min")
    stopping.step(0.5)
    stopping.step(0.7)
    return reports


def of_data(folder: Path) -> dict[str, Any]:
    """Return what tells of archives and images, in folders and files with hard names."""
    packed, root = folder / f"{HARD}.zip", folder / f"pets {HARD}"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("wrap/tom-고양이.txt", b"...")
        archive.writestr("__MACOSX/wrap/._tom.txt", b"...")
    reports: dict[str, Any] = {"archive": ftkit.extract_archive(packed, folder / f"out {HARD}", strip=True)}
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("cat", HARD):
            (root / split / kind).mkdir(parents=True)
            for number in range(2):
                pixels = noise.integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((90, 90)).save(root / split / kind / f"{number}.jpg")
    whole = (root / "train/cat/0.jpg").read_bytes()
    (root / "val" / HARD / f"{HARD}.jpg").write_bytes(whole)
    (root / "train/cat" / f"cut {HARD}.jpg").write_bytes(whole[:900])
    (root / "train/cat" / os.fsdecode(b"\xff.jpg")).write_bytes(whole[:700])
    (root / "train/cat/odd.png").write_bytes(whole)
    (root / "train/Thumbs.db").write_bytes(b"x")
    reports["scan"] = scan = ftkit.scan_images(root, workers=1)
    reports |= {"finding": scan.findings[0], "copies": scan.duplicates[0]}
    reports["repair"] = scan.repair(folder / f"mended {HARD}")
    return reports | {"quarantine": scan.quarantine(folder / f"aside {HARD}")}


def every_report(folder: Path) -> dict[str, Any]:
    """Return one of everything, by what it is."""
    return of_models(folder) | of_files(folder) | of_data(folder)
