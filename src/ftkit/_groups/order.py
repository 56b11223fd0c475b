"""The order of a model's parameters, from its input to its head: as the model says, as it runs, or as it is built."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftkit._groups.layers import head_of, is_kernel, layers_of, parts_of
from ftkit._heads.inputs import Inputs
from ftkit._heads.trace import order_of_use

DECLARED, EXECUTED, REGISTERED = "declared", "executed", "registered"


@dataclass(frozen=True)
class Order:
    """The parameters of a model by layer, the lowest layer first.

    Attributes:
        layers: The parameters of each layer.
        source: ``"declared"`` by the model, ``"executed"`` so in a run, or else ``"registered"``.
        why: Why no run told.
    """

    layers: list[list[nn.Parameter]]
    source: str
    why: str = ""


def order_of(model: nn.Module, given: Inputs | None = None, *, trust: bool = True) -> Order:
    """Find the layers of a model in the order in which data pass them.

    A model of timm says by itself which layers it has, and is believed unless a run shows the opposite. Otherwise a run
    on fake tensors tells which of the parts that :func:`layers_of` finds come after which.

    Args:
        model: The model, not wrapped.
        given: Inputs that the user knows it to take.
        trust: Whether to believe the model. Its layers may be coarser than its parts: timm counts what stands before
            a stage as part of the first block in it.

    Raises:
        HeadError: It does not run on those.

    Example:
        >>> import torch
        >>> from ftkit._groups.order import order_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> order_of(model).source
        'executed'
    """
    used, why = order_of_use(model, given)
    declared = _declared(model) if trust else {}
    if declared and all(declared[early] <= declared[late] for late in used for early in used[late]):
        by_name = dict(model.named_parameters())
        return Order(_by_depth({by_name[name]: depth for name, depth in declared.items()}), DECLARED)
    head = head_of(model, given)
    if used:
        return Order(_executed(model, used, head), EXECUTED)
    return Order(layers_of(model, head), REGISTERED, why)


def _declared(model: nn.Module) -> dict[str, int]:
    """The layer of each parameter by name, as a model of timm lists them; nothing of other models."""
    group: Callable[..., dict[str, int]] | None
    group = getattr(sys.modules.get("timm.models"), "group_parameters", None)
    matcher = getattr(type(model), "group_matcher", None)  # not that of a model inside, which knows it by other names
    return group(model, matcher(model, coarse=False), reverse=True) if group and callable(matcher) else {}


def _by_depth(depths: Mapping[nn.Parameter, int]) -> list[list[nn.Parameter]]:
    layers: dict[int, list[nn.Parameter]] = {}
    for parameter, depth in depths.items():
        layers.setdefault(depth, []).append(parameter)
    return [layers[depth] for depth in sorted(layers)]


def complete(model: nn.Module, known: Mapping[nn.Parameter, int]) -> dict[nn.Parameter, int]:
    """Give each parameter that has no depth that of the one registered before it, the first ones that of the next."""
    depths: dict[nn.Parameter, int] = {}
    depth = next((known[parameter] for parameter in model.parameters() if parameter in known), 0)
    for parameter in model.parameters():
        depths[parameter] = depth = known.get(parameter, depth)
    return depths


# ---- the order of a run


def _executed(
    model: nn.Module, used: Mapping[str, Iterable[str]], head: list[nn.Parameter]
) -> list[list[nn.Parameter]]:
    """Count for each part how many layers lie above it, on the longest way to the outputs."""
    by_name = dict(model.named_parameters())
    parts = [*_units(model, set(head)), (head, True)]
    for block in list(_blocks_across_lists(model, *_placed(model, parts, used))):
        parts[min(block)] = [one for place in sorted(block) for one in parts[place][0]], True
        for place in block - {min(block)}:
            parts[place] = [], False
    units = [unit for unit, _ in parts]
    unit_of, after = _placed(model, parts, used)
    ran = {unit_of[by_name[name]] for name in used}
    layer = [whole and any(map(is_kernel, unit)) for unit, whole in parts]
    above = _layers_above(after, layer, has_head=bool(head))
    depths = {parameter: -above[place] for place in ran - {len(units) - 1} for parameter in units[place]}
    return _by_depth(complete(model, depths) | dict.fromkeys(head, 0))


def _placed(
    model: nn.Module, parts: list[tuple[list[nn.Parameter], bool]], used: Mapping[str, Iterable[str]]
) -> tuple[dict[nn.Parameter, int], list[int]]:
    """Tell in which unit each parameter is, and of each unit with a bit for each one which come after it."""
    by_name = dict(model.named_parameters())
    unit_of = {parameter: place for place, (unit, _) in enumerate(parts) for parameter in unit}
    after = [0] * len(parts)
    for late, several in used.items():
        for early in several:
            after[unit_of[by_name[early]]] |= 1 << unit_of[by_name[late]]
    after[-1] = 0  # an auxiliary head may feed what comes next, but is on top
    return unit_of, after


def _blocks_across_lists(model: nn.Module, unit_of: Mapping[nn.Parameter, int], after: list[int]) -> Iterator[set[int]]:
    """Yield the units that make up a block, where lists beside each other have a part of each: attention, feed-forward.

    So it is where all that is first in such lists comes before all that is second, and so on.
    """
    _close(after)
    for holder in model.modules():
        lists = [child for child in holder.children() if isinstance(child, nn.ModuleList) and len(child) > 1]
        for size in {*map(len, lists)}:
            beside = [[*one] for one in lists if len(one) == size]
            rows = [{unit_of[p] for member in row for p in member.parameters()} for row in zip(*beside, strict=True)]
            steps = [(early, late) for one, other in itertools.pairwise(rows) for early in one for late in other]
            if len(beside) > 1 and all(rows) and all(after[one] >> two & ~after[two] >> one & 1 for one, two in steps):
                yield from rows


def _units(model: nn.Module, head: set[nn.Parameter]) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield the parts of the model that stay whole, and each parameter beside them by itself; each with which it is.

    What several parts share is in none of them.
    """
    parts = list(parts_of(model, rows=True))
    several = Counter(itertools.chain.from_iterable(set(parameters) for parameters, _ in parts))
    shared = {parameter for parameter, count in several.items() if count > 1} - head
    yield from (([parameter], False) for parameter in shared)
    for parameters, whole in parts:
        rest = [parameter for parameter in parameters if parameter not in head | shared]
        yield from ((unit, whole) for unit in ([rest] if whole else ([one] for one in rest)))


def _layers_above(after: list[int], layer: list[bool], *, has_head: bool) -> list[int]:
    """Tell how many layers are above each unit; those that come after each other are one.

    A unit without a kernel, such as a norm, and a single parameter are no layers of their own: they belong to the one
    before them, or if there is none to the next one.
    """
    _close(after)
    places = range(len(after))
    alike = {place: [place, *(other for other in _bits(after[place]) if after[other] >> place & 1)] for place in places}
    order = sorted(places, key=lambda place: (after[place] | 1 << place).bit_count())
    is_layer = [any(layer[one] for one in alike[place]) for place in places]
    begun = list(is_layer)
    for place in reversed(order):
        for other in _bits(after[place]) if begun[place] else ():
            begun[other] = True
    above = [0] * len(after)
    for place in order:
        higher = set(_bits(after[place])).difference(alike[place])
        least = int(has_head and place != len(after) - 1)
        above[place] = max((above[one] + (begun[place] and is_layer[one]) for one in higher), default=0)
        above[place] = max(least, above[place])
    return above


def _close(after: list[int]) -> None:
    """Add what comes after what comes after."""
    changed = True
    while changed:
        changed = False
        for place in reversed(range(len(after))):
            whole = after[place]
            for other in _bits(after[place]):
                whole |= after[other]
            changed = changed or whole != after[place]
            after[place] = whole


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


# ---- the order by names, which survives in a file


def names_by_layer(model: nn.Module, layers: Iterable[Iterable[nn.Parameter]]) -> list[list[str]]:
    """Name the layers by their outermost modules, and by the parameters outside of these.

    Example:
        >>> import torch
        >>> from ftkit._groups.order import names_by_layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> names_by_layer(model, [[*model[0].parameters(), model[1].weight], [model[1].bias]])
        [['0', '1.weight'], ['1.bias']]
    """
    depths = {parameter: depth for depth, layer in enumerate(layers) for parameter in layer}
    names: list[list[str]] = [[] for _ in range(1 + max(depths.values(), default=0))]
    covered: set[nn.Parameter] = set()
    named: Iterable[tuple[str, Any]] = itertools.chain(model.named_modules(), model.named_parameters())
    for name, part in named:
        own = {part} if isinstance(part, nn.Parameter) else set(part.parameters())
        if name and own - covered and len({depths[one] for one in own}) == 1:
            names[depths[next(iter(own))]].append(name)
            covered |= own
    return names


def layers_named(model: nn.Module, names: Iterable[Iterable[str]]) -> list[list[nn.Parameter]]:
    """Return the parameters by layer, as :func:`names_by_layer` named them; new ones go with those before them."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    depths: dict[nn.Parameter, int] = {}
    for depth, layer in enumerate(names):
        for name in layer:
            depths |= dict.fromkeys([parameters[name]] if name in parameters else _inside(modules.get(name)), depth)
    return _by_depth(complete(model, depths))


def _inside(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
