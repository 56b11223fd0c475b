"""The names of the classes: in a model's configuration where that keeps labels, else in an attribute of the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

from torch import nn

from ftkit._arguments import came, listed
from ftkit._heads.layers import read
from ftkit._models.undo import Undo
from ftkit.errors import DamagedFileError, FtkitError, HeadError

_ATTRIBUTE: Final = "class_names"


def checked_classes(classes: object) -> list[str]:
    """Return the names of classes that were passed.

    Raises:
        HeadError: They are not different, non-empty strings.
    """
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
        names = vars(module).get(_ATTRIBUTE)
        if names is None and id(config) not in seen:
            names = _in_config(config)
        seen.add(id(config))
        if _are_names(names):
            found[name] = list(names)
    return found


def label(model: nn.Module, labels: Any, undo: Undo) -> None:
    """Give modules the names of their classes, as a file has them; modules that the model lacks are passed over.

    Raises:
        DamagedFileError: These are no names.
    """
    if not isinstance(labels, dict) or not all(map(_are_names, labels.values())):
        raise DamagedFileError("The file is damaged, or written by another program: its names of classes are no names.")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in labels.keys() & modules.keys():
        name_classes(modules[name], labels[name], undo)


def name_classes(module: nn.Module, names: Sequence[str], undo: Undo) -> None:
    """Write the names of classes where a module keeps them."""
    config: Any = read(module, "config")
    labels = getattr(config, "id2label", None)
    if isinstance(labels, Mapping) and len(labels) == len(names):
        undo.remember(config)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
    else:
        undo.remember(module)
        setattr(module, _ATTRIBUTE, list(names))


def rename_kept(model: nn.Module, count: int, keep: Mapping[int, int], undo: Undo) -> None:
    """Let the names in attributes follow a new head whose classes have no names: those of kept classes stay."""
    for module in model.modules():
        old = vars(module).get(_ATTRIBUTE)
        if not isinstance(old, list):
            continue
        undo.remember(module)
        kept = {new: old[index] for new, index in keep.items() if index < len(old)}
        if kept:
            setattr(module, _ATTRIBUTE, [kept.get(index, f"LABEL_{index}") for index in range(count)])
        else:
            delattr(module, _ATTRIBUTE)


def _are_names(names: object) -> TypeGuard[list[str]]:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _in_config(config: object) -> list[str] | None:
    labels = getattr(config, "id2label", None)
    if not isinstance(labels, Mapping) or labels.keys() != set(range(len(labels))):
        return None
    names = [labels[index] for index in range(len(labels))]
    return None if names == [f"LABEL_{index}" for index in range(len(names))] else names
