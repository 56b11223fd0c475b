"""Freezing that means frozen: no gradient, no moving statistics, no Dropout, no step from old momentum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ftkit._arguments import flag
from ftkit._freezing.holding import (
    hold,
    identities,
    is_held,
    keeps_statistics,
    learns_with_kept_statistics,
    release,
    remember,
    snapshot,
    switched_off,
    tensors,
)
from ftkit._freezing.parallel import parallel_wrappers, settle
from ftkit._groups import join, schedulers_in
from ftkit._models.dryrun import alone
from ftkit._models.outline import outermost
from ftkit._models.undo import Undo
from ftkit._reports import Parts, Report
from ftkit._wording import plural, some
from ftkit.errors import SelectionError
from ftkit.selection import Selection, Selector, select, tied, unwrap

_TIED = 8  # that are shown


@dataclass(frozen=True, repr=False)
class FreezeReport(Report):
    """What a call changed, and the state of the model after it. Print it for a summary.

    Attributes:
        frozen: Names of the parameters that this call froze.
        thawed: Names of the parameters that this call made trainable.
        left: Names of selected parameters left fixed, because they were not trainable before freezing.
        tied: The changed parameters that are tied: first name to the other names.
        eval_modules: Number of modules now held in eval mode.
        norms: Number of those that keep running statistics.
        trained_norms: Number of those norms whose weights train anyway, because they thawed without ``norm_stats``.
        added: Names of the parameters that this call added to the optimizer.
        trainable_parameters: Number of trainable parameters now, counted by element.
        total_parameters: Number of parameters of the model, counted by element.
        frozen_parts: ``frozen`` in short form: the outermost modules that it covers.
        thawed_parts: ``thawed`` in short form.

    Example:
        >>> import torch
        >>> from ftkit import freeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> print(freeze(model, "0", "1"))
        froze 4 parameter tensors: 0, 1
        trainable now: 10 of 38 parameters (26.3%)
        held in eval mode: 2 modules, including 1 norm with running statistics
    """

    frozen: tuple[str, ...]
    thawed: tuple[str, ...]
    left: tuple[str, ...]
    tied: dict[str, tuple[str, ...]]
    eval_modules: int
    norms: int
    trained_norms: int
    added: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    frozen_parts: tuple[str, ...]
    thawed_parts: tuple[str, ...]

    def _parts(self) -> Parts:
        for verb, names, parts in (
            ("froze", self.frozen, self.frozen_parts),
            ("thawed", self.thawed, self.thawed_parts),
            ("left fixed, as before freezing,", self.left, self.left),
        ):
            if names:
                yield f"{verb} {plural(len(names), 'parameter tensor')}: {some(parts, 8)}"
        if self.added:
            yield f"added to the optimizer: {plural(len(self.added), 'parameter tensor')}"
        share = self.trainable_parameters / max(self.total_parameters, 1)
        yield f"trainable now: {self.trainable_parameters:,} of {self.total_parameters:,} parameters ({share:.1%})"
        if self.eval_modules:
            norms = f", including {plural(self.norms, 'norm')} with running statistics" if self.norms else ""
            trained = f" ({self.trained_norms} with trainable weights)" if self.trained_norms else ""
            yield f"held in eval mode: {plural(self.eval_modules, 'module')}{norms}{trained}"
        for first, others in list(self.tied.items())[:_TIED]:
            yield f"tied: {first} is also {some(others, 8)}"


@alone()
def freeze(model: nn.Module, *selectors: Selector, norm_stats: bool = True, keep_dropout: bool = False) -> FreezeReport:
    """Freeze parts of a model, in place; the whole model if no selector is given.

    The parameters get no gradient, and any existing gradient is dropped, so neither momentum nor weight decay changes
    them. The frozen modules behave as in eval mode whatever ``model.train()`` sets: running statistics stay fixed, and
    Dropout and DropPath are off. This survives ``deepcopy``, pickling, ``DistributedDataParallel`` and
    ``torch.compile``. Classes and ``state_dict`` are unchanged.

    A module counts as frozen if it is selected, or if none of its parameters is trainable any more. A module without
    parameters between two frozen ones (such as Dropout) is frozen with them.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: Names, patterns, modules, types, a ``Head``, ...: see :data:`ftkit.selection.Selector`.
        norm_stats: Whether to freeze the running statistics of the frozen norms too.
        keep_dropout: Whether to let everything but norms follow ``model.train()``, so that Dropout stays active.

    Returns:
        What was frozen, and the state of the model.

    Raises:
        SelectionError: A selector matches nothing; the model is untouched.

    Example:
        >>> import torch
        >>> from ftkit import freeze, is_frozen
        >>> model = torch.nn.ModuleDict({"stem": torch.nn.BatchNorm1d(4), "head": torch.nn.Linear(4, 2)})
        >>> report = freeze(model, "stem")
        >>> report.frozen
        ('stem.weight', 'stem.bias')
        >>> features = model.train()["stem"](torch.randn(8, 4) + 3)
        >>> model["stem"].running_mean
        tensor([0., 0., 0., 0.])
    """
    chosen = selection(model, selectors)
    return _change(model, freezing=chosen, thawing=None, norm_stats=norm_stats, keep_dropout=keep_dropout)


@alone()
def unfreeze(
    model: nn.Module,
    *selectors: Selector,
    norm_stats: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> FreezeReport:
    """Make parts of a model trainable again, in place; the whole model if no selector is given.

    Undoes what :func:`freeze` did: parameters that were not trainable before, such as fixed position embeddings, stay
    fixed and are listed in the report. If ``freeze`` did not touch the selected part, all of it becomes trainable.

    The running statistics of norms stay fixed while their weights train, unless ``norm_stats`` is true: a norm that
    thaws completely switches to the statistics of small batches at once, which costs accuracy on small datasets.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: Names, patterns, modules, types, a ``Head``, ...: see :data:`ftkit.selection.Selector`.
        norm_stats: Whether to thaw the running statistics of the norms too, so that they follow the new data.
        optimizer: Optimizer to add the missing selected parameters to. They get the options that
            :func:`param_groups` would give them, by the recipe in the optimizer's groups; if it was built another way,
            the learning rate of its newest group and its largest weight decay.
        scheduler: The optimizer's learning-rate scheduler, or a list of several; they then cover what is added too.
            The schedulers inside ``SequentialLR`` and ``ChainedScheduler`` need not be listed.

    Returns:
        What was thawed, what was added to the optimizer, and the state of the model.

    Raises:
        SelectionError: A selector matches nothing; model and optimizer are untouched.
        FtkitError: Parameters would be added to an optimizer that has a scheduler, and ``scheduler`` was left out, or
            to one that has no parameter of the model; nothing is changed.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, param_groups, unfreeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> report = freeze_except(model, "2")
        >>> optimizer = torch.optim.SGD(param_groups(model, lr=0.1, layer_decay=0.5))
        >>> unfreeze(model, "1", optimizer=optimizer).added
        ('1.weight', '1.bias')
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.05]
    """
    chosen = selection(model, selectors)
    return _change(
        model, freezing=None, thawing=chosen, thaw_norm_stats=norm_stats, optimizer=optimizer, scheduler=scheduler
    )


@alone()
def freeze_except(
    model: nn.Module,
    *selectors: Selector,
    norm_stats: bool = True,
    keep_dropout: bool = False,
    thaw_norm_stats: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> FreezeReport:
    """Train exactly the selected parts of a model, in place: freeze everything else, and thaw these.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: What to train: one or more selectors, see :data:`ftkit.selection.Selector`.
        norm_stats: Whether to freeze the running statistics of the frozen norms too.
        keep_dropout: Whether to let everything but norms follow ``model.train()``, so that Dropout stays active.
        thaw_norm_stats: Whether to thaw the running statistics of the thawed norms too.
        optimizer: Optimizer to add the missing selected parameters to, with the options that :func:`unfreeze` gives
            them.
        scheduler: The optimizer's learning-rate scheduler, or a list of several.

    Returns:
        What was frozen and thawed, and the state of the model.

    Raises:
        SelectionError: A selector matches nothing, or there is none; the model is untouched.
        FtkitError: Parameters would be added to an optimizer that has a scheduler, and ``scheduler`` was left out, or
            to one that has no parameter of the model; nothing is changed.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, trainable
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> report = freeze_except(model, "1")
        >>> list(trainable(model))
        ['1.weight', '1.bias']
    """
    if not selectors:
        raise SelectionError(
            "freeze_except needs to know what to train: pass a selector. To freeze the whole model, call freeze(model)."
        )
    inner = unwrap(model)
    kept = select(inner, *selectors)
    kept_ids = identities((*kept.parameters.values(), *kept.buffers.values()))
    outside = {name: m for name, m in inner.named_modules() if tensors(m) and not tensors(m) & kept_ids}
    rest = Selection(
        outside,
        {name: p for name, p in inner.named_parameters() if id(p) not in kept_ids},
        {name: b for name, b in inner.named_buffers() if id(b) not in kept_ids},
    )
    return _change(
        model,
        freezing=rest,
        thawing=kept,
        norm_stats=norm_stats,
        keep_dropout=keep_dropout,
        thaw_norm_stats=thaw_norm_stats,
        optimizer=optimizer,
        scheduler=scheduler,
    )


@contextlib.contextmanager
def frozen(
    model: nn.Module, *selectors: Selector, norm_stats: bool = True, keep_dropout: bool = False
) -> Iterator[FreezeReport]:
    """Freeze parts of a model inside a ``with`` block; afterwards everything is exactly as it was.

    The gradients of the frozen parameters are restored too, and each module's mode, unless the whole model was switched
    between train and eval inside the block. A wholly frozen model is in eval mode there whatever it is switched to, and
    returns to the mode from before.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: What to freeze, see :data:`ftkit.selection.Selector`; the whole model if there are none.
        norm_stats: Whether to freeze the running statistics of the frozen norms too.
        keep_dropout: Whether to let everything but norms follow ``model.train()``, so that Dropout stays active.

    Yields:
        The report of :func:`freeze`.

    Raises:
        SelectionError: A selector matches nothing; the model is untouched.

    Example:
        >>> import torch
        >>> from ftkit import frozen, is_frozen
        >>> critic = torch.nn.Linear(4, 1)
        >>> with frozen(critic):
        ...     is_frozen(critic)
        True
        >>> is_frozen(critic)
        False
    """
    undo = Undo()
    note(unwrap(model), undo)
    report = freeze(model, *selectors, norm_stats=norm_stats, keep_dropout=keep_dropout)
    try:
        yield report
    finally:
        undo.take_back()
        for wrapper in parallel_wrappers(model) if report.frozen else ():
            settle(wrapper)


@alone()
def is_frozen(model: nn.Module, *selectors: Selector) -> bool:
    """Return whether everything selected is frozen; the whole model if no selector is given.

    Parameters are frozen if they require no gradient; a module without parameters, if :func:`freeze` holds it in eval
    mode.

    Raises:
        SelectionError: A selector matches nothing.

    Example:
        >>> import torch
        >>> from ftkit import freeze, is_frozen
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> report = freeze(model, "0")
        >>> is_frozen(model, "0"), is_frozen(model, "*.bias"), is_frozen(model)
        (True, False, False)
    """
    chosen = selection(model, selectors)
    if chosen.parameters:
        return not any(parameter.requires_grad for parameter in chosen.parameters.values())
    return bool(chosen.modules) and all(map(is_held, chosen.modules.values()))


@alone()
def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; tied ones once, under their first name.

    Example:
        >>> import torch
        >>> from ftkit import freeze, trainable
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        >>> report = freeze(model, "0")
        >>> list(trainable(model))
        ['1.weight', '1.bias']
    """
    return {name: parameter for name, parameter in unwrap(model).named_parameters() if parameter.requires_grad}


def selection(model: nn.Module, selectors: tuple[Selector, ...]) -> Selection:
    """What selectors mean; the whole model if there are none."""
    if selectors:
        return select(model, *selectors)
    model = unwrap(model)
    return Selection(dict(model.named_modules()), dict(model.named_parameters()), dict(model.named_buffers()))


def _change(
    model: nn.Module,
    *,
    freezing: Selection | None,
    thawing: Selection | None,
    norm_stats: bool = True,
    keep_dropout: bool = False,
    thaw_norm_stats: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> FreezeReport:
    """Do the work of all verbs, all of it or nothing."""
    norm_stats, keep_dropout = flag("norm_stats", norm_stats), flag("keep_dropout", keep_dropout)
    wrappers, model = parallel_wrappers(model), unwrap(model)
    off = switched_off(model)
    froze, thaw, left = _learning(freezing), *_thawing(thawing, off)
    added: tuple[str, ...] = ()
    with Undo() as undo:
        for wrapper in wrappers:
            undo.callback(settle, wrapper)
        note(model, undo)
        if optimizer is not None:
            added = join(model, _learning(thawing) | thaw, optimizer, undo, scheduler)
        else:
            schedulers_in(scheduler, None)
        for parameter in freezing.parameters.values() if freezing else ():
            parameter.requires_grad = False  # requires_grad_() refuses lazy ones
            parameter.grad = None
        for parameter in thaw.values():
            parameter.requires_grad = True
        remember(model, (off | identities(froze.values())) - identities(thawing.parameters.values() if thawing else ()))
        if thawing:
            release(model, thawing, norm_stats=thaw_norm_stats)
        if freezing:
            hold(model, freezing, identities(froze.values()), norm_stats=norm_stats, keep_dropout=keep_dropout)
        for wrapper in wrappers if froze or thaw else ():
            settle(wrapper)
    return _report(model, froze, thaw, left, added)


def _learning(chosen: Selection | None) -> dict[str, nn.Parameter]:
    return {name: p for name, p in chosen.parameters.items() if p.requires_grad} if chosen else {}


def _thawing(chosen: Selection | None, off: set[int]) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """What thaws and what stays fixed: only what was switched off thaws, or if nothing was, all that can learn."""
    fixed = (
        {name: p for name, p in chosen.parameters.items() if not p.requires_grad and _can_learn(p)} if chosen else {}
    )
    thaw = {name: parameter for name, parameter in fixed.items() if id(parameter) in off} or fixed
    return thaw, {name: parameter for name, parameter in fixed.items() if name not in thaw}


def _can_learn(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def note(model: nn.Module, undo: Undo) -> None:
    """Note how the modules of a model are held, and how its parameters learn. A gradient that has come since stays."""

    def learn_again(parameter: nn.Parameter, required: bool, gradient: torch.Tensor | None) -> None:
        parameter.requires_grad = required
        if parameter.grad is None:
            parameter.grad = gradient

    for parameter in model.parameters():
        undo.callback(learn_again, parameter, parameter.requires_grad, parameter.grad)
    undo.callback(snapshot(model))


def _report(
    model: nn.Module,
    froze: dict[str, nn.Parameter],
    thaw: dict[str, nn.Parameter],
    left: dict[str, nn.Parameter],
    added: tuple[str, ...],
) -> FreezeReport:
    held = list(filter(is_held, model.modules()))
    changed = froze.keys() | thaw.keys()
    return FreezeReport(
        frozen=tuple(froze),
        thawed=tuple(thaw),
        left=tuple(left),
        tied={first: others for first, others in tied(model).items() if first in changed},
        eval_modules=len(held),
        norms=sum(map(keeps_statistics, held)),
        trained_norms=sum(map(learns_with_kept_statistics, held)),
        added=added,
        trainable_parameters=_count(trainable(model).values()),
        total_parameters=_count(model.parameters()),
        frozen_parts=_parts(model, froze),
        thawed_parts=_parts(model, thaw),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(0 if isinstance(parameter, UninitializedParameter) else parameter.numel() for parameter in parameters)


def _parts(model: nn.Module, parameters: dict[str, nn.Parameter]) -> tuple[str, ...]:
    return tuple(name or f"all of the {type(model).__name__}" for name in outermost(model, parameters))
