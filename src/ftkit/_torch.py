"""What ftkit uses of torch beyond what torch promises: all of it is in this room.

Each is looked up when it is first used. Where a torch has dropped one, either a second way is taken, or the error says
what is missing and which versions have it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import operator
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeGuard, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ftkit.errors import FtkitError

if TYPE_CHECKING:  # looked up by __getattr__
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensor,
        FakeTensorMode,
        UnsupportedOperatorException,
    )
    from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
    from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = [
    "FAKE_TENSOR_LOG",
    "LISTS_BY_GROUP",
    "RATES_BY_GROUP",
    "SCHEDULERS_INSIDE",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "IndexedLoader",
    "NoDynamo",
    "TorchDispatchMode",
    "UnsupportedOperatorException",
    "allocated",
    "answers_for_fakes",
    "as_parameter",
    "below_dispatch",
    "buffers_of",
    "can_settle_anew",
    "children_of",
    "compiled_from",
    "eager_call",
    "eagerly",
    "fake_maker",
    "fake_tensors",
    "fused_attention",
    "gives_views",
    "global_hooks",
    "holds_value",
    "hooks_made",
    "hooks_of",
    "inabilities_of_fakes",
    "is_convolution",
    "is_function_of_nn",
    "is_norm",
    "is_traceable_wrapper_subclass_type",
    "is_transformed",
    "is_transforming",
    "is_zero",
    "kept_by",
    "loads_plainly",
    "needed",
    "negated",
    "no_transforms",
    "node_number",
    "node_running",
    "nodes_made",
    "operator_name",
    "owners",
    "parameters_of",
    "power_iterate",
    "pre_hooks_of",
    "settle_anew",
    "sparse_parts",
    "storage_id",
    "tree_flatten",
    "tree_leaves",
    "tree_map_only",
    "tree_unflatten",
    "uncompiled",
    "version_of",
    "without_checkpointing",
    "without_step_hooks",
    "without_transforms",
    "wrapper_tensor",
    "writes",
    "written_by",
]

T_co = TypeVar("T_co", covariant=True)

FAKE_TENSOR_LOG: Final = logging.getLogger("torch._subclasses.fake_tensor")
"""Where fake tensors report each operator that they can't follow, as an error."""


def needed(owner: object, name: str, purpose: str) -> Any:
    """Return something that torch keeps to itself.

    Raises:
        FtkitError: This torch has it no more. The message says what it was needed for.

    Example:
        >>> import torch
        >>> from ftkit._torch import needed
        >>> needed(torch.nn.Linear(1, 1), "_paramters", "list parameters")
        Traceback (most recent call last):
            ...
        ftkit.errors.FtkitError: ... has no Linear._paramters, which ftkit needs to list parameters. ...
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        place = getattr(owner, "__name__", type(owner).__name__)
        raise FtkitError(
            f"torch {torch.__version__} has no {place}.{name}, which ftkit needs to {purpose}. ftkit is tested with "
            "torch 2.6 to 2.14: install one of these, or a newer ftkit."
        ) from None


_ELSEWHERE = "torch._subclasses.fake_tensor", "torch.utils._python_dispatch", "torch.utils._pytree"


def __getattr__(name: str) -> Any:
    """Look for what lives in a private module of torch when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for place in _ELSEWHERE:
        with contextlib.suppress(AttributeError, ImportError):
            return getattr(importlib.import_module(place), name)
    return needed(torch, name, "run models without their data")


# ---- the tables of a module: live dicts, whose order is that of registration


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters that a module itself has registered; of a scripted module a copy of the table."""
    table: Any = needed(module, "_parameters", "read a module's parameters")
    return table if isinstance(table, dict) else dict(table.items())


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The buffers that a module itself has registered."""
    return cast("dict[str, torch.Tensor | None]", needed(module, "_buffers", "read a module's buffers"))


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules that a module itself has registered."""
    return cast("dict[str, nn.Module | None]", needed(module, "_modules", "read a module's children"))


def pre_hooks_of(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """The hooks that run before a module's forward, by torch's keys and our own."""
    return cast("dict[Any, Callable[..., Any]]", needed(module, "_forward_pre_hooks", "hold modules in eval mode"))


def global_hooks() -> tuple[dict[Any, Callable[..., Any]], dict[Any, Callable[..., Any]]]:
    """The hooks that run before and after the forward of every module."""
    place = nn.modules.module
    purpose = "see whether hooks watch all modules"
    return needed(place, "_global_forward_pre_hooks", purpose), needed(place, "_global_forward_hooks", purpose)


def hooks_made() -> int:
    """How many hooks of any kind there were so far in this process."""
    return int(needed(torch.utils.hooks.RemovableHandle, "next_id", "see whether a hook was added"))


# ---- storages


def storage_id(tensor: torch.Tensor) -> int:
    """What identifies the memory under a tensor among all memory that is alive."""
    return int(needed(tensor.untyped_storage(), "_cdata", "tell storages apart"))


def sparse_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a sparse tensor is made of; none, if it is none."""
    names = {
        torch.sparse_coo: ("_indices", "_values"),
        torch.sparse_csr: ("crow_indices", "col_indices", "values"),
        torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
        torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
        torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
    }.get(tensor.layout, ())
    with below_dispatch():
        return [getattr(tensor, name)() for name in names]


# ---- weights files


def loads_plainly(module: nn.Module) -> bool:
    """Whether a module takes what a state dict has under its names as it is; no, where this torch can't tell."""
    loader = getattr(type(module), "_load_from_state_dict", None)
    hooks = [getattr(module, f"_load_state_dict_{when}_hooks", None) for when in ("pre", "post")]
    if loader is None or None in hooks:
        return False
    # Of torch's own, batch norm alone has a loader of its own, which adds a counter that old files lack.
    own = loader is nn.Module._load_from_state_dict or loader.__module__ == "torch.nn.modules.batchnorm"
    return own and not any(hooks)


def negated(tensor: torch.Tensor) -> torch.Tensor:
    """See a tensor's memory as the negatives of what it holds: a copy, where this torch has no such view."""
    view: Callable[[torch.Tensor], torch.Tensor] = getattr(torch, "_neg_view", torch.neg)
    return view(tensor)


# ---- wrappers around a model


def compiled_from(wrapper: nn.Module) -> nn.Module | None:
    """The module that torch.compile has wrapped; None for any other module."""
    if isinstance(wrapper, torch.jit.ScriptModule):  # its table of children is no dict
        return None
    return children_of(wrapper).get("_orig_mod")


def can_settle_anew(wrapper: DistributedDataParallel) -> bool:
    """Tell whether :func:`settle_anew` works: not with a process group of the wrapper's own."""
    try:
        wrapper.__getstate__()  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return True


def settle_anew(wrapper: DistributedDataParallel) -> None:
    """Let a data-parallel wrapper determine again which gradients it averages. Unpickling does that; its hooks stay."""
    hooks = needed(wrapper, "_comm_hooks", "keep hooks on the communication")
    vars(wrapper)["_comm_hooks"] = []
    wrapper.__setstate__(wrapper.__getstate__())  # type: ignore[no-untyped-call]
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


# ---- norms


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm of torch's or an heir of one: batch, instance, layer, group or RMS."""
    batch_or_instance = needed(nn.modules.batchnorm, "_NormBase", "tell norms from other layers")
    return isinstance(module, (batch_or_instance, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


# ---- schedulers: the lists in which they keep something for each group of their optimizer

RATES_BY_GROUP: Final = (
    "base_lrs",  # all of torch's
    "_last_lr",  # all of torch's: what get_last_lr() gives
    "max_lrs",  # torch's CyclicLR
    "base_values",  # all of timm's
)
LISTS_BY_GROUP: Final = (
    *RATES_BY_GROUP,
    "lr_lambdas",  # torch's LambdaLR and MultiplicativeLR
    "min_lrs",  # torch's ReduceLROnPlateau: a bound, which holds for each group alike
    "base_momentums",  # torch's CyclicLR, as the next
    "max_momentums",
)
SCHEDULERS_INSIDE: Final = "_schedulers"  # those that torch's SequentialLR and ChainedScheduler run
# ---- tensors


def version_of(tensor: torch.Tensor) -> int:
    """How often torch saw a tensor's values change; 0 for an inference tensor, of which torch keeps no count."""
    return 0 if tensor.is_inference() else int(needed(tensor, "_version", "see whether a pretrained weight has moved"))


def versions_of(tensors: Iterable[torch.Tensor]) -> list[int]:
    """As :func:`version_of` for many, none of which is an inference tensor, at the speed of C."""
    needed(torch.Tensor, "_version", "see whether a pretrained weight has moved")
    return list(map(operator.attrgetter("_version"), tensors))


# ---- loaders


class IndexedLoader(DataLoader[T_co]):
    """A ``DataLoader`` that lets a subclass stand between the sampler and what takes the indices of each batch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        needed(DataLoader, "_index_sampler", "resume within an epoch")
        super().__init__(*args, **options)

    def _indices(self, sampler: Iterable[Any]) -> Iterator[Any]:
        """Yield what the batches of an epoch are made from."""
        return iter(sampler)

    @property
    def _index_sampler(self) -> Any:
        return _Through(self, super()._index_sampler)


class _Through:
    """A loader's sampler, seen through its ``_indices``."""

    def __init__(self, loader: IndexedLoader[Any], sampler: Any) -> None:
        self.loader, self.sampler = loader, sampler

    def __iter__(self) -> Iterator[Any]:
        return self.loader._indices(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


# ---- fake tensors

FakeMaker: TypeAlias = "Callable[[torch.Tensor, torch.device, bool], FakeTensor]"
"""From a meta tensor, a device and whether it takes a gradient to a fake tensor on that device."""


def fake_maker(mode: FakeTensorMode) -> FakeMaker | None:
    """The shortest way to make fake tensors of ``mode``; None where this torch makes them in another way.

    It is what their constructor does, less its checks, which would take half of the time of a summary.
    """
    fakes = __getattr__("FakeTensor")
    tables: dict[torch.device, dict[str, Any]] = {}

    def constructed(device: torch.device) -> FakeTensor:
        with below_dispatch():
            made: FakeTensor = fakes(mode, torch.empty(0, device="meta"), device)
        return made

    def make(elem: torch.Tensor, device: torch.device, requires_grad: bool) -> FakeTensor:
        if device not in tables:
            tables[device] = dict(vars(constructed(device)))
        made: FakeTensor = torch.Tensor._make_subclass(
            fakes, elem, requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        vars(made).update(tables[device])
        return made

    cpu = torch.device("cpu")
    try:
        own, other, ours = constructed(cpu), constructed(cpu), make(torch.empty(0, device="meta"), cpu, False)
        frozenset(vars(own).values())  # what can't be hashed could change, and must not be shared
        alike = vars(own) == vars(other) == vars(ours) and ours.device == cpu and not holds_value(ours)
        return make if alike and torch._C._dispatch_keys(own) == torch._C._dispatch_keys(ours) else None
    except (AttributeError, FtkitError, TypeError):
        return None


def holds_value(fake: FakeTensor) -> bool:
    """Whether a fake tensor knows its value after all: a constant of the model's code."""
    return needed(fake, "constant", "know what a fake tensor knows") is not None


def is_zero(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of autograd's zeros, which other operators pass by."""
    return bool(needed(tensor, "_is_zerotensor", "tell autograd's zeros from other tensors")())


def as_parameter(fake: torch.Tensor) -> torch.Tensor:
    """Have a tensor pass for an ``nn.Parameter``, by the mark that isinstance looks at."""
    fake._is_param = True
    return fake if isinstance(fake, nn.Parameter) else nn.Parameter(fake, fake.requires_grad)


# ---- operators


class NoDynamo:
    """Keeps torch.compile from wrapping each operator of a mode: the wrapper would cost more than the mode."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a transform of torch.func is at work on a tensor, or forward-mode AD: there is more to it than values."""
    wrapped = needed(torch._C._functorch, "is_functorch_wrapped_tensor", "see whether torch.func is at work")
    dual: Any = torch.autograd.forward_ad
    return bool(wrapped(tensor)) or dual.unpack_dual(tensor).tangent is not None


def is_transforming() -> bool:
    """Whether this is called by a function that torch.func transforms."""
    stack = needed(torch._C._functorch, "peek_interpreter_stack", "see whether torch.func is at work")
    return stack() is not None


def no_transforms() -> contextlib.AbstractContextManager[object]:
    """Have operators in the block do what they do outside of torch.func, to tensors that it has not wrapped."""
    guard = needed(torch._C, "_DisableFuncTorch", "call operators outside of torch.func")
    return cast("contextlib.AbstractContextManager[object]", guard())


def without_transforms(tensor: torch.Tensor) -> torch.Tensor:
    """The values behind a tensor that torch.func has wrapped, of all that it stands for."""
    functorch = needed(torch._C, "_functorch", "see whether torch.func is at work")
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


uncompiled: Final[Callable[..., Any]] = needed(torch, "_disable_dynamo", "step out of torch.compile")(_call)
"""Calls a function with some arguments, past torch.compile, whose graph ends there and begins anew behind it."""


def is_exporting() -> bool:
    """Whether torch.export or torch.jit.trace is told by what runs now what a model does."""
    asked = getattr(torch.compiler, "is_exporting", None)  # before torch 2.7 there is none, and only one of two ways
    exports = asked() if asked else torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return bool(exports or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def eagerly() -> contextlib.AbstractContextManager[object]:
    """Have what torch.compile has compiled run as it was written, in the block."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager[object]", torch.compiler.set_stance("force_eager"))


def below_dispatch() -> contextlib.AbstractContextManager[object]:
    """Pass by all modes and subclasses in the block, where a fake tensor is the meta tensor that it is made of."""
    guard = needed(torch._C, "_DisableTorchDispatch", "see through fake tensors")
    return cast("contextlib.AbstractContextManager[object]", guard())


@functools.cache
def operator_name(func: Any) -> str:
    """The name of an operator without its overload, such as ``aten::add``."""
    return str(func.name()).partition(".")[0]


def gives_views(func: Any) -> bool:
    """Whether an operator may give back views of its arguments; so it says where this torch does not tell."""
    schema = getattr(func, "_schema", None)
    return schema is None or any(returned.alias_info is not None for returned in schema.returns)


def writes(func: Any) -> bool:
    """Whether an operator declares that it writes to an argument."""
    return any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)


def written_by(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors that an operator writes to, by what it declares."""
    schema = needed(func, "_schema", "see what an operator writes to")
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from (one for one in __getattr__("tree_leaves")(value) if isinstance(one, torch.Tensor))


def wrapper_tensor(kind: type[torch.Tensor], like: torch.Tensor, device: torch.device) -> Any:
    """Make a tensor of a subclass that has the shape of another one, and no memory."""
    make = needed(torch.Tensor, "_make_wrapper_subclass", "stand for tensors without data")
    return make(
        kind, like.shape, strides=like.stride(), storage_offset=like.storage_offset(), dtype=like.dtype, device=device
    )


def eager_call(module: nn.Module) -> Callable[..., Any]:
    """What calls a module, hooks included: its graph by torch.compile, which hides the layers, is left out."""
    children = children_of(module)
    if "_orig_mod" in children:  # not get(), which the table of TorchScript lacks
        return cast("Callable[..., Any]", children["_orig_mod"])
    return cast("Callable[..., Any]", needed(module, "_call_impl", "call a module without its compiled graph"))


def allocated(run: Callable[[], Any]) -> tuple[Any, tuple[int, int] | None]:
    """Call something; return what it gives, and the most CPU memory that it held besides that, and for that, in bytes.

    It is torch's first profiler that tells: its second one takes a hundred times as long. None where torch has it no
    more, or where one runs in this thread.
    """
    autograd: Any = torch.autograd
    try:
        kind, states = autograd.ProfilerConfig, autograd.ProfilerState
        start, stop = autograd._enable_profiler_legacy, autograd._disable_profiler_legacy
        start(kind(states.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig()))
    except (AttributeError, RuntimeError, TypeError):
        return run(), None
    threads: list[Any] = []
    try:
        given = run()
    finally:
        threads = stop()
    events = [event for events in threads for event in events if event.kind() == "memory_alloc"]
    held = list(itertools.accumulate((event.cpu_memory_usage() for event in events), initial=0))
    return given, (max(held) - held[-1], held[-1])


def fused_attention() -> Any:
    """The operator that computes ``nn.MultiheadAttention`` where no gradients are needed; None where torch has none."""
    return getattr(getattr(torch.ops.aten, "_native_multi_head_attention", None), "default", None)


def without_step_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer tables of its own for the hooks around a step, with none in them."""
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if hasattr(optimizer, name):
            setattr(optimizer, name, OrderedDict())


# ---- the graph of autograd


def nodes_made() -> int:
    """How many nodes autograd has made in this thread, which numbers them in that order."""
    return int(needed(torch._C._autograd, "_get_sequence_nr", "tell which module is differentiated")())


def node_running() -> torch.autograd.graph.Node | None:
    """The node whose backward function is running in this thread."""
    node: torch.autograd.graph.Node | None
    node = needed(torch._C, "_current_autograd_node", "tell which module is differentiated")()
    return node


def node_number(node: torch.autograd.graph.Node) -> int:
    """How many nodes there were when autograd made this one."""
    return int(needed(node, "_sequence_nr", "tell which module is differentiated")())


def kept_by(node: torch.autograd.graph.Node, name: str) -> Any:
    """What a node keeps for its formula under a name; None if that is nothing."""
    return getattr(node, f"_saved_{name}", None)


def owners(tensor: torch.Tensor) -> tuple[int, int] | None:
    """How many own the memory of a tensor, and how many the tensor; None where this torch does not tell."""
    of_storage = getattr(torch._C, "_storage_Use_Count", None)
    of_tensor = getattr(torch.Tensor, "_use_count", None)
    if of_storage is None or of_tensor is None:
        return None
    return int(of_storage(storage_id(tensor))), int(of_tensor(tensor))


# ---- layers, and runs on fake tensors


def is_convolution(module: object) -> TypeGuard[nn.modules.conv._ConvNd]:
    """Whether a module is a convolution of torch's, or of a class made from one; transposed ones too."""
    usual = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return isinstance(module, getattr(nn.modules.conv, "_ConvNd", usual))


def is_function_of_nn(thing: object, name: str) -> bool:
    """Whether something is the compiled function of that name behind ``torch.nn.functional``."""
    return vars(torch._C._nn).get(name) is thing


def hooks_of(module: nn.Module) -> dict[Any, Callable[..., Any]]:
    """The hooks that run after a module's forward, by torch's keys."""
    return cast("dict[Any, Callable[..., Any]]", needed(module, "_forward_hooks", "leave a user's hooks alone"))


def power_iterate(parametrization: object, weight: torch.Tensor, times: int) -> None:
    """Fit the estimate of a spectral norm to a weight. Any other parametrization is left as it is."""
    iterate = getattr(parametrization, "_power_method", None)
    if iterate is not None:
        matrix = needed(parametrization, "_reshape_weight_to_matrix", "give a layer under a spectral norm its weight")
        iterate(matrix(weight), times)


def fake_tensors() -> FakeTensorMode:
    """Return a mode in which new tensors are fakes: they have shapes and a graph, and no memory."""
    mode: FakeTensorMode = __getattr__("FakeTensorMode")(allow_non_fake_inputs=True)
    return mode


@contextlib.contextmanager
def without_checkpointing() -> Iterator[None]:
    """Run what reentrant checkpointing wraps plainly in the block, in this thread, so that its graph is there to see.

    Otherwise the graph has one node for all of it, until a backward pass runs it again.
    """
    checkpoint: Any = importlib.import_module("torch.utils.checkpoint")
    wrapped, here = checkpoint.CheckpointFunction, threading.get_ident()

    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() == here:
            return function(*args)
        return wrapped.apply(function, preserve, *args)

    checkpoint.CheckpointFunction = type("Plain", (), {"apply": staticmethod(apply)})
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = wrapped


def inabilities_of_fakes() -> tuple[type[Exception], ...]:
    """The errors that say that an operator can't be followed with fakes, whatever their shapes."""
    names = "DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedOperatorException"
    return (*map(__getattr__, names), NotImplementedError)


def answers_for_fakes(answer: Callable[[str, Callable[..., Any], Sequence[Any]], Any]) -> AbstractContextManager[Any]:
    """Return a mode in which ``answer`` is asked where an operator needs the values that fakes don't have.

    Args:
        answer: Called with the operator's name, the operator and its positional arguments. Where it gives None too, the
            operator fails as it would have.
    """
    unanswered = __getattr__("DataDependentOutputException"), __getattr__("DynamicOutputShapeException")
    base = __getattr__("TorchDispatchMode")

    def dispatch(_: object, func: Any, _types: object, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except unanswered:
            answered = answer(func.__name__.partition(".")[0], func, args)
            if answered is None:
                raise
            return answered

    return cast("AbstractContextManager[Any]", type("Answers", (base,), {"__torch_dispatch__": dispatch})())
