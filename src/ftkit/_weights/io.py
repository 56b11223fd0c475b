"""Weights files: save a model's weights, and load weights from any source."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ftkit._arguments import came, flag, listed, local_path
from ftkit._formats import TORCH_SUFFIXES, open_file
from ftkit._models.dryrun import alone
from ftkit._models.slots import slots
from ftkit._pickles.admission import Allowed
from ftkit._pickles.gate import load_pickle, save_pickle
from ftkit._reports import Parts, Report, printable
from ftkit._tensors.bytes import rare_kind
from ftkit._tensors.file import TensorFile
from ftkit._tensors.pytree import unpack
from ftkit._tensors.safetensors import refuse_empty, write_tensors
from ftkit._weights.libraries import PROMPT, Library, adapter_names, check_adapter_beside
from ftkit._weights.matching import Match, Places, Rename, best_match, renamer, suggestions
from ftkit._weights.sources import Source, WeightsSource, open_source
from ftkit._wording import cause, shown, some
from ftkit.errors import CheckpointError, DamagedFileError, FileWriteError
from ftkit.selection import unwrap

_log = logging.getLogger("ftkit")

_LISTED: Final = 24
_OF_PEFT: Final = "base_model.model."  # before all names in a model that peft has wrapped
_BASE_LAYER: Final = ".base_layer."  # in those of the layers that it has adapted
_STEPS: Final = (torch.int8, torch.uint8)  # in which weights are quantized; wider integers stand for themselves


class Mismatch(NamedTuple):
    """A tensor whose shape in the file differs from the model's.

    Example:
        >>> from ftkit import Mismatch
        >>> print(Mismatch("fc.weight", (10, 8), (3, 8)))
        fc.weight: [10, 8] in the file, [3, 8] in the model
    """

    name: str
    in_file: tuple[int, ...]
    in_model: tuple[int, ...]

    def __str__(self) -> str:
        return printable(f"{self.name}: {list(self.in_file)} in the file, {list(self.in_model)} in the model")


@dataclass(frozen=True, repr=False)
class LoadReport(Report):
    """What was loaded into a model, and what was not. Prints well.

    Attributes:
        source: Where the weights came from.
        loaded_keys: Names in the model whose values were loaded.
        missing_keys: Names in the model that the source lacks.
        unexpected_keys: Names in the source that the model lacks.
        mismatched_keys: Names in both whose shapes differ. The model's values were kept.
        converted_keys: Names whose values were converted to the model's dtype.
        steps: What was selected and stripped to make the names match, in order.
        verified: Whether the bytes were verified against digests or checksums in the file.
        not_run: Classes and functions that the file refers to, plain data aside. They were neither looked up nor run.
        rare: Kinds of tensors in the file that are not dense and were skipped: ``sparse``, ``quantized``, ...
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
    rare: list[str] = field(default_factory=list)

    def _parts(self) -> Parts:
        total = len(self.loaded_keys) + len(self.missing_keys) + len(self.mismatched_keys)
        checked = "verified" if self.verified else "not verified: the file has no digests"
        yield f"Loaded {len(self.loaded_keys)} of {total} tensors from {shown(self.source)} ({checked})"
        if self.steps:
            yield f"  unwrapped: {'; '.join(self.steps)}"
        misfits = _listing(self.missing_keys, self.unexpected_keys, self.mismatched_keys, self.rare)
        yield from (f"  {line}" for line in misfits)
        if self.converted_keys:
            yield f"  converted to the model's dtype: {some(self.converted_keys, 3)}"
        if self.not_run:
            yield f"  named in the file, but not run: {some(self.not_run, 6)}"


def save_weights(model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Save a model's weights: parameters and buffers, all or nothing.

    The file is safetensors, with a digest of every tensor; a name that ends in ``.pt``, ``.pth``,
    ``.ckpt`` or ``.tar`` gets the state dict as ``torch.save`` writes it. Wrappers (``torch.compile``,
    ``DistributedDataParallel``) leave no trace in the names.

    Args:
        model: The model, or its state dict.
        path: The file to write. Its folder is created if needed.

    Raises:
        CheckpointError: A tensor has no values (meta), or is of a kind that safetensors can't store.
        FileWriteError: The disk is full, the folder read-only, ... Any existing file is left intact.

    Example:
        >>> import torch
        >>> from ftkit import load_weights, save_weights
        >>> model = torch.nn.Linear(4, 2)
        >>> save_weights(model, "linear.safetensors")
        >>> load_weights(model, "linear.safetensors")
        Loaded 2 of 2 tensors from linear.safetensors (verified)
    """
    path = local_path("path", path, error=FileWriteError)
    tensors: dict[str, Any] = dict(model if isinstance(model, Mapping) else unwrap(model).state_dict())
    names: list[object] = list(tensors)
    if nameless := [name for name in names if not isinstance(name, str)]:
        raise CheckpointError(f"The names in a state dict must be strings, not {came(nameless[0])}.")
    if path.suffix in TORCH_SUFFIXES:
        refuse_empty(tensors)
        save_pickle(tensors, path)
        return
    if odd := [name for name, value in tensors.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"{odd[0]!r} is a {type(tensors[odd[0]]).__name__}, and a safetensors file contains only tensors. "
            "Save under a name that ends in .pt, or use save_checkpoint."
        )
    write_tensors(path, tensors)


@alone()
def load_weights(
    model: nn.Module,
    source: WeightsSource,
    *,
    strict: bool = True,
    rename: Rename | None = None,
    drop_mismatched: bool = False,
    ema: bool = True,
) -> LoadReport:
    """Load weights into a model, in place, from a file of any format, a state dict or another model.

    Reads safetensors, torch files of any age, TorchScript archives and pickled models. The format is
    detected by content, and no code in the file runs. Finds the state dict that fits the model
    (``state_dict``, ``model``, ...), strips prefixes that wrappers added to the names (``module.``,
    ``_orig_mod.``, ``model.``, ...) and says so in the report. Names and shapes are compared before
    the first value changes; the values are read straight into the model's memory and verified.
    What transformers (5.0 or newer) saved under other names than those of its modules is read by its own
    mapping, and an adapter of peft into a model with that adapter, whose settings are compared. Parameters
    and buffers on the meta device are allocated.

    Args:
        model: Any module. Wrappers are looked through.
        source: A file, an index of shards, a folder with either, a state dict, or another model.
        strict: Refuse a source with missing or unexpected names. If false, load what fits.
        rename: How names in the source become names in the model: ``{"encoder.": ""}`` for prefixes and whole
            names, pairs of regular expressions and replacements, or a function.
        drop_mismatched: Keep the model's own values where shapes differ, such as those of a new head.
        ema: If the source has both, load the averaged weights rather than the last ones.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: The source does not fit. The message lists missing and unexpected names, mismatched
            shapes, and the likeliest renaming. The model is unchanged.
        DamagedFileError: Some bytes are not the ones that were written. If the model is partly loaded by then, the
            message says so.

    Example:
        >>> import torch
        >>> from ftkit import load_weights
        >>> model = torch.nn.Linear(4, 2)
        >>> torch.save({"epoch": 3, "state_dict": {"module.weight": torch.ones(2, 4)}}, "last.ckpt")
        >>> load_weights(model, "last.ckpt", strict=False)
        Loaded 1 of 2 tensors from last.ckpt (verified)
          unwrapped: took 'state_dict'; stripped 'module.'
          missing in the source: bias
    """
    strict, ema = flag("strict", strict), flag("ema", ema)
    drop_mismatched = flag("drop_mismatched", drop_mismatched)
    with open_source(source) as opened:
        plan = plan_weights(
            unwrap(model), opened, strict=strict, rename=rename, drop_mismatched=drop_mismatched, ema=ema
        )
        report = plan.load()
    if report.not_run:
        _log.warning("%s refers to code, which was not run: %s", shown(report.source), some(report.not_run, 6))
    return report


class WeightsPlan(NamedTuple):
    """Weights that have been compared with a model.

    Attributes:
        load: Loads them, while the source is open.
        certain: Whether nothing but damage can keep them from being loaded. A model's own method may refuse them yet.
        places: For each tensor of the source that has a place in the model, its name there.
    """

    load: Callable[[], LoadReport]
    certain: bool
    places: dict[str, str]


def plan_weights(
    model: nn.Module,
    opened: Source,
    *,
    strict: bool = True,
    rename: Rename | None = None,
    drop_mismatched: bool = False,
    ema: bool = True,
) -> WeightsPlan:
    """Compare weights with a model, unwrapped, as :func:`load_weights` does, and change nothing.

    Raises:
        CheckpointError: They do not fit.
    """
    _refuse_empty(opened)
    places = Places(model)
    library = Library.of(model)
    converted = None if library is None else library.converted
    match = best_match(opened.tables, places, renamer(rename), opened.budget, ema=ema, converted=converted)
    if adapter := adapter_names(model):
        part = places.part(adapter)
        of_adapter = best_match(opened.tables, part, renamer(rename), opened.budget, ema=ema)
        if of_adapter.score(ema=ema) > match.score(ema=ema):
            match, places = of_adapter, part
        check_adapter_beside(opened.path, model, shown(opened.name))
    report = _report(match, opened)
    perfect = not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    _refuse_kinds(match)
    if strict and not perfect and (reader := reads_delta(opened.metadata)):
        raise CheckpointError(
            f"{shown(opened.name)} contains only what fine-tuning changed. Use {reader} with the pretrained model, "
            "which it compares with the base of the file."
        )
    lacks_prompt = bool(adapter) and PROMPT in match.unexpected
    if (lacks_prompt or not match.fitting) and (wrong := _mixed_up(match, places, has_adapter=bool(adapter))):
        raise CheckpointError(f"{shown(opened.name)} {wrong}")
    meant = {pair.key: pair.name for pair in match.fitting}
    if places.elsewhere or (places.translates and not perfect):
        return WeightsPlan(
            lambda: _fill_by_torch(model, match, places, report, strict=strict), certain=False, places=meant
        )
    _refuse_misfit(report, match, places, strict=strict, drop_mismatched=drop_mismatched)

    def load() -> LoadReport:
        _fill(model, match, places)
        return report

    return WeightsPlan(load, certain=True, places=meant)


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a whole model, its classes by name, as ``torch.save(model, path)`` does, but all or nothing.

    To open the file, Python must find the same classes, and whoever opens it must trust it. To
    share a model, prefer :func:`save_weights`.

    Raises:
        FileWriteError: The file could not be written. Any existing file is left intact.
        CheckpointError: Something in the model can't be pickled.

    Example:
        >>> import torch
        >>> from ftkit import load_model, save_model
        >>> save_model(torch.nn.Linear(2, 1), "model.pt")
        >>> load_model("model.pt", allow=[torch.nn.Linear])
        Linear(in_features=2, out_features=1, bias=True)
    """
    unwrap(model)  # refuses what is none
    save_pickle(model, path)


def load_model(path: str | os.PathLike[str], *, trusted: bool = False, allow: Iterable[Allowed] = ()) -> Any:
    """Load a whole model, as ``save_model`` or ``torch.save(model, path)`` wrote it, onto the CPU.

    Such a file names the classes to build and can make Python run any code. By default nothing
    runs: the file is refused, and the error lists what it asks for.

    Args:
        path: The file, of any format that torch has written.
        trusted: Open the file whatever it asks for. Its code then runs with your permissions.
        allow: Classes and functions to admit, as objects or full dotted names. Instances are created with ``__new__``,
            ``__setstate__`` and, except for modules, the constructor, from data in the file; no instance is called and
            no property is set. Functions are admitted as values and never called. Nothing in Python, torch or NumPy
            that could run, open or import something is admitted.

    Returns:
        The content of the file. A file of plain tensors, which needs no trust, is returned as the dict it is.

    Raises:
        UntrustedFileError: The file asks for more than was admitted.
        DamagedFileError: It is incomplete, or some bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit import load_model, save_model
        >>> save_model(torch.nn.Linear(2, 1), "model.pt")
        >>> load_model("model.pt")
        Traceback (most recent call last):
            ...
        ftkit.errors.UntrustedFileError: Opening model.pt would run code. Besides plain data and tensors it asks for:
            torch.nn.modules.linear.Linear
        If you know where it comes from, load_model(path, allow=[...]) admits these, and trusted=True everything. \
Weights alone need no trust: load_weights(model, path).
    """
    trusted, allow = flag("trusted", trusted), listed("allow", allow, "classes, functions or their dotted names")
    with open_file(path) as file:
        if isinstance(file, TensorFile):
            raise CheckpointError(
                f"{file.path} is a {file.format} file: it contains weights, not objects. "
                "Build the model, then load_weights(model, path)."
            )
        loaded = load_pickle(file, allow=allow, trusted=trusted)
    if not isinstance(loaded, nn.Module):
        kind = type(loaded).__name__
        _log.warning(
            "%s contains a %s, not a model: build the model, then load_weights(model, path).", shown(path), kind
        )
    return loaded


def _report(match: Match, source: Source) -> LoadReport:
    return LoadReport(
        source=source.name,
        loaded_keys=[pair.name for pair in match.fitting],
        missing_keys=match.missing,
        unexpected_keys=match.unexpected,
        mismatched_keys=[Mismatch(pair.name, pair.entry.shape, tuple(pair.target.shape)) for pair in match.mismatched],
        converted_keys=[pair.name for pair in match.fitting if pair.converts],
        steps=match.steps(),
        verified=source.verified,
        not_run=source.wanted,
        rare=source.rare,
    )


def _refuse_empty(source: Source) -> None:
    if source.tables:
        return
    reason = ""
    if source.wanted:
        reason = f" that can be read without running code: it asks for {some(source.wanted, 6)}"
    elif source.rare:
        reason = f" but {' and '.join(source.rare)} ones, which load_model(path) opens"
    raise CheckpointError(f"{shown(source.name)} contains no tensors{reason}.")


def reads_delta(metadata: Mapping[str, Any]) -> str:
    """What reads a file that is a delta; "" for any other."""
    if "ftkit.delta" in metadata:
        return "load_delta(model, path)"
    run = metadata.get("ftkit.checkpoint")
    is_delta = isinstance(run, str) and "delta" in (unpack({}, run) or {})
    return "load_checkpoint(path, model=model)" if is_delta else ""


def _mixed_up(match: Match, places: Places, *, has_adapter: bool) -> str:
    """What to do where either the source or the model is peft's, and the other is not; "" if that is not the case."""
    if any(key == PROMPT for key, _ in match.entries.values()):
        return (
            f"contains a prompt that peft has trained, as it is used, and the {places.kind} has no place for it. Build "
            "the model for use: peft.PeftModel.from_pretrained(model, folder)."
        )
    if not has_adapter:
        if not all(key.startswith(_OF_PEFT) for key, _ in match.entries.values()):
            return ""
        is_whole = any(_BASE_LAYER in key for key, _ in match.entries.values())
        what = "a model that peft has wrapped, with its adapter" if is_whole else "only an adapter of peft"
        return (
            f"contains {what}, and the {places.kind} has no adapter. Wrap the model as in training, with "
            "peft.get_peft_model(model, config), and load the file into that."
        )
    bare = {name.removeprefix(_OF_PEFT).replace(_BASE_LAYER, ".") for name in places.tensors}
    if 2 * len(bare & match.entries.keys()) < len(match.entries):
        return ""
    return (
        f"contains the model without an adapter, and the {places.kind} has one, which renames its weights. "
        "Load the file before the model is wrapped: load_weights(model, ...), then peft.get_peft_model(model, config)."
    )


def _refuse_misfit(report: LoadReport, match: Match, places: Places, *, strict: bool, drop_mismatched: bool) -> None:
    nothing = not report.loaded_keys and bool(places.tensors)
    shapes = bool(report.mismatched_keys) and not drop_mismatched
    names = bool(report.missing_keys or report.unexpected_keys) and strict
    if not (nothing or shapes or names):
        return
    count = f"{len(report.loaded_keys)} of {len(places.tensors)}"
    lines = [f"{shown(report.source)} does not fit the {places.kind}: {count} tensors match."]
    if report.steps:
        lines.append(f"unwrapped: {'; '.join(report.steps)}")
    lines += _listing(report.missing_keys, report.unexpected_keys, report.mismatched_keys, report.rare)
    lines += suggestions(match, places)
    remedies = {
        "drop_mismatched=True keeps the model's own values where shapes differ": shapes,
        "strict=False loads what fits": names and not nothing,
    }
    advice = "; ".join(remedy for remedy, helps in remedies.items() if helps)
    raise CheckpointError("\n  ".join(lines) + (f"\n{advice}." if advice else ""))


def _refuse_kinds(match: Match) -> None:
    """Raise if a tensor that fits is of a kind whose values can't be copied."""
    for pair in match.fitting:
        key, stored, wanted = pair.key, pair.entry.stored, pair.target.dtype
        if isinstance(stored, Tensor) and stored.is_meta:
            raise CheckpointError(f"{key!r} is on the meta device: it has a shape but no values to load.")
        if isinstance(stored, Tensor) and (kind := rare_kind(stored)):
            raise CheckpointError(f"{key!r} is {kind}, and load_weights takes dense tensors. Make it dense first.")
        if pair.converts and stored.dtype in _STEPS and (wanted.is_floating_point or wanted.is_complex):
            raise CheckpointError(
                f"{key!r} is {stored.dtype} in the source and {wanted} in the model: quantized values mean nothing "
                "without their scale. Dequantize them, and pass the state dict to load_weights."
            )
        if pair.converts:
            try:
                torch.empty(1, dtype=stored.dtype).to(wanted)
            except RuntimeError as error:  # torch keeps some types only as bits
                raise CheckpointError(
                    f"{key!r} is {stored.dtype} in the source and {wanted} in the model, and torch can't convert it."
                ) from error


def _fill(model: nn.Module, match: Match, places: Places) -> None:
    """Read into the model's own memory; what is on meta gets new memory once all is read."""
    # A tied tensor is read once, under the last of its names, as torch does.
    entries = {pair.target: pair.entry for pair in match.fitting}
    fresh = {target: torch.empty(target.shape, dtype=target.dtype) for target in entries if target.is_meta}
    try:
        Source.read_into((entry, fresh.get(target, target)) for target, entry in entries.items())
    except DamagedFileError as error:
        if len(fresh) == len(entries):
            raise
        raise DamagedFileError(
            f"{error} The {places.kind} is partly loaded by now: load an intact file, or rebuild the model, before you "
            "use it."
        ) from error
    if fresh:
        _give_memory(model, fresh)


def _give_memory(model: nn.Module, fresh: Mapping[Tensor, Tensor]) -> None:
    """Put values in every place where the model keeps a tensor without any."""
    new = {
        id(old): nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values
        for old, values in fresh.items()
    }
    for slot in slots(model):
        if id(slot.content) in new:
            slot.table[slot.name] = new[id(slot.content)]


def _fill_by_torch(model: nn.Module, match: Match, places: Places, report: LoadReport, *, strict: bool) -> LoadReport:
    """Load through the model's own ``load_state_dict``, and put things back if that refuses."""
    tensors: dict[str, Tensor] = {}
    for bare, (_, entry) in match.entries.items():
        name = places.names.get(bare, bare)
        tensors[name] = entry.empty(places.tensors[name].dtype if bare in places.names else None)
    Source.read_into(zip((entry for _, entry in match.entries.values()), tensors.values(), strict=True))
    empty = any(tensor.is_meta for tensor in places.tensors.values())
    before = {name: tensor.detach().clone() for name, tensor in places.tensors.items()}
    try:
        result = model.load_state_dict(tensors, strict=False, assign=empty)
        nothing = bool(places.tensors) and places.tensors.keys() <= set(result.missing_keys)
        if nothing or (strict and (result.missing_keys or result.unexpected_keys)):
            lists = _listing(result.missing_keys, result.unexpected_keys, [])
            raise CheckpointError("\n  ".join([f"{shown(report.source)} does not fit the {places.kind}.", *lists]))
    except (RuntimeError, CheckpointError) as error:
        model.load_state_dict(before, strict=False, assign=empty)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The {places.kind}'s own load_state_dict refuses {shown(report.source)}: {cause(error)}."
        ) from error
    return replace(
        report,
        loaded_keys=[name for name in model.state_dict() if name not in result.missing_keys],
        missing_keys=list(result.missing_keys),
        unexpected_keys=list(result.unexpected_keys),
        mismatched_keys=[],
    )


def _listing(
    missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[Mismatch], rare: Sequence[str] = ()
) -> Iterator[str]:
    if missing:
        yield f"missing in the source: {some(missing, _LISTED)}"
    if unexpected:
        yield f"unexpected in the source: {some(unexpected, _LISTED)}"
    if mismatched:
        yield f"mismatched shapes: {some(mismatched, 8, '; ')}"
    if rare:
        yield f"skipped: {' and '.join(rare)} tensors, which load_model(path) opens"
