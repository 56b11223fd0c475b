"""Weights files: saving a model's weights, and loading anybody's into it."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from ftkit.errors import CheckpointError, did_you_mean
from ftkit.files import atomic_write
from ftkit.inspection import CheckpointDiff, CheckpointInfo, diff_checkpoints, inspect_checkpoint
from ftkit.pickles import Allowed, load_pickle
from ftkit.selection import unwrap
from ftkit.sources import Entry, Nest, Source, WeightsSource
from ftkit.tensorfile import write_tensors

__all__ = [
    "CheckpointDiff",
    "CheckpointInfo",
    "LoadReport",
    "Mismatch",
    "Rename",
    "diff_checkpoints",
    "inspect_checkpoint",
    "load_model",
    "load_weights",
    "save_model",
    "save_weights",
]

_log = logging.getLogger("ftkit")

Rename: TypeAlias = Mapping[str, str] | Iterable[tuple[str | re.Pattern[str], str]] | Callable[[str], str | None]
"""How names in a file become names in the model.

- ``{"encoder.": "backbone.", "fc": "head"}``: whole names, or their first components. ``""`` stands for no prefix.
- ``[(r"^block(\\d)", r"blocks.\\1")]``: regular expressions and what replaces their matches, one after the other.
- ``lambda name: ...``: the new name, or ``None`` to leave the tensor out.
"""

TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl"})

# Names that wrappers put before every name of the model inside (DataParallel, torch.compile, Lightning, ...).
_WRAPPERS: Final = (
    "module",
    "model",
    "backbone",
    "net",
    "network",
    "_model",
    "_forward_module",
    "model_ema",
    "ema_model",
    "ema",
)
# Names that wrappers put between the names of a model's parts.
_INNER_WRAPPERS: Final = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_EMA: Final = re.compile(r"(^|[_.])(ema|averaged|swa)([_.]|$)")
_LISTED: Final = 24


class Mismatch(NamedTuple):
    """A tensor whose shape in the file is not the model's."""

    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {list(self.in_file)} in the file, {list(self.in_model)} in the model"


@dataclass(frozen=True, repr=False)
class LoadReport:
    """What was loaded into a model, and what was not. Prints well.

    Attributes:
        source: Where the weights came from.
        loaded_keys: Names in the model that got new values.
        missing_keys: Names in the model that the source has nothing for.
        unexpected_keys: Names in the source that the model has no place for.
        mismatched_keys: Names that both have, in different shapes. The model's values were kept.
        converted_keys: Names whose values changed their type on the way.
        steps: What was peeled and picked to make the names meet, in order.
        verified: Whether the bytes were compared with digests or checksums of the file.
        not_run: Classes and functions that the file names beyond plain data. They were neither looked up nor run.
    """

    source: str
    loaded_keys: list[str]
    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: list[Mismatch] = field(default_factory=list)
    converted_keys: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    verified: bool = True
    not_run: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return "\n  ".join(self._lines())

    def _lines(self) -> Iterator[str]:
        total = len(self.loaded_keys) + len(self.missing_keys) + len(self.mismatched_keys)
        checked = "verified" if self.verified else "not verified: the file has no digests"
        yield f"Loaded {len(self.loaded_keys)} of {total} tensors from {self.source} ({checked})"
        if self.steps:
            yield f"peeled: {'; '.join(self.steps)}"
        yield from _listing(self.missing_keys, self.unexpected_keys, self.mismatched_keys)
        if self.converted_keys:
            yield f"type changed to the model's: {_some(self.converted_keys, 3)}"
        if self.not_run:
            yield f"named in the file, but not run: {_some(self.not_run, 6)}"


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Save a model's weights: parameters and buffers, whole or not at all.

    The file is safetensors, with a digest of every tensor; under a name such as ``.pt``, ``.pth``
    or ``.bin`` it is the state dict as ``torch.save`` writes it. Wrappers (``torch.compile``,
    ``DistributedDataParallel``) leave no trace in the names.

    Args:
        model: The model, or its state dict.
        path: The file. Its folder is made if need be.

    Raises:
        CheckpointError: A tensor has no values (meta), or is of a kind that safetensors lacks.
        FileWriteError: The disk is full, the folder read-only, ... What stood there is intact.

    Example:
        >>> import torch
        >>> from ftkit import load_weights, save_weights
        >>> model = torch.nn.Linear(4, 2)
        >>> save_weights(model, "linear.safetensors")
        >>> load_weights(model, "linear.safetensors")
        Loaded 2 of 2 tensors from linear.safetensors (verified)
    """
    tensors: dict[str, Any] = dict(unwrap(model).state_dict() if isinstance(model, nn.Module) else model)
    if Path(path).suffix in TORCH_SUFFIXES:
        if empty := [name for name, tensor in tensors.items() if isinstance(tensor, Tensor) and tensor.is_meta]:
            raise CheckpointError(
                f"{empty[0]!r} is on the meta device: it has a shape but no values. Load the model first."
            )
        _torch_save(tensors, path)
        return
    if odd := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{odd[0]!r} is a {type(tensors[odd[0]]).__name__}, and a safetensors file holds tensors only. "
            "Save under a name that ends in .pt, or use save_checkpoint."
        )
    write_tensors(path, tensors)


def load_weights(
    model: nn.Module,
    source: WeightsSource,
    *,
    strict: bool = True,
    rename: Rename | None = None,
    drop_mismatched: bool = False,
    ema: bool = True,
) -> LoadReport:
    """Load weights into a model, in place, from anything people keep weights in.

    Reads safetensors, torch's files of every age, TorchScript archives and pickled models, by their
    content and without running any code of theirs. Finds the table that fits the model
    (``state_dict``, ``model``, ...), strips what wrappers added to the names (``module.``,
    ``_orig_mod.``, ``model.``, ...) and says so in the report. Names and shapes are compared before
    the first value changes; the values go straight into the model's memory, verified on the way.
    A part that is on the meta device is given memory.

    Args:
        model: Any module. A wrapped one is looked at through its wrapper.
        source: A file, an index of shards, a folder with either, a state dict, or another model.
        strict: Refuse a source that lacks names or has names left over. If false, load what fits.
        rename: How names in the source become names in the model: ``{"encoder.": ""}`` for prefixes and whole
            names, pairs of regular expressions and replacements, or a function.
        drop_mismatched: Keep the model's own values where shapes differ, such as those of a new head.
        ema: Where the source has both, take the averaged weights rather than the last ones.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: The source does not fit. The message lists what is missing, left over and of another
            shape, and the likeliest renaming. The model is unchanged.
        DamagedFileError: Some bytes are not the ones that were written. Parts of the model may be filled by then.

    Example:
        >>> import torch
        >>> from ftkit import load_weights
        >>> model = torch.nn.Linear(4, 2)
        >>> torch.save({"epoch": 3, "state_dict": {"module.weight": torch.ones(2, 4)}}, "last.ckpt")
        >>> load_weights(model, "last.ckpt", strict=False)
        Loaded 1 of 2 tensors from last.ckpt (verified)
          peeled: took 'state_dict'; stripped 'module.'
          missing in the source: bias
    """
    inner = unwrap(model)
    with Source(source) as opened:
        places = _Places(inner)
        if not opened.nests:
            code = (
                f" that can be read without running code: it wants {_some(opened.wanted, 6)}" if opened.wanted else ""
            )
            raise CheckpointError(f"{opened.name} holds no tensors{code}.")
        match = _best_match(opened.nests, places, _renamer(rename), ema=ema)
        report = match.report(opened, places)
        _refuse_misfit(report, match, places, strict=strict, drop_mismatched=drop_mismatched)
        if places.custom:
            _fill_by_torch(inner, match)
        else:
            _fill(inner, match, places)
    if report.not_run:
        _log.warning("%s names code, which was not run: %s", report.source, _some(report.not_run, 6))
    return report


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a whole model, its class by name included, as ``torch.save(model, path)`` does, but all or nothing.

    To open the file, Python must find the same classes, and whoever opens it must trust it. To
    share a model, prefer :func:`save_weights`.

    Raises:
        FileWriteError: The file could not be written. What stood there is intact.
        CheckpointError: Something in the model can't be pickled.

    Example:
        >>> import torch
        >>> from ftkit import load_model, save_model
        >>> save_model(torch.nn.Linear(2, 1), "model.pt")
        >>> load_model("model.pt", allow=[torch.nn.Linear])
        Linear(in_features=2, out_features=1, bias=True)
    """
    _torch_save(model, path)


def load_model(path: str | os.PathLike[str], *, trusted: bool = False, allow: Iterable[Allowed] = ()) -> Any:
    """Load a whole model, as ``save_model`` or ``torch.save(model, path)`` wrote it, onto the CPU.

    Such a file names the classes to build and can make Python run anything. By default nothing
    runs: the file is refused, and the error lists what it wants.

    Args:
        path: The file, of any format that torch has written.
        trusted: Open it whatever it wants. Its code then runs with your rights.
        allow: Classes and functions to admit: themselves, or their full dotted names.

    Returns:
        What the file holds. A file of plain tensors, which needs no trust, comes back as the table it is.

    Raises:
        UntrustedFileError: The file wants more than was admitted.
        DamagedFileError: It is not whole, or some bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit import load_model, save_model
        >>> save_model(torch.nn.Linear(2, 1), "model.pt")
        >>> load_model("model.pt")
        Traceback (most recent call last):
            ...
        ftkit.errors.UntrustedFileError: Opening model.pt would run code. Beyond plain data and tensors it wants:
            torch.nn.modules.linear.Linear
        If you know where it comes from, admit these with allow=[...] or everything with trusted=True. \
Weights alone need no trust: load_weights(model, path).
    """
    loaded = load_pickle(path, allow=allow, trusted=trusted)
    if not isinstance(loaded, nn.Module):
        kind = type(loaded).__name__
        _log.warning("%s holds a %s, not a model: build the model, then load_weights(model, path).", path, kind)
    return loaded


def _torch_save(thing: object, path: str | os.PathLike[str]) -> None:
    with atomic_write(path) as file:
        buffered = io.BufferedWriter(file)
        try:
            torch.save(thing, buffered)
        except (AttributeError, TypeError) as error:
            raise CheckpointError(f"A {type(thing).__name__} can't be pickled: {error}. Use save_weights.") from error
        buffered.detach()


class _Places:
    """Where a model keeps its values: by name, and under the name without inner wrappers."""

    def __init__(self, model: nn.Module) -> None:
        self.kind = type(model).__name__
        state = model.state_dict(keep_vars=True)
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.tensors: dict[str, Tensor] = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self.names = {_bare(name): name for name in self.tensors}
        # A model may translate names, or keep its values elsewhere; then only its own method knows how to load.
        self.custom = any(id(value) not in own for value in state.values()) or any(map(_loads_itself, model.modules()))

    def shape(self, bare: str) -> tuple[int, ...] | None:
        """The shape of what is kept under a name, if anything is."""
        name = self.names.get(bare)
        return None if name is None else tuple(self.tensors[name].shape)


def _loads_itself(module: nn.Module) -> bool:
    kind = type(module)
    loader = kind._load_from_state_dict
    plain = loader is nn.Module._load_from_state_dict or loader.__module__ == "torch.nn.modules.batchnorm"
    hooked = module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks
    return not plain or bool(hooked) or kind.set_extra_state is not nn.Module.set_extra_state


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS)


@dataclass
class _Match:
    """A table of a source, under names of the model, as far as they meet."""

    nest: Nest
    peeled: tuple[str, ...]
    entries: dict[str, tuple[str, Entry]]  # by bare name: the name in the source, and the tensor
    fitting: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def score(self, *, ema: bool) -> tuple[object, ...]:
        averaged = bool(_EMA.search(".".join((*self.nest.path, *self.peeled))))
        known = len(self.fitting) + len(self.mismatched)
        return len(self.fitting), len(self.mismatched), averaged == ema, known - len(self.entries), -len(self.nest.path)

    def report(self, source: Source, places: _Places) -> LoadReport:
        """What loading this would mean."""
        loaded = [places.names[bare] for bare in self.fitting]
        filled = {id(places.tensors[name]) for name in loaded}
        differing = {places.names[bare] for bare in self.mismatched}
        missing = [
            name
            for name, tensor in places.tensors.items()
            if id(tensor) not in filled and name not in differing  # a tied tensor is filled under any of its names
        ]
        if not any(bare.endswith("num_batches_tracked") for bare in self.entries):
            # Files from before torch 0.4.1 lack these counters, and nothing reads them while momentum is set.
            missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        steps = [f"took {'.'.join(self.nest.path)!r}"] if self.nest.path else []
        dropped = sorted(
            {part for key, _ in self.entries.values() for part in key.split(".") if part in _INNER_WRAPPERS}
        )
        steps += [f"stripped {part + '.'!r}" for part in (*dropped, *self.peeled)]
        return LoadReport(
            source=source.name,
            loaded_keys=loaded,
            missing_keys=missing,
            unexpected_keys=[key for bare, (key, _) in self.entries.items() if places.shape(bare) is None],
            mismatched_keys=[
                Mismatch(places.names[bare], self.entries[bare][1].shape, places.shape(bare) or ())
                for bare in self.mismatched
            ],
            converted_keys=[
                places.names[bare]
                for bare in self.fitting
                if self.entries[bare][1].dtype != places.tensors[places.names[bare]].dtype
            ],
            steps=steps,
            verified=source.verified,
            not_run=source.wanted,
        )


def _best_match(nests: Sequence[Nest], places: _Places, rename: Callable[[str], str | None], *, ema: bool) -> _Match:
    """Of all tables and all ways to peel them, the one that meets most of the model."""
    found: list[_Match] = []
    for nest in nests:
        renamed = {key: new for key in nest.entries if (new := rename(key)) is not None}
        level: list[tuple[str, ...]] = [()]
        while level:  # breadth first, so that of equals the least peeled comes first
            matches = [_match(nest, renamed, peeled, places) for peeled in level]
            found += matches
            level = [
                (*match.peeled, wrapper)
                for match in matches
                if len(match.peeled) < 4
                for wrapper in _WRAPPERS
                if any(bare.startswith(f"{wrapper}.") for bare in match.entries)
            ]
    return max(found, key=lambda match: match.score(ema=ema))  # the first of equals


def _match(nest: Nest, renamed: Mapping[str, str], peeled: tuple[str, ...], places: _Places) -> _Match:
    match = _Match(nest, peeled, {})
    for key, new in renamed.items():
        bare = _bare(new)
        for wrapper in peeled:
            bare = bare.removeprefix(f"{wrapper}.")
        if "module" in peeled and bare == "n_averaged":  # the counter of torch's AveragedModel
            continue
        while bare in match.entries:  # two names that became one: the second is left over, under its full name
            bare = key if bare != key else f"{bare} (again)"
        match.entries[bare] = (key, nest.entries[key])
    for bare, (_, entry) in match.entries.items():
        shape = places.shape(bare)
        if shape is not None:
            (match.fitting if shape == entry.shape else match.mismatched).append(bare)
    return match


def _renamer(rename: Rename | None) -> Callable[[str], str | None]:
    if rename is None:
        return lambda name: name
    if callable(rename):
        return rename
    if isinstance(rename, Mapping):
        table = {old.rstrip("."): new.rstrip(".") for old, new in rename.items()}

        def by_prefix(name: str) -> str:
            parts = name.split(".")
            for count in range(len(parts), -1, -1):  # the longest prefix decides
                new = table.get(".".join(parts[:count]))
                if new is not None:
                    return ".".join(part for part in (new, *parts[count:]) if part)
            return name

        return by_prefix
    pairs = [(re.compile(pattern), replacement) for pattern, replacement in rename]

    def by_pattern(name: str) -> str:
        for pattern, replacement in pairs:
            name = pattern.sub(replacement, name)
        return name

    return by_pattern


def _refuse_misfit(report: LoadReport, match: _Match, places: _Places, *, strict: bool, drop_mismatched: bool) -> None:
    """Raise if the source does not fit the model as far as was asked."""
    nothing = not report.loaded_keys and bool(places.tensors)
    shapes = report.mismatched_keys if not drop_mismatched else []
    names = [*report.missing_keys, *report.unexpected_keys] if strict and not places.custom else []
    if not (nothing or shapes or names):
        return
    count = f"{len(report.loaded_keys)} of {len(places.tensors)}"
    lines = [f"{report.source} does not fit the {places.kind}: {count} tensors match."]
    if report.steps:
        lines.append(f"peeled: {'; '.join(report.steps)}")
    lines += _listing(report.missing_keys, report.unexpected_keys, report.mismatched_keys)
    lines += _suggestions(match, places)
    remedies = []
    if report.mismatched_keys and not drop_mismatched:
        remedies.append("drop_mismatched=True keeps the model's own values where shapes differ")
    if strict and not nothing and (report.missing_keys or report.unexpected_keys):
        remedies.append("strict=False loads what fits")
    raise CheckpointError("\n  ".join(lines) + (f"\n{'; '.join(remedies)}." if remedies else ""))


def _suggestions(match: _Match, places: _Places) -> Iterator[str]:
    """The change of one prefix under which most names would meet, if that is better than now."""
    free = {bare: entry.shape for bare, (_, entry) in match.entries.items() if bare not in match.fitting}
    open_places = {bare for bare in places.names if bare not in match.fitting}
    best, old, new = 0, "", ""
    for prefix, other in _prefix_changes(free, open_places):
        names = {other + bare.removeprefix(prefix): shape for bare, shape in free.items() if bare.startswith(prefix)}
        count = sum(name in open_places and places.shape(name) == shape for name, shape in names.items())
        if count > best:
            best, old, new = count, prefix, other
    if best:
        total = len(match.fitting) + best
        yield (f"did you mean rename={{{old!r}: {new!r}}}? Then {total} of {len(places.names)} tensors would match.")
    elif match.mismatched or not open_places or not free:
        return
    else:
        name = min(open_places, key=lambda bare: (bare.count("."), bare))
        if hint := did_you_mean(name, free):
            yield f"the model's {name!r}:{hint}"


def _prefix_changes(free: Iterable[str], open_places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of prefixes, of the source and of the model, that precede names which end alike."""
    ends: dict[str, set[str]] = {}
    for name in open_places:
        parts = name.split(".")
        for cut in range(min(len(parts), 5)):
            ends.setdefault(".".join(parts[cut:]), set()).add("".join(f"{part}." for part in parts[:cut]))
    pairs: dict[tuple[str, str], int] = {}
    for name in free:
        parts = name.split(".")
        for cut in range(min(len(parts), 5)):
            before = "".join(f"{part}." for part in parts[:cut])
            for other in ends.get(".".join(parts[cut:]), ()):
                if other != before and (not before or not other or before.split(".")[-2] != other.split(".")[-2]):
                    pairs[before, other] = pairs.get((before, other), 0) + 1
    return iter(sorted(pairs, key=lambda pair: (-pairs[pair], len(pair[0]) + len(pair[1])))[:32])


def _fill(model: nn.Module, match: _Match, places: _Places) -> None:
    """Read into the model's own memory; what is on meta gets new memory once all is read."""
    entries: dict[Tensor, Entry] = {}  # a tied tensor is read once, under the last of its names, as torch does
    for bare in match.fitting:
        entries[places.tensors[places.names[bare]]] = match.entries[bare][1]
    fresh = {target: torch.empty(target.shape, dtype=target.dtype) for target in entries if target.is_meta}
    Source.read_into((entry, fresh.get(target, target)) for target, entry in entries.items())
    for target, values in fresh.items():
        _assign(model, target, values)


def _assign(model: nn.Module, old: Tensor, values: Tensor) -> None:
    """Put new memory in every place where the model keeps a tensor without any."""
    new = nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is old:
                    table[key] = new  # type: ignore[assignment]  # what was a parameter stays one


def _fill_by_torch(model: nn.Module, match: _Match) -> None:
    """Load through the model's own ``load_state_dict``, and put things back if that refuses."""
    tensors: dict[str, Tensor] = {}
    for bare, (_, entry) in match.entries.items():
        tensors[bare] = torch.empty(entry.shape, dtype=entry.dtype)
    Source.read_into((entry, tensors[bare]) for bare, (_, entry) in match.entries.items())
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    try:
        model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        model.load_state_dict(before, strict=False)
        raise CheckpointError(f"The model's own load_state_dict refuses the weights: {error}") from error


def _listing(missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[Mismatch]) -> Iterator[str]:
    if missing:
        yield f"missing in the source: {_some(missing, _LISTED)}"
    if unexpected:
        yield f"unexpected in the source: {_some(unexpected, _LISTED)}"
    if mismatched:
        yield f"of another shape: {_some([str(one) for one in mismatched], 8, '; ')}"


def _some(items: Sequence[str], most: int, separator: str = ", ") -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
