"""Add a layer on top of a model's outputs, and change the number of its input channels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ftkit._arguments import whole_number
from ftkit._heads.counters import counters, own_configs
from ftkit._heads.gray import keeps_response
from ftkit._heads.inputs import Inputs, possible_inputs
from ftkit._heads.layers import Layers, has_shapes, holders, layers, like
from ftkit._heads.renew import with_channels
from ftkit._heads.replace import NewHead, as_inputs, checked_head, find_head, made_from
from ftkit._heads.trace import Run, run_on
from ftkit._models.dryrun import alone, tensors_in
from ftkit._models.slots import own_slots, replace
from ftkit._models.undo import Undo
from ftkit._torch import is_convolution
from ftkit._wording import some
from ftkit.errors import HeadError
from ftkit.selection import unwrap

_log = logging.getLogger("ftkit")

# ---- a layer on the outputs


class _Extended(nn.Sequential):
    """A model and a layer on the scores that it gives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model the way it is called on its own."""
        body, head = self
        return head(_scores(body(*args, **kwargs)))


def _scores(output: Any) -> Any:
    """The scores in what a model gives: the tensor itself, or what is called logits or out, or comes first."""
    if isinstance(output, Mapping):
        found = [output[name] for name in ("logits", "out") if name in output]
        return (found or [output])[0]
    logits = getattr(output, "logits", None)
    if logits is not None:
        return logits
    return output[0] if isinstance(output, list | tuple) and output else output


@alone()
def append_head(model: nn.Module, head: NewHead, *, example_inputs: Any = None) -> nn.Sequential:
    """Return a model with one more layer on top of the outputs of ``model``, which stays complete.

    This is the classic way to keep the 1000 ImageNet outputs and learn a layer on top of them. The result is called the
    same way as ``model``. If there are several outputs, the layer takes ``logits`` or ``out``, or else the first. On
    score maps it is a 1x1 convolution.

    Args:
        model: A model with class outputs (its head shows how many), or with features and ``num_features``.
        head: The number of outputs of the new layer; or a module; or a function of the number of incoming features.
        example_inputs: Inputs of the model, if they can't be made up, as for :func:`find_head`.

    Returns:
        ``nn.Sequential`` of two modules: ``body``, which is ``model`` itself, and ``head``.

    Raises:
        HeadError: The model returns no scores, or does not run with the new layer.

    Example:
        >>> import torch
        >>> from ftkit import append_head
        >>> model = append_head(torch.nn.Sequential(torch.nn.Linear(8, 10)), 3)
        >>> model(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """
    head = checked_head(head)
    inner, given = unwrap(model), as_inputs(example_inputs)
    if isinstance(head, nn.Module):
        new = head
    else:
        scores = _scores_of(inner, given)
        width, maps = _width(inner, scores, given)
        new = made_from(head, width) if callable(head) else _layer_on(scores, width, head, maps)
        like_it = next(model.parameters(), None)
        if isinstance(head, int) and like_it is not None:
            new.to(like_it.device, like_it.dtype)
    joined = _Extended()
    joined.add_module("body", inner)
    joined.add_module("head", new)
    _prove(joined, inner, given)
    joined.body = model
    return joined.train(model.training)


def _width(model: nn.Module, scores: torch.Size, given: Inputs | None) -> tuple[int, bool]:
    """How many scores, or features, a model gives; and whether a convolution gives them."""
    try:
        found = find_head(model, example_inputs=given)
    except HeadError as error:
        features = getattr(model, "num_features", None)
        if type(features) is int:
            return features, False
        if len(scores) == 2 and scores[1] > 1:
            return scores[1], False
        raise HeadError(
            f"How many scores or features the {type(model).__name__} gives can't be told. Expected a head to be found, "
            f"num_features, or one row for each example, got outputs of shape {tuple(scores) or 'unknown'}: pass the "
            "layer itself, such as append_head(model, torch.nn.Linear(512, 10))."
        ) from error
    return found.out_features, is_convolution(found.modules[-1])


def _run(model: nn.Module, given: Inputs | None) -> Run:
    return run_on(model, *([] if given is None else [given]))


def _scores_of(model: nn.Module, given: Inputs | None) -> torch.Size:
    """The shape of the scores that a model gives; empty if no run tells."""
    probe = _Extended()
    probe.add_module("body", model)
    probe.add_module("head", nn.Identity())
    run = _run(probe, given)
    return run.outputs[""].shape if run.complete and "" in run.outputs else torch.Size()


def _layer_on(scores: torch.Size, width: int, outputs: int, maps: bool) -> nn.Module:
    """Make the layer that scores fit into: a linear one, or on maps of scores a convolution.

    Where there are as many places as scores, so that their shape does not tell, what gives them does.
    """
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    if len(scores) in kinds and scores[1] == width and (scores[-1] != width or maps):
        return kinds[len(scores)](width, outputs, 1)
    return nn.Linear(width, outputs)


def _prove(joined: nn.Module, model: nn.Module, given: Inputs | None) -> None:
    """Run a model with its new layer, if it runs without.

    Raises:
        HeadError: It does not with it.
    """
    before = _run(model, given)
    after = run_on(joined, before.inputs) if before.complete else before
    if not before.complete:
        _log.info("The appended layer is not proven: the model could not be run on made-up inputs.")
    elif not (after.complete or after.unable):
        shapes = ", ".join(f"{key.strip('.') or 'a tensor'} {tuple(one.shape)}" for key, one in before.outputs.items())
        raise HeadError(
            f"The {type(model).__name__} does not run with the new layer on its outputs, {shapes}: {after.failure}."
        )


# ---- channels at the input


@alone()
def adapt_input(model: nn.Module, channels: int, *, example_inputs: Any = None) -> list[str]:
    """Make a model take images with another number of channels, in place, with its pretrained filters.

    A single channel gets the sum of the filters, so a grayscale image gives the same result as three equal channels
    did. This can't be so where a convolution standardizes its weight and has no gain, or where a norm or mean before it
    differs by channel: a warning in the log says so, and to repeat the gray channel in the transform instead. More
    channels take the filters in turn, scaled so that the response keeps its size. Counters such as
    ``in_chans`` and ``config.num_channels`` are updated, and so are a norm before the first convolution and buffers
    with a mean for each channel. A copy that takes no memory must run on such images. What the model gives keeps its
    number of channels, also where it is an image.

    Args:
        model: A model whose first layers are convolutions over the images.
        channels: The new number of image channels.
        example_inputs: Inputs that the model takes now, if they can't be made up, as for :func:`find_head`.

    Returns:
        The names of the layers that changed.

    Raises:
        HeadError: No convolution takes the images, or the model does not run afterwards. It is left unchanged.

    Example:
        >>> import torch
        >>> from ftkit import adapt_input
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))
        >>> adapt_input(model, 1)
        ['0']
        >>> model(torch.zeros(1, 1, 9, 9)).shape
        torch.Size([1, 8, 7, 7])
    """
    model = unwrap(model)
    channels = whole_number("channels", channels, least=1, error=HeadError)
    kind = type(model).__name__
    lazy = next((name for name, module in model.named_modules() if not has_shapes(module)), None)
    if lazy is not None:
        raise HeadError(f"{lazy!r} in the {kind} has no shape yet: run the model on one batch first.")
    run, found = _entries(model, as_inputs(example_inputs))
    if not found:
        why = "" if run.complete else f" The reason may be that {run.unproven}."
        raise HeadError(f"The {kind} has no convolution that takes the images, so its channels can't be changed.{why}")
    images = {tensor.shape[1] for tensor in tensors_in(run.inputs) if tensor.dim() > 2}
    found = Layers(entry for entry in found if entry.inputs in images) or found  # others take what the model makes up
    before = {entry.inputs for entry in found}
    if len(before) > 1:
        raise HeadError(
            f"The inputs of the {kind} have different numbers of channels: {', '.join(map(str, found))}. "
            "Only a model with one kind of image can be adapted."
        )
    _adapt(model, found, before.pop(), channels, run)
    return [entry.name for entry in found]


def _entries(model: nn.Module, given: Inputs | None) -> tuple[Run, Layers]:
    """Find the convolutions that images go into before any other layer, and the run that told."""
    with torch.device("meta"):
        made_up = [inputs for inputs in possible_inputs(model) if any(t.dim() > 2 for t in tensors_in(inputs))]
    by_name = {name: layer for layer in layers(model) for name in layer.names}
    run = Run()
    for inputs in [[given]] if given is not None else [[], made_up]:
        run = run_on(model, *inputs, follow=False)
        found = Layers(dict.fromkeys(by_name[name] for name in run.first if is_convolution(by_name[name].module)))
        if found:
            return run, found
    return run, Layers()


def _adapt(model: nn.Module, found: Layers, before: int, channels: int, run: Run) -> None:
    """Put convolutions for other channels in, and what else counts them if it must be; the model runs, or is as it was.

    Raises:
        HeadError: It does not run.
    """
    computed, averaged = Layers(), list[str]()  # what keeps a gray image from giving what it gave as equal channels
    with Undo() as undo:
        for entry in found:
            new = with_channels(entry, channels)
            if channels == 1 and not keeps_response(entry.module, new):
                computed.append(entry)
            replace(model, entry.modules, new, undo)
            counting = [one.owner for one in counters(model, entry.names, of="channels") if one.value == before]
            own_configs(model, counting, undo)
            for counter in counters(model, entry.names, of="channels"):
                if counter.value == before:
                    counter.set(channels, undo)
        tries = list(_with_channels(run.inputs, before, channels)) if run.complete else []
        if run.complete and not tries:
            raise HeadError(
                f"{', '.join(map(repr, found.names))} in the {type(model).__name__} takes {before} channels, but what "
                "goes into the model has no axis of that size: something in between makes other channels of them, such "
                "as a rearrangement of pixels. Expected a convolution right on the images: replace this one with "
                "replace_modules."
            )
        after = run_on(model, *tries, follow=False) if tries else Run(complete=True)
        if not (after.complete or after.unable):
            averaged = _resize_vectors(model, found, before, channels, undo)
            after = run_on(model, *tries, follow=False)
        if not (after.complete or after.unable):
            raise HeadError(
                f"With {channels} channels in place of {before} at {', '.join(map(repr, found.names))}, the "
                f"{type(model).__name__} no longer runs: {after.failure}. Something else in it counts channels too."
            )
    reasons = [f"{entry} computes its filters from its weight, such as by standardizing it" for entry in computed]
    reasons += [f"{name!r} had a number for each channel, and now has their mean" for name in averaged]
    if reasons:
        _log.warning(
            "The %s no longer gives on a gray image what it gave on %d equal channels, because %s. To keep "
            "that, don't adapt it: load it again, and repeat the gray channel %d times in the transform.",
            type(model).__name__,
            before,
            some(reasons, 6),
            before,
        )


def _with_channels(inputs: Inputs, before: int, channels: int) -> Iterator[Inputs]:
    """Inputs like those of a run, with another number of channels along each axis that could count them."""
    args, kwargs = inputs
    for axis in (1, 2, -1):

        def changed(value: Any, axis: int = axis) -> Any:
            if not isinstance(value, torch.Tensor) or value.dim() < 3 or value.shape[axis] != before:
                return value
            shape = list(value.shape)
            shape[axis] = channels
            return torch.empty(shape, dtype=value.dtype, device="meta")

        made = tuple(map(changed, args)), {name: changed(value) for name, value in kwargs.items()}
        if any(
            new is not old for new, old in zip([*made[0], *made[1].values()], [*args, *kwargs.values()], strict=True)
        ):
            yield made


_CHANNELS_OF_NORMS = ("num_features", "num_channels")


def _resize_vectors(model: nn.Module, found: Layers, before: int, channels: int, undo: Undo) -> list[str]:
    """Let what has a number for each channel, a norm or the mean of the images, have one for each of the new ones.

    Returns:
        The names of those whose numbers differed and now are one, their mean.
    """
    averaged, names = [], {id(module): name for name, module in model.named_modules()}
    around = holders(model, *found.names)
    norms = [child for holder in around for child in holder.children() if not layers(child)]
    for slot in own_slots(*around, *norms):
        old = slot.content
        if isinstance(old, nn.Module) or old.numel() != before or before not in old.shape or before == 1:
            continue
        axis = list(old.shape).index(before)
        values = old.detach()
        if channels == 1:
            new = values.to(torch.get_default_dtype()).mean(axis, keepdim=True).to(values.dtype)
            if not (values.is_meta or torch.allclose(values, new.expand_as(values), rtol=1e-3)):
                averaged.append(f"{names[id(slot.module)]}.{slot.name}".lstrip("."))
        else:
            new = values.index_select(axis, torch.arange(channels, device=values.device) % before)
        replace(model, old, like(old, new), undo)
        undo.remember(slot.module)
        vars(slot.module).update({key: channels for key in _CHANNELS_OF_NORMS if vars(slot.module).get(key) == before})
    return averaged
