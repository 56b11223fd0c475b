"""A run of a model on fake tensors: where its outputs come from, and whether it came to its end."""

from __future__ import annotations

import copy
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ftkit._heads.graph import Ends, passages, unused, walk
from ftkit._heads.inputs import Inputs, labeled, possible_inputs
from ftkit._heads.layers import Layer, Layers, as_layer, copied, layers, own_parameters, tensors_of
from ftkit._models.dryrun import caches_apart, named_tensors, quiet, tensors_in, untouched
from ftkit._torch import (
    answers_for_fakes,
    fake_tensors,
    hooks_of,
    inabilities_of_fakes,
    is_norm,
    pre_hooks_of,
    without_checkpointing,
)
from ftkit._wording import cause
from ftkit.errors import HeadError


@dataclass
class Run:
    """What a run gave."""

    inputs: Inputs = ((), {})
    unseen: set[str] = field(default_factory=set)  # the names of layers that did not run, or not before it failed
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)  # after a failure, what the last layers gave
    complete: bool = False  # whether the model came to its end
    failure: str = ""  # why it did not
    failed_in: str = ""  # the name of the innermost module that failed
    unable: bool = False  # whether no other inputs help: fakes can't do it, or the outputs have no history
    guessed: bool = False  # whether sizes on the way hung on values, which were made up
    calls: int = 0  # of torch, from Python
    first: dict[str, None] = field(default_factory=dict)  # the layers that the input went into before any other
    made: dict[str, torch.Tensor] = field(default_factory=dict)  # what all layers gave, in the order of their runs
    widths: dict[str, int] = field(default_factory=dict)  # how many features each layer gave last
    norms: dict[Any, tuple[str, Any]] = field(default_factory=dict)  # what norms, as of walk
    misfit: int | None = None  # how many features too many the last linear layer got

    def is_without_history(self, layer: Layer) -> bool:
        """Whether all that a layer gave has no history: it ran under ``torch.no_grad()``."""
        gave = self._given_by(layer)
        return bool(gave) and all(tensor.grad_fn is None for tensor in gave)

    def returns(self, layer: Layer) -> bool:
        """Whether what a layer gave leaves the model as it is, with a history or without."""
        leaving = set(map(id, self.outputs.values()))
        return any(id(tensor) in leaving for tensor in self._given_by(layer))

    def _given_by(self, layer: Layer) -> list[torch.Tensor]:
        return [tensor for key, tensor in self.made.items() if key.partition(":")[0] in layer.names]

    @property
    def unproven(self) -> str:
        """Why a run that did not come to its end proves nothing."""
        if self.failure in (_NO_GRADIENT, _INFERENCE):
            return self.failure
        where, advice = ("fake tensors", "") if self.unable else ("made-up inputs", ": pass example_inputs=")
        return f"the model could not be run on {where} ({self.failure}){advice}"


_NO_GRADIENT, _INFERENCE = "its output has no gradient", "leave torch.inference_mode()"


@dataclass
class Trace:
    """What a model's runs told."""

    run: Run  # the first one
    ends: Ends = field(default_factory=Ends)  # the layers that outputs come from, in order of registration
    bare: set[str] = field(default_factory=set)  # parameters that outputs come from, and that belong to no layer

    def shapes_of(self, layer: Layer, level: int) -> list[torch.Size]:
        """The shapes of the outputs that are no further than ``level`` from what a layer gives."""
        return [end.shapes[port] for end in self.ends.of(layer) for port in end.ports_within(level)]


def trace(model: nn.Module, every: Layers, given: Inputs | None = None) -> Trace:
    """Run the model on fake tensors and walk the graph back from its outputs.

    The run is that of a copy whose parameters are fakes: it has their shapes, and no memory, no values and no way
    back to the model. A second run in training mode finds what only training uses.

    Args:
        model: The model.
        every: Its layers.
        given: Inputs that the user knows it to take.

    Raises:
        HeadError: It does not run on those.
    """
    inputs = [] if given is None else [given]
    try:
        shadow = _Shadow(model, every)
    except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
        return Trace(_uncopied(error))
    run = shadow.run(inputs)
    _check_given(model, given, run)
    told = Trace(run)
    seen = _add_ends(told, shadow, run, set(), training_only=False)
    if run.complete and len(seen) < len(every):
        shadow = _Shadow(model, every)
        in_training = shadow.run(inputs, training=True)
        if in_training.complete:
            _add_ends(told, shadow, in_training, seen, training_only=True)
            run.widths |= in_training.widths
    order = {layer: index for index, layer in enumerate(every)}
    told.ends.sort(key=lambda end: order[end.layer])
    for end in told.ends:
        if not end.layer.sure and end.layer.inputs in map(run.widths.get, end.layer.names):
            end.layer = end.layer.turned()  # it gave as many features as it was thought to take
    return told


def order_of_use(model: nn.Module, given: Inputs | None = None) -> tuple[dict[str, frozenset[str]], str]:
    """Run the model on fake tensors, and tell in which order data meet its parameters.

    Args:
        model: The model.
        given: Inputs that the user knows it to take.

    Returns:
        For each parameter that took part, by name, those that data met last before it, as of :func:`passages`; none
        where the model does not run that far, and then why it does not.

    Raises:
        HeadError: It does not run on what the user gave.
    """
    every = layers(model)
    inputs = [] if given is None else [given]
    try:
        run = _Shadow(model, every).run(inputs)
    except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
        return {}, _uncopied(error).unproven
    _check_given(model, given, run)
    if not run.complete and (run.unseen or run.failure in (_NO_GRADIENT, _INFERENCE)):
        return {}, run.unproven
    found = passages(run.outputs | run.made)
    if run.unseen:
        in_training = _Shadow(model, every).run(inputs, training=True)
        found = passages(in_training.outputs | in_training.made) | found
    return found, ""


def _check_given(model: nn.Module, given: Inputs | None, run: Run) -> None:
    if given is not None and not (run.complete or run.unable):
        raise HeadError(f"The {type(model).__name__} does not run on the example_inputs: {run.failure}.")


def _add_ends(told: Trace, shadow: _Shadow, run: Run, seen: set[Layer], *, training_only: bool) -> set[Layer]:
    """Add where the outputs of a run come from, but not layers ``seen`` in another; return all that are seen now."""
    walks = [(walk(run.outputs, shadow.owners, run.norms), training_only)]
    walks += [(walk(unused(run.made), shadow.owners, run.norms), True)]  # what ran for the loss alone
    told.bare |= walks[0][0].bare
    for back, only in walks:
        fresh = [end for end in back.ends if end.layer not in seen]
        for end in fresh:
            end.training_only = only
        told.ends += fresh
        seen = seen | back.met
    return seen


def run_with_labels(model: nn.Module, run: Run) -> Run:
    """Run a model on what it ran on before and such labels that it computes its own loss; it may take none."""
    inputs = list(labeled(model, run.inputs, [tensor.shape for tensor in run.outputs.values()]))
    return _Shadow(model, layers(model)).run(inputs, calls=_TRIES_OF_LABELS * run.calls) if inputs else Run()


def run_on(model: nn.Module, *inputs: Inputs, follow: bool = True) -> Run:
    """Run a model on fake tensors like one of the ``inputs``, or on made up ones; see :meth:`_Shadow.run`."""
    try:
        shadow = _Shadow(model, layers(model))
    except Exception as error:  # noqa: BLE001 -- a model may refuse to be copied in any way it likes
        return _uncopied(error)
    return shadow.run(inputs, follow=follow)


def _uncopied(error: Exception) -> Run:
    return Run(failure=f"it can't be copied: {cause(error)}", unable=True)


# ---- a copy of the model around fakes


class _Shadow:
    """A copy of a model whose tensors are fakes.

    Attributes:
        model: The copy.
        owners: The layer of each fake parameter, by identity.
    """

    def __init__(self, model: nn.Module, every: Layers) -> None:
        self._mode = fake_tensors()
        kinds = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()}
        self._dtype = kinds.pop() if len(kinds) == 1 else torch.float32  # of several, each would be cast to the other
        with self._mode:
            fakes: dict[int, Any] = {id(tensor): _fake(tensor, self._dtype) for tensor in tensors_of(model)}
        with quiet():
            self.model = copied(model, dict(fakes))
        for module in self.model.modules():
            _leave_own(hooks_of(module), module)
            _leave_own(pre_hooks_of(module), module)
        self.owners: dict[int, Layer] = {}
        for layer in every:
            for name, tensor in own_parameters(layer.module).items():
                fake = fakes[id(tensor)]
                self.owners.setdefault(id(fake), layer)
                # What a parametrization makes the weight from; it may be multiplied on the way there.
                fake.computed = name.startswith("parametrizations.") or name.endswith("_orig")
        for name, parameter in model.named_parameters():
            fakes[id(parameter)].dotted = name

    def run(self, inputs: Sequence[Inputs] = (), *, training: bool = False, follow: bool = True, calls: int = 0) -> Run:
        """Run the copy on inputs like the given ones, or on those that it could take, until one is taken.

        To ``follow`` the inputs means that they take part in the autograd graph, which tells what is computed from
        them. All attempts together take no more ``calls`` of torch than that.
        """
        self.model.train(training)
        for module in () if follow else self.model.modules():
            if not isinstance(module, nn.Embedding):  # so that an image still is one behind a norm
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(id(parameter) in self.owners and parameter.requires_grad)
        attempts = _Attempts(self.model, self._dtype, follow=follow, calls=calls)
        with (
            untouched(),
            caches_apart(self.model.modules()),
            without_checkpointing(),
            self._mode,
            answers_for_fakes(attempts.answer),
            torch.device("cpu"),
        ):
            return attempts.run(inputs)


def _fake(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="cpu")
    if not isinstance(tensor, nn.Parameter):
        return made
    return nn.Parameter(made, requires_grad=tensor.is_floating_point() or tensor.is_complex())


def _leave_own(hooks: dict[Any, Any], module: nn.Module) -> None:
    """Leave those hooks that belong to how a module works: weight norm, outputs that a library captures.

    The others are the user's, and must not see fakes.
    """
    home = {"torch", type(module).__module__.partition(".")[0]} - {"__main__"}
    for key, hook in list(hooks.items()):
        function = getattr(hook, "func", hook)
        written = function if isinstance(function, types.FunctionType | types.MethodType) else type(function)
        if str(written.__module__).partition(".")[0] not in home:
            del hooks[key]


# ---- attempts, until an input is taken

_FEWEST_CALLS, _CALLS_PER_MODULE = 40_000, 40  # of torch from Python: several times what the models of timm need
_TRIES_OF_LABELS = 5  # as many runs, or more that fail before their end
_TOP_SIDE = {3: 1 << 17, 4: 1 << 10}  # of one search: a second or two of sound, an image


class _Attempts:
    """Runs of a model on one input after another, which hooks on its layers watch."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, follow: bool, calls: int) -> None:
        self._model, self._dtype = model, dtype
        self._names = [name for name, module in model.named_modules() if as_layer(module) is not None]
        self._give = _with_history if follow else torch.clone
        self._calls = _Calls(calls or max(_FEWEST_CALLS, _CALLS_PER_MODULE * len(list(model.modules()))))
        self._now = self._furthest = Run(unseen=set(self._names))
        self._over = False

    def run(self, given: Sequence[Inputs]) -> Run:
        """Return the first run that comes to its end, or else the one that came furthest."""
        handles = [handle for name in self._names for handle in self._watch(name)]
        handles += [self._watch_norm(name, one) for name, one in self._model.named_modules() if is_norm(one)]
        try:
            for inputs in map(_again, given) if given else self._made_up():
                if self._attempt(inputs):
                    return self._now
                # Once all layers have run, what fails then is no matter of the input, unless of the user's labels.
                if self._over or not (given or self._now.unseen):
                    break
        finally:
            for handle in handles:
                handle.remove()
        failed = self._furthest
        failed.outputs, failed.made = unused(failed.made), {}
        failed.failure = failed.failure or "no suitable input was found"
        return failed

    def _made_up(self) -> Iterator[Inputs]:
        """Yield inputs that the model could take, and once also those of other sizes, where one came near."""
        searched = False
        for inputs in possible_inputs(self._model):
            yield inputs
            args, kwargs = inputs
            if self._now.misfit and not (searched or kwargs) and args[0].dim() in _TOP_SIDE:
                searched = True
                yield from self._of_other_sizes(args)

    def _of_other_sizes(self, args: tuple[torch.Tensor, ...]) -> Iterator[Inputs]:
        """Yield inputs of one side after another, until a linear layer gets the number of features that it takes."""
        low, high = 1, _TOP_SIDE[args[0].dim()]
        while low < high:
            side = (low + high) // 2
            yield tuple(value.new_zeros(*value.shape[:2], *[side] * (value.dim() - 2)) for value in args), {}
            if self._now.misfit is not None and self._now.misfit >= 0:
                high = side
            else:  # too few features, or too small an image to come that far
                low = side + 1

    def _attempt(self, inputs: Inputs) -> bool:
        """Run the model on one input; return whether it came to its end."""
        run = self._now = Run(inputs, set(self._names))
        left = self._calls.left
        try:
            args, kwargs = _with_tensors(inputs, self._given)
            with self._calls:
                run.outputs = dict(_flat(self._model(*args, **kwargs), ""))
        except Exception as error:  # noqa: BLE001 -- whatever a model raises on an input that isn't for it
            run.failure = cause(error).splitlines()[0][:200].rstrip(".: ")
            run.failed_in = self._innermost(error)
            if run.failure.startswith("RuntimeError: Inference tensors"):
                run.failure = _INFERENCE
            run.unable = run.failure == _INFERENCE or isinstance(error, (*inabilities_of_fakes(), _TooLongError))
            self._over = isinstance(error, _TooLongError)
        run.complete = any(tensor.grad_fn is not None for tensor in run.outputs.values())
        if not (run.complete or run.failure):
            run.failure, run.unable = _NO_GRADIENT, True
        if len(run.made) > len(self._furthest.made) or not self._furthest.failure:
            self._furthest = run
        run.calls = left - self._calls.left
        return run.complete

    def _innermost(self, error: Exception) -> str:
        """The name of the innermost module of the model in whose code an error was raised."""
        names = {id(module): name for name, module in self._model.named_modules()}
        frames = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
        return next(iter([names[id(one)] for one in frames if id(one) in names][::-1]), "")

    def _given(self, value: torch.Tensor) -> torch.Tensor:
        """Give an input of the floating type of the model, a copy."""
        return self._give(value.to(self._dtype) if value.is_floating_point() else value)

    def answer(self, name: str, func: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Answer an operator that asks for values: every test is true, every number one, and all values are alike."""
        answer = _ANSWERS.get(name)
        self._now.guessed = self._now.guessed or name not in _NO_SIZES
        return None if answer is None else answer(func, args)

    def _watch(self, name: str) -> Iterator[RemovableHandle]:
        """Put hooks on a layer that note what it takes and gives."""

        def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if isinstance(layer, nn.Linear) and args and isinstance(args[0], torch.Tensor) and args[0].dim():
                self._now.misfit = args[0].shape[-1] - layer.in_features

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            run = self._now
            run.made.update(_flat(output, f"{name}:{len(run.made)}"))
            run.unseen.discard(name)
            if isinstance(output, torch.Tensor) and output.dim():
                run.widths[name] = output.shape[-1]
            if args and isinstance(args[0], torch.Tensor) and not args[0].requires_grad:
                run.first[name] = None

        layer = self._model.get_submodule(name)
        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    def _watch_norm(self, name: str, norm: nn.Module) -> RemovableHandle:
        """Put a hook on a norm that notes between which nodes it stands."""

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensors = (*args[:1], output)
            if len(tensors) == 2 and all(isinstance(one, torch.Tensor) and one.grad_fn is not None for one in tensors):
                self._now.norms[output.grad_fn] = (name, tensors[0].grad_fn)

        return norm.register_forward_hook(after)


def _again(inputs: Inputs) -> Inputs:
    """Make inputs like those of another run, or of the user."""
    return _with_tensors(inputs, lambda value: torch.zeros(value.shape, dtype=value.dtype))


def _with_tensors(inputs: Inputs, make: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """Copy inputs, with what is made of each tensor in its place."""
    return copy.deepcopy(inputs, {id(value): make(value) for value in tensors_in(inputs)})


def _with_history(value: torch.Tensor) -> torch.Tensor:
    """Give an input a history of its own; it is no leaf, so a model may still write into it."""
    return value.requires_grad_() * 1 if value.is_floating_point() else value


def _flat(value: Any, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    return ((".".join(map(str, (key, *path))), tensor) for path, tensor in named_tensors(value))


# ---- what fakes can't do


class _TooLongError(Exception):
    def __str__(self) -> str:
        return "the run on fake inputs took too many operations"


class _Calls(TorchFunctionMode):
    """Does by other means, where Python calls torch, what fakes can't do, and counts the calls.

    So it ends a run that the answers sent into a long loop. (Raised here, an error is safe.)
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _TooLongError
        instead = _INSTEAD.get(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {})) if instead is None else instead(func, args)


_MOST_STEPS = 256  # that fakes take one by one


def _recurrent(func: Callable[..., Any], args: Sequence[Any]) -> Any:
    if not isinstance(args[3], list):  # of a plain tensor
        axis = int(args[-1])
        if args[0].shape[axis] <= _MOST_STEPS:
            return func(*args)
        output, *states = func(args[0].mean(axis, keepdim=True), *args[1:])
        return (output.expand(*args[0].shape[:2], -1), *states)
    output, *states = func(args[0].unsqueeze(1), *args[2:], False)
    return (output.squeeze(1), *states)


_INSTEAD: dict[str, Callable[[Callable[..., Any], Sequence[Any]], Any]] = {  # packed sequences are one long sequence
    "_pack_padded_sequence": lambda _, args: (args[0].flatten(0, 1), torch.ones(1, dtype=torch.long)),
    "_pad_packed_sequence": lambda _, args: (args[0].unsqueeze(int(not args[2])), torch.ones(1, dtype=torch.long)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}


_NO_SIZES = ("_local_scalar_dense", "is_nonzero", "equal")  # on whose answers no shape hangs by itself


def _number(_: object, args: Sequence[Any]) -> Any:
    if args[0].dtype is torch.bool:
        return True
    return 1.0 if args[0].is_floating_point() else 1


def _one_value(flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return flat[:1], flat.new_empty(flat.shape[:1], dtype=torch.long), flat.new_empty((1,), dtype=torch.long)


def _index(func: Callable[..., Any], args: Sequence[Any]) -> Any:
    places: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype in (torch.bool, torch.uint8):  # a mask, which takes all
            places += [index.new_empty((index.numel(),), dtype=torch.long)] * index.dim()
        else:
            places.append(index)
    return func(args[0], places)


_ANSWERS: dict[str, Callable[[Callable[..., Any], Sequence[Any]], Any]] = {
    "_local_scalar_dense": _number,
    "is_nonzero": lambda *_: True,
    "equal": lambda *_: True,
    "nonzero": lambda _, args: args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.long),
    "masked_select": lambda _, args: (args[0] + args[1].to(args[0].dtype)).reshape(-1),
    "nms": lambda _, args: args[0].new_empty((min(args[0].shape[0], 4),), dtype=torch.long),
    "_unique2": lambda _, args: _one_value(args[0].reshape(-1)),
    "unique_consecutive": lambda _, args: _one_value(args[0].reshape(-1)),
    "unique_dim": lambda _, args: _one_value(args[0]),
    "index": _index,
}
