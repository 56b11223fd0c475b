"""A meter that runs under every operator and around every module, on tensors that may hold no data."""

from __future__ import annotations

import bisect
import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from ftkit._cost import operators
from ftkit._models.dryrun import tensors_in

__all__ = ["Meter", "Part", "Shapes", "Spec", "shapes_in", "storages"]

Shapes: TypeAlias = tuple[int, ...] | tuple[tuple[int, ...], ...] | None
"""One tensor's shape; or several tensors' shapes, in the order in which they come; or nothing."""


@dataclass
class Part:
    """What one module of the model did in the step, its children included, over all of its calls.

    Attributes:
        calls: How often the forward pass called it.
        input_shape: Of the tensors of its first call.
        output_shape: Of the tensors that its first call gave back.
        forward_flops: A multiply-add is 2.
        backward_flops: For gradients of inputs and of parameters.
        saved_bytes: Kept from the forward for the backward pass; parameters, buffers and inputs aside.
        training: Whether it ran in train mode; None if it never ran.
        differentiable: Whether a gradient flows back into its outputs.
    """

    calls: int = 0
    input_shape: Shapes = None
    output_shape: Shapes = None
    forward_flops: int = 0
    backward_flops: int = 0
    saved_bytes: int = 0
    training: bool | None = None
    differentiable: bool = False


def shapes_in(tree: Any) -> Shapes:
    """Return the shapes of the tensors in a nested structure; -1 for a ragged dimension."""
    found = tuple(tuple(size if type(size) is int else -1 for size in tensor.shape) for tensor in tensors_in(tree))
    return found[0] if len(found) == 1 else found


def storages(tensor: torch.Tensor) -> Iterable[tuple[int, int]]:
    """Return the identity and the bytes of the memory under a tensor."""
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse and opaque layouts have none of their own
        return [(id(tensor), tensor.numel() * tensor.element_size())]
    return [(storage._cdata, storage.nbytes())]


class Spec(NamedTuple):
    """All that a tensor without data is."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int | torch.SymInt = 0

    @staticmethod
    def of(tensor: torch.Tensor, device: torch.device) -> Spec:
        """Take them from a tensor."""
        return Spec(tensor.shape, tensor.stride(), tensor.dtype, device, tensor.storage_offset())


class _Known(NamedTuple):
    """What an operator gives back on arguments like those that it was once called with."""

    flops: int
    scratch: int
    single: bool
    outputs: list[Spec | None]
    same: int | None  # it gives back this argument
    base: int | None  # its outputs are views of this argument


class _Frame:
    """One call of a module."""

    __slots__ = ("backward", "forward", "parent", "part", "saved")

    def __init__(self, part: Part | None, parent: _Frame | None) -> None:
        self.part = part
        self.parent = parent
        self.forward = self.backward = self.saved = 0


class _Watch(weakref.ref[torch.UntypedStorage]):
    """Tells when a storage dies."""

    __slots__ = ("frame", "key", "size")
    frame: _Frame
    key: int
    size: int


_DEVICE_OF = torch.ops.prim.device.default
_DETACH = torch.ops.aten.detach.default
_GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
_RECURRENT = torch.ops.aten.mkldnn_rnn_layer.default
_NEW_ZEROS = torch.ops.aten.new_zeros.default
_IN_PLACE = {  # what autograd does in place, where no mode watches it, to zeros that it has just made
    torch.ops.aten.index_put.default: torch.ops.aten.index_put_.default,
    torch.ops.aten.index_add.default: torch.ops.aten.index_add_.default,
    torch.ops.aten.scatter_add.default: torch.ops.aten.scatter_add_.default,
    torch.ops.aten.scatter.src: torch.ops.aten.scatter_.src,
}
_ADD = torch.ops.aten.add.Tensor
_ADD_IN_PLACE = torch.ops.aten.add_.Tensor
_ITEM = torch.ops.aten._local_scalar_dense.default
_KNOWN: dict[Any, _Known] = {}
_MOST_KNOWN = 20_000


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Counts FLOPs and follows live storages under every operator, forward and backward.

    It answers by itself what an operator gives back for arguments like those it has met before:
    FakeTensorMode, which it asks the first time, takes several times as long.
    """

    def __init__(self, fake: FakeTensorMode | None, *, answers_items: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fakes = fake
        if fake is not None:
            fake.cache_enabled = False  # ours stands before it
        self.parts: dict[int, Part] = {}
        self.in_backward = False
        self.failed: tuple[nn.Module, Shapes] | None = None
        self.stuck_at: Any = None
        self.peak: int = 0
        self._answers_items = answers_items
        self._current = 0
        self._live: dict[int, _Watch | None] = {}
        self._saved: dict[int, _Frame] = {}
        self._zeros: int | None = None
        self._templates: dict[torch.device, dict[str, Any]] = {}
        self._outside = self._frame = _Frame(None, None)
        self._frames = [self._outside]
        self._marks: list[tuple[int, _Frame]] = [(0, self._outside)]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that it would put around every operator costs more than the meter

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Measure every operator, and every module that is called, in this thread."""
        original = nn.Module.__call__
        thread = threading.get_ident()

        @functools.wraps(original)
        def through_meter(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return self.call(module, args, kwargs)

        try:
            nn.Module.__call__ = through_meter  # type: ignore[method-assign]  # global hooks see no keywords
            with self.fakes or contextlib.nullcontext(), self:
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call a module and note what it did."""
        part = self.parts.get(id(module))
        outer = self._frame
        frame = self._frame = _Frame(part, outer)
        self._frames.append(frame)
        self._mark(frame)
        # What torch.compile wraps: its graph would hide the layers. (TorchScript's dict knows no get.)
        compiled = module._modules["_orig_mod"] if "_orig_mod" in module._modules else None  # noqa: SIM401
        try:
            output = (compiled or module._call_impl)(*args, **kwargs)  # type: ignore[no-untyped-call]
        except Exception:
            if self.failed is None:
                self.failed = module, shapes_in((args, kwargs))
            raise
        finally:
            self._frame = outer
            self._mark(outer)
        self.failed = None
        if part is not None and not self.in_backward:
            if not part.calls:
                part.input_shape, part.output_shape = shapes_in((args, kwargs) if kwargs else args), shapes_in(output)
            part.calls += 1
            part.training = module.training
            part.differentiable |= any(tensor.requires_grad for tensor in tensors_in(output))
        return output

    def _mark(self, frame: _Frame) -> None:
        """Note that autograd's nodes belong to ``frame`` from here on."""
        if not self.in_backward:
            self._marks.append((torch._C._autograd._get_sequence_nr(), frame))

    def _source(self) -> _Frame:
        """The call whose operator is being differentiated."""
        node = torch._C._current_autograd_node() if self._frame is self._outside else None
        if node is None:
            return self._frame
        return self._marks[bisect.bisect_right(self._marks, node._sequence_nr(), key=lambda mark: mark[0]) - 1][1]

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd keeps for the backward pass."""
        for key, size in storages(tensor):
            if key not in self._saved and not (key in self._live and self._live[key] is None):
                self._saved[key] = self._frame
                self._frame.saved += size
        return tensor

    def pack_all_but(self, tensors: Iterable[Any]) -> None:
        """Take all that is alive for kept, but ``tensors``: where no hook may see what autograd keeps."""
        own = {key for tensor in tensors if isinstance(tensor, torch.Tensor) for key, _ in storages(tensor)}
        for key, watch in self._live.items():
            if watch is not None and key not in own:
                watch.frame.saved += watch.size

    def adopt(self, tensor: torch.Tensor) -> None:
        """Take a tensor for one that was there before the step."""
        for key, _ in storages(tensor):
            self._live[key] = None

    def restart(self) -> int:
        """Start the peak anew; return what is alive now."""
        self.peak = self._current
        return self._current

    def roll_up(self) -> tuple[int, int, int]:
        """Add what calls did to their modules and to all around; return the totals."""
        for frame in self._frames:
            if not (frame.forward or frame.backward or frame.saved):
                continue
            around: dict[int, Part] = {}
            step: _Frame | None = frame
            while step is not None:
                if step.part is not None:
                    around[id(step.part)] = step.part
                step = step.parent
            for part in around.values():
                part.forward_flops += frame.forward
                part.backward_flops += frame.backward
                part.saved_bytes += frame.saved
        return (
            sum(frame.forward for frame in self._frames),
            sum(frame.backward for frame in self._frames),
            sum(frame.saved for frame in self._frames),
        )

    # ---------------- tensors without data

    def fake(self, spec: Spec, requires_grad: bool = False) -> torch.Tensor:
        """Make a tensor without data."""
        guard = torch._C._DisableTorchDispatch()
        try:
            elem = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta")
        finally:
            del guard
        return self._dress(elem, spec.device, requires_grad)

    def _dress(self, elem: torch.Tensor, device: torch.device, requires_grad: bool = False) -> torch.Tensor:
        # FakeTensor's constructor, less its checks: they would take half of the time of a summary.
        template = self._templates.get(device)
        if template is None:
            guard = torch._C._DisableTorchDispatch()
            try:
                blank = FakeTensor(self.fakes, torch.empty(0, device="meta"), device)
            finally:
                del guard
            template = self._templates[device] = dict(vars(blank))
        made: torch.Tensor = torch.Tensor._make_subclass(
            FakeTensor, elem, requires_grad, dispatch_device=True, device_for_backend_keys=device
        )
        vars(made).update(template)
        return made

    def converted(self, tensor: torch.Tensor) -> torch.Tensor:
        """Make a stand-in of a tensor that is more than shape, strides and dtype."""
        assert self.fakes is not None
        return self.fakes.from_tensor(tensor)

    # ---------------- operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.fakes is None and any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # a subclass's own operators come next, one by one
        if func is _DEVICE_OF and type(args[0]) is FakeTensor:
            return args[0].fake_device
        if func is _DETACH and type(args[0]) is FakeTensor and args[0].constant is None:
            guard = torch._C._DisableTorchDispatch()
            try:
                return self._dress(args[0], args[0].fake_device)
            finally:
                del guard
        if func is _ITEM and self._answers_items:
            kind = args[0].dtype  # step counters, mostly
            return 1.0 if kind.is_floating_point else True if kind is torch.bool else 1
        if func in _IN_PLACE and self.in_backward and args[0].untyped_storage()._cdata == self._zeros:
            func = _IN_PLACE[func]
        elif func is _ADD and self.in_backward and _adds_up(*args):
            func = _ADD_IN_PLACE
        kwargs = kwargs or {}
        key = _key(func, args, kwargs) if self.fakes and func is not _RECURRENT else None
        known = None if key is None else _KNOWN.get(key)
        output: Any
        if known is None:
            try:
                if func is _GROUPED and self.fakes:
                    output = self._grouped(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("offs"))
                else:
                    output = func(*args, **kwargs)
                if func is _RECURRENT and self.fakes and torch.is_grad_enabled():
                    kept = Spec((operators.recurrent_bytes(args),), (1,), torch.uint8, args[0].fake_device)
                    output = (*output[:3], self.fake(kept))
            except Exception:
                self.stuck_at = func
                raise
            flops, scratch = operators.flops(func, args, kwargs, output), operators.scratch_bytes(func, args, output)
            if key is not None and (entry := _entry(func, args, output, flops, scratch)):
                if len(_KNOWN) >= _MOST_KNOWN:
                    _KNOWN.clear()
                _KNOWN[key] = entry
            for tensor in (output,) if isinstance(output, torch.Tensor) else tensors_in(output):
                self._watch(tensor)
        else:
            flops, scratch = known.flops, known.scratch
            output = self._again(known, args)
        if func is _NEW_ZEROS:
            self._zeros = output.untyped_storage()._cdata
        if flops:
            if self.in_backward:
                self._source().backward += flops
            else:
                self._frame.forward += flops
        if scratch:
            self.peak = max(self.peak, self._current + scratch)
        return output

    def _grouped(self, a: FakeTensor, b: FakeTensor, offsets: FakeTensor | None) -> torch.Tensor:
        """Products of groups, as layers of experts take them: torch's own fake kernel refuses single precision."""
        groups = a.shape[:1] if offsets is None else offsets.shape if a.dim() == b.dim() == 2 else ()
        shape = (*groups, a.shape[-2], b.shape[-1])
        stride = (shape[-2] * shape[-1], shape[-1], 1)[-len(shape) :]
        return self.fake(Spec(shape, stride, a.dtype, a.fake_device))

    def _again(self, known: _Known, args: tuple[Any, ...]) -> Any:
        if known.same is not None:
            return args[known.same]
        made: list[torch.Tensor | None] = []
        guard = torch._C._DisableTorchDispatch()
        try:
            storage = None if known.base is None else args[known.base].untyped_storage()
            for spec in known.outputs:
                if spec is None:
                    made.append(None)
                elif storage is None:
                    made.append(torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta"))
                else:
                    blank = torch.empty(0, dtype=spec.dtype, device="meta")
                    made.append(blank.set_(storage, spec.offset, spec.shape, spec.stride))
        finally:
            del guard
        for index, (elem, spec) in enumerate(zip(made, known.outputs, strict=True)):
            if elem is not None and spec is not None:
                made[index] = dressed = self._dress(elem, spec.device)
                if storage is None:
                    self._watch(dressed)
        return made[0] if known.single else made

    def _watch(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and opaque layouts
            return
        key = storage._cdata
        if key in self._live:
            return
        watch = _Watch(storage, self._gone)
        watch.key, watch.size, watch.frame = key, storage.nbytes(), self._frame
        self._live[key] = watch
        self._current += watch.size
        self.peak = max(self.peak, self._current)

    def _gone(self, watch: weakref.ref[torch.UntypedStorage]) -> None:
        assert isinstance(watch, _Watch)
        self._current -= watch.size
        self._live.pop(watch.key, None)
        keeper = self._saved.pop(watch.key, None)
        if keeper is not None and not self.in_backward:  # its graph was dropped: it is not kept after all
            keeper.saved -= watch.size


def _adds_up(sum_: Any, further: Any) -> bool:
    """Whether autograd adds one gradient to another that only it holds: it does so in place, where no mode watches."""
    if not isinstance(sum_, torch.Tensor) or not isinstance(further, torch.Tensor) or sum_.shape != further.shape:
        return False
    if isinstance(torch._C._current_autograd_node(), torch.autograd.function.BackwardCFunction):  # the user's own sum
        return False
    count: Callable[[torch.Tensor], int] | None = getattr(torch.Tensor, "_use_count", None)
    if count is None:  # an older torch
        return False
    owners = torch._C._storage_Use_Count(sum_.untyped_storage()._cdata)
    return bool(owners == 2 and count(sum_) <= count(further))


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What decides the shapes that an operator gives back; None if values could, too."""
    key: list[Any] = [func]
    try:
        for value in args if not kwargs else (*args, *kwargs.items()):
            kind = type(value)
            if kind is FakeTensor:
                if value.constant is not None or value.dtype.is_complex:
                    return None
                key.append((value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device))
            elif kind is list or (kind is tuple and not kwargs):
                if value and isinstance(value[0], torch.Tensor | None):
                    inner = _key(None, tuple(value), {})
                    if inner is None:
                        return None
                    key.append(inner)
                else:
                    key.append(tuple(value))
            elif isinstance(value, torch.Tensor) or (kind is tuple and isinstance(value[-1], torch.Tensor)):
                return None
            else:
                key.append((kind, value))
        found = tuple(key)
        hash(found)
    except (RuntimeError, TypeError):  # a layout without strides; a value that can't be hashed
        return None
    return found


_VALUES_DECIDE = {
    _tag
    for name in ("data_dependent_output", "dynamic_output_shape", "nondeterministic_seeded", "inplace_view")
    if (_tag := getattr(torch.Tag, name, None)) is not None
} - {torch.Tag.nondeterministic_seeded}


def _entry(func: Any, args: tuple[Any, ...], output: Any, flops: int, scratch: int) -> _Known | None:
    """What to remember of an operator's result; None if it is not safe to give again."""
    if func.namespace not in ("aten", "prims") or _VALUES_DECIDE.intersection(func.tags):
        return None
    single = isinstance(output, torch.Tensor)
    outputs = [output] if single else output
    if not isinstance(outputs, list | tuple):
        return None
    same = next((index for index, arg in enumerate(args) if arg is output), None) if single else None
    if same is not None:
        return _Known(flops, scratch, single, [], same, None)
    specs: list[Spec | None] = []
    storages: set[int] = set()
    for one in outputs:
        if one is None:
            specs.append(None)
            continue
        if type(one) is not FakeTensor or one.constant is not None or one.dtype.is_complex:
            return None
        if one.layout is not torch.strided or one.is_neg():
            return None
        specs.append(Spec.of(one, one.fake_device))
        storages.add(one.untyped_storage()._cdata)
    if any(returned.alias_info is not None for returned in func._schema.returns):
        base = args[0] if args else None
        if type(base) is not FakeTensor or storages != {base.untyped_storage()._cdata} or base.is_neg():
            return None
        return _Known(flops, scratch, single, specs, None, 0)
    taken = {arg.untyped_storage()._cdata for arg in args if type(arg) is FakeTensor and arg.layout is torch.strided}
    if len(storages) != sum(spec is not None for spec in specs) or storages & taken:
        return None
    return _Known(flops, scratch, single, specs, None, None)
