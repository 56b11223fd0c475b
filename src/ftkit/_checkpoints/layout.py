"""The two formats of a training checkpoint: a safetensors file of nests, and the usual torch dict."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Final, TypeAlias, assert_never

from torch import Tensor

from ftkit._formats import TORCH_SUFFIXES, ObjectFormat, TensorFormat, content_format
from ftkit._pickles.gate import PickleFile, load_parts, save_pickle
from ftkit._tensors.file import TensorFile
from ftkit._tensors.pytree import pack, unpack
from ftkit._tensors.safetensors import write_tensors
from ftkit.errors import CheckpointError, UntrustedFileError

__all__ = ["Content", "prepare", "read", "read_run", "verify"]

_log: Final = logging.getLogger("ftkit")

Tensors: TypeAlias = dict[str, Tensor]

# Where the facts about the run stand: in a safetensors file's metadata, or in the torch dict.
_KEY: Final = "ftkit.checkpoint"

# What the entries of a torch checkpoint are called in people's training loops, the usual name first.
_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    "model": ("model_state_dict", "state_dict", "model", "model_state", "net", "network", "weights", "module"),
    "optimizer": ("optimizer_state_dict", "optimizer", "optimizer_states", "optimizer_state", "optim", "opt"),
    "scheduler": ("scheduler_state_dict", "scheduler", "lr_scheduler_state_dict", "lr_scheduler", "lr_schedulers"),
    "scaler": ("scaler_state_dict", "scaler", "grad_scaler", "amp_scaler"),
    "ema": ("ema_state_dict", "ema", "model_ema", "state_dict_ema", "ema_model"),
    "sampler": ("sampler_state_dict", "sampler"),
    "rng": ("rng_state",),
    "ranks": ("states_of_other_ranks",),
}
_FACTS: Final[dict[str, tuple[str, ...]]] = {
    "epoch": ("epoch",),
    "step": ("step", "global_step"),
    "metrics": ("metrics",),
}


_OF_LISTS: Final = {"optimizer", "scheduler"}
_TABLES: Final = {"model", "optimizer", "ema", "metrics"}


@dataclass
class Content:
    """What a checkpoint holds.

    Attributes:
        run: Plain facts: epoch, step, metrics, names of the optimizer's parameters, ...
        states: Nests of values and tensors by name: ``model``, ``optimizer``, ..., and ``extra`` for the
            values under names of the user's own.
    """

    run: dict[str, Any]
    states: dict[str, Any]


def prepare(path: Path, content: Content, copy: Callable[[Tensors], Tensors] | None = None) -> Callable[[], None]:
    """Check that everything can be kept; return what writes it.

    Args:
        path: The file; its suffix decides the format.
        content: What to write.
        copy: Makes copies of tensors, if the originals will change before the writing.

    Raises:
        CheckpointError: Something can't be kept without pickling code.
    """
    tensors: Tensors = {}
    texts: dict[str, str] = {}
    for name, state in content.states.items():
        # Foreign readers look for the model's tensors; all else is ours alone.
        packed, texts[name] = pack(state, name, compact="delta" in content.run and name != "model")
        tensors |= packed
    if path.suffix not in TORCH_SUFFIXES:
        metadata = {_KEY: pack(content.run)[1], **texts}
        if copy is not None:
            tensors = copy(tensors)
        return lambda: write_tensors(path, tensors, metadata)
    if "delta" in content.run:
        raise CheckpointError(f"A delta is a safetensors file: {path.name} should end in .safetensors.")
    states = content.states
    if copy is not None:
        tensors = copy(tensors)
        states = {name: unpack(tensors, text, name) for name, text in texts.items()}
    whole = _as_torch_dict(content.run, states)
    return lambda: save_pickle(whole, path, plain=True)


def _as_torch_dict(run: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {name: run[name] for name in _FACTS}
    whole |= {_ALIASES[name][0]: state for name, state in states.items() if name != "extra"}
    whole[_KEY] = {name: fact for name, fact in run.items() if name not in _FACTS}
    extra: dict[str, Any] = states.get("extra", {})
    if taken := extra.keys() & whole.keys():
        raise CheckpointError(f"The name {min(taken)!r} is taken in a torch checkpoint. Call the value otherwise.")
    return whole | extra


def read(path: Path, wanted: Collection[str]) -> Content:
    """Read the facts, the extra values and the wanted states; all of the file is verified.

    Raises:
        CheckpointError: It is no training checkpoint.
        DamagedFileError: Its bytes are not the ones that were written.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. load_weights(model, path) reads the weights in it.")
    match content_format(path):
        case TensorFormat() as kind:
            with kind.open(path) as file:
                return _read_tensors(file, wanted)
        case ObjectFormat():
            return _read_torch(path, wanted)
        case other:
            assert_never(other)


def read_run(path: Path) -> dict[str, Any] | None:
    """Read the facts about the run alone; ``None`` if :func:`prepare` did not make the file.

    Raises:
        DamagedFileError: Its header is not the one that was written.
    """
    match content_format(path):
        case TensorFormat() as kind:
            with kind.open(path) as file:
                return _facts(file) if _KEY in file.metadata else None
        case ObjectFormat():
            with PickleFile(path) as pickled:
                whole = pickled.tree
        case other:
            assert_never(other)
    if not isinstance(whole, dict) or not isinstance(whole.get(_KEY), dict):
        return None
    return {**whole[_KEY], **{name: whole.get(name) for name in _FACTS}}


def verify(path: Path) -> None:
    """Read every byte and compare with the digests.

    Raises:
        DamagedFileError: Some bytes are not the ones that were written.
    """
    match content_format(path):
        case TensorFormat() as kind:
            with kind.open(path) as file:
                file.verify()
        case ObjectFormat():
            load_parts(path)
        case other:
            assert_never(other)


def _read_tensors(file: TensorFile, wanted: Collection[str]) -> Content:
    run = _facts(file)
    states = {}
    for name in file.metadata.keys() & {*_ALIASES, "extra"}:
        names = [tensor for tensor in file.tensors if tensor == name or tensor.startswith((f"{name}.", f"{name}~"))]
        tensors = file.read(names)  # also what nobody wants: an intact file is intact everywhere
        if name in wanted or name == "extra":
            states[name] = unpack(tensors, file.metadata[name], name)
    return Content(run, states)


def _facts(file: TensorFile) -> dict[str, Any]:
    if _KEY not in file.metadata:
        reader = "load_delta" if "ftkit.delta" in file.metadata else "load_weights"
        raise CheckpointError(f"{file.path} is no training checkpoint. Read it with {reader}(model, path).")
    run: dict[str, Any] = unpack({}, file.metadata[_KEY])
    return run


def _read_torch(path: Path, wanted: Collection[str]) -> Content:
    whole, left_out = load_parts(path)
    if not isinstance(whole, dict):
        raise CheckpointError(f"{os.fspath(path)} holds a {type(whole).__name__}, not a training checkpoint.")
    rest = dict(whole)
    run = dict(rest.pop(_KEY, {}))
    states: dict[str, Any] = {}
    for table, found in ((_FACTS, run), (_ALIASES, states)):
        for name, aliases in table.items():
            alias = next((alias for alias in aliases if alias in rest and _may_be(name, rest[alias])), None)
            if alias is not None:
                value = rest.pop(alias)
                found[name] = value[0] if name in _OF_LISTS and isinstance(value, list) else value
    if "model" not in states and rest and all(isinstance(value, Tensor) for value in rest.values()):
        states, rest = {"model": rest}, {}  # a bare state dict
    for entry, names in left_out.items():
        if any(entry in _ALIASES.get(name, ()) for name in wanted if name not in states):
            raise UntrustedFileError(
                f"The {entry!r} of {path} can't be had without running code: it wants {', '.join(names[:8])}. "
                "If it is a whole model, load_weights(model, path) reads its weights; if you know where the file comes "
                "from, load_model(path, trusted=True) returns all of it."
            )
        _log.warning("%s: %r is left out, as it would run code (%s).", path, entry, ", ".join(names[:8]))
    return Content(run, {**states, "extra": rest})


def _may_be(name: str, value: Any) -> bool:
    """Whether a value is of the kind that belongs under a name: people use the same words for other things."""
    if name in {"epoch", "step"}:
        return value is None or isinstance(value, Integral)
    if name in _OF_LISTS and isinstance(value, list):  # as Lightning keeps optimizers and schedulers
        return len(value) == 1 and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) if name in _TABLES else not (value is None or isinstance(value, str))
