"""What rate and what decay each parameter gets, and the groups that this makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NotRequired, TypedDict, TypeVar

from torch import nn

from ftkit._arguments import came, real_number
from ftkit._groups.layers import is_kernel, layers_of
from ftkit._groups.order import DECLARED, EXECUTED, REGISTERED, Order, layers_named, names_by_layer, order_of
from ftkit._heads.replace import as_inputs
from ftkit._models.dryrun import alone
from ftkit._models.outline import outermost
from ftkit._reports import Grid, Parts, Report, plain
from ftkit._torch import is_norm
from ftkit._wording import in_counts, plural, some
from ftkit.errors import FtkitError, SelectionError
from ftkit.selection import Selector, select, unwrap

_NOT_NEGATIVE: Final[tuple[str, Callable[[float], bool]]] = "of at least 0", lambda one: 0 <= one < math.inf


_Key = TypeVar("_Key", bound=Selector)


class Recipe(TypedDict):
    """The arguments of :func:`param_groups`, kept in every group so that a thawed parameter can join by the same rule.

    Plain JSON types only: an optimizer's ``state_dict`` carries it through any checkpoint. ``layers`` are there only
    where they differ from those that the order of registration gives, so that no run has to find them again.
    """

    lr: float
    weight_decay: float
    layer_decay: float | None
    rates: list[tuple[list[str], float]]
    layers: NotRequired[list[list[str]]]


class ParamGroups(list[dict[str, Any]], Report):
    """Parameter groups for a ``torch.optim`` optimizer: a list of dicts, whose ``repr`` is a report.

    Attributes:
        order: What the order of the layers is based on: ``"declared"``, the model's own ``group_matcher`` (timm);
            ``"executed"``, a run on fake tensors; ``"registered"``, the order in which the model registers its parts.
        why: Why no run was possible, if that is the reason for ``"registered"``.

    Example:
        >>> import torch
        >>> from ftkit import param_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> param_groups(model, lr=0.1, layer_decay=0.5).order
        'executed'
        >>> param_groups(model, lr=0.1).order
        'registered'
    """

    __slots__ = ("order", "why")

    def __init__(self, groups: Iterable[dict[str, Any]], order: str = REGISTERED, why: str = "") -> None:
        super().__init__(groups)
        self.order: str = order
        self.why: str = why

    def __repr__(self) -> str:  # not that of a list
        return Report.__repr__(self)

    def _parts(self) -> Parts:
        tensors = sum(len(group["params"]) for group in self)
        yield f"{plural(len(self), 'group')} of {plural(tensors, 'parameter tensor')}, lowest layer first"
        yield f"  order: {_ORDERS[self.order]}{f' ({self.why})' if self.why else ''}"
        rows = [
            (
                some(group["param_names"], 2),
                in_counts(sum(parameter.numel() for parameter in group["params"])),
                f"{group['lr']:.3g}",
                f"{group['weight_decay']:.3g}",
            )
            for group in self
        ]
        yield Grid(rows, titles=("parameters", "count", "lr", "weight decay"), right=(1, 2, 3))

    def to_dict(self) -> dict[str, Any]:
        """Return the order and the groups as plain values; of the parameters, the names."""
        groups = [{key: plain(value) for key, value in group.items() if key != "params"} for group in self]
        return {"order": self.order, "why": self.why, "groups": groups}


_ORDERS: Final = {
    DECLARED: "as the model declares it",
    EXECUTED: "as the model runs",
    REGISTERED: "as the model registers its parts",
}


@alone()
def param_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    rates: Mapping[_Key, float] | Iterable[tuple[Selector, float]] | None = None,
    example_inputs: Any = None,
) -> ParamGroups:
    """Sort the trainable parameters of any model into groups for a ``torch.optim`` optimizer.

    Every trainable parameter is in exactly one group, even a tied one; frozen ones are left out. Each group has its
    final ``lr`` and ``weight_decay``, its ``param_names``, and the ``recipe`` from which :func:`ftkit.unfreeze` derives
    the options for parameters added later. Groups are ordered from the input of the model to its head.

    Biases, the parameters of norms, and whatever the model's ``no_weight_decay()`` lists get no weight decay.

    With ``layer_decay``, a layer that is ``k`` layers below the head learns at ``lr * layer_decay**k`` (BEiT, Bao et
    al. 2021, appendix). A layer is an element of the model's lists of blocks: ``layer1.0``, ``blocks.7``,
    ``encoder.layer.3``. What comes before them is the lowest layer; the head is the highest. Branches that run side by
    side have equal rates at equal distance from the head. Which layer a parameter belongs to does not depend on what is
    frozen.

    The order is that in which data pass the layers, as a run of a copy on fake tensors shows; a model of timm that says
    itself which layers it has (``group_matcher``) is believed unless that run shows the opposite. Where the model can't
    be run, it is the order in which the model registers its parts. Printing the groups shows which one it was.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        lr: Learning rate of the head, and of everything to which neither ``layer_decay`` nor ``rates`` applies.
        weight_decay: Weight decay of everything but biases and norms.
        layer_decay: The factor from one layer to the one below, in (0, 1]; 0.65 to 0.9 is usual.
        rates: Learning rates by selector, as absolute values; they override ``lr`` and ``layer_decay``. If several
            selectors match a parameter, the last one counts.
        example_inputs: Inputs of the model, if they can't be made up, as for :func:`find_head`. Only ``layer_decay``
            needs a run.

    Returns:
        A list of parameter groups for a ``torch.optim`` optimizer.

    Raises:
        HeadError: The model does not run on ``example_inputs``.
        SelectionError: A selector in ``rates`` matches nothing, or nothing that has parameters.
        FtkitError: Nothing is trainable, or a value is out of range.

    Example:
        >>> import torch
        >>> from ftkit import param_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> groups = param_groups(model, lr=0.1, weight_decay=0.01, layer_decay=0.5)
        >>> for group in groups:
        ...     print(group["lr"], group["weight_decay"], group["param_names"])
        0.025 0.01 ['0.weight']
        0.025 0.0 ['0.bias']
        0.05 0.01 ['1.weight']
        0.05 0.0 ['1.bias']
        0.1 0.01 ['2.weight']
        0.1 0.0 ['2.bias']
        >>> print(groups)
        6 groups of 6 parameter tensors, lowest layer first
          order: as the model runs
          parameters  count     lr  weight decay
          ──────────────────────────────────────
          0.weight       16  0.025          0.01
          0.bias          4  0.025             0
          1.weight       16   0.05          0.01
          1.bias          4   0.05             0
          2.weight        8    0.1          0.01
          2.bias          2    0.1             0
        >>> optimizer = torch.optim.AdamW(groups)
        >>> [group["lr"] for group in param_groups(model, 0.1, rates={"0": 0.001})]
        [0.001, 0.1]
    """
    model = unwrap(model)
    if layer_decay is not None:
        layer_decay = real_number("layer_decay", layer_decay, "of more than 0 and at most 1", lambda one: 0 < one <= 1)
    given = as_inputs(example_inputs)
    recipe = Recipe(
        lr=real_number("lr", lr, *_NOT_NEGATIVE),
        weight_decay=real_number("weight_decay", weight_decay, *_NOT_NEGATIVE),
        layer_decay=layer_decay,
        rates=[_named(model, *pair) for pair in _pairs(rates)],
    )
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise FtkitError(
            f"No parameter of the {type(model).__name__} is trainable, so there is nothing to optimize: "
            "call unfreeze(model, ...) first."
        )
    registered = layers_of(model)
    order = Order(registered, REGISTERED) if layer_decay is None else order_of(model, given)
    if list(map(set, order.layers)) != list(map(set, registered)):
        recipe["layers"] = names_by_layer(model, order.layers)
    return ParamGroups(_arranged(model, parameters, recipe, order.layers), order.source, order.why)


def arrange(model: nn.Module, parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Sort the given parameters of ``model`` into groups by ``recipe``, trainable or not.

    Example:
        >>> import torch
        >>> from ftkit._groups.recipe import Recipe, arrange
        >>> model = torch.nn.Linear(2, 2)
        >>> recipe = Recipe(lr=0.1, weight_decay=0.0, layer_decay=None, rates=[])
        >>> [group["param_names"] for group in arrange(model, {"bias": model.bias}, recipe)]
        [['bias']]
    """
    layers = layers_named(model, recipe["layers"]) if "layers" in recipe else layers_of(model)
    return _arranged(model, parameters, recipe, layers)


def _arranged(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], recipe: Recipe, layers: list[list[nn.Parameter]]
) -> list[dict[str, Any]]:
    depths: dict[nn.Parameter, int] = {}
    for depth, layer in enumerate(layers):
        depths |= dict.fromkeys(layer, depth)  # a tied parameter learns with its layer nearest to the head
    rates, spared = _rates(model, depths, recipe), _undecayed(model)
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rate, decay = rates[parameter], 0.0 if parameter in spared else recipe["weight_decay"]
        new: dict[str, Any] = {"params": [], "param_names": [], "lr": rate, "weight_decay": decay, "recipe": recipe}
        group = groups.setdefault((recipe["layer_decay"] and depths[parameter], rate, decay), new)
        group["params"].append(parameter)
        group["param_names"].append(name)
    return sorted(groups.values(), key=lambda group: depths[group["params"][0]])


def _rates(model: nn.Module, depths: Mapping[nn.Parameter, int], recipe: Recipe) -> dict[nn.Parameter, float]:
    """The rate of each parameter: by its layer, unless a selector sets it; of several selectors the last one does."""
    top, factor = max(depths.values(), default=0), recipe["layer_decay"] or 1.0
    rates = {parameter: recipe["lr"] * factor ** (top - depth) for parameter, depth in depths.items()}
    for names, rate in recipe["rates"]:
        rates |= dict.fromkeys(select(model, names).parameters.values(), rate)
    return rates


def _undecayed(model: nn.Module) -> set[nn.Parameter]:
    """Biases, the parameters of norms, and what a module's own ``no_weight_decay()`` lists, as those of timm do."""
    spared: set[nn.Parameter] = set()
    for module in model.modules():
        ask: Any = getattr(module, "no_weight_decay", None)
        listed = set(ask()) if callable(ask) else set()
        spared.update(parameter for name, parameter in module.named_parameters() if name in listed)
        own = module.named_parameters(recurse=False)
        spared.update(p for name, p in own if name == "bias" or is_norm(module) or not is_kernel(p))
    return spared


def _pairs(rates: Any) -> list[tuple[Selector, object]]:
    """Selectors with their rates, however they were given."""
    try:
        return [(selector, rate) for selector, rate in (rates.items() if isinstance(rates, Mapping) else rates or ())]
    except (TypeError, ValueError) as error:
        raise FtkitError(
            f"rates must be a dict of learning rates by selector, such as {{'layer4': 1e-4}}, not {came(rates)}."
        ) from error


def _named(model: nn.Module, selector: Selector, rate: object) -> tuple[list[str], float]:
    """Name what a selector means in such a way that the names select it again."""
    plain = real_number(f"the rate of {came(selector)}", rate, *_NOT_NEGATIVE)
    names = [name or "**" for name in outermost(model, select(model, selector).parameters)]
    if not names:
        raise SelectionError(f"{selector!r} selects no parameters, so it can't have a learning rate.")
    return names, plain
