"""What other packages do where ftkit has code of its own: the figures behind docs/explanation/architecture.md.

    python benchmarks/alternatives.py [pickles hashes]

pickles  the hostile files of tests/attacks, and honest files of the kinds that people hand on: who takes the right
         weights out, who refuses, who runs the command, whose memory or time runs out. Each try is a process
hashes   a fingerprint of a picture, and all near pairs among 10,000 of them, beside imagehash

`benchmarks/checkpoints.py` compares with safetensors, `benchmarks/images.py index` with faiss.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import enum
import multiprocessing
import os
import pickle
import resource
import statistics
import sys
import tempfile
import time
import types
import warnings
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ftkit import load_weights
from ftkit._images.decoding.fingerprint import fingerprints
from ftkit._images.decoding.search import near_pairs

SECTIONS: dict[str, Callable[[], None]] = {}
SECONDS, BYTES = 30, 150_000_000  # what a file of a few kilobytes may take; the tests of the attacks allow as much


def section(run: Callable[[], None]) -> Callable[[], None]:
    """Enter a function as a section under its own name."""
    SECTIONS[run.__name__] = run
    return run


class Config:
    """Settings of somebody's project."""

    def __init__(self) -> None:
        self.rate = 0.1


class Stage(enum.Enum):
    """Where somebody's training is."""

    HEAD = 1


class Net(nn.Module):
    """The model that the files are for."""

    def __init__(self, values: torch.Tensor | None = None) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4096) if values is None else values.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Weigh each number."""
        return x * self.w


def lost() -> Any:
    """An object of a class that is no more where the file is opened."""
    module = sys.modules["lost_project"] = types.ModuleType("lost_project")
    exec("class Config:\n    pass", module.__dict__)
    return module.Config()


def honest(values: torch.Tensor) -> dict[str, Callable[[Path], object]]:
    """Files without harm, by what is in them."""
    net = Net(values)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(4096)).sum().backward()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def beside(**extra: Any) -> Callable[[Path], object]:
        return lambda path: torch.save({"state_dict": net.state_dict()} | extra, path)

    return {
        "a state dict": lambda path: torch.save(net.state_dict(), path),
        "the same, before torch 1.6": lambda path: torch.save(
            net.state_dict(), path, _use_new_zipfile_serialization=False
        ),
        "optimizer and scheduler": beside(optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict()),
        "a number of numpy": beside(accuracy=np.float64(0.93)),
        "an array of numpy": beside(weights=np.ones(3)),
        "random states": beside(numpy=np.random.get_state(), torch=torch.get_rng_state()),  # noqa: NPY002
        "argparse.Namespace": beside(args=argparse.Namespace(lr=0.1)),
        "a path": beside(data=Path("data")),
        "a date": beside(date=dt.date(2026, 1, 1)),
        "a defaultdict": beside(history=collections.defaultdict(list, loss=[1.0])),
        "an enumeration": beside(stage=Stage.HEAD),
        "an object": beside(config=Config()),
        "an object of a class that is gone": beside(config=lost()),
        "a whole model": lambda path: torch.save(net, path),
        "a whole model, before torch 1.6": lambda path: torch.save(net, path, _use_new_zipfile_serialization=False),
        "TorchScript": lambda path: torch.jit.save(torch.jit.script(net), str(path)),
        "a bare pickle of arrays": lambda path: path.write_bytes(pickle.dumps({"w": values.numpy()})),
    }


def weights_in(loaded: Any) -> torch.Tensor:
    """Return the weights, wherever in a file of these they are."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    found = loaded.get("state_dict", loaded)["w"]
    return torch.as_tensor(found).detach()


def by_ftkit(path: Path) -> torch.Tensor:
    load_weights(model := Net(), path)
    return weights_in(model)


def by_torch(path: Path) -> torch.Tensor:
    return weights_in(torch.load(path, weights_only=True))


def by_fickling_scan(path: Path) -> torch.Tensor:
    """Load with everything once fickling has found nothing."""
    import fickling
    from fickling.analysis import Severity

    scans = fickling.scan_zip_archive(str(path)) if zipfile.is_zipfile(path) else {"": fickling.scan_file(str(path))}
    if any(scan.severity > Severity.LIKELY_SAFE for scan in scans.values()):
        raise ValueError("fickling is not sure")
    return weights_in(torch.load(path, weights_only=False))


def by_fickling_list(path: Path) -> torch.Tensor:
    """Load with fickling's unpickler, which admits what is on its list."""
    import fickling

    fickling.activate_safe_ml_environment()
    return weights_in(torch.load(path, weights_only=False))


def attempt(run: Callable[[Path], torch.Tensor], path: Path, values: torch.Tensor, told: Any) -> None:
    """Open a file in this process, which ends afterwards, and tell what came of it."""
    os.chdir(path.parent)
    sys.modules.pop("lost_project", None)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a parser says of a broken file
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = "right" if torch.equal(run(path), values) else "WRONG"
    except MemoryError:
        outcome = "EXPLODED"
    except Exception:
        outcome = "refused"
    if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES:
        outcome = "EXPLODED"
    told.send("RAN" if Path("MARK").exists() else outcome)


def outcome_of(run: Callable[[Path], torch.Tensor], make: Callable[[Path], object], values: torch.Tensor) -> str:
    """Make a file and open it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "x.pt"))
        context = multiprocessing.get_context("fork")
        heard, told = context.Pipe(duplex=False)
        process = context.Process(target=attempt, args=(run, Path(folder, "x.pt"), values, told))
        process.start()
        told.close()
        try:
            return str(heard.recv()) if heard.poll(SECONDS) else "EXPLODED"
        except EOFError:  # it was killed
            return "EXPLODED"
        finally:
            process.kill()
            process.join()


@section
def pickles() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.attacks.payloads import VALUES
    from tests.attacks.test_bombs import EXPLODING
    from tests.attacks.test_execution import EXECUTING

    torch.set_num_threads(1)
    groups: dict[str, dict[str, Callable[[Path], object]]] = {
        "honest files": honest(VALUES),
        "files that bring a command": {make.__name__: make for make in EXECUTING},
        "files that explode": {make.__name__: make for make in EXPLODING},
    }
    contenders = {
        "ftkit": by_ftkit,
        "torch, weights_only": by_torch,
        "fickling, scan": by_fickling_scan,
        "fickling, list": by_fickling_list,
    }
    for title, files in groups.items():
        print(f"\n{title:36}" + "".join(f"{name:>22}" for name in contenders))
        counts = {name: collections.Counter[str]() for name in contenders}
        for name, make in files.items():
            outcomes = {who: outcome_of(run, make, VALUES) for who, run in contenders.items()}
            print(f"  {name:34}" + "".join(f"{outcome:>22}" for outcome in outcomes.values()), flush=True)
            for who, outcome in outcomes.items():
                counts[who][outcome] += 1
        for who, count in counts.items():
            print(f"  {who}: " + ", ".join(f"{number} {outcome}" for outcome, number in count.most_common()))


@section
def hashes() -> None:
    import imagehash
    from PIL import Image

    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (256, 256), np.uint8))
    pixels = np.asarray(picture)

    def seconds(run: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - start) / times

    ours, theirs_once = (lambda: fingerprints([(pixels[None], pixels.shape)])), (lambda: imagehash.phash(picture))
    rounds = [seconds(ours, 50) / seconds(theirs_once, 50) for _ in range(9)]
    print(f"\nfour fingerprints of a picture: {statistics.median(rounds):.2f} of the time of one imagehash.phash")

    numbers = random.integers(0, 1 << 64, 10_000, np.uint64)
    bits = np.unpackbits(numbers.view(np.uint8)).reshape(-1, 8, 8).astype(bool)
    theirs = [imagehash.ImageHash(one) for one in bits]
    every = seconds(lambda: sum(a - b <= 8 for at, a in enumerate(theirs) for b in theirs[:at]), 1)
    index = seconds(lambda: sum(len(ones) for ones, _ in near_pairs(numbers)), 1)
    print(f"near pairs of 10,000: each with each by imagehash {every:.1f} s, by ftkit's index {index:.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    options = parser.parse_args()
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "fickling", "imagehash")))
    for name in options.sections or SECTIONS:
        SECTIONS[name]()


if __name__ == "__main__":
    main()
