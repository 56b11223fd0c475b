"""What the names of layers say: the words that libraries use for classes, and those for everything else."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

__all__ = ["Role", "is_auxiliary", "is_loss", "is_of_labels", "is_usual", "role", "words"]

Role: TypeAlias = Literal["class", "other"]

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
_MEANINGS: tuple[tuple[frozenset[str], Role], ...] = (  # in the order in which they count
    (_OTHER_WORDS, "other"),
    (_CLASS_WORDS, "class"),
    (_EMBED_WORDS, "other"),
)
_PROPOSAL_WORDS = frozenset(("rpn", "proposal", "proposals"))
_LABEL_WORDS = frozenset(("class", "classes", "label", "labels", "category", "categories"))
_LOSS_WORDS = frozenset(("loss", "criterion"))
_AUX_WORDS = frozenset(
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

    The component nearest to the layer that says anything decides, but nothing in a proposal network is of the head.

    Example:
        >>> from ftkit._heads.vocabulary import role
        >>> role("head.box_fc"), role("bbox_head.fc_cls"), role("body.3"), role("rpn.head.cls_logits")
        ('other', 'class', None, 'other')
    """
    if _PROPOSAL_WORDS & words(name):
        return "other"
    for component in reversed(name.split(".")):
        said = words(component)
        for meant, its_role in _MEANINGS:
            if said & meant:
                return its_role
    return None


def is_auxiliary(name: str) -> bool:
    """Whether a name is that of a head beside the main one: for deep supervision, or for distillation."""
    return not _AUX_WORDS.isdisjoint(words(name))


def is_loss(name: str) -> bool:
    """Whether a name is that of a loss."""
    return not _LOSS_WORDS.isdisjoint(words(name))


def is_of_labels(name: str) -> bool:
    """Whether the last component of a dotted name speaks of the labels of classes."""
    return not _LABEL_WORDS.isdisjoint(words(name.rpartition(".")[2]))


def is_usual(component: str) -> bool:
    """Whether a model's child of that name is its head nearly everywhere."""
    return _USUAL.fullmatch(component) is not None
