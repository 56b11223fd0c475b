"""Modules held in eval mode through every ``train()``, and the memory of what was switched off to hold them."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ftkit._torch import FakeTensor, buffers_of, is_norm, parameters_of, pre_hooks_of
from ftkit.selection import Selection

# The key of the hook in a module's pre-forward hooks. Torch's own keys are a counter that restarts in every process,
# so after unpickling they can collide, and the later hook silently replaces ours.
_KEY = "ftkit.frozen"
# The attribute of a module that names what freeze() switched off there: own parameters that it found trainable, and the
# mode, where the whole model was frozen and no module around it can tell what the mode should be.
_MEMORY = "_ftkit_frozen"

# The attribute of a held norm with its statistics, as they were in the last forward in train mode.
_STATISTICS = "_ftkit_statistics"
_RESET = "reset_running_stats"
# Whether the warning about weights that train in held modules was given.
_TOLD = threading.Event()

_LISTS = (nn.ModuleList, nn.ModuleDict)  # no union: the compiler of torch 2.6 can't look into one


def hold(
    model: nn.Module, chosen: Selection, froze: set[int], *, norm_stats: bool = True, keep_dropout: bool = False
) -> None:
    """Hold in eval mode what is frozen whole, now that ``chosen`` is frozen.

    Those are the chosen modules, the ones around them in which nothing trains any more, and those without tensors
    between two of them.

    Args:
        model: The model.
        chosen: What is frozen.
        froze: Identities of the parameters that this has just made untrainable.
        norm_stats: Whether to hold norms with running statistics.
        keep_dropout: Whether to hold nothing else.
    """
    held = _held(model, chosen, froze)
    stays = {True: norm_stats, False: not keep_dropout}
    stay = {module for module in held if stays[keeps_statistics(module)]}
    _set_modes(model, stay, held.keys() - stay)
    if not keep_dropout:
        _set_modes(model, _between(model, held), ())
    _set_depths(model)
    _TOLD.clear()


def release(model: nn.Module, chosen: Selection, *, norm_stats: bool = True) -> None:
    """Give the modules that thawing ``chosen`` sets free the mode of the module around them.

    Without ``norm_stats``, norms with running statistics stay held.
    """
    freed = _released(model, chosen)
    _set_modes(model, (), freed if norm_stats else {one for one in freed if not keeps_statistics(one)})
    _set_depths(model)


def kept_norms(model: nn.Module) -> list[str]:
    """Return the names of the norms whose statistics are held."""
    return [name for name, module in model.named_modules() if is_held(module) and keeps_statistics(module)]


def keep_norms(model: nn.Module, names: Collection[str]) -> None:
    """Hold the statistics of exactly these norms."""
    norms = {name: module for name, module in model.named_modules() if keeps_statistics(module)}
    hold(model, Selection({name: norms[name] for name in norms.keys() & names}, {}, {}), set())
    if others := {name: module for name, module in norms.items() if is_held(module) and name not in names}:
        release(model, Selection(others, {}, {}))


def switched_off(model: nn.Module) -> set[int]:
    """Identities of the parameters that were trainable until freeze() came."""
    own = ((parameters_of(module), _memory(module)) for module in model.modules())
    return identities(table[name] for table, names in own for name in table.keys() & names) - {id(None)}


def remember(model: nn.Module, off: set[int]) -> None:
    """Note on each module which of its own parameters are among those that freezing switched off."""
    for module in model.modules():
        names = {name for name, parameter in parameters_of(module).items() if id(parameter) in off}
        _set_memory(module, names | _memory(module) & {"training"})


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Return a function that restores how all modules are held now, and the modes of those whose hold has changed.

    If the whole model has been switched between train and eval since, they follow it.
    """
    mode, told = model.training, not is_held(model)  # the mode of a held model says nothing
    before = [(part, part.training, _hook_of(part), _memory(part)) for part in model.modules()]

    def restore() -> None:
        switched = told and model.training != mode and not is_held(model)
        for part, training, hook, memory in before:
            if _hook_of(part) is not hook:
                part.training = model.training if switched else training
            _set_hook(part, hook)
            _set_memory(part, memory)

    return restore


def is_held(module: nn.Module | None) -> bool:
    """Tell whether a module is held in eval mode.

    Example:
        >>> import torch
        >>> from ftkit import freeze
        >>> from ftkit._freezing.holding import is_held
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> _ = freeze(model, "0")
        >>> is_held(model[0]), is_held(model[1])
        (True, False)
    """
    return module is not None and _hook_of(module) is not None


def learns_with_kept_statistics(module: nn.Module) -> bool:
    """Tell whether a module is a norm whose weights train while its statistics are held."""
    return is_held(module) and keeps_statistics(module) and _trains(module.parameters(recurse=False))


def lets_statistics_move(module: nn.Module) -> bool:
    """Tell whether a norm was frozen by its weights alone."""
    return keeps_statistics(module) and not is_held(module) and bool(_memory(module))


def keeps_statistics(module: nn.Module) -> bool:
    """Tell whether a module is a norm with running statistics, of torch or anyone, by the names of its buffers."""
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def tensors(module: nn.Module, *, recurse: bool = True) -> set[int]:
    """Identities of a module's parameters and buffers."""
    return identities((*module.parameters(recurse), *module.buffers(recurse)))


def identities(things: Iterable[object]) -> set[int]:
    """Tensors can't be compared by ``==``: a set of what they are."""
    return set(map(id, things))


def stay_in_eval(module: nn.Module, _args: tuple[torch.Tensor]) -> None:
    """Put a wholly frozen module and its parts back into eval mode, just before it runs.

    The parts come along for parents that look at a child's mode before they call it, and for those put in later
    (``convert_sync_batchnorm``). The annotations are what ``torch.jit.script`` wants.
    """
    # Public, but missing from torch.jit.__all__; and torch.jit reads the line, so the reason can't stand in it.
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        module.training = False
    elif torch.compiler.is_compiling():
        # The mode is not read, so that no guard comes to depend on it; nor are parts visited that do this themselves.
        module.training = False
        for part in _called_by(module):
            if not is_held(part) and _is_fixed(part):
                part.training = False
    elif module.training:
        for part in module.modules():
            if is_held(part):
                _look_after(part)
            if is_held(part) or _is_fixed(part):
                part.training = False


def stay_in_eval_alone(module: nn.Module, _args: tuple[torch.Tensor]) -> None:
    """Put a frozen module back into eval mode, just before it runs, and leave its parts alone."""
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        module.training = False
    else:
        if not torch.compiler.is_compiling():
            _look_after(module)
        module.training = False


def _look_after(module: nn.Module) -> None:
    """See to what others have done to a held module."""
    kept = module.__dict__.get(_STATISTICS)
    if kept is not None and (module.training or module.momentum is None):
        _restore_wiped(module, kept)
    if module.training and not _TOLD.is_set():
        _tell_of_weights_that_train(module)


def _restore_wiped(module: Any, kept: dict[str, torch.Tensor]) -> None:
    """Restore a norm's statistics where weight averaging has reset them to recompute them.

    That takes the momentum away too, by which it is known: Lightning's ``StochasticWeightAveraging`` does so.
    """
    own: Any = buffers_of(module)
    if module.momentum is not None:
        kept.update(_statistics(module))
    elif not own["running_mean"].any() and own["running_var"].eq(1).all():
        for name, tensor in kept.items():
            own[name] = tensor.to(own[name])


def _statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """The statistics of a norm; what is counted in place is copied."""
    own = {name: tensor for name, tensor in buffers_of(module).items() if tensor is not None}
    return {name: tensor if tensor.ndim else tensor.clone() for name, tensor in own.items()}


def keep_running_stats() -> None:
    """What ``torch.optim.swa_utils.update_bn`` finds as ``reset_running_stats`` of a held norm."""


def _tell_of_weights_that_train(module: nn.Module) -> None:
    """Warn once after each freeze."""
    again = [p for name, p in parameters_of(module).items() if p is not None and name in _memory(module)]
    if _trains(again) and not any(isinstance(parameter, FakeTensor) for parameter in again):
        _TOLD.set()
        warnings.warn(
            f"A frozen {type(module).__name__} has trainable weights: something other than ftkit.unfreeze() set "
            "requires_grad, such as requires_grad_(True) or a framework's unfreeze(). It stays in eval mode along with "
            "everything frozen with it: norms keep their statistics, and Dropout is off. To thaw it, call "
            "ftkit.unfreeze(model, ...); with norm_stats=True, statistics are updated again too.",
            stacklevel=2,
        )


def _called_by(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a module, and those of its lists, which are never called."""
    for child in module.children():
        if isinstance(child, _LISTS):
            yield from _called_by(child)
        else:
            yield child


def _is_fixed(module: nn.Module) -> bool:
    """Tell whether a module has parameters of its own, and none of them trains."""
    own = list(module.parameters(recurse=False))
    return len(own) > 0 and not _trains(own)


def _rests(module: nn.Module | None) -> bool:
    return is_held(module) and module is not None and not _trains(module.parameters(recurse=False))


def _trains(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _hook_of(module: nn.Module) -> Callable[..., Any] | None:
    return pre_hooks_of(module).get(_KEY)


def _set_hook(module: nn.Module, hook: Callable[..., Any] | None) -> None:
    hooks: Any = pre_hooks_of(module)
    hooks.pop(_KEY, None)
    for name in (_STATISTICS, _RESET) if hook is None else ():
        module.__dict__.pop(name, None)
    if hook is not None:
        if is_norm(module) and keeps_statistics(module) and module.momentum is not None:
            module.__dict__.setdefault(_STATISTICS, _statistics(module))
            module.__dict__[_RESET] = keep_running_stats
        hooks[_KEY] = hook
        hooks.move_to_end(_KEY, last=False)  # before spectral_norm's and others that look at the mode


def _memory(module: nn.Module) -> set[str]:
    return set(module.__dict__.get(_MEMORY, ()))


def _set_memory(module: nn.Module, names: Collection[str]) -> None:
    module.__dict__.pop(_MEMORY, None)
    if names:
        module.__dict__[_MEMORY] = tuple(sorted(names))


def _set_modes(model: nn.Module, hold: Collection[nn.Module], let_go: Collection[nn.Module]) -> None:
    """Hook what is held into eval mode; what is let go returns to the mode of the module around it."""
    around = {child: module for module in reversed(list(model.modules())) for child in module.children()}
    if model in hold and model.training and not is_held(model):
        _set_memory(model, _memory(model) | {"training"})
    for module in model.modules():
        if module in hold:
            _set_hook(module, stay_in_eval_alone)
            module.training = False
        elif module in let_go and is_held(module):
            _set_hook(module, None)
            module.training = around[module].training if module in around else "training" in _memory(module)
            _set_memory(module, _memory(module) - {"training"})


def _set_depths(model: nn.Module) -> None:
    """Let each hook care for the parts too where all of them are held."""
    for module in model.modules():
        if is_held(module):
            parts = list(module.modules())
            deep = len(parts) > 1 and all(map(is_held, parts))
            _set_hook(module, stay_in_eval if deep else stay_in_eval_alone)


def _held(model: nn.Module, chosen: Selection, froze: set[int]) -> dict[nn.Module, None]:
    """The chosen modules, and those that are frozen whole now that the parameters ``froze`` are."""
    held = dict.fromkeys(chosen.modules.values())
    for module in _bottom_up(model):
        own = list(module.parameters())
        if _trains(own) or froze.isdisjoint(identities(own)):
            continue
        learned = [child for child in module.children() if next(child.parameters(), None) is not None]
        bare = [child for child in module.children() if child not in learned]
        if all(child in held or is_held(child) for child in learned):
            held |= dict.fromkeys(itertools.chain([module], *(child.modules() for child in bare)))
    return held


def _bottom_up(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _bottom_up(child)
    yield module


def _released(model: nn.Module, chosen: Selection) -> set[nn.Module]:
    """The modules that thawing ``chosen`` sets free: itself, all around it, and what stood between it and others."""
    thawed = identities((*chosen.parameters.values(), *chosen.buffers.values()))
    freed = {*chosen.modules.values(), *(module for module in model.modules() if tensors(module) & thawed)}
    loose = {child for module in filter(is_held, freed) for child in module.children()}
    freed |= {child for child in loose if keeps_statistics(child) and next(child.parameters(), None) is None}
    held = {module for module in model.modules() if is_held(module) and module not in freed}
    kept = {child for module in held for child in module.children()}  # whatever thaws beside them
    for module, beside in _stateless(model):
        if module not in kept and (beside & freed or (module in loose and not all(map(is_held, beside)))):
            freed |= set(module.modules())
    return freed


def _between(model: nn.Module, held: Mapping[nn.Module, None]) -> set[nn.Module]:
    """The modules without tensors, such as Dropout, that stand between two frozen ones."""
    found = [module for module, beside in _stateless(model) if beside & held.keys() and all(map(_rests, beside))]
    return set(itertools.chain.from_iterable(module.modules() for module in found))


def _stateless(model: nn.Module) -> Iterator[tuple[nn.Module, set[nn.Module | None]]]:
    """Yield each outermost module without tensors, and the nearest before and after it that have some of their own."""
    before: nn.Module | None = None
    waiting: dict[nn.Module, None] = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        if not tensors(module):
            waiting |= dict.fromkeys({module} - inside)
            inside |= set(module.modules())
        elif tensors(module, recurse=False):
            yield from ((one, {before, module}) for one in waiting)
            before, waiting = module, {}
    yield from ((one, {before, None}) for one in waiting)
