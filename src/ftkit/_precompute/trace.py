"""A run of a model, watched below autograd: what each value comes from, and what each module call does."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ftkit._cost.flops import flops
from ftkit._models.contents import bytes_of
from ftkit._models.dryrun import alone, tensors_in
from ftkit._models.undo import Undo
from ftkit._precompute.mixing import Mixing, NotAlone, Owners
from ftkit._precompute.stands import instead, others_wait
from ftkit._precompute.surroundings import PYTHON_GENERATORS, Surroundings, state_of
from ftkit._torch import (
    NoDynamo,
    TorchDispatchMode,
    below_dispatch,
    buffers_of,
    children_of,
    eagerly,
    global_hooks,
    hooks_of,
    parameters_of,
    pre_hooks_of,
    storage_id,
    tree_leaves,
    tree_map_only,
    written_by,
)

Key = tuple[str, int]
"""A call of a module: its name, and how many calls of it came before in the same run."""

TRAINS = "it depends on what trains"
DRAWS = "it draws random numbers"
DRAWN = "it depends on random numbers that"
GRADIENTS = "gradients of what it gives are taken"
CONSTANT = "it does not depend on the sample"
_TRUSTED = frozenset({"torch", "ftkit"})
PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass
class Node:
    """A value: what a storage holds from one write to the next.

    Attributes:
        hot: Why it is no constant for a sample, if it is none: it depends on what trains, on random numbers or on what
            the run itself writes.
        varies: Whether it depends on the inputs.
        parents: The values that it was computed from.
        within: The calls that were open when it came to be.
        point: What it is, if a replay can put another tensor in its place: an input, an argument or an output.
        tensor: The tensor at that point.
    """

    hot: str
    varies: bool
    parents: tuple[int, ...] = ()
    within: tuple[int, ...] = ()
    point: tuple[str, Key, int] | None = None
    tensor: torch.Tensor | None = None


@dataclass
class Call:
    """One call of a module.

    Attributes:
        key: Which call it is.
        module: What was called.
        within: The calls around it, from the outermost on.
        why_not: Why its results can't stand for it, if they can't.
        args: Its positional and keyword arguments, as they were then: callers add to lists that they pass.
        output: What it gave back, as it was then: callers change what they get.
        returned: The same, as the object that was given back.
        leaves: What that contained, by identity.
        inputs: The values of its tensor arguments.
        outputs: The values at its output.
        writes: Whether it wrote to memory that was there before it.
        fills: Whether it changed an object that it was called with, as layers fill a cache for the next token.
        autocast: What autocast was.
        grad: Whether gradients were recorded.
        flops: What its operators cost.
    """

    key: Key
    module: nn.Module
    within: tuple[int, ...]
    why_not: str = ""
    args: tuple[Any, Any] = ((), {})
    output: Any = None
    returned: Any = None
    leaves: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    writes: bool = False
    fills: bool = False
    autocast: tuple[Any, ...] = ()
    grad: bool = True
    flops: int = 0


@dataclass
class Hints:
    """What earlier runs have found out.

    Attributes:
        blocked: Modules whose results depend on the other samples, and why.
        hot: Calls whose arguments do already, and why.
        apart: Calls whose arguments a replay can replace.
        spoils: Calls that write to an argument which someone else reads afterwards.
        moved: Parameters and buffers that a run leaves with other values.
        moody: Modules whose own operators may give something else the next time, and why: they draw Python's random
            numbers, or remember something.
        changing: What they change, by its place.
        gradients: Whether the forward pass takes gradients itself, which have to pass through calls.
    """

    blocked: dict[str, str] = field(default_factory=dict)
    hot: dict[Key, str] = field(default_factory=dict)
    apart: set[Key] = field(default_factory=set)
    spoils: set[Key] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    moody: dict[str, str] = field(default_factory=dict)
    changing: set[str] = field(default_factory=set)
    gradients: bool = False

    @property
    def found(self) -> Any:
        """All but ``apart``, to compare with later."""
        return dict(self.blocked), dict(self.hot), set(self.spoils), set(self.moved), dict(self.moody), self.gradients


class Trace(NoDynamo, TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Watches one run of a model.

    Attributes:
        nodes: Every value.
        calls: Every call of a module, in the order in which they began.
        sinks: The values that are needed for real: by what trains, by the caller, by Python; and in which calls.
        writes: Where an operator of the frozen part writes: what was there, all that it reads, and in which calls.
        read: Names of parameters and buffers that values of the frozen part were computed from.
        written: Tensors that the run wrote to, by identity, and what they held before.
        moody: Modules that drew Python's random numbers or remembered something.
        elsewhere: Modules that ran in other threads.
        stateful: The calls in whose own code that happened.
        output: What the model gave back.
        owners: Which sample each element of a value comes from.
        decides: Whether Python has read a truth value of the batch.
        ends_gradients: Whether a copy without history has come in the place of a tensor with gradients.
        overwrites: The inputs to which the run wrote, by their number, and in which module.
        hints: What earlier runs have found out, and this one.
    """

    def __init__(self, model: nn.Module, hints: Hints, samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.sinks: list[tuple[int, tuple[int, ...]]] = []
        self.writes: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = []
        self.read: set[str] = set()
        self.written: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.moody: dict[str, str] = {}
        self.elsewhere: set[str] = set()
        self.stateful: set[int] = set()
        self.output: Any = None
        self.owners = Owners(samples)
        self.decides = False
        self.ends_gradients = False
        self.overwrites: dict[int, str] = {}
        self.hints = hints
        self._open: list[int] = []
        self._leaked = ""  # why what comes now may be no constant, though no operator shows it
        self._at: dict[int, int] = {}  # the value that a storage holds
        self._born: dict[int, tuple[int, ...]] = {}  # the calls in which a storage came to be
        self._replaced: dict[int, tuple[int, int]] = {}  # for copies of arguments: the call, and whose copies they are
        self._stale: dict[int, int] = {}  # what a call would have written to, had it not got a copy
        self._behind: dict[int, int] = {}  # copies in disguise, and what they are copies of
        self._inputs: dict[int, int] = {}  # the number of the input that a storage holds
        self._original: dict[int, int] = {}  # for copies: the storage that would be written to in their place
        self._noted: dict[int, list[torch.Tensor]] = {}  # by the storage that they share until it is written to
        self._alive: list[Any] = []  # so that no identity is taken again
        self._count: Counter[str] = Counter()
        self._names = {id(tensor): name for name, tensor in named_state(model).items()}
        self._strays = {id(tensor): where for where, one in _strays(model) for tensor in named_state(one).values()}
        self._surroundings = {name: Surroundings(module, name) for name, module in model.named_modules()}
        held = chain.from_iterable(vars(module).values() for module in model.modules())
        read = chain.from_iterable(one.generators for one in self._surroundings.values())
        self._generators = [*{id(one): one for one in chain(held, read) if isinstance(one, PYTHON_GENERATORS)}.values()]
        self._drawn = self._draws_so_far()
        self._own: dict[int, torch.Tensor] = {}
        for tensor in named_state(model).values():
            self._own.setdefault(_memory(tensor), tensor)
            node = self._new(hot=self._why_hot(tensor), varies=False)
            if not (_memory(tensor) in self._at and self.nodes[self._at[_memory(tensor)]].hot):
                self._at[_memory(tensor)] = node
            self._alive.append(tensor)

    # ---------------- values

    def _why_hot(self, tensor: torch.Tensor) -> str:
        if self._names.get(id(tensor)) in self.hints.moved:
            return f"it updates {self._names[id(tensor)]}"
        if id(tensor) in self._strays:
            return f"it runs a module in {self._strays[id(tensor)]} that is not registered: keep it in an nn.ModuleList"
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._names:
            return "it uses a parameter that is not registered in the model"
        return TRAINS if tensor.requires_grad else ""

    def _new(self, *, hot: str, varies: bool, parents: tuple[int, ...] = ()) -> int:
        self.nodes.append(Node(hot, varies, parents, tuple(self._open)))
        return len(self.nodes) - 1

    def node(self, tensor: torch.Tensor) -> int:
        """The value of a tensor now; of one that came from nowhere, a constant."""
        place = _memory(tensor)
        if place in self._stale:
            self.hints.spoils.add(self.calls[self._stale[place]].key)
        if place not in self._at:
            self._alive.append(tensor)
            self._at[place] = self._new(hot=self._why_hot(tensor), varies=False)
        return self._at[place]

    def point(self, tensor: torch.Tensor, what: tuple[str, Key, int], *, hot: str = "") -> torch.Tensor:
        """Put a copy in a tensor's place, as a replay will do."""
        parent = self.node(tensor)
        if self.nodes[parent].hot:
            return tensor
        if tensor.requires_grad and what[0] != "input":
            if self.hints.gradients:
                return tensor
            self.ends_gradients = True
        with below_dispatch():
            apart = tensor.detach().clone()
        self._alive.append(apart)
        with below_dispatch():
            if what[0] == "input":
                self.owners.give(apart)
            else:
                self.owners.copy(apart, tensor)
        node = self._at[_memory(apart)] = self._new(
            hot=hot, varies=self.nodes[parent].varies or what[0] == "input", parents=(parent,)
        )
        if hot:
            self.sinks.append((parent, tuple(self._open)))
        self._born[_memory(apart)] = tuple(self._open)
        if what[0] == "input":
            self._inputs[_memory(apart)] = what[2]
        else:
            self._original[_memory(apart)] = _memory(tensor)
        if what[0] == "arg":
            self._replaced[_memory(apart)] = self._open[-1], _memory(tensor)
        self.nodes[node].point, self.nodes[node].tensor = what, self._as_now(apart)
        return apart

    def _disguised(self, tensor: torch.Tensor, why: str) -> torch.Tensor:
        """A copy that is no constant, and needs what it is a copy of if it is used itself."""
        parent = self.node(tensor)
        with below_dispatch():
            copy = tensor.clone()
        self._alive.append(copy)
        self._original[_memory(copy)] = _memory(tensor)
        origin = self.nodes[parent]
        value = self._at[_memory(copy)] = self._new(hot=origin.hot or why, varies=origin.varies, parents=(parent,))
        self._behind[value] = parent
        return copy

    def _as_now(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor that holds what this one does now, whatever is written to it later."""
        with below_dispatch():
            noted = tensor.detach()
        self._noted.setdefault(_memory(tensor), []).append(noted)
        return noted

    # ---------------- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note what it reads, writes and gives."""
        self._see_draws()
        kwargs = kwargs or {}
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        written = {_memory(one): one for one in written_by(func, args, kwargs)}
        for place in written.keys() & self._own.keys():
            tensor = self._own[place]
            self.written.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        parents = tuple(dict.fromkeys(map(self.node, given)))
        draws = torch.Tag.nondeterministic_seeded in func.tags
        own = draws and any(isinstance(one, torch.Generator) for one in (*args, *kwargs.values()))
        before = _generators() if draws else None
        with below_dispatch():
            held = self.owners.before(func, written.values())
            for noted in (one for place in written for one in self._noted.pop(place, ())):
                noted.data = noted.clone()
        output = func(*args, **kwargs)
        cost = flops(func, args, kwargs, output)
        for call in self._open:
            self.calls[call].flops += cost
        draws = own or (draws and before != _generators())
        changed = [place for place in written if place not in self._born]
        foreign = f"it updates {self._said(changed[0])}" if changed else ""
        hot = next((why for one in parents if (why := self.nodes[one].hot)), "")
        hot = f"{DRAWN} {self._called(self._open)} draws" if draws else hot or foreign or self._leaked
        if not hot and self._open:
            hot = self._mood(self.calls[self._open[-1]].key[0])
        varies = any(self.nodes[one].varies for one in parents)
        needs_values = _needs_values(func, args)
        mixes = "" if hot or not varies or needs_values else self._mixes(func, args, kwargs, output, held)
        hot = hot or mixes
        if hot:
            self._refuse(DRAWS if draws else hot)
        if needs_values:
            self.show_python(given)
        elif hot:
            self._need(parents)
        else:
            self.read.update(self._names[id(one)] for one in given if id(one) in self._names)
            if written:
                self.writes.append((tuple(self._at[place] for place in written), parents, tuple(self._open)))
        for one in given:
            for call in self._born.get(_memory(one), ()):
                if call not in self._open:
                    self.calls[call].why_not = self.calls[call].why_not or "a value from inside it is used outside"
        for place in written:
            self.see_write(place)
            if place in self._replaced:
                call, original = self._replaced[place]
                self._stale[original] = call
            for call in self._open:
                if call not in self._born.get(place, ()):
                    self.calls[call].why_not = self.calls[call].why_not or "it writes to its input"
                    self.calls[call].writes = True
        made = None
        for tensor in tensors_in(output):
            place = _memory(tensor)
            self._alive.append(tensor)
            if place in written or place not in self._at or mixes:
                if made is None:
                    made = self._new(hot=hot, varies=varies, parents=parents)
                self._at[place] = made
                self._born.setdefault(place, tuple(self._open)) if place not in written else None
        for place in written:  # an operator that writes need not give back what it wrote to
            if made is None:
                made = self._new(hot=hot, varies=varies, parents=parents)
            self._at[place] = made
        return output

    def _mixes(self, func: Any, args: Any, kwargs: Any, output: Any, held: dict[int, torch.Tensor]) -> str:
        """Why the samples of a batch are not known to stay apart in an operator, if they are not."""
        try:
            with below_dispatch():
                self.owners.follow(func, args, kwargs, output, held)
        except Mixing as mixing:
            return NotAlone(mixing)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):  # it can't be tried
            return NotAlone(f"{func} is not known to keep samples apart")
        return ""

    def _need(self, values: Iterable[int]) -> None:
        for value in values:
            if value in self._behind:
                self._need([self._behind[value]])
            elif not self.nodes[value].hot:
                self.sinks.append((value, tuple(self._open)))

    def show_python(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that Python sees values: those of the frozen part have to be there, and those that train may go on."""
        tensors = list(tensors)
        values = list(map(self.node, tensors))
        self._need(values)
        for tensor, value in zip(tensors, map(self.nodes.__getitem__, values), strict=True):
            if decides(tensor) and value.varies and (not value.hot or isinstance(value.hot, NotAlone)):
                self.decides = True  # a replay decides by the same value, and sees whether it has decided so before
                self._refuse("Python decides by values of the batch inside it")
            elif isinstance(value.hot, NotAlone) or (value.varies and not value.hot):
                self._leaked = self._leaked or "it may depend on the batch, of which Python has read a value before"
            elif value.hot.startswith(DRAWN):
                self._leaked = value.hot.replace("depends", "may depend")
            elif value.hot:
                self._leaked = "it may depend on what trains, of which Python has read a value before"
        if self._leaked:
            self._refuse(self._leaked)

    def see_write(self, place: int) -> None:
        """Note a write to a storage that holds an input, or a copy of one."""
        while place in self._original:
            place = self._original[place]
        if place in self._inputs:
            self.overwrites.setdefault(self._inputs[place], self._called(self._open))

    def see_assignment(self, tensor: torch.Tensor) -> None:
        """Note that a tensor gets other memory."""
        self.see_write(_memory(tensor))
        if id(tensor) in self._names:
            with below_dispatch():
                self.written.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    def _said(self, place: int) -> str:
        """The name of what lies in a storage."""
        own = self._own.get(place)
        return "a tensor that was there before" if own is None else self._names[id(own)]

    def _called(self, within: Iterable[int]) -> str:
        """The name of the innermost of some calls."""
        return next((name for one in reversed([*within]) if (name := self.calls[one].key[0])), "the model")

    def _refuse(self, why: str) -> None:
        for call in self._open:
            self.calls[call].why_not = self.calls[call].why_not or why

    # ---------------- modules

    def call(self, name: str, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module, and note what it did."""
        self._see_draws()
        key = name, self._count[name]
        self._count[name] += 1
        index, call = len(self.calls), Call(key, module, tuple(self._open))
        self.calls.append(call)
        if name in self.hints.blocked:
            call.why_not = self.hints.blocked[name]
        elif not any(map(own_tensors, module.modules())):
            call.why_not = "it has no parameters or buffers"
        elif any(map(has_foreign_hooks, module.modules())):
            call.why_not = "it has hooks, which have to run"
        call.autocast, call.grad = autocast_state(args, kwargs), torch.is_grad_enabled()
        self._open.append(index)
        # After a decision of Python's, another run may come by other calls, or with other arguments.
        if name and ((key in self.hints.apart and not self._leaked) or key in self.hints.hot):
            number = iter(range(sys.maxsize))
            args, kwargs = tree_map_only(
                torch.Tensor,
                lambda one: self.point(one, ("arg", key, next(number)), hot=self.hints.hot.get(key, "")),
                (args, kwargs),
            )
        call.args = tree_map_only(torch.Tensor, self._as_now, (args, kwargs))
        call.inputs = [self.node(one) for one in tensors_in((args, kwargs))]
        around = self._surroundings[name]
        before, state, there = _python_generators(), _own_state(module), around.now()
        had = dict(buffers_of(module))
        given = [*map(id, tree_leaves((args, kwargs)))]
        objects = objects_in((args, kwargs))
        inside = [*map(_insides, objects)]
        output = forward(*args, **kwargs)
        if self.hints.moody.get(name) == DRAWS:  # another time it may be something else than what a part of it gave
            why = f"{DRAWN} {name or 'the model'} draws"
            output = tree_map_only(torch.Tensor, functools.partial(self._disguised, why=why), output)
        self._see_draws()
        self._open.pop()
        if before != _python_generators() or around.draws:
            self._moody(index, DRAWS)
        now, attributes = around.now(), _own_state(module)
        if state != attributes or there != now:
            new = [getattr(module, one) for one in attributes if attributes[one] != state.get(one)]
            new += [one for one in around.contents() if id(one) not in there[0]]
            grew = state.keys() <= attributes.keys() and there[0] == [one for one in now[0] if one in there[0]]
            # transformers notes once in the configuration which kind of labels there are.
            pairs = zip(there[2], now[2], strict=True)
            named = all(one == other or (one is None and type(other) is str) for one, other in pairs)
            buffers = ((one, had.get(key)) for key, one in buffers_of(module).items() if one is not None)
            swapped = [(one, then) for one, then in buffers if one is not then]
            with below_dispatch():
                same = all(then is None or same_bits(one, then) for one, then in swapped)
            if grew and named and same and there[3:] == now[3:] and all(map(self._is_constant, new)):
                with below_dispatch():
                    after = Surroundings(module, name).values
                was = around.values
                differ = {one for one in after if after[one] != was.get(one)}
                self.hints.changing |= {one for one in differ if one not in was or was[one] is not None}
            elif state != attributes:
                self._moody(index, "it keeps what it computed in an attribute")
                self._need(self.node(one) for one, _ in swapped)  # by whoever saves the model
            else:
                draws_alone = [*there[:3], *there[4:]] == [*now[:3], *now[4:]]
                self._moody(index, DRAWS if draws_alone else "it keeps what it computed")
        if given != [*map(id, tree_leaves((args, kwargs)))]:
            call.why_not = call.why_not or "it changes what it was called with"
        call.fills = inside != [*map(_insides, objects)]
        call.why_not = call.why_not or self._leaked
        leaves = tree_leaves(output)
        tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
        if not all(isinstance(one, (torch.Tensor, *PLAIN)) for one in leaves):
            call.why_not = call.why_not or "it gives back something other than tensors"
        call.why_not = call.why_not or next((why for one in tensors if (why := self.nodes[self.node(one)].hot)), "")
        if self.hints.gradients and any(one.requires_grad for one in tensors):
            call.why_not = call.why_not or GRADIENTS
        if not any(self.nodes[self.node(one)].varies for one in tensors):
            call.why_not = call.why_not or CONSTANT
        if not call.why_not and name:
            number = iter(range(sys.maxsize))
            output = tree_map_only(torch.Tensor, lambda one: self.point(one, ("out", key, next(number))), output)
        call.output, call.returned = tree_map_only(torch.Tensor, self._as_now, output), output
        call.leaves = [*map(id, tree_leaves(output))]
        call.outputs = [self.node(one) for one in tensors_in(output)]
        if not name:
            self._need(call.outputs)
        return output

    def call_elsewhere(self, name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module in another thread than the model, where no operator is seen; it may be someone else's."""
        if given := [self._at[place] for place in map(_memory, tensors_in((args, kwargs))) if place in self._at]:
            self.elsewhere.add(name)
            self._leaked = self._leaked or f"it may depend on what {name} does in another thread"
            self._refuse(self._leaked)
            self._need(given)
        return forward(*args, **kwargs)

    def _is_constant(self, value: Any) -> bool:
        """Whether a value is a tensor that was computed from nothing but what is frozen."""
        if not isinstance(value, torch.Tensor) or (number := self._at.get(_memory(value))) is None:
            return False
        return not (self.nodes[number].hot or self.nodes[number].varies)

    def _see_draws(self) -> None:
        """Note that Python has drawn random numbers, on which it may decide what comes now."""
        now = self._draws_so_far()
        if now != self._drawn:
            self._drawn = now
            drew = self._called(self._open)
            self._leaked = self._leaked or f"it may depend on random numbers that Python has drawn in {drew}"
            self._refuse(self._leaked)

    def _draws_so_far(self) -> Any:
        return _python_generators(), [*map(state_of, self._generators)]

    def _moody(self, index: int, why: str) -> None:
        self.stateful.add(index)
        for each in (index, *self.calls[index].within):
            self.calls[each].why_not = self.calls[each].why_not or why
        name = self.calls[index].key[0]
        if not any(other.startswith(f"{name}." if name else "") for other in self.moody if other != name):  # innermost
            self.moody[name] = why if self.moody.get(name, DRAWS) == DRAWS else self.moody[name]

    def _mood(self, name: str) -> str:
        """Why a module's own operators may give something else the next time.

        What comes before a draw does not depend on it, and what comes after has leaked, if it is seen when it happens.
        """
        why, around = self.hints.moody.get(name, ""), self._surroundings[name]
        unseen = around.draws or any(isinstance(one, torch.Generator) for one in around.generators)
        return "" if why == DRAWS and not unseen else why

    def _note_changes(self, model: nn.Module) -> None:
        for name, module in model.named_modules():
            before, after = self._surroundings[name].values, Surroundings(module, name).values
            self.hints.changing |= {one for one in {**before, **after} if before.get(one) != after.get(one)}

    def run(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Run the model, and put back what it wrote to."""
        calls = {id(one): functools.partial(self.call, name, one) for name, one in model.named_modules()}
        elsewhere = {id(one): functools.partial(self.call_elsewhere, name) for name, one in model.named_modules()}
        with instead(calls, model, elsewhere):
            number = iter(range(sys.maxsize))
            args, kwargs = tree_map_only(
                torch.Tensor, lambda one: self.point(one, ("input", ("", 0), next(number))), (args, kwargs)
            )
            before = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
            hooked = {name: one for name, one in model.named_modules() if pre_hooks_of(one)}
            attributes = {name: _own_state(one) for name, one in hooked.items() if not has_foreign_hooks(one)}
            try:
                with self, _Reading(self):
                    self.output = model(*args, **kwargs)
            finally:
                if self.moody:
                    self._note_changes(model)
                for name, then in attributes.items():  # torch's hooks compute the weights of weight_norm each time
                    now = _own_state(hooked[name])
                    self.hints.changing |= {f"{name}.{key}" for key in now if now[key] != then.get(key)}
                before |= {self._names[id(tensor)]: (tensor, then) for tensor, then in self.written.values()}
                moved = {name: pair for name, pair in before.items() if not same_bits(*pair)}
                put_back(moved.values())
                self.hints.moved |= moved.keys()


class _Reading(TorchFunctionMode):
    """Sees where Python reads the values of a tensor without an operator."""

    _READ = frozenset({"numpy", "tolist", "__array__", "__dlpack__", "__reduce_ex__", "__repr__", "__format__"})

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self._READ:
            self._trace.show_python([one for one in args if isinstance(one, torch.Tensor)])
        elif name == "__set__" and func.__self__ is torch.Tensor.data:
            self._trace.see_assignment(args[0])
        return func(*args, **(kwargs or {}))


def objects_in(tree: Any) -> list[Any]:
    """What is neither a tensor nor a plain value."""
    return [one for one in tree_leaves(tree) if not isinstance(one, (torch.Tensor, *PLAIN))]


def _insides(value: Any, depth: int = 4) -> Any:
    """What an object leads to, by identity."""
    if isinstance(value, dict):
        parts: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = () if isinstance(value, torch.Tensor | nn.Module) else getattr(value, "__dict__", {}).values()
    return id(value), *(_insides(one, depth - 1) for one in [*parts] if depth)


def _strays(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are not registered, as those in plain lists, and where they are."""
    known = {id(one) for one in model.modules()}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # one that was traced keeps another that does its work
            continue
        for key, value in vars(module).items():
            for one in _within(value):
                if isinstance(one, nn.Module) and id(one) not in known:
                    yield f"{name}.{key}".removeprefix("."), one


def _within(value: Any) -> Iterator[Any]:
    """What is in containers, and in those in them; which may hold themselves."""
    todo, seen = [value], set[int]()
    while todo:
        one = todo.pop()
        if not isinstance(one, list | tuple | dict):
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            todo += one.values() if isinstance(one, dict) else one


def decides(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a single truth value."""
    return tensor.dtype is torch.bool and tensor.numel() == 1


def _needs_values(func: Any, args: Any) -> bool:
    """Whether Python, or the shape of a result, depends on the values of tensors."""
    if func is torch.ops.aten.index.Tensor:  # it is said of all, and true of masks
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return func is torch.ops.aten._local_scalar_dense.default or bool(
        {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
    )


class Decisions(NoDynamo, TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Notes the truth values that Python reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[bool] = []

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default and decides(args[0]):
            self.seen.append(output)
        return output


class _Uncompiled(Decisions):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """The same where torch.compile is at work, which would compile what it does anew for each kind of operator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator."""
        return super().__torch_dispatch__(func, types, args, kwargs)


def decisions() -> Decisions:
    """What notes the truth values that Python reads."""
    return (_Uncompiled if "torch._dynamo" in sys.modules else Decisions)()


def own_tensors(module: nn.Module) -> bool:
    """Whether a module itself has parameters or buffers: what has none is cheap, and may run on either side."""
    return any(one is not None for table in (parameters_of(module), buffers_of(module)) for one in table.values())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same to the last bit."""
    return one.shape == other.shape and one.dtype == other.dtype and bytes_of(one) == bytes_of(other)


def put_back(written: Any) -> None:
    """Give tensors the values again that they had."""
    with torch.no_grad():
        for tensor, before in written:
            if tensor.shape != before.shape:  # as that of observers of quantization, which find it out themselves
                tensor.resize_(before.shape)
            tensor.copy_(before)


def named_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@contextlib.contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Run a model in the block; restore modes, attributes, what these lead to, and random numbers afterwards."""
    with alone(), eagerly(), others_wait(model), contextlib.ExitStack() as after:
        undo = Undo()
        after.callback(undo.take_back)
        for module in model.modules():
            undo.remember(module)
            for restore in Surroundings(module).to_restore():
                undo.callback(restore)
        undo.callback(torch.set_rng_state, torch.get_rng_state())
        undo.callback(random.setstate, random.getstate())
        if numpy_random := sys.modules.get("numpy.random"):
            undo.callback(numpy_random.set_state, numpy_random.get_state())
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            undo.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        with torch.inference_mode(False), torch.enable_grad():
            yield


def autocast_state(*given: Any) -> tuple[Any, ...]:
    """What autocast does where some tensors are."""
    kinds = {one.device.type for one in tensors_in(given)} or {"cpu"}
    return tuple(
        (kind, str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None)
        for kind in sorted(kinds - {"meta"})
    )


def has_foreign_hooks(module: nn.Module) -> bool:
    """Whether someone else than torch or ftkit watches or changes what a module does.

    transformers notes with hooks on its own modules what its models are asked to give beside their results.
    """
    trusted = _TRUSTED | ({"transformers"} & {type(module).__module__.partition(".")[0]})
    hooks = pre_hooks_of(module), hooks_of(module), *global_hooks()
    return any(_home(hook) not in trusted for hook in chain.from_iterable(map(dict.values, hooks)))


def is_foreign(hook: Any) -> bool:
    """Whether a hook is neither torch's nor ftkit's."""
    return _home(hook) not in _TRUSTED


def _home(hook: Any) -> str:
    """The package that a hook comes from."""
    inner = getattr(hook, "func", hook)
    place = getattr(inner, "__module__", None) or type(inner).__module__
    return str(place).partition(".")[0]


def _memory(tensor: torch.Tensor) -> int:
    try:
        return storage_id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return -id(tensor)


def _generators() -> list[bytes]:
    states = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [one.numpy().tobytes() for one in torch.cuda.get_rng_state_all()]
    return states


def _python_generators() -> Any:
    numpy_random = sys.modules.get("numpy.random")
    of_numpy = numpy_random.get_state()[1:3] if numpy_random else None
    return random.getstate(), of_numpy and (of_numpy[0].tobytes(), of_numpy[1])


def _own_state(module: nn.Module) -> dict[str, int]:
    """What a module has as attributes, buffers and modules now, by identity; its other tables and mode aside."""
    tables = {"_parameters", "_buffers", "_modules", "training", "forward", "_ftkit_statistics"}
    parts = {name: id(value) for name, value in chain(children_of(module).items(), buffers_of(module).items())}
    return {name: id(value) for name, value in vars(module).items() if name not in tables} | parts
