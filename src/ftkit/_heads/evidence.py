"""Evidence of which layers make a model's class outputs: counters and names, and where they leave doubt a run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ftkit._heads.layers import Layer, Part, layers
from ftkit._heads.trace import CLEAN, NORMED, SQUASHED, End, Trace, trace
from ftkit.errors import HeadError

__all__ = [
    "Counter",
    "DoubtError",
    "counters",
    "counts_classes",
    "describe",
    "find_parts",
    "holders",
    "losses",
    "part_of",
    "role",
]


@dataclass(frozen=True, eq=False)
class Counter:
    """A number, in a module or in a configuration, that says how many classes there are."""

    owner: Any
    name: str
    value: int
    key: str = ""  # the owner's attribute, where that is a named tuple with the counter in it

    def set(self, value: int) -> None:
        """Write another count."""
        if self.key:
            setattr(self.owner, self.key, getattr(self.owner, self.key)._replace(**{self.name: value}))
        elif isinstance(self.owner, dict):
            self.owner[self.name] = value
        else:
            setattr(self.owner, self.name, value)


# ------------------------------------------------------------------ counters

_CLASSES = re.compile(
    r"_?((num|nb|n|number)_?(of_)?(class|classes|labels?|categor(y|ies)|cls|tags?|columns)|(class|classes|label|labels)_(num|count)|classes)"
)
_OUTPUTS = re.compile(
    r"_?((num|n)_?(outputs?|out|targets?|logits|\w+_(labels|classes))|out(put)?_(features|channels|dim|dims|size|classes)"
    r"|nf|n_?out)"
)
_CHANNELS = re.compile(r"_?(in_?(chans|channels|ch|planes)|num_?channels|input_channels|n_?channels)")
_CONFIGS = ("config", "cfg", "hparams", "args", "opt", "opts", "_hub_mixin_config", "model_config")


def holders(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules on the way to a name, the model first."""
    chain = [model]
    for step in name.split(".")[:-1]:
        chain.append(chain[-1].get_submodule(step))
    return chain


def losses(model: nn.Module, names: Collection[str]) -> list[nn.Module]:
    """The losses, metrics and the like beside a head: they may count classes too, and hold little that was trained."""
    around = dict.fromkeys([model, *(holder for name in names for holder in holders(model, name))])
    return [
        module
        for parent in around
        for key, child in parent.named_children()
        if next(child.parameters(), None) is None or {"loss", "criterion"} & _words(key)
        for module in child.modules()
    ]


def counters(model: nn.Module, names: Collection[str], *, of: str = "classes") -> list[Counter]:
    """List the counters that could speak of the classes: in the model, on the way to ``names`` and in losses.

    Args:
        model: The model.
        names: Dotted names of the head's layers.
        of: What is counted: ``"classes"``, or the ``"channels"`` of images.
    """
    places = [*dict.fromkeys([model, *(holder for name in names for holder in holders(model, name))])]
    places += losses(model, names)
    owners: dict[int, Any] = {}
    for place in places:
        owners[id(place)] = place
        for key in _CONFIGS:
            config = getattr(place, key, None)
            if config is None or isinstance(config, nn.Module | torch.Tensor | str | int | float):
                continue
            owners.setdefault(id(config), config)
            for inner in _values(config).values():
                if "vocab_size" in _values(inner):
                    owners.setdefault(id(inner), inner)
    found = [
        Counter(place, name, getattr(value, name), key)
        for place in places
        for key, value in vars(place).items()
        if isinstance(value, tuple)
        for name in getattr(value, "_fields", ())
        if type(getattr(value, name)) is int and _counts(name.lower(), of)
    ]
    for owner in owners.values():
        values = dict(_values(owner))
        if isinstance(getattr(type(owner), "num_labels", None), property):
            values["num_labels"] = owner.num_labels
        for key, value in values.items():
            if type(value) is int and isinstance(key, str) and _counts(key.lower(), of):
                found.append(Counter(owner, key, value))
    return found


def counts_classes(key: str) -> bool:
    """Whether an attribute's name says that it counts classes."""
    return _CLASSES.fullmatch(key.lower()) is not None


def _counts(key: str, of: str) -> bool:
    if of == "channels":
        return _CHANNELS.fullmatch(key) is not None
    return key == "vocab_size" or _CLASSES.fullmatch(key) is not None or _OUTPUTS.fullmatch(key) is not None


def _values(owner: Any) -> Mapping[Any, Any]:
    if isinstance(owner, dict):
        return owner
    return getattr(owner, "__dict__", {})


def _told(model: nn.Module, names: Collection[str]) -> list[int]:
    """Return the counts of classes that the counters tell, the most telling first."""
    found = [c for c in counters(model, names) if c.value > 0]
    classes = [c.value for c in found if counts_classes(c.name)]
    return list(dict.fromkeys(classes + [c.value for c in found if c.name == "vocab_size"]))


# ------------------------------------------------------------------ names
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CLASS_WORDS = frozenset(
    re.findall(
        r"\w+",
        "fc classifier classifiers cls class classes classification classif head heads logit logits score scores lm "
        "last seg segmentation predictions",
    )
)
_OTHER_WORDS = frozenset(
    re.findall(
        r"\w+",
        "box boxes bbox bboxes loc location reg regression regressor regress offset ctr ctrness center centerness "
        "keypoint keypoints kps landmark landmarks depth flow anchor anchors objectness obj "
        "pooler value pose iou wh",
    )
)
_EMBED_WORDS = frozenset(("embed", "embedding", "embeddings"))  # yet a set-prediction detector's class_embed scores
_LABEL_WORDS = frozenset(("class", "classes", "label", "labels", "category", "categories"))
_PROPOSAL_WORDS = frozenset(("rpn", "proposal", "proposals"))
_AUX_WORDS = frozenset(
    ("aux", "auxiliary", "auxlayer", "dist", "distill", "distillation", "distilled", "dsn", "deepsup")
)


def _words(component: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(component)}


def role(name: str) -> str | None:
    """Tell what a dotted name says of a layer: ``"class"``, ``"other"`` or nothing.

    The component nearest to the layer that says anything decides, but nothing in a proposal network is of the head.
    """
    if _PROPOSAL_WORDS & set().union(*map(_words, name.split("."))):
        return "other"
    for component in reversed(name.split(".")):
        words = _words(component)
        if words & _OTHER_WORDS:
            return "other"
        if words & _CLASS_WORDS:
            return "class"
        if words & _EMBED_WORDS:
            return "other"
    return None


def _auxiliary(name: str) -> bool:
    return bool(_words(name) & _AUX_WORDS)


def describe(candidates: Iterable[Layer]) -> str:
    """Write layers down for an error message."""
    listed = [f"{c.name!r} ({type(c.module).__name__}, {c.inputs} -> {c.outputs})" for c in candidates]
    more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
    return ", ".join(listed[:6]) + more


# ------------------------------------------------------------------ the decision


@dataclass(frozen=True, eq=False)
class Found:
    """What was found to be the head.

    Attributes:
        parts: Its layers, in order of registration.
        classes: How many classes it has.
        run: The run on fake tensors that told, where one was needed.
    """

    parts: list[Part]
    classes: int
    run: Trace | None = None


def find_parts(model: nn.Module) -> Found:
    """Find the layers that make the class outputs, and how many classes they have.

    Args:
        model: The model, not wrapped.

    Raises:
        HeadError: There is none, or several that can't be told apart.
    """
    every = layers(model)
    kind = type(model).__name__
    if not every:
        raise HeadError(f"The {kind} has no linear or convolutional layer, so it has no head to find.{_sealed(model)}")
    if getattr(model, "num_classes", None) == 0:
        raise HeadError(f"The {kind} has no head: its num_classes is 0. To put one on its features use append_head.")
    settled = _declared(model, every) or _obvious(model, every)
    if settled is not None:
        return Found([Part(layer) for layer in settled], settled[0].outputs)
    run = trace(model, every)
    found = _decide(model, every, run)
    _check_scorers(model, found.parts, run)
    return Found([*found.parts, *_label_tables(model, found.classes)], found.classes, run)


def part_of(model: nn.Module, layer: Layer) -> tuple[Part, int]:
    """Tell how the outputs of a layer that the user named count classes, and how many classes there are."""
    told = _told(model, layer.names)
    if not layer.sure:
        run = trace(model, layers(model))
        layer = next((end.layer for end in run.ends if end.layer.names == layer.names), layer)
        if layer.outputs not in told and layer.inputs in told:
            layer = layer.turned()
    for classes in told:
        part = _fits(layer, classes, _nearby(model, layer))
        if part is not None:
            return part, classes
    return Part(layer), layer.outputs


def _check_scorers(model: nn.Module, parts: list[Part], run: Trace) -> None:
    """Refuse a layer that gives one number, which the model uses as such: a score or a depth is no class output."""
    for part in parts:
        layer = part.layer
        shapes = [
            shape
            for end in run.ends
            if end.layer.names == layer.names
            for port, shape in end.shapes.items()
            if end.ports[port] <= SQUASHED
        ]
        if layer.outputs == 1 and not (run.complete and all(1 in shape[1:] for shape in shapes)):
            seen = f" ({', '.join(str(tuple(shape)) for shape in shapes)})" if run.complete else ""
            raise HeadError(
                f"{describe([layer])} gives one number, which does not leave the {type(model).__name__} as the score "
                f"of a class{seen}. To make classes of it all the same: replace_head(model, n, at={layer.name!r})."
            )


def _label_tables(model: nn.Module, classes: int) -> list[Part]:
    """The embeddings of class labels, as detectors that learn from noisy labels have them."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _LABEL_WORDS & _words(name.rpartition(".")[2]):
            extra = module.num_embeddings - classes
            if extra in (0, 1) and classes > 1:
                layer = Layer((name,), (module,), module.embedding_dim, module.num_embeddings, 0)
                found.append(Part(layer, extra=extra))
    return found


def _declared(model: nn.Module, every: list[Layer]) -> list[Layer] | None:
    """Follow a model that itself says which of its modules classify (``pretrained_cfg``, ``get_classifier``)."""
    count = getattr(model, "num_classes", None)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    names = config.get("classifier") if isinstance(config, Mapping) else None
    if not names or type(count) is not int:
        return None
    names = (names,) if isinstance(names, str) else tuple(names)
    named = []
    for name in names:
        inside = [layer for layer in every if any(n == name or n.startswith(name + ".") for n in layer.names)]
        if not inside or inside[-1].outputs != count:
            return None
        named.append(inside[-1])
    alike = [layer for layer in every if layer.outputs == count and layer not in named]
    return None if alike or _followed(model, named[-1]) else named


_OBVIOUS = re.compile(
    r"_?(fc|classifier|heads?|last_linear|logits|score|lm_head|classification_head|segmentation_head)", re.IGNORECASE
)


def _obvious(model: nn.Module, every: list[Layer]) -> list[Layer] | None:
    """Settle the plain case without a run: the one last layer, under a usual name, alone with its count."""
    last = every[-1]
    steps = last.name.split(".")
    top: nn.Module = model
    while len(steps) > 1 and not _OBVIOUS.fullmatch(steps[0]) and len([c for c in top.children() if _trained(c)]) == 1:
        top = getattr(top, steps[0])
        steps = steps[1:]
    if not _OBVIOUS.fullmatch(steps[0]) or role(last.name) == "other" or len(last.names) > 1:
        return None
    if not _alone(model, every, last):
        return None
    others = [name for name, child in top.named_children() if name != steps[0] and _trained(child)]
    if any(role(name) is not None or _auxiliary(name) for name in others):
        return None
    told = _told(model, ())
    if told and last.outputs not in told:
        return None
    prefix = last.name[: len(last.name) - len(".".join(steps))] + steps[0]
    chain = [layer for layer in every if layer.name == prefix or layer.name.startswith(prefix + ".")]
    if any(one.outputs != two.inputs for one, two in itertools.pairwise(chain)):
        return None
    return [last]


def _alone(model: nn.Module, every: list[Layer], last: Layer) -> bool:
    """Whether nothing else in the model has the last layer's count, its weight or a place after it."""
    alike = any(layer.outputs == last.outputs for layer in every if layer is not last)
    return not (alike or _followed(model, last) or _shared(model, last))


def _trained(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _shared(model: nn.Module, layer: Layer) -> bool:
    mine = {id(p) for p in layer.module.parameters()}
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in mine]
    return len(names) > len(mine) * len(layer.names)


def _followed(model: nn.Module, layer: Layer) -> bool:
    """Whether parameters of the size of the outputs stand beside the layer, or come after it: a norm of the logits."""
    around = holders(model, layer.name)
    beside = (v for m in around for v in (*m._parameters.values(), *m._buffers.values()) if v is not None)
    if any(layer.outputs in tensor.shape for tensor in beside):
        return True
    seen = False
    inside = {module for one in layer.modules for module in one.modules()}
    for module in model.modules():
        if module in inside:
            seen = True
        elif seen and any(
            p is not None and p.dim() == 1 and p.numel() == layer.outputs for p in module._parameters.values()
        ):
            return True
    return False


def _fits(layer: Layer, classes: int, nearby: Iterable[int]) -> Part | None:
    """Tell how ``classes`` could make the layer's outputs; several for each class only where such a count is near."""
    if layer.outputs == classes:
        return Part(layer)
    if classes > 1 and classes in nearby and layer.outputs % classes == 0:
        return Part(layer, times=layer.outputs // classes)
    return None


def _nearby(model: nn.Module, layer: Layer, end: End | None = None) -> set[int]:
    """Return the counts told by the modules that hold the layer, the model itself left out, and by how it comes out."""
    around = counters(model, layer.names)
    near = {
        c.value for c in around if c.owner is not model and isinstance(c.owner, nn.Module) and counts_classes(c.name)
    }
    if end is not None:
        near |= {shape[-1] for port, shape in end.shapes.items() if end.ports[port] == CLEAN and len(shape) > 2}
    return near


def _decide(model: nn.Module, every: list[Layer], run: Trace) -> Found:
    """Weigh what a trace saw, with counters and names."""
    kind = type(model).__name__
    unseen = [layer for layer in every if run.unseen.issuperset(layer.names)]
    speaking = [end for end in run.ends if not end.body and role(end.layer.name) != "other"]
    told = _told(model, [name for end in speaking for name in end.layer.names])

    # What the model counts by itself, and layers that fit the count. Where the run failed, what came out before need be
    # no output of the model, and what would have run after is told by its name.
    late = speaking
    if not run.complete and unseen:
        after = {layer.names for layer in every[every.index(unseen[-1]) :]}
        late = [end for end in speaking if end.layer.names in after]
        speaking += [End(layer, CLEAN) for layer in unseen]
        speaking = [end for end in speaking if end in late or role(end.layer.name) == "class"]
    for classes in told:
        chosen = [
            (end, part) for end in speaking if (part := _fits(end.layer, classes, _nearby(model, end.layer, end)))
        ]
        chosen = [(end, part) for end, part in chosen if end.level == CLEAN or role(end.layer.name) == "class"]
        if not chosen:  # one more output for "no object", as set-prediction detectors have
            chosen = [
                (end, Part(end.layer, extra=1))
                for end in speaking
                if end.layer.outputs == classes + 1 and role(end.layer.name) == "class" and end.level == CLEAN
            ]
        if not all(end.training_only for end, _ in chosen):
            side = [Part(end.layer) for end in run.ends if end.body and _scores_beside(end, classes)]
            parts = _with_siblings(model, unseen, [part for _, part in chosen])
            return Found(_with_boxes(every, [*parts, *side]), classes)

    # No counter: the layers whose outputs come out as they are, those named for classes or under a softmax first.
    speaking = late
    named = [end for end in speaking if end.level <= SQUASHED and (end.softmax or role(end.layer.name) == "class")]
    plain = [end for end in speaking if end.level == CLEAN] if run.complete else []
    for group in (named, plain):
        if all(end.training_only or (group is named and _auxiliary(end.layer.name)) for end in group):
            continue
        sizes = {end.layer.outputs for end in group if not _auxiliary(end.layer.name)} or {group[0].layer.outputs}
        if len(sizes) > 1:
            raise _doubt(kind, group)
        classes = sizes.pop()
        same = [
            end
            for end in speaking
            if end.layer.outputs == classes and (end in group or (end.level <= SQUASHED and _beside(end)))
        ]
        same += [end for end in run.ends if end.body and _scores_beside(end, classes)]
        parts = _with_boxes(every, [Part(end.layer) for end in same])
        if len(parts) == len(same) and not _together(same):
            raise _doubt(kind, same)
        return Found(parts, classes)
    last = every[-1]
    if not run.ends and role(last.name) == "class" and not _auxiliary(last.name) and _alone(model, every, last):
        return Found([Part(last)], last.outputs)
    raise _nothing(model, every, run)


def _together(group: list[End]) -> bool:
    """Whether several layers are one head: summed, auxiliary, or there only for training."""
    main = [end for end in group if not _beside(end)] or group[:1]
    return all(end.ports == main[0].ports for end in main)


def _beside(end: End) -> bool:
    """Whether a layer is there to help in training: by its name, or since only a run in training mode uses it."""
    return end.training_only or _auxiliary(end.layer.name)


def _scores_beside(end: End, classes: int) -> bool:
    """Whether a layer that feeds another one gives class scores of its own too, as deep supervision has it."""
    return end.beside and end.layer.outputs == classes and role(end.layer.name) != "other"


def _with_siblings(model: nn.Module, unseen: list[Layer], parts: list[Part]) -> list[Part]:
    """Add layers of the same lists that are like those found, and did not run: heads of a decoder's other layers."""
    known = {part.layer.names for part in parts}
    more: dict[Layer, Part] = {}
    for part in parts:
        stem = part.layer.name.rpartition(".")[0]
        for layer in unseen if isinstance(model.get_submodule(stem), nn.ModuleList) else ():
            alike = (layer.inputs, layer.outputs) == (part.layer.inputs, part.layer.outputs)
            if layer.name.rpartition(".")[0] == stem and alike and layer.names not in known:
                more[layer] = replace(part, layer=layer)
    return [*parts, *more.values()]


def _with_boxes(every: list[Layer], parts: list[Part]) -> list[Part]:
    """Add the layer that gives four coordinates for each class beside a layer that scores the classes."""
    boxes = []
    for part in parts:
        stem = part.layer.name.rpartition(".")[0]
        for layer in every:
            beside = layer.name.rpartition(".")[0] == stem and layer.inputs == part.layer.inputs
            if part.times == 1 and beside and layer.outputs == 4 * part.layer.outputs and role(layer.name) == "other":
                boxes.append(Part(layer, times=4, by_class=True))
    order = {layer.names: index for index, layer in enumerate(every)}
    return sorted(parts + boxes, key=lambda part: order[part.layer.names])


class DoubtError(HeadError):
    """Several layers could be the head. They are its ``layers``."""

    layers: list[Layer]


def _doubt(kind: str, group: list[End]) -> DoubtError:
    names = [end.layer.name for end in group]
    error = DoubtError(
        f"The {kind} has several layers that could be its head: {describe(end.layer for end in group)}. "
        f"Say which: replace_head(model, n, at={names[0]!r}), or at={names} for all of them."
    )
    error.layers = [end.layer for end in group]
    return error


def _sealed(model: nn.Module) -> str:
    """Tell of the first module that can't be seen into, or be made anew, as a sentence for an error message."""
    for name, module in model.named_modules():
        kind, place = type(module).__name__, f" {name!r}" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            return f" Its {kind}{place} is scripted: replace the head before torch.jit does that."
        if "quantized" in type(module).__module__:
            return f" Its {kind}{place} is quantized: replace the head before that."
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module._parameters.values()):
            return f" Its {kind}{place} has no shape yet: run the model on one batch first."
    return ""


def _nothing(model: nn.Module, every: list[Layer], run: Trace) -> HeadError:
    kind = type(model).__name__
    normed = next((end for end in run.ends if end.level == NORMED and role(end.layer.name) == "class"), None)
    if normed is not None:
        return HeadError(
            f"The outputs of {describe([normed.layer])} pass a layer with weights of their own before they leave the "
            f"{kind}, so another count would not fit it. Replace both with replace_modules, or rebuild the head."
        )
    if (
        run.complete
        and run.bare
        and not _sealed(model)
        and not any(end.level == CLEAN and not end.body for end in run.ends)
    ):
        return HeadError(
            f"The outputs of the {kind} come from {', '.join(map(repr, run.bare))}, which no linear layer holds. "
            "What can be replaced is a module: let an nn.Linear hold the parameter."
        )
    why = "" if run.complete else f" It could not be run on stand-in inputs either: {run.failure}."
    why += _sealed(model)
    ends = [end.layer for end in run.ends if not end.body]
    likely = [layer for layer in ends if run.complete or role(layer.name) == "class"] or every[-2:]
    return HeadError(
        f"No layer of the {kind} looks like a classifier, by its names, its counters or its outputs.{why} "
        f"If one is, say so: replace_head(model, n, at={likely[-1].name!r}); last in it: {describe(likely)}. "
        "To add a layer to the outputs use append_head."
    )
