"""Which name in a source of weights is which name in a model: peeling, renaming, and the likeliest advice."""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ftkit._arguments import call, came
from ftkit._tensors.budget import Budget
from ftkit._torch import loads_plainly
from ftkit._weights.tables import Entry, Table
from ftkit.errors import CheckpointError

Rename: TypeAlias = Mapping[str, str] | Iterable[tuple[str | re.Pattern[str], str]] | Callable[[str], str | None]
"""How names in a file become names in the model.

- ``{"encoder.": "backbone.", "fc": "head"}``: whole names, or their first components. ``""`` stands for no prefix.
- ``[(r"^block(\\d)", r"blocks.\\1")]``: regular expressions and their replacements, applied in order.
- ``lambda name: ...``: the new name, or ``None`` to leave the tensor out.
"""

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
_AVERAGED_COUNT: Final = "n_averaged"  # the counter beside the "module" of torch's AveragedModel
_MAX_PEELED: Final = 4  # as in an averaged model, compiled, in a trainer's module, run in parallel
_NAME: Final = 128  # bytes that a name takes in a match
_STEPS: Final = 3  # of a microsecond, which it takes to compare one
_MAX_CUT: Final = 5  # components of a name that a suggested renaming may replace
_MAX_CHANGES: Final = 32  # ways to rename that are tried on all names


class Places:
    """Where a model keeps its values.

    Attributes:
        kind: The model's class, for messages.
        tensors: The tensors that have the memory, by name.
        names: Their names, by the bare name: the one without inner wrappers.
        elsewhere: Whether it keeps values that are no tensors of its own, or don't know their shapes yet. Only its own
            ``load_state_dict`` knows how to load these.
        translates: Whether a part of it changes what it loads, such as old names.
    """

    def __init__(self, model: nn.Module) -> None:
        state = model.state_dict(keep_vars=True)
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.kind: str = type(model).__name__
        self.tensors: dict[str, Tensor] = {
            name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)
        }
        self.names: dict[str, str] = {_bare(name): name for name in self.tensors}
        self.elsewhere: bool = any(id(value) not in own or is_lazy(value) for value in state.values())
        self.translates: bool = not all(map(loads_plainly, model.modules()))

    def part(self, names: Mapping[str, str]) -> Places:
        """Return only some of the places, under other bare names: from these to the names in the model."""
        part = copy.copy(self)
        part.names = dict(names)
        part.tensors = {name: self.tensors[name] for name in names.values()}
        return part


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS)


class Pair(NamedTuple):
    """A tensor of a source, and the place in a model that goes by the same name."""

    key: str
    entry: Entry
    name: str
    target: Tensor

    @property
    def fits(self) -> bool:
        """Whether the shapes are the same."""
        return self.entry.shape == tuple(self.target.shape)

    @property
    def converts(self) -> bool:
        """Whether the values change their type on the way."""
        return self.entry.dtype != self.target.dtype


class Match:
    """A table of a source under names of the model, as far as they meet.

    Attributes:
        table: The table.
        peeled: The wrappers whose names were taken off, the outermost first.
        entries: Its tensors and their names there, by the bare name in the model that is meant.
        fitting: Those that have a place of their shape.
        mismatched: Those that have a place of another shape.
    """

    def __init__(
        self, table: Table, renamed: Mapping[str, str], peeled: tuple[str, ...], places: Places, budget: Budget
    ) -> None:
        budget.charge(nbytes=_NAME * len(renamed), steps=_STEPS * len(renamed) + sum(map(len, renamed.values())) // 64)
        self.table = table
        self.peeled = peeled
        self._places = places
        self.entries: dict[str, tuple[str, Entry]] = {}
        for key, new in renamed.items():
            bare = _peeled(_bare(new), peeled)
            if "module" in peeled and bare == _AVERAGED_COUNT:
                continue
            count = len(self.entries)
            if bare in self.entries:  # two names that became one: the second is left over, under its full name
                bare = key
            while bare in self.entries:
                count += 1
                bare = f"{key} ({count})"
            self.entries[bare] = key, table.entries[key]
        shared = ((found, places.names[bare]) for bare, found in self.entries.items() if bare in places.names)
        pairs = [Pair(*found, name, places.tensors[name]) for found, name in shared]
        self.fitting: list[Pair] = [pair for pair in pairs if pair.fits]
        self.mismatched: list[Pair] = [pair for pair in pairs if not pair.fits]

    def score(self, *, ema: bool) -> tuple[int, ...]:
        """How well it fits, to compare with others: the first number in which two differ decides."""
        averaged = bool(_EMA.search(".".join((*self.table.path, *self.peeled))))
        over, depth = len(self.unexpected), len(self.table.path)
        return len(self.fitting), len(self.mismatched), averaged == ema, -over, -depth

    def peelings(self) -> Iterator[tuple[str, ...]]:
        """What could be peeled next: this, and one more wrapper that some names begin with."""
        if len(self.peeled) < _MAX_PEELED:
            for wrapper in _WRAPPERS:
                if any(bare.startswith(f"{wrapper}.") for bare in self.entries):
                    yield *self.peeled, wrapper

    @property
    def missing(self) -> list[str]:
        """The model's names that nothing in the table fills."""
        filled = {id(pair.target) for pair in self.fitting}  # a tied tensor is filled under any of its names
        differing = {pair.name for pair in self.mismatched}
        places = self._places.tensors.items()
        missing = [name for name, tensor in places if id(tensor) not in filled and name not in differing]
        if any(map(_counts_batches, self.entries)):
            return missing
        # Files from before torch 0.4.1 lack these counters, and nothing reads them while momentum is set.
        return [name for name in missing if not _counts_batches(name)]

    @property
    def unexpected(self) -> list[str]:
        """The names in the table that the model has no place for."""
        return [key for bare, (key, _) in self.entries.items() if bare not in self._places.names]

    def steps(self) -> list[str]:
        """What was peeled to get there, in words."""
        parts = {part for key, _ in self.entries.values() for part in key.split(".")}
        dropped = sorted(parts & _INNER_WRAPPERS)
        took = [f"took {'.'.join(self.table.path)!r}"] if self.table.path else []
        took += [self.table.mapped] if self.table.mapped else []
        return took + [f"stripped {part + '.'!r}" for part in (*dropped, *self.peeled)]


def _peeled(bare: str, wrappers: Iterable[str]) -> str:
    for wrapper in wrappers:
        bare = bare.removeprefix(f"{wrapper}.")
    return bare


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def best_match(
    tables: Iterable[Table],
    places: Places,
    rename: Callable[[str], str | None],
    budget: Budget,
    *,
    ema: bool,
    converted: Callable[[Table, dict[str, str]], tuple[Table, dict[str, str]] | None] | None = None,
) -> Match:
    """Of all tables and all ways to peel them, the one that meets most of the model; what is tried is paid for.

    With ``converted``, which maps a table and its new names to those of the model, that is tried as well; what a table
    has as it is comes first.
    """
    plain = [(table, {key: new for key in table.entries if (new := rename(key)) is not None}) for table in tables]
    mapped = [converted(*pair) for pair in plain] if converted else []
    found: list[Match] = []
    for table, renamed in [*plain, *filter(None, mapped)]:
        level: list[tuple[str, ...]] = [()]
        while level:  # breadth first, so that of equals the least peeled comes first
            matches = [Match(table, renamed, peeled, places, budget) for peeled in level]
            found += matches
            level = [deeper for match in matches for deeper in match.peelings()]
    return max(found, key=lambda match: match.score(ema=ema))  # the first of equals


def renamer(rename: Rename | None) -> Callable[[str], str | None]:
    """Turn any way to say a renaming into a function of one name."""
    if rename is None:
        return lambda name: name
    if callable(rename):
        return lambda name: _new_name(call("rename", rename, name, takes="name", error=CheckpointError))
    return _by_prefix(rename) if isinstance(rename, Mapping) else _by_pattern(rename)


def _new_name(name: object) -> str | None:
    if not isinstance(name, str | None):
        raise CheckpointError(f"rename returned {came(name)}, not a name or None.")
    return name


def _by_prefix(rename: Mapping[str, str]) -> Callable[[str], str]:
    """Rename whole names, or the longest of their first components that is given."""
    for name in (*rename, *rename.values()):
        if not isinstance(name, str):
            raise CheckpointError(
                f"rename={came(rename)} takes names and prefixes as strings, but {came(name)} is not a string."
            )
    prefixes = {old.rstrip("."): new.rstrip(".") for old, new in rename.items()}

    def renamed(name: str) -> str:
        parts = name.split(".")
        cut = next((cut for cut in range(len(parts), -1, -1) if ".".join(parts[:cut]) in prefixes), None)
        if cut is None:
            return name
        return ".".join(filter(None, (prefixes[".".join(parts[:cut])], *parts[cut:])))

    return renamed


def _by_pattern(rename: Iterable[tuple[str | re.Pattern[str], str]]) -> Callable[[str], str]:
    """Replace what regular expressions match, one after the other."""
    try:
        given: list[Any] = list(rename)
        if any(isinstance(pair, str) for pair in given):  # one of two letters would pass for a pair
            raise TypeError("a string is not a pair")
        pairs: list[tuple[re.Pattern[str], str]] = [(re.compile(old), new) for old, new in given]
        for pattern, replacement in pairs:
            pattern.sub(replacement, "")
    except (TypeError, ValueError, IndexError, re.error) as error:
        raise CheckpointError(
            f"rename={came(rename)} is not a dict of prefixes, a function of a name, or pairs of a regular expression "
            f"and its replacement: {error}."
        ) from error

    def renamed(name: str) -> str:
        for pattern, replacement in pairs:
            name = pattern.sub(replacement, name)
        return name

    return renamed


def suggestions(match: Match, places: Places) -> Iterator[str]:
    """The change of one prefix under which most of what is open on either side would meet, if there is one."""
    met = {pair.name for pair in match.fitting}
    open_places = {bare: tuple(places.tensors[name].shape) for bare, name in places.names.items() if name not in met}
    met_keys = {pair.key for pair in match.fitting}
    free = {bare: entry.shape for bare, (key, entry) in match.entries.items() if key not in met_keys}

    def gained(change: tuple[str, str]) -> int:
        """How many more tensors would match, less those that match now and would no longer."""
        old, new = change
        renamed = {new + bare.removeprefix(old): shape for bare, shape in free.items() if bare.startswith(old)}
        lost = sum(bare.startswith(old) for bare in match.entries if bare not in free)
        return sum(open_places.get(bare) == shape for bare, shape in renamed.items()) - lost

    start = os.path.commonprefix(list(free))  # noqa: RUF071  (of characters is what is meant)
    component = start[: start.rfind(".") + 1]
    best = max((*_prefix_changes(free, open_places), (component, ""), (start, "")), key=gained)  # the first of equals
    gain = gained(best)
    if 2 * gain > min(len(free), len(open_places)):  # less is chance: another model's names
        total = f"{len(match.fitting) + gain} of {len(places.names)}"
        yield f"did you mean rename={_as_rename(*best)}? Then {total} tensors would match."


def _as_rename(old: str, new: str) -> str:
    """Write a change of prefix as an argument: as a dict if it concerns whole components, else as a pattern."""
    if all(not prefix or prefix.endswith(".") for prefix in (old, new)):
        return f"{{{old!r}: {new!r}}}"
    return f"[({'^' + re.escape(old)!r}, {new!r})]"


def _prefix_changes(free: Iterable[str], open_places: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of prefixes, of the source and of the model, that precede names which end alike; the commonest first."""
    before: dict[str, set[str]] = {}
    for name in open_places:
        for prefix, rest in _cuts(name):
            before.setdefault(rest, set()).add(prefix)
    pairs = Counter(
        (old, new)
        for name in free
        for old, rest in _cuts(name)
        for new in before.get(rest, ())
        if old != new and not _ends_alike(old, new)
    )
    return sorted(pairs, key=lambda pair: (-pairs[pair], len("".join(pair))))[:_MAX_CHANGES]


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    parts = name.split(".")
    for count in range(min(len(parts), _MAX_CUT)):
        yield "".join(f"{part}." for part in parts[:count]), ".".join(parts[count:])


def _ends_alike(old: str, new: str) -> bool:
    """Whether two prefixes end in the same component, so that shorter ones say the same."""
    return bool(old and new) and old.split(".")[-2] == new.split(".")[-2]
