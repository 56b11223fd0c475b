"""Freezing that means frozen: no gradient, no moving statistics, no Dropout, no step from old momentum."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
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
from ftkit._groups import join, schedulers_in
from ftkit._models.dryrun import alone
from ftkit._models.outline import outermost
from ftkit._models.undo import Undo
from ftkit._reports import Parts, Report
from ftkit._torch import can_settle_anew, settle_anew
from ftkit._wording import plural, some
from ftkit.errors import FtkitError, SelectionError
from ftkit.selection import Selection, Selector, select, tied, unwrap

_TIED = 8  # that are shown


@dataclass(frozen=True, repr=False)
class FreezeReport(Report):
    """What a call changed, and how the model stands now. Printing it tells the same in words.

    Attributes:
        frozen: Names of the parameters that this call froze.
        thawed: Names of the parameters that this call made trainable.
        left: Names of selected parameters that stay fixed, because they were not trainable before they were frozen.
        tied: The changed parameters that have other names too: first name to the others.
        eval_modules: How many modules stay in eval mode now.
        norms: How many of those keep running statistics.
        trained_norms: How many of those norms train their weights all the same, since they thawed without
            ``norm_stats``.
        added: Names of the parameters that this call added to the optimizer.
        trainable_parameters: How many numbers are trainable now.
        total_parameters: How many numbers the model's parameters hold.
        frozen_parts: ``frozen`` in short, as the outermost modules that it covers.
        thawed_parts: ``thawed`` in short.

    Example:
        >>> import torch
        >>> from ftkit import freeze
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> print(freeze(model, "0", "1"))
        froze 4 parameters: 0, 1
        trainable now: 10 of 38 numbers (26.3%)
        held in eval mode: 2 modules, 1 of them a norm with its statistics
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
                yield f"{verb} {plural(len(names), 'parameter')}: {some(parts, 8)}"
        if self.added:
            yield f"added to the optimizer: {plural(len(self.added), 'parameter')}"
        share = self.trainable_parameters / max(self.total_parameters, 1)
        yield f"trainable now: {self.trainable_parameters:,} of {self.total_parameters:,} numbers ({share:.1%})"
        if self.eval_modules:
            norms = f", {self.norms} of them a norm with its statistics" if self.norms else ""
            trained = f" ({self.trained_norms} with weights that train)" if self.trained_norms else ""
            yield f"held in eval mode: {plural(self.eval_modules, 'module')}{norms}{trained}"
        for first, others in list(self.tied.items())[:_TIED]:
            yield f"tied: {first} is also {some(others, 8)}"


@alone()
def freeze(model: nn.Module, *selectors: Selector, norm_stats: bool = True, keep_dropout: bool = False) -> FreezeReport:
    """Freeze parts of a model, in place; the whole model if no selector is given.

    The parameters get no gradient, and lose the one they have, so that neither momentum nor weight decay moves them
    on. The frozen modules behave as in eval mode through any ``model.train()``: running statistics stay and Dropout
    and DropPath are off. So it remains after ``deepcopy``, pickling, ``DistributedDataParallel`` and ``torch.compile``.
    Classes and ``state_dict`` are unchanged.

    A module counts as frozen if it is selected, or if none of its parameters is trainable any more. A module without
    parameters that stands between two frozen ones (a Dropout, say) goes with them.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: Names, patterns, modules, types, a ``Head``, ...: see :data:`ftkit.selection.Selector`.
        norm_stats: Whether the running statistics of the frozen norms are frozen too.
        keep_dropout: Whether everything but norms follows ``model.train()``, so that Dropout stays active.

    Returns:
        What froze, and how the model stands.

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

    Takes back what :func:`freeze` did: what was not trainable before, such as fixed position embeddings, stays so and
    is listed in the report. Where ``freeze`` did nothing to what the selectors mean, all of it becomes trainable.

    The running statistics of norms stay as they are while their weights train, unless ``norm_stats`` is true: a norm
    that thaws whole takes over the statistics of small batches at once, which costs accuracy on little data.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: Names, patterns, modules, types, a ``Head``, ...: see :data:`ftkit.selection.Selector`.
        norm_stats: Whether the running statistics of the norms thaw too, and follow the new data.
        optimizer: Gets exactly those of the selected parameters that it lacks. They join with the options that
            :func:`param_groups` gives them, by the recipe in the optimizer's groups; an optimizer that was built
            otherwise lends its newest group's rate and its largest weight decay.
        scheduler: The optimizer's learning-rate scheduler, or a list of several, which then go on with what joins. What
            ``SequentialLR`` and ``ChainedScheduler`` run is known by them.

    Returns:
        What thawed, what joined the optimizer, and how the model stands.

    Raises:
        SelectionError: A selector matches nothing; model and optimizer are untouched.
        FtkitError: Parameters would join an optimizer that has a scheduler, and ``scheduler`` was left out; all is
            untouched.

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
    """Train exactly the selected parts of a model, in place: freeze all others, and thaw these.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: What stays trainable, at least one selector.
        norm_stats: As in :func:`freeze`.
        keep_dropout: As in :func:`freeze`.
        thaw_norm_stats: As ``norm_stats`` in :func:`unfreeze`.
        optimizer: Gets those of the selected parameters that it lacks, as in :func:`unfreeze`.
        scheduler: As in :func:`unfreeze`.

    Returns:
        What froze and thawed, and how the model stands.

    Raises:
        SelectionError: A selector matches nothing, or there is none; the model is untouched.
        FtkitError: As in :func:`unfreeze`.

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
            "freeze_except needs to know what to train. To freeze the whole model, call freeze(model)."
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

    The gradients that the frozen parameters had come back too, and each module's mode, unless the whole model changed
    between train and eval inside the block.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: As in :func:`freeze`.
        norm_stats: As in :func:`freeze`.
        keep_dropout: As in :func:`freeze`.

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
    """Tell whether all that the selectors mean is frozen; the whole model if no selector is given.

    Parameters are frozen if they require no gradient; a module that has none, if :func:`freeze` holds it in eval mode.

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
    """Return the trainable parameters by name, a tied one once, under its first name.

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
    """What thaws and what stays fixed: of what was switched off that alone thaws, else all that can learn."""
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


def parallel_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """The data-parallel wrappers around a model, all of them such that :func:`settle` can treat them."""
    inner = unwrap(model)
    around = itertools.takewhile(lambda module: module is not inner, model.modules())
    wrappers = [module for module in around if isinstance(module, DistributedDataParallel)]
    if not all(map(can_settle_anew, wrappers)):
        raise FtkitError(
            "DistributedDataParallel settles what it averages between processes when it wraps a model, and with a "
            "process group of its own that can't be settled anew. Freeze the model inside, then wrap it again."
        )
    return wrappers


def settle(wrapper: DistributedDataParallel) -> None:
    """Let a wrapper average the gradients of what is trainable now.

    It settled that when it was made: a thawed parameter would go its own way in each process, without a word, and a
    frozen one would be waited for.
    """
    wrapper.require_backward_grad_sync = any(parameter.requires_grad for parameter in wrapper.module.parameters())
    if wrapper.require_backward_grad_sync:
        settle_anew(wrapper)


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
