"""Scanning folders of images, in units of what Pillow takes to load the same photos.

    python benchmarks/images.py [pass scan index executors detect quality] [--photos DIR] [--rounds 5]

DIR is a folder of JPEG photos, the more the better; they should be of the size that one trains on. Without it, 600
pictures with the spectrum of photos are made. Contenders take turns within a round, each is divided by the unit of the
same round, and the median over the rounds counts: other work on the machine weighs on all alike. Below 1 is faster than
the unit. All run with the settings of memory that the workers of a scan have.

pass       the check of files (read, digest, strict decode, fingerprints) as a worker does it, in CPU time. The unit is
           ``Image.load``
scan       ``scan_images`` with two workers, their start included, in wall time. The unit is ``Image.load`` by two warm
           processes of a pool
index      near pairs among random 64-bit hashes. The unit is faiss's flat index, where it is installed
executors  a scan through threads, spawned processes and dask, the latter where it is installed. The unit is the default
detect     shares of cut and garbled photos that are found by ftkit and by ``Image.load``; alarms on sound ones
quality    what is found of 200 kinds of damage, in many formats, that cost a hundredth of the pixels and more, and the
           alarms on 100 kinds of sound pictures that look odd; the rounds are the seed
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the workers of a scan have it

import numpy as np
from PIL import Image

from ftkit import scan_images
from ftkit._images.decoding.checks import check_bytes
from ftkit._images.decoding.search import near_pairs
from ftkit._images.decoding.serving import answer, grouped
from ftkit._images.decoding.verbs import begin
from ftkit._images.findings import make_finding
from ftkit._images.workers import KEEPING

SECTIONS: dict[str, Callable[[Path, int], None]] = {}


def section(run: Callable[[Path, int], None]) -> Callable[[Path, int], None]:
    """Enter a function of (photos, rounds) as a section under its own name."""
    SECTIONS[run.__name__.rstrip("_")] = run
    return run


def photos_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file())


def make_photos(folder: Path, count: int = 600) -> None:
    """Write pictures whose amplitudes fall with the frequency, as those of natural images do (D. J. Field, 1987)."""
    rng = np.random.default_rng(0)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    for number in range(count):
        noise = rng.standard_normal((3, *frequency.shape)) + 1j * rng.standard_normal((3, *frequency.shape))
        planes = np.fft.irfft2(noise / frequency, (height, width))
        planes = planes[:1] + 0.3 * planes  # colours go along with the brightness
        pixels = np.clip(128 + 50 * planes / planes.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=92)


def compare(contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> None:
    """Let the contenders take turns, and print each in units of the first."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = clock()
            run()
            if turn:  # the first round warms up
                times[name].append(clock() - start)
    unit = next(iter(times.values()))
    for name, taken in times.items():
        ratio = statistics.median(mine / its for mine, its in zip(taken, unit, strict=True))
        print(f"  {name:28}{ratio:7.2f} units{min(taken):9.3f} s at best")


def load(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def load_all(paths: list[Path]) -> None:
    for path in paths:
        load(path)


@section
def pass_(root: Path, rounds: int) -> None:
    paths = photos_of(root)[:300]

    def check_all() -> None:
        for group in grouped(begin("check", str(path)) for path in paths):
            answer(group)

    compare(
        {"Image.load": lambda: load_all(paths), "ftkit's check": check_all},
        rounds,
        time.process_time,
    )


@section
def scan(root: Path, rounds: int) -> None:
    paths = photos_of(root)
    tasks = [paths[at : at + 32] for at in range(0, len(paths), 32)]
    with ProcessPoolExecutor(2) as pool:
        compare(
            {
                "Image.load, 2 processes": lambda: list(pool.map(load_all, tasks)),
                "scan_images(workers=2)": lambda: scan_images(root, workers=2, progress=False),
            },
            rounds,
            time.perf_counter,
        )


def hashes_of(count: int) -> np.ndarray:
    """Return random hashes, of which 2 in 100 have another one within 8 bits."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for at in range(count // 50):
        flips = rng.choice(64, at % 9, replace=False).astype(np.uint64)
        hashes[-1 - at] = hashes[at] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    return hashes


@section
def index(_: Path, rounds: int) -> None:
    for count in (10_000, 100_000):
        hashes = hashes_of(count)
        print(f"  {count:,} hashes")

        def flat(hashes: np.ndarray = hashes) -> None:
            import faiss

            rows = hashes.view(np.uint8).reshape(-1, 8)
            search = faiss.IndexBinaryFlat(64)
            search.add(rows)
            search.range_search(rows, 9)

        contenders: dict[str, Callable[[], object]] = {
            "faiss, flat": flat,
            "ftkit": lambda hashes=hashes: sum(len(ones) for ones, _ in near_pairs(hashes)),
        }
        try:
            import faiss  # noqa: F401
        except ImportError:
            del contenders["faiss, flat"]
        compare(contenders, min(rounds, 3), time.perf_counter)


@contextlib.contextmanager
def dask() -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
    ):
        yield client.get_executor()


@section
def executors(root: Path, rounds: int) -> None:
    with contextlib.ExitStack() as stack:
        pools: dict[str, Executor] = {
            "threads": stack.enter_context(ThreadPoolExecutor(2)),
            "processes": stack.enter_context(ProcessPoolExecutor(2, mp_context=get_context("spawn"))),
        }
        with contextlib.suppress(ImportError):
            pools["dask"] = stack.enter_context(dask())
        compare(
            {"default": lambda: scan_images(root, workers=2, progress=False)}
            | {
                name: lambda pool=pool: scan_images(root, executor=pool, progress=False) for name, pool in pools.items()
            },
            rounds,
            time.perf_counter,
        )


def is_unusable(data: bytes, name: str = "x.jpg") -> bool:
    return any(make_finding(name, note).severity == "unusable" for note in check_bytes(name, data).notes)


def pillow_refuses(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:
        return True
    return False


def harmed(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield the photo cut, with bits flipped, and with a block of zeros."""
    yield "cut", data[: rng.randrange(1000, len(data) - 3)]
    for count in (1, 8, 64):
        garbled = bytearray(data)
        for _ in range(count):
            garbled[rng.randrange(1000, len(data) - 2)] ^= 1 << rng.randrange(8)
        yield "bits", bytes(garbled)
    at = rng.randrange(1000, max(1001, len(data) - 600))
    yield "zeros", data[:at] + bytes(512) + data[at + 512 :]


def shows(before: bytes, after: bytes) -> bool:
    """Whether a hundredth of the pixels and more have changed visibly."""
    try:
        old, new = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16) for data in (before, after))
    except Exception:
        return True
    return old.shape != new.shape or bool((abs(old - new).max(2) > 24).mean() >= 0.01)


@section
def detect(root: Path, _: int) -> None:
    rng = random.Random(0)
    total, ours, theirs, alarms, sound = Counter[str](), Counter[str](), Counter[str](), 0, 0
    for path in photos_of(root)[:300]:
        data = path.read_bytes()
        if pillow_refuses(data):
            continue
        sound += 1
        alarms += is_unusable(data)
        for kind, bad in harmed(data, rng):
            if kind == "cut" or shows(data, bad):
                total[kind] += 1
                ours[kind] += is_unusable(bad)
                theirs[kind] += pillow_refuses(bad)
    for kind, count in total.items():
        print(f"  {kind:8} of {count:5,}: ftkit {ours[kind] / count:.3f}, Image.load {theirs[kind] / count:.3f}")
    print(f"  alarms on {sound:,} sound photos: {alarms}")


@section
def quality(root: Path, rounds: int) -> None:
    """Of each kind of damage that loses pixels, how much is found; of each kind of sound picture, how many alarms."""
    import specimens

    rng = random.Random(rounds)
    photos = [Image.open(path).convert("RGB").resize((320, 240)) for path in rng.sample(photos_of(root), 14)]
    found, total = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, make in specimens.damage().items():
        harm, _, form = name.partition(", ")
        for photo in rng.sample(photos, 2):
            bad, whole = make(photo, rng), specimens.CODINGS.get(form, specimens.encode)(photo)
            if bad != whole and specimens.is_lost(whole, bad):
                total[form or "others", harm] += 1
                found[form or "others", harm] += is_unusable(bad, "x." + name.rpartition(".")[2])
    for form in dict.fromkeys(form for form, _ in total):
        here = {harm: count for (kind, harm), count in total.items() if kind == form}
        missed = ", ".join(harm for harm, count in here.items() if found[form, harm] < count) or "none"
        share = sum(found[form, harm] for harm in here) / sum(here.values())
        print(f"  {form:18}{share:6.3f} of {sum(here.values()):4}; some missed of: {missed}", flush=True)
    share = sum(found.values()) / sum(total.values())
    print(f"  of {len(total)} kinds that lose pixels: {share:.3f} of {sum(total.values()):,}", flush=True)
    sound = specimens.good()
    alarms = Counter[str]()
    for name, make in sound.items():
        alarms[name] = sum(is_unusable(make(photo, rng), "x." + name.rpartition(".")[2]) for photo in photos)
    alarms = +alarms
    print(f"  alarms on {len(sound) * len(photos):,} sound ones of {len(sound)} kinds: {alarms.total()} {dict(alarms)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], metavar="section")
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not KEEPING.items() <= os.environ.items():  # which glibc reads as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPING})
    with tempfile.TemporaryDirectory() as folder:
        photos = arguments.photos
        if photos is None:
            photos = Path(folder, "photos")
            photos.mkdir()
            make_photos(photos)
        for name in arguments.sections or SECTIONS:
            print(name, flush=True)
            SECTIONS[name](photos, arguments.rounds)


if __name__ == "__main__":
    main()
