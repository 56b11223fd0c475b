"""Small files that ask for much: a generator for each class, of any size.

Each takes a path and a size, the number that the cost grows with, and writes a file below a megabyte.
"""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ftkit._deltas.changes import fingerprint, tensors_of
from ftkit._tensors.pytree import pack
from ftkit._tensors.safetensors import write_tensors
from tests.attacks.payloads import VALUES, Net, body, entry, header, with_pickle

Maker = Callable[[Path, int], None]

MERSENNE = 2**61 - 1  # numbers that differ by it have one hash


class Bomb(NamedTuple):
    """What makes a file, the size at which it cost gigabytes or minutes, in which call; whether it takes a while."""

    make: Maker
    size: int
    opener: str
    slow: bool

    def write(self, folder: Path) -> Path:
        """Make the file, under the suffix of what it is."""
        path = folder / "x.pt"
        self.make(path, self.size)
        return path.rename(path.with_suffix(".safetensors")) if path.read_bytes()[8:9] == b"{" else path


BOMBS: dict[str, Bomb] = {}


def bomb(size: int, opener: str = "inspect", *, slow: bool = False) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        BOMBS[make.__name__] = Bomb(make, size, opener, slow)
        return make

    return add


# ---- words of pickles


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def put(slot: int) -> bytes:
    return b"r" + struct.pack("<I", slot)


def get(slot: int) -> bytes:
    return b"j" + struct.pack("<I", slot)


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def tensor(numel: int = 4096, key: str = "0", shape: bytes = b"M\x00\x10\x85", stride: bytes = b"K\x01\x85") -> bytes:
    """A tensor in the storage of the usual file."""
    pid = b"(" + text("storage") + name("torch", "FloatStorage") + text(key) + text("cpu") + b"J"
    pid += struct.pack("<i", numel) + b"tQ"
    return call(
        name("torch._utils", "_rebuild_tensor_v2"), pid, b"K\x00", shape, stride, b"\x89", name("c", "o") + b"0N"
    )


def nest(depth: int) -> bytes:
    """A list that holds one list twice, which holds one list twice, ..."""
    return b"](" + text("leaf") + b"e" + put(900) + (b"0](" + get(900) * 2 + b"e" + put(900)) * depth


def many(count: int, write: Callable[[int], bytes]) -> bytes:
    """A table of so many entries."""
    return b"}(" + b"".join(text(f"k{at}") + write(at) for at in range(count)) + b"u"


def torch_file(path: Path, *words: bytes) -> None:
    with_pickle(path, b"\x80\x04" + b"".join(words) + b".")


# ---- what is written out as text, or hashed, takes 2**size steps


@bomb(40)
def layout(path: Path, size: int) -> None:
    torch_file(path, call(name("torch.serialization", "_get_layout"), nest(size)))


@bomb(40)
def storage_key(path: Path, size: int) -> None:
    torch_file(path, b"(", text("storage"), name("torch", "FloatStorage"), nest(size), text("cpu"), b"K\x01tQ")


@bomb(40)
def storage_location(path: Path, size: int) -> None:
    torch_file(path, b"(", text("storage"), name("torch", "FloatStorage"), text("0"), nest(size), b"K\x01tQ")


@bomb(40)
def device(path: Path, size: int) -> None:
    torch_file(path, call(name("torch", "device"), nest(size), b"K\x00"))


@bomb(40)
def encoding(path: Path, size: int) -> None:
    torch_file(path, call(name("_codecs", "encode"), text("a"), nest(size)))


@bomb(40)
def legacy_keys(path: Path, size: int) -> None:
    torch.save({"w": VALUES}, path, _use_new_zipfile_serialization=False)
    raw = path.read_bytes()
    at = raw.rindex(b"]q\x00")
    path.write_bytes(raw[:at] + b"](" + nest(size) + b"e." + raw[at:])


@bomb(40)
def metadata_nest(path: Path, size: int) -> None:
    torch_file(path, b"}(", text("state_dict"), b"}", text("w"), tensor(), b"s", text("epoch"), nest(size), b"u")


# ---- a few bytes that are copied


@bomb(6000)
def rebuilt_copies(path: Path, size: int) -> None:
    first = b"X" + struct.pack("<I", 700_000) + b"a" * 700_000 + put(0) + b"0"
    first += name("torch._tensor", "_rebuild_from_type_v2") + put(1) + b"0" + name("_codecs", "encode") + put(2) + b"0"
    one = get(1) + b"(" + get(2) + b"N" + get(0) + b"\x85NtR"
    torch_file(path, first, b"](", one * size, b"e")


def _storage(numel: int) -> bytes:
    """A storage by itself, as ``pickle.dump`` of a tensor keeps it."""
    words = pickletools.genops(pickle.dumps(torch.zeros(numel), 4))
    return max((argument for _, argument, _ in words if isinstance(argument, bytes)), key=len)


@bomb(10_000, "load_checkpoint")
def inline_blobs(path: Path, size: int) -> None:
    raw = blob(_storage(100_000)) + put(0) + b"0" + name("torch.storage", "_load_from_bytes") + put(1) + b"0"
    path.write_bytes(b"\x80\x04" + raw + b"](" + (get(1) + get(0) + b"\x85R") * size + b"e.")


@bomb(200)
def nested_blobs(path: Path, size: int) -> None:
    inner = _storage(1)
    head = inner[: inner.index(b".", 20) + 1]
    content = blob(b"a" * 500_000)
    for _ in range(size):
        content = blob(head + b"\x80\x02K\x01.\x80\x02}.\x80\x02" + content + b"0N.\x80\x02].")
        content = name("torch.storage", "_load_from_bytes") + content + b"\x85R"
    path.write_bytes(b"\x80\x04" + content + b".")


@bomb(10_000, slow=True)
def shared_arrays(path: Path, size: int) -> None:
    array = pickle.dumps({"x": np.zeros(100_000, np.float32)}, 4)
    torch_file(path, array[11:-1], put(0), b"0", b"}(" + text("state_dict") + b"}" + text("w") + tensor() + b"s")
    inner = b"".join(text(f"k{at}") + b"}" + text("a") + get(0) + b"s" for at in range(size))
    torch_file(
        path, array[11:-1], put(0), b"0", b"}(" + text("state_dict") + b"}" + text("w") + tensor() + b"s" + inner + b"u"
    )


@bomb(20_000)
def many_sides(path: Path, size: int) -> None:
    sides = b"(" + b"K\x01" * 10_000 + b"t" + put(1)
    one = tensor(shape=sides, stride=get(1))
    torch_file(path, one, put(0), b"0", b"}(", (get(0) + b"N") * size, b"u")


@bomb(50_000)
def dotted_names(path: Path, size: int) -> None:
    key = b"X" + struct.pack("<I", 400_000) + b"k" * 400_000 + put(1) + b"0"
    inner = b"}(" + b"".join(text(f"k{at}") + get(0) for at in range(size)) + b"u"
    torch_file(path, key, tensor(), put(0), b"0}(", get(1), inner, b"u")


@bomb(400_000)
def dots(path: Path, size: int) -> None:
    """Names of nothing but dots."""
    key = b"X" + struct.pack("<I", size) + b"." * size + put(1) + b"0"
    torch_file(path, key, tensor(), put(0), b"0}(", get(1), many(5_000, lambda _: get(0)), b"u")


# ---- instructions of one byte


def _squeezed(path: Path, code: bytes) -> None:
    torch.save(body(), path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, code if name.endswith("data.pkl") else content)


@bomb(60_000_000, slow=True)
def one_byte_lists(path: Path, size: int) -> None:
    _squeezed(path, b"\x80\x04(" + b"]" * size + b"l.")


@bomb(60_000_000, slow=True)
def one_byte_sets(path: Path, size: int) -> None:
    _squeezed(path, b"\x80\x04(" + b"\x8f" * size + b"l.")


@bomb(60_000_000, slow=True)
def one_byte_nothing(path: Path, size: int) -> None:
    _squeezed(path, b"\x80\x04" + b"N0" * (size // 2) + b"N.")


@bomb(60_000_000, slow=True)
def one_byte_memo(path: Path, size: int) -> None:
    _squeezed(path, b"\x80\x04N" + b"\x94" * size + b".")


@bomb(900_000, "load_checkpoint", slow=True)
def stored_sets(path: Path, size: int) -> None:
    torch_file(path, b"](", b"\x8f" * size, b"e")


@bomb(200_000, "load_weights", slow=True)
def records(path: Path, size: int) -> None:
    torch_file(path, name("a", "B"), put(0), b"0](", b"h\x00)R" * size, b"e")


# ---- names and tables


@bomb(10_000, "load_weights", slow=True)
def wrappers(path: Path, size: int) -> None:
    """Names under every order of wrappers, each of which could be peeled."""
    words = ("module", "model", "backbone", "net", "network", "_model", "_forward_module", "ema_model", "ema", "x")
    names = [[]]
    for _ in range(4):
        names = [[*start, word] for start in names for word in words]
    torch_file(path, tensor(), put(0), b"0}(", *(text(".".join([*of, "w"])) + get(0) for of in names[:size]), b"u")


@bomb(5_000, slow=True)
def shared_tables(path: Path, size: int) -> None:
    """Tables that each hold one big one."""
    inner = tensor() + put(0) + b"0" + many(5_000, lambda _: get(0)) + put(1) + b"0"
    torch_file(path, inner, many(size, lambda _: b"}" + text("a") + get(1) + b"s"))


@bomb(20_000, "diff", slow=True)
def many_tables(path: Path, size: int) -> None:
    """As many tables as names, all pairs of which could be compared."""
    torch_file(path, tensor(), put(0), b"0", many(size, lambda _: b"}" + text("a") + get(0) + b"s"))


@bomb(5_000, slow=True)
def records_sharing(path: Path, size: int) -> None:
    """Records of objects whose states are one table."""
    inner = tensor() + put(0) + b"0" + many(20_000, lambda _: get(0)) + put(1) + b"0"
    torch_file(path, inner, name("a", "B"), put(2), b"0", many(size, lambda _: get(2) + b")R" + get(1) + b"b"))


@bomb(10_000, "load_checkpoint", slow=True)
def keys_sharing(path: Path, size: int) -> None:
    """A table all of whose entries hold one long list, which holds code."""
    inner = b"](" + b"]" * 100_000 + name("os", "system") + b"e" + put(1) + b"0"
    torch_file(path, inner, many(size, lambda _: b"]" + get(1) + b"a"))


@bomb(10_000, "load_weights loosely")
def unexpected(path: Path, size: int) -> None:
    """One storage under thousands of names."""
    values = torch.ones(200_000)
    torch.save({"w": VALUES, **{f"k{at}": values for at in range(size)}}, path)


@bomb(3, "load_weights")
def again(path: Path, size: int) -> None:
    """Names that all become one, and the names that stand in for it."""
    names = ("_orig_mod.w", "_orig_mod.w (again)", "w", *(f"_orig_mod.w{' (again)' * at}" for at in range(2, size)))
    torch.save(dict.fromkeys(names, VALUES), path)


@bomb(2_000)
def wide_listing(path: Path, size: int) -> None:
    """One name that is longer than all others, which a table could be made as wide as."""
    torch.save({"w": VALUES, **{f"k{at}": VALUES for at in range(size)}, "x" * 500_000: VALUES}, path)


# ---- numbers


@bomb(60_000)
def colliding_keys(path: Path, size: int) -> None:
    words = b"".join(b"\x8a\x0b" + (at * MERSENNE).to_bytes(11, "little") + b"N" for at in range(1, size))
    torch_file(path, b"}(", words, b"u")


@bomb(60_000)
def colliding_sets(path: Path, size: int) -> None:
    words = b"".join(b"\x8a\x0b" + (at * MERSENNE).to_bytes(11, "little") for at in range(1, size))
    torch_file(path, b"\x8f", *(b"(" + words[at * 13 : at * 13 + 13] + b"\x90" for at in range(size - 1)))


@bomb(50_000)
def colliding_complex(path: Path, size: int) -> None:
    numbers = (
        struct.pack(">d", float(-1000003 * at)) + b"G" + struct.pack(">d", float(at)) for at in range(1, size // 2)
    )
    torch_file(
        path, name("builtins", "complex"), put(0), b"0}(", *(get(0) + b"G" + both + b"\x86RN" for both in numbers), b"u"
    )


@bomb(40_000, "load_checkpoint")
def colliding_json(path: Path, size: int) -> None:
    _checkpoint(path, json.dumps({"$set": [at * MERSENNE for at in range(1, size)]}, separators=(",", ":")))


@bomb(40_000)
def bignum_shape(path: Path, size: int) -> None:
    path.write_bytes(header({"a": entry(0, 8, [(1 << 62) - 1] * size)}, bytes(8)))


@bomb(40_000, "load_checkpoint")
def bignum_small(path: Path, size: int) -> None:
    sides = ",".join([str((1 << 62) - 1)] * size)
    _checkpoint(path, f'{{"$small":["uint8",[{sides}],false,""]}}')


# ---- checkpoints


def _checkpoint(path: Path, extra: str, data: int = 0, **states: str) -> None:
    entries = {"__metadata__": {"ftkit.checkpoint": "{}", "model": "{}", "extra": extra, **states}}
    path.write_bytes(header(entries | ({"d": entry(0, data, [data], "U8")} if data else {}), bytes(data)))


@bomb(20_000, "load_checkpoint")
def bytes_shared(path: Path, size: int) -> None:
    one = '{"$bytes":["extra.d"]}'
    entries = {"__metadata__": {"ftkit.checkpoint": "{}", "extra": f"[{','.join([one] * size)}]"}}
    path.write_bytes(header(entries | {"extra.d": entry(0, 400_000, [400_000], "U8")}, bytes(400_000)))


@bomb(1_500, "load_checkpoint")
def squeezed_states(path: Path, size: int) -> None:
    zeros = base64.b64encode(zlib.compress(bytes((1 << 18) - 4), 9)).decode()
    one = f'{{"$small":["uint8",[{(1 << 18) - 4}],true,"{zeros}"]}}'
    many_of_them = f"[{','.join([one] * (size // 3))}]"
    _checkpoint(path, many_of_them, optimizer=many_of_them, rng=many_of_them)


@bomb(30_000, "load_checkpoint")
def long_paths(path: Path, size: int) -> None:
    _checkpoint(path, json.dumps({"k" * 400_000: [{"$small": ["uint8", [], False, "AA=="]}] * (size // 3)}))


@bomb(33, "load_checkpoint")
def stride_0_moments(path: Path, size: int) -> None:
    moment = torch.zeros(1, dtype=torch.float64).expand(1 << size)
    _with_optimizer(path, {"step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment})


@bomb(20_000, "load_checkpoint")
def shared_moments(path: Path, size: int) -> None:
    moment = torch.zeros(80_000, dtype=torch.float64)
    _with_optimizer(path, {"step": torch.tensor(1.0), **{f"m{at}": moment for at in range(size)}})


def _with_optimizer(path: Path, state: dict[str, Any], **more: Any) -> None:
    groups = torch.optim.AdamW(Net().parameters()).state_dict()["param_groups"]
    whole = {"model_state_dict": {"w": VALUES}, "optimizer_state_dict": {"state": {0: state}, "param_groups": groups}}
    torch.save(whole | more, path)


@bomb(30, "load_checkpoint")
def random_words(path: Path, size: int) -> None:
    words = torch.zeros(1, dtype=torch.int32).expand(1 << size)
    rng = {"python": {"version": 3, "words": words, "gauss": None}, "numpy": {"state": {"key": words, "pos": 1}}}
    _with_optimizer(path, {}, rng_state=rng | {"torch": words})


@bomb(1 << 32, "load_model")
def rare_room(path: Path, size: int) -> None:
    rare = name("torch._utils", "_rebuild_sparse_tensor") + b"0"
    torch_file(path, rare, call(name("builtins", "bytearray"), b"\x8a\x08" + struct.pack("<q", size)))


# ---- deltas


def _delta(
    path: Path, layers: dict[str, Any], tensors: dict[str, torch.Tensor], base: torch.nn.Module | None = None
) -> None:
    left = {key: value for key, value in tensors_of(base or Headed()).items() if key not in tensors}
    left = {key: value for key, value in left.items() if not key.startswith(tuple(f"{of}." for of in layers))}
    record = {"base": fingerprint(left), "layers": layers}
    write_tensors(path, tensors, {"ftkit.delta": pack(record)[1]})


class Headed(torch.nn.Module):
    """The model that the deltas are for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Linear(8, 2048)
        self.fc = torch.nn.Linear(2048, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


@bomb(1 << 20, "load_delta")
def delta_layer(path: Path, size: int) -> None:
    linear = {"in_features": size, "out_features": 4096, "bias": True}
    _delta(path, {"fc": ["Linear", linear]}, {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(2)})


@bomb(240_000, "load_delta")
def delta_resize(path: Path, size: int) -> None:
    _delta(path, {}, {"fc.bias": torch.zeros(size)})


@bomb(30_000, "load_delta", slow=True)
def delta_layers(path: Path, size: int) -> None:
    parts = {str(at): ["ReLU", {}] for at in range(size)}
    _delta(path, {"fc": ["Sequential", parts]}, {"fc.0.bias": torch.zeros(2)})
