"""What the weights of a model don't show: which layer stands where, and how it computes."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import torch
from torch import nn

from ftkit._deltas.layers import BUILD_ERRORS, Description, build, is_plain, of_torch, settings_of
from ftkit._torch import children_of
from ftkit._wording import plural, shown
from ftkit.errors import CheckpointError, DamagedFileError

_log = logging.getLogger("ftkit")

Kind: TypeAlias = tuple[str, Mapping[str, Any] | None]
"""The class of a layer, and how it computes; None for somebody else's, of which nothing more is known."""

# What changes no output in eval mode, and what the shapes of the tensors tell.
_UNFELT: Final = frozenset((
    "affine", "bias", "dropout", "elementwise_affine", "embedding_dim", "in_channels", "in_features", "init", "inplace",
    "momentum", "normalized_shape", "num_channels", "num_embeddings", "num_features", "num_parameters", "out_channels",
    "out_features", "padding_idx", "process_group", "scale_grad_by_freq", "sparse", "track_running_stats",
))  # fmt: skip
_LARGEST: Final = 4 << 20  # bytes of an outline, unpacked: 80,000 layers or so
_NOTHING: Final[Kind] = ("Identity", {})  # what leaves its input as it is, in eval mode
_ABSENT: Final[Kind] = ("nothing", {})


def outline(model: nn.Module) -> str:
    """Describe the layers of a model for `check_outline`, in a kilobyte or so; empty for a model of very many."""
    text = json.dumps(kinds_in(model)).encode()
    return base64.b85encode(zlib.compress(text, 9)).decode() if len(text) <= _LARGEST else ""


def kinds_in(model: nn.Module) -> list[list[Any]]:
    """List each kind of layer: its class, how it computes, and the names of all that are like this.

    Example:
        >>> import torch
        >>> from ftkit._deltas.outline import kinds_in
        >>> kinds_in(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ELU(), torch.nn.Linear(4, 2)))
        [['Linear', {}, ['0', '2']], ['ELU', {'alpha': 1.0}, ['1']]]
    """
    found: dict[str, list[Any]] = {}
    for name, (kind, facts) in _kinds(model).items():
        found.setdefault(json.dumps([kind, facts]), [kind, facts, []])[2].append(name)
    return list(found.values())


def _kinds(model: nn.Module) -> dict[str, Kind]:
    named = model.named_modules(remove_duplicate=False)
    return {name: kind for name, module in named if (kind := _kind(module)) is not None}


def _kind(module: nn.Module) -> Kind | None:
    """What a layer is; None for what computes nothing itself, or only in training."""
    kind = type(module)
    if isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
        return _NOTHING
    if not of_torch(kind):
        return None if children_of(module) else (kind.__name__, None)
    if kind is nn.Module or kind.__module__.endswith((".container", ".loss")):
        return None
    names = (settings_of(kind) - _UNFELT) & vars(module).keys()
    facts = {name: _one(vars(module)[name]) for name in sorted(names)}
    name = "BatchNorm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else kind.__name__
    return name, {name: value for name, value in facts.items() if is_plain(value)}


def _one(value: Any) -> Any:
    """One number for all axes, where they have the same: a layer can be given either."""
    if not isinstance(value, tuple | list):
        return value
    return value[0] if value and all(one == value[0] for one in value) else list(value)


def agrees(description: Description, module: nn.Module) -> bool:
    """Whether a layer computes as one that a file describes, as far as can be told."""
    match description:
        case ["Sequential", dict(parts)] if type(module) is nn.Sequential:
            own = children_of(module)
            pairs = [(part, own[name]) for name, part in parts.items() if name in own]
            return len(own) == len(parts) == len(pairs) and all(one and agrees(part, one) for part, one in pairs)
        case [str(), dict()] if of_torch(type(module)):
            try:
                with torch.device("meta"):
                    wanted = _kind(build(description)) or _ABSENT
            except (*BUILD_ERRORS, CheckpointError):
                return False
            return _alike(wanted, _kind(module) or _ABSENT)
        case [str(), dict()]:
            return True
    return False


def _alike(one: Kind, other: Kind) -> bool:
    """Whether two layers compute alike, by what is known of both: another version of torch may declare more."""
    (kind, facts), (other_kind, other_facts) = one, other
    if facts is None or other_facts is None:
        return one == other
    return kind == other_kind and all(facts[name] == other_facts[name] for name in facts.keys() & other_facts.keys())


def _unpacked(recorded: Any) -> list[Any]:
    """What an outline lists; something else where it is none."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.b85decode(recorded), _LARGEST)
        found = json.loads(text if unpacker.eof else b"")
    except (TypeError, ValueError, zlib.error, RecursionError):
        return [None]
    return found if isinstance(found, list) else [None]


def check_outline(recorded: Any, model: nn.Module) -> None:
    """Compare the layers of a model with those that a file has an outline of.

    Raises:
        CheckpointError: Other layers of torch's stand there, or they compute in another way.
        DamagedFileError: This is no outline.
    """
    wanted: dict[str, Kind] = {}
    for entry in _unpacked(recorded):
        match entry:
            case [str(kind), dict() | None as facts, list(names)] if all(isinstance(name, str) for name in names):
                wanted |= dict.fromkeys(names, (kind, facts))
            case _:
                raise DamagedFileError("The delta is damaged, or written by another program: it lists no layers.")
    there = _kinds(model)
    named = model.named_modules(remove_duplicate=False)
    everything: dict[str, Kind] = {name: (type(module).__name__, None) for name, module in named} | there
    differing: list[tuple[str, Kind, Kind]] = []
    unknown: list[tuple[str, Kind, Kind]] = []
    for name in wanted | there:
        one, other = wanted.get(name, _ABSENT), everything.get(name, _ABSENT)
        silent = [kind in (_NOTHING, _ABSENT) for kind in (one, other)]
        if _alike(one, other) or all(silent):
            continue
        if one[1] is not None and other[1] is not None:
            differing.append((name, one, other))
        elif not any(silent):
            unknown.append((name, one, other))
    if differing:
        raise CheckpointError(
            f"This delta was saved from a model with {_told(differing)}, so this one would not give the same outputs. "
            "Build the model as it was in training, and load again."
        )
    if unknown:
        _log.warning("The delta was saved from a model with %s: its outputs may differ.", _told(unknown))


def _told(places: list[tuple[str, Kind, Kind]]) -> str:
    (name, one, other), more = places[0], len(places) - 1
    same = one[0] == other[0]
    facts = [dict(kind[1] or {}) for kind in (one, other)]
    words = [
        kind[0]
        + _in_brackets({key: value for key, value in mine.items() if not same or theirs.get(key, value) != value})
        for kind, mine, theirs in zip((one, other), facts, reversed(facts), strict=True)
    ]
    others = f" (and {plural(more, 'more such place')})" if more else ""
    return f"{shown(words[0])} at {shown(repr(name))}, where this one has {shown(words[1])}{others}"


def _in_brackets(facts: Mapping[str, Any]) -> str:
    return f"({', '.join(f'{name}={value!r}' for name, value in facts.items())})" if facts else ""
