"""What the names of folders say: which are splits, which contain images, and which what tells of these."""

from __future__ import annotations

import re

#: The words for splits, with the three that they stand for.
SPLITS = {
    "train": "train", "training": "train", "trainval": "train", "train_val": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
# A split's name may go on: train2017, training_set, test-images. Beside other splits, it may be any that begins or ends
# with such a word, or with one more: val_small, minival, holdout.
_SPLIT_NAME = re.compile(rf"({'|'.join(SPLITS)})([_ -]?(set|data|images?|imgs?|photos?))?[_ -]?[0-9]{{0,4}}")
_WITHIN = "|".join((*SPLITS, "h[eo]ld[_ -]?out"))
_SPLIT_WITHIN = re.compile(f"({_WITHIN}).*|.*({_WITHIN})")
# The first that stands by itself counts: test-dev is no dev.
_SPLIT_WORD = re.compile(f"(?<![A-Za-z])((?i:{_WITHIN}))(?![a-z])")
_IN_SHORT = {"imagestr": "train", "imagests": "test"}  # of the medical decathlon
_CITYSCAPES = "(left|right)img8bit"
# Not classes, unless beside some: images, images_001 of many, images_png, img_dir.
_IMAGE_FOLDER = re.compile(f"(images?|imgs?|(jpeg|png)images|{_CITYSCAPES})([_ -]?([0-9]+|png|jpe?g|tiff?|dir))?")
# Beside them, or in each split: what tells of the images, as in the layouts of YOLO, COCO and Pascal VOC. The split
# that it goes with may be part of the name: trainannot, train_masks, labels_val.
_LABEL_FOLDER = re.compile(
    rf"(({'|'.join(SPLITS)})[0-9]{{0,4}}[_ -]?)?"
    "(labels?|ann(o|ot|otation)?s?|masks?|gt|gtfine|gtcoarse|(.*[_ -])?ground[_ -]?truths?|trimaps?|mattes?|segs?|"
    "(mask|label|gt)[_ -]?(images?|imgs?|masks?)([_ -]?[0-9])?|imagesets|segmentations?|"
    "segmentation(class|object)[a-z]*|labelst[rs])([_ -]dir)?"
    rf"([_ -]?({'|'.join(SPLITS)})[0-9]{{0,4}})?"
)
# What else the name of such a folder may have in it, if its files are called as images beside it are.
_TELLING = re.compile(
    "(^|[_ -])(mask|label|annot)|(mask|label)s?$|(^|[_ -])(anno?|segs?|gt)($|[_ -])|"
    "segment|semantic|instance|panoptic|parsing|matte|trimap|ground.?truth"
)
_MORE_IMAGES = re.compile("(^|[_ -])(images?|imgs?|photos?|pictures?|pics?|frames?|rgb)")


def is_images(name: str) -> bool:
    """Whether a folder is called as one of images."""
    return bool(_IMAGE_FOLDER.fullmatch(name.lower()))


def is_of_cities(name: str) -> bool:
    """Whether a folder is called as those in which Cityscapes has its images, by cities."""
    return bool(re.fullmatch(_CITYSCAPES, name.lower()))


def is_labels(name: str) -> bool:
    """Whether a folder is called as one of what tells of images."""
    return bool(_LABEL_FOLDER.fullmatch(name.lower()))


def is_known(name: str) -> bool:
    """Whether a folder is called as one of images, or of what tells of them."""
    return is_images(name) or is_labels(name)


def may_tell_of_images(name: str) -> bool:
    """Whether the name of a folder has a word for what tells of images in it, such as "masks_png"."""
    return bool(_TELLING.search(name.lower()))


def has_more_images(name: str) -> bool:
    """Whether the name of a folder has a word for images in it, such as "images_night"."""
    return bool(_MORE_IMAGES.search(name.lower()))


def split_of(name: str) -> str:
    """Return the split that a folder is called as, if any."""
    found = _SPLIT_NAME.fullmatch(name.lower())
    return SPLITS[found[1]] if found else _IN_SHORT.get(name.lower(), "")


def split_word(name: str) -> str:
    """Return the split that a word in the name of a folder stands for, the first one; nothing if there is none.

    Example:
        >>> [split_word(name) for name in ("coco-test-dev", "testA", "hold-out", "minival", "contest")]
        ['test', 'test', 'test', '', '']
    """
    found = _SPLIT_WORD.search(name)
    return SPLITS.get(found[1].lower(), "test") if found else ""


def split_within(name: str) -> str:
    """Return the split that a folder is called as which is known to be one; otherwise its own name.

    Example:
        >>> [split_within(name) for name in ("val_small", "minival", "hold-out", "extra")]
        ['val', 'val', 'test', 'extra']
    """
    found = _SPLIT_WITHIN.fullmatch(name.lower())
    return split_word(name) or (SPLITS.get(found[1] or found[2], "test") if found else name)


def are_of_one_split(one: str, other: str) -> bool:
    """Whether the names of two folders have the word for a split in them: train and depth_train."""
    return any(word in one.lower() and word in other.lower() for word in SPLITS)
