"""Where the frozen part of a model ends: which calls need not run, and which tensors pass over in their place."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import torch
from torch import nn

from ftkit._models.dryrun import tensors_in
from ftkit._precompute.mixing import MIXED, NotAlone
from ftkit._precompute.placeholders import Placeholder
from ftkit._precompute.trace import CONSTANT, DRAWS, TRAINS, Call, Hints, Key, Node, Trace, named_state, no_trace
from ftkit._torch import tree_leaves, tree_map_only
from ftkit._wording import cause, plural, some
from ftkit.errors import FtkitError

Point = tuple[str, Key, int]
"""A place where a replay puts a tensor: an input, an argument or an output; of which call; the how manieth."""

_ROUNDS = 50
_MOST_SLACK = 0.03  # of the largest value, in half precision


@dataclass(frozen=True)
class Layout:
    """How a tensor is made of one part for each sample.

    Attributes:
        shape: Of the part of one sample.
        dim: Along which the parts follow each other; None for a tensor that is the same for all samples.
        dtype: Its type.
        order: The dimensions of a part as they lie in memory, from the outermost on.
        runs: How many pieces there are of each part along ``dim``, with those of the other samples between them: 2 in
            ``torch.cat([a, b])``.
    """

    shape: tuple[int, ...]
    dim: int | None
    dtype: torch.dtype
    order: tuple[int, ...]
    runs: int = 1

    @property
    def nbytes(self) -> int:
        """How many bytes the part of one sample takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def all_of(cls, long: torch.Tensor, short: torch.Tensor, sizes: tuple[int, int]) -> Iterator[Layout]:
        """Compare the tensors of two batches of different sizes; nothing if they don't consist of samples."""
        if (plain := cls.of(long, short, sizes)) is not None:
            share = 1 if plain.dim is None else plain.shape[plain.dim]
            yield from (replace(plain, runs=runs) for runs in range(1, share + 1) if share % runs == 0)

    @classmethod
    def of(cls, long: torch.Tensor, short: torch.Tensor, sizes: tuple[int, int]) -> Layout | None:
        """The first of :meth:`all_of`: with the samples one after the other."""
        if long.dtype != short.dtype or long.dim() != short.dim():
            return None
        differ = [at for at, (one, two) in enumerate(zip(long.shape, short.shape, strict=True)) if one != two]
        strides = long.stride()
        order = tuple(sorted(range(long.dim()), key=lambda at: -strides[at]))
        if not differ:
            return cls(tuple(long.shape), None, long.dtype, order)
        at = differ[0]
        share = long.shape[at] // sizes[0]
        if len(differ) > 1 or (long.shape[at], short.shape[at]) != (share * sizes[0], share * sizes[1]):
            return None
        return cls((*long.shape[:at], share, *long.shape[at + 1 :]), at, long.dtype, order)

    def shape_of(self, samples: int) -> list[int]:
        """The shape of the tensor of a batch of so many samples."""
        return [size * samples if at == self.dim else size for at, size in enumerate(self.shape)]

    def parts(self, tensor: torch.Tensor) -> torch.Tensor:
        """Cut a tensor into the parts of the samples, which come first."""
        if self.dim is None:
            return tensor[None]
        samples = -1 if tensor.numel() else tensor.shape[self.dim] // self.shape[self.dim]
        before, (share, *after) = tensor.shape[: self.dim], self.shape[self.dim :]
        if self.runs == 1:
            return tensor.reshape(*before, samples, share, *after).movedim(self.dim, 0)
        cut = tensor.reshape(*before, self.runs, samples, share // self.runs, *after)
        return cut.movedim(self.dim + 1, 0).flatten(self.dim + 1, self.dim + 2)

    def encode(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes of each sample's part, in rows."""
        plain = self.parts(tensor.detach().resolve_conj().resolve_neg())
        laid = plain.permute(0, *(at + 1 for at in self.order)).contiguous().flatten(1)
        if laid.stride(1) != 1:  # as may be where there is but one element
            laid = laid.clone(memory_format=torch.contiguous_format)
        return laid.view(torch.uint8)

    def decode(self, rows: torch.Tensor) -> torch.Tensor:
        """Make a tensor of the bytes of the samples, in memory of its own."""
        laid = rows.clone(memory_format=torch.contiguous_format).view(-1).view(self.dtype)
        if self.dim == 0 and self.runs == 1 and self.order == tuple(range(len(self.shape))):  # as most; in one step
            return laid.view(len(rows) * self.shape[0], *self.shape[1:])
        laid = laid.view(len(rows), *(self.shape[at] for at in self.order))
        back = [self.order.index(at) for at in range(len(self.shape))]
        parts = laid.permute(0, *(at + 1 for at in back))
        if self.dim is None:
            return parts[0]
        if self.runs > 1:
            before, (share, *after) = self.shape[: self.dim], self.shape[self.dim :]
            cut = parts.reshape(len(parts), *before, self.runs, share // self.runs, *after)
            whole = cut.movedim(0, self.dim + 1).flatten(self.dim, self.dim + 2)
        else:
            whole = parts.movedim(0, self.dim).flatten(self.dim, self.dim + 1)
            if self.order[0] == self.dim:
                return whole
        return whole.permute(self.order).contiguous().permute(back)  # random numbers are drawn as memory lies

    def stand_in(self, samples: int, device: torch.device) -> Placeholder:
        """A placeholder for so many samples."""
        shape = self.shape_of(samples)
        strides, step = [0] * len(shape), 1
        for at in reversed(self.order):
            strides[at], step = step, step * shape[at]
        return Placeholder(torch.empty_strided(shape, strides, dtype=self.dtype, device="meta"), device, id(self))


@dataclass(frozen=True)
class Slot:
    """The place of a tensor in what a call takes or gives.

    Attributes:
        layout: What the tensor looks like; None for one whose shape nobody needs to know.
        kept: Which of the kept tensors it is; None for one that nobody needs.
    """

    layout: Layout | None
    kept: int | None


@dataclass
class Skip:
    """A call that does not run in a replay.

    Attributes:
        args: What it takes, with a slot for each tensor.
        output: What it gives, with a slot for each tensor.
        autocast: What autocast was.
        fills: Whether it would change an object that it takes.
        is_led: Whether a caller remembers something, as how often it was called, by which it may call it in another
            way, or with something else.
        inside: How often it would call modules that are called elsewhere, too.
    """

    args: Any
    output: Any
    autocast: tuple[Any, ...]
    fills: bool = False
    is_led: bool = False
    inside: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass
class Cut:
    """The frontier of a model for a kind of inputs.

    Attributes:
        points: Where the kept tensors go.
        layouts: What they look like.
        skips: The calls that don't run.
        inputs: What the model takes, with a slot for each tensor, or the tensor's number where it stays as it is.
        stays: The inputs that no skipped call depends on: labels.
        changing: What the run itself changes, by its place: attributes, globals.
        written: Names of the parameters and buffers that a forward pass writes to.
        read: Names of the parameters and buffers that the skipped part reads.
        refused: What can't be skipped though it is frozen, and why.
        once: The tensors that are the same for all samples, by their number among the kept ones.
        share: The share of the FLOPs of a forward pass that the skipped calls take; None if there are none, or some
            that were not seen.
        modes: The modes in which the skipped modules have run, for each call.
        ways: How what a call takes has come to it, for those calls that are led.
        overwrites: The modules that write to inputs in whose place rows come, which a caller who has them would miss.
        decides: Whether Python reads truth values of the batch on the way.
        beyond: The modules that run on what trains, or on random numbers, alone.
        tail: The module in whose one call all happens that skipped calls don't, if there is one and it gives what the
            model gives.
    """

    points: list[Point]
    layouts: list[Layout]
    skips: dict[Key, Skip]
    inputs: Any
    stays: set[int]
    changing: set[str]
    written: set[str]
    read: set[str]
    refused: dict[str, str]
    once: dict[int, torch.Tensor] = field(default_factory=dict)
    share: float | None = None
    modes: set[tuple[Key, tuple[bool, ...]]] = field(default_factory=set)
    ways: set[tuple[Key, tuple[Any, ...]]] = field(default_factory=set)
    decides: bool = False
    tail: str | None = None
    overwrites: set[str] = field(default_factory=set)
    beyond: set[str] = field(default_factory=set)

    @property
    def per_sample(self) -> list[int]:
        """The kept tensors of which each sample has its own."""
        return [number for number, layout in enumerate(self.layouts) if layout.dim is not None]

    @property
    def description(self) -> list[Any]:
        """What two cuts have in common that can use the same rows; ready for JSON."""
        return [
            [*point, list(one.shape), one.dim, str(one.dtype), list(one.order), one.runs]
            for point, one in zip(self.points, self.layouts, strict=True)
        ]


def find(model: nn.Module, call: Any, other: Any, sizes: tuple[int, int], order: list[int]) -> Cut:
    """Find the frontier of a model in its current mode.

    Args:
        model: The model; it is left as it was.
        call: Positional and keyword arguments for a small batch.
        other: The same for a smaller one.
        sizes: How many samples they have.
        order: Which sample of the first batch each of the second one is.

    Raises:
        FtkitError: Nothing can be skipped; the message says why.
    """
    hints = Hints()
    with no_trace(model):
        return _found(model, call, other, sizes, order, hints)


def _found(model: nn.Module, call: Any, other: Any, sizes: tuple[int, int], order: list[int], hints: Hints) -> Cut:
    seen: Any = None  # what was known when it was last seen which arguments can be replaced
    for at in range(_ROUNDS):
        known = hints.found
        long = _traced(model, call, hints, sizes[0])
        known_moods = {name: why for name, why in hints.moody.items() if long.moody.get(name, DRAWS) == DRAWS}
        hints.moody = long.moody | known_moods
        apart = {one.key for one in long.calls if _may_replace_args(long, one)}
        replaced = {one.key for one in long.calls if one.key in hints.apart and _takes_constants(long, one)}
        settled = known == hints.found and (apart == replaced or seen == known)
        if not settled or not at:  # what is remembered from the first run on is there in the others
            hints.apart, seen = apart, known
            continue
        short = _traced(model, other, hints, sizes[1])
        skipped = _maximal(long, short)
        if not _learn(long, short, skipped, sizes, order, hints):
            break
    else:
        raise FtkitError(f"The frontier of the {type(model).__name__} can't be found in {_ROUNDS} rounds.")
    frozen_but = _refused(model, long, skipped)
    if not skipped:
        raise FtkitError(
            f"No part of the {type(model).__name__} can be computed once: "
            + some([f"{name or 'what is frozen'}: {why}" for name, why in frozen_but.items()], 4, "; ")
            + (
                ". Train without precompute."
                if all(isinstance(why, NotAlone) for why in frozen_but.values())
                else ". Freeze what comes first with ftkit.freeze(), which also holds norms and Dropout in eval mode."
            )
        )
    frozen_but.pop("", None)
    return _cut(long, short, skipped, sizes, order, hints, frozen_but)


def _traced(model: nn.Module, call: Any, hints: Hints, samples: int) -> Trace:
    trace = Trace(model, hints, samples)
    with no_trace(model):
        try:
            trace.run(model, *call)
        except FtkitError:
            raise
        except Exception as error:
            if trace.ends_gradients and not hints.gradients:
                hints.gradients = True
                return _traced(model, call, hints, samples)
            raise FtkitError(
                f"The {type(model).__name__} fails on a batch of {plural(samples, 'sample')}: {cause(error)}. The "
                "model gets the first item of a sample that is a tuple, or what its forward() takes of one that is a "
                "dict."
            ) from error
    return trace


def _takes_constants(trace: Trace, call: Call) -> bool:
    return any(not trace.nodes[one].hot for one in call.inputs)


def _may_replace_args(trace: Trace, call: Call) -> bool:
    """Whether a call can get other tensors; copies, so that nobody may look for what it writes to them.

    Not if a caller remembers something: what it does with them on the way may hang on that, as in every tenth batch.
    """
    cold = any(not trace.nodes[one].hot and trace.nodes[one].varies for one in call.inputs)
    safe = not call.writes or len({*call.inputs}) == len(call.inputs)
    known = call.key in trace.hints.spoils or not trace.stateful.isdisjoint(call.within)
    return bool(call.key[0]) and bool(call.why_not) and safe and cold and not known


def _maximal(long: Trace, short: Trace) -> list[Call]:
    """The outermost calls that need not run, as both traces see it.

    Not those of a module of which something trains, though not in this call: its parts are looked at one by one.
    """
    good = {call.key for call in short.calls if not call.why_not}
    chosen: dict[int, Call] = {}
    for index, call in enumerate(long.calls):
        if not call.key[0] or call.why_not or call.key not in good or any(one in chosen for one in call.within):
            continue
        if not any(one.requires_grad for one in call.module.parameters()):
            chosen[index] = call
    return list(chosen.values())


def _learn(
    long: Trace, short: Trace, skipped: list[Call], sizes: tuple[int, int], order: list[int], hints: Hints
) -> bool:
    """Note the first call whose results depend on the other samples; return whether there was one."""
    by_key = {call.key: call for call in short.calls}
    for call in skipped:
        other = by_key[call.key]
        varies = [long.nodes[one].varies for one in call.inputs]  # constants, such as offsets, tell of no sample
        given, other_given = (list(compress(tensors_in(one.args), varies)) for one in (call, other))
        if len(call.inputs) == len(other.inputs) and _alike(given, other_given, sizes, order):
            same = _numbers(call.output) == _numbers(other.output)
            if same and _alike(call.output, other.output, sizes, order):
                continue
            hints.blocked[call.key[0]] = (
                _why_not_alone("gives", call.output, other.output, sizes)
                if same
                else "it gives back a number that is another for another batch"
            )
        else:
            hints.hot[call.key] = _why_not_alone("takes", given, other_given, sizes)
        return True
    return False


def _why_not_alone(does: str, long: Any, short: Any, sizes: tuple[int, int]) -> NotAlone:
    """Why the tensors of two batches are not the same, sample by sample."""
    for one, other in zip(tensors_in(long), tensors_in(short), strict=False):
        layout = Layout.of(one, other, sizes)
        if layout is None or (layout.dim is None and not near(one, other)):
            shapes = f"{list(one.shape)} for {sizes[0]} samples and "
            shapes += f"{list(other.shape)} for {sizes[1]}" if layout is None else f"for {sizes[1]}"
            return NotAlone(f"it {does} {shapes}, where a part for each is expected")
    return MIXED


def _alike(long: Any, short: Any, sizes: tuple[int, int], order: list[int]) -> bool:
    """Whether the tensors of two batches are the same, sample by sample, up to what kernels make of batch sizes."""
    ones, others = list(tensors_in(long)), list(tensors_in(short))
    return len(ones) == len(others) and all(
        any(_same(layout, one, other, order) for layout in Layout.all_of(one, other, sizes))
        for one, other in zip(ones, others, strict=True)
    )


def _numbers(output: Any) -> list[Any]:
    """What a call gives back beside tensors."""
    return [one for one in tree_leaves(output) if not isinstance(one, torch.Tensor)]


def _same(layout: Layout, long: torch.Tensor, short: torch.Tensor, order: list[int]) -> bool:
    one, other = layout.parts(long.detach()), layout.parts(short.detach())
    return near(one if layout.dim is None else one[order], other)


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors differ by no more than kernels for different batch sizes do."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    eps = torch.finfo(one.dtype).eps
    if one.dtype.itemsize == 1 or one.dtype is torch.complex32:  # which torch compares in no other way
        wide = torch.complex64 if one.is_complex() else torch.float32
        one, other = one.to(wide), other.to(wide)
    if torch.equal(one, other):
        return True
    if torch.equal(one.isfinite(), other.isfinite()):
        scale = float(one[one.isfinite()].abs().max()) if one.isfinite().any() else 0.0
        slack = min(1000 * eps, _MOST_SLACK) * scale
        return torch.allclose(one, other, rtol=0, atol=slack, equal_nan=True)
    return False


def _refused(model: nn.Module, trace: Trace, skipped: list[Call]) -> dict[str, str]:
    """The frozen modules that can't be skipped, and why; of those inside each other the innermost."""
    found: dict[str, str] = {}
    around: set[int] = set()
    for index, call in reversed(list(enumerate(trace.calls))):
        own = list(call.module.parameters())
        inside = any(trace.calls[one] in skipped for one in call.within)
        if call.why_not and index not in around and not inside and own and not any(one.requires_grad for one in own):
            found[call.key[0]] = call.why_not
            around.update(call.within)
    for name, module in model.named_modules():
        is_inner = any(name.startswith(f"{one}.") for one in trace.elsewhere)
        own = list(module.parameters())
        if name in trace.elsewhere and not is_inner and own and not any(one.requires_grad for one in own):
            found[name] = "it runs in another thread"
    telling = {name: why for name, why in reversed(found.items()) if why != TRAINS}
    if telling and (skipped or set(telling.values()) != {CONSTANT}):
        return telling
    if all(one.requires_grad for one in model.parameters()):
        return {"": "nothing in it is frozen"}
    return {
        "": _first_trained(trace) if found else "the modules that have its parameters do not run, or others use them"
    }


def _first_trained(trace: Trace) -> str:
    """Which module trains before all others, and by which other name that is known which trains."""
    root = trace.calls[0].module
    names = {id(one): name for name, one in root.named_parameters()}
    own = [name for name, one in root.named_parameters(recurse=False) if one.requires_grad]  # used who knows where
    for call in trace.calls:
        for key, one in call.module.named_parameters(recurse=False):
            if one.requires_grad and call.key[0]:
                first = f"{call.key[0]}.{key}"
                tied = "" if names[id(one)] == first else f", which is {names[id(one)]} (tied weights)"
                before = f"{some(own, 3)} or " if own else ""
                return f"{TRAINS}, first on {before}{first}{tied}"
    return TRAINS


def _cut(
    long: Trace,
    short: Trace,
    skipped: list[Call],
    sizes: tuple[int, int],
    order: list[int],
    hints: Hints,
    refused: dict[str, str],
) -> Cut:
    """Choose the narrowest tensors that pass from the skipped calls to what needs them."""
    twins = {node.point: node.tensor for node in short.nodes if node.point}
    layouts: dict[int, Layout] = {}
    for number, node in enumerate(long.nodes):
        twin = twins.get(node.point) if node.point else None
        if node.tensor is not None and twin is not None:
            for layout in Layout.all_of(node.tensor, twin, sizes):
                if long.owners.keeps_apart(node.tensor, layout.parts):
                    layouts[number] = layout
                    break
    indices = {index for index, call in enumerate(long.calls) if any(call is one for one in skipped)}
    outside = {call.key[0] for call in long.calls if not indices & set(call.within)}
    keys = {call.key for call in skipped}
    free = {
        number
        for number, node in enumerate(long.nodes)
        if node.point and (node.point[0] == "input" or (node.point[0] == "out" and node.point[1] in keys))
    }
    sinks = {node for node, within in long.sinks if not indices & set(within)}
    behind = _ancestors(long, [one for call in skipped for one in call.inputs], set())
    inputs = {
        node.point[2]: number for number, node in enumerate(long.nodes) if node.point and node.point[0] == "input"
    }
    stays = {at for at, number in inputs.items() if number not in behind}
    free -= {inputs[at] for at in stays}
    while True:
        bytes_of = {number: one.nbytes if one.dim is not None else 1 for number, one in layouts.items()}
        kept = sorted(_narrowest(long, sinks, free, bytes_of))
        mixed = [node for node in kept if not _same(layouts[node], *_twins(long.nodes[node], twins), order)]
        needed = _to_write(long, {*kept}, free, indices) - sinks
        if not mixed and not needed:
            break
        sinks |= needed
        for number in mixed:
            del layouts[number]
    number_of = {long.nodes[node].point: number for number, node in enumerate(kept)}

    def slots(tree: Any, kind: str, key: Key) -> Any:
        counter = iter(range(len(list(tensors_in(tree))) + 1))

        def slot(tensor: torch.Tensor) -> Slot:
            point = kind, key, next(counter)
            if kind == "input" and point[2] in stays:
                return Slot(None, None)
            twin = twins.get(point)
            return Slot(None if twin is None else Layout.of(tensor, twin, sizes), number_of.get(point))

        return tree_map_only(torch.Tensor, slot, tree)

    skips = {
        call.key: Skip(
            tree_map_only(torch.Tensor, lambda _: Slot(None, None), call.args),
            slots(call.output, "out", call.key),
            call.autocast,
            call.fills,
            not long.stateful.isdisjoint(call.within),
            Counter(one.key[0] for one in long.calls if index in one.within and one.key[0] in outside),
        )
        for index, call in enumerate(long.calls)
        if index in indices
    }
    for call in skipped:
        for leaf in tree_leaves(skips[call.key].output):
            if isinstance(leaf, Slot) and leaf.layout is None:
                raise FtkitError(f"What {call.key[0]} gives back is not made of samples.")
    points = [point for node in kept if (point := long.nodes[node].point)]
    once = {
        number: tensor.detach().clone()
        for number, node in enumerate(kept)
        if layouts[node].dim is None and (tensor := long.nodes[node].tensor) is not None
    }
    root = long.calls[0]
    tail = None if stays else _tail(long, indices, hints)
    return Cut(
        points,
        [layouts[node] for node in kept],
        skips,
        slots(root.args, "input", ("", 0)),
        stays,
        set(hints.changing),
        {name for name, tensor in named_state(long.calls[0].module).items() if id(tensor) in long.written},
        set(long.read),
        refused,
        once,
        sum(call.flops for call in skipped) / root.flops if root.flops and not long.elsewhere else None,
        decides=long.decides or short.decides,
        overwrites={name for at, name in (*long.overwrites.items(), *short.overwrites.items()) if at not in stays},
        tail=None if tail is None else tail.key[0],
        beyond=_beyond(long) & _beyond(short),
    )


def _beyond(trace: Trace) -> set[str]:
    """The modules of which no call gives anything that a skipped one could take."""
    cold = {one.key[0] for one in trace.calls if not one.outputs or not all(trace.nodes[at].hot for at in one.outputs)}
    return {one.key[0] for one in trace.calls} - cold


def _tail(trace: Trace, skipped: set[int], hints: Hints) -> Call | None:
    """The innermost call in which all happens that the skipped calls don't, if it gives what the model gives."""
    root = trace.calls[0]
    if trace.decides or hints.moody or hints.changing or any(trace.calls[one].fills for one in skipped):
        return None
    if not all(set(trace.calls[one].autocast) <= set(root.autocast) for one in skipped):
        return None  # the model sets it on the way
    happens = [node.within for node in trace.nodes if node.hot and node.parents]
    happens += [within for _, within in trace.sinks if not skipped & set(within)]
    for index, call in reversed(list(enumerate(trace.calls))):
        alone = sum(one.key[0] == call.key[0] for one in trace.calls) == 1
        around = (call.autocast, call.grad) == (root.autocast, root.grad)
        ends = call.returned is root.returned and call.leaves == root.leaves  # and nothing was added to it
        if index and alone and around and ends and all(index in within for within in happens):
            return call
    return None


def _twins(node: Node, twins: Mapping[Any, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    one, other = node.tensor, twins.get(node.point)
    assert one is not None
    assert other is not None
    return one, other


def _ancestors(trace: Trace, nodes: Iterable[int], stop: set[int]) -> set[int]:
    found: set[int] = set()
    queue = list(nodes)
    while queue:
        one = queue.pop()
        if one not in found:
            found.add(one)
            if one not in stop:
                queue += trace.nodes[one].parents
    return found


def _to_write(trace: Trace, kept: set[int], free: set[int], skipped: set[int]) -> set[int]:
    """The values that a replay has not, but would write to memory that it has."""
    has: list[bool] = []
    for number, node in enumerate(trace.nodes):
        computed = number not in free and all(has[one] for one in node.parents)
        has.append(number in kept or bool(node.hot) or not node.varies or computed)
    return {
        one
        for there, values, within in trace.writes
        if not skipped & set(within) and any(has[at] for at in there)
        for one in values
        if not has[one]
    }


def _narrowest(trace: Trace, sinks: set[int], free: set[int], bytes_of: Mapping[int, int]) -> set[int]:
    """A minimum cut between the values that come for free and those that are needed, the one nearest to the latter."""
    endless = 1 << 60
    room: dict[Any, dict[Any, int]] = defaultdict(dict)

    def edge(one: Any, other: Any, width: int) -> None:
        room[one][other] = room[one].get(other, 0) + width
        room[other].setdefault(one, 0)

    for node in _ancestors(trace, sinks, free):
        edge((node, 0), (node, 1), bytes_of.get(node, endless))
        if node in free:
            edge("source", (node, 0), endless)
        else:
            for parent in trace.nodes[node].parents:
                edge((parent, 1), (node, 0), endless)
    for node in sinks:
        edge((node, 1), "sink", endless)
    while True:
        came: dict[Any, Any] = {"source": None}
        queue = deque(["source"])
        while queue and "sink" not in came:
            one: Any = queue.popleft()
            for other, width in room[one].items():
                if width > 0 and other not in came:
                    came[other] = one
                    queue.append(other)
        if "sink" not in came:
            break
        path = [("sink", came["sink"])]
        while path[-1][1] != "source":
            path.append((path[-1][1], came[path[-1][1]]))
        width = min(room[one][other] for other, one in path)
        if width >= endless:
            raise FtkitError("A value that the frozen part passes on can't be kept: it is not made of samples.")
        for other, one in path:
            room[one][other] -= width
            room[other][one] += width
    reaches: set[Any] = {"sink"}
    queue = deque(["sink"])
    while queue:
        one = queue.popleft()
        for other in room[one]:
            if room[other].get(one, 0) > 0 and other not in reaches:
                reaches.add(other)
                queue.append(other)
    return {one[0] for one in reaches if one != "sink" and one[1] == 1 and (one[0], 0) not in reaches}
