"""What a scan can find: the kinds, what each does to training, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from ftkit._arguments import strings
from ftkit._images.verdict import Note, Severity
from ftkit._reports import Parts, Report
from ftkit._wording import some
from ftkit.errors import FtkitError, did_you_mean

#: The severities and what a report calls them, in its order.
SEVERITIES: dict[Severity, str] = {"unusable": "unusable", "odd": "usable but odd", "junk": "not images"}


class Kind(NamedTuple):
    """One kind of finding.

    Attributes:
        severity: How grave it is.
        effect: What it does to training.
        remedy: What to do about it.
        family: A name that users may choose kinds by, for those that share it.
        transient: Whether it may be otherwise at the next scan, so that a journal does not answer for it.
    """

    severity: Severity
    effect: str
    remedy: str
    family: str = ""
    transient: bool = False

    @property
    def mendable(self) -> bool:
        """Whether `ScanReport.repair` can rid a copy of it."""
        return self.remedy.startswith("repair()")


_unusable, _odd, _junk = (partial(Kind, severity) for severity in SEVERITIES)

#: All kinds of findings. Filters, the report, its page and the reference are made from this table, in its order. Each
#: heading says where the kinds below it are looked for.
KINDS: dict[str, Kind] = {
    # The bytes: decoding/checks.py and the decoders it calls, jpeg.py and pillow.py.
    "truncated": _unusable("the end of the file is missing; loaders raise or fill with grey", "fetch it again"),
    "damaged": _unusable("bytes have changed; loaders raise, or train on garbled pixels", "fetch it again"),
    "missing_eoi": _unusable("every pixel is there, but Pillow refuses the file", "repair() adds the end marker"),
    "empty": _unusable("no bytes, or zeros only; loaders raise", "fetch it again"),
    "not_an_image": _unusable("an image's name on something else; loaders raise", "fetch it again"),
    "half_grey": _unusable("a cut-off photo that was saved again; trains on grey", "find the original"),
    "bomb": _unusable("Pillow refuses so many pixels, or memory runs out", "scale it down"),
    # Opening the file: decoding/checks.py; a folder: folders.py.
    "unreadable": _unusable(
        "the system does not let it be read; loaders raise", "mend permissions or disk", transient=True
    ),
    "broken_link": _unusable("a link to nothing, or to itself; loaders raise", "mend the link"),
    "special_file": _unusable("a pipe, socket or device; loaders hang", "set it aside"),
    "vanished": _unusable("it went away during the scan", "let the folder rest, scan again", transient=True),
    # The worker that decodes it: workers.py.
    "crash": _unusable("a decoder dies of it; it would take the training along", "set it aside", transient=True),
    "timeout": _unusable(
        "not decoded within timeout; loaders stall", "set it aside, or raise timeout=", transient=True
    ),
    "out_of_memory": _unusable("decoding needs more memory than a worker may have", "scale it down", transient=True),
    # The suffix: decoding/checks.py.
    "wrong_suffix": _odd("loaders that go by the suffix fail", "repair() renames a copy"),
    "unlisted_suffix": _odd("ImageFolder passes over it, for its suffix", "repair() makes a copy it takes"),
    # What Pillow can't open by itself: decoding/pillow.py.
    "needs_package": _odd("loaders raise, unless a package for it is there", "install that, or convert it"),
    # Small flaws of the bytes, and what the header says: decoding/jpeg.py, png.py, pillow.py and picture.py.
    "decoder_warning": _odd("the decoder complains, the pixels are sound", "nothing, or save it again"),
    "trailing_data": _odd("bytes follow the picture; harmless", "repair() cuts them off"),
    "bad_crc": _odd("a checksum is wrong, the pixels are sound; some loaders raise or crash", "repair()"),
    "missing_end": _odd("the end chunk is missing, the pixels are there; some loaders raise", "repair()"),
    "huge": _odd("so many pixels that Pillow warns; slow to load", "scale it down"),
    "cmyk": _odd("inks instead of light; colours come out wrong", "repair() converts"),
    "sixteen_bit": _odd("Pillow's conversion to RGB clips 16 bits to white", "repair() scales to 8 bits"),
    "transparency": _odd("what hides behind transparent pixels shows up in RGB", "repair() puts it on white"),
    "greyscale": _odd("no colour in a set that has it; the model may learn the difference", "know it"),
    "animated": _odd("several pictures; loaders take the first", "keep the right one"),
    "exif_rotated": _odd("lies on its side unless the loader heeds EXIF; most don't", "repair() turns it"),
    "bad_exif": _odd("EXIF can't be read; loaders that turn pictures may raise", "repair() drops it"),
    # The picture as a whole: decoding/checks.py.
    "extreme_aspect": _odd("a crop or resize leaves nothing of it", "set it aside"),
    "tiny": _odd("a few pixels blown up teach nothing", "set it aside"),
    "constant": _odd("one colour all over; often a placeholder", "set it aside"),
    # The name: tally.py.
    "name_not_utf8": _odd("tools that print or store names fail", "rename it"),
    # Copies: copies.py.
    "leak": _odd("the same file in training and evaluation; scores come out too good", "quarantine the copy", "leaks"),
    "same_file": _odd(
        "one file in training and evaluation, by a link; scores come out too good", "quarantine or copy it", "leaks"
    ),
    "near_leak": _odd("nearly the same picture in training and evaluation", "look, then quarantine the copy", "leaks"),
    "label_conflict": _odd(
        "the same file in two classes; one label is wrong", "look, keep the right one", "label_conflicts"
    ),
    "near_label_conflict": _odd(
        "nearly the same picture in two classes", "look, keep the right one", "label_conflicts"
    ),
    "duplicate": _odd("counts twice", "quarantine the copy", "duplicates"),
    "near_duplicate": _odd("nearly the same picture counts twice", "look, then quarantine the copy", "duplicates"),
    # Classes: tally.py.
    "no_images": _odd("a class without a usable image; ImageFolder raises", "add some, or drop the class"),
    "imbalance": _odd("a class has ten times fewer images than another", "weight the classes"),
    "classes_differ": _odd("ImageFolder numbers classes by name: labels differ between splits", "mend folders"),
    # What ImageFolder would make of the folders: layout.py.
    "classes_deeper": _odd("ImageFolder finds a single class: the folder that holds the classes", "give that folder"),
    "flat": _odd("images without class folders; ImageFolder raises", "sort them into folders, or write a Dataset"),
    "beside_classes": _odd("ImageFolder passes over images that lie in no class folder", "move them into their class"),
    "class_twins": _odd("two classes for ImageFolder, one for systems that ignore case", "merge or rename them"),
    "hidden_class": _odd("ImageFolder takes a hidden folder for a class", "move it elsewhere"),
    # Names in a folder: folders.py; other_file: decoding/checks.py.
    "litter": _junk("left behind by a system or tool; an extra class, or an error", "set it aside"),
    "empty_folder": _junk("ImageFolder takes it for a class and raises", "set it aside"),
    "quarantine": _junk("what ftkit set aside; the scan passes over it, ImageFolder does not", "move it elsewhere"),
    "folder_named_image": _junk("loops over *.jpg try to open a folder", "rename it"),
    "link_loop": _junk("a folder that contains itself; walkers see each image many times", "set it aside"),
    "other_file": _junk("not an image by name or content; ImageFolder passes over it", "nothing"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Finding(Report):
    """One thing that is wrong, or worth knowing, about one file or folder.

    Attributes:
        path: The file: the scanned root joined with the rest, so that it opens as it stands.
        kind: What was found, such as ``"truncated"``; the reference lists all.
        severity: ``"unusable"`` (training would fail, or learn from lost pixels), ``"odd"`` (every
            pixel is there, but a training loop should be told) or ``"junk"`` (no image at all).
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
    """Files that hold the same picture.

    Attributes:
        paths: The files, sorted.
        kind: ``"exact"`` for the same bytes, ``"near"`` for nearly the same picture (another size,
            format or quality, a slight crop, turned, a mirror image).
        classes: The class folders that the files lie in.
        splits: The splits that the files lie in.
        pairs: Two files each, and how similar they are, from 0 to 1: those pairs that make it one group.
    """

    paths: tuple[str, ...]
    kind: Literal["exact", "near"]
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str, float], ...] = ()

    @property
    def crosses_classes(self) -> bool:
        """Whether the copies are labelled differently."""
        return len(self.classes) > 1

    @property
    def crosses_splits(self) -> bool:
        """Whether a copy is in training and another in validation or test."""
        return len(self.splits) > 1

    def _parts(self) -> Parts:
        places = [f", in {' and '.join(names)}" for names in (self.splits, self.classes) if len(names) > 1]
        yield f"{len(self.paths)} {self.kind} copies{''.join(places)}: {some(self.paths, 4)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, and what they cross."""
        return Report.to_dict(self) | {"crosses_classes": self.crosses_classes, "crosses_splits": self.crosses_splits}


def make_finding(path: str, note: Note) -> Finding:
    """Return what a note on a file says, with the severity of its kind where it names none itself."""
    kind, detail, severity = note
    return Finding(path, kind, severity or KINDS[kind].severity, detail)


def chooser(kinds: Iterable[str] | None) -> Callable[[Finding], bool]:
    """Return the test for findings of ``kinds``.

    Args:
        kinds: Each a kind, a severity, ``"leaks"``, ``"duplicates"`` or ``"label_conflicts"``. None stands for
            what is unusable and the junk, but no ``other_file``: a ``labels.csv`` harms nobody.

    Raises:
        FtkitError: A name is none of these.

    Example:
        >>> from ftkit._images.findings import Finding, chooser
        >>> wanted = chooser(["leaks", "truncated"])
        >>> wanted(Finding("a.jpg", "near_leak", "odd", "also in b.jpg")), wanted(Finding("a.jpg", "tiny", "odd", ""))
        (True, False)
    """
    if kinds is None:
        return lambda finding: finding.severity != "odd" and finding.kind != "other_file"
    names = {kinds} if isinstance(kinds, str) else set(strings("kinds", kinds, "kinds of findings"))
    families = sorted({kind.family for kind in KINDS.values()} - {""})
    known = [*KINDS, *families, *SEVERITIES]
    for name in names.difference(known):
        raise FtkitError(
            f"{name!r} is no kind of finding.{did_you_mean(name, known)} Give kinds such as 'truncated', severities "
            f"({', '.join(map(repr, SEVERITIES))}), or {', '.join(map(repr, families))}."
        )
    return lambda finding: not names.isdisjoint((finding.kind, finding.severity, KINDS[finding.kind].family))
