"""Which name in a source of weights is which name in a model: peeling, renaming, and the likeliest advice."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ftkit._weights.sources import Entry, Table
from ftkit.errors import CheckpointError

__all__ = ["Match", "Places", "Rename", "best_match", "renamer", "suggestions"]

Rename: TypeAlias = Mapping[str, str] | Iterable[tuple[str | re.Pattern[str], str]] | Callable[[str], str | None]
"""How names in a file become names in the model.

- ``{"encoder.": "backbone.", "fc": "head"}``: whole names, or their first components. ``""`` stands for no prefix.
- ``[(r"^block(\\d)", r"blocks.\\1")]``: regular expressions and what replaces their matches, one after the other.
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


class Places:
    """Where a model keeps its values: by name, and under the name without inner wrappers."""

    def __init__(self, model: nn.Module) -> None:
        self.kind: str = type(model).__name__
        state = model.state_dict(keep_vars=True)
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.tensors: dict[str, Tensor] = {
            name: value for name, value in state.items() if isinstance(value, Tensor) and not is_lazy(value)
        }
        self.names: dict[str, str] = {_bare(name): name for name in self.tensors}
        # A model may keep its values elsewhere, not know their shapes yet, or translate old names; then only its own
        # method knows how to load.
        self.elsewhere: bool = any(id(value) not in own or is_lazy(value) for value in state.values())
        self.translates: bool = any(map(_loads_itself, model.modules()))

    def shape(self, bare: str) -> tuple[int, ...] | None:
        """The shape of what is kept under a name, if anything is."""
        name = self.names.get(bare)
        return None if name is None else tuple(self.tensors[name].shape)


def _loads_itself(module: nn.Module) -> bool:
    kind = type(module)
    loader = kind._load_from_state_dict
    plain = loader is nn.Module._load_from_state_dict or loader.__module__ == "torch.nn.modules.batchnorm"
    return not plain or bool(module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks)


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS)


@dataclass
class Match:
    """A table of a source, under names of the model, as far as they meet."""

    table: Table
    peeled: tuple[str, ...]
    entries: dict[str, tuple[str, Entry]]  # by bare name: the name in the source, and the tensor
    fitting: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def score(self, *, ema: bool) -> tuple[object, ...]:
        """How well it fits, to compare with others."""
        averaged = bool(_EMA.search(".".join((*self.table.path, *self.peeled))))
        known = len(self.fitting) + len(self.mismatched)
        return (
            len(self.fitting),
            len(self.mismatched),
            averaged == ema,
            known - len(self.entries),
            -len(self.table.path),
        )

    def missing(self, places: Places) -> list[str]:
        """The model's names that nothing in the table fills."""
        filled = {id(places.tensors[places.names[bare]]) for bare in self.fitting}
        differing = {places.names[bare] for bare in self.mismatched}
        # A tied tensor is filled under any of its names.
        missing = [
            name for name, tensor in places.tensors.items() if id(tensor) not in filled and name not in differing
        ]
        if not any(bare.endswith("num_batches_tracked") for bare in self.entries):
            # Files from before torch 0.4.1 lack these counters, and nothing reads them while momentum is set.
            missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        return missing

    def steps(self) -> list[str]:
        """What was peeled to get there, in words."""
        parts = {part for key, _ in self.entries.values() for part in key.split(".")}
        dropped = sorted(parts & _INNER_WRAPPERS)
        took = [f"took {'.'.join(self.table.path)!r}"] if self.table.path else []
        return took + [f"stripped {part + '.'!r}" for part in (*dropped, *self.peeled)]


def best_match(tables: Sequence[Table], places: Places, rename: Callable[[str], str | None], *, ema: bool) -> Match:
    """Of all tables and all ways to peel them, the one that meets most of the model."""
    found: list[Match] = []
    for table in tables:
        renamed = {key: new for key in table.entries if (new := rename(key)) is not None}
        level: list[tuple[str, ...]] = [()]
        while level:  # breadth first, so that of equals the least peeled comes first
            matches = [_match(table, renamed, peeled, places) for peeled in level]
            found += matches
            level = [
                (*match.peeled, wrapper)
                for match in matches
                if len(match.peeled) < 4
                for wrapper in _WRAPPERS
                if any(bare.startswith(f"{wrapper}.") for bare in match.entries)
            ]
    return max(found, key=lambda match: match.score(ema=ema))  # the first of equals


def _match(table: Table, renamed: Mapping[str, str], peeled: tuple[str, ...], places: Places) -> Match:
    match = Match(table, peeled, {})
    for key, new in renamed.items():
        bare = _bare(new)
        for wrapper in peeled:
            bare = bare.removeprefix(f"{wrapper}.")
        if "module" in peeled and bare == "n_averaged":  # the counter of torch's AveragedModel
            continue
        while bare in match.entries:  # two names that became one: the second is left over, under its full name
            bare = key if bare != key else f"{bare} (again)"
        match.entries[bare] = (key, table.entries[key])
    for bare, (_, entry) in match.entries.items():
        shape = places.shape(bare)
        if shape is not None:
            (match.fitting if shape == entry.shape else match.mismatched).append(bare)
    return match


def renamer(rename: Rename | None) -> Callable[[str], str | None]:
    """Turn any way to say a renaming into a function of one name."""
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
    try:
        pairs = [(re.compile(pattern), replacement) for pattern, replacement in rename]
    except (TypeError, ValueError, re.error) as error:
        raise CheckpointError(
            f"rename={rename!r} is no dict of prefixes, no function of a name, and no pairs of a regular expression "
            f"and its replacement: {error}."
        ) from error

    def by_pattern(name: str) -> str:
        for pattern, replacement in pairs:
            name = pattern.sub(replacement, name)
        return name

    return by_pattern


def suggestions(match: Match, places: Places) -> Iterator[str]:
    """The change of one prefix under which most names would meet, if there is one."""
    free = {bare: entry.shape for bare, (_, entry) in match.entries.items() if bare not in match.fitting}
    open_places = {bare for bare in places.names if bare not in match.fitting}

    def count(old: str, new: str) -> int:
        names = {new + bare.removeprefix(old): shape for bare, shape in free.items() if bare.startswith(old)}
        return sum(name in open_places and places.shape(name) == shape for name, shape in names.items())

    start = os.path.commonprefix(list(free))  # noqa: RUF071  (of characters is what is meant)
    changes = [*_prefix_changes(free, open_places), (start[: start.rfind(".") + 1], ""), (start, "")]
    old, new = max(changes, key=lambda change: count(*change))  # the first of equals
    if found := count(old, new):
        whole = all(not part or part.endswith(".") for part in (old, new))
        advice = f"{{{old!r}: {new!r}}}" if whole else f"[({'^' + re.escape(old)!r}, {new!r})]"
        total = f"{len(match.fitting) + found} of {len(places.names)}"
        yield f"did you mean rename={advice}? Then {total} tensors would match."


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
