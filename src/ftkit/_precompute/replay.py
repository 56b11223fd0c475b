"""Runs of a model in which what is frozen does not run; and before, the run that notes what passes over."""

from __future__ import annotations

import contextlib
import functools
import operator
import secrets
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

import torch
from torch import nn

from ftkit._freezing.holding import is_held
from ftkit._models.dryrun import turn
from ftkit._precompute.frontier import Cut, Skip, Slot, near
from ftkit._precompute.guard import Guard, parts_of
from ftkit._precompute.heads import HEAD, MAGIC, TAG, are_signed, begins, decided, is_fresh, signed, source_of
from ftkit._precompute.placeholders import Placeholder, allowed, way_of
from ftkit._precompute.record import record, undisturbed
from ftkit._precompute.samples import takes_of
from ftkit._precompute.spotcheck import Check, Plain, SpotChecks
from ftkit._precompute.stands import Stand, install, own_forward
from ftkit._precompute.trace import Decisions, Key, autocast_state, decisions, has_foreign_hooks, is_foreign, objects_in
from ftkit._torch import (
    children_of,
    compiled_from,
    global_hooks,
    hooks_of,
    is_exporting,
    is_transforming,
    no_transforms,
    pre_hooks_of,
    tree_flatten,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
    uncompiled,
    version_of,
)
from ftkit._wording import some
from ftkit.errors import FtkitError

ALIGN: Final = 16
FOR_THE_LOSS: Final = frozenset({"num_items_in_batch"})
"""What transformers' Trainer passes beside the batch; its models pass it on to every layer."""
_MODE: Final = operator.attrgetter("training")
_NOTHING: Final = Slot(None, None)
_IMMUTABLE: Final = (type(None), bool, int, float, str)
_LEAF: Final = (torch.Tensor, *_IMMUTABLE)


@dataclass
class _Run:
    """One forward pass."""

    samples: int
    device: torch.device
    values: dict[int, torch.Tensor]
    rows: torch.Tensor
    kind: tuple[Any, ...]  # its size and device, and the modes of torch and of the modules that run
    wrong: FtkitError | None = None
    straight: tuple[list[Any], dict[str, Any]] | None = None  # what the tail is called with at once
    tail: tuple[Any, ...] | None = None  # what the tail got and gave, on the way through the model
    plain: Plain | None = None
    decisions: Decisions | None = None
    count: Counter[str] = field(default_factory=Counter)
    unfilled: list[Any] = field(default_factory=list)  # objects that skipped calls would have filled


class _Here(threading.local):
    """At what a player is in a thread."""

    run: _Run | None = None
    plain: Plain | None = None
    tell: Callable[[Any], object] | None = None
    is_copy: bool = False  # whether it was a copy of the model that was called


class _Aside(threading.local):
    """The players that leave a thread's calls as they are."""

    players: tuple[Player, ...] = ()


_ACTIVE: list[Player] = []
_ASIDE: Final = _Aside()
_SOURCES: weakref.WeakValueDictionary[int, SpotChecks] = weakref.WeakValueDictionary()


class Player:
    """Runs a model with kept tensors in the place of its frozen part.

    Threads take turns at it, with a turn for each of what comes before, in and after ``forward``: while something is
    computed anew, modules are in other modes. None is held from one hook to the next, where nothing would end it for
    sure.

    Args:
        model: The model.
        cut: Its frontier.
        tag: The bytes at the start of the rows of this cut.
    """

    def __init__(self, model: nn.Module, cut: Cut, tag: bytes) -> None:
        self.model, self.cut, self.tag = model, cut, tag
        self.guard = Guard(model, cut)
        self.offsets: dict[int, int] = {}
        self.row_bytes = HEAD
        for number in cut.per_sample:
            self.offsets[number] = self.row_bytes
            self.row_bytes += -(-cut.layouts[number].nbytes // ALIGN) * ALIGN
        taken = [one.layout for one in tree_leaves(cut.inputs) if isinstance(one, Slot)]
        self._taken = [one for one in taken if one is not None]
        while any(self.row_bytes in one.shape for one in self._taken):  # so that no input has the shape of rows
            self.row_bytes += ALIGN
        self.spots: SpotChecks | None = None
        self.source = secrets.randbits(30)
        """By which its rows are known, among those of other data sets."""
        self._parts = parts_of(model, cut)
        inside = {id(one) for parts in self._parts.values() for one in parts}
        self._left = [one for one in model.modules() if id(one) not in inside]
        self._hooked = self._hooks_before()
        self._tables = [pre_hooks_of(model), hooks_of(model), *global_hooks()]
        self._hooks: list[Any] | None = None  # that were there when it was last seen whether some are of others
        self._watched = False
        self._loose: dict[Key, list[nn.Module]] = {}  # what is not held in eval mode
        self._all_loose: list[nn.Module] = []
        self._passes = -1
        self._fine: dict[Key | None, Any] = {}  # the modes in which a call, or all, was last seen to be right
        self._plain = {key: [_plain(skip.args, skip.fills)] for key, skip in cut.skips.items()}
        self._accepts_calls = False
        self._is_led = any(skip.is_led for skip in cut.skips.values())
        self._autocasts = {skip.autocast for skip in cut.skips.values()}
        self._plans: dict[int, Any] = {}  # the leaves of trees of the cut, by identity, and how they lie in them
        self._stand_ins: dict[Any, Placeholder] = {}
        self._straight_calls: dict[tuple[Any, ...], Any] = {}  # of the tail, by the kinds of runs
        self._here = _Here()
        self.learning = False
        self._undo: list[Callable[[], object]] = []
        self._entered = 0
        self._pending: Check | None = None
        self._last_spots: SpotChecks | None = None

    # ---------------- rows

    def encode(self, values: Mapping[int, torch.Tensor], samples: int) -> torch.Tensor:
        """Make a row for each sample."""
        rows = torch.zeros(samples, self.row_bytes, dtype=torch.uint8)
        rows[:, :TAG] = torch.frombuffer(bytearray(self.tag), dtype=torch.uint8)
        for number, offset in self.offsets.items():
            layout = self.cut.layouts[number]
            part = layout.encode(values[number])
            if part.shape != (samples, layout.nbytes):
                raise FtkitError(
                    f"A sample has another shape than the first: {self.cut.points[number][1][0] or 'an input'} gives "
                    f"{list(values[number].shape)} for {samples} samples. Pad or crop all samples to one size."
                )
            rows[:, offset : offset + layout.nbytes] = part.cpu()
        return signed(rows)

    def computed(self, call: Any, samples: int) -> torch.Tensor:
        """Compute the rows of a batch."""
        taken = decisions()

        def run() -> dict[int, torch.Tensor]:
            with taken if self.cut.decides else contextlib.nullcontext():
                return record(self.model, self.cut, call)[0]

        values = undisturbed(self.model, self.cut, run)
        return decided(self.encode(values, samples), taken.seen)

    def watch(
        self, inputs: Callable[[list[int]], Any] | None, alike: Callable[[torch.Tensor, torch.Tensor], bool]
    ) -> None:
        """Compute samples anew now and then.

        Args:
            inputs: Gives the model's arguments for samples of some numbers; None where :meth:`note` does.
            alike: Tells whether a value that was computed anew is the one that is kept.
        """
        self.spots = SpotChecks(self.model, self.cut, inputs, alike)
        _SOURCES[self.source] = self.spots

    def note(self, plain: Plain) -> None:
        """Note in whose place the rows are with which this thread calls the model next."""
        self._here.plain = plain

    def tell_autocast(self, tell: Callable[[Any], object]) -> None:
        """Tell once what autocast is where the model's own forward begins, at the next call in this thread."""
        self._here.tell = tell

    def _decode(self, rows: torch.Tensor) -> dict[int, torch.Tensor]:
        if self._is_led and rows.is_inference():
            rows = rows.clone()  # as what is made of an inference tensor itself counts one write more
        values = {
            number: self.cut.layouts[number].decode(rows[:, offset : offset + self.cut.layouts[number].nbytes])
            for number, offset in self.offsets.items()
        }
        for number, tensor in self.cut.once.items():
            values[number] = tensor.to(rows.device).clone()
        return values

    def is_row(self, value: Any) -> bool:
        """Whether a value is a batch of rows of this cut."""
        if is_fresh(value, self.source) or _is_empty(value, self.row_bytes):
            return True
        return begins(value, self.tag) and bool(value.shape[1] == self.row_bytes)

    @property
    def entered(self) -> bool:
        """Whether a block is open in which the model takes rows."""
        return self._entered > 0

    @property
    def answers(self) -> bool:
        """Whether rows stand for the inputs of the call that runs in this thread."""
        return self._here.run is not None

    @property
    def is_aside(self) -> bool:
        """Whether it leaves this thread's calls of the model as they are."""
        return self in _ASIDE.players

    def near(self, one: torch.Tensor, other: torch.Tensor) -> bool:
        """Whether two rows differ by no more than kernels for different batch sizes do."""
        ones, others = self._decode(one[None]), self._decode(other[None])
        return all(near(ones[number], others[number]) for number in self.offsets)

    # ---------------- the model

    def __enter__(self) -> None:
        """Let the model take rows."""
        with turn():
            if not self._entered:
                self.guard.check(thoroughly=True)
                self._install()
            self._entered += 1

    def _install(self) -> None:
        before = self.model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        after = self.model.register_forward_hook(self._end, with_kwargs=True, always_call=True)
        named = dict(self.model.named_modules())
        names = {key[0] for key in self.cut.skips} | {key[0] for kind, key, _ in self.cut.points if kind == "arg"}
        names |= {self.cut.tail} if self.cut.tail else set()
        forwards = {id(named[name]): self._through(name) for name in names}
        forwards[id(self.model)] = self._straight
        remove = install(forwards, self.model)
        self._way, self._straight_calls = self._way_to_tail(), {}
        _ACTIVE.append(self)
        self._undo = [remove, before.remove, after.remove, functools.partial(_ACTIVE.remove, self)]

    def __exit__(self, *exception: object) -> None:
        """Take what let the model take rows away, and check the last batch."""
        with turn():
            self._exit(exception)

    def _exit(self, exception: tuple[object, ...]) -> None:
        self._entered -= 1
        fine = exception == (None, None, None)
        try:
            if fine and not self._entered:
                self.guard.finish()
        finally:
            if not self._entered:
                self._leave()
                for step in self._undo:
                    step()
                self._undo = []
            self._pending = self._pending if fine else None
        self._settle()
        spots, self._last_spots = self._last_spots, None
        ends = fine and not self._entered and not self.guard.has_told
        last = spots.last() if ends and spots is not None else None
        if last is not None and (error := last.make()) is not None:
            raise error

    def __deepcopy__(self, _: dict[int, Any]) -> Player:
        return self

    def __reduce__(self) -> Any:
        return _Idle, ()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if is_exporting():
            return None
        return _apart(self._begin_apart, module, args, kwargs)

    def _begin_apart(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.is_aside:
            return None
        self._here.is_copy = module is not self.model
        with self._turn():
            if not self._counts_nothing() and not is_transforming():
                return self._begun(module, args, kwargs)
            with _counting() if self._counts_nothing() else contextlib.nullcontext(), no_transforms():
                return self._begun(module, args, kwargs)

    def _turn(self) -> contextlib.AbstractContextManager[object]:
        """A turn; but for copies of the model, as those of DataParallel run in threads that a model may wait for."""
        return contextlib.nullcontext() if self._here.is_copy else turn()

    def _counts_nothing(self) -> bool:
        """Whether a caller of what is skipped has to be watched, and inference mode leaves nothing to be seen."""
        return self._is_led and torch.is_inference_mode_enabled()

    def _begun(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._leave()  # a forward pass that Ctrl-C, say, has cut short
        given = _leaves([*args, *kwargs.values()])
        leaves = [one for one in given if self.is_row(one)]
        if not leaves:
            rowlike = [one for one in given if begins(one, MAGIC)]
            if rowlike and not any(one.is_row(rowlike[0]) for one in players_of(self.model)):
                raise FtkitError(
                    "The model was called with rows that were computed for another state of it, or of another model. "
                    "Take them from the loader of the with block around."
                )
            if any(map(self._was_row, given)):
                raise FtkitError(
                    "The model was called with rows of kept bytes that something has changed on the way: normalized, "
                    "cast, reshaped, mixed or cut. Pass them to the model as the loader gives them, and do to the "
                    "images what is to be done to images in the transform of the data set."
                )
            return None
        if module is not self.model:
            raise FtkitError("A copy of the model was called with kept rows: only the model itself takes them.")
        if len(leaves) > 1:
            raise FtkitError("The model was called with several batches of kept rows: one is expected.")
        hooks = [*chain.from_iterable(map(dict.values, self._tables))]
        if hooks != self._hooks:
            if self._hooks_before() != self._hooked:
                raise FtkitError(
                    "The model has other hooks before its forward pass than when the frozen part was computed, which "
                    "may change its inputs. Register them before you call precompute()."
                )
            self._hooks, self._watched = hooks, has_foreign_hooks(self.model)
        rows = leaves[0]
        own = is_fresh(rows, self.source)
        if not (own and self.guard.looks_later()) and not are_signed(rows):
            raise FtkitError(
                "Rows of kept bytes were changed on the way to the model, or in their file while it was read. Pass "
                "them as the loader gives them: they are no images that could be mixed, cut or scaled. If you do, "
                "delete the file, and call precompute() again."
            )
        values = self._decode(rows)
        run = _Run(rows.shape[0], rows.device, values, rows, (rows.shape[0], rows.device, *self._modes()))
        if not self.learning:
            self.guard.check()
            self._settle()
            plain, self._here.plain = self._here.plain, None
            run.plain = plain if plain is not None and plain.rows is rows else None
            check = self._due(run, own=own)
            run.wrong = None if check is None else check.make()
        run.straight = self._straight_call(run) if len(given) == 1 and self._goes_straight() else None
        call = (args, kwargs) if run.straight is not None else self._call(args, kwargs, run)
        self._here.run = run
        if self.cut.decides:
            run.decisions = decisions()
            run.decisions.__enter__()
        allowed().__enter__()
        return call

    def _modes(self) -> tuple[Any, ...]:
        """On what the way through the model may depend, beside the batch."""
        forward = id(vars(self.model).get("forward"))
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), forward, *map(_MODE, self._left)

    def _due(self, run: _Run, *, own: bool) -> Check | None:
        """What is to be computed anew of a batch now, where its rows come from.

        Not while a forward pass waits for its backward pass: buffers may be written to, and put back.
        """
        if not run.samples:
            return None
        spots = self.spots if own or run.plain is not None else _SOURCES.get(source_of(run.rows))
        taken = None if run.decisions is None else tuple(run.decisions.seen)
        self._last_spots = spots
        if spots is None:
            return None
        return spots.due(run.rows, self._decode, run.plain, run.kind, taken)

    def _settle(self) -> None:
        """Check the batch before, for which Python has taken decisions."""
        pending, self._pending = self._pending, None
        if pending is not None and (error := pending.make()) is not None:
            raise error

    def _was_row(self, value: Any) -> bool:
        """Whether a tensor that is no batch of rows has the shape of one, and no input has it; or is made of some."""
        if not isinstance(value, torch.Tensor) or begins(value, MAGIC):
            return False
        if value.dim() != 2:
            is_long = value.dim() > 0 and value.shape[-1] == self.row_bytes
            return is_long and begins(value.reshape(-1, self.row_bytes), MAGIC)
        own = any(len(one.shape) == 2 and one.dtype is value.dtype for one in self._taken)
        return value.shape[1] == self.row_bytes or (value.dtype is torch.uint8 and not own)

    def _call(self, args: Any, kwargs: Any, run: _Run) -> Any:
        """What the model would have been called with."""
        traced_args, traced_kwargs = self.cut.inputs
        given, named = self._arranged(args, kwargs)
        for at, traced in enumerate(traced_args):
            if at < len(given):
                if given[at] is run.rows:
                    given[at] = self._filled(traced, run)
            elif _fills(traced):
                given.append(self._filled(traced, run))
            else:
                break
        for name, traced in traced_kwargs.items():
            if _fills(traced) and (name not in named or named[name] is run.rows):
                named[name] = self._filled(traced, run)
        more = {f"number {at}": one for at, one in enumerate(given[len(traced_args) :], start=len(traced_args) + 1)}
        more |= {name: one for name, one in named.items() if name not in traced_kwargs and name not in FOR_THE_LOSS}
        if extra := [name for name, one in more.items() if one is not None]:
            by_name = takes_of(self.model).parameters
            raise FtkitError(
                f"The model was called with kept rows and with an argument that it did not get when they were computed "
                f"({some(extra, 3)}), on which its frozen part may depend. "
                + (
                    "Its forward() does not name it: leave it out of the samples and of the call."
                    if all(name in named and name not in by_name for name in extra)
                    else "Let the samples of the data set be dicts with all that the model is called with, and call "
                    "precompute() again."
                )
            )
        if any(one is run.rows for one in (*given, *named.values())):
            raise FtkitError("The model was called with kept rows where it took no input when they were computed.")
        return tuple(given), named

    def _arranged(self, args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position or by name, as they were when the frontier was looked for."""
        count, by_name = len(self.cut.inputs[0]), self.cut.inputs[1]
        given, named = list(args), dict(kwargs)
        if len(given) > count or not named.keys() <= by_name.keys():
            names = list(takes_of(self.model).parameters)
            while count < len(given) <= len(names) and names[len(given) - 1] in by_name:
                name = names[len(given) - 1]
                named[name] = given.pop()
            while len(given) < min(count, len(names)) and names[len(given)] in named:
                given.append(named.pop(names[len(given)]))
        return given, named

    def _filled(self, tree: Any, run: _Run) -> Any:
        if type(tree) is Slot:
            return self._value(tree, run)
        if type(tree) in (tuple, list):
            return type(tree)([self._filled(one, run) for one in tree])
        if tree is None or tree == {}:
            return tree
        if (plan := self._plans.get(id(tree))) is None:
            plan = self._plans[id(tree)] = tree_flatten(tree)
        return tree_unflatten([self._value(one, run) if type(one) is Slot else one for one in plan[0]], plan[1])

    def _value(self, slot: Slot, run: _Run) -> torch.Tensor:
        if slot.kept is not None:
            return run.values[slot.kept]
        assert slot.layout is not None
        key = id(slot), run.samples, run.device, torch.is_inference_mode_enabled()
        one = self._stand_ins.get(key)
        if one is None or not one.is_untouched:
            with no_transforms():
                one = self._stand_ins[key] = slot.layout.stand_in(run.samples, run.device)
        return one

    def _end(self, *call: Any) -> Any:  # the module, what it took, and what it gave
        if is_exporting():
            return None
        return _apart(self._end_apart, call[-1])

    def _end_apart(self, output: Any) -> Any:
        with self._turn():
            return self._ended(output)

    def _ended(self, output: Any) -> Any:
        run = self._leave()
        if run is None:
            return None
        if any(isinstance(one, Placeholder) for one in _leaves(output)):
            raise FtkitError(
                "The model gives back a value of its frozen part that was not kept. It takes another way through its "
                "forward pass than when its frontier was looked for: call precompute() with it in this state."
            )
        if run.wrong is not None and output is not None:
            raise run.wrong
        if run.decisions is not None and not self.learning:
            check = self._due(run, own=is_fresh(run.rows, self.source))
            self._pending = None if check is None else check.kept()
        self._learn(run, output)
        if run.unfilled:  # what they would hold is not there, so nobody may take them for whole
            return tree_map_only(object, lambda one: None if any(one is it for it in run.unfilled) else one, output)
        return None

    def _leave(self) -> _Run | None:
        """End the forward pass that is running, if there is one."""
        run = self._here.run
        if run is not None:
            self._here.run = None
            allowed().__exit__()
            if run.decisions is not None:
                run.decisions.__exit__(None, None, None)
        return run

    def _hooks_before(self) -> list[int]:
        """The hooks of others that get the inputs of the model before it does."""
        return [id(hook) for hook in pre_hooks_of(self.model).values() if is_foreign(hook)]

    def _way_to_tail(self) -> list[Any]:
        """What is called on the way to the tail, and the tail."""
        one: nn.Module | None = self.model
        way: list[Any] = [one]
        for step in self.cut.tail.split(".") if self.cut.tail else ():
            one = None if one is None else children_of(one).get(step)
            way += [one, type(one), None if one is None else vars(one).get("forward")]
        return way

    def _through(self, name: str) -> Callable[..., Any]:
        replaced: dict[Key, list[tuple[int, int]]] = {key: [] for kind, key, _ in self.cut.points if kind == "arg"}
        for number, (kind, key, at) in enumerate(self.cut.points):
            if kind == "arg":
                replaced[key].append((at, number))

        def forward(original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            run = self._here.run
            if run is None or run.straight is not None:
                self._see_no_rows(run, args, kwargs)
                return original(*args, **kwargs)
            key = name, run.count[name]
            run.count[name] += 1
            if key in replaced:
                args, kwargs = _with(args, kwargs, {at: run.values[number] for at, number in replaced[key]})
            skip = self.cut.skips.get(key)
            if skip is None:
                is_told = name == self.cut.tail and run.count[name] == 1
                is_told = is_told and not any(count for _, count in _written_to([*args, *kwargs.values()]))
                output = original(*args, **kwargs)
                if name == self.cut.tail:
                    run.tail = (args, kwargs, output, _written_to(output)) if is_told else None
                return output
            self._check(key, skip, args, kwargs)
            if skip.is_led:
                told = {name: one for name, one in kwargs.items() if name not in FOR_THE_LOSS}
                self._check_way((key, way_of((args, told), run.values)))
            if skip.fills:
                run.unfilled += objects_in((args, kwargs))
            run.count.update(skip.inside)
            return self._filled(skip.output, run)

        return forward

    def _learn(self, run: _Run, output: Any) -> None:
        """Note what the tail is called with in runs of a kind, if what it gives is what the model gives.

        Other sizes and modes may take another way. In inference mode torch does not count what is written.
        """
        if run.tail is None or run.kind in self._straight_calls or torch.is_inference_mode_enabled():
            return
        args, kwargs, given, written = run.tail
        numbers = {id(one): number for number, one in run.values.items()}
        known = all(id(one) in numbers or type(one) in _IMMUTABLE for one in (*args, *kwargs.values()))
        if known and given is output and written == _written_to(output):
            each = [(numbers.get(id(one)), one) for one in (*args, *kwargs.values())]
            places = [(number, None if number is not None else one) for number, one in each]
            self._straight_calls[run.kind] = places[: len(args)], dict(zip(kwargs, places[len(args) :], strict=True))

    def _straight_call(self, run: _Run) -> tuple[list[Any], dict[str, Any]] | None:
        """What the tail is called with in a run of a kind; None if there was none before."""
        if (call := self._straight_calls.get(run.kind)) is None:
            return None
        args, kwargs = call
        given = [one if number is None else run.values[number] for number, one in args]
        return given, {name: one if number is None else run.values[number] for name, (number, one) in kwargs.items()}

    def _goes_straight(self) -> bool:
        """Whether the tail can be called at once, without the way there, on which nothing happens.

        Raises:
            FtkitError: As :meth:`_check`.
        """
        top = vars(self.model).get("forward")
        if not self.guard.free or not isinstance(top, Stand) or self._watched or own_forward(self.model) is not None:
            return False
        if self._way != self._way_to_tail():  # what trains is another
            return False
        self._check_autocast(self._autocasts)
        self._check_modes(self.cut.skips)
        return True

    def _straight(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self._turn():
            return self._taken_straight(original, args, kwargs)

    def _taken_straight(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        run = self._here.run
        tell, self._here.tell = self._here.tell, None
        if tell is not None:
            tell(autocast_state((args, kwargs)))
        if run is None or run.straight is None or self.cut.tail is None:
            self._see_no_rows(run, args, kwargs)
            with _counting() if self._counts_nothing() else contextlib.nullcontext():
                return original(*args, **kwargs)
        given, named = run.straight
        return self.model.get_submodule(self.cut.tail)(*given, **named)

    def _see_no_rows(self, run: _Run | None, args: Any, kwargs: Any) -> None:
        if run is None and any(begins(one, MAGIC) for one in _leaves([*args, *kwargs.values()])):
            raise FtkitError(
                f"A method of the {type(self.model).__name__}, or a part of it, was called with kept rows: only "
                "model(rows) takes them, not model.forward(rows)."
            )

    def _check(self, key: Key, skip: Skip, args: Any, kwargs: Any) -> None:
        """See that a skipped call is the call that it was.

        A mask may be there in one batch and None in the next, as its values decide.
        """
        plain = _plain((args, kwargs), skip.fills)
        if self._accepts_calls and plain not in self._plain[key]:
            self._plain[key] = [*self._plain[key], plain]
        if plain not in self._plain[key]:
            raise FtkitError(
                f"{key[0]} is called with other arguments than when its results were computed. Call the model in the "
                "same way, or precompute() with it called in this way."
            )
        self._check_autocast([skip.autocast])
        self._check_modes([key])

    @contextlib.contextmanager
    def accepting_calls(self) -> Iterator[None]:
        """Accept skipped calls with the arguments that they have in the block; not if it ends with an error."""
        before, ways, self._accepts_calls = dict(self._plain), set(self.cut.ways), True
        try:
            yield
        except BaseException:
            self._plain, self.cut.ways = before, ways
            raise
        finally:
            self._accepts_calls = False

    def _check_way(self, way: tuple[Key, tuple[Any, ...]]) -> None:
        """See that a caller that remembers something has done what it did when the frozen part was computed."""
        if self.learning or self._accepts_calls:
            self.cut.ways.add(way)
        elif way not in self.cut.ways:
            raise FtkitError(
                f"{way[0][0]} is called with something else than when its results were computed: what calls it keeps "
                "count of something, or remembers it, and does other things by it now. Move that behind the frozen "
                "part, or train without precompute."
            )

    def _check_autocast(self, states: Iterable[Any]) -> None:
        if any(_autocast(kind) != then for state in states for kind, then in state):
            raise FtkitError(
                "Autocast differs from what it was when the frozen part was computed. Call precompute() inside "
                "torch.autocast(...), with the same settings, or on the model that your framework has prepared."
            )

    def _check_modes(self, keys: Collection[Key]) -> None:
        if self._passes != self.guard.passes:
            self._passes, self._fine = self.guard.passes, {}
            self._loose = {one: [part for part in parts if not _is_held(part)] for one, parts in self._parts.items()}
            self._all_loose = [*{id(one): one for one in chain.from_iterable(self._loose.values())}.values()]
        key = next(iter(keys)) if len(keys) == 1 else None
        switches = self.model.training, *map(_MODE, self._all_loose if key is None else self._loose[key])
        if self._fine.get(key) == switches:
            return
        for one in keys:
            # What is held is in eval mode when it runs, whatever it says now.
            parts = [part.training and not _is_held(part) for part in self._parts[one]]
            modes = one, (self.model.training, *parts)
            if self.learning:
                self.cut.modes.add(modes)
            elif modes not in self.cut.modes:
                raise FtkitError(
                    f"{one[0]} is in another mode (train or eval) than when its results were computed. ftkit.freeze() "
                    "holds what it freezes in eval mode."
                )
        if not self.learning:
            self._fine[key] = switches


def players_of(model: nn.Module) -> list[Player]:
    """Those in whose blocks a model is."""
    return [one for one in _ACTIVE if one.model is model]


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Let models be in the block, for this thread, as they are outside of all blocks of players that are open now."""
    before, _ASIDE.players = _ASIDE.players, tuple(_ACTIVE)
    try:
        yield
    finally:
        _ASIDE.players = before


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function past torch.compile, which may have left its caller alone, and would compile what that calls."""
    if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
        return uncompiled(function, *args)
    return function(*args)


def _is_empty(value: Any, row_bytes: int) -> bool:
    """Whether a value is a batch of no rows."""
    return isinstance(value, torch.Tensor) and value.dtype is torch.uint8 and value.shape == (0, row_bytes)


def _autocast(kind: str) -> str | None:
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    """What has torch count writes and show its operators as in training."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _is_held(module: nn.Module) -> bool:
    return is_held(compiled_from(module) or module)


class _Idle:
    """What a player is in a pickled model: also for its own methods, as cloudpickle keeps those."""

    def _begin(self, *_: Any) -> None:
        """Leave a call as it is."""

    def _end(self, *_: Any) -> None:
        """Leave what a call gives as it is."""

    _begin_apart = _end_apart = _begin


def _written_to(output: Any) -> list[tuple[int, int]]:
    """What tells whether something is changed later, and how often each tensor in it was."""
    return [(id(one), version_of(one) if isinstance(one, torch.Tensor) else 0) for one in _leaves(output)]


def _fills(tree: Any) -> bool:
    """Whether rows fill a part of the inputs; what stays in the batch is left to the caller."""
    return any(isinstance(one, Slot) and one != _NOTHING for one in tree_leaves(tree))


def _plain(call: Any, fills: bool) -> list[Any]:
    """What a call takes beside tensors; where there is one now may be None the next time, as may an object to fill."""
    args, kwargs = call
    beside = FOR_THE_LOSS | {"use_cache"} if fills else FOR_THE_LOSS
    given = _leaves([*args, *(one for name, one in kwargs.items() if name not in beside)])
    return [
        _NOTHING if one is None or isinstance(one, (torch.Tensor, Slot))
        else one if isinstance(one, (bool, int, float, str)) else _NOTHING if fills else type(one)
        for one in given
    ]  # fmt: skip


def _leaves(tree: Any) -> list[Any]:
    """All that a tree contains: in one step, if it is flat, as most are."""
    flat = [tree] if isinstance(tree, torch.Tensor) else [*tree.values()] if isinstance(tree, Mapping) else tree
    return flat if isinstance(flat, list) and all(isinstance(one, _LEAF) for one in flat) else tree_leaves(tree)


def _with(args: Any, kwargs: Any, values: Mapping[int, torch.Tensor]) -> Any:
    if not kwargs and all(isinstance(one, torch.Tensor) for one in args):
        return tuple(values.get(at, one) for at, one in enumerate(args)), kwargs
    counter = iter(range(1 << 30))

    def put(tensor: torch.Tensor) -> torch.Tensor:
        return values.get(next(counter), tensor)

    return tree_map_only(torch.Tensor, put, (args, kwargs))
