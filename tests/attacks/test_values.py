"""Values: all that people put into checkpoints comes back as what it was, or is left out by its name."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import io
import logging
import types
import uuid
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import inspect_checkpoint, load_checkpoint, load_model, load_weights, save_checkpoint
from ftkit._pickles.machine import Foreign, Global
from ftkit._pickles.values import numpy_value
from ftkit.errors import CheckpointError


class Mode(enum.Enum):
    """A setting of the user's own."""

    TRAIN = 1
    EVAL = 2


class Level(enum.IntEnum):
    """A setting that is a number too."""

    LOW = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """A configuration of the user's own."""

    rate: float
    name: str = "adam"


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024  (what people's checkpoints hold)


class Marked(torch.Tensor):
    """A tensor of the user's own class."""


def function() -> None:
    """A function of the user's own."""


def parameter(**attributes: Any) -> nn.Parameter:
    """A parameter that somebody set something on."""
    made = nn.Parameter(torch.arange(3.0), requires_grad=bool(attributes))
    vars(made).update(attributes)
    return made


def marked_tensor() -> torch.Tensor:
    made = torch.arange(4).reshape(2, 2)
    made.source = ["somewhere", {1: None}]  # type: ignore[attr-defined]
    return made


STRUCTURED = np.dtype([("id", "<i4"), ("box", ">f4", (2, 2)), ("at", "M8[s]")], align=True)
tensors = st.builds(
    lambda shape, dtype, turned: (
        torch.arange(float(np.prod(shape))).reshape(shape).to(dtype).mT
        if turned and len(shape) > 1
        else torch.arange(float(np.prod(shape))).reshape(shape).to(dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]),
    st.booleans(),
)
arrays = st.one_of(
    st.builds(
        lambda kind, shape, order: np.array(np.arange(int(np.prod(shape))).reshape(shape).astype(kind), order=order),
        st.sampled_from(["<f4", ">f8", "<i8", "|b1", "<U3", "|S2", "M8[ns]", "M8[25s]", "m8[D]", "<c16", "<f2", "u1"]),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from("CF"),
    ),
    st.sampled_from(
        [
            np.zeros(2, STRUCTURED),
            np.array("NaT", "M8"),
            np.array(["", "ab"]),
            np.zeros(2, "V3"),
            np.array(["NaT"], "M8[D]"),
        ]
    ),
)
scalars = st.sampled_from(
    [
        np.float32(1.5),
        np.float64("nan"),
        np.int8(-3),
        np.bool_(True),
        np.complex64(1j),
        np.str_(""),
        np.str_("ab"),
        np.bytes_(b"a"),
        np.datetime64("2024-05-06"),
        np.datetime64("NaT"),
        np.timedelta64(3, "h"),
        np.float16(2),
        np.longdouble(0.1),
        np.datetime64("2024-05-06T07:08:09.123456789"),
        np.zeros(1, STRUCTURED)[0],
    ]
)
hashables = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 3000), 1 << 3000),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(exclude_categories=[]), max_size=6),
    st.binary(max_size=20),
    st.decimals(allow_nan=False),
    st.just(decimal.Decimal("NaN")),
    st.fractions(),
    st.datetimes(timezones=st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=9), "KST")])),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    scalars.filter(lambda value: not isinstance(value, np.void)),
    st.sampled_from(
        [
            Path("a/b"),
            PurePosixPath("/a"),
            PureWindowsPath("C:/a"),
            ...,
            NotImplemented,
            torch.Size([2, 3]),
            torch.Size([]),
            torch.float16,
            torch.device("cuda:1"),
            torch.device("cpu"),
            torch.strided,
            torch.sparse_coo,
            torch.per_tensor_affine,
            torch.per_channel_symmetric,
            range(3),
            range(9, -1, -2),
            int,
            float,
            str,
            bool,
            dict,
            type(None),
            type(...),
            complex,
            np.float32,
            np.ndarray,
            torch.Tensor,
            nn.Parameter,
            collections.OrderedDict,
            dt.date,
            Path,
            torch.float64,
            decimal.Decimal,
            np.bool_,
            argparse.Namespace,
            uuid.UUID,
            slice,
        ]
    ),
)
items = st.one_of(hashables, st.builds(lambda *parts: parts, hashables, hashables), tensors, st.builds(parameter))
leaves = st.one_of(
    hashables,
    tensors,
    arrays,
    scalars,
    st.builds(parameter, note=st.text(max_size=3), mask=tensors),
    st.builds(marked_tensor),
    st.binary(max_size=300).map(bytearray),
    st.sampled_from([slice(1, None, 2), np.dtype("f4"), np.dtype(">i8"), STRUCTURED, np.dtype("M8[us]")]),
)


def grown(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Everything that is made of other things."""
    tables = st.dictionaries(hashables, parts, max_size=3)
    lists = st.lists(parts, max_size=3)
    return st.one_of(
        lists,
        lists.map(tuple),
        st.builds(collections.deque, lists, st.sampled_from([None, 5])),
        tables,
        tables.map(collections.OrderedDict),
        st.dictionaries(items, parts, max_size=3),
        st.builds(collections.defaultdict, st.sampled_from([None, list, dict, collections.deque, np.float64]), tables),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=3).map(collections.Counter),
        st.sets(items, max_size=3),
        st.frozensets(items, max_size=3),
        st.dictionaries(st.sampled_from(["lr", "model", "fn"]), parts).map(lambda table: argparse.Namespace(**table)),
        st.dictionaries(st.sampled_from(["lr", "model"]), parts).map(lambda table: types.SimpleNamespace(**table)),
        lists.map(lambda found: objects_of(found)),
    )


def objects_of(found: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(found), object)
    for at, part in enumerate(found):
        array[at] = part
    return array


plain = st.recursive(leaves, grown, max_leaves=10)
coded = st.sampled_from(
    [
        Mode.TRAIN,
        Level.LOW,
        Settings(0.1),
        Point(1, 2),
        function,
        nn.Linear,
        Settings,
        torch.relu,
        nn.functional.relu,
        nn.functional.gelu,
        np.ma.array([1, 2]),
        np.rec.array([(1, 2)]),
        np.random.default_rng(0),
        fractions.Fraction.from_float,
        logging.getLogger("x"),
        torch.ones(2).as_subclass(Marked),
        parameter(call=function),
        torch.eye(2).to_sparse(),
        collections.defaultdict(Settings),
        collections.UserDict(),
        print,
        io.StringIO,
        nn.Linear(1, 1),
        collections.OrderedDict,
        np.sum,
        torch.optim.SGD,
    ]
)
anything = st.recursive(leaves | coded, grown, max_leaves=8)


def same(a: Any, b: Any) -> bool:
    """Tell whether two values are the same, to the type and the bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return (
            (a.dtype, a.shape, a.layout, a.requires_grad) == (b.dtype, b.shape, b.layout, b.requires_grad)
            and (a.layout is not torch.strided or torch.equal(a.detach().nan_to_num(7), b.detach().nan_to_num(7)))
            and same(vars(a), vars(b))
        )
    if isinstance(a, np.ndarray) and a.dtype == object:
        return a.shape == b.shape and all(map(same, a.ravel(), b.ravel()))
    if isinstance(a, np.ndarray | np.void) and a.dtype.names:  # what lies between the fields is nobody's
        return bool(a.dtype == b.dtype and all(same(a[name], b[name]) for name in a.dtype.names))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return (
            len(a) == len(b)
            and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
            and getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        )
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(same, a, b)) and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, nn.Module | np.random.Generator):  # which don't compare
        return True
    if isinstance(a, argparse.Namespace | types.SimpleNamespace):
        return same(vars(a), vars(b))
    return bool(a == b) or repr(a) == repr(b)


class Heard(logging.Handler):
    """What was logged."""

    def __enter__(self) -> list[str]:
        self.lines: list[str] = []
        logging.getLogger("ftkit").addHandler(self)
        return self.lines

    def __exit__(self, *_: object) -> None:
        logging.getLogger("ftkit").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))


WAYS = [(protocol, zipped) for protocol in (2, 3, 4, 5) for zipped in (True, False)]
ways = st.sampled_from(WAYS)


def saved(path: Path, values: list[Any], way: tuple[int, bool]) -> dict[str, Any]:
    """Save a checkpoint with these values; return what torch itself makes of it."""
    whole = {"model": {"w": torch.arange(3.0)}, **{f"value {at}": value for at, value in enumerate(values)}}
    torch.save(whole, path, pickle_protocol=way[0], _use_new_zipfile_serialization=way[1])
    try:
        return torch.load(path, weights_only=False)  # type: ignore[no-any-return]
    except RuntimeError:  # torch takes an old file that holds the magic of a zip for one
        reject()


def loaded(path: Path) -> tuple[dict[str, Any], list[str]]:
    with Heard() as lines:
        checkpoint = load_checkpoint(path, model=(model := Net()))
    assert model.w.tolist() == [0, 1, 2]
    assert load_weights(model, path).loaded_keys == ["w"]
    inspect_checkpoint(path)
    return checkpoint.extra, lines


quick = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@quick
@given(st.lists(plain, min_size=1, max_size=3), ways)
def test_plain_values_come_back_as_they_were(tmp_path: Path, values: list[Any], way: tuple[int, bool]) -> None:
    """Nests of all that needs no code come back as torch itself makes them, from every protocol."""
    expected = saved(tmp_path / "x.pt", values, way)
    extra, lines = loaded(tmp_path / "x.pt")
    assert not lines
    assert extra.keys() == expected.keys() - {"model"}
    for name, value in extra.items():
        assert same(value, expected[name]), (value, expected[name])
    assert same(load_model(tmp_path / "x.pt"), expected)


@quick
@given(st.lists(anything, min_size=1, max_size=3), ways)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:.*Sparse")
def test_anything_comes_back_or_is_named(tmp_path: Path, values: list[Any], way: tuple[int, bool]) -> None:
    """Whatever lies beside the weights, these load; what only code could make is left out, and named."""
    expected = saved(tmp_path / "x.pt", values, way)
    extra, lines = loaded(tmp_path / "x.pt")
    for name in expected.keys() - {"model"}:
        named = any(repr(name) in line or f"{name}: " in line for line in lines)
        assert named or (name in extra and same(extra[name], expected[name])), (name, extra.get(name), lines)
    with contextlib.suppress(CheckpointError):
        assert same(load_model(tmp_path / "x.pt"), expected)
    assert same(load_model(tmp_path / "x.pt", trusted=True), expected)


@pytest.mark.parametrize("dtype", [">f8", ">i2", ">c16", ">U2", [("a", ">f4")]])
def test_arrays_come_in_the_byte_order_that_numpy_gives(tmp_path: Path, dtype: Any) -> None:
    """Of another machine's arrays too."""
    for protocol in range(2, 6):
        torch.save({"x": np.zeros(3, dtype)}, tmp_path / "x.pt", pickle_protocol=protocol)
        assert same(load_model(tmp_path / "x.pt"), torch.load(tmp_path / "x.pt", weights_only=False)), protocol


def without_history(value: Any) -> Any:
    """What a checkpoint of ours keeps of a tensor: its values, not what was set on it."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, collections.defaultdict):
        made = collections.defaultdict(value.default_factory)
        made.update((without_history(key), without_history(part)) for key, part in value.items())
        return made
    if isinstance(value, dict):
        return type(value)({without_history(key): without_history(part) for key, part in value.items()})
    if isinstance(value, collections.deque):
        return collections.deque(map(without_history, value), value.maxlen)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(without_history, value))
    return value


@quick
@given(anything, st.sampled_from(["x.safetensors", "x.pt"]))
@pytest.mark.filterwarnings("ignore:.*Sparse")
def test_our_own_checkpoints_keep_a_value_or_refuse_it(tmp_path: Path, value: Any, name: str) -> None:
    """What save_checkpoint takes comes back as it was; it says at once what it can't keep, and where that stands."""
    try:
        save_checkpoint(tmp_path / name, model=Net(), rng=False, given=[value])
    except CheckpointError:
        return
    back = load_checkpoint(tmp_path / name, model=Net()).extra["given"][0]
    if name == "x.pt":
        assert same(back, torch.load(tmp_path / name, weights_only=False)["given"][0])
    else:
        assert same(back, without_history(value)), (back, value)


def test_what_is_shared_is_shared_or_left_out_with_all_that_shares_it(tmp_path):
    """One thing in two entries is one thing again; of one that can't be made, no half is left behind."""
    good, bad = [torch.ones(1)], [1, np.ma.array([1]), 2]
    bad_object = np.empty(1, object)
    bad_object[0] = np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else function
    circle: list[Any] = []
    circle.append((circle, {"again": circle}))
    saved(tmp_path / "x.pt", [good, [good], bad, [bad], bad_object, circle, {"all": bad_object}], (4, True))
    extra, lines = loaded(tmp_path / "x.pt")
    assert extra.keys() == {"value 0", "value 1", "value 5"}
    assert extra["value 1"][0] is extra["value 0"]
    again = extra["value 5"]
    assert again[0][0] is again[0][1]["again"] is again
    assert len(lines) == 4


def test_small_files_make_no_large_values(tmp_path):
    """Calls of plain classes that would take forever, or all memory, are left out."""
    number = b"\x8a\x08" + b"\xff" * 7 + b"\x00"
    for call in (
        b"ccollections\ndeque\nc__builtin__\nxrange\n" + number + b"\x85R\x85R",
        b"cfractions\nFraction\n\x8c\x0b1e999999999\x85R",
        b"cfractions\nFraction\n" + number + b"\x8c\x011\x86R",
    ):
        path = tmp_path / "x.pkl"
        path.write_bytes(b"\x80\x04}\x8c\x01x" + call + b"s.")
        with pytest.raises(CheckpointError):
            load_model(path)
        assert inspect_checkpoint(path).tensors == {}


def test_types_within_types_have_an_end():
    """A type whose fields are twice the type before would have 2**60 fields after sixty levels."""
    node = Foreign("numpy.dtype", Global("numpy.dtype"), ("i4", False, True))
    for _ in range(60):
        fields = {"a": (node, 0), "b": (node, 0)}
        state = (3, "|", None, ("a", "b"), fields, 4, 1, 0)
        node = Foreign("numpy.dtype", Global("numpy.dtype"), ("V4", False, True), state=state)
    with pytest.raises(ValueError, match="too many fields"):
        numpy_value(node)
