"""Proof that what is frozen stays: digests before and after a step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import xxhash
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ftkit._freezing.freeze import selection
from ftkit._freezing.holding import is_held, lets_statistics_move
from ftkit._models.contents import bytes_of
from ftkit._wording import plural, some
from ftkit.errors import FtkitError
from ftkit.selection import Selector, unwrap


@contextlib.contextmanager
def verify_frozen(model: nn.Module, *selectors: Selector) -> Iterator[None]:
    """Check that nothing frozen changes inside a ``with`` block: tensors must stay bit-for-bit identical.

    Put it around the first training step of a run. It checks the parameters that require no gradient, however they
    were frozen, and the buffers next to them: statistics, queues, observer ranges. Statistics that are meant to keep
    moving (``norm_stats=False``) are left out.

    It costs two digests of all these tensors, a few milliseconds for 100 MiB in CPU memory.

    Args:
        model: Any module; ``DistributedDataParallel`` and ``torch.compile`` wrappers are looked through.
        *selectors: The only parts to check, see :data:`ftkit.selection.Selector`; the whole model if there are none.

    Raises:
        SelectionError: A selector matches nothing.
        FtkitError: Nothing is frozen; or, at the end of the block, something has changed: the message names it.

    Example:
        >>> import torch
        >>> from ftkit import freeze, verify_frozen
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
        >>> model[0].requires_grad_(False)  # not freeze(): statistics still move
        BatchNorm1d(4, ...)
        >>> with verify_frozen(model):
        ...     loss = model.train()(torch.randn(8, 4)).sum()
        Traceback (most recent call last):
            ...
        ftkit.errors.FtkitError: 3 of 5 frozen tensors changed: 0.running_mean, 0.running_var, ...
        >>> _ = freeze(model, "0")
        >>> with verify_frozen(model):
        ...     loss = model.train()(torch.randn(8, 4)).sum()
    """
    inner = unwrap(model)
    chosen = selection(inner, selectors)
    wanted = set(map(id, (*chosen.parameters.values(), *chosen.buffers.values())))
    before = {name: _digest(tensor) for name, tensor in _frozen(inner) if id(tensor) in wanted}
    if not before:
        raise FtkitError(f"Nothing selected in the {type(inner).__name__} is frozen: call freeze(model, ...) first.")
    yield
    now = dict((*inner.named_parameters(remove_duplicate=False), *inner.named_buffers(remove_duplicate=False)))
    moved = [name for name, digest in before.items() if name not in now or _digest(now[name]) != digest]
    if moved:
        raise FtkitError(
            f"{len(moved)} of {plural(len(before), 'frozen tensor')} changed: {some(moved, 8)}. Parameters without a "
            "gradient are changed by their layer (Embedding with max_norm), by an average written into them, or by an "
            "optimizer after their .grad was set; buffers by the forward pass of their module: statistics of norms "
            "that freeze() doesn't hold, queues, quantization observers."
        )


def _frozen(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The frozen parameters, and the buffers of what is held or of what has frozen parts and trains none of its own.

    A module without parameters, such as an observer, is a part of the nearest module around it that has some.
    """
    seen: set[int] = set()
    still: dict[str, bool] = {}  # whether all parameters of a module, or of the nearest one around it, are frozen
    for prefix, module in model.named_modules():
        name = f"{prefix}." if prefix else ""
        own = list(module.parameters(recurse=False))
        yield from (
            (name + key, parameter)
            for key, parameter in module.named_parameters(recurse=False)
            if not parameter.requires_grad and not isinstance(parameter, UninitializedParameter)
            if id(parameter) not in seen and not seen.add(id(parameter))  # type: ignore[func-returns-value]
        )
        trains = [parameter.requires_grad for parameter in module.parameters()]
        still[prefix] = not any(trains) if trains else still.get(prefix.rpartition(".")[0], False)
        if is_held(module) or (
            (still[prefix] or not all(trains))
            and not any(parameter.requires_grad for parameter in own)
            and not lets_statistics_move(module)
        ):
            yield from ((name + key, buffer) for key, buffer in module.named_buffers(recurse=False))


def _digest(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach()
    if plain.is_nested:
        return b"".join(map(_digest, plain.unbind()))
    if plain.is_meta:  # no values, so that none can move
        return str(plain.shape).encode()
    if plain.is_quantized:
        plain = plain.dequantize()
    return xxhash.xxh3_128_digest(bytes_of(plain if plain.layout is torch.strided else plain.to_dense()))
