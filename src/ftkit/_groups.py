"""Parameter groups for an optimizer: layer-wise rates, rates by selector, and no decay where it does harm."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from ftkit._heads.replace import DoubtError, find_head
from ftkit.errors import FtkitError, HeadError, SelectionError, did_you_mean
from ftkit.selection import Selection, Selector, select, unwrap

__all__ = ["Recipe", "arrange", "join", "layout", "param_groups", "restore_layout"]


class Recipe(TypedDict):
    """The arguments of :func:`param_groups`, kept in every group so that a thawed parameter can join by the same rule.

    Plain JSON types only: an optimizer's ``state_dict`` carries it through any checkpoint.
    """

    lr: float
    weight_decay: float
    layer_decay: float | None
    rates: list[tuple[list[str], float]]


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    rates: Mapping[Selector, float] | Iterable[tuple[Selector, float]] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of any model into groups for a ``torch.optim`` optimizer.

    Every trainable parameter is in exactly one group, a tied one too; frozen ones are left out. Each group has its real
    ``lr`` and ``weight_decay``, its ``param_names``, and the ``recipe`` by which :func:`ftkit.unfreeze` finds the
    options for parameters that join later. Groups run from the input of the model to its head.

    Biases and the parameters of norms never decay, nor does what the model's own ``no_weight_decay()`` lists.

    With ``layer_decay``, a layer that lies ``k`` layers below the head learns at ``lr * layer_decay**k`` (BEiT, Bao et
    al. 2021, appendix). A layer is an element of the model's lists of blocks: ``layer1.0``, ``blocks.7``,
    ``encoder.layer.3``; what comes before them is the lowest layer, the head is the highest. Which layer a
    parameter belongs to does not depend on what is frozen.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        lr: The rate of the head, and of everything where no ``layer_decay`` or ``rates`` says otherwise.
        weight_decay: For all but biases and norms.
        layer_decay: The factor from one layer to the next lower one, in (0, 1]; usual are 0.65 to 0.9.
        rates: Learning rates by selector, as absolute values; they outrank ``lr`` and ``layer_decay``. Where several
            selectors mean one parameter, the last one counts.

    Returns:
        Groups as ``torch.optim`` takes them.

    Raises:
        SelectionError: A selector in ``rates`` matches nothing, or nothing that has parameters.
        FtkitError: Nothing is trainable, or a number is out of its range.

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
        >>> optimizer = torch.optim.AdamW(groups)
        >>> [group["lr"] for group in param_groups(model, 0.1, rates={"0": 0.001})]
        [0.001, 0.1]
    """
    model = unwrap(model)
    _check("lr", lr, lr >= 0, "0 or more")
    _check("weight_decay", weight_decay, weight_decay >= 0, "0 or more")
    if layer_decay is not None:
        _check("layer_decay", layer_decay, 0 < layer_decay <= 1, "more than 0 and at most 1")
    pairs = rates.items() if isinstance(rates, Mapping) else rates or ()
    resolved: list[tuple[list[str], float]] = []
    for selector, rate in pairs:
        _check(f"the rate of {selector!r}", rate, rate >= 0, "0 or more")
        names = _names(select(model, selector))
        if not names:
            raise SelectionError(f"What {selector!r} selects has no parameters, so no learning rate either.")
        resolved.append((names, float(rate)))
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise FtkitError(
            f"No parameter of the {type(model).__name__} is trainable, so an optimizer has nothing to do: "
            "call unfreeze(model, ...) first."
        )
    return arrange(
        model,
        parameters,
        Recipe(lr=float(lr), weight_decay=float(weight_decay), layer_decay=layer_decay, rates=resolved),
    )


def arrange(model: nn.Module, parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """Sort the given parameters of ``model`` into groups by ``recipe``, trainable or not.

    Example:
        >>> import torch
        >>> from ftkit._groups import Recipe, arrange
        >>> model = torch.nn.Linear(2, 2)
        >>> recipe = Recipe(lr=0.1, weight_decay=0.0, layer_decay=None, rates=[])
        >>> [group["param_names"] for group in arrange(model, {"bias": model.bias}, recipe)]
        [['bias']]
    """
    depths = {
        id(parameter): depth for depth, layer in enumerate(_layers(model)) for parameter in layer
    }  # the last layer to name a tied parameter wins: it learns with the layer nearest to the head
    top = max(depths.values(), default=0)
    fixed = {
        id(parameter): rate for names, rate in recipe["rates"] for parameter in select(model, names).parameters.values()
    }
    spared = _undecayed(model)
    groups: dict[tuple[int, float, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        depth = top if recipe["layer_decay"] is None else depths[id(parameter)]
        rate = fixed.get(id(parameter))
        if rate is None:
            rate = recipe["lr"] * (recipe["layer_decay"] or 1.0) ** (top - depth)
        decay = 0.0 if id(parameter) in spared else recipe["weight_decay"]
        new: dict[str, Any] = {"params": [], "param_names": [], "lr": rate, "weight_decay": decay, "recipe": recipe}
        group = groups.setdefault((depth, rate, decay), new)
        group["params"].append(parameter)
        group["param_names"].append(name)
    return sorted(groups.values(), key=lambda group: depths[id(group["params"][0])])


def join(model: nn.Module, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Add those of the parameters that ``optimizer`` lacks, by identity, with the options that they would have had.

    The recipe comes from the optimizer's groups; without one, the newest group's rate and the largest weight
    decay are the recipe. If a scheduler has moved the rates since, the newcomers' rates are moved by the same factor. A
    group with the same options takes them in; otherwise there is a new one, which the schedulers of the optimizer move
    from then on as they move the group that lent its options.

    Returns:
        The names of the parameters that were added.

    Example:
        >>> import torch
        >>> from ftkit._groups import join
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD([model.weight], lr=0.1)
        >>> join(model, dict(model.named_parameters()), optimizer)
        ('bias',)
        >>> len(optimizer.param_groups)
        1
    """
    present = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = {name: parameter for name, parameter in parameters.items() if id(parameter) not in present}
    groups, like = _newcomers(model, missing, optimizer) if missing else ([], {})
    for group in groups:
        twin = next((old for old in optimizer.param_groups if _options(old) == _options(group)), None)
        # An optimizer with its own way of adding (ZeroRedundancyOptimizer) has to see what joins.
        if twin is None or type(optimizer).add_param_group is not torch.optim.Optimizer.add_param_group:
            _add(optimizer, group, like)
        else:
            twin["params"] += group["params"]
            if "param_names" in twin:
                twin["param_names"] += group["param_names"]
    return tuple(missing)


def layout(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names in ``model`` of the parameters in each group of ``optimizer``; others are passed over.

    Example:
        >>> import torch
        >>> from ftkit._groups import layout
        >>> model = torch.nn.Linear(2, 2)
        >>> layout(model, torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1))
        [['weight'], ['bias']]
    """
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return [[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups]


def restore_layout(model: nn.Module, groups: list[list[str]], optimizer: torch.optim.Optimizer) -> None:
    """Give ``optimizer`` the groups that :func:`layout` saw, so that it can load the ``state_dict`` of that time.

    Parameters that it lacks are added to the group that they were in, in their place; those that it has stay in theirs.

    Raises:
        FtkitError: The model has no parameter of such a name; the optimizer is untouched.

    Example:
        >>> import torch
        >>> from ftkit._groups import layout, restore_layout
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD([model.weight], lr=0.1)
        >>> restore_layout(model, [["weight"], ["bias"]], optimizer)
        >>> layout(model, optimizer)
        [['weight'], ['bias']]
    """
    model = unwrap(model)
    parameters = dict(model.named_parameters())
    for name in (name for names in groups for name in names if name not in parameters):
        raise FtkitError(
            f"The optimizer held {name!r}, which the {type(model).__name__} lacks."
            f"{did_you_mean(name, parameters)} Build the model as it was then."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for index, names in enumerate(groups):
        missing = {name: parameters[name] for name in names if id(parameters[name]) not in held}
        if not missing:
            continue
        if index >= len(optimizer.param_groups):
            (group, *_), like = _newcomers(model, missing, optimizer)
            group["params"] = list(missing.values())
            if "param_names" in group:
                group["param_names"] = list(missing)
            _add(optimizer, group, like)
            continue
        group = optimizer.param_groups[index]
        old = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
        mine = set(map(id, group["params"]))
        first = {name: parameters[name] for name in names if name in missing or id(parameters[name]) in mine}
        placed = set(map(id, first.values()))
        rest = [parameter for parameter in group["params"] if id(parameter) not in placed]
        group["params"] = [*first.values(), *rest]
        if "param_names" in group:
            group["param_names"] = [*first, *(old[id(parameter)] for parameter in rest)]


def _newcomers(
    model: nn.Module, missing: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Groups for parameters that join late, with all the options of one that is there; and that one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = [group for group in optimizer.param_groups if any(id(parameter) in names for parameter in group["params"])]
    like = (own or optimizer.param_groups)[-1]
    planned = float(like.get("initial_lr", like["lr"]))
    recipe: Recipe | None = like.get("recipe") if own else None  # another model's would name other layers
    if recipe is None:
        decay = max(float(group.get("weight_decay", 0.0)) for group in own or [like])
        recipe = Recipe(lr=planned, weight_decay=decay, layer_decay=None, rates=[])
    elif known := [parameter for parameter in like["params"] if id(parameter) in names]:
        planned = arrange(model, {names[id(known[0])]: known[0]}, recipe)[0]["lr"]
    groups = arrange(model, missing, recipe)
    for group in groups:
        rate, decay = group["lr"], group["weight_decay"]
        keep = {"params", *(key for key in ("param_names", "recipe") if key in like)}
        for key in group.keys() - keep:
            del group[key]
        group.update((key, value) for key, value in _options(like).items() if key != "recipe")
        for key in group.keys() & {"lr", "initial_lr", "max_lr", "min_lr"}:  # the last three are the schedulers'
            group[key] = group[key] * (rate / planned) if planned else rate
        if "weight_decay" in group:
            group["weight_decay"] = decay
    return groups, like


# What schedulers (torch's, timm's) keep in a list, one for each group; those that are rates.
_LISTS = ("base_lrs", "base_values", "max_lrs", "min_lrs", "lr_lambdas", "base_momentums", "max_momentums", "_last_lr")
_RATES = ("base_lrs", "base_values", "max_lrs", "_last_lr")


def _add(optimizer: torch.optim.Optimizer, group: dict[str, Any], like: Mapping[str, Any]) -> None:
    """Add a group to an optimizer, and to the schedulers that move its rates, as they have the group ``like``."""
    count = len(optimizer.param_groups)
    index = next(index for index, old in enumerate(optimizer.param_groups) if old is like)
    key = "initial_lr" if "initial_lr" in like else "lr"
    ratio = group[key] / like[key] if like[key] else 1.0
    optimizer.add_param_group(group)
    for scheduler in _schedulers(optimizer):
        for key in _LISTS:
            values = getattr(scheduler, key, None)
            if isinstance(values, list) and len(values) == count:
                setattr(scheduler, key, [*values, values[index] * ratio if key in _RATES else values[index]])


def _schedulers(optimizer: torch.optim.Optimizer) -> list[Any]:
    """The schedulers of an optimizer. It has no list of them, but they refer to it."""
    found = []
    for holder in gc.get_referrers(optimizer):
        owners = [holder] if not isinstance(holder, dict) else gc.get_referrers(holder)
        found += [owner for owner in owners if getattr(owner, "__dict__", {}).get("optimizer") is optimizer]
    return list({id(owner): owner for owner in found}.values())


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in {"params", "param_names"}}


def _check(what: str, value: float, fits: bool, wanted: str) -> None:
    if not fits or not math.isfinite(value):
        raise FtkitError(f"Expected {what} to be {wanted}, got {value!r}.")


def _names(selection: Selection) -> list[str]:
    """Return names that select the same again: the outermost modules, and the parameters outside them."""
    names: list[str] = []
    covered: set[int] = set()
    for name, module in selection.modules.items():
        parameters = {id(parameter) for parameter in module.parameters()}
        if not parameters <= covered:
            names.append(name or "**")
            covered |= parameters
    names += [name for name, parameter in selection.parameters.items() if id(parameter) not in covered]
    return names


def _undecayed(model: nn.Module) -> set[int]:
    """Identities of the biases, of the parameters of norms, and of what a module's own ``no_weight_decay()`` lists."""
    spared: set[int] = set()
    for prefix, module in model.named_modules():
        ask: Any = getattr(module, "no_weight_decay", None)
        listed = {f"{prefix}.{name}".lstrip(".") for name in ask()} if callable(ask) else set()
        spared |= {id(parameter) for name, parameter in module.named_parameters(prefix) if name in listed}
        for name, parameter in module.named_parameters(recurse=False):
            flat = not isinstance(parameter, UninitializedParameter) and parameter.ndim <= 1
            if flat or name == "bias" or _is_norm(module):
                spared.add(id(parameter))
    return spared


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)


def _layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters by layer, from the input in the order in which the model registers its parts, the head on top."""
    head = _head(model)
    ids = set(map(id, head))
    layers: list[list[nn.Parameter]] = []
    early: list[nn.Parameter] = []
    for parameters, is_layer in _open(model, len(_kernels(model.parameters())), inside_list=False):
        rest = [parameter for parameter in parameters if id(parameter) not in ids]
        if not is_layer or not _kernels(rest):
            (layers[-1] if layers else early).extend(rest)
        else:
            layers.append([*early, *rest])
            early = []
    return [*layers, [*early, *head]] if head or not layers else layers


def _head(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all layers that make the outputs, none where the model has no head or hides it."""
    try:
        modules = find_head(model).modules
    except DoubtError as several:  # a head for each task
        modules = tuple(layer.module for layer in several.layers)
    except HeadError:
        return []
    return [parameter for module in modules for parameter in module.parameters()]


def _open(module: nn.Module, total: int, *, inside_list: bool) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """Yield the parameters of ``module``, or of its parts, each with: do they make a layer of their own?

    A norm goes with the layer before it, as in timm; so do the tokens and positions that a module of parts holds.
    """
    parts = [child for child in module.children() if any(True for _ in child.parameters())]
    if not parts or is_parametrized(module) or not _opens(module, total, inside_list=inside_list):
        yield list(module.parameters()), bool(_kernels(module.parameters()))
        return
    yield list(module.parameters(recurse=False)), False
    listed = inside_list or _is_list(module)
    for part in parts:
        yield from _open(part, total, inside_list=listed)


def _opens(module: nn.Module, total: int, *, inside_list: bool) -> bool:
    kernels = len(_kernels(module.parameters()))
    if kernels < 2:
        return False
    if 2 * kernels >= total or _is_list(module):
        return True
    # A stage of blocks opens, a block does not. Deep inside a block there may be lists too, but of branches or
    # experts that work side by side; so once inside a list, only a list of blocks that the module itself holds counts.
    return any(_lists_blocks(part) for part in (module.children() if inside_list else module.modules()))


def _lists_blocks(module: nn.Module) -> bool:
    if not _is_list(module):
        return False
    blocks = [type(child) for child in module.children() if _is_block(child)]
    return any(blocks.count(kind) >= 2 for kind in set(blocks))


def _is_block(module: nn.Module) -> bool:
    return not _is_list(module) and len(_kernels(module.parameters())) >= 2 and any(map(_is_norm, module.modules()))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _kernels(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [
        parameter for parameter in parameters if isinstance(parameter, UninitializedParameter) or parameter.ndim >= 2
    ]
