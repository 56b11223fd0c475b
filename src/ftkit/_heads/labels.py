"""The names of the classes: in a model's configuration where that keeps labels, else in an attribute of the model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, TypeGuard

from torch import nn

from ftkit._arguments import came, listed
from ftkit._heads.counters import losses, own_configs
from ftkit._heads.layers import distinct, holders, read
from ftkit._models.undo import Undo
from ftkit._torch import buffers_of, children_of, parameters_of
from ftkit._wording import shown, some
from ftkit.errors import CheckpointError, DamagedFileError, FtkitError, HeadError

_log = logging.getLogger("ftkit")

_ATTRIBUTE: Final = "class_names"
_NOTE: Final = "_ftkit_class_names"  # what ftkit wrote, whether a caller gave it, and of which layers' outputs
_BACKGROUND: Final = "__background__"  # as torchvision calls class 0 of its detectors


def checked_classes(classes: object) -> list[str]:
    """Return the names of classes that were passed.

    Raises:
        HeadError: They are not different, non-empty strings, or have no order.
    """
    if isinstance(classes, AbstractSet) and not isinstance(classes, KeysView):
        raise HeadError(
            f"classes= takes names in the order of the outputs, but a {type(classes).__name__} has no order: it may "
            "differ in each run. Pass a list, such as sorted(classes), and number your labels by it."
        )
    try:
        names = listed("classes", classes, "names")
    except FtkitError as error:
        raise HeadError(str(error)) from None
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise HeadError(f"classes= takes the names of the classes as strings, not {came(wrong[0])}.")
    if not names:
        raise HeadError("classes= is empty: a head needs at least one class.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise HeadError(f"classes= contains {twice[0]!r} more than once; the names of classes must be different.")
    return names


def labels_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the classes in each module that knows some, by the module's name.

    Names that say no more than the number of the class, such as ``LABEL_0``, are left out.

    Example:
        >>> import torch
        >>> from ftkit import replace_head
        >>> from ftkit._heads.labels import labels_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
        >>> _ = replace_head(model, classes=["ant", "bee"])
        >>> model.class_names, labels_of(model)
        (['ant', 'bee'], {'': ['ant', 'bee']})
    """
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        config = read(module, "config")
        if (_ATTRIBUTE in vars(module) or id(config) not in seen) and (names := _written(module)) is not None:
            found[name] = names
        seen.add(id(config))
    return found


def plan_labels(model: nn.Module, labels: Any, places: Mapping[str, str], source: str) -> Callable[[Undo], None]:
    """Plan to give modules the names of their classes, as a file has them. Names go where the weights went.

    What finds no place is left out, with a warning.

    Args:
        model: The model.
        labels: The names, by the name of a module in the file.
        places: For each tensor of the file, its name in the model.
        source: What the file is called in messages.

    Raises:
        DamagedFileError: These are no names.
        CheckpointError: The model was given other names, or the same in another order.
    """
    if not isinstance(labels, dict) or not all(map(_are_names, labels.values())):
        raise DamagedFileError("The file is damaged, or written by another program: its names of classes are no names.")
    modules = dict(model.named_modules(remove_duplicate=False))
    homes: dict[str, list[str]] = {}
    for part, names in labels.items():
        home = _home(part, places)
        if home is None or home not in modules or homes.setdefault(home, names) != names:
            _log.warning(
                "%s names the classes of %r, of which this model has no counterpart with the same weights. These names "
                "were not loaded: %s.",
                source,
                part,
                some(names, 8),
            )
    chosen = {spot: names for home, names in homes.items() for spot in _spots(modules, home, homes)}
    for spot, names in list(chosen.items()):
        if not _takes(modules[spot], names, source):
            del chosen[spot]

    def write(undo: Undo) -> None:
        own_configs(model, [read(model.get_submodule(spot), "config") for spot in chosen], undo)
        for spot, names in chosen.items():
            _write(model.get_submodule(spot), names, undo)

    return write


def _home(part: str, places: Mapping[str, str]) -> str | None:
    """The name in the model of a part of a file: what stands before the names of its weights."""
    prefix = f"{part}." if part else ""
    moved = {name.removeprefix(prefix): place for name, place in places.items() if name.startswith(prefix)}
    fronts = {place.removesuffix(rest).rstrip(".") if place.endswith(rest) else "" for rest, place in moved.items()}
    return fronts.pop() if len(fronts) == 1 else None


def _spots(modules: Mapping[str, nn.Module], home: str, homes: Mapping[str, object]) -> list[str]:
    """Where the model keeps such names already, inside or around a module; else the module itself."""
    if _written(modules[home]) is not None:
        return [home]
    around = [name for name in modules if name not in homes and (_holds(name, home) or _holds(home, name))]
    return [name for name in around if _ATTRIBUTE in vars(modules[name]) or _note(modules[name])] or [home]


def _holds(outer: str, inner: str) -> bool:
    return not outer or f"{inner}.".startswith(f"{outer}.")


def _takes(module: nn.Module, names: list[str], source: str) -> bool:
    """Whether names are to be written into a module.

    Raises:
        CheckpointError: The labels of its data are numbered by other names.
    """
    own, note = _written(module), _note(module)
    if own is None or own == names:
        if own is None and _has_own(module):
            _log.warning("The %s has a class_names of its own, which is left as it is.", type(module).__name__)
        return own is None and not _has_own(module)
    permuted = sorted(own) == sorted(names)
    if (note and not note["given"]) or (not note and not _has_own(module) and not permuted):
        return True  # they came from another file, or with pretrained weights
    first = next((i for i, pair in enumerate(zip(names, own, strict=False)) if pair[0] != pair[1]), None)
    example = "" if first is None else f" Class {first} is {names[first]!r} in the file, {own[first]!r} in the model."
    differ = "in another order" if permuted else "by other names"
    raise CheckpointError(
        f"{source} lists the classes {differ} than this {type(module).__name__}, so the labels of "
        f"your data would not be those that it was trained with.{example}\n"
        f"  in the file: {shown(names, 400)}\n  in the model: {shown(own, 400)}\n"
        "Number your labels as the file does, and pass its names: replace_head(model, classes=[...]). Or keep to "
        f"replace_head(model, {len(names)}) without names, and read them from the model after loading."
    )


# ---- the names that a new head gets


def plan_names(
    model: nn.Module, head: Sequence[str], before: int, configs: Iterable[object], classes: list[str] | None
) -> Callable[[int, Mapping[int, int], Undo], None]:
    """Plan how the names of the classes follow a new head.

    Args:
        model: The model.
        head: The names of the head's layers.
        before: How many classes the old head has.
        configs: What counts its classes.
        classes: The names of the new classes, if they have any.

    Returns:
        A function to call after the change with the new number of classes, the kept ones (new to old index) and the
        undo.

    Raises:
        HeadError: The names can't be kept where the model keeps names.
    """
    homes = [] if classes is None else _homes(model, configs)
    if classes is not None:
        _check_background(model, head, classes)
    for name, module in list(homes):
        note = _note(module)
        if note and not _is_about(name, note, head, before):
            other = some([*map(repr, note["layers"])] or ["another head"], 8)
            raise HeadError(
                f"The {type(module).__name__} names the classes of {other} already, and keeps "
                f"the names of one head only. Pass a count for {head[0]!r}, and keep its names yourself."
            )
        if not note and _has_own(module):
            own = read(module, _ATTRIBUTE)
            if not isinstance(own, list | tuple) or list(own) != classes:
                raise HeadError(
                    f"The {type(module).__name__} has a class_names of its own, {came(own)}, which replace_head leaves "
                    "as it is. Pass a count instead of classes=, and change the names as your model does; or delete "
                    "the attribute first."
                )
            homes.remove((name, module))

    def follow(count: int, keep: Mapping[int, int], undo: Undo) -> None:
        _rename_kept(model, head, before, count, keep, undo)
        if keep != {index: index for index in range(before)}:
            _tell_lists(model, head, before, classes)
        for name, module in homes:
            prefix = f"{name}." if name else ""
            inside = [layer.removeprefix(prefix) for layer in head if layer.startswith(prefix)]
            _write(module, classes or [], undo, layers=inside, given=True)

    return follow


def _homes(model: nn.Module, configs: Iterable[object]) -> list[tuple[str, nn.Module]]:
    """The first module with each configuration that counts the classes and keeps labels, or else the model."""
    counting = {id(config): config for config in configs}
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        config = read(module, "config")
        if id(config) in counting and isinstance(getattr(config, "id2label", None), Mapping):
            found.setdefault(id(config), (name, module))
    return list(found.values()) or [("", model)]


def _check_background(model: nn.Module, head: Sequence[str], classes: list[str]) -> None:
    """Let no detector that counts the background be given the names of the objects alone."""
    kinds = [kind for holder in holders(model, *head) for kind in type(holder).__mro__]
    counted = any(kind.__module__.startswith("torchvision.models.detection.") for kind in kinds)
    if counted and classes[0].strip("_").lower() != "background":
        raise HeadError(
            f"The detectors of torchvision count the background as class 0, so their first object is class 1. Name it "
            f"too: classes={shown([_BACKGROUND, *classes], 300)}."
        )


def _rename_kept(
    model: nn.Module, head: Sequence[str], before: int, count: int, keep: Mapping[int, int], undo: Undo
) -> None:
    """Let the names in attributes follow a new head whose classes have no names: those of kept classes stay."""
    for name, module in model.named_modules():
        old, note = vars(module).get(_ATTRIBUTE), _note(module)
        if old is None or (note and not _is_about(name, note, head, before)):
            continue
        if not note:
            if count != before and isinstance(old, list | tuple) and len(old) == before:
                _log.warning(
                    "The %s has a class_names of its own, which still lists %d classes.", type(module).__name__, before
                )
            continue
        undo.remember(module)
        kept = {new: old[index] for new, index in keep.items() if index < len(old)}
        if kept:
            names = [kept.get(index, f"LABEL_{index}") for index in range(count)]
            _write(module, names, undo, layers=note["layers"], given=note["given"])
        else:
            del vars(module)[_ATTRIBUTE], vars(module)[_NOTE]


def _tell_lists(model: nn.Module, head: Sequence[str], before: int, classes: list[str] | None) -> None:
    """Warn of what could be names of the old classes in a loss or metric beside the head, which stay: its labels."""
    for module in distinct(losses(model, head)):
        for key, value in vars(module).items():
            names = list(value) if isinstance(value, list | tuple) else []
            if len(names) == before and names != classes and all(isinstance(name, str) for name in names):
                _log.warning(
                    "The %s of the %s stay %s. If these are the old classes, set the new ones.",
                    key,
                    type(module).__name__,
                    some(names, 8),
                )


def _is_about(name: str, note: Mapping[str, Any], head: Sequence[str], before: int) -> bool:
    """Whether a module's names are those of a head's outputs. Those of a file tell only how many there are."""
    layers = [f"{name}.{layer}" if name else layer for layer in note["layers"]]
    if not layers:
        return len(note["names"]) == before
    return any(_holds(one, other) or _holds(other, one) for one in layers for other in head)


# ---- where a module keeps them


def _write(
    module: nn.Module, names: Sequence[str], undo: Undo, *, layers: Sequence[str] = (), given: bool = False
) -> None:
    """Write the names of classes where a module keeps them, and note that they are ours to change."""
    config: Any = read(module, "config")
    labels = getattr(config, "id2label", None)
    undo.remember(module)
    if isinstance(labels, Mapping) and len(labels) == len(names):
        undo.remember(config)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    else:
        vars(module)[_ATTRIBUTE] = list(names)
    vars(module)[_NOTE] = {"names": list(names), "layers": list(layers), "given": given}


def _written(module: nn.Module) -> list[str] | None:
    """The names of classes that a module keeps."""
    names = vars(module).get(_ATTRIBUTE)
    names = _in_config(read(module, "config")) if names is None else names
    return list(names) if _are_names(names) else None


def _note(module: nn.Module) -> dict[str, Any] | None:
    """What ftkit noted of the names that it wrote into a module; None where they were changed since."""
    note = vars(module).get(_NOTE)
    return note if isinstance(note, dict) and note.get("names") == _written(module) else None


def _has_own(module: nn.Module) -> bool:
    """Whether a module has names, or anything else, where ftkit would write the names, that ftkit did not write."""
    tables = (vars(module), children_of(module), parameters_of(module), buffers_of(module))
    held = any(_ATTRIBUTE in table for table in tables) and _note(module) is None
    return held or hasattr(type(module), _ATTRIBUTE)


def _are_names(names: object) -> TypeGuard[list[str]]:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _in_config(config: object) -> list[str] | None:
    labels = getattr(config, "id2label", None)
    if not isinstance(labels, Mapping) or labels.keys() != set(range(len(labels))):
        return None
    names = [labels[index] for index in range(len(labels))]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names
