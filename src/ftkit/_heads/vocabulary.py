"""What the names of layers say: the words that libraries use for classes, and those for everything else."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["class", "other"]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CLASSES = (
    "fc classifier classifiers cls class classes classification classif head heads logit logits score scores lm "
    "last final seg segmentation predictions"
)
_OTHERS = (
    "box boxes bbox bboxes loc location reg regression regressor regress offset ctr ctrness center centerness "
    "keypoint keypoints kps landmark landmarks depth flow anchor anchors objectness obj pooler value pose iou wh"
)
_EMBEDDINGS = "embed embedding embeddings"  # yet a set-prediction detector's class_embed scores
_MEANINGS: tuple[tuple[frozenset[str], Role], ...] = (  # in the order in which they count
    (frozenset(_OTHERS.split()), "other"),
    (frozenset(_CLASSES.split()), "class"),
    (frozenset(_EMBEDDINGS.split()), "other"),
)
_APART = frozenset(("rpn", "proposal", "proposals", "router", "routers"))  # score something, but never classes
LABELS = frozenset(("class", "classes", "label", "labels", "category", "categories"))
FEATURES = frozenset(
    ("proj", "projection", "projector", "feat", "feature", "features", "neck", "bottleneck", "encoder")
)
LOSSES = frozenset(("loss", "criterion"))
PER_CLASS = LABELS | frozenset(  # tensors with a number for each class
    ("alpha", "weights", "prior", "priors", "frequencies", "freq", "counts", "confusion", "centers", "prototypes")
)
AUXILIARY = frozenset(  # of heads for deep supervision, or for distillation
    ("aux", "auxiliary", "auxlayer", "dist", "distill", "distillation", "distilled", "dsn", "deepsup")
)
_USUAL = re.compile(
    r"_?(fc|classifier|heads?|last_linear|logits|score|lm_head|classification_head|segmentation_head)", re.IGNORECASE
)


def words(name: str) -> set[str]:
    """Split a name into its words.

    Example:
        >>> from ftkit._heads.vocabulary import words
        >>> sorted(words("roi_heads.BoxPredictor2"))
        ['box', 'heads', 'predictor', 'roi']
    """
    return {word.lower() for word in _WORD.findall(name)}


def role(name: str) -> Role | None:
    """Tell what a dotted name says of a layer: ``"class"``, ``"other"`` or nothing.

    The component nearest to the layer that says anything decides, but nothing in a proposal network or a router
    of experts is of the head.

    Example:
        >>> from ftkit._heads.vocabulary import role
        >>> role("head.box_fc"), role("bbox_head.fc_cls"), role("body.3"), role("rpn.head.cls_logits")
        ('other', 'class', None, 'other')
    """
    if says(name, _APART):
        return "other"
    for component in reversed(name.split(".")):
        said = words(component)
        for meant, its_role in _MEANINGS:
            if said & meant:
                return its_role
    return None


def says(name: str, wording: frozenset[str]) -> bool:
    """Whether a name has one of some words in it."""
    return not wording.isdisjoint(words(name))


def is_usual(component: str) -> bool:
    """Whether a model's child of that name is its head nearly everywhere."""
    return _USUAL.fullmatch(component) is not None
