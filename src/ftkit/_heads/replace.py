"""Find a model's head, replace it, extend it, and adapt the other end to another number of channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import nn

from ftkit._arguments import call, came, strings, whole_number
from ftkit._heads.counters import counters
from ftkit._heads.decide import Found, find_layers, in_classes
from ftkit._heads.layers import Layer, Layers, distinct, layers
from ftkit._heads.renew import with_channels
from ftkit._heads.surgery import recount, resize, untie
from ftkit._heads.trace import entries
from ftkit._models.slots import replace
from ftkit._models.undo import Undo
from ftkit._torch import is_convolution
from ftkit.errors import HeadError, SelectionError, did_you_mean
from ftkit.selection import Selector, select, unwrap

NewHead: TypeAlias = int | nn.Module | Callable[[int], nn.Module]


@dataclasses.dataclass(frozen=True)
class Head:
    """The layers that make a model's class outputs. A head is a selector: ``freeze_except(model, head)``.

    Attributes:
        names: The dotted name of each layer, a layer under two names under both.
        modules: The layers, one for each name.
        in_features: How many features or channels the first of them takes.
        out_features: How many classes there are. A layer may have more outputs than that: a detector's has one for
            each class and anchor.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    in_features: int
    out_features: int

    def __str__(self) -> str:
        return f"{', '.join(self.names)}: {self.in_features} -> {self.out_features}"


def find_head(model: nn.Module) -> Head:
    """Find the layers that make a model's class outputs.

    What the model says of itself settles the plain cases: names, ``num_classes``, ``num_labels``, its configuration.
    Where that leaves doubt, a copy without memory runs on fake tensors, and the autograd graph tells which layers the
    outputs come from. No real forward is run; models on the meta device do as well.

    Args:
        model: Any model: a classifier, a segmenter, a detector, a transformer with a task head.

    Returns:
        The head. Auxiliary heads, the second head of a distilled model and a detector's box layer belong to it.

    Raises:
        HeadError: There is no head, or several layers could be it; the message lists them.

    Example:
        >>> import torch
        >>> from ftkit import find_head
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> print(find_head(model))
        2: 16 -> 10
    """
    model = unwrap(model)
    found = find_layers(model)
    return _as_head(model, found.layers, found.classes)


def replace_head(
    model: nn.Module,
    head: NewHead,
    *,
    at: str | Iterable[str] | None = None,
    keep: Mapping[int, int] | None = None,
) -> Head:
    """In place, give a model a new head; return it.

    Every pretrained weight outside the head stays the same object. With a class count the new layers are like the old
    ones (class, bias or none, device, dtype, training mode, weight norm) and start as the model's own initialisation
    would have them; counters such as ``num_classes``, ``config.num_labels`` and ``config.id2label`` follow, so that
    the model's own loss works. A new parameter needs a gradient where the old one did, and where the whole model was
    frozen before.

    A head whose weight is tied to an embedding gets a weight of its own, and the embedding stays as it is. With
    ``keep`` the two stay one table, and are cut or grown together.

    Args:
        model: The model.
        head: The number of classes, counted as the model counts them (torchvision's detectors count the background);
            or a module; or a function that makes one from the number of incoming features.
        at: The dotted name, or names, of the head, where :func:`find_head` can't tell. A count replaces the last
            layer in what is named, a module replaces the whole of it.
        keep: For classes that stay: each one's new index to its old index. Their rows are carried over.

    Returns:
        The new head.

    Raises:
        HeadError: There is no head, or several layers could be it, or the new one does not fit. The model is as it
            was.

    Example:
        >>> import torch
        >>> from ftkit import replace_head
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> print(replace_head(model, 3))
        2: 16 -> 3
        >>> model(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise HeadError("The model is already wrapped in DistributedDataParallel, which would not see the new head.")
    model = unwrap(model)
    head = _checked_head(head)
    if keep is not None and not isinstance(head, int):
        raise HeadError("keep= carries rows over into layers made from a class count; give the count.")
    if not isinstance(keep, Mapping | None):
        raise HeadError(f"keep= takes a dict from each new index to its old one, such as {{0: 3}}, not {came(keep)}.")
    at = None if at is None else _names(at)
    found = find_layers(model) if at is None else _found_at(model, at)
    if any("" in layer.names for layer in found.layers):
        raise HeadError(f"The {type(model).__name__} is the head itself: nothing holds it that could hold a new one.")
    if not isinstance(head, int):
        return _put(model, found, head, _places(model, found, at))
    keep = None if keep is None else _checked_keep(keep, found.classes, head)
    return _as_head(model, resize(model, found, head, keep), head)


def replace_modules(model: nn.Module, selector: Selector, factory: Callable[[str, nn.Module], nn.Module]) -> list[str]:
    """In place, replace modules of a model; return their names.

    A module under several names, or of several parents, is replaced under all of them. Inside a module that is
    replaced nothing else is.

    Args:
        model: The model.
        selector: Which modules: a pattern of names, a type, a predicate, see :data:`~ftkit.selection.Selector`.
        factory: Called with the first name of a module and the module; returns the new one, or the old one to
            leave it.

    Returns:
        The names of the replaced modules.

    Raises:
        SelectionError: The selector matches no module.

    Example:
        >>> import torch
        >>> from ftkit import replace_modules
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> replace_modules(model, torch.nn.ReLU, lambda name, old: torch.nn.GELU())
        ['1']
        >>> model[1]
        GELU(approximate='none')
    """
    model = unwrap(model)
    if not callable(factory):
        raise HeadError(f"factory must be a function of a name and a module, not {came(factory)}.")
    chosen = _chosen(model, selector)
    news: list[tuple[str, nn.Module, nn.Module]] = []
    for name, old in chosen.items():
        new = call("factory", factory, name, old, takes="name, module", error=HeadError)
        if not isinstance(new, nn.Module):
            raise HeadError(f"The factory gave {came(new)} for {name!r}, and not a module.")
        if new is not old:
            news.append((name, old, new))
    with Undo() as undo:
        for _, old, new in news:
            replace(model, old, new, undo)
    return [name for name, _, _ in news]


def append_head(model: nn.Module, head: NewHead) -> nn.Sequential:
    """Return a model with one more layer on the outputs of ``model``, which stays whole.

    The classic way to keep the 1000 ImageNet outputs and learn a layer on top of them.

    Args:
        model: A model with class outputs (its head tells how many), or features with ``num_features``.
        head: The number of outputs of a linear layer; or a module; or a function of the number of incoming features.

    Returns:
        ``nn.Sequential`` of two: ``body``, which is ``model`` itself, and ``head``.

    Example:
        >>> import torch
        >>> from ftkit import append_head
        >>> model = append_head(torch.nn.Sequential(torch.nn.Linear(8, 10)), 3)
        >>> model(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """
    head = _checked_head(head)
    if isinstance(head, nn.Module):
        new = head
    elif isinstance(head, int):
        new = nn.Linear(_width(unwrap(model)), head)
        like = next(model.parameters(), None)
        if like is not None:
            new.to(like.device, like.dtype)
    else:
        new = _made(head, _width(unwrap(model)))
    joined = nn.Sequential()
    joined.add_module("body", model)
    joined.add_module("head", new)
    return joined.train(model.training)


def adapt_input(model: nn.Module, channels: int) -> list[str]:
    """In place, make a model take images of another number of channels, with its pretrained filters.

    One channel gets the sum of the filters, so that a grey image gives what its three equal channels gave. More
    channels take the filters in turn, scaled so that the response keeps its size. Counters such as ``in_chans`` and
    ``config.num_channels`` follow.

    Args:
        model: A model that images enter by convolutions.
        channels: The number of channels that images will have.

    Returns:
        The names of the layers that changed.

    Raises:
        HeadError: The model has no convolution that images enter by. It is as it was.

    Example:
        >>> import torch
        >>> from ftkit import adapt_input
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> adapt_input(model, 1)
        ['0']
        >>> model(torch.zeros(1, 1, 9, 9)).shape
        torch.Size([1, 8, 7, 7])
    """
    model = unwrap(model)
    channels = whole_number("channels", channels, least=1, error=HeadError)
    found = [entry for entry in entries(model) if is_convolution(entry.module)]
    if not found:
        raise HeadError(f"Images enter the {type(model).__name__} by no convolution, so its channels can't be changed.")
    news = [(entry, with_channels(entry, channels)) for entry in found]
    with Undo() as undo:
        for entry, new in news:
            replace(model, entry.modules, new, undo)
            for counter in counters(model, entry.names, of="channels"):
                if counter.value == entry.inputs:
                    counter.set(channels, undo)
    return [entry.name for entry in found]


# ------------------------------------------------------------------ a module as the head


def _places(model: nn.Module, found: Found, at: list[str] | None) -> Layers:
    """What the user's modules are to replace: the layers of the head, or the whole of what the user named."""
    if at is not None:
        named = [(name, _at(model, name), _layers_in(model, name)[0]) for name in at]
        return Layers(dataclasses.replace(first, names=(name,), modules=(module,)) for name, module, first in named)
    if any(isinstance(layer.module, nn.Embedding) for layer in found.layers):
        raise HeadError(
            f"The {type(model).__name__} has embeddings of its classes that must follow: give a class count."
        )
    return found.layers


def _put(model: nn.Module, found: Found, head: nn.Module | Callable[[int], nn.Module], places: Layers) -> Head:
    """Replace a head by the user's own module or modules; ``places`` are what they are to replace."""
    if isinstance(head, nn.Module) and len(distinct(place.module for place in places)) > 1:
        firsts = [place.name for place in places]
        raise HeadError(
            f"The head of the {type(model).__name__} has {len(places)} layers, {', '.join(map(repr, firsts))}, and one "
            f"module can't stand for all. Give a function of in_features that makes one for each, or say "
            f"at={firsts[0]!r}."
        )
    news = [(place, head if isinstance(head, nn.Module) else _made(head, place.inputs)) for place in places]
    last = [_checked(new, place)[-1:] for place, new in news]
    counts = [layer.outputs for several in last for layer in several]
    with Undo() as undo:
        for place, new in news:
            _settle(new, place.module)
            replace(model, place.modules, new, undo)
        for layer in found.layers:
            untie(model, layer, undo)
        if len(set(counts)) == 1:
            recount(model, found, counts[0], {}, undo)
    return _as_head(model, places, [found.classes, *counts][-1])


def _checked_head(head: NewHead) -> NewHead:
    """Return what was given as a head, a count as a plain number."""
    if callable(head):
        return head
    otherwise = " (the number of classes), a module or a function of in_features"
    return whole_number("head", head, least=1, otherwise=otherwise, error=HeadError)


def _made(factory: Callable[[int], nn.Module], width: int) -> nn.Module:
    made = call("head", factory, width, takes="in_features", error=HeadError)
    if not isinstance(made, nn.Module):
        raise HeadError(f"The factory of the head gave {came(made)} for {width} features, and not a module.")
    return made


def _checked(new: nn.Module, place: Layer) -> Layers:
    """Return the layers of a user's module, if the first of them takes what comes in."""
    found = layers(new)
    sure = [one for one in found[:1] if isinstance(one.module, nn.Linear) or is_convolution(one.module)]
    if sure and sure[0].inputs != place.inputs:
        raise HeadError(
            f"The new head takes {sure[0].inputs} features, but {place.inputs} come in at {place.name!r}. "
            f"Make it from the width instead: replace_head(model, lambda in_features: ...)."
        )
    return found


def _settle(new: nn.Module, old: nn.Module) -> None:
    """Bring a user's module to the device, dtype and mode of the old layer."""
    like = next(iter(old.parameters()), None)
    if like is not None and like.device.type != "meta":
        new.to(like.device, like.dtype if like.is_floating_point() else None)
    new.train(old.training)


# ------------------------------------------------------------------ names


def _as_head(model: nn.Module, found: Layers, classes: int) -> Head:
    names = tuple(found.names)
    return Head(names, tuple(map(model.get_submodule, names)), found[0].inputs, classes)


def _names(at: str | Iterable[str]) -> list[str]:
    names = [at] if isinstance(at, str) else strings("at", at, "dotted names")
    if not names:
        raise HeadError("at= is empty: leave it out to let the head be found, or name a layer.")
    return names


def _at(model: nn.Module, name: str) -> nn.Module:
    by_name: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if name not in by_name or not name:
        hint = did_you_mean(name, filter(None, by_name))
        raise HeadError(f"The {type(model).__name__} has no module {name!r}.{hint}")
    return by_name[name]


def _layers_in(model: nn.Module, name: str) -> Layers:
    module = _at(model, name)
    found = layers(model).inside(name)
    if not found:
        raise HeadError(f"{name!r} is a {type(module).__name__}, with no linear or convolutional layer in it.")
    return found


def _found_at(model: nn.Module, at: list[str]) -> Found:
    """The last layer in each module that the user named, as a head."""
    last = [_layers_in(model, name)[-1] for name in at]
    named = Layers(in_classes(model, layer) for layer in {layer.names: layer for layer in last}.values())
    return Found(named, named[-1].classes)


def _checked_keep(keep: Mapping[int, int], classes: int, count: int) -> dict[int, int]:
    """Return what is kept, in plain numbers."""
    kept = {
        whole_number("A new class in keep", new, least=0, error=HeadError): whole_number(
            "An old class in keep", old, least=0, error=HeadError
        )
        for new, old in keep.items()
    }
    for new, old in kept.items():
        if not 0 <= new < count:
            raise HeadError(f"keep= names the new class {new}, but the new head has classes 0 to {count - 1}.")
        if not 0 <= old < classes:
            raise HeadError(f"keep= takes over the old class {old}, but the head has classes 0 to {classes - 1}.")
    return kept


def _chosen(model: nn.Module, selector: Selector) -> dict[str, nn.Module]:
    """The modules that a selector names, without those inside others of them."""
    modules = select(model, selector).modules
    kinds = selector if isinstance(selector, type) else None
    chosen: dict[str, nn.Module] = {}
    inside: set[int] = set()
    for name, module in modules.items():
        if id(module) not in inside and (kinds is None or isinstance(module, kinds)):
            chosen[name] = module
            inside.update(map(id, module.modules()))
    if not chosen:
        raise SelectionError(f"{selector!r} selects parameters of the {type(model).__name__}, but no module.")
    return chosen


def _width(model: nn.Module) -> int:
    """How many outputs, or features, a model gives."""
    try:
        return find_head(model).out_features
    except HeadError:
        features = getattr(model, "num_features", None)
        if type(features) is int:
            return features
        raise
