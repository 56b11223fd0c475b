"""Sum up the verdicts on single files: what was found, how many images there are in which class."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from ftkit._images.arrangement import Arrangement
from ftkit._images.copies import Copied, Copies, judge_group
from ftkit._images.findings import DuplicateGroup, Finding, make_finding
from ftkit._images.folders import Folder, Stamp
from ftkit._images.journal import Journal
from ftkit._images.layout import Layout
from ftkit._images.suffixes import IMAGE_SUFFIXES, may_be_class, suffix_of
from ftkit._images.table import TableWriter
from ftkit._images.verdict import Form, Measures, Note, Notes, Verdict, read_line
from ftkit._wording import plural

_IMBALANCE = 10  # times more images than in another class
_GREYSCALE = 10  # times more images than grey ones, so that these stand out
_HALF_GREY = 0.2, 3  # of the images, and how many at least, from which on it is how they were made
_GREY_MODES = frozenset(("L", "1", "LA"))
_NAMED = 5  # classes in a detail
# What is wrong with photos and classes, but not with masks, whose values are class numbers, nor with folders of labels.
_OF_PHOTOS = frozenset(("constant", "sixteen_bit", "transparency", "empty_folder"))
_LOOKS = 0.5, 10  # of the images, above which a look is how they were made, in a set of so many
#: What pictures look like: each kind, whether it applies, and its detail.
_BY_LOOK: dict[str, tuple[Callable[[Measures], bool], str]] = {
    "dark": (lambda seen: seen.light < 80, "99% of the pixels have at most {0.light} of 255"),
    "bright": (lambda seen: seen.dark > 240, "95% of the pixels have at least {0.dark} of 255"),
    "low_information": (lambda seen: seen.information < 3, "{0.information} bits of information per pixel"),
    # Noise has sharp edges, and of a plain picture there is nothing else to be seen.
    "blurry": (
        lambda seen: seen.sharpness < 0.24 * seen.contrast and seen.information >= 3,
        "sharpness {0.sharpness}, where the contrast is {0.contrast}",
    ),
}


def _as_claimed(path: str, notes: Notes) -> Notes:
    """Return the notes on a file, of which a name that promises no image leaves one at most: nothing is wrong with it.

    Labels may be empty, sounds and RAW photos are beyond Pillow, and no loader of images asks for them.
    """
    if suffix_of(path) in IMAGE_SUFFIXES:
        return notes
    unusable = (note for note in notes if make_finding(path, note).severity != "odd")
    return next(([Note("other_file", note.detail)] for note in unusable), notes)


class Tally:
    """What is known so far.

    Attributes:
        findings: What was found.
        files: How many files there are.
        images: How many of them are usable images.
        classes: Usable images of each class, by the split's folder and the class.
        judged: Of files with findings, and of their copies, by path: the stamp and the digest.
    """

    def __init__(self, folder: Folder, layout: Layout, journal: Journal, copies: Copies, table: TableWriter) -> None:
        self.findings: list[Finding] = []
        self.files: int = 0
        self.images: int = 0
        self.classes: Counter[tuple[str, str]] = Counter()
        self.judged: dict[str, tuple[Stamp, str]] = {}
        self._folder, self._prefix, self._layout, self._journal = folder, folder.prefix, layout, journal
        self._copies, self._table, self._arrangement = copies, table, Arrangement(layout)
        self._homes = layout.homes
        self._grey, self._half_grey = array("Q"), array("Q")  # places in the journal
        self._looks = {kind: array("Q") for kind in _BY_LOOK}

    def note(self, path: str, note: Note) -> None:
        """Take in what was found about a path relative to the root."""
        if note.kind == "broken_link" and self._layout.place(path).label:  # os.walk, in class folders, passes over it
            (note,) = _as_claimed(path, [note])
        if note.kind in _OF_PHOTOS and self._layout.tells_of_images(path):
            return
        if note.kind == "empty_folder" and path in self._layout.splits:  # which nobody takes for a class
            return
        self.findings.append(make_finding(self._prefix + path, note))
        self.files += note.kind == "litter"  # these are never opened

    def enter(self, folder: str) -> None:
        """Take in a folder: it may be a class."""
        place = self._layout.place(folder + "/.")
        is_class = place.label and place.rest == "." and may_be_class(place.label)
        if is_class and place.folder in self._homes and not self._layout.tells_of_images(folder + "/."):
            self.classes[place.folder, place.label] += 0

    def add(self, line: bytes, at: int) -> None:
        """Take in a line of the journal, which stands at byte ``at``."""
        path, verdict = read_line(line)
        self.files += 1
        before = len(self.findings)
        for note in _as_claimed(path, verdict.notes):
            self.note(path, note)
        grave = {finding.kind for finding in self.findings[before:] if finding.severity != "odd"}
        if not path.isascii() and path.encode(errors="replace") != os.fsencode(path):
            self.note(path, Note("name_not_utf8", ascii(path.rpartition("/")[2])))
        if verdict.form and not grave:
            self._count(path, verdict.form, verdict, at)
        elif grave == {"half_grey"}:
            self._half_grey.append(at)
        if len(self.findings) > before:
            self._remember(path, verdict)

    def _count(self, path: str, form: Form, verdict: Verdict, at: int) -> None:
        """Take in a usable image."""
        self.images += 1
        place = self._layout.place(path)
        self._table.add(self._prefix + path, place, verdict)
        if self._layout.tells_of_images(path):  # masks are alike as their photos are, and none of them is a photo
            return
        self._arrangement.add(path, place.folder)
        if place.label:
            self.classes[place.folder, place.label] += 1
        self._copies.add(path, verdict, at)
        if form.mode in _GREY_MODES:
            self._grey.append(at)
        is_constant = any(note.kind == "constant" for note in verdict.notes)
        for kind, (applies, _) in _BY_LOOK.items():
            if verdict.measures and applies(verdict.measures) and not is_constant:
                self._looks[kind].append(at)

    def _forgive_half_grey(self) -> None:
        """Have it be odd only where many images end in grey: whoever made them meant it."""
        share, least = _HALF_GREY
        if len(self._half_grey) < max(least, share * (self.images + len(self._half_grey))):
            return
        self.findings = [replace(f, severity="odd") if f.kind == "half_grey" else f for f in self.findings]
        for at in self._half_grey:
            path, verdict = self._journal.read(at)
            if verdict.form:
                self._count(path, verdict.form, verdict, at)

    def _remember(self, path: str, verdict: Verdict) -> None:
        self.judged[self._prefix + path] = tuple(verdict.stamp), verdict.digest

    def finish(self) -> list[DuplicateGroup]:
        """Draw the conclusions that need all the files; return the groups of copies."""
        self._forgive_half_grey()
        if len(self._grey) * _GREYSCALE <= self.images:
            for at in self._grey:
                path, verdict = self._journal.read(at)
                self.note(path, Note("greyscale", "one channel, in a set that has color"))
                self._remember(path, verdict)
        self._judge_looks()
        self._judge_classes()
        for path, note in self._arrangement.notes(self._prefix):
            self.note(path, note)
        groups = list[DuplicateGroup]()
        for whole in self._copies.groups():
            found, noted = dict[DuplicateGroup, None](), dict[tuple[str, Note], None]()  # the same for several folds
            for copied in self._apart(whole):
                files = {path: self._folder.identity(path) for path in copied.verdicts}
                plain = {path: self._folder.plain(path) for path in copied.verdicts}
                group, notes = judge_group(copied, self._layout, self._prefix, files, plain)
                if notes:  # it is no single file under several names
                    found[group] = None
                noted |= dict.fromkeys(notes)
                for path, verdict in copied.verdicts.items():
                    self._remember(path, verdict)
            groups += found
            for path, note in noted:
                self.note(path, note)
        return sorted(groups, key=lambda group: (group.paths, group.kind))

    def _apart(self, copied: Copied) -> Iterator[Copied]:
        """Yield the copies in each of the data sets that the layout tells apart."""
        for paths in map(set, self._layout.apart(copied.verdicts)):
            if len(paths) > 1:
                pairs = {pair: like for pair, like in copied.pairs.items() if paths.issuperset(pair)}
                verdicts = {path: verdict for path, verdict in copied.verdicts.items() if path in paths}
                yield replace(copied, verdicts=verdicts, pairs=pairs)

    def _judge_looks(self) -> None:
        share, least = _LOOKS
        for kind, places in self._looks.items():
            if len(places) > share * self.images >= share * least:
                continue
            for at in places:
                path, verdict = self._journal.read(at)
                self.note(path, Note(kind, _BY_LOOK[kind][1].format(verdict.measures)))
                self._remember(path, verdict)

    def _judge_classes(self) -> None:
        by_split: dict[str, dict[str, int]] = {}
        for (split, name), count in sorted(self.classes.items()):
            if split in self._homes and may_be_class(name):
                by_split.setdefault(split, {})[name] = count
        for split, classes in by_split.items():
            self._judge_balance(split, classes)
        train = next((split for split in by_split if self._homes[split] == "train"), None)
        if train is None:
            return
        numbered = {name for name, count in by_split[train].items() if count}
        for split, classes in by_split.items():
            extra = sorted({name for name, count in classes.items() if count} - numbered)
            if extra:
                names = ", ".join(map(repr, extra[:_NAMED]))
                self.note(split, Note("classes_differ", f"not in {train!r}: {names}"))

    def _judge_balance(self, split: str, classes: dict[str, int]) -> None:
        empty = {finding.path for finding in self.findings if finding.kind == "empty_folder"}
        largest, most = max(classes.items(), key=lambda item: item[1])
        for name, count in classes.items():
            path = f"{split}/{name}".lstrip("/")
            if not count and self._prefix + path not in empty:
                self.note(path, Note("no_images", "no usable image in it"))
            elif count and count * _IMBALANCE <= most:
                self.note(path, Note("imbalance", f"{plural(count, 'image')}; {largest!r} has {most:,}"))
