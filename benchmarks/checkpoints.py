"""Files of weights: time to save, load and inspect, in units of what the disk and the memory take for the same bytes.

    python benchmarks/checkpoints.py [save load inspect safety] [--model vit_base_patch16_224] [--rounds 7]

Contenders take turns within a round, and each is divided by the plain call of the same round; the median over the
rounds counts, after one round to warm up. So other work on the machine weighs on all alike.

save     durable: the file and its folder are forced to the disk. The unit is ``os.write`` and ``fsync``
load     into an existing model, page cache warm and cold. The unit is ``readinto`` the model's own memory
inspect  milliseconds to list a file's tensors
safety   what becomes of one flipped bit, and of a file that brings a command along
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ftkit import inspect_checkpoint, load_weights, save_weights

SECTIONS: dict[str, Callable[[nn.Module, Path, int], None]] = {}


def section(run: Callable[[nn.Module, Path, int], None]) -> Callable[[nn.Module, Path, int], None]:
    """Enter a function of (model, folder, rounds) as a section under its own name."""
    SECTIONS[run.__name__] = run
    return run


def buffers(model: nn.Module) -> list[memoryview]:
    """The memory of a model's values."""
    return [memoryview(t.reshape(-1).view(torch.uint8).numpy()) for t in model.state_dict().values() if t.numel()]


def force(path: Path) -> None:
    """Force a file and its folder to the disk, as every save must that is to outlive a power cut."""
    for one in (path, path.parent):
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, and ratios to the first contender round by round."""
    unit = next(iter(times.values()))
    print(f"\n{title:44}{'seconds':>9}{'ratio':>8}")
    for name, own in times.items():
        ratio = statistics.median(one / plain for one, plain in zip(own, unit, strict=True))
        print(f"  {name:42}{statistics.median(own):9.3f}{ratio:8.2f}")


def write(model: nn.Module, path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for data in buffers(model):
            done = 0
            while done < len(data):
                done += file.write(data[done:])
    force(path)


def torch_save(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)
    force(path)


def safetensors_save(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)
    force(path)


def readinto(model: nn.Module, path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        for data in buffers(model):
            done = 0
            while done < len(data):
                done += file.readinto(data[done:])  # type: ignore[attr-defined]


def torch_load(model: nn.Module, path: Path) -> None:
    model.load_state_dict(torch.load(path, weights_only=True))


def safetensors_load(model: nn.Module, path: Path) -> None:
    model.load_state_dict(load_file(path))


@section
def save(model: nn.Module, folder: Path, rounds: int) -> None:
    contenders = {
        "os.write and fsync": write,
        "torch.save": torch_save,
        "safetensors save_file": safetensors_save,
        "ftkit save_weights (with digests)": save_weights,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            path = folder / "save.safetensors"
            path.unlink(missing_ok=True)
            os.sync()
            taken = seconds(lambda run=run, path=path: run(model, path))
            if number:
                times[name].append(taken)
    table("save, durable", times)


@section
def load(model: nn.Module, folder: Path, rounds: int) -> None:
    contenders = {
        "readinto": (write, readinto),
        "torch.load": (torch_save, torch_load),
        "safetensors load_file": (safetensors_save, safetensors_load),
        "ftkit load_weights (verified)": (save_weights, load_weights),
        "ftkit load_weights of a .pt (verified)": (torch_save, load_weights),
    }
    paths = {name: folder / f"{index}.bin" for index, name in enumerate(contenders)}
    for name, (store, _) in contenders.items():
        store(model, paths[name])
    cold: dict[str, list[float]] = {name: [] for name in contenders}
    warm: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, (_, run) in contenders.items():
            forget(paths[name])
            first, second = (seconds(lambda name=name, run=run: run(model, paths[name])) for _ in range(2))
            if number:
                cold[name].append(first)
                warm[name].append(second)
    table("load into the model, warm", warm)
    table("load into the model, cold", cold)


@section
def inspect(model: nn.Module, folder: Path, rounds: int) -> None:
    print(f"\n{'inspect':44}{'tensors':>9}{'MB':>8}{'ms':>8}")
    save_weights(model, folder / "i.safetensors")
    save_weights(model, folder / "i.pt")
    torch.save(model.state_dict(), folder / "i.old.pt", _use_new_zipfile_serialization=False)
    for name in ("i.safetensors", "i.pt", "i.old.pt"):
        taken = [seconds(lambda name=name: str(inspect_checkpoint(folder / name))) for _ in range(rounds)]
        info = inspect_checkpoint(folder / name)
        milliseconds = 1000 * statistics.median(taken)
        print(f"  {info.format:42}{len(info.tensors):9}{info.nbytes / 1e6:8.0f}{milliseconds:8.1f}")


@section
def safety(model: nn.Module, folder: Path, _rounds: int) -> None:
    marker = folder / "ftkit-was-here"

    def flipped(path: Path) -> Path:
        """Flip one bit in the middle of the file, which is in a tensor."""
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x40]))
        return path

    def outcome(run: Callable[[], object]) -> str:
        marker.unlink(missing_ok=True)
        try:
            run()
            told = "loaded"
        except Exception as error:
            told = f"refused ({type(error).__name__})"
        return "RAN THE COMMAND" if marker.exists() else f"{told}, nothing ran"

    class Attack:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {marker}",)

    hostile = folder / "hostile.pt"
    torch.save({"state_dict": model.state_dict(), "x": Attack()}, hostile)
    print("\nsafety")
    for name, store, run in (
        ("torch", torch_save, torch_load),
        ("safetensors", safetensors_save, safetensors_load),
        ("ftkit", save_weights, load_weights),
        ("ftkit, file of torch", torch_save, load_weights),
    ):
        path = folder / "flip.bin"
        store(model, path)
        print(f"  {'one flipped bit: ' + name:42}{outcome(lambda run=run, path=path: run(model, flipped(path)))}")
    unsafe = outcome(lambda: torch.load(hostile, weights_only=False))
    print(f"  {'a file with a command: torch, trusting it':42}{unsafe}")
    print(f"  {'a file with a command: ftkit load_weights':42}{outcome(lambda: load_weights(model, hostile))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write; a temporary folder if left out")
    options = parser.parse_args()
    model = timm.create_model(options.model)
    nbytes = sum(map(len, buffers(model)))
    print(f"{options.model}: {len(model.state_dict())} tensors, {nbytes / 1e6:.0f} MB, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.sections or SECTIONS:
            SECTIONS[name](model, Path(folder).resolve(), options.rounds)


if __name__ == "__main__":
    main()
