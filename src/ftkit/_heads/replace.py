"""Find a model's head and replace it, or any other module."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from ftkit._arguments import call, came, flag, listed, whole_number
from ftkit._heads.counters import counters, own_configs
from ftkit._heads.decide import Found, find_layers, in_classes, in_order, with_norms
from ftkit._heads.fresh import mark
from ftkit._heads.inputs import Inputs
from ftkit._heads.labels import checked_classes, plan_names
from ftkit._heads.layers import Layer, Layers, distinct, layers, on_meta
from ftkit._heads.proof import Proof
from ftkit._heads.refusals import UnsureError
from ftkit._heads.surgery import recount, resize, untie
from ftkit._heads.trace import Trace, trace
from ftkit._models.dryrun import alone, as_call, remember_random, untouched
from ftkit._models.slots import replace
from ftkit._models.undo import Undo
from ftkit._reports import Parts, Report
from ftkit._torch import is_convolution, is_norm
from ftkit._wording import plural, some
from ftkit.errors import HeadError, SelectionError, did_you_mean
from ftkit.selection import Selector, select, unwrap

_log = logging.getLogger("ftkit")

NewHead: TypeAlias = int | nn.Module | Callable[[int], nn.Module]


@dataclasses.dataclass(frozen=True, repr=False)
class Head(Report):
    """The layers that compute a model's class outputs. A head is a selector: ``freeze_except(model, head)``.

    Attributes:
        names: The dotted names of the layers; a layer with two names is listed under both.
        modules: The layers, one for each name.
        in_features: Number of features or channels that the first layer takes.
        out_features: Number of classes; 0 if neither a run nor its layers tell how many outputs a module of your own
            has. A layer may have more outputs: a detector's has one for each class and anchor.
        proven: Whether a run on fake tensors showed that the model works with a new head. Always false for a head that
            was only found.
        unproven: Why no such run was possible.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    in_features: int
    out_features: int
    proven: bool = False
    unproven: str = ""

    def _parts(self) -> Parts:
        doubt = f" (not proven: {self.unproven})" if self.unproven else ""
        outputs = self.out_features or "an unknown number of outputs"
        yield f"{some(self.names, 8)}: {self.in_features} -> {outputs}{doubt}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with the modules' class names for the modules."""
        classes = [type(module).__name__ for module in self.modules]
        return Report.to_dict(dataclasses.replace(self, modules=())) | {"modules": classes}


@alone()
def find_head(model: nn.Module, *, example_inputs: Any = None) -> Head:
    """Find the layers that compute a model's class outputs.

    What the model declares settles the simple cases: names, ``num_classes``, ``num_labels``, its configuration.
    Otherwise a copy that takes no memory runs on fake tensors, and the autograd graph shows which layers the outputs
    come from. No real forward pass is run; models on the meta device work too.

    Args:
        model: Any model: a classifier, a segmenter, a detector, a transformer with a task head.
        example_inputs: Inputs of the model, if they can't be made up from its layers: a tensor, a tuple of positional
            arguments, a dict of keyword arguments, or a pair of such a tuple and dict. Only shapes and types matter.

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
    found = _found(model, as_inputs(example_inputs))
    return _as_head(model, found.layers, found.classes)


@alone()
def replace_head(
    model: nn.Module,
    head: NewHead | None = None,
    *,
    classes: Sequence[str] | None = None,
    at: str | nn.Module | Head | Iterable[str | nn.Module] | None = None,
    keep: Mapping[int, int] | None = None,
    example_inputs: Any = None,
    verify: bool = True,
) -> Head:
    """Replace the head of a model, in place, and return the new head.

    Every pretrained weight outside the head stays the same object. With a class count, the new layers are like the old
    ones (class, bias or none, device, dtype, training mode, weight norm) and are initialized the way the model does it.
    Counters such as ``num_classes``, ``config.num_labels`` and ``config.id2label`` are updated, so that the model's own
    loss works. The names in ``classes`` go into the configuration if that keeps labels (``config.id2label`` and
    ``label2id`` of transformers), else into ``model.class_names``; checkpoints and deltas contain them, and whoever
    loads one gets them back. The configuration is copied first, since other models may have the same one: read
    ``model.config`` afterwards. A new parameter requires a gradient if the old one did, or if the whole model was
    frozen.

    A head whose weight is tied to an embedding gets its own weight, and the embedding stays as is. With ``keep``, they
    stay one table, which is cut or grown.

    The new head is proven: a copy of the model that takes no memory runs before and after, and its outputs, including
    its own loss, must have changed with the head. If no such run is possible, ``unproven`` of the head says why.

    Args:
        model: The model.
        head: The number of classes, counted as the model counts them (torchvision's detectors count the background);
            or a module; or a function that makes one from the number of incoming features.
        classes: The names of the classes, in the order of the outputs, such as ``dataset.classes``. Without ``head``,
            their number is the class count. torchvision's detectors need ``"__background__"`` first.
        at: The dotted name of the head, or the module itself, or several of them, or a :class:`Head`, if
            :func:`find_head` can't tell. A count replaces the last layer in each; a module replaces the whole of it.
        keep: For classes that stay, a dict from new index to old index. Their rows are carried over.
        example_inputs: Inputs of the model, if they can't be made up, as for :func:`find_head`.
        verify: Whether to prove the new head, which takes about as long as two forward passes.

    Returns:
        The new head.

    Raises:
        HeadError: There is no head, or several layers could be it, or the new one does not fit, or the model does
            not work with it, or the number of its outputs is not that of the names in ``classes``, or these have no
            order, or the model keeps names of another head or of its own. The model is left unchanged.

    Example:
        >>> import torch
        >>> from ftkit import replace_head
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> print(replace_head(model, 3))
        2: 16 -> 3
        >>> model(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
        >>> print(replace_head(model, classes=["ant", "bee"]))
        2: 16 -> 2
        >>> model.class_names
        ['ant', 'bee']
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise HeadError(
            "The model is already wrapped in DistributedDataParallel, which would not see the new head. "
            "Replace the head before wrapping."
        )
    model = unwrap(model)
    names_of_classes = None if classes is None else checked_classes(classes)
    head = _checked_new(head, names_of_classes)
    if keep is not None and not isinstance(head, int):
        raise HeadError("keep= carries rows over into layers made from a class count; pass the count.")
    if not isinstance(keep, Mapping | None):
        raise HeadError(f"keep= takes a dict from each new index to its old one, such as {{0: 3}}, not {came(keep)}.")
    names = None if at is None else _names(model, at)
    verify = flag("verify", verify)
    given = as_inputs(example_inputs)
    found = _found(model, given, run=verify) if names is None else _found_at(model, names, given, run=verify)
    if not verify:
        found = dataclasses.replace(found, trace=None)
    if any("" in layer.names for layer in found.layers):
        raise HeadError(f"The {type(model).__name__} is the head itself: no other module contains it.")
    keep = None if keep is None or not isinstance(head, int) else _checked_keep(keep, found.classes, head)
    with Undo() as undo:
        own_configs(model, _counting(model, found), undo)
        if not isinstance(head, int):
            return _put(model, found, head, _places(model, found, names), names_of_classes)
        made, proof = resize(model, found, head, keep, _names_follow(model, found, names_of_classes))
    return _as_head(model, made, head, proof if verify else None)


def _checked_new(head: NewHead | None, classes: list[str] | None) -> NewHead:
    """Return what is to be the head: a count is the number of names, or agrees with it."""
    if head is None and classes is None:
        raise HeadError("replace_head needs the new head: a number of classes, their names as classes=, or a module.")
    if head is None:
        return len(classes or ())
    checked = checked_head(head)
    if classes is not None and isinstance(checked, int) and checked != len(classes):
        raise HeadError(f"The head is to have {checked} outputs, but classes= has {plural(len(classes), 'name')}.")
    return checked


def _names_follow(
    model: nn.Module, found: Found, classes: list[str] | None
) -> Callable[[int, Mapping[int, int], Undo], None]:
    """Plan how the names of the classes follow: in each configuration that counts them, or else in the model."""
    return plan_names(model, found.layers.names, found.classes, _counting(model, found), classes)


def _counting(model: nn.Module, found: Found) -> list[object]:
    """The modules and configurations that count the classes of a head."""
    return [counter.owner for counter in counters(model, found.layers.names) if counter.value == found.classes]


@alone()
def replace_modules(model: nn.Module, selector: Selector, factory: Callable[[str, nn.Module], nn.Module]) -> list[str]:
    """Replace modules of a model, in place, and return their names.

    A module with several names or parents is replaced under all of them. Modules inside a replaced module are not
    replaced separately.

    A new module gets the train or eval mode of the old one. If it is of the same class and the old one was frozen, its
    parameters are frozen too; a module of another class, such as an adapter, trains. To freeze it, or to keep its
    running statistics and Dropout fixed, pass the returned names to :func:`freeze`.

    Args:
        model: The model.
        selector: Which modules: a name pattern, a type, a predicate, see :data:`~ftkit.selection.Selector`.
        factory: Function called with the first name of a module and the module; returns the new module, or the old one
            to leave it in place.

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
            raise HeadError(f"The factory returned {came(new)} for {name!r}, not a module.")
        if new is not old:
            news.append((name, old, new))
    known = list(model.modules())
    with Undo() as undo:
        for _, old, new in news:
            _take_after(new, old, known)
            replace(model, old, new, undo)
    return [name for name, _, _ in news]


def _take_after(new: nn.Module, old: nn.Module, known: list[nn.Module]) -> None:
    """Give a new module the mode of the old one, and if it is of the same class, its frozen state."""
    ours = {id(part) for one in known for part in (one, *one.parameters(recurse=False))}
    for part in new.modules():
        if id(part) not in ours:
            part.training = old.training
    parameters = list(old.parameters())
    frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
    if frozen and type(new) is type(old) and ours.isdisjoint(map(id, (*new.modules(), *new.parameters()))):
        new.requires_grad_(False)


# ------------------------------------------------------------------ a module as the head


def _places(model: nn.Module, found: Found, at: list[str] | None) -> Layers:
    """What the user's modules are to replace: the layers of the head, or the whole of what the user named."""
    if at is not None:
        named = [(name, _at(model, name), _layers_in(model, name)[0]) for name in at]
        return Layers(dataclasses.replace(first, names=(name,), modules=(module,)) for name, module, first in named)
    if any(isinstance(layer.module, nn.Embedding) for layer in found.layers):
        raise HeadError(
            f"The {type(model).__name__} has class embeddings that must be resized too: pass a class count."
        )
    in_a_row = [one.name for one in found.layers if one.from_classes or is_norm(one.module)]
    if in_a_row:
        raise HeadError(
            f"The class scores of the {type(model).__name__} also pass through {some(list(map(repr, in_a_row)), 2)}. "
            "Pass a class count, or name the module that holds all of this with at=."
        )
    return found.layers


def _put(
    model: nn.Module,
    found: Found,
    head: nn.Module | Callable[[int], nn.Module],
    places: Layers,
    classes: list[str] | None,
) -> Head:
    """Replace a head by the user's own module or modules; ``places`` are what they are to replace."""
    if isinstance(head, nn.Module) and len(distinct(place.module for place in places)) > 1:
        firsts = [place.name for place in places]
        raise HeadError(
            f"The head of the {type(model).__name__} has {len(places)} layers, {', '.join(map(repr, firsts))}, and one "
            f"module can't replace them all. Pass a function of in_features that makes one for each, or "
            f"at={firsts[0]!r}."
        )
    follow = _names_follow(model, found, classes)
    proof = Proof(model, found)
    known = set(map(id, model.modules()))
    with Undo() as undo:
        remember_random(undo)
        news = [(place, head if isinstance(head, nn.Module) else made_from(head, place.inputs)) for place in places]
        last = [[layer for layer in _checked(new, place)[-1:] if layer.sure] for place, new in news]
        counts = [layer.outputs for several in last for layer in several]
        count = [found.classes, *counts][-1]
        if classes is not None and len(counts) < len(news):
            raise HeadError(
                "How many outputs the new head has can't be told, since it ends in no linear or convolutional layer, "
                "so classes= can't name them. Leave out the names, and keep them yourself."
            )
        if classes is not None and len(classes) != count:
            raise HeadError(
                f"The new head has {plural(count, 'output')}, but classes= has {plural(len(classes), 'name')}."
            )
        for place, new in news:
            mark((part for part in new.modules() if id(part) not in known), undo)
            _settle(new, place.module)
            replace(model, place.modules, new, undo)
        for layer in found.layers:
            untie(model, layer, undo)
        if len(set(counts)) == 1:
            recount(model, found, counts[0], {}, undo)
        follow(count, {}, undo)
        gives = proof.check_module(model) or (counts or [0])[-1]
    return _as_head(model, places, gives, proof if found.trace else None)


def checked_head(head: NewHead) -> NewHead:
    """Return what was given as a head, a count as a plain number."""
    if callable(head):
        return head
    otherwise = " (the number of classes), a module or a function of in_features"
    return whole_number("head", head, least=1, otherwise=otherwise, error=HeadError)


def made_from(factory: Callable[[int], nn.Module], width: int) -> nn.Module:
    """Call the function that makes a head."""
    made = call("head", factory, width, takes="in_features", error=HeadError)
    if not isinstance(made, nn.Module):
        raise HeadError(f"The head's factory returned {came(made)} for {width} features, not a module.")
    return made


def _checked(new: nn.Module, place: Layer) -> Layers:
    """Return the layers of a user's module, if the first of them takes what comes in."""
    found = layers(new)
    sure = [one for one in found[:1] if isinstance(one.module, nn.Linear) or is_convolution(one.module)]
    if sure and sure[0].inputs != place.inputs:
        raise HeadError(
            f"The new head takes {sure[0].inputs} features, but {place.inputs} come in at {place.name!r}. "
            f"Pass a function of the width instead: replace_head(model, lambda in_features: ...)."
        )
    return found


def _settle(new: nn.Module, old: nn.Module) -> None:
    """Bring a user's module to the device, dtype and mode of the old layer."""
    like = next(iter(old.parameters()), None)
    if like is not None and like.device.type != "meta":
        new.to(like.device, like.dtype if like.is_floating_point() else None)
    new.train(old.training)


# ------------------------------------------------------------------ names


def _as_head(model: nn.Module, found: Layers, classes: int, proof: Proof | None = None) -> Head:
    names = tuple(found.names)
    proven, why_not = (False, "") if proof is None else (not proof.missing, proof.missing)
    return Head(names, tuple(map(model.get_submodule, names)), found[0].inputs, classes, proven, why_not)


def _names(model: nn.Module, at: str | nn.Module | Head | Iterable[str | nn.Module]) -> list[str]:
    given = [at] if isinstance(at, str | nn.Module) else at.modules if isinstance(at, Head) else at
    names = [_name(model, one) for one in listed("at", given, "dotted names or modules")]
    if not names:
        raise HeadError("at= is empty: leave it out to have the head found, or name a layer.")
    return names


def _name(model: nn.Module, place: object) -> str:
    if isinstance(place, str):
        return place
    if not isinstance(place, nn.Module):
        raise HeadError(f"at= takes dotted names or modules, not {came(place)}.")
    named: Iterable[tuple[str, nn.Module]] = model.named_modules()
    for name, module in named:
        if module is place:
            return name
    raise HeadError(f"The {type(place).__name__} in at= is not part of the {type(model).__name__}.")


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
        raise HeadError(f"{name!r} ({type(module).__name__}) contains no linear or convolutional layer.")
    return found


def _found_at(model: nn.Module, at: list[str], given: Inputs | None, *, run: bool) -> Found:
    """The last layer in each module that the user named, as a head."""
    last = [_layers_in(model, name)[-1] for name in at]
    seen = trace(model, layers(model), given) if run else None
    named = Layers(in_classes(model, layer, seen) for layer in {layer.names: layer for layer in last}.values())
    if seen is not None:
        named = Layers(in_order(layer, seen) for layer in named)
    named = Layers(_fed_by(model, named, layer, seen) for layer in named)
    if seen is not None:
        named = with_norms(model, named, seen)
    return Found(named, named[-1].classes, seen)


def _fed_by(model: nn.Module, named: Layers, layer: Layer, seen: Trace | None) -> Layer:
    """Tell whether a layer with as many outputs as inputs takes the classes from another one that is named.

    Where no run tells, that is the one registered before it, if the first of them takes something else.
    """
    if layer.inputs != layer.outputs:
        return layer
    names = [one.names for one in named]
    if seen is not None and seen.run.complete:
        rows = [[end.layer.names, *(one.names for one, _ in end.chain)] for end in seen.ends]
    else:
        row = [one for one in layers(model) if one.names in names and one.outputs == layer.outputs]
        rows = [[one.names for one in row[::-1]]] if row[0].inputs != layer.inputs else []
    before = [row[row.index(layer.names) + 1 :][:1] for row in rows if layer.names in row]
    return dataclasses.replace(layer, from_classes=any(one[0] in names for one in before if one))


def as_inputs(example_inputs: Any) -> Inputs | None:
    """Read the user's example inputs."""
    return None if example_inputs is None else as_call(example_inputs, "example_inputs")


def _found(model: nn.Module, given: Inputs | None, *, run: bool = False) -> Found:
    """Find the head; where it can't be told, the error shows the calls that say it, as far as they work.

    Raises:
        HeadError: There is none, or several layers could be it.
    """
    try:
        return find_layers(model, given, run=run)
    except UnsureError as error:
        calls = [at for at in error.could_be if _works(model, at, given)]
        several = [f"replace_head(model, n, at={(at[0] if len(at) == 1 else at)!r})" for at in calls[:1] + calls[-1:]]
        shown = " or ".join(dict.fromkeys(several))
        raise HeadError(f"{error}{f' {error.advice}: {shown}.' if shown else ''}") from None


def _works(model: nn.Module, at: list[str], given: Inputs | None) -> bool:
    """Try on a copy whether a head of other sizes fits where the names say."""
    with untouched():
        try:
            twin = on_meta(model)
            replace_head(twin, _found_at(twin, at, None, run=False).classes + 1, at=at, example_inputs=given)
        except HeadError:
            return False
        except Exception as error:  # noqa: BLE001 -- a copy that can't be made or run tells nothing
            _log.debug("at=%r can't be tried: %s", at, error)
    return True


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
            raise HeadError(f"keep= names the old class {old}, but the head has classes 0 to {classes - 1}.")
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
