"""The file of a training run, in two formats: a safetensors file of pytrees, or the usual torch dict."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Number
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeAlias

from torch import Tensor

from ftkit._checkpoints import ranks
from ftkit._formats import TORCH_SUFFIXES, WeightsFile, open_file, refuse_torch_name
from ftkit._pickles.gate import load_parts, save_pickle
from ftkit._pickles.torchfiles import PickleFile
from ftkit._tensors.budget import Budget
from ftkit._tensors.file import TensorFile
from ftkit._tensors.pytree import pack, unpack
from ftkit._tensors.safetensors import refuse_empty, write_tensors
from ftkit._wording import plural, shown, some
from ftkit.errors import CheckpointError, DamagedFileError, UntrustedFileError, did_you_mean

_log: Final = logging.getLogger("ftkit")

Tensors: TypeAlias = dict[str, Tensor]

# Where the facts about the run stand: in a safetensors file's metadata, or in the torch dict.
_KEY: Final = "ftkit.checkpoint"

_LISTED: Final = {"optimizer", "scheduler"}  # Lightning keeps several in a list, as a rule one
_TABLES: Final = {"model", "optimizer", "ema", "extra"}
_FACTS: Final = ("epoch", "step", "metrics")

# What an entry of a torch checkpoint may be, since people use the same words for other things.
_COUNT: Final = (Integral, NoneType)
_TABLE: Final = (Mapping,)
_STATE: Final = (Mapping, tuple, set, Tensor, Number, bytes)
_STATE_OR_LIST: Final = (*_STATE, list)

# What the entries are called in people's training loops, the usual name first.
_ENTRIES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "epoch": (_COUNT, "epoch"),
    "step": (_COUNT, "step global_step"),
    "metrics": (_TABLE, "metrics"),
    "model": (_TABLE, "model_state_dict state_dict model model_state net network weights module"),
    "optimizer": (_TABLE, "optimizer_state_dict optimizer optimizer_states optimizer_state optim opt"),
    "scheduler": (_STATE, "scheduler_state_dict scheduler lr_scheduler_state_dict lr_scheduler lr_schedulers"),
    "scaler": (_STATE_OR_LIST, "scaler_state_dict scaler grad_scaler amp_scaler"),
    "ema": (_TABLE, "ema_state_dict ema model_ema state_dict_ema ema_model"),
    "sampler": (_STATE_OR_LIST, "sampler_state_dict sampler"),
    "rng": (_STATE_OR_LIST, "rng_state"),
    "ranks": (_STATE_OR_LIST, "states_of_other_ranks"),
}


def _are_names(value: object, *, some_without: bool = False) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) or (name is None and some_without) for name in value)


# What the facts about a run must hold that others build upon.
_FORMS: Final[dict[str, dict[str, Callable[[Any], bool]]]] = {
    "frozen": {"trainable": _are_names, "held": _are_names},
    "optimizer": {"names": partial(_are_names, some_without=True)},
    "delta": {
        "base": lambda base: isinstance(base, dict) and base.keys() >= {"shapes", "contents", "tensors"},
        "layers": lambda layers: isinstance(layers, dict),
    },
}


# Under which other names timm looks for an entry. A torch dict has it under both, as the same object: that is free.
_ALSO: Final = {"model": "state_dict", "ema": "state_dict_ema", "optimizer": "optimizer"}


def _names(entry: str) -> list[str]:
    return _ENTRIES[entry][1].split()


@dataclass
class Content:
    """What a checkpoint contains.

    Attributes:
        path: The file.
        run: Plain facts: epoch, step, metrics, names of the optimizer's parameters, ...
        states: Pytrees of values and tensors by name: ``model``, ``optimizer``, ..., and ``extra`` for the
            values under the user's own names.
        budget: What processing its contents may still cost, if it was read from a file.
    """

    path: Path
    run: dict[str, Any]
    states: dict[str, Any]
    budget: Budget = field(default_factory=partial(Budget, math.inf))

    @property
    def extra(self) -> dict[str, Any]:
        """The values under the user's own names."""
        values: dict[str, Any] = self.states.get("extra", {})
        return values

    def state(self, name: str) -> Any:
        """Return a state.

        Raises:
            CheckpointError: There is none of that name.
        """
        if name not in self.states:
            advice = "load_weights(model, path) finds weights wherever they are" if name == "model" else "omit it"
            raise CheckpointError(f"{shown(self.path)} contains no state for {name}=: {advice}.")
        return self.states[name]

    def value(self, name: str) -> Any:
        """Return what the user saved under a name.

        Raises:
            CheckpointError: There is none of that name.
        """
        if name not in self.extra:
            raise CheckpointError(f"{shown(self.path)} contains no value {name!r}.{did_you_mean(name, self.extra)}")
        return self.extra[name]


def prepare(content: Content, copy: Callable[[Tensors], Tensors] | None = None) -> Callable[[], None]:
    """Check that everything can be saved; return a function that writes it.

    Args:
        content: What to write. The extension of its path decides the format.
        copy: Copies tensors, if the originals will change before they are written.

    Raises:
        CheckpointError: Something can't be saved without pickling code, or has no values.
    """
    path = content.path
    tensors: Tensors = {}
    texts: dict[str, str] = {}
    for name, state in content.states.items():
        # Foreign readers look for the model's tensors; all else is ours alone.
        packed, texts[name] = pack(state, name, compact="delta" in content.run and name != "model")
        tensors |= packed
    refuse_empty(tensors)
    if path.suffix not in TORCH_SUFFIXES:
        metadata = {_KEY: pack(content.run)[1], **texts}
        if copy is not None:
            tensors = copy(tensors)
        return lambda: write_tensors(path, tensors, metadata)
    if "delta" in content.run:
        refuse_torch_name(path)
    states = content.states
    if copy is not None:
        tensors = copy(tensors)
        states = {name: unpack(tensors, text, name) for name, text in texts.items()}
    whole = _as_torch_dict(Content(path, content.run, states))
    return lambda: save_pickle(whole, path, plain=True)


def _as_torch_dict(content: Content) -> dict[str, Any]:
    whole: dict[str, Any] = {name: content.run[name] for name in _FACTS}
    whole |= {_names(name)[0]: state for name, state in content.states.items() if name != "extra"}
    whole[_KEY] = {name: fact for name, fact in content.run.items() if name not in _FACTS}
    again = {other: whole[_names(entry)[0]] for entry, other in _ALSO.items() if entry in content.states}
    if "n_averaged" in content.states.get("ema", ()):  # torch's counter, which timm has no place for
        del again[_ALSO["ema"]]
    if taken := content.extra.keys() & whole.keys():
        raise CheckpointError(f"The name {min(taken)!r} is reserved in a torch checkpoint. Choose another name.")
    return again | whole | content.extra


def read(path: Path, wanted: Collection[str]) -> Content:
    """Read the facts, the extra values and the wanted states; the whole file is verified.

    In a run of several processes, each gets its own states.

    Raises:
        CheckpointError: It is not a training checkpoint.
        DamagedFileError: Its bytes differ from those that were written.
    """
    if path.is_dir():
        raise CheckpointError(f"{shown(path)} is a folder. load_weights(model, path) reads the weights in it.")
    with open_file(path) as file:
        content = _content(file, {*wanted, "ranks"})
    content.path = path
    others = content.states.pop("ranks", [])
    rank = ranks.rank()
    if 0 < rank <= len(others):
        content.states |= others[rank - 1]
    elif rank > 0 and content.states.pop("rng", None) is not None:
        _log.warning(
            "%s was written by %s and does not contain the random state of process %d, which continues with its own.",
            shown(path),
            plural(len(others) + 1, "process", "processes"),
            rank,
        )
    return content


def read_run(path: Path) -> dict[str, Any] | None:
    """Read only the facts about the run; ``None`` if :func:`prepare` did not write the file.

    Raises:
        DamagedFileError: Its header differs from the one that was written.
    """
    with open_file(path) as file:
        match file:
            case TensorFile():
                return _facts(file) if _KEY in file.metadata else None
            case PickleFile(tree={"ftkit.checkpoint": dict(facts)} as whole):
                return {**facts, **{name: whole.get(name) for name in _FACTS}}
            case PickleFile():
                return None


def verify(path: Path) -> None:
    """Read every byte and compare with the digests.

    Raises:
        DamagedFileError: Some bytes differ from those that were written.
    """
    with open_file(path) as file:
        match file:
            case TensorFile():
                file.verify()
            case PickleFile():
                load_parts(file)


def is_readable(path: Path) -> bool:
    """Tell whether a file is a training checkpoint, and whole."""
    try:
        read(path, ())
    except (CheckpointError, OSError):
        return False
    return True


def _content(file: WeightsFile, wanted: Collection[str]) -> Content:
    match file:
        case TensorFile():
            return _from_tensors(file, wanted)
        case PickleFile():
            return _from_torch_dict(file, wanted)


# ---- a safetensors file


def _from_tensors(file: TensorFile, wanted: Collection[str]) -> Content:
    content = Content(Path(file.path), _facts(file), {}, file.budget)
    for name in file.metadata.keys() & {*_ENTRIES, "extra"}:
        names = [tensor for tensor in file.tensors if tensor == name or tensor.startswith((f"{name}.", f"{name}~"))]
        tensors = file.read(names)  # also what is not wanted: an intact file is intact everywhere
        if name in wanted or name == "extra":
            state = unpack(tensors, file.metadata[name], name, budget=file.budget)
            if name in _TABLES and not isinstance(state, Mapping):
                raise DamagedFileError(f"{file.path} is damaged: its {name} is a {type(state).__name__}, not a table.")
            content.states[name] = state
    return content


def _facts(file: TensorFile) -> dict[str, Any]:
    if _KEY not in file.metadata:
        reader = "load_delta" if "ftkit.delta" in file.metadata else "load_weights"
        raise CheckpointError(f"{file.path} is not a training checkpoint. Read it with {reader}(model, path).")
    return _believed(file.path, unpack({}, file.metadata[_KEY], budget=file.budget))


def _believed(path: str, run: Any) -> dict[str, Any]:
    """Return the facts about a run if they have the form in which they are written."""
    if isinstance(run, dict) and all(_has_form(run[name], form) for name, form in _FORMS.items() if name in run):
        return run
    raise CheckpointError(f"{path} describes its run in an unknown way: another version or program wrote it.")


def _has_form(fact: Any, form: Mapping[str, Callable[[Any], bool]]) -> bool:
    return isinstance(fact, dict) and all(fits(fact.get(key)) for key, fits in form.items())


# ---- a torch dict


def _from_torch_dict(file: PickleFile, wanted: Collection[str]) -> Content:
    whole, left_out = load_parts(file)
    if not isinstance(whole, dict):
        raise CheckpointError(f"{file.path} contains a {type(whole).__name__}, not a training checkpoint.")
    rest = dict(whole)
    for entry, other in _ALSO.items():
        if _KEY in rest and other in rest and rest[other] is rest.get(_names(entry)[0]):
            del rest[other]
    run = _believed(file.path, rest.pop(_KEY, {}))
    found = {name: value for name in _ENTRIES for value in _taken(name, rest)}
    run |= {name: found.pop(name) for name in _FACTS if name in found}
    if "model" not in found and rest and all(isinstance(value, Tensor) for value in rest.values()):
        found, rest = {"model": rest}, {}  # a bare state dict
    _account_for(file.path, left_out, {*wanted} - found.keys())
    return Content(Path(file.path), run, {**found, "extra": rest}, file.budget)


def _taken(entry: str, rest: dict[str, Any]) -> list[Any]:
    """Take an entry out, under the first of its names that has one; a list of it, or of nothing."""
    kinds, _ = _ENTRIES[entry]
    for name in _names(entry):
        value = rest.get(name, ...)
        if entry in _LISTED and isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
            value = value[0]
        if isinstance(value, kinds):
            del rest[name]
            return [value]
    return []


def _account_for(path: str, left_out: Mapping[str, list[str]], lacking: Collection[str]) -> None:
    """Log what is left out because it would run code; refuse if it is a state that is wanted and nowhere else."""
    for name, code in left_out.items():
        if any(name in _names(state) for state in lacking):
            raise UntrustedFileError(
                f"The {name!r} in {path} can't be loaded without running code: it uses {some(code, 8)}. "
                "If it is a whole model, load_weights(model, path) reads its weights; if you know where the file comes "
                "from, load_model(path, trusted=True) returns all of it."
            )
        _log.warning("%s: %r is ignored, because it would run code (%s).", path, name, some(code, 8))
