"""Compute the frozen part of a model once for each sample of a data set, and train on what it gave."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from ftkit._arguments import byte_count, came, local_path, whole_number
from ftkit._files import remove_litter
from ftkit._models.contents import bytes_of
from ftkit._models.dryrun import tensors_in
from ftkit._precompute import samples
from ftkit._precompute.frontier import Cut, find, near
from ftkit._precompute.placeholders import Placeholder
from ftkit._precompute.record import record, undisturbed
from ftkit._precompute.replay import ALIGN, MAGIC, TAG, Player, numbered
from ftkit._precompute.store import READY, UNFINISHED, RowFile, finish, locked, picked, room_for
from ftkit._precompute.trace import named_state, no_trace, same_bits
from ftkit._reports import Grid, Parts, Report
from ftkit._torch import compiled_from, tree_map_only
from ftkit._wording import in_bytes, plural, some
from ftkit.errors import FtkitError, did_you_mean
from ftkit.selection import unwrap

_PROBES: Final = 2
_RECOMPUTED: Final = 4


class Rows(Dataset[Any]):
    """A data set of what is kept: each sample as it was, with one row of bytes in the place of the model's input."""

    def __init__(self, path: Path, row_bytes: int, kinds: list[Any], like: Any, inside: list[str], source: int) -> None:
        self._source = source
        self._path, self._row_bytes, self._kinds, self._like, self._inside = path, row_bytes, kinds, like, inside
        self._size = samples.rest_size(kinds)
        self._open: tuple[int, RowFile] | None = None

    def __len__(self) -> int:
        return self._file().rows

    def __getitem__(self, index: int) -> Any:
        file = self._file()
        data = file.read(_place(index, file.rows))
        row = torch.frombuffer(bytearray(data[: self._row_bytes]), dtype=torch.uint8)
        numbered(row[None], [_place(index, file.rows)], self._source)
        rest = samples.rest_of(data[self._row_bytes : self._row_bytes + self._size], self._kinds)
        return samples.joined(self._like, row, rest, self._inside)

    def batch(self, indices: list[int]) -> Any:
        """Samples as torch's ``default_collate`` would put them together, read at once."""
        file = self._file()
        data = torch.from_numpy(file.gather([_place(index, file.rows) for index in indices]))
        rest, at = [], self._row_bytes
        for _, name, shape in self._kinds:
            values = samples.tensor_of(data, at, name, shape)
            at += values[0].nbytes
            rest.append(values)
        rows = numbered(data[:, : self._row_bytes], [_place(index, file.rows) for index in indices], self._source)
        return samples.joined(self._like, rows, rest, self._inside)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}

    def _file(self) -> RowFile:
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), RowFile(self._path)
        return self._open[1]


def _place(index: int, count: int) -> int:
    at = int(index) + (count if index < 0 else 0)
    if not 0 <= at < count:
        raise IndexError(f"There are {count} samples, no number {index}.")
    return at


class Batches(Dataset[Any]):
    """Rows for a loader that asks for all samples of a batch at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return self._rows.batch(indices)


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(repr=False)
class Precomputed(Report):
    """What :func:`precompute` returns: the frozen part of a model, computed once for each sample of a data set.

    Use its :meth:`loader` in the place of yours, and call the model in a ``with`` block. It is a report, too.

    Attributes:
        path: The file that keeps it.
        samples: How many samples there are.
        skipped: The modules that need not run any more.
        kept: The tensors that are kept for each sample: where they go, their shapes, types and sizes in bytes.
        bytes_per_sample: What the file takes for one sample.
        share: The share of the FLOPs of a forward pass that is saved; None if they can't be counted.
        not_skipped: Frozen modules that run as before, and why.
        computed: How many samples were computed by this call; the others were in the file.
    """

    path: Path
    samples: int
    skipped: list[str]
    kept: list[tuple[str, tuple[int, ...], str, int]]
    bytes_per_sample: int
    share: float | None
    not_skipped: dict[str, str]
    computed: int
    _model: nn.Module = field(repr=False)
    _player: Player = field(repr=False)
    _rows: Rows = field(repr=False)
    _source: Any = field(repr=False)
    _print: str | None = field(repr=False)

    @property
    def dataset(self) -> Dataset[Any]:
        """The samples, each with a row of bytes (uint8) in the place of the model's input, for a loader of your own."""
        return self._rows

    def loader(self, **options: Any) -> DataLoader[Any]:
        """Return a loader of the samples, for the model in a ``with`` block.

        Args:
            **options: As for ``torch.utils.data.DataLoader``: ``batch_size``, ``shuffle``, ``num_workers`` and so on.

        Raises:
            FtkitError: The data set, or the frozen part of the model, has changed since; or torch does not take these
                options.
        """
        if self._print is not None and samples.fingerprint(self._source) != self._print:
            raise FtkitError(
                "The data set has changed since the frozen part was computed: its files, its transform or its samples. "
                "Call precompute() again."
            )
        self._player.guard.check(thoroughly=True)
        try:
            if options.get("collate_fn") is not None or options.get("batch_size", 1) is None:
                return DataLoader(self._rows, **options)
            return DataLoader(Batches(self._rows), **{**options, "collate_fn": _as_it_is})
        except (TypeError, ValueError) as error:
            unknown = [one for one in options if one not in inspect.signature(DataLoader).parameters]
            hint = did_you_mean(unknown[0], inspect.signature(DataLoader).parameters) if unknown else ""
            raise FtkitError(f"torch can't build a DataLoader from these arguments: {error}.{hint}") from error

    def __enter__(self) -> Self:
        self._player.enter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._player.__exit__(*exception)

    def _parts(self) -> Parts:
        share = "" if self.share is None else f", {self.share:.1%} of the FLOPs of its forward pass"
        yield f"{type(self._model).__name__}: the frozen part is computed once{share}."
        yield f"  skipped: {some(self.skipped, 6)}"
        rows = [(name, "x".join(map(str, shape)) or "1", kind, in_bytes(size)) for name, shape, kind, size in self.kept]
        yield Grid(rows, titles=("kept per sample", "shape", "type", "size"), right=(3,))
        whole = in_bytes(self.bytes_per_sample * self.samples)
        done = f"{plural(self.computed, 'sample')} computed now" if self.computed else "nothing left to compute"
        yield f"  {plural(self.samples, 'sample')} of {in_bytes(self.bytes_per_sample)}, {whole} in all; {done}"
        yield f"  file: {self.path}"
        for name, why in self.not_skipped.items():
            if name:
                yield f"  runs as before: {name}, as {why}"


def precompute(
    model: nn.Module,
    dataset: Any,
    folder: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    max_bytes: float | str | None = None,
) -> Precomputed:
    """Compute the frozen part of a model once for each sample, and keep what passes from it to the part that trains.

    Freeze first. A few samples are then run through the model, and each operator is watched, to find out which module
    calls depend on nothing but the sample and frozen weights, and which tensors pass from them to the rest. These are
    computed for all samples and written to a file in ``folder``, which later calls, in other processes too, read. In a
    ``with`` block the model takes batches of them: it runs its own ``forward``, in which the skipped modules give back
    what is kept. Outputs, gradients and checkpoints are those of the plain model.

    What does not depend on the sample alone is not skipped: Dropout that is on, norms whose statistics are not held,
    what mixes the samples of a batch, modules with hooks. A model for which that leaves nothing is refused. Both runs
    are compared, outputs and gradients, before anything is written.

    What is kept is bound to the bytes of the frozen weights, to autocast, the device and the version of torch, and to
    the data set: its tensors, or the names, sizes and times of its files, and its transform. A data set of a class of
    your own is read once at each call, to see whether its samples are the same. Only new samples are computed.

    Args:
        model: Any module, partly frozen, on its device; ``DistributedDataParallel`` is looked through.
        dataset: An indexable data set. A sample is a tensor; or a tuple, whose first item is the model's input; or a
            dict, of which the model gets what its ``forward`` takes by name. What else is in it (numbers, tensors of
            one shape) comes along. It must give the same each time: no random transform.
        folder: Where to keep the file. A run that is killed is resumed there; several runs may use one folder.
        batch_size: Samples that are computed at a time.
        num_workers: Processes that read the data set meanwhile.
        max_bytes: The most bytes that the file may take, or a size such as ``"20GB"``. The room on the disk is
            looked at first in any case.

    Raises:
        FtkitError: Nothing of the model can be skipped; the data set draws at random, or its samples differ in shape;
            the file would be too large.
        FileWriteError: The file can't be written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from ftkit import freeze_except
        >>> from ftkit._precompute.precompute import precompute
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
    inner = _checked_model(model)
    place = local_path("folder", folder)
    size = whole_number("batch_size", batch_size, least=1)
    workers = whole_number("num_workers", num_workers, least=0)
    most = None if max_bytes is None else byte_count("max_bytes", max_bytes)
    count = _length(dataset)
    with no_trace(inner):
        probes = samples.draw_twice(dataset, sorted({count * at // _PROBES for at in range(_PROBES)} | {count - 1}))
        inner.train()
        cut, inside = _frontier(inner, probes)
        player = _proven(inner, cut, _call(inner, samples.collated(probes)), inside)
        inner.train()
        place.mkdir(parents=True, exist_ok=True)
        shape, kinds = (
            samples.shape_of(probes[0]),
            [samples.kind_of(one) for one in samples.rest(probes[0], inside)],
        )
        filling = _Filling(inner, player, dataset, place, inside, kinds, shape, size, workers, most)
        path, computed = filling.run()
        rows = Rows(path, player.row_bytes, kinds, shape, inside, player.source)
        filling.recompute(path)
    player.watch(lambda numbers: _call(inner, samples.collated([dataset[at] for at in numbers])))
    return Precomputed(
        path,
        count,
        list(dict.fromkeys(name for name, _ in cut.skips)),
        [
            (
                _where(cut.points[number]),
                cut.layouts[number].shape,
                str(cut.layouts[number].dtype)[6:],
                cut.layouts[number].nbytes,
            )
            for number in cut.per_sample
        ],
        filling.record_bytes,
        cut.share,
        cut.refused,
        computed,
        inner,
        player,
        rows,
        dataset,
        filling.print,
    )


def _where(point: tuple[str, tuple[str, int], int]) -> str:
    kind, (name, _), at = point
    return {"input": f"input {at}", "arg": f"into {name}", "out": f"out of {name}"}[kind]


def _checked_model(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise FtkitError(f"Expected a module as model, got {came(model)}.")
    if any(compiled_from(one) is not None for one in model.modules()):
        raise FtkitError("A compiled model can't take kept rows: pass the module itself, and train it uncompiled.")
    inner = unwrap(model)
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
    if isinstance(dataset, DataLoader):
        raise FtkitError("Expected a data set, got a DataLoader: pass its dataset, loader.dataset.")
    try:
        count = len(dataset)
        if count:
            dataset[0]
    except (TypeError, NotImplementedError, KeyError) as error:
        raise FtkitError(
            f"The dataset must be map-style (indexable, with a length), such as a list, not {came(dataset)}."
        ) from error
    if count < 2:
        raise FtkitError("The data set has fewer than 2 samples.")
    return int(count)


def _device(model: nn.Module) -> torch.device:
    return next(iter(named_state(model).values())).device


def _call(model: nn.Module, batch: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda one: one.to(_device(model)), samples.call_of(model, batch))


def _frontier(model: nn.Module, probes: list[Any]) -> tuple[Cut, list[str]]:
    """The cut, and the names of the inputs that a row replaces, where a sample is a dict."""
    order = list(range(len(probes)))[::-1][:-1] or [0]
    call, other = (_call(model, samples.collated(some_of)) for some_of in (probes, [probes[at] for at in order]))
    cut = find(model, call, other, (len(probes), len(order)), order)
    names = list(call[1])
    return cut, [name for at, name in enumerate(names) if at not in cut.stays] if not call[0] else []


def _proven(model: nn.Module, cut: Cut, call: Any, inside: list[str]) -> Player:
    """Run the model in both ways and compare, in train and in eval mode.

    Raises:
        FtkitError: Outputs, gradients or buffers differ.
    """
    player = Player(model, cut, MAGIC + bytes(TAG - len(MAGIC)))
    count = len(next(tensors_in(call)))
    values, _ = undisturbed(model, cut, lambda: record(model, cut, call))
    rows = player.encode(values, count).to(_device(model))
    _alone(model, cut, player, call, rows)
    for mode in (True, False):
        model.train(mode)
        replayed = (
            ((rows,), {})
            if call[0]
            else ((), {inside[0]: rows, **{k: v for k, v in call[1].items() if k not in inside}})
        )
        try:
            plain = undisturbed(model, cut, functools.partial(_step, model, call))
        except RuntimeError as error:
            raise FtkitError(f"The {type(model).__name__} fails on a batch of the data set: {error}") from error
        try:
            player.learning = True
            with player:
                result = undisturbed(model, cut, functools.partial(_step, model, replayed))
        except Exception as error:
            player.cut.modes = {one for one in player.cut.modes if one[1][0] != mode}
            if not mode:
                continue  # rows are refused in eval mode, as its modes are not known
            if isinstance(error, FtkitError):
                raise
            raise FtkitError(
                f"The {type(model).__name__} fails when its frozen part does not run: {error}. It can't be computed "
                "once. Train without precompute."
            ) from error
        finally:
            player.learning = False
        if _equal(plain, result):
            continue
        again = undisturbed(model, cut, functools.partial(_step, model, call))
        exact = _equal(plain, again)  # kernels that add in any order differ from run to run
        if not exact and _close(plain, result):
            continue
        if not mode:  # what is kept comes from train mode, and eval mode gives something else
            player.cut.modes = {one for one in player.cut.modes if one[1][0] != mode}
            continue
        if cut.tail is not None:  # something around it counts, after all
            cut.tail, cut.modes = None, set()
            return _proven(model, cut, call, inside)
        raise FtkitError(
            f"The {type(model).__name__} gives other outputs or gradients when its frozen part does not run: it "
            "can't be computed once. Train without precompute."
        )
    return player


def _alone(model: nn.Module, cut: Cut, player: Player, call: Any, rows: torch.Tensor) -> None:
    """See that what is kept of a sample does not depend on the others, by changing those and nothing else.

    Raises:
        FtkitError: It does.
    """
    count = len(rows)
    others = [0, *range(count - 1, 1, -1), *[0] * (count > 1)]  # the first one stays in its place

    def mixed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[others] if tensor.dim() and len(tensor) == count else tensor

    values, _ = undisturbed(model, cut, lambda: record(model, cut, tree_map_only(torch.Tensor, mixed, call)))
    if same_bits(player.encode(values, count)[0], rows[0].cpu()):
        return
    again, _ = undisturbed(model, cut, lambda: record(model, cut, call))
    repeats = same_bits(player.encode(again, count)[0], rows[0].cpu())
    if repeats or not player.near(player.encode(values, count)[:1][0], rows[0].cpu()):
        raise FtkitError(
            f"What the frozen part of the {type(model).__name__} gives for a sample depends on the other samples of "
            "the batch, so it can't be computed once. Train without precompute."
        )


def _step(model: nn.Module, call: Any) -> list[torch.Tensor | None]:
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
    dataset: Any
    folder: Path
    inside: list[str]
    kinds: list[Any]
    shape: Any
    batch_size: int
    workers: int
    most: float | None
    print: str | None = None

    def __post_init__(self) -> None:
        self.rest = samples.rest_size(self.kinds)
        self.record_bytes = -(-(self.player.row_bytes + self.rest) // ALIGN) * ALIGN
        self.header = {
            "cut": self.player.cut.description,
            "skipped": sorted(map(str, self.player.cut.skips.items())),
            "once": {number: hashlib.sha256(bytes_of(one)).hexdigest() for number, one in self.player.cut.once.items()},
            "frozen": self.player.guard.digests,
            "settings": {name: repr(one) for name, one in self.player.guard.settings.items()},
            "torch": torch.__version__,
            "device": str(_device(self.model).type),
            "built": self.player.guard.built,
            "inside": self.inside,
            "beside": self.kinds,
            "sample": self.shape,
        }
        self.tag = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode()).digest()[:16]
        self.player.tag = MAGIC + self.tag[: TAG - len(MAGIC)]
        self.print = samples.fingerprint(self.dataset)

    def run(self) -> tuple[Path, int]:
        """Fill the file, or find it filled; return it, and how many samples were computed."""
        count = len(self.dataset)
        stem = self.tag.hex()[:16]
        with locked(self.folder):
            remove_litter(self.folder)
            known = self.print
            if known is None and any(self.folder.glob(f"{stem}-*{READY}")):
                known = self._read()
            if known is not None and (found := self.folder / f"{stem}-{known[:16]}{READY}").exists():
                return found, 0
            unfinished = self.folder / f"{stem}-{known[:16] if known else f'read-{count}'}{UNFINISHED}"
            needed = self.record_bytes * count
            if not unfinished.exists():
                room_for(self.folder, needed, self.most, f"The rows of {plural(count, 'sample')}")
                RowFile.create(unfinished, {"tag": self.tag.hex(), **self.header}, count, self.record_bytes)
            with RowFile(unfinished, writable=True) as file:
                if (file.rows, file.row_bytes, file.header["tag"]) != (count, self.record_bytes, self.tag.hex()):
                    raise FtkitError(f"{unfinished} belongs to something else: delete it.")
                computed = self._fill(file, known is not None)
                file.flush()
                name = (
                    f"{stem}-{(known or samples.digest_of_all([file.sample(at) for at in range(count)]))[:16]}{READY}"
                )
            return finish(unfinished, name), computed

    def _read(self) -> str:
        """Read the data set, and return the digest of the digests of its samples."""
        loader = DataLoader(self.dataset, self.batch_size, num_workers=self.workers, collate_fn=samples.Digests())
        return samples.digest_of_all([one for several in loader for one in several])

    def _fill(self, file: RowFile, known: bool) -> int:
        others = [RowFile(path) for path in self.folder.glob(f"{self.tag.hex()[:16]}-*{READY}")]
        where = {digest: (other, at) for other in others for digest, at in other.samples().items()}
        indices = [at for at in range(file.rows) if not known or not file.has(at)]
        computed = 0
        position = iter(indices)
        for digests, rest, batch in self._batches(indices):
            numbers = [next(position) for _ in digests]
            missing = []
            for at, (number, digest) in enumerate(zip(numbers, digests, strict=True)):
                if file.sample(number) == digest and file.has(number):
                    continue
                if (
                    digest in where
                    and where[digest][0].row_bytes == file.row_bytes
                    and where[digest][0].has(where[digest][1])
                ):
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
        gather = samples.Gather(self.inside, self.kinds)
        source = Subset(self.dataset, indices)
        return iter(DataLoader(source, self.batch_size, num_workers=self.workers, collate_fn=gather))

    def _rows(self, batch: Any, count: int) -> torch.Tensor:
        call = _call(self.model, batch)
        values, _ = undisturbed(self.model, self.player.cut, lambda: record(self.model, self.player.cut, call))
        return self.player.encode(values, count)

    def recompute(self, path: Path) -> None:
        """Compute a few samples anew, and see that the file has the same.

        Raises:
            FtkitError: It has not.
        """
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
                kept = torch.frombuffer(bytearray(file.read(at)[: self.player.row_bytes]), dtype=torch.uint8)
                if not equal or not self.player.near(kept, row):
                    raise FtkitError(
                        f"Sample {at} gives another result than in {path}: the data set, or what the model does, has "
                        "changed in a way that can't be seen from outside. Delete the file, and call precompute() "
                        "again; if that fails too, the model can't be computed once."
                    )
