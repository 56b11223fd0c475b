"""Compute the frozen part of a model once for each sample of a data set, and train on what it gave."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from ftkit._arguments import byte_count, came, flag, local_path, whole_number
from ftkit._files import digest, remove_litter
from ftkit._models.contents import bytes_of
from ftkit._models.dryrun import tensors_in, turn
from ftkit._precompute import samples
from ftkit._precompute.frontier import Cut, Slot, find, near
from ftkit._precompute.guard import alike
from ftkit._precompute.heads import MAGIC, TAG
from ftkit._precompute.lookup import Lookup, put_rows, skeleton
from ftkit._precompute.placeholders import Placeholder
from ftkit._precompute.precomputed import Precomputed
from ftkit._precompute.record import record, undisturbed
from ftkit._precompute.replay import ALIGN, Player, outside
from ftkit._precompute.rows import Packing, Rows
from ftkit._precompute.spotcheck import own
from ftkit._precompute.store import KEYED, READY, UNFINISHED, KeyedFile, RowFile, finish, locked, picked, room_for
from ftkit._precompute.surroundings import restoring
from ftkit._precompute.trace import named_state, no_trace, same_bits
from ftkit._torch import tree_leaves, tree_map_only, version_of
from ftkit._wording import cause, plural, some
from ftkit.errors import FileWriteError, FtkitError
from ftkit.selection import unwrap

_PROBES: Final = 2
_RECOMPUTED: Final = 4


@dataclass
class _Probe:
    """The first samples of a source, and how the model takes them."""

    call: Any
    other: Any
    sizes: tuple[int, int]
    order: list[int]
    sample: Any = None
    usual: int | None = None  # how many samples a batch of the loader has


def precompute(
    model: nn.Module,
    dataset: Any,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    views: int | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: float | str | None = None,
    progress: bool | None = None,
) -> Precomputed:
    """Compute the frozen part of a model once for each sample, and keep what passes from it to the part that trains.

    Freeze first. A few samples are then run through the model, and each operator is watched, to find out which module
    calls depend on nothing but the sample and frozen weights, and which tensors pass from them to the rest. These are
    computed for all samples and written to a file in ``folder``, which later calls, in other processes too, read. In a
    ``with`` block the model takes batches of them: it runs its own ``forward``, in which the skipped modules give back
    what is kept. Outputs, gradients and checkpoints are those of the plain model. Threads take turns at it.

    What does not depend on the sample alone is not skipped: Dropout that is on, norms whose statistics are not held,
    what mixes the samples of a batch, modules with hooks. A model for which that leaves nothing is refused. Both runs
    are compared, outputs and gradients, before anything is written.

    What is kept is bound to the bytes of the frozen weights, to autocast, the device and the version of torch, and to
    the data set: its tensors, or the names, sizes and times of its files, and its transform. A data set of a class of
    your own is read once at each call, to see whether its samples are the same. Only new samples are computed.

    If you pass a loader in the place of the data set, keep your loop: in the block, each sample of a batch is looked up
    by the bytes of its inputs, and computed and added if it is new.

    Args:
        model: Any module, partly frozen, on its device; ``DistributedDataParallel`` is looked through.
        dataset: An indexable data set, or your own loader. A sample is a tensor; or a tuple, whose first items are the
            inputs that the model's ``forward`` requires; or a dict, of which the model gets what its ``forward`` takes
            by name. What else is in it (numbers, tensors of one shape) comes along.
        folder: Where to keep the file. A run that is killed is resumed there; several runs may use one folder.
        batch_size: Samples that are computed at a time.
        num_workers: Processes that read the data set meanwhile.
        views: For a data set that augments: how many draws of each sample to keep. They are used in turn.
        dtype: ``torch.bfloat16`` or ``torch.float16`` to keep floating-point values in half the bytes, rounded; by
            default they are kept as computed.
        max_bytes: The most bytes that the file may take, or a size such as ``"20GB"``. The room on the disk is
            looked at first in any case. With your own loader, what comes after that is computed each time.
        progress: Show a progress bar of the first pass; by default only in a terminal.

    Raises:
        FtkitError: Nothing of the model can be skipped; the data set draws at random and no ``views`` are asked for, or
            its samples differ in shape; the file would be too large.
        FileWriteError: The file can't be written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from ftkit import freeze_except, precompute
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> _ = freeze_except(model, "3")
        >>> cached = precompute(model, TensorDataset(torch.randn(10, 3, 8, 8), torch.arange(10) % 2), "frozen")
        >>> cached.skipped
        ['0', '1']
        >>> optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
        >>> with cached:
        ...     for rows, labels in cached.loader(batch_size=5, shuffle=True):
        ...         loss = nn.functional.cross_entropy(model(rows), labels)
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
    """
    with turn():  # while another thread has fakes in it, say, it would not look as it is
        inner = _checked_model(model)
    place = _folder(local_path("folder", folder).absolute())
    size = whole_number("batch_size", batch_size, least=1)
    workers = whole_number("num_workers", num_workers, least=0)
    most = None if max_bytes is None else byte_count("max_bytes", max_bytes)
    bar = None if progress is None else flag("progress", progress)
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise FtkitError(f"dtype must be torch.bfloat16, torch.float16 or None (as computed), not {came(dtype)}.")
    draws = None if views is None else whole_number("views", views, least=1)
    by_content = _is_loader(dataset)
    if by_content and draws is not None:
        raise FtkitError("views= needs a data set, not a loader: pass its dataset, and take cached.loader().")
    source = dataset if by_content or draws is None else samples.Views(dataset, draws)
    with outside(), no_trace(inner):
        count = 0 if by_content else _length(dataset)
        probe = _of_loader(inner, dataset) if by_content else _of_samples(inner, source, count * (draws or 1))
        inner.train()
        with _telling_sizes(probe):
            cut = find(inner, probe.call, probe.other, probe.sizes, probe.order)
        if by_content and cut.overwrites:
            raise _overwritten(inner, some(sorted(cut.overwrites), 3))
        form = None if by_content else samples.Form.of(probe.sample, probe.call, cut.stays)
        player, rows = _proven(inner, cut, probe.call, functools.partial(_with_rows, cut, form))
        inner.train()
        for state in (_has_run, _keeps_no_cache, _is_saved):
            _accept(inner, player, (probe.call, _with_rows(cut, form, probe.call, rows)), rows, state)
        packing = Packing(player, dtype)
        cached = Precomputed(
            place,
            count,
            draws or 1,
            list(dict.fromkeys(name for name, _ in cut.skips)),
            _kept(cut, packing),
            packing.kept_bytes,
            cut.share,
            packing.rounding(rows.cpu()),
            cut.refused,
            0,
            0.0,
        )
        cached._player = player
        if form is None:  # its loader is not held: torch ends workers slowly that are found by the garbage collector
            _look_up(cached, inner, packing, probe.call, most)
        else:
            cached._source = source
            _fill(cached, _Filling(inner, player, packing, source, place, form, probe.sample, size, workers, most, bar))
    return cached


def _fill(cached: Precomputed, filling: _Filling) -> None:
    begin = time.perf_counter()
    cached.path, cached.computed = filling.run()
    if wrong := filling.differing(cached.path):
        # What an earlier run has computed may be out of date in a way that nothing shows.
        if cached.computed < cached.samples * cached.views:
            warnings.warn(f"{wrong} All is computed anew.", stacklevel=3)
            cached.path, cached.computed = filling.run(anew=True)
            wrong = filling.differing(cached.path)
        if wrong:
            raise FtkitError(
                f"{wrong} So what the frozen part of the {type(filling.model).__name__} gives, or the data set, is not "
                "the same each time, and can't be computed once. Train without precompute."
            )
    cached.seconds = time.perf_counter() - begin
    cached._fingerprint, cached.bytes_per_sample = filling.print, filling.record_bytes
    cached._rows = Rows(cached.path, filling.packing, filling.kinds, filling.form, cached.views, cached._player.source)
    cached._player.watch(filling.drawn_again(cached._rows), filling.packing.near_values)


def _look_up(cached: Precomputed, model: nn.Module, packing: Packing, call: Any, most: float | None) -> None:
    player = cached._player
    fixed = [one for slot, one in zip(tree_leaves(player.cut.inputs), tree_leaves(call), strict=True)
             if isinstance(slot, Slot) and slot.layout is not None and slot.layout.dim is None]  # fmt: skip
    header, stem = _bound(model, player, packing, {
        "call": skeleton(call), "fixed": [digest(bytes_of(one)) for one in fixed], "by": "content",
    })  # fmt: skip
    cached.path = cached.path / f"{stem[:16]}{KEYED}"
    file = KeyedFile(cached.path, header, packing.kept_bytes, most)

    def rows_of(call: Any, count: int) -> torch.Tensor:
        given = [one for at, one in enumerate(tensors_in(call)) if at not in player.cut.stays]
        before = [*map(version_of, given)]
        with no_trace(model):
            model.train()
            rows = player.computed(call, count)
        if before != [*map(version_of, given)]:
            raise _overwritten(model, f"a batch of {plural(count, 'sample')}")
        return rows

    player.watch(None, packing.near_values)
    cached._lookup = Lookup(player, packing, file, most, rows_of, call, cached._count)
    cached.samples = len(file)


def _overwritten(model: nn.Module, where: str) -> FtkitError:
    return FtkitError(
        f"In {where}, the inputs of the {type(model).__name__} are written to in place. Where samples are looked up "
        "that is lost, and whoever reads the batch afterwards would miss it. Let it write to a copy (inplace=False, or "
        "x = x.clone() before), or pass the data set in the place of the loader, and take cached.loader()."
    )


def _bound(model: nn.Module, player: Player, packing: Packing, more: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """All to which rows are bound, and its digest, of which each row has a part."""
    header = {
        "cut": player.cut.description,
        "skipped": sorted(map(str, player.cut.skips.items())),
        "once": {number: hashlib.sha256(bytes_of(one)).hexdigest() for number, one in player.cut.once.items()},
        "frozen": player.guard.digests,
        "settings": {name: repr(one) for name, one in player.guard.settings.items()},
        "torch": torch.__version__,
        "device": str(_device(model).type),
        "built": player.guard.built,
        "kept_as": packing.description,
        **more,
    }
    tag = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).digest()[:16]
    player.tag = MAGIC + tag[: TAG - len(MAGIC)]
    return {"tag": tag.hex(), **header}, tag.hex()


def _kept(cut: Cut, packing: Packing) -> list[tuple[str, tuple[int, ...], str, int]]:
    return [
        (_where(cut.points[number]), cut.layouts[number].shape, str(piece.kept_as)[6:], piece.kept_bytes)
        for number, piece in zip(cut.per_sample, packing.pieces, strict=True)
    ]


def _where(point: tuple[str, tuple[str, int], int]) -> str:
    kind, (name, call), at = point
    place = {"input": f"input {at}", "arg": f"into {name}", "out": f"out of {name}"}[kind]
    return place + (f" (call {call + 1})" if call else "") + (f" [{at}]" if at and kind != "input" else "")


def _is_loader(source: Any) -> bool:
    if isinstance(source, DataLoader):
        return True
    return hasattr(source, "__iter__") and not hasattr(source, "__getitem__")


def _of_samples(model: nn.Module, source: Any, count: int) -> _Probe:
    """Samples from here and there in a data set."""
    probes = samples.draw_twice(source, sorted({count * at // _PROBES for at in range(_PROBES)} | {count - 1}))
    return _collated(model, probes, samples.collated)


def _collated(model: nn.Module, probes: list[Any], collate: Any) -> _Probe:
    order = list(range(len(probes)))[::-1][:-1] or [0]
    call, other = (_call(model, collate(some_of)) for some_of in (probes, [probes[at] for at in order]))
    return _Probe(call, other, (len(probes), len(order)), order, probes[0])


def _of_loader(model: nn.Module, loader: Any) -> _Probe:
    """The first samples of a loader; what can be seen of it is left as it was."""
    source = getattr(loader, "dataset", None)
    indexed = source is not None and not isinstance(source, IterableDataset) and hasattr(source, "__getitem__")
    if indexed and getattr(loader, "batch_size", None) is not None and hasattr(loader, "collate_fn"):
        count = _length(source)
        drawn = samples.draw_twice(source, sorted({0, count // 2, count - 1}))
        try:
            return replace(_collated(model, drawn, loader.collate_fn), usual=loader.batch_size)
        except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            raise FtkitError(f"The loader can't collate its samples: {cause(error)}.") from error
    with _setting_workers_aside(loader), contextlib.ExitStack() as after:
        for restore in restoring(loader):
            after.callback(restore)
        batches = iter(loader)
        if batches is loader:
            raise FtkitError(
                "The loader is an iterator, of which a batch would be lost: pass what can be iterated over again, such "
                "as a DataLoader."
            )
        batch = next(batches, None)
        del batches  # and with it its workers, before the loader is as it was
    if batch is None:
        raise FtkitError("The loader gives no batches.")
    call = _call(model, batch)
    tensors = list(tensors_in(call))
    if not tensors:
        raise FtkitError("The first batch of the loader has no tensors that the model could take.")
    whole = len(tensors[0]) if tensors[0].dim() else 0
    if whole < 2:
        sizes = ", ".join(str(list(one.shape)) for one in tensors[:4])
        raise FtkitError(
            f"The first batch of the loader has fewer than 2 samples: the model would get tensors of {sizes}. Samples "
            "have to come as one tensor, so a list of several is to be padded or cropped to one size and stacked."
        )
    size = min(whole, _PROBES + 1)
    order = list(range(size))[::-1][:-1]

    def chosen(places: list[int]) -> Any:
        return tree_map_only(
            torch.Tensor, lambda one: one[places] if one.dim() and len(one) == whole else one, call
        )  # fmt: skip

    return _Probe(chosen(list(range(size))), chosen(order), (size, len(order)), order, usual=whole)


@contextlib.contextmanager
def _telling_sizes(probe: _Probe) -> Iterator[None]:
    """Where the model fails, say that the loader's batches have another size, if they do."""
    try:
        yield
    except FtkitError as error:
        if error.__cause__ is None or probe.usual is None or probe.usual in probe.sizes:
            raise
        raise FtkitError(
            f"{error} The loader's batches have {plural(probe.usual, 'sample')}; to be computed once, the model has to "
            "take batches of any size."
        ) from error.__cause__


@contextlib.contextmanager
def _setting_workers_aside(loader: Any) -> Iterator[None]:
    """Let loaders forget, for the block, the iterators they keep with their workers: their state can't be put back."""
    inside = tree_leaves([*getattr(loader, "__dict__", {}).values()])
    held = [(vars(one), vars(one).get("_iterator")) for one in (loader, *inside) if isinstance(one, DataLoader)]
    for table, _ in held:
        table["_iterator"] = None
    try:
        yield
    finally:
        for table, iterator in held:
            table["_iterator"] = iterator


def _with_rows(cut: Cut, form: samples.Form | None, call: Any, rows: torch.Tensor) -> Any:
    return form.call(call, rows) if form is not None else put_rows(cut, call[0], call[1], rows)


def _folder(path: Path) -> Path:
    """See that a path can be that of a folder."""
    try:
        if path.exists():
            next(path.iterdir(), None)
    except OSError as error:
        raise FileWriteError(f"Can't open {path} as a folder: {error.strerror or error}. Name another one.") from error
    return path


def _checked_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise FtkitError(f"Expected a module as model, got {came(model)}.")
    inner = unwrap(model)
    for name, one in inner.named_modules():
        if isinstance(one, torch.jit.ScriptModule) and {each.requires_grad for each in one.parameters()} == {False}:
            raise FtkitError(
                f"{name or 'The model'} is compiled by torch.jit, so what happens inside can't be watched. Put the "
                "module that it was made from in its place, with its weights."
            )
    tensors = list(named_state(inner).values())
    if any(map(nn.parameter.is_lazy, tensors)):
        raise FtkitError("The model has uninitialized parameters: run it once on a batch first.")
    if any(one.is_meta for one in tensors):
        raise FtkitError("The model has parameters on the meta device, without values: load its weights first.")
    if len({one.device for one in tensors}) > 1:
        raise FtkitError("The model is spread over several devices; it has to be on one.")
    if all(one.requires_grad for one in inner.parameters()):
        raise FtkitError("Nothing in the model is frozen: call ftkit.freeze() or freeze_except() first.")
    if not any(one.requires_grad for one in inner.parameters()):
        raise FtkitError(
            "All of the model is frozen: nothing would train. Unfreeze its head, or call it once yourself."
        )
    return inner


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset):
        raise FtkitError(
            "An IterableDataset has no index: pass your loader instead, DataLoader(dataset, batch_size=...), and "
            "samples are known by their content."
        )
    try:
        count = len(dataset)
        if count:
            dataset[0]
    except (TypeError, NotImplementedError, KeyError) as error:
        raise FtkitError(
            "The dataset must be map-style (indexable, with a length), such as a list, or a loader, not "
            f"{came(dataset)}."
        ) from error
    if count < 2:
        raise FtkitError("The data set has fewer than 2 samples.")
    return int(count)


def _bar(wanted: bool | None, total: int) -> Any:
    """A progress bar, or what takes its place where none is wanted."""
    if not total or wanted is False or (wanted is None and not sys.stderr.isatty()):
        return contextlib.nullcontext(SimpleNamespace(update=lambda _: None))
    from tqdm import tqdm

    return tqdm(total=total, unit="sample", desc="computing once")


def _device(model: nn.Module) -> torch.device:
    return next(iter(named_state(model).values())).device


def _call(model: nn.Module, batch: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda one: one.to(_device(model)), samples.call_of(model, batch))


def _proven(
    model: nn.Module, cut: Cut, call: Any, with_rows: Callable[[Any, torch.Tensor], Any]
) -> tuple[Player, torch.Tensor]:
    """Run the model in both ways and compare, in train and in eval mode; return the rows of the call, too.

    Raises:
        FtkitError: Outputs, gradients or buffers differ.
    """
    player = Player(model, cut, MAGIC + bytes(TAG - len(MAGIC)))
    count = len(next(tensors_in(call)))
    values, _ = undisturbed(model, cut, lambda: record(model, cut, own(call)))
    rows = player.encode(values, count).to(_device(model))
    _alone(model, cut, player, call, rows)
    for mode in (True, False):
        model.train(mode)
        replayed = with_rows(call, rows)
        try:
            plain = undisturbed(model, cut, functools.partial(_step, model, call))
        except Exception as error:
            raise FtkitError(
                f"The {type(model).__name__} fails on a batch of {plural(count, 'sample')} in "
                f"{'train' if mode else 'eval'} mode: {cause(error)}."
            ) from error
        try:
            player.learning = True
            with player:
                runs = 1 + (cut.tail is not None)  # where the first one is for the way that the next one takes
                results = [undisturbed(model, cut, functools.partial(_step, model, replayed)) for _ in range(runs)]
        except Exception as error:
            player.cut.modes = {one for one in player.cut.modes if one[1][0] != mode}
            if not mode:
                continue  # rows are refused in eval mode, as its modes are not known
            if isinstance(error, FtkitError):
                raise
            raise FtkitError(
                f"The {type(model).__name__} fails when its frozen part does not run: {cause(error)}. It can't be "
                "computed once. Train without precompute."
            ) from error
        finally:
            player.learning = False
        if all(_equal(plain, one) for one in results):
            continue
        again = undisturbed(model, cut, functools.partial(_step, model, call))
        exact = _equal(plain, again)  # kernels that add in any order differ from run to run
        if not exact and all(_close(plain, one) for one in results):
            continue
        if mode and not _close(plain, again):
            raise FtkitError(
                f"The {type(model).__name__} gives other outputs or gradients each time that it gets the same batch, "
                "though torch, random and numpy.random draw the same: it can't be computed once. Train without "
                "precompute."
            )
        if not mode:  # what is kept comes from train mode, and eval mode gives something else
            player.cut.modes = {one for one in player.cut.modes if one[1][0] != mode}
            continue
        if cut.tail is not None:  # something around it counts, after all
            cut.tail, cut.modes = None, set()
            return _proven(model, cut, call, with_rows)
        raise FtkitError(
            f"The {type(model).__name__} gives other outputs or gradients when its frozen part does not run: it "
            "can't be computed once. Train without precompute."
        )
    return player, rows


@contextlib.contextmanager
def _has_run(model: nn.Module, call: Any) -> Iterator[None]:
    """The state in which the model's own runs leave it: some set what they find unset."""
    model(*call[0], **call[1])
    yield


@contextlib.contextmanager
def _keeps_no_cache(model: nn.Module, _: Any) -> Iterator[None]:
    """The state in which transformers' Trainer runs its models, which it sets before training."""
    with contextlib.ExitStack() as after:
        for _, table in _configurations(model)[:1]:
            after.enter_context(_holding(table, {"use_cache": False}))
        yield


@contextlib.contextmanager
def _is_saved(model: nn.Module, _: Any) -> Iterator[None]:
    """The state in which transformers' ``save_pretrained`` leaves a model: it notes there what the model is."""
    with contextlib.ExitStack() as after:
        for module, table in _configurations(model):
            dtype = next((str(one.dtype)[6:] for one in module.parameters() if one.is_floating_point()), None)
            noted = {"dtype": dtype, "torch_dtype": dtype, "architectures": [type(module).__name__]}
            after.enter_context(_holding(table, {key: one for key, one in noted.items() if key in table}))
        yield


def _configurations(model: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The attributes of the configurations of a model and of models in it, and whose each is."""
    found = ((module, getattr(vars(module).get("config"), "__dict__", {})) for module in model.modules())
    return [*{id(table): (module, table) for module, table in reversed([*found]) if table}.values()][::-1]


@contextlib.contextmanager
def _holding(table: dict[str, Any], values: dict[str, Any]) -> Iterator[None]:
    """Let a table have some values for the block."""
    before = {key: table[key] for key in values if key in table}
    table.update(values)
    try:
        yield
    finally:
        for key in values.keys() - before.keys():
            table.pop(key, None)
        table.update(before)


def _accept(
    model: nn.Module, player: Player, calls: tuple[Any, Any], rows: torch.Tensor, into: Callable[..., Any]
) -> None:
    """Let the guard take another state of the model for as good, if all that is kept is the same to the bit in it.

    What is not accepted is an error that says what has changed, when it comes to that.

    Args:
        model: The model.
        player: Who runs it with rows.
        calls: What it is called with for some samples: themselves, and their rows.
        rows: The rows.
        into: Brings it into the state.
    """
    guard, (call, replayed) = player.guard, calls

    def there(run: Callable[[], Any], times: int = 1) -> Any:
        def in_state() -> Any:
            with contextlib.ExitStack() as state:
                for _ in range(times):
                    state.enter_context(into(model, call))
                return run()

        return undisturbed(model, player.cut, in_state)

    once = there(guard.read)
    if not (changed := guard.differing(once)):
        return
    twice = there(guard.read, 2)
    others = {where: once.get(where) for where in changed if alike(once.get(where), twice.get(where))}
    suppressed = contextlib.suppress(FtkitError, RuntimeError, TypeError, ValueError)
    with suppressed, guard.accepting(others), player.accepting_calls():
        values = there(lambda: record(model, player.cut, call)[0])
        plain = there(functools.partial(_step, model, call))
        with player:
            kept = there(functools.partial(_step, model, replayed))
        if not same_bits(player.encode(values, len(rows)), rows.cpu()) or not _close(plain, kept):
            raise FtkitError("It is not the same in this state.")


def _alone(model: nn.Module, cut: Cut, player: Player, call: Any, rows: torch.Tensor) -> None:
    """See that what is kept of a sample does not depend on the others, by changing those and nothing else.

    Raises:
        FtkitError: It does.
    """
    count = len(rows)
    others = [0, *range(count - 1, 1, -1), *[0] * (count > 1)]  # the first one stays in its place

    def mixed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[others] if tensor.dim() and len(tensor) == count else tensor

    values, _ = undisturbed(model, cut, lambda: record(model, cut, tree_map_only(torch.Tensor, mixed, own(call))))
    if same_bits(player.encode(values, count)[0], rows[0].cpu()):
        return
    again, _ = undisturbed(model, cut, lambda: record(model, cut, own(call)))
    repeats = same_bits(player.encode(again, count)[0], rows[0].cpu())
    if repeats or not player.near(player.encode(values, count)[:1][0], rows[0].cpu()):
        raise FtkitError(
            f"What the frozen part of the {type(model).__name__} gives for a sample depends on the other samples of "
            "the batch, so it can't be computed once. Train without precompute."
        )


def _step(model: nn.Module, call: Any) -> list[torch.Tensor | None]:
    call = own(call)  # which the model may write to
    output = list(tensors_in(model(*call[0], **call[1])))
    trained = [one for one in model.parameters() if one.requires_grad]
    ends = [one for one in output if one.requires_grad]
    grads: Any = [None] * len(trained)
    if ends:
        weights = [
            torch.linspace(0.5, 1.5, max(one.numel(), 1), device=one.device)[: one.numel()].view(one.shape)
            for one in ends
        ]
        grads = torch.autograd.grad(
            ends, trained, [(weight / one.numel()).to(one.dtype) for weight, one in zip(weights, ends, strict=True)],
            allow_unused=True,
        )  # fmt: skip
    buffers = [one.detach().clone() for one in model.buffers()]
    return [*(one.detach() for one in output), *grads, *buffers]


def _bits(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return not isinstance(other, Placeholder) and same_bits(one, other)


def _equal(ones: list[Any], others: list[Any]) -> bool:
    return len(ones) == len(others) and all(map(_bits, ones, others))


def _close(ones: list[Any], others: list[Any]) -> bool:
    return len(ones) == len(others) and all(
        one is other if one is None or other is None else near(one, other)
        for one, other in zip(ones, others, strict=True)
    )


@dataclass
class _Filling:
    """The first pass: fills a file with a row for each sample."""

    model: nn.Module
    player: Player
    packing: Packing
    dataset: Any
    folder: Path
    form: samples.Form
    sample: Any
    batch_size: int
    workers: int
    most: float | None
    progress: bool | None
    print: str | None = None

    def __post_init__(self) -> None:
        self.kinds = [samples.kind_of(one) for one in self.form.rest(self.sample)]
        self.rest = samples.rest_size(self.kinds)
        self.record_bytes = -(-(self.packing.kept_bytes + self.rest) // ALIGN) * ALIGN
        beside = {"form": [*map(str, self.form.names), "/", *map(str, self.form.inside), self.form.inner]}
        self.header, self.stem = _bound(self.model, self.player, self.packing, {**beside, "beside": self.kinds})
        self.print = samples.fingerprint(self.dataset)
        self.header["data"] = self.print

    def run(self, *, anew: bool = False) -> tuple[Path, int]:
        """Fill the file, or find it filled; return it, and how many samples were computed."""
        count, stem = len(self.dataset), self.stem[:16]
        known = self.print
        if not anew and known is not None and (found := self._found(known)):
            return found, 0
        if not any(self.folder.glob(f"{stem}-*")):
            self._see_room(count)  # before there is a folder
        with locked(self.folder):
            remove_litter(self.folder)
            if known is None and any(self.folder.glob(f"{stem}-*{READY}")):
                known = self._read()
            if not anew and known is not None and (found := self._found(known)):
                return found, 0
            unfinished = self.folder / f"{stem}-{known[:16] if known else f'read-{count}'}{UNFINISHED}"
            if anew or not unfinished.exists():
                self._see_room(count)
                RowFile.create(unfinished, self.header, count, self.record_bytes)
            with RowFile(unfinished, writable=True) as file:
                self._see_whose(file)
                computed = self._fill(file, known is not None, anew=anew)
                file.flush()
                filled = self._see_whose(file, known)
            return finish(unfinished, self._ready(filled).name), computed

    def _ready(self, known: str) -> Path:
        return self.folder / f"{self.stem[:16]}-{known[:16]}{READY}"

    def _found(self, known: str) -> Path | None:
        """The file that is filled already, if there is one."""
        if not (path := self._ready(known)).exists():
            return None
        with RowFile(path) as file:
            self._see_whose(file, known)
        return path

    def _see_whose(self, file: RowFile, known: str | None = None) -> str:
        """See that a file is one of this model and data set; return by what the data set is known.

        Raises:
            FtkitError: It is another one, in its place.
        """
        right = self.stem, self.print, len(self.dataset), self.record_bytes
        fits = (file.header.get("tag"), file.header.get("data"), file.rows, file.row_bytes) == right
        found = self.print or samples.digest_of_all([file.sample(at) for at in range(file.rows)])
        if not fits or known not in (None, found):
            raise FtkitError(
                f"{file.path} belongs to another model or data set than its name says. Move it away or delete it, and "
                "call precompute() again."
            )
        return found

    def _see_room(self, count: int) -> None:
        needed = RowFile.size(self.header, count, self.record_bytes)
        room_for(self.folder, needed, self.most, f"The rows of {plural(count, 'sample')}")

    def _read(self) -> str:
        """Read the data set, and return the digest of the digests of its samples."""
        loader = DataLoader(self.dataset, self.batch_size, num_workers=self.workers, collate_fn=samples.Digests())
        return samples.digest_of_all([one for several in loader for one in several])

    def _fill(self, file: RowFile, known: bool, *, anew: bool) -> int:
        others = [] if anew else [RowFile(path) for path in self.folder.glob(f"{self.stem[:16]}-*{READY}")]
        fit = [one for one in others if (one.header.get("tag"), one.row_bytes) == (self.stem, file.row_bytes)]
        where = {digest: (other, at) for other in fit for digest, at in other.samples().items()}
        indices = [at for at in range(file.rows) if not known or not file.has(at)]
        computed = 0
        position = iter(indices)
        with _bar(self.progress, len(indices)) as bar:
            for digests, rest, batch in self._batches(indices):
                bar.update(len(digests))
                numbers = [next(position) for _ in digests]
                missing = []
                for at, (number, digest) in enumerate(zip(numbers, digests, strict=True)):
                    if file.sample(number) == digest and file.has(number):
                        continue
                    if digest in where and where[digest][0].has(where[digest][1]):
                        file.write(number, where[digest][0].read(where[digest][1]), digest)
                    else:
                        missing.append(at)
                if missing:
                    rows = self._rows(batch, len(digests))
                    for at in missing:
                        data = bytes(bytes_of(rows[at])) + rest[at]
                        file.write(numbers[at], data + bytes(self.record_bytes - len(data)), digests[at])
                    computed += len(missing)
        for other in others:
            other.close()
        return computed

    def _batches(self, indices: list[int]) -> Iterator[Any]:
        if not indices:
            return iter(())
        gather = samples.Gather(self.form, self.kinds)
        source = Subset(self.dataset, indices)
        return iter(DataLoader(source, self.batch_size, num_workers=self.workers, collate_fn=gather))

    def _rows(self, batch: Any, count: int) -> torch.Tensor:
        call = _call(self.model, batch)
        return self.packing.pack(self.player.computed(call, count))

    def drawn_again(self, rows: Rows) -> Callable[[list[int]], Any]:
        """What gives the arguments of the model for some samples, which are seen to be those of the rows."""

        def draw(numbers: list[int]) -> Any:
            drawn = [self.dataset[at] for at in numbers]
            for at, one in zip(numbers, drawn, strict=True):
                if samples.sample_digest(one) != rows.digest(at):
                    raise FtkitError(
                        f"Sample {at} of the data set is not what it was when the frozen part was computed: its "
                        "transform, its labels or its files have changed. Call precompute() again."
                    )
            return _call(self.model, samples.collated(drawn))

        return draw

    def differing(self, path: Path) -> str:
        """Compute a few samples anew; say which one of them the file has otherwise."""
        with RowFile(path) as file:
            chosen = picked(file.rows, _RECOMPUTED)
            drawn = [self.dataset[at] for at in chosen]
            same = [samples.sample_digest(one) == file.sample(at) for at, one in zip(chosen, drawn, strict=True)]
            values, _ = undisturbed(
                self.model,
                self.player.cut,
                lambda: record(self.model, self.player.cut, _call(self.model, samples.collated(drawn))),
            )
            rows = self.player.encode(values, len(drawn))
            for at, row, equal in zip(chosen, rows, same, strict=True):
                kept = torch.frombuffer(bytearray(file.read(at)[: self.packing.kept_bytes]), dtype=torch.uint8)
                if not equal or not self.packing.near(self.packing.unpack(kept[None])[0], row):
                    return f"Sample {at} gives another result than in {path}."
        return ""
