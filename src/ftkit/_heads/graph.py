"""The walk back through the autograd graph, from the outputs of a model to the layers that they come from."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from ftkit._heads.layers import Layer, Layers
from ftkit._heads.vocabulary import AUXILIARY, says
from ftkit._torch import node_number

# How far what a layer gives is from being an output as it stands: by nothing that matters, by an activation, by a norm,
# by other weights that count its outputs (a temperature for each class), by a product with other data.
CLEAN, SQUASHED, NORMED, SCALED, MIXED = range(5)


@dataclass(eq=False)
class End:
    """A layer from which an output of the model comes without another layer in between."""

    layer: Layer
    level: int = CLEAN  # how far the nearest of those outputs is from what the layer gives
    ports: dict[str, int] = field(default_factory=dict)  # those outputs by name, each with its level
    shapes: dict[str, torch.Size] = field(default_factory=dict)  # of those outputs
    softmax: bool = False  # whether one lies on the way to an output
    body: bool = False  # whether it feeds another one
    beside: bool = False  # whether it feeds another one, and gives an output of its own too
    cut: set[str] = field(default_factory=set)  # those outputs that take a slice of what the layer gives
    rows: set[int] = field(default_factory=set)  # how many neighbors what it gives is split into, where it is
    norms: set[str] = field(default_factory=set)  # the names of norms behind it
    chain: list[tuple[Layer, frozenset[str]]] = field(default_factory=list)  # of _chain
    training_only: bool = False  # whether only a run in training mode, or the loss, uses it

    def is_clean(self) -> bool:
        """Whether an output is just what the layer gives."""
        return self.level == CLEAN

    def scores(self) -> bool:
        """Whether an output is what the layer gives, or that squashed."""
        return self.level <= SQUASHED

    def is_auxiliary(self) -> bool:
        """Whether its name is that of a head for deep supervision, or for distillation."""
        return says(self.layer.name, AUXILIARY)

    def helps_training(self) -> bool:
        """Whether the layer is there to help in training: by its name, or since nothing else uses it."""
        return self.training_only or self.is_auxiliary()

    def ports_within(self, level: int) -> list[str]:
        """The outputs that are no further than ``level`` from what the layer gives."""
        return [port for port, its_level in self.ports.items() if its_level <= level]

    def reached(self, port: str, shape: torch.Size, way: _Way) -> None:
        """Note that an output comes from the layer, on one more way."""
        if self.layer.outputs in way.cuts:
            self.cut.add(port)
        self.rows |= {size for split, size in way.splits if split == self.layer.outputs}
        self.level = min(self.level, way.level)
        self.ports[port] = min(self.ports.get(port, way.level), way.level)
        self.shapes[port] = shape
        self.softmax = self.softmax or (way.softmax and way.level <= SQUASHED)
        self.norms |= way.norms


class Ends(list[End]):
    """Some layers that outputs come from."""

    @property
    def layers(self) -> Layers:
        """The layers."""
        return Layers(end.layer for end in self)

    def where(self, rule: Callable[[End], bool]) -> Ends:
        """Those for which a rule holds."""
        return Ends(filter(rule, self))

    def of_size(self, outputs: int) -> Ends:
        """Those whose layers have so many outputs."""
        return Ends(end for end in self if end.layer.outputs == outputs)

    def of(self, layer: Layer) -> Ends:
        """The end that a layer is, if it is one."""
        return Ends(end for end in self if end.layer.names == layer.names)

    def leaving(self, layer: Layer) -> Ends:
        """The ends through which leaves what a layer, or a norm, gives."""
        return self.of(layer) or self.where(
            lambda end: (
                layer.name in end.norms or any(layer.name in {before.name, *norms} for before, norms in end.chain)
            )
        )


@dataclass(frozen=True)
class Walk:
    """What a walk back from outputs found."""

    ends: Ends
    met: set[Layer]  # all layers that took part
    bare: set[str]  # the names of parameters in the place of a layer's that belong to no layer


def walk(outputs: Mapping[str, torch.Tensor], owners: Mapping[int, Layer], norms: Norms | None = None) -> Walk:
    """Find the layers that outputs come from.

    Args:
        outputs: Outputs of a model by name, with their graph.
        owners: The layer of each parameter, by the parameter's identity.
        norms: The modules that norm: by the node of what each gave, its name and the node of what it took.
    """
    graph = _Graph(outputs, norms)
    ends: dict[Layer, End] = {}
    nodes: dict[Layer, list[Any]] = {}
    bare: set[str] = set()
    for port, root in graph.roots.items():
        for way, weight in graph.ways_back(root, outputs[port].shape):
            layer = owners.get(id(weight))
            if layer is None:
                bare.add(getattr(weight, "dotted", "?"))
            else:
                nodes.setdefault(layer, []).append(way.node)
                ends.setdefault(layer, End(layer, way.level)).reached(port, outputs[port].shape, way)
    _mark_body(graph, ends, nodes)
    for layer, end in ends.items():
        end.chain = [] if end.body and not end.is_clean() else list(_chain(graph, owners, layer, nodes[layer][0]))
    return Walk(Ends(ends.values()), {owners[leaf] for leaf in owners.keys() & graph.leaves.keys()}, bare)


def _mark_body(graph: _Graph, ends: Mapping[Layer, End], nodes: Mapping[Layer, list[Any]]) -> None:
    """A layer that feeds another one, or itself again, is body; and so is what a residual sum puts beside it."""
    layer_at = {node: layer for layer, its_nodes in nodes.items() for node in its_nodes}
    for layer, its_nodes in nodes.items():
        end = ends[layer]
        for source in {layer_at[node] for node in layer_at.keys() & graph.before(its_nodes)}:
            feeding = ends[source]
            feeding.body = True
            feeding.beside = feeding.beside or not end.ports.keys() >= set(feeding.ports_within(CLEAN))
            end.body = end.body or source is layer or not feeding.ports.keys().isdisjoint(end.ports)


def _chain(
    graph: _Graph, owners: Mapping[int, Layer], layer: Layer, node: Any
) -> Iterator[tuple[Layer, frozenset[str]]]:
    """Yield the layers before one that gives as many features as it takes, with the norms behind each, backwards."""
    while layer.inputs == layer.outputs:
        ways = [(way, owners.get(id(weight))) for one in graph.data(node) for way, weight in graph.ways_back(one)]
        sources = {source for _, source in ways}
        before = sources.pop() if len(sources) == 1 else None
        if before is None or before is layer or before.outputs != layer.inputs or ways[0][0].level > NORMED:
            return
        yield before, frozenset[str]().union(*(way.norms for way, _ in ways))
        layer, node = before, ways[0][0].node


def passages(outputs: Mapping[str, torch.Tensor]) -> dict[str, frozenset[str]]:
    """Tell of each parameter which ones data met last before they met it for the first time, all by name.

    Parameters that meet no data, or that no output depends on, are left out.
    """
    graph = _Graph(outputs)
    met: dict[str, frozenset[str]] = {}
    alone: dict[Any, frozenset[str]] = {}  # the parameters that a node is computed from, where that is all
    last: dict[Any, frozenset[str]] = {}  # the parameters that the data of any other node met last
    for node in graph.as_made():
        name, inputs = getattr(getattr(node, "variable", None), "dotted", None), graph.edges[node]
        if name is not None:
            alone[node] = frozenset((name,))
            continue
        weights = frozenset[str]().union(*(alone.get(one, ()) for one in inputs))
        before = frozenset[str]().union(*(last.get(one, ()) for one in inputs))
        if weights and node not in graph.unseen and not last.keys() & set(inputs):
            before = alone.get(graph.multiplied_first(node), weights)  # learned queries, say, take the place of data
            weights -= before
            if not weights:
                alone[node] = before
                continue
            met |= dict.fromkeys(before - met.keys(), frozenset[str]())
        again = weights & met.keys()
        for name in weights - again:
            met[name] = before - weights
        last[node] = before | weights if again or not weights else weights  # data that a shared layer passes on
    return met


def unused(made: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep the tensors that no other of them was computed from."""
    graph = _Graph(made)
    inner = set(itertools.chain.from_iterable(graph.edges.values()))
    return {key: made[key] for key, root in graph.roots.items() if root not in inner}


# ---- the graph, whose nodes are told apart by the names of their operators

_SQUASH = re.compile(
    r"(Relu|Tanh|Gelu|Silu|Hardswish|Hardtanh|LeakyRelu|Elu|Mish|Prelu|Threshold|Selu|Softplus|Hardsigmoid|Celu)"
)
_NORM = re.compile(r"(BatchNorm|LayerNorm|GroupNorm|InstanceNorm|RmsNorm|VectorNorm|NormBackward|WeightNormInterface)")
_PRODUCT = re.compile(r"(Addmm|Mm|Bmm|Baddbmm|Mv|Convolution|Conv\w*|Linear|Einsum|ScaledDotProduct\w*|Im2Col)Backward")
_SUM = re.compile(r"(Add|Sub|Rsub|Cat|Stack|Where)Backward")
_SCALE = re.compile(r"(Mul|Div)Backward")
# Where an operator has its data among its inputs. If one of them is missing, the data have no history, such as features
# computed under no_grad; what the operator gives is then not of parameters alone.
_DATA = (
    (re.compile(r"^Convolution"), slice(0, 1)),
    (_NORM, slice(0, 1)),
    (re.compile(r"^Addmm"), slice(1, None)),
    (re.compile(r"^(Mm|Bmm|Mv)Backward"), slice(None)),
)
_VIEW = re.compile(r"(View|UnsafeView|ReshapeAlias)Backward")
_SLICE = re.compile(r"(Slice|Select|IndexSelect|Split\w*|Unbind|Unsafe\w*)Backward")
_OTHER = frozenset((0,))  # in the place of a parameter's identity: something that is none


def _cut_at(node: Any) -> frozenset[int]:
    """The size of the axis of which a node takes a slice."""
    if not _SLICE.match(node.name()):
        return frozenset()
    sizes, (axis,) = getattr(node, "_saved_self_sym_sizes", ()), _signed((getattr(node, "_saved_dim", 0),))
    return frozenset(map(int, sizes[axis : axis + 1 or None]))


def _before(node: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], frozenset[tuple[int, int]]]:
    """The shape of what a node took, from that of what it gave; each axis that it split, with what is in a row then."""
    name, sizes = node.name(), getattr(node, "_saved_self_sym_sizes", None)
    if name.startswith("Permute") and len(node._saved_dims) == len(shape):
        places = [int(axis) % len(shape) for axis in _signed(node._saved_dims)]
        return tuple(size for _, size in sorted(zip(places, shape, strict=True))), frozenset()
    if name.startswith("Transpose") and shape:
        turned = list(shape)
        one, other = (axis % len(shape) for axis in _signed((node._saved_dim0, node._saved_dim1)))
        turned[one], turned[other] = turned[other], turned[one]
        return tuple(turned), frozenset()
    if sizes is None:
        return shape, frozenset()
    taken = tuple(map(int, sizes))
    splits = set[tuple[int, int]]()
    for axis, size in enumerate(taken[: len(shape)] if _VIEW.match(name) else ()):
        is_last = axis == len(taken) - 1
        part = shape[-1 if is_last else axis]
        if part and size not in shape and size % part == 0:
            splits.add((size, part if is_last else size // part))
    return taken, frozenset(splits)


def _signed(axes: Iterable[int]) -> list[int]:
    """Axes as they were given: autograd shows negative ones as if they had no sign."""
    return [axis - (1 << 64) if axis >= 1 << 63 else axis for axis in map(int, axes)]


Norms: TypeAlias = Mapping[Any, tuple[str, Any]]


class _Way(NamedTuple):
    """A way back from an output, as far as a node."""

    node: Any
    level: int = CLEAN
    softmax: bool = False  # whether it leads through one
    cuts: frozenset[int] = frozenset()  # the sizes of the axes of which only a slice went on
    norms: frozenset[str] = frozenset()  # the names of the modules that norm
    shape: tuple[int, ...] = ()  # of what the node gives, as far as that can be followed
    splits: frozenset[tuple[int, int]] = frozenset()  # axes that were split on, each with the size of what is a row


class _Graph:
    """The autograd graph behind some outputs, and what in it is computed from parameters or from inputs alone."""

    def __init__(self, outputs: Mapping[str, torch.Tensor], norms: Norms | None = None) -> None:
        self._norms = norms or {}
        self.roots = {key: tensor.grad_fn for key, tensor in outputs.items() if tensor.grad_fn is not None}
        self.edges: dict[Any, list[Any]] = {}  # what each node takes, as far as that has a history
        self.unseen: set[Any] = set()  # the nodes that take data without one beside their parameters
        self.pure: dict[Any, frozenset[int]] = {}  # the nodes of parameters alone, with the identities of these
        self.leaves: dict[int, torch.Tensor] = {}  # those parameters
        self.given: set[Any] = set()  # the nodes of inputs of the model alone
        stack = [(root, False) for root in self.roots.values()]
        while stack:
            node, after_its_inputs = stack.pop()
            if after_its_inputs:
                self._settle(node)
            elif node not in self.edges:
                targets = [target for target, _ in node.next_functions]
                self.edges[node] = [target for target in targets if target is not None]
                missing = (None in targets[places] for wording, places in _DATA if wording.search(node.name()))
                if "Embedding" in node.name() or any(missing):
                    self.unseen.add(node)
                stack.append((node, True))
                stack += zip(self.edges[node], itertools.repeat(False))

    def _settle(self, node: Any) -> None:
        """Tell whether a node is computed from parameters alone, or from inputs alone, as all before it are told."""
        variable = getattr(node, "variable", None)
        inputs = self.edges[node]
        if isinstance(variable, nn.Parameter):
            self.leaves[id(variable)] = variable
            self.pure[node] = frozenset((id(variable),))
        elif variable is not None or (inputs and self.given.issuperset(inputs)):
            self.given.add(node)
        sources = frozenset[int]().union(*(self.pure.get(target, _OTHER) for target in inputs))
        computed = all(getattr(self.leaves.get(leaf), "computed", False) for leaf in sources)
        if sources and (computed or not (sources >= _OTHER or node in self.unseen)):
            self.pure[node] = sources

    def as_made(self) -> Iterator[Any]:
        """Yield all nodes, each after its inputs, as far as possible in the order in which they were made."""
        waiting = {node: len(inputs) for node, inputs in self.edges.items()}
        takers: dict[Any, list[Any]] = {}
        for node, inputs in self.edges.items():
            for one in inputs:
                takers.setdefault(one, []).append(node)
        ready = [(-1, place, node) for place, (node, count) in enumerate(waiting.items()) if not count]
        for place in itertools.count(len(waiting)):
            if not ready:
                return
            *_, node = heapq.heappop(ready)
            yield node
            for taker in takers.get(node, ()):
                waiting[taker] -= 1
                if not waiting[taker]:
                    heapq.heappush(ready, (node_number(taker), place, taker))

    def multiplied_first(self, node: Any) -> Any:
        """The node behind the first factor of a product, None where it computes a weight or is none."""
        name, targets = node.name(), [target for target, _ in node.next_functions]
        if not _PRODUCT.match(name) or any(getattr(leaf, "computed", False) for leaf in self.weights(node)):
            return None
        return next((targets[places][0] for wording, places in _DATA if wording.search(name)), None)

    def data(self, node: Any) -> list[Any]:
        """The nodes before ``node`` that carry data."""
        return [target for target in self.edges[node] if target not in self.pure]

    def weights(self, node: Any) -> list[torch.Tensor]:
        """The parameters that enter at ``node``."""
        sources = [node] if node in self.pure else self.edges[node]
        leaves = frozenset[int]().union(*(self.pure.get(source, ()) for source in sources))
        return list(map(self.leaves.__getitem__, leaves))

    def before(self, nodes: Iterable[Any]) -> set[Any]:
        """All nodes from which data come to some nodes."""
        found: set[Any] = set()
        stack = list(itertools.chain.from_iterable(map(self.data, nodes)))
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += self.data(node)
        return found

    def ways_back(self, root: Any, shape: tuple[int, ...] = ()) -> Iterator[tuple[_Way, torch.Tensor]]:
        """Yield the ways to the first nodes behind an output where data meet weights, with each of these.

        A node is met again where another way leads to it at a lower level.
        """
        levels: dict[Any, int] = {}
        queue = deque([_Way(root, shape=shape)])
        while queue:
            way = queue.popleft()
            if levels.get(way.node, MIXED + 1) <= way.level:
                continue
            levels[way.node] = way.level
            weights = self._multiplied(way.node)
            yield from ((way, weight) for weight in weights)
            if not weights:
                queue.extend(self._further(way))

    def _further(self, way: _Way) -> Iterator[_Way]:
        """The ways that lead on from a node where no weight enters."""
        node, name = way.node, way.node.name()
        if node in self._norms:
            norm, before = self._norms[node]
            if before in self.edges:
                yield way._replace(node=before, level=max(way.level, NORMED), norms=way.norms | {norm})
        elif "Embedding" not in name:  # a table of inputs, which an output layer may be tied to
            level, softmax = max(way.level, self.level(node)), way.softmax or "Softmax" in name
            before, splits = _before(node, way.shape)
            for target in self.data(node):
                yield _Way(target, level, softmax, way.cuts | _cut_at(node), way.norms, before, way.splits | splits)

    def _multiplied(self, node: Any) -> list[torch.Tensor]:
        """The weights that data are multiplied by at ``node``: a layer's, and not a bias or a scale."""
        name = node.name()
        if "Embedding" in name or node in self._norms or (_SUM.match(name) and node not in self.pure):
            return []
        product = _PRODUCT.match(name) is not None
        return [w for w in self.weights(node) if w.dim() >= 2 and (product or w.numel() > max(w.shape))]

    def level(self, node: Any) -> int:
        """How far a node takes its input from being an output as it stands."""
        return next((level for rule, level in _LEVELS if rule(self, node)), CLEAN)

    def masks(self, node: Any) -> bool:
        """Whether an input of the model takes part: a mask, or what passes scores along the edges of a graph."""
        data = self.data(node)
        return len(data) > 1 and not self.given.isdisjoint(data)

    def scales(self, node: Any) -> bool:
        """Whether a multiplication or division is by other data, or by a parameter for each class."""
        if not _SCALE.match(node.name()):
            return False
        several = any(weight.numel() > 1 for weight in self.weights(node))
        return len(self.data(node)) > 1 or (several and node.name().startswith("Mul"))


_LEVELS: tuple[tuple[Callable[[_Graph, Any], bool], int], ...] = (  # in the order in which they are tried
    (lambda _, node: bool(_NORM.search(node.name())), SCALED),
    (lambda _, node: bool(_SQUASH.match(node.name())), SQUASHED),
    (_Graph.masks, CLEAN),
    (lambda _, node: bool(_PRODUCT.match(node.name())), MIXED),
    (_Graph.scales, SCALED),
)
