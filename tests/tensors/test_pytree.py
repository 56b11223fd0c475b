"""Nests survive a round trip: through JSON and tensors, and through a file."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit._formats import open_file
from ftkit._tensors.pytree import pack, unpack
from ftkit._tensors.safetensors import write_tensors
from ftkit.errors import CheckpointError, DamagedFileError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any kept type, of up to three sides, sometimes not contiguous."""
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = draw(st.integers(0, 1000))
    made = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(draw(st.sampled_from(DTYPES)))
    return made.mT if made.ndim > 1 and draw(st.booleans()) else made


arrays = st.builds(
    lambda kind, shape: np.arange(math.prod(shape)).reshape(shape).astype(kind),
    st.sampled_from(["<f4", ">f4", "<i8", "|b1", "<U3", "M8[ns]", "<c16"]),
    st.lists(st.integers(0, 4), max_size=3),
)
keys = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.tuples(st.integers(), st.text(max_size=2))
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["$tensor", "\ud800", "", "a.b"]),
    st.binary(max_size=300),
    tensors(),
    arrays,
    st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.float64("nan"), np.str_(""), np.str_("a")]),
    st.sampled_from([PurePosixPath("/a"), PureWindowsPath("C:/a/b")]),
    st.sampled_from([torch.float16, torch.device("cpu"), torch.device("cuda:1"), torch.Size([2, 3]), Path("a/b")]),
)
nests = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(
            st.one_of(st.text(max_size=4), st.sampled_from(["$tensor", "a.b", "a", "b"])), inner, max_size=4
        ),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Tell whether two nests are the same to the last bit and type."""
    if type(a) is not type(b) and not (isinstance(a, Path) and isinstance(b, Path)):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and pattern(a) == pattern(b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return (
            list(a) == list(b)
            and all(same(x, y) for x, y in zip(a, b, strict=True))
            and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return bool(a == b)


def pattern(tensor: torch.Tensor) -> list[int]:
    """The bytes of a tensor."""
    return tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


@given(nests, st.booleans(), st.sampled_from(["", "model"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(nest: Any, compact: bool, name: str) -> None:
    """Any nest comes back equal to the bit, with the same types and order."""
    assert same(unpack(*pack(nest, name, compact=compact), name), nest)


@given(nests)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_round_trip_through_a_file(tmp_path: Path, nest: Any) -> None:
    """What pack gives is what a tensor file can hold."""
    packed, text = pack(nest)
    write_tensors(tmp_path / "nest.safetensors", packed, {"nest": text})
    with open_file(tmp_path / "nest.safetensors") as file:
        assert same(unpack(file.read(), file.metadata["nest"]), nest)


@given(
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    [
                        "$tensor",
                        "$array",
                        "$scalar",
                        "$dict",
                        "$deque",
                        "$bytes",
                        "$int",
                        "$device",
                        "$dtype",
                        "$Counter",
                        "$defaultdict",
                        "$complex",
                        "$nothing",
                        "a",
                    ]
                ),
                inner,
                max_size=2,
            ),
        ),
        max_leaves=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_foreign_descriptions_are_refused_cleanly(value: Any) -> None:
    """JSON that pack never wrote gives a nest or an error of ours, never another exception."""
    with contextlib.suppress(DamagedFileError):
        unpack({"a": torch.zeros(2)}, json.dumps(value))


def test_compact_is_smaller_and_exact() -> None:
    """Small float tensors shrink by what their exponents have in common; none grows."""
    nest = {
        "moments": torch.randn(1000) * 1e-3,
        "step": torch.tensor(3.0),
        "bits": torch.randint(0, 256, (999,)).byte(),
    }
    packed, text = pack(nest, compact=True)
    assert sum(tensor.nbytes for tensor in packed.values()) + len(text) < 4000 * 0.9 + 999 + 200
    assert same(unpack(packed, text), nest)


def test_tensors_are_named_after_their_place() -> None:
    """Names are dotted paths, which other readers of the file understand."""
    packed, _ = pack({"optimizer": {"state": {0: {"exp_avg": torch.zeros(1)}}}})
    assert list(packed) == ["optimizer.state.0.exp_avg"]


def test_names_that_clash_are_told_apart() -> None:
    """Two places that spell the same name hold two tensors."""
    nest = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(2), "__metadata__": torch.ones(3)}
    packed, text = pack(nest)
    assert len(packed) == 3
    assert same(unpack(packed, text), nest)


def test_tied_tensors_stay_tied_through_a_file(tmp_path: Path) -> None:
    """One memory in two places is stored once and is one memory again."""
    shared = torch.arange(1000.0)
    packed, text = pack({"embed": shared, "out": shared})
    write_tensors(tmp_path / "tied.safetensors", packed, {"nest": text})
    assert (tmp_path / "tied.safetensors").stat().st_size < 5500
    with open_file(tmp_path / "tied.safetensors") as file:
        again = unpack(file.read(), text)
    assert again["embed"].data_ptr() == again["out"].data_ptr()


def test_special_tables_keep_their_kind() -> None:
    """Counter (MultiStepLR keeps one) and defaultdict (histories) come back as themselves."""
    history: defaultdict[str, list[float]] = defaultdict(list, {"loss": [0.5]})
    nest = unpack(*pack({"milestones": Counter({30: 1}), "history": history, "last": deque([1, 2], maxlen=2)}))
    assert nest == {"milestones": Counter({30: 1}), "history": history, "last": deque([1, 2], maxlen=2)}
    assert nest["history"]["new"] == []
    assert nest["last"].maxlen == 2


def test_huge_integers() -> None:
    """An integer beyond Python's limit on decimal digits survives."""
    assert unpack(*pack([1 << 20_000, -(1 << 20_000)])) == [1 << 20_000, -(1 << 20_000)]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (SimpleNamespace(a=1), "'args.deep' is a types.SimpleNamespace"),
        (lambda: 0, "'args.deep' is a builtins.function"),
        (np.array([object()]), "'args.deep' is a numpy ndarray of object"),
        (defaultdict(lambda: 0), "'args.deep' is a defaultdict of"),
    ],
)
def test_what_needs_code_is_refused_by_its_place(value: object, words: str) -> None:
    """The error says where the value stands and what to give instead."""
    with pytest.raises(CheckpointError, match=r"Pass|Make") as caught:
        pack({"args": {"deep": value}})
    assert words in str(caught.value)


def test_a_nest_that_contains_itself_is_refused() -> None:
    """A cycle ends in a clear error."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(CheckpointError, match="contains itself"):
        pack(cycle)


def test_a_missing_tensor_is_named() -> None:
    """A description whose tensor is gone says which."""
    _, text = pack({"w": torch.zeros(1)})
    with pytest.raises(DamagedFileError, match="'w' is missing"):
        unpack({}, text)
