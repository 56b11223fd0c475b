"""Deltas: what fine-tuning changed in a model, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ftkit._arguments import local_path
from ftkit._deltas.changes import differing, may_have_changed, split, tensors_of
from ftkit._deltas.placing import fill, place
from ftkit._formats import WeightsFile, open_file, refuse_torch_name
from ftkit._models.undo import Undo
from ftkit._tensors.file import TensorFile
from ftkit._tensors.pytree import pack, unpack
from ftkit._tensors.safetensors import write_tensors
from ftkit._weights.sources import WeightsSource
from ftkit.errors import CheckpointError, FileWriteError
from ftkit.selection import unwrap

_KEY: Final = "ftkit.delta"


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: WeightsSource | None = None,
    ema: nn.Module | Mapping[str, Tensor] | None = None,
) -> None:
    """Save only what fine-tuning changed in a model: kilobytes to share instead of the whole model.

    The file contains the changed tensors under their own names, the layers of a new head, the names of the classes,
    and what tells the rest, the base, by which :func:`load_delta` recognizes it: a digest of its tensors, and a list
    of the model's layers, and of the settings of peft's adapters, since no tensor shows an activation or a scale.

    Args:
        model: The fine-tuned model.
        path: The safetensors file to write.
        base: The model before fine-tuning: a module, its ``state_dict`` or a weights file. Then exactly what
            differs is saved. Without it: every trainable parameter, everything that a new head brought, and the
            buffers of every module that may have updated them, that is, of modules with a trainable parameter,
            modules in training mode that ``freeze`` does not keep in eval mode, and norms that have counted
            batches. Pass the base if something was trained first and frozen later.
        ema: The average of the model's weights (torch's ``AveragedModel``, timm's ``ModelEmaV3``, a copy, a state
            dict), whose values to save. What was not trained is the model's own: averaging rounds it, and then it is
            no longer that of the base.

    Raises:
        CheckpointError: Nothing is trainable, the base is not a base of this model, ``model`` is itself an average,
            the average is not one of this model, or the file's extension is one of torch files.
        FileWriteError: The file could not be written. Any existing file is left intact.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, load_delta, save_delta
        >>> def pretrained():
        ...     torch.manual_seed(0)
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        >>> model = pretrained()
        >>> model[1] = torch.nn.Linear(4, 2)  # a new head
        >>> _ = freeze_except(model, "1")
        >>> save_delta(model, "pets.safetensors")
        >>> fresh = pretrained()
        >>> load_delta(fresh, "pets.safetensors")
        >>> torch.equal(fresh(torch.ones(1, 4)), model(torch.ones(1, 4)))
        True
    """
    refuse_torch_name(local_path("path", path, error=FileWriteError))
    inner = unwrap(model)
    if _is_average(inner):
        raise CheckpointError(
            f"This {type(inner).__name__} is an average of a model: its frozen weights are rounded, as in no base. "
            "Pass the model itself too: save_delta(model, path, ema=averaged)."
        )
    state = tensors_of(inner)
    changed = may_have_changed(inner, state) if base is None else differing(state, base)
    tensors, _, record = split(inner, state, changed)
    if not tensors:
        raise CheckpointError(
            "This model does not differ from its base, so there is no delta to save."
            if base is not None
            else "Nothing in this model is trainable, so what fine-tuning changed is unknown: pass base=, the model "
            "before fine-tuning, or save the whole model with save_weights."
        )
    write_tensors(path, tensors if ema is None else _averaged(tensors, ema), {_KEY: pack(record)[1]})


def _is_average(model: nn.Module) -> bool:
    """Whether a module holds another one's average and nothing else, as torch's and timm's do."""
    alone = [name for name, _ in model.named_children()] == ["module"]
    return isinstance(model, AveragedModel) or (alone and isinstance(getattr(model, "decay", None), float))


def _averaged(tensors: Mapping[str, Tensor], ema: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of the same tensors in an average, which calls them as the model does, or puts ``module.`` before."""
    values = dict(ema if isinstance(ema, Mapping) else unwrap(ema).state_dict())
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = values.get(f"module.{name}", values.get(name))
        if not isinstance(value, Tensor) or value.shape != tensor.shape:
            there = "nothing" if value is None else f"{list(value.shape)}"
            raise CheckpointError(
                f"ema= is not an average of this model: instead of {name!r} of {list(tensor.shape)}, it has {there}."
            )
        found[name] = value.to(tensor.dtype)
    return found


def load_delta(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Turn a base model into the fine-tuned one, in place.

    A head that the base lacks is built from the file. Everything is checked before anything changes. What differs in
    training only (Dropout, momentum) may differ. Layers of somebody else's classes are compared by the names of these:
    another name is a warning.

    Args:
        model: The base that the delta was made from, with its own head or with the new one.
        path: A file that :func:`save_delta` wrote.

    Raises:
        CheckpointError: The file is not a delta, or belongs to another base; or it has a head that can't be built
            from plain layers; or the model has another layer, such as another activation, than the one that the
            delta was saved from, or an adapter of peft with other settings; or it was given other names for its
            classes, or the same in another order.
        DamagedFileError: The file's bytes are not the ones that were written.

    Example:
        >>> import torch
        >>> from ftkit import freeze_except, load_delta, save_delta
        >>> base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9)).state_dict()
        >>> def pretrained():
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        ...     model.load_state_dict(base)
        ...     return model
        >>> tuned, fresh = pretrained(), pretrained()
        >>> _ = freeze_except(tuned, "1.bias")
        >>> _ = torch.nn.init.ones_(tuned[1].bias)
        >>> save_delta(tuned, "bias.safetensors")
        >>> load_delta(fresh, "bias.safetensors")
        >>> torch.equal(fresh[1].bias, tuned[1].bias)
        True
    """
    inner = unwrap(model)
    with open_file(path) as file:
        if not isinstance(file, TensorFile) or _KEY not in file.metadata:
            raise CheckpointError(f"{file.path} is not a delta that save_delta wrote{_instead(file)}.")
        record = unpack({}, file.metadata[_KEY], budget=file.budget)
        tensors = file.read()
    with Undo() as undo:
        place(inner, record, tensors, undo)
        fill(inner, tensors)


def _instead(file: WeightsFile) -> str:
    """What a file that is not a delta is, and what reads it."""
    says: Any = file.metadata if isinstance(file, TensorFile) else file.tree
    kind = "" if isinstance(file, TensorFile) else f", but a pickled object ({file.format})"
    is_checkpoint = isinstance(says, dict) and "ftkit.checkpoint" in says
    reader = "load_checkpoint(path, model=model)" if is_checkpoint else "load_weights(model, path)"
    return f"{kind}. Read it with {reader}"
