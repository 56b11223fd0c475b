"""What a scan can find: the kinds, what each does to training, and what to do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from ftkit._arguments import strings
from ftkit._images.verdict import Note, Severity
from ftkit._reports import Parts, Report
from ftkit._wording import some
from ftkit.errors import FtkitError, did_you_mean

#: The severities and what a report calls them, in its order.
SEVERITIES: dict[Severity, str] = {
    "unusable": "unusable",
    "odd": "usable but odd",
    "junk": "junk (no image)",
    "other": "other (no image, does no harm)",
}


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: How serious it is.
        effect: What it does to training.
        remedy: What to do about it.
        family: A name that selects all the kinds that share it.
        transient: Whether the next scan may find otherwise, so that a journal must not answer for it.
    """

    severity: Severity
    effect: str
    remedy: str
    family: str = ""
    transient: bool = False

    @property
    def mendable(self) -> bool:
        """Whether `ScanReport.repair` can fix it in a copy."""
        return self.remedy.startswith("repair()")


_unusable, _odd, _junk, _other = (partial(Kind, severity) for severity in SEVERITIES)

#: All kinds of findings. Filters, the report, its page and the reference are made from this table, in its order. Each
#: heading says where the kinds below it are looked for.
KINDS: dict[str, Kind] = {
    # The bytes: decoding/checks.py and the decoders it calls, jpeg.py and pillow.py.
    "truncated": _unusable("the end of the file is missing; loaders raise or fill with gray", "fetch it again"),
    "damaged": _unusable("bytes have changed; loaders raise or return garbled pixels", "fetch it again"),
    "missing_eoi": _unusable("every pixel is there, but Pillow refuses the file", "repair() adds the end marker"),
    "empty": _unusable("no bytes, or only zeros; loaders raise", "fetch it again"),
    "not_an_image": _unusable("has an image's file extension but is not an image; loaders raise", "fetch it again"),
    "half_grey": _unusable("a truncated photo that was saved again; partly gray", "find the original"),
    "bomb": _unusable("more pixels than Pillow accepts, or memory runs out", "scale it down"),
    # Opening the file: decoding/checks.py; a folder: folders.py.
    "unreadable": _unusable("the system can't read it; loaders raise", "fix permissions or the disk", transient=True),
    "broken_link": _unusable("a link to nothing, or to itself; loaders raise", "fix the link"),
    "special_file": _unusable("a pipe, socket or device; loaders hang", "set it aside"),
    "vanished": _unusable("it disappeared during the scan", "scan again when the folder is at rest", transient=True),
    # The worker that decodes it: workers.py.
    "crash": _unusable("a decoder crashes on it, and would crash the training", "set it aside", transient=True),
    "timeout": _unusable(
        "not decoded within timeout; loaders stall", "set it aside, or raise timeout=", transient=True
    ),
    "out_of_memory": _unusable("decoding needs more memory than a worker may use", "scale it down", transient=True),
    # A fault of ours: decoding/checks.py.
    "unjudged": _odd("loaders take it, but its check failed; it may be sound or not", "look at it", transient=True),
    # The extension: decoding/checks.py.
    "wrong_suffix": _odd("loaders that go by the extension fail", "repair() renames a copy"),
    "unlisted_suffix": _odd("ImageFolder skips it because of its extension", "repair() makes a copy it takes"),
    # What Pillow can't open on its own: decoding/pillow.py and tiff.py.
    "needs_package": _odd("loaders raise unless a package for it is installed", "install it, or convert the file"),
    # Small flaws of the bytes, and what the header says: decoding/jpeg.py, png.py, pillow.py and picture.py.
    "decoder_warning": _odd("the decoder warns, but the pixels are intact", "nothing, or save it again"),
    "trailing_data": _odd("bytes follow the image; harmless", "repair() cuts them off"),
    "bad_crc": _odd("a checksum is wrong, but the pixels are intact; some loaders raise or crash", "repair()"),
    "missing_end": _odd("the last chunk or byte is missing, but no pixels; some loaders raise", "repair()"),
    "huge": _odd("so many pixels that Pillow warns; slow to load", "scale it down"),
    "cmyk": _odd("CMYK instead of RGB; colors come out wrong", "repair() converts it"),
    "sixteen_bit": _odd("Pillow's conversion to RGB clips 16 bits to white", "repair() scales it to 8 bits"),
    "transparency": _odd("what transparent pixels hide shows up in RGB", "repair() puts it on white"),
    "greyscale": _odd("no color in a set that has it; the model may learn the difference", "be aware of it"),
    "animated": _odd("several frames; loaders take the first", "keep the right one"),
    "exif_rotated": _odd("rotated or mirrored unless the loader applies EXIF; most don't", "repair() turns it upright"),
    "bad_exif": _odd("EXIF can't be read; loaders that rotate images may raise", "repair() drops it"),
    # The image as a whole: decoding/checks.py.
    "extreme_aspect": _odd("a crop or resize leaves little of it", "set it aside"),
    "tiny": _odd("too few pixels to learn from", "set it aside"),
    "constant": _odd("a single color; often a placeholder", "set it aside"),
    # What it looks like beside others: tally.py.
    "dark": _odd("hardly anything is brighter than dark gray", "look, then keep it or set it aside"),
    "bright": _odd("hardly anything is darker than white", "look, then keep it or set it aside"),
    "blurry": _odd("no fine detail, compared with the contrast", "look, then keep it or set it aside"),
    "low_information": _odd("a few levels of gray make up all of it", "look, then keep it or set it aside"),
    # The name: tally.py.
    "name_not_utf8": _odd("tools that print or store names fail", "rename it"),
    # Copies: copies.py.
    "leak": _odd("the same file in training and evaluation; scores look too good", "quarantine the copy", "leaks"),
    "same_file": _odd(
        "one file in training and evaluation, through a link; scores look too good", "quarantine or copy it", "leaks"
    ),
    "near_leak": _odd("nearly the same image in training and evaluation", "look, then quarantine the copy", "leaks"),
    "eval_leak": _odd(
        "the same file in validation and test; they are not independent", "look, keep it in one", "eval_leaks"
    ),
    "near_eval_leak": _odd("nearly the same image in validation and test", "look, keep it in one", "eval_leaks"),
    "outside_copy": _odd(
        "the same file as in a split, and in none; a leak if you evaluate on it", "pass splits= if it is in one"
    ),
    "near_outside_copy": _odd("nearly the same image as in a split, and in none", "pass splits= if it is in one"),
    "label_conflict": _odd(
        "the same file in two classes; one label is wrong", "look, keep the right one", "label_conflicts"
    ),
    "near_label_conflict": _odd("nearly the same image in two classes", "look, keep the right one", "label_conflicts"),
    "duplicate": _odd("counts twice", "quarantine the copy", "duplicates"),
    "near_duplicate": _odd("nearly the same image counts twice", "look, then quarantine the copy", "duplicates"),
    # Classes: tally.py.
    "no_images": _odd("a class without a usable image; ImageFolder raises", "add some, or drop the class"),
    "imbalance": _odd("another class has at least ten times as many images", "weight the classes"),
    "classes_differ": _odd("ImageFolder numbers classes by name: labels differ between splits", "fix the folders"),
    # What ImageFolder would make of the folders: arrangement.py.
    "classes_deeper": _odd("ImageFolder finds a single class: the folder with the classes", "pass that folder"),
    "splits_deeper": _odd("train and val are in some folders only, so they are taken for no splits", "pass splits="),
    "flat": _odd("images without class folders; ImageFolder raises", "sort them into folders, or write a Dataset"),
    "beside_classes": _odd("ImageFolder skips images that are in no class folder", "move them into their class"),
    "class_twins": _odd("two classes for ImageFolder, one for some systems", "merge or rename them"),
    "hidden_class": _odd("ImageFolder takes a hidden folder for a class", "move it elsewhere"),
    # Folders that the scan leaves out: folders.py.
    "many_links": _odd("folders have very many names through links; the scan left some names out", "make fewer links"),
    "hub_cache": _odd("where the Hugging Face hub keeps files; the scan skips it", "scan the snapshot in it"),
    # Names in a folder: folders.py; other_file: decoding/checks.py.
    "litter": _junk("left behind by a system or tool; adds a class, or an error", "set it aside"),
    "empty_folder": _junk("ImageFolder takes it for a class and raises", "set it aside"),
    "quarantine": _junk("what ftkit set aside; the scan skips it, ImageFolder does not", "move it elsewhere"),
    "folder_named_image": _junk("loops over *.jpg try to open a folder", "rename it"),
    "link_loop": _junk("a folder that contains itself; its images are read many times", "set it aside"),
    "other_file": _other("not an image by name or content; ImageFolder skips it", "nothing"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Report):
    """One thing that is wrong, or worth knowing, about one file or folder.

    Attributes:
        path: The file, as a path that opens as is: the scanned root joined with the rest.
        kind: What was found, such as ``"truncated"``; the reference lists all kinds.
        severity: ``"unusable"`` (training would fail, or learn from lost pixels), ``"odd"`` (every
            pixel is there, but the image needs attention), ``"junk"`` (not an image, and it gets in
            the way) or ``"other"`` (not an image, and does no harm, such as a ``labels.csv``).
        detail: The evidence, in words.
    """

    path: str
    kind: str
    severity: Severity
    detail: str

    def _parts(self) -> Parts:
        yield f"{self.path}: {self.kind}, {self.detail}"


@dataclass(frozen=True, slots=True, repr=False)
class DuplicateGroup(Report):
    """Files that contain the same image, or nearly the same as another one of them.

    Attributes:
        paths: The files, sorted.
        kind: ``"exact"`` for the same bytes, ``"near"`` for nearly the same image (another size,
            format or quality, slightly cropped, rotated or mirrored).
        classes: The class folders that contain the files.
        splits: The splits that contain the files.
        pairs: The pairs of files that are copies of each other, as far as they were compared, each with its similarity,
            from 0 to 1. By way of others, a group may contain files that are not, such as the frames of a pan.
    """

    paths: tuple[str, ...]
    kind: Literal["exact", "near"]
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str, float], ...] = ()

    @property
    def crosses_classes(self) -> bool:
        """Whether the copies are labeled differently."""
        return len(self.classes) > 1

    @property
    def crosses_splits(self) -> bool:
        """Whether copies are in different splits."""
        return len(self.splits) > 1

    def _parts(self) -> Parts:
        places = [f", in {' and '.join(names)}" for names in (self.splits, self.classes) if len(names) > 1]
        yield f"{len(self.paths)} {self.kind} copies{''.join(places)}: {some(self.paths, 4)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, with ``crosses_classes`` and ``crosses_splits``."""
        return Report.to_dict(self) | {"crosses_classes": self.crosses_classes, "crosses_splits": self.crosses_splits}


def make_finding(path: str, note: Note) -> Finding:
    """Return the finding for a note on a file; its severity is the kind's unless the note has one."""
    kind, detail, severity = note
    return Finding(path, kind, severity or KINDS[kind].severity, detail)


def leak_of(splits: Iterable[str]) -> str:
    """Return what a copy in these splits is, in view of one in another: of folds, any may be trained on."""
    return "eval_leak" if {"val", "test"}.issuperset(splits) else "leak"


# Kinds for which a file is to go as a copy of another, which stays.
_AS_COPY = frozenset(
    name
    for name, kind in KINDS.items()
    if kind.family in ("leaks", "eval_leaks", "duplicates") or name.endswith("outside_copy")
)


def last_copies(
    going: Mapping[str, Iterable[str]], pairs: Iterable[tuple[str, str]], stays: Callable[[str], bool]
) -> dict[str, str]:
    """Return what must not go as a copy, each with the reason: it, or what went before, would leave no copy.

    Args:
        going: The files that are to go, each with the kinds of its findings.
        pairs: Files that are copies of each other.
        stays: Whether a file is there and stays, apart from those that are to go.

    Example:
        >>> from ftkit._images.findings import last_copies
        >>> going = {"train/1.jpg": ["near_leak"], "val/1.jpg": ["near_eval_leak"]}
        >>> pairs = [("train/1.jpg", "val/1.jpg"), ("test/1.jpg", "val/1.jpg")]
        >>> last_copies(going, pairs, lambda path: True)
        {'train/1.jpg': 'no copy of it would stay'}
        >>> last_copies({"val/1.jpg": ["near_eval_leak"]}, pairs, lambda path: path != "train/1.jpg")
        {'val/1.jpg': 'no other copy of train/1.jpg, which is gone or changed, would stay'}
    """
    copies = defaultdict[str, list[str]](list)
    for one, other in pairs:
        copies[one].append(other)
        copies[other].append(one)
    leaving, last = {*going}, dict[str, str]()

    def has_copy(path: str) -> bool:
        return any(other not in leaving and stays(other) for other in copies[path])

    for path in sorted(going):
        if _AS_COPY.issuperset(going[path]):
            gone = (other for other in copies[path] if other not in going and not stays(other))
            if not has_copy(path):
                last[path] = "no copy of it would stay"
            elif without := next((other for other in gone if not has_copy(other)), ""):
                last[path] = f"no other copy of {without}, which is gone or changed, would stay"
            if path in last:
                leaving.discard(path)
    return last


def chooser(kinds: Iterable[str] | None) -> Callable[[Finding], bool]:
    """Return the test for findings of ``kinds``.

    Args:
        kinds: Each a kind, a severity, ``"leaks"``, ``"eval_leaks"``, ``"duplicates"`` or ``"label_conflicts"``. None
            stands for unusable files and junk.

    Raises:
        FtkitError: A name is none of these, or there is none.

    Example:
        >>> from ftkit._images.findings import Finding, chooser
        >>> wanted = chooser(["leaks", "truncated"])
        >>> wanted(Finding("a.jpg", "near_leak", "odd", "also in b.jpg")), wanted(Finding("a.jpg", "tiny", "odd", ""))
        (True, False)
    """
    if kinds is None:
        kinds = ("unusable", "junk")
    names = {kinds} if isinstance(kinds, str) else set(strings("kinds", kinds, "kinds of findings"))
    if not names:
        raise FtkitError("kinds is empty, so nothing is chosen. Name kinds of findings, or leave it out.")
    families = sorted({kind.family for kind in KINDS.values()} - {""})
    known = [*KINDS, *families, *SEVERITIES]
    for name in names.difference(known):
        raise FtkitError(
            f"{name!r} is not a kind of finding.{did_you_mean(name, known)} Use kinds such as 'truncated', severities "
            f"({', '.join(map(repr, SEVERITIES))}), or {', '.join(map(repr, families))}."
        )
    return lambda finding: not names.isdisjoint((finding.kind, finding.severity, KINDS[finding.kind].family))
