"""Give a base model the layers of a delta, and check that it is the delta's base."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from ftkit._deltas.changes import fingerprint, tensors_of
from ftkit._deltas.layers import BUILD_ERRORS, Description, build
from ftkit._deltas.outline import agrees, check_outline
from ftkit._heads.counters import counters
from ftkit._heads.labels import plan_labels
from ftkit._heads.replace import replace_head
from ftkit._models.dryrun import alone
from ftkit._models.undo import Undo
from ftkit._weights.libraries import check_adapters
from ftkit._wording import cause
from ftkit.errors import CheckpointError, DamagedFileError, HeadError, did_you_mean

_AS_IN_TRAINING: Final = "Build the model as it was in training, head included (replace_head), and load again."


@alone()
def place(model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor], undo: Undo) -> None:
    """Give a base model the layers and class names that a delta needs, and check that it is the delta's base.

    The record is that of :func:`ftkit._deltas.changes.split`.

    Raises:
        CheckpointError: It is another base, or a layer can't be built.
        DamagedFileError: The record is none that ``split`` makes.
    """
    described, base = _parts(record)
    check_adapters(record.get("adapters"), model, "The delta")
    names = [*tensors_of(model), *tensors]
    label = plan_labels(model, record.get("labels", {}), dict(zip(names, names, strict=True)), "The delta")
    # Others have no place, which is said below; a file may name any number of them.
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = [_Layer(name, description, tensors) for name, description in described.items() if name in modules]
    lacking = [layer for layer in layers if not layer.fits(model)]
    _check_base(model, base, tensors, tuple(layer.prefix for layer in lacking))
    with torch.random.fork_rng(devices=[]):  # new layers draw their first weights, which are replaced at once
        for layer in lacking:
            if not layer.resize(model, undo):
                layer.rebuild(model, undo)
        for name in sorted({_owner(name) for name in _misfits(model, tensors)} & modules.keys()):
            _Layer(name, [], tensors).resize(model, undo)
    _check_all_fit(model, tensors)
    if record.get("outline"):  # which older versions did not write
        check_outline(record["outline"], model)
    label(undo)


def _parts(record: Any) -> tuple[dict[str, Description], dict[str, Any]]:
    """The layers that a record describes, and what it says of the base."""
    match record:
        case {"layers": dict(layers), "base": {"tensors": int(), "shapes": str(), "contents": str()} as base}:
            return layers, base
    raise DamagedFileError("The delta is damaged, or written by another program: it does not say what its base was.")


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that are known to fit into the model."""
    state = tensors_of(model)
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)


class _Layer:
    """A layer of a delta: where it belongs, how it is built (empty where no file says so), and its tensors."""

    def __init__(self, name: str, description: Description, tensors: Mapping[str, Tensor]) -> None:
        self.name = name
        self.prefix = f"{name}."
        self.description = description
        self.tensors = self.inside(tensors)

    def inside(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a model's tensors that belong to the layer."""
        return {name: tensor for name, tensor in tensors.items() if name.startswith(self.prefix)}

    def fits(self, model: nn.Module) -> bool:
        """Whether the model's layer holds just the tensors of this one, and computes as it does."""
        there = self.inside(tensors_of(model))
        same = there.keys() == self.tensors.keys() and all(_alike(there[name], self.tensors[name]) for name in there)
        return same and (not self.description or agrees(self.description, model.get_submodule(self.name)))

    def resize(self, model: nn.Module, undo: Undo) -> bool:
        """Try to fit the model's layer by another count of classes, so that the model's own counters follow."""
        there = self.inside(tensors_of(model))
        if there.keys() != self.tensors.keys():  # what the file does not hold could take any memory
            return False
        pairs = [(there[name], tensor) for name, tensor in self.tensors.items()]
        counts = {count for old, new in pairs for count in _other_sizes(old, new)}
        if len(counts) != 1:
            return False
        attempt = Undo()
        self.remember(model, attempt)
        with contextlib.suppress(HeadError):
            replace_head(model, counts.pop(), at=self.name)
        if not self.fits(model):
            attempt.take_back()
            return False
        undo.callback(attempt.take_back)
        return True

    def rebuild(self, model: nn.Module, undo: Undo) -> None:
        """Put a layer made from the description where the model has another one."""
        try:
            old = model.get_submodule(self.name)
        except AttributeError:
            return
        form = next((tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()), None)
        device = [*old.parameters(), *model.parameters(), torch.empty(0)][0].device
        new = self.built().to_empty(device=device).to(form).train(old.training)
        self.remember(model, undo)
        try:
            replace_head(model, new, at=self.name)
        except HeadError:  # the base has no layer there that could be a head: nothing counts its classes
            model.set_submodule(self.name, new)
        new.to(dtype=form)  # a head takes the type of the layer before it

    def built(self) -> nn.Module:
        """The layer as it is described, on the meta device: it gets memory when it is known to be that of the file."""
        try:
            with torch.device("meta"):
                new = build(self.description)
        except BUILD_ERRORS as error:
            raise CheckpointError(
                f"The delta describes a layer {self.name!r} that can't be built: {cause(error)}."
            ) from error
        described = {f"{self.prefix}{name}": tuple(value.shape) for name, value in new.state_dict().items()}
        if described != {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}:
            raise CheckpointError(f"The delta describes a layer {self.name!r} that its own tensors don't fit.")
        return new

    def remember(self, model: nn.Module, undo: Undo) -> None:
        """Note how a model is built, and what counts the layer's classes, in it and in its configuration."""
        for module in model.modules():
            undo.remember(module)
        for counter in counters(model, [self.name]):
            undo.remember(counter.owner)


def _owner(name: str) -> str:
    """The layer that a tensor belongs to: a parametrization's tensors belong to the layer that it stands in."""
    layer, parametrized, _ = name.partition(".parametrizations.")
    return layer if parametrized else name.rpartition(".")[0]


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype)


def _other_sizes(old: Tensor, new: Tensor) -> set[int]:
    """The sizes of a tensor along the axes that changed."""
    if old.ndim != new.ndim:
        return set()
    return {after for before, after in zip(old.shape, new.shape, strict=True) if before != after}


# ---- what fits


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that have no place in the model."""
    state = tensors_of(model)
    return [name for name, value in tensors.items() if name not in state or not _alike(state[name], value)]


def _check_all_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    misfits = _misfits(model, tensors)
    if misfits:
        state, name = tensors_of(model), misfits[0]
        there = f"{state[name].dtype} of {list(state[name].shape)}" if name in state else "nothing"
        raise CheckpointError(
            f"The delta contains {name!r}, {tensors[name].dtype} of {list(tensors[name].shape)}; this model has "
            f"{there} there, and the part can't be built from the file. {_AS_IN_TRAINING}"
            f"{did_you_mean(name, state) if name not in state else ''}"
        )


def _check_base(
    model: nn.Module, wanted: Mapping[str, Any], changed: Mapping[str, Tensor], lacking: tuple[str, ...]
) -> None:
    """Compare everything that neither is in the delta nor in a layer to be replaced with the delta's base."""
    state = tensors_of(model)
    base = {name: tensor for name, tensor in state.items() if name not in changed and not name.startswith(lacking)}
    found = fingerprint(base)
    if found["shapes"] != wanted["shapes"]:
        homeless = [name for name in changed if name not in state and not name.startswith(lacking)]
        if homeless:
            first, around = homeless[0], _around(state, homeless)
            has = f"it contains {first!r}, for which this {type(model).__name__} has no place"
            if around:
                raise CheckpointError(f"This delta was saved from a module around or inside this one: {has}.{around}")
            raise CheckpointError(
                "This delta belongs to another architecture, or to a model with a head that can't be built from the "
                f"file: {has}. {_AS_IN_TRAINING}{did_you_mean(first, state)}"
            )
        raise CheckpointError(
            f"This delta belongs to another architecture: its base has {wanted['tensors']} tensors, this model "
            f"{found['tensors']} besides those in the delta, or their names or shapes differ. Build the model that "
            "it was made from."
        )
    if found["contents"] != wanted["contents"]:
        raise CheckpointError(
            "This delta belongs to a base of the same architecture with other weights. First load the pretrained "
            "weights that fine-tuning started from."
        )


def _around(state: Collection[str], names: Sequence[str]) -> str:
    """Say that names are those of the model inside, or of something around it, if that is what they are."""
    for name in names:
        outer = [own.removesuffix(name) for own in state if own.endswith(f".{name}")]
        if outer and all(f"{outer[0]}{other}" in state for other in names):
            inside = outer[0].rstrip(".")
            return f" It was saved from what this model holds as {inside!r}: load_delta(model.{inside}, path)."
        parts = name.split(".")
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth])
            if ".".join(parts[depth:]) in state and all(other.startswith(f"{prefix}.") for other in names):
                return (
                    f" It was saved from something that holds the model as {prefix!r}. Load it into such a thing, or "
                    f"save the model alone: save_delta(outer.{prefix}, path)."
                )
    return ""
