"""A run of a model on fake tensors, and the walk back from its outputs to the layers that they come from."""

from __future__ import annotations

import copy
import itertools
import re
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ftkit._heads.inputs import Inputs, labelled, stand_in_inputs
from ftkit._heads.layers import Layer, layers, own_tensors, sizes
from ftkit._models.dryrun import named_tensors, untouched

__all__ = ["CLEAN", "MIXED", "NORMED", "SQUASHED", "End", "Trace", "entries", "shapes", "trace"]

CLEAN, SQUASHED, NORMED, MIXED = range(4)


@dataclass(eq=False)
class End:
    """A layer from which an output of the model comes without another layer in between."""

    layer: Layer
    level: int
    ports: dict[str, int] = field(default_factory=dict)  # the outputs that come from it, each with its level
    shapes: dict[str, torch.Size] = field(default_factory=dict)  # of those outputs
    softmax: bool = False
    body: bool = False  # it feeds another one
    beside: bool = False  # it feeds another one, and gives an output of its own too
    training_only: bool = False  # or used by the loss alone


@dataclass(eq=False)
class Trace:
    """What a run told: where the outputs come from, and whether it came to its end."""

    ends: list[End]
    complete: bool
    failure: str = ""
    bare: tuple[str, ...] = ()  # parameters that outputs come from, and that belong to no layer
    unseen: frozenset[str] = frozenset()  # the names of layers that did not run, or not before it failed
    taken: tuple[Inputs, ...] = ()  # the inputs that the model ran on: plain ones, and some with labels for its loss


def trace(model: nn.Module, every: list[Layer]) -> Trace:
    """Run the model on fake tensors and walk the graph back from its outputs.

    The run is that of a copy whose parameters are fakes: it has their shapes, and no memory, no values and no way
    back to the model. A second run in training mode finds what only training uses.
    """
    ends: dict[Layer, End] = {}
    seen: set[int] = set()
    complete, failure, bare, turned = False, "", set[str](), dict[Layer, Layer]()
    taken: list[Inputs] = []
    unseen: frozenset[str] = frozenset()
    for training in (False, True):
        try:
            shadow, mode, owners = _shadow(model, every)
        except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
            return Trace([], complete=False, failure=f"it can't be copied ({type(error).__name__}: {error})")
        shadow.train(training)
        run = _run(shadow, mode)
        if training and not run.complete:
            break
        complete, failure = run.complete, run.failure
        unseen = unseen if training else run.unseen
        if not training and complete:
            taken.append(run.inputs)
            if with_labels := list(labelled(model, run.inputs, run.shapes().values())):
                loss = _run(shadow, mode, with_labels)
                taken += [loss.inputs] if loss.complete else []
        turned |= {layer: layer.turned() for layer in every if not layer.sure and _is_turned(layer, run.widths)}
        for end in _ends(run.outputs, owners, seen, bare):
            end.training_only = training
            ends.setdefault(end.layer, end)
        for end in _ends(_unused(run.made), owners, seen, set()):  # what ran for the loss alone
            end.training_only = True
            ends.setdefault(end.layer, end)
        if len(seen) == len(every) or not complete:
            break
    found = [ends[layer] for layer in every if layer in ends]
    for end in found:
        end.layer = turned.get(end.layer, end.layer)
    return Trace(found, complete, failure, tuple(sorted(bare)), unseen, tuple(taken))


def _is_turned(layer: Layer, widths: Mapping[str, int]) -> bool:
    """Whether a layer whose module doesn't tell its outputs gave as many as it was thought to take."""
    return any(widths.get(name) == layer.inputs != layer.outputs for name in layer.names)


def _shadow(model: nn.Module, every: list[Layer]) -> tuple[nn.Module, FakeTensorMode, dict[int, Layer]]:
    """Copy the model around fake parameters; return the copy, their mode, and which layer each fake belongs to."""
    fakes: dict[int, Any] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.is_floating_point() or tensor.is_complex())
        return made

    with mode:
        for module in model.modules():
            for value in itertools.chain(module._parameters.values(), module._buffers.values(), vars(module).values()):
                if isinstance(value, torch.Tensor) and id(value) not in fakes:
                    fakes[id(value)] = fake(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shadow = copy.deepcopy(model, dict(fakes))
    for module in shadow.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _is_own(hook, module)]:
                del hooks[key]
    owners: dict[int, Layer] = {}
    for layer in every:
        for name, tensor in own_tensors(layer.module).items():
            if id(tensor) in fakes:
                owners.setdefault(id(fakes[id(tensor)]), layer)
                # What a parametrization makes the weight from; it may be multiplied on the way there.
                fakes[id(tensor)].computed = name.startswith("parametrizations.") or name.endswith("_orig")
    for name, parameter in model.named_parameters():
        fakes[id(parameter)].dotted = name
    return shadow, mode, owners


def _is_own(hook: Any, module: nn.Module) -> bool:
    """Whether a hook belongs to how a module works (weight norm, outputs that a library captures).

    Another one is the user's, and must not see fakes.
    """
    hook = getattr(hook, "func", hook)
    written = (hook if isinstance(hook, types.FunctionType | types.MethodType) else type(hook)).__module__
    package = str(written).partition(".")[0]
    return package == "torch" or (package != "__main__" and package == type(module).__module__.partition(".")[0])


class _TooLongError(Exception):
    def __str__(self) -> str:
        return "the run on stand-in inputs took too many operations"


class _StandIn(TorchFunctionMode):
    """Stand in, where Python calls torch, for what fakes can't do: packed sequences are one long sequence.

    It also ends a run that the answers sent into a long loop. (Raised here, an error is safe.)
    """

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooLongError
        name = getattr(func, "__name__", "")
        if name == "_pack_padded_sequence":
            return args[0].flatten(0, 1), torch.ones(1, dtype=torch.long)
        if name == "_pad_packed_sequence":
            return args[0].unsqueeze(0 if args[2] else 1), torch.ones(1, dtype=torch.long)
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu") and isinstance(args[3], list):  # of packed sequences
            output, *states = func(args[0].unsqueeze(1), *args[2:], False)
            return (output.squeeze(1), *states)
        return func(*args, **(kwargs or {}))


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook untyped
    """Answer where a model asks for values, which fake tensors don't have: every test is true, every number
    one, and all values are alike.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            answer = self._answer(func, args)
            if answer is None:
                raise
            return answer

    def _answer(self, func: Any, args: tuple[Any, ...]) -> Any:
        name = func._schema.name.split("::")[-1]
        first = args[0]
        if name == "_local_scalar_dense":
            return True if first.dtype is torch.bool else (1.0 if first.is_floating_point() else 1)
        if name in ("is_nonzero", "equal"):
            return True
        if name == "nonzero":
            return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
        if name == "masked_select":
            return (first + args[1].to(first.dtype)).reshape(-1)
        if name == "nms":
            return first.new_empty((min(first.shape[0], 4),), dtype=torch.long)
        if name in ("_unique2", "unique_consecutive", "unique_dim"):
            flat = first.reshape(-1) if name != "unique_dim" else first
            return flat[:1], flat.new_empty(flat.shape[:1], dtype=torch.long), flat.new_empty((1,), dtype=torch.long)
        if name == "index":
            places: list[Any] = []
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    places += [index.new_empty((index.numel(),), dtype=torch.long)] * index.dim()
                else:
                    places.append(index)
            return func(first, places)
        return None


@dataclass
class _Outcome:
    """What a run gave: the outputs by key, or after a failure the outputs of modules that nothing used."""

    outputs: dict[str, torch.Tensor]
    complete: bool
    failure: str = ""
    first: list[str] = field(default_factory=list)
    made: dict[str, torch.Tensor] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)  # the features that each layer gave last
    inputs: Inputs = ((), {})  # what the model took
    unseen: frozenset[str] = frozenset()  # the layers that did not run

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of the outputs."""
        return {key: tensor.shape for key, tensor in self.outputs.items()}


def shapes(model: nn.Module, inputs: Inputs) -> dict[str, torch.Size] | str:
    """Run a model on fake tensors like ``inputs``; return the shapes of its outputs, or why it failed."""
    shadow, mode, _ = _shadow(model, layers(model))
    run = _run(shadow.eval(), mode, [inputs])
    return run.shapes() if run.complete else run.failure


def entries(model: nn.Module) -> list[Layer]:
    """Find the layers that the input of a model goes into before any other."""
    every = layers(model)
    by_name = {name: layer for layer in every for name in layer.names}
    shadow, mode, _ = _shadow(model, every)
    return [by_name[name] for name in _run(shadow.eval(), mode, follow=False).first]


def _run(shadow: nn.Module, mode: FakeTensorMode, inputs: Sequence[Inputs] = (), *, follow: bool = True) -> _Outcome:
    """Run a shadow on inputs like the given ones, or on those that it could take, until one is taken.

    To ``follow`` the inputs means that they take part in the autograd graph, which tells what is computed from them.
    """
    first: dict[str, None] = {}
    made: dict[str, torch.Tensor] = {}
    furthest: dict[str, torch.Tensor] = {}
    widths: dict[str, int] = {}
    misfit: list[int] = []
    names = [name for name, module in shadow.named_modules() if sizes(module) is not None]
    waiting: set[str] = set()
    unseen = frozenset(names)
    failure = ""

    def compare(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() and isinstance(layer, nn.Linear):
            misfit[:] = [args[0].shape[-1] - layer.in_features]

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            made.update(_flat(output, f"{name}:{len(made)}"))
            waiting.discard(name)
            if isinstance(output, torch.Tensor) and output.dim():
                widths[name] = output.shape[-1]
            if args and isinstance(args[0], torch.Tensor) and not args[0].requires_grad:
                first[name] = None

        return hook

    def attempt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Outcome | None:
        nonlocal furthest, failure, unseen
        made.clear()
        first.clear()
        misfit.clear()
        waiting.update(names)
        give = _followed if follow else torch.clone
        try:
            given = {name: give(value) for name, value in kwargs.items()}
            with stand_in:
                outputs = dict(_flat(shadow(*map(give, args), **given), ""))
        except Exception as error:  # noqa: BLE001 -- whatever a model raises on an input that isn't for it
            if len(made) > len(furthest) or not failure:
                furthest, unseen = dict(made), frozenset(waiting)
                failure = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(".")
            if isinstance(error, _TooLongError) or not (waiting or inputs):
                return _Outcome({}, False)  # past all layers, what fails is no matter of the input
            return None
        if any(tensor.grad_fn is not None for tensor in outputs.values()):
            return _Outcome(outputs, True, "", list(first), dict(made), widths, (args, kwargs), frozenset(waiting))
        return None

    handles = []
    for name in names:
        handles.append(shadow.get_submodule(name).register_forward_pre_hook(compare))
        handles.append(shadow.get_submodule(name).register_forward_hook(record(name)))
    answers = _Answers()  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    stand_in = _StandIn(max(40_000, 40 * len(list(shadow.modules()))))
    searched = bool(inputs)
    outcome = None
    with untouched(), mode, answers, torch.device("cpu"):
        for args, kwargs in map(_again, inputs) if inputs else stand_in_inputs(shadow):
            outcome = attempt(args, kwargs)
            if outcome is None and not searched and any(misfit) and not kwargs and args[0].dim() in (3, 4):
                searched = True
                outcome = _search(attempt, args, misfit)
            if outcome is not None:
                break
    for handle in handles:
        handle.remove()
    if outcome is not None and outcome.complete:
        return outcome
    failure = failure or "no input was found for it"
    return _Outcome(_unused(furthest), False, failure, list(first), widths=widths, unseen=unseen)


def _again(inputs: Inputs) -> Inputs:
    """Make inputs like those of another run."""
    args, kwargs = inputs
    return (
        tuple(torch.zeros(value.shape, dtype=value.dtype) for value in args),
        {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in kwargs.items()},
    )


def _search(
    attempt: Callable[[tuple[Any, ...], dict[str, Any]], _Outcome | None], args: tuple[Any, ...], misfit: list[int]
) -> _Outcome | None:
    """Find the one size of input from which a linear layer gets the number of features that it takes.

    Args:
        attempt: Runs the model.
        args: An input of another size, ``(batch, channels, ...)``.
        misfit: After an attempt, how many features too many the last linear layer got.
    """
    low, high = 1, 1 << (10 if args[0].dim() == 4 else 17)
    while low < high:
        side = (low + high) // 2
        sized = tuple(value.new_zeros(*value.shape[:2], *[side] * (value.dim() - 2)) for value in args)
        outcome = attempt(sized, {})
        if outcome is not None:
            return outcome
        if misfit and misfit[0] >= 0:
            high = side
        else:  # too few features, or too small an image to come that far
            low = side + 1
    return None


def _followed(value: torch.Tensor) -> torch.Tensor:
    """Give an input a history of its own; it is no leaf, so a model may still write into it."""
    return value.requires_grad_() * 1 if value.is_floating_point() else value


def _unused(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep the tensors that no other of them was computed from."""
    made = {key: tensor for key, tensor in made.items() if tensor.grad_fn is not None}
    graph = _Graph([tensor.grad_fn for tensor in made.values()])
    inner = {target for targets in graph.edges.values() for target in targets}
    return {key: tensor for key, tensor in made.items() if tensor.grad_fn not in inner}


def _flat(value: Any, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    return ((".".join(map(str, (key, *path))), tensor) for path, tensor in named_tensors(value))


# ------------------------------------------------------------------ the walk back through the autograd graph

_SQUASH = re.compile(
    r"(Relu|Tanh|Gelu|Silu|Hardswish|Hardtanh|LeakyRelu|Elu|Mish|Prelu|Threshold|Selu|Softplus|Hardsigmoid|Celu)"
)
_NORM = re.compile(r"(BatchNorm|LayerNorm|GroupNorm|InstanceNorm|RmsNorm|VectorNorm|NormBackward|WeightNormInterface)")
_MATMUL = re.compile(r"(Addmm|Mm|Bmm|Baddbmm|Mv|Convolution|Conv\w*|Linear|Einsum|ScaledDotProduct\w*|Im2Col)Backward")
_SUM = re.compile(r"^(Add|Sub|Rsub|Cat|Stack|Where)Backward")


class _Graph:
    """The autograd graph behind some outputs, with what in it is computed from parameters alone."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.edges: dict[Any, tuple[Any, ...]] = {}
        self.pure: dict[Any, frozenset[int]] = {}  # for nodes of parameters alone: the parameters
        self.leaves: dict[int, torch.Tensor] = {}
        self.given: set[Any] = set()  # nodes of inputs alone
        stack = [(root, False) for root in roots]
        while stack:
            node, done = stack.pop()
            if done:
                self._settle(node)
            elif node not in self.edges:
                self.edges[node] = tuple(target for target, _ in node.next_functions)
                stack.append((node, True))
                stack += [(target, False) for target in self.edges[node] if target is not None]

    def _settle(self, node: Any) -> None:
        variable = getattr(node, "variable", None)
        if variable is not None:
            if isinstance(variable, nn.Parameter):
                self.leaves[id(variable)] = variable
                self.pure[node] = frozenset((id(variable),))
            else:
                self.given.add(node)
            return
        name, edges = node.name(), self.edges[node]
        known = [target for target in edges if target is not None]
        if known and self.given.issuperset(known):
            self.given.add(node)
        leaves = frozenset().union(*(self.pure.get(target, frozenset((0,))) for target in known))
        if leaves and all(getattr(self.leaves.get(leaf), "computed", False) for leaf in leaves):
            self.pure[node] = leaves
            return
        if "Embedding" in name or not edges:
            return
        if (name.startswith("Convolution") or _NORM.search(name)) and edges[0] is None:
            return  # data without a history, such as features computed under no_grad
        if name.startswith("Addmm") and None in edges[1:]:
            return
        if re.match(r"(Mm|Bmm|Mv)Backward", name) and None in edges:
            return
        if known and 0 not in leaves:
            self.pure[node] = leaves

    def data(self, node: Any) -> list[Any]:
        """The nodes before ``node`` that carry data."""
        return [target for target in self.edges[node] if target is not None and target not in self.pure]

    def weights(self, node: Any) -> list[torch.Tensor]:
        """The parameters that enter at ``node``."""
        targets = [target for target in self.edges[node] if target is not None and target in self.pure]
        if node in self.pure:
            targets = [node]
        return [self.leaves[i] for i in frozenset().union(*(self.pure[target] for target in targets))]


def _ends(outputs: dict[str, torch.Tensor], owners: dict[int, Layer], seen: set[int], bare: set[str]) -> list[End]:
    """Find the layers that outputs come from.

    The ids of all layers that took part are added to ``seen``, and names of parameters in the place of a layer's to
    ``bare``.
    """
    roots = {key: tensor.grad_fn for key, tensor in outputs.items() if tensor.grad_fn is not None}
    graph = _Graph(roots.values())
    fresh = {id(owners[leaf]) for leaf in graph.leaves if leaf in owners} - seen
    seen |= fresh
    ends: dict[Layer, End] = {}
    nodes: dict[Layer, list[Any]] = {}
    for port, root in roots.items():
        levels: dict[Any, int] = {}
        queue = deque([(root, CLEAN, False)])
        while queue:
            node, level, softmax = queue.popleft()
            if levels.get(node, MIXED + 1) <= level:
                continue
            levels[node] = level
            met = _multiplied(graph, node, owners, bare)
            if met is not None:
                for layer in met:
                    end = ends.setdefault(layer, End(layer, level))
                    end.level = min(end.level, level)
                    end.ports[port] = min(end.ports.get(port, level), level)
                    end.shapes[port] = outputs[port].shape
                    end.softmax = end.softmax or (softmax and level <= SQUASHED)
                    if node not in nodes.setdefault(layer, []):
                        nodes[layer].append(node)
                continue
            level = max(level, _level(graph, node))
            softmax = softmax or "Softmax" in node.name()
            queue.extend((target, level, softmax) for target in graph.data(node))
    # A layer that feeds another one, or itself again, is body; and so is what a residual sum puts beside it.
    layer_at = {node: layer for layer, its_nodes in nodes.items() for node in its_nodes}
    for layer, its_nodes in nodes.items():
        end = ends[layer]
        for source in _before(graph, its_nodes, layer_at):
            ends[source].body = True
            ends[source].beside |= any(
                level == CLEAN and port not in end.ports for port, level in ends[source].ports.items()
            )
            if source is layer or ends[source].ports.keys() & end.ports.keys():
                end.body = True
    return [end for end in ends.values() if id(end.layer) in fresh]


def _multiplied(graph: _Graph, node: Any, owners: dict[int, Layer], bare: set[str]) -> list[Layer] | None:
    """The layers whose weights data meet at ``node``, or None if the node is no layer."""
    if "Embedding" in node.name():
        return []  # a table of inputs, which an output layer may be tied to
    product = _MATMUL.match(node.name()) is not None
    weights = [w for w in graph.weights(node) if w.dim() >= 2 and (product or w.numel() > max(w.shape))]
    if not weights or (_SUM.match(node.name()) and node not in graph.pure):
        return None
    bare.update(getattr(w, "dotted", "?") for w in weights if id(w) not in owners)
    return list(dict.fromkeys(owners[id(w)] for w in weights if id(w) in owners))


def _level(graph: _Graph, node: Any) -> int:
    """How far a node takes its input from being an output as it stands."""
    name = node.name()
    if _NORM.search(name):
        return NORMED
    if _SQUASH.match(name):
        return SQUASHED
    data = graph.data(node)
    if len(data) > 1 and not graph.given.isdisjoint(data):
        return CLEAN  # a mask, or what passes scores along the edges of a graph
    if _MATMUL.match(name):
        return MIXED
    if name.startswith("Mul") and any(w.numel() > 1 for w in graph.weights(node)):
        return NORMED
    if re.match(r"(Mul|Div)Backward", name) and len(data) > 1:
        return NORMED
    return CLEAN


def _before(graph: _Graph, start: list[Any], layer_at: dict[Any, Layer]) -> set[Layer]:
    """The layers of ``layer_at`` that feed the nodes in ``start``."""
    found: set[Layer] = set()
    seen: set[Any] = set()
    stack = [target for node in start for target in graph.data(node)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in layer_at:
            found.add(layer_at[node])
        stack += graph.data(node)
    return found
