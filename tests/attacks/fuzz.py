"""A search for files that cost: trees of what a pickle or typed JSON can say grow towards time, memory and raw errors.

``python -m tests.attacks.fuzz SECONDS FOLDER`` searches, tells the dearest, and keeps what broke a limit in the folder.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import logging
import random
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ftkit._deltas.changes import fingerprint, tensors_of
from ftkit.errors import FtkitError
from tests.attacks.bombs import MERSENNE, Headed, blob, call, get, name, nest, put, tensor, text
from tests.attacks.opening import MEMORY, OPENERS, SECONDS, Cost, cost
from tests.attacks.payloads import VALUES, entry, header, tar

MAX_BYTES = 900_000
KEPT = 120  # files that are bred from
TRIES = 4  # openers that a file is tried with

# Everything that the machine builds, knows by name, or only notes.
NAMES = [
    *("collections OrderedDict", "collections defaultdict", "collections Counter", "builtins dict", "builtins set"),
    *("builtins frozenset", "builtins list", "builtins tuple", "builtins bytes", "builtins bytearray"),
    *("builtins complex", "_codecs encode", "pathlib PosixPath", "pathlib PureWindowsPath", "torch Size"),
    *("torch device", "torch.serialization _get_layout", "torch._utils _rebuild_tensor_v2", "torch float32"),
    *("torch._utils _rebuild_parameter", "torch._tensor _rebuild_from_type_v2", "torch.storage _load_from_bytes"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_nested_tensor"),
    *("torch FloatStorage", "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy dtype"),
    *("numpy ndarray", "torch.nn.parameter Parameter", "torch.jit._pickle build_intlist", "os system", "a B"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch per_tensor_affine", "torch._inductor x", "builtins int"),
    *("torch._utils _rebuild_wrapper_subclass", "torch._utils _rebuild_device_tensor_from_numpy"),
]
WORDS = [
    *("w", "state_dict", "model", "module.w", "_orig_mod.w", "w (again)", "epoch", "step", "exp_avg", "params", "cpu"),
    *(
        "cuda:0",
        "cuea",
        "latin1",
        "idna",
        "torch.strided",
        "<f4",
        "|O",
        "i4,i4",
        "",
        ".",
        "\ud800",
        "\x1b[2J",
        "0",
        "/",
    ),
    *("_parameters", "_modules", "_buffers", "param_groups", "state", "ftkit.checkpoint", "rng_state", "metrics"),
    *("order", "optimizer_state_dict", "model_state_dict", "scheduler_state_dict", "ema_state_dict", "words", "names"),
]
NUMBERS = [0, 1, -1, 2, 255, 4096, 1 << 31, -(1 << 31), 1 << 62, (1 << 63) - 1, MERSENNE, 10**30, 1 << 20_000]
TAGS = [
    *("tuple", "set", "frozenset", "dict", "OrderedDict", "Counter", "defaultdict", "deque", "int", "float", "complex"),
    *("bytes", "bytearray", "dtype", "device", "array", "scalar", "path", "tensor", "small", "viewed", "Size", "none"),
]


class Node(NamedTuple):
    """A part of a pickle that leaves one thing on the stack, or of a JSON."""

    kind: str
    what: Any = None
    parts: tuple[Node, ...] = ()


class Found(NamedTuple):
    """A file of the search, what it cost and with which call."""

    form: str
    tree: Node
    opener: str
    cost: Cost

    @property
    def score(self) -> float:
        """How near it is to the limits."""
        return self.cost.seconds / SECONDS + max(self.cost.nbytes, 0) / MEMORY + 9 * self.cost.raw


class Search:
    """Grows files, opens them, and breeds from those that cost most."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.kept: list[Found] = []
        self.tried = 0
        left = tensors_of(Headed())
        self.bases = [fingerprint({key: left[key] for key in left if key not in gone}) for gone in ((), ("fc.bias",))]

    def run(self, seconds: float) -> None:
        """Search for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def step(self) -> None:
        """Try one file."""
        pick = self.random
        if self.kept and pick.random() < 0.7:
            mother = pick.choice(self.kept)
            form, tree = mother.form, self.mutated(mother.tree)
            openers = [mother.opener, *pick.sample([*OPENERS], TRIES - 1)]
        else:
            form = pick.choice([*FORMS])
            tree = self.json(4) if form in JSON_FORMS else self.value(5)
            openers = pick.sample([*OPENERS], TRIES)
        path = self.folder / ("x.safetensors" if form in JSON_FORMS else "x.pt")
        try:
            FORMS[form](self, path, tree)
        except (OverflowError, RecursionError, ValueError):  # no file says that
            return
        if path.stat().st_size > MAX_BYTES:
            return
        self.tried += 1
        together = cost(lambda path: _all_of(openers, path), path, 2 * SECONDS)  # a fork takes longer than most files
        if together.fine:
            self.keep(Found(form, tree, openers[0], together), path)
            return
        for opener in dict.fromkeys(openers):
            self.keep(Found(form, tree, opener, cost(OPENERS[opener], path, 2 * SECONDS)), path)

    def keep(self, found: Found, path: Path) -> None:
        if not found.cost.fine:
            report = f"{found.form} in {found.opener}: {found.cost}"
            target = self.folder / f"{'raw' if found.cost.raw else 'dear'}-{self.tried}{path.suffix}"
            target.write_bytes(path.read_bytes())
            target.with_suffix(".txt").write_text(report)
        self.kept.append(found)
        if len(self.kept) > 2 * KEPT:
            self.kept.sort(key=lambda one: -one.score)
            del self.kept[KEPT:]

    # ---- what grows

    def value(self, depth: int) -> Node:
        pick = self.random
        kinds = ["word", "number", "name", "get", "none", "long", "nest"]
        if depth:
            kinds += ["list", "tuple", "dict", "call", "let", "record", "repeat", "tensor", "set", "blob"] * 2
        kind = pick.choice(kinds)
        if kind in ("list", "tuple", "set"):
            return Node(kind, None, tuple(self.value(depth - 1) for _ in range(pick.randrange(4))))
        if kind == "dict":
            return Node(kind, None, tuple(self.value(depth - 1) for _ in range(2 * pick.randrange(4))))
        if kind == "call":
            return Node(kind, pick.choice(NAMES), tuple(self.value(depth - 1) for _ in range(pick.randrange(5))))
        if kind in ("let", "blob"):
            return Node(kind, pick.randrange(6), (self.value(depth - 1),))
        if kind in ("record", "tensor"):
            return Node(kind, None, (self.value(depth - 1), self.value(depth - 1)))
        if kind == "repeat":
            return Node(kind, int(10 ** pick.uniform(0, 4.5)), (self.value(depth - 1),))
        what = {"word": WORDS, "number": NUMBERS, "name": NAMES, "get": range(6), "nest": [3, 30, 100]}
        if kind == "long":
            return Node(kind, int(10 ** pick.uniform(1, 5.5)))
        return Node(kind, pick.choice(what[kind]) if kind in what else None)

    def json(self, depth: int) -> Node:
        pick = self.random
        kinds = ["word", "number", "none", "long"]
        if depth:
            kinds += ["list", "dict", "tag", "tag", "tag", "repeat"]
        kind = pick.choice(kinds)
        if kind == "tag":
            return Node(kind, pick.choice(TAGS), (self.json(depth - 1),))
        if kind in ("list", "dict"):
            return Node(kind, None, tuple(self.json(depth - 1) for _ in range(2 * pick.randrange(3))))
        if kind == "repeat":
            return Node(kind, int(10 ** pick.uniform(0, 4.5)), (self.json(depth - 1),))
        if kind == "long":
            return Node(kind, int(10 ** pick.uniform(1, 5.5)))
        return Node(kind, pick.choice(WORDS if kind == "word" else NUMBERS[:-1]))

    def mutated(self, tree: Node) -> Node:
        """A tree with a part that is grown anew, comes from another, or is repeated more often."""
        pick = self.random
        is_json = tree.kind == "tag" or any(part.kind == "tag" for part in tree.parts)
        if not tree.parts or pick.random() < 0.2:
            if isinstance(tree.what, int) and tree.kind in ("repeat", "long") and pick.random() < 0.7:
                return tree._replace(what=max(1, int(tree.what * pick.choice([0.1, 0.5, 2, 10]))))
            if pick.random() < 0.3 and self.kept:
                other = pick.choice(self.kept).tree
                while other.parts and pick.random() < 0.6:
                    other = pick.choice(other.parts)
                return other
            if pick.random() < 0.3:
                return Node("repeat", int(10 ** pick.uniform(1, 4)), (tree,))
            return self.json(2) if is_json else self.value(3)
        at = pick.randrange(len(tree.parts))
        return tree._replace(parts=(*tree.parts[:at], self.mutated(tree.parts[at]), *tree.parts[at + 1 :]))


def _all_of(openers: list[str], path: Path) -> None:
    for opener in openers:
        with contextlib.suppress(FtkitError):
            OPENERS[opener](path)


# ---- trees as bytes


def words(node: Node) -> bytes:
    """A pickle without its end."""
    raw = _words(node)
    if len(raw) > 64 * MAX_BYTES:
        raise ValueError("too long")
    return raw


def _words(node: Node) -> bytes:
    parts = node.parts
    match node.kind:
        case "list" | "tuple" | "set" | "dict":
            inside = b"".join(map(_several, parts))
            before, after = {"list": (b"](", b"e"), "tuple": (b"(", b"t"), "set": (b"\x8f(", b"\x90")}.get(
                node.kind, (b"}(", b"u")
            )
            return before + inside + after
        case "repeat":
            return b"](" + _several(node) + b"e"
        case "call":
            return call(_name(node.what), *map(_several, parts))
        case "record":
            return name("a", "B") + b")R" + _words(parts[0]) + b"b"
        case "tensor":
            return tensor(shape=_words(parts[0]), stride=_words(parts[1]))
        case "let":
            return _words(parts[0]) + put(node.what)
        case "blob":
            return blob(b"\x80\x04" + _words(parts[0]) + b".")
        case "get":
            return get(node.what)
        case "name":
            return _name(node.what)
        case "number":
            raw = node.what.to_bytes(node.what.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8b" + struct.pack("<i", len(raw)) + raw
        case "word" | "tag":
            raw = node.what.encode(errors="surrogatepass")
            return b"X" + struct.pack("<I", len(raw)) + raw
        case "long":
            return text("x" * node.what)
        case "nest":
            return nest(node.what)
    return b"N"


def _name(dotted: str) -> bytes:
    return name(*dotted.split(" "))


def _several(node: Node) -> bytes:
    """A part of a list: one thing, or as many as it is repeated, those that are keys under names of their own."""
    if node.kind != "repeat":
        return _words(node)
    one = _words(node.parts[0])
    if len(one) * node.what > 64 * MAX_BYTES:
        raise ValueError("too long")
    if node.parts[0].kind == "word":
        return b"".join(text(f"{node.parts[0].what!r}{at}") for at in range(node.what))
    return one * node.what


def plain(node: Node) -> Any:
    """A JSON."""
    parts = [plain(part) for part in node.parts]
    match node.kind:
        case "list":
            return parts
        case "dict":
            return {str(key)[:400_000]: part for key, part in zip(parts[::2], parts[1::2], strict=True)}
        case "tag":
            return {f"${node.what}": parts[0]}
        case "repeat":
            if len(json.dumps(parts[0])) * node.what > MAX_BYTES:
                raise ValueError("too long")
            return [*parts] * node.what
        case "long":
            return "x" * node.what
    return node.what


# ---- trees as files


def _zip(compression: int) -> Callable[[Search, Path, Node], None]:
    def write(_: Search, path: Path, tree: Node) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x/data.pkl", b"\x80\x04" + words(tree) + b".")
            archive.writestr("x/data/0", VALUES.numpy().tobytes())

    return write


def _state(_: Search, path: Path, tree: Node) -> None:
    """A checkpoint, of which a part is grown."""
    part = words(tree)
    keys = ("model_state_dict", "optimizer_state_dict", "rng_state", "ftkit.checkpoint", "epoch", "x")
    key = keys[len(part) % len(keys)]
    inside = b"}(" + text("model_state_dict") + b"}" + text("w") + tensor() + b"s" + text(key) + part + b"u"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04" + inside + b".")
        archive.writestr("x/data/0", VALUES.numpy().tobytes())


def _optimizer(_: Search, path: Path, tree: Node) -> None:
    state = b"}(" + text("state") + b"}K\x00" + words(tree) + b"s" + text("param_groups")
    state += b"](}(" + text("params") + b"](K\x00e" + text("lr") + b"K\x01uee"[:-1] + b"u"
    inside = (
        b"}(" + text("model_state_dict") + b"}" + text("w") + tensor() + b"s" + text("optimizer_state_dict") + state
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x04" + inside + b"u.")
        archive.writestr("x/data/0", VALUES.numpy().tobytes())


def _bare(_: Search, path: Path, tree: Node) -> None:
    path.write_bytes(b"\x80\x04" + words(tree) + b".")


def _legacy(search: Search, path: Path, tree: Node) -> None:
    torch.save({"w": VALUES}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    at = search.random.choice([raw.rindex(b"]q\x00"), raw.index(b"\x80\x02}q\x00X") + 2, raw.index(b"\x80\x02M") + 2])
    path.write_bytes(raw[:at] + words(tree) + b"." + raw[at:])


def _damaged(search: Search, path: Path, tree: Node) -> None:
    """A sound file of any format, some of whose fields say something else."""
    pick = search.random
    kind = pick.choice(["zip", "packed", "legacy", "tar", "safetensors"])
    if kind == "tar":
        tar(path)
    elif kind == "safetensors":
        path.write_bytes(header({"w": entry(0, 16384, [4096])}, VALUES.numpy().tobytes()))
    else:
        torch.save({"w": VALUES, "x": [1, 2.5, "y"]}, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "packed":
        with (
            zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old,
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for part in old.namelist():
                new.writestr(part, old.read(part))
    raw = bytearray(path.read_bytes())
    for _ in range(pick.randrange(1, 5)):
        size = pick.choice([1, 1, 2, 4, 8])
        marks = [at for mark in (b"PK\1\2", b"PK\5\6", b"PK\3\4", b"ustar", b"\x80\x02") for at in _all(raw, mark)]
        at = min(
            pick.choice([0, *marks]) + pick.randrange(64) if pick.random() < 0.7 else pick.randrange(len(raw)),
            len(raw) - 8,
        )
        raw[at : at + size] = pick.choice([bytes(size), b"\xff" * size, b"9" * size, pick.randbytes(size)])
    path.write_bytes(raw)


def _all(raw: bytes | bytearray, mark: bytes) -> list[int]:
    places = [raw.find(mark)]
    while places[-1] >= 0 and len(places) < 20:
        places.append(raw.find(mark, places[-1] + 1))
    return [at for at in places if at >= 0]


def _checkpoint(search: Search, path: Path, tree: Node) -> None:
    state = search.random.choice(["model", "optimizer", "rng", "extra", "ftkit.checkpoint", "scheduler", "ranks"])
    metadata = {
        "ftkit.checkpoint": "{}",
        "model": '{"w":{"$tensor":null}}',
        "optimizer": '{"state":{},"param_groups":[]}',
    }
    entries = {"__metadata__": metadata | {state: json.dumps(plain(tree))}, "model.w": entry(0, 16384, [4096])}
    path.write_bytes(header(entries, VALUES.numpy().tobytes()))


def _delta(search: Search, path: Path, tree: Node) -> None:
    pick = search.random
    layer = pick.choice(["Linear", "Conv2d", "LayerNorm", "Sequential", "BatchNorm1d", "Flatten", "GELU", "Dropout"])
    arguments = {
        "Linear": {"in_features": 2048, "out_features": 4, "bias": plain(tree)},
        "Sequential": {"0": plain(tree), "1": ["Linear", {"in_features": plain(tree), "out_features": 4}]},
    }.get(layer, plain(tree))
    record: Any = {"base": pick.choice(search.bases), "layers": {"fc": [layer, arguments]}}
    if pick.random() < 0.3:
        record = plain(tree)
    sides = pick.choice([[4], [4, 1], [1, 4], [0, 1 << 40], [1 << 40, 0], [1, 1, 1, 4]])
    count = 4 if 0 not in sides else 0
    own = {"__metadata__": {"ftkit.delta": json.dumps(record)}}
    tensors = {
        "fc.bias": entry(0, 4 * count, sides),
        **({"fc.weight": entry(4 * count, 4 * count + 16, [4])} if count else {}),
    }
    path.write_bytes(header(own | tensors, bytes(4 * count + (16 if count else 0))))


def _header(search: Search, path: Path, tree: Node) -> None:
    whole = plain(tree)
    if not isinstance(whole, dict):
        whole = {"w": {"dtype": "F32", "shape": whole, "data_offsets": search.random.choice([[0, 8], whole])}}
    path.write_bytes(header(whole, bytes(8)))


JSON_FORMS = {"checkpoint", "delta", "header"}
FORMS: dict[str, Callable[[Search, Path, Node], None]] = {
    "zip": _zip(zipfile.ZIP_STORED),
    "packed": _zip(zipfile.ZIP_DEFLATED),
    "state": _state,
    "optimizer": _optimizer,
    "bare": _bare,
    "legacy": _legacy,
    "damaged": _damaged,
    "checkpoint": _checkpoint,
    "delta": _delta,
    "header": _header,
}


def main(seconds: float, folder: Path, seed: int) -> int:
    """Search, and say what was found; the status is 1 if a limit was broken."""
    logging.disable()
    warnings.simplefilter("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    gc.freeze()  # lest each fork copies the memory of this process
    search = Search(folder, seed)
    search.run(seconds)
    search.kept.sort(key=lambda one: -one.score)
    broken = sorted(folder.glob("*.txt"))
    dearest = max(search.kept, key=lambda one: one.cost.seconds), max(search.kept, key=lambda one: one.cost.nbytes)
    lines = [f"{search.tried} files, {len(broken)} past a limit", *(path.read_text() for path in broken[:20])]
    lines += [f"dearest: {one.form} in {one.opener}, {one.cost}" for one in dearest]
    sys.stdout.write("\n".join(lines) + "\n")
    return bool(broken)


if __name__ == "__main__":
    length, place, *more = sys.argv[1:]
    sys.exit(main(float(length), Path(place), int(more[0]) if more else random.randrange(1 << 32)))
