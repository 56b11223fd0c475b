"""What is trainable in a model, and what ``freeze`` holds in eval mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from torch import nn

from ftkit._freezing import holding
from ftkit._freezing.parallel import parallel_wrappers, settle
from ftkit._models.undo import Undo
from ftkit._wording import plural, some
from ftkit.selection import Selection

_log: Final = logging.getLogger("ftkit")


def state(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the trainable parameters, and of what ``freeze`` holds in eval mode.

    A part that is held entirely is named once, with a trailing dot: a frozen backbone has hundreds of modules.
    """
    held = _held_modules(model)
    return {
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "held": list(_held_parts(model, "", held)) if held else [],
    }


def plan(
    model: nn.Module, saved: Mapping[str, Any], known: Collection[str | None], held: Iterable[nn.Parameter]
) -> Callable[[Undo], None]:
    """Plan to freeze and unfreeze until the model is as it was.

    Parameters in this optimizer (``held``) that were not in the saved one (``known``, by name) stay trainable: they
    were unfrozen on purpose.
    """
    wanted = set(saved["trainable"])
    parameters = dict(model.named_parameters())
    ours = set(map(id, held))
    wrappers = parallel_wrappers(model)
    new = {name for name, parameter in parameters.items() if id(parameter) in ours and name not in known}
    before = [name for name, parameter in parameters.items() if parameter.requires_grad]
    trains = wanted & parameters.keys() | new.intersection(before)
    thawed = {id(parameters[name]) for name in trains.difference(before)}
    frozen = {name: id(parameters[name]) for name in before if name not in trains}

    def load(undo: Undo) -> None:
        for module in model.modules():
            undo.remember(module)
        for wrapper in wrappers:
            undo.callback(settle, wrapper)
        for name, parameter in parameters.items():
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(name in trains)
        if thawed or frozen:
            holding.remember(model, holding.switched_off(model) - thawed | set(frozen.values()))
        _hold(model, saved["held"])
        for wrapper in wrappers if thawed or frozen else ():
            settle(wrapper)
        if frozen:
            _log.warning(
                "%s frozen again, as in the checkpoint: %s.", plural(len(frozen), "parameter"), some(list(frozen), 3)
            )
        if kept := [name for name in parameters if name in trains and name not in wanted]:
            _log.warning(
                "%s frozen in the checkpoint stay trainable, because they are in this optimizer but were not in the "
                "saved one: %s. If they should not train, freeze them before you build the optimizer.",
                *(plural(len(kept), "parameter"), some(kept, 3)),
            )

    return load


def _held_modules(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if holding.is_held(module)}


def _held_parts(module: nn.Module, name: str, held: Collection[str]) -> Iterator[str]:
    prefix = f"{name}." if name else ""
    if all(inside in held for inside, _ in module.named_modules(prefix=name)):
        yield f"{name}."
        return
    if name in held:
        yield name
    for child_name, child in module.named_children():
        yield from _held_parts(child, f"{prefix}{child_name}", held)


def _hold(model: nn.Module, parts: Collection[str]) -> None:
    modules = dict(model.named_modules())
    whole = tuple(part for part in parts if part.endswith("."))
    wanted = {name for name in modules if name in parts or "." in whole or f"{name}.".startswith(whole)}
    _free_all_but(model, wanted, modules)
    if lacking := {name: modules[name] for name in wanted - _held_modules(model)}:
        holding.hold(model, Selection(lacking, {}, {}), set())
        _free_all_but(model, wanted, modules)  # what stood between two of them was held too


def _free_all_but(model: nn.Module, wanted: Collection[str], modules: Mapping[str, nn.Module]) -> None:
    if others := {name: modules[name] for name in _held_modules(model).difference(wanted)}:
        holding.release(model, Selection(others, {}, {}))
