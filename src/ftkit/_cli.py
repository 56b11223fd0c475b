"""``ftkit summary|inspect|diff|convert|scan|quarantine|restore|repair|extract``: the library from the command line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import getpass
import importlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

import ftkit
from ftkit._reports import Grid, Parts, Report
from ftkit._wording import cause, harmless, plural
from ftkit.errors import FtkitError, did_you_mean

if TYPE_CHECKING:
    from torch import nn


_FOUND, _FAILED = 1, 2
_BOLD, _RED = "1", "1;31"  # as terminals call them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status of the process.

    0 is success; 1 means that ``diff`` found differences, ``scan`` unusable files, or that ``quarantine`` or ``repair``
    could not do all that was asked; 2 is an error, reported in one line on stderr.

    Example:
        >>> import torch
        >>> from ftkit import save_weights
        >>> from ftkit._cli import main
        >>> save_weights(torch.nn.Linear(4, 2), "linear.safetensors")
        >>> main(["diff", "linear.safetensors", "linear.safetensors"])
        linear.safetensors -> linear.safetensors: 2 tensors identical, 0 changed
        0
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    try:
        report, found = options.run(options)
        _print(report, as_json=options.json)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has had enough, as "head" does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FtkitError, OSError) as error:
        sys.stderr.write(f"{_styled('ftkit:', _RED, sys.stderr)} {_in_one_line(error)}\n")
        return _FAILED
    except KeyboardInterrupt:
        return 130  # as shells say it
    return _FOUND if found else 0


def _in_one_line(message: object) -> str:
    return harmless(" ".join(str(message).split()))


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)  # a mistyped word must not be taken for --force

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse what is known; where the parser of a command is left with more, it names its own closest option."""
        found, rest = super().parse_known_args(*arguments, **options)
        if rest:
            names = [name for action in self._actions for name in action.option_strings]
            wrong = next((word for word in rest if word.startswith("-")), "").partition("=")[0]
            self.error(f"unrecognized arguments: {' '.join(rest)}.{did_you_mean(wrong, names, most=1)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        self.exit(
            _FAILED, f"{_styled(f'{self.prog}:', _RED, sys.stderr)} {_in_one_line(message)} (see {self.prog} --help)\n"
        )

    def _check_value(self, action: argparse.Action, value: str) -> None:  # argparse itself suggests names from 3.14 on
        if action.choices is not None and value not in action.choices:
            names = list(action.choices)
            close = did_you_mean(value, names).strip()
            raise argparse.ArgumentError(action, f"expected one of {', '.join(names)}, got {value!r}. {close}".strip())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ftkit", description="The chores of fine-tuning a PyTorch model, from the command line.")
    parser.add_argument("-V", "--version", action="version", version=f"ftkit {ftkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    summary = commands.add_parser("summary", help="show a model's layers and what a training step costs")
    summary.add_argument("model", metavar="MODEL", help="a timm or torchvision model, or your own as module:factory")
    summary.add_argument("size", metavar="SHAPE", nargs="*", type=_size, help="input shape(s), such as 32,3,224,224")
    summary.add_argument("--depth", metavar="N", type=int, help="levels of modules to show (default: what fits)")
    summary.add_argument("--mode", choices=["train", "eval"], help="mode to measure in (default: as built)")
    summary.set_defaults(run=_summary)

    inspect = commands.add_parser("inspect", help="show what a weights file contains, without running its code")
    inspect.add_argument("file", metavar="FILE", help="weights in any format, an index of shards, or a folder")
    inspect.set_defaults(run=_inspect)

    diff = commands.add_parser("diff", help="show how two weights files differ (exit status 1 if they do)")
    diff.add_argument("a", metavar="OLD", help="the earlier file")
    diff.add_argument("b", metavar="NEW", help="the later file")
    diff.set_defaults(run=_diff)

    convert = commands.add_parser("convert", help="write weights in another format, and compare them bit for bit")
    convert.add_argument("source", metavar="FILE", help="weights in any format, an index of shards, or a folder")
    convert.add_argument("target", metavar="TARGET", help="the file to write; its suffix tells the format")
    convert.add_argument("--part", metavar="NAME", help="the part that is meant, such as state_dict; . for all of it")
    convert.add_argument("--force", action="store_true", help="replace TARGET if it exists")
    convert.set_defaults(run=_convert)

    scan = commands.add_parser("scan", help="find broken images, duplicates and leaks; changes nothing")
    _add_scan_options(scan)
    scan.add_argument("--html", metavar="FILE", help="also write an HTML page to review the findings")
    scan.add_argument("--csv", metavar="FILE", help="also write the findings as CSV, whatever the suffix of FILE")
    scan.add_argument("--table", metavar="FILE", help="also write a row for each image, as .csv or .parquet")
    scan.set_defaults(run=_scan)

    quarantine = commands.add_parser("quarantine", help="move unusable files and junk elsewhere; restore undoes it")
    repair = commands.add_parser("repair", help="write repaired copies of odd images; leaves the originals unchanged")
    for command, count, where, run in (
        (quarantine, None, "the folder to move to, outside of the dataset", _quarantine),
        (repair, "?", "the folder for the copies (default: the dataset's, with -repaired)", _repair),
    ):
        _add_scan_options(command)
        command.add_argument("dest", metavar="DEST", nargs=count, help=where)
        command.add_argument("--kinds", metavar="NAMES", type=_names, help="kinds of findings, such as leaks,truncated")
        command.add_argument("--only", metavar="FILE", help="a list of files, as the HTML page saves it")
        _add_dry_run(command)
        command.set_defaults(run=run)

    restore = commands.add_parser("restore", help="move the files of a quarantine back")
    restore.add_argument("manifest", metavar="MANIFEST", help="the quarantine's manifest, or its folder")
    restore.add_argument("--root", metavar="FOLDER", help="the dataset, if it has moved since")
    _add_dry_run(restore)
    restore.set_defaults(run=_restore)

    extract = commands.add_parser("extract", help="unpack an archive into a new folder: all of it, checked, or nothing")
    extract.add_argument("archive", metavar="ARCHIVE", help="zip, tar (also compressed) or 7z")
    extract.add_argument("dest", metavar="FOLDER", help="the folder to create")
    extract.add_argument("--encoding", metavar="NAME", help="encoding of file names that don't state it, such as cp949")
    extract.add_argument("--password", metavar="WORD", nargs="?", const="", help="password; prompts if WORD is omitted")
    extract.add_argument("--strip", action="store_true", help="drop the single folder that contains everything")
    for name, meaning in (
        ("bytes", "unpacked size"),
        ("ratio", "unpacked size as a multiple of the archive's"),
        ("files", "number of files, folders and links"),
    ):
        option, help = f"--max-{name}", f"maximum {meaning}, against archive bombs"
        extract.add_argument(option, metavar="N", type=float, default=argparse.SUPPRESS, help=help)
    extract.set_defaults(run=_extract)

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print the report as JSON")
    _offer_completion(parser, commands.choices.values())
    return parser


def _add_scan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("root", metavar="FOLDER", help="the dataset, with class folders or splits in it")
    command.add_argument("--workers", metavar="N", type=int, help="worker processes (default: one per core)")
    command.add_argument("--timeout", metavar="SECONDS", type=float, default=10.0, help="limit per file (default: 10)")
    command.add_argument("--splits", metavar="NAMES", type=_names, help="folders to treat as splits, such as train,val")
    command.add_argument("--exact", action="store_true", help="look for exact duplicates only")
    command.add_argument("--journal", metavar="FILE", help="keep a journal in FILE and resume from it")
    command.add_argument("--allow-empty", action="store_true", help="accept a folder without any file")


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="only show what would be done")


def _offer_completion(parser: argparse.ArgumentParser, commands: Iterable[argparse.ArgumentParser]) -> None:
    """Print a script for a shell: by shtab, if that is installed."""
    option, help = "--print-completion", "print a script that completes commands and options in a shell"
    try:
        import shtab  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        parser.add_argument(option, metavar="SHELL", action=_NoCompletion, help=f"{help} (needs ftkit[completion])")
        return
    shtab.add_argument_to(parser, option, help=help)
    for command in commands:
        for action in command._actions:
            if action.metavar in {"FOLDER", "DEST"}:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # where shtab looks
            elif action.metavar in {"FILE", "OLD", "NEW", "ARCHIVE", "TARGET", "MANIFEST"}:
                action.complete = shtab.FILE  # type: ignore[attr-defined]


class _NoCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("completion needs shtab: pip install 'ftkit[completion]'")


def _styled(text: str, style: str, stream: TextIO) -> str:
    """The text as a terminal shows it; plain in a file, in a pipe, and if NO_COLOR is set (no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt"
    return text if plain or not stream.isatty() else f"\x1b[{style}m{text}\x1b[0m"


def _size(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a shape such as 32,3,224,224, got {text!r}") from None


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _print(report: Report, *, as_json: bool) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not fit the terminal
    if as_json:
        sys.stdout.write(f"{report.to_json()}\n")
        return
    first, *rest = str(report).split("\n")
    sys.stdout.write("\n".join([_styled(first, _BOLD, sys.stdout), *rest, ""]))


# ---- the commands: each returns its report, and whether the exit status is 1


def _summary(options: argparse.Namespace) -> tuple[Report, bool]:
    model = _model(options.model)
    return ftkit.summary(model, options.size or None, depth=options.depth, mode=options.mode), False


def _model(name: str) -> nn.Module:
    """Build ``module:factory``, or a model of timm or torchvision, with random weights."""
    from torch import nn

    module_name, colon, factory_name = name.partition(":")
    if not colon:
        return _listed_model(name)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        factory = getattr(module, factory_name, None)
        if factory is None:
            close = did_you_mean(factory_name, dir(module))
            raise FtkitError(f"{module_name} has no attribute {factory_name!r}.{close}")
        model: nn.Module = factory if isinstance(factory, nn.Module) else factory()
    except FtkitError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        raise FtkitError(f"{name} could not be built: {cause(error)}.") from error
    return model


def _listed_model(name: str) -> nn.Module:
    known: list[str] = []
    with contextlib.suppress(ImportError):
        import timm

        known += timm.list_models()
        if timm.is_model(name):
            return timm.create_model(name)
    with contextlib.suppress(ImportError):
        from torchvision import models  # type: ignore[import-untyped, unused-ignore]

        known += models.list_models()
        if name in known:
            return cast("nn.Module", models.get_model(name))
    raise FtkitError(
        f"No timm or torchvision model (if installed) is called {name!r}.{did_you_mean(name, known)} "
        "Name your own model as module:factory."
    )


def _inspect(options: argparse.Namespace) -> tuple[Report, bool]:
    return ftkit.inspect_checkpoint(options.file), False


def _diff(options: argparse.Namespace) -> tuple[Report, bool]:
    diff = ftkit.diff_checkpoints(options.a, options.b)
    return diff, bool(diff)


def _convert(options: argparse.Namespace) -> tuple[Report, bool]:
    from ftkit._weights.convert import convert

    return convert(options.source, options.target, part=options.part, force=options.force), False


def _scanned(options: argparse.Namespace) -> ftkit.ScanReport:
    return ftkit.scan_images(
        options.root,
        workers=options.workers,
        near_duplicates=not options.exact,
        timeout=options.timeout,
        splits=options.splits,
        journal=options.journal,
        allow_empty=options.allow_empty,
    )


def _scan(options: argparse.Namespace) -> tuple[Report, bool]:
    from ftkit._images.table import outside

    suffix = Path(options.table or "").suffix.lower()
    if options.table and suffix not in (".csv", ".parquet"):
        raise FtkitError(f"--table must name a .csv or .parquet file, not {options.table!r}.")
    written = {"--html": options.html, "--csv": options.csv, "--table": options.table}
    places: dict[str, str] = {}
    for option, path in written.items():  # before the scan, which may take long
        outside(options.root, path)
        other = places.setdefault(os.path.realpath(path), option) if path else option
        if other != option:
            raise FtkitError(f"{other} and {option} both name {path!r}: the second would replace the first.")
    report = _scanned(options)
    if options.html:
        report.to_html(options.html)
    if options.csv:
        report.to_csv(options.csv)
    if options.table:
        write = report.table.to_csv if suffix == ".csv" else report.table.to_parquet
        write(options.table)
    return report, bool(report.unusable)


def _quarantine(options: argparse.Namespace) -> tuple[Report, bool]:
    from ftkit._images.folders import GONE

    done = _scanned(options).quarantine(options.dest, options.kinds, only=options.only, dry_run=options.dry_run)
    return done, any(why != GONE for _, why in done.left)


def _repair(options: argparse.Namespace) -> tuple[Report, bool]:
    done = _scanned(options).repair(options.dest, options.kinds, only=options.only, dry_run=options.dry_run)
    return done, bool(done.failed)


@dataclasses.dataclass(frozen=True, repr=False)
class _Restored(Report):
    """The files that are back."""

    files: list[str]
    dry_run: bool

    def _parts(self) -> Parts:
        yield f"{plural(len(self.files), 'file')} {'would be restored' if self.dry_run else 'restored'}"
        yield Grid([(file,) for file in self.files])


def _restore(options: argparse.Namespace) -> tuple[Report, bool]:
    files = ftkit.restore(options.manifest, root=options.root, dry_run=options.dry_run)
    return _Restored(files, options.dry_run), False


def _extract(options: argparse.Namespace) -> tuple[Report, bool]:
    limits = {name: value for name, value in vars(options).items() if name.startswith("max_")}
    password = getpass.getpass() if options.password == "" else options.password
    report = ftkit.extract_archive(
        options.archive, options.dest, encoding=options.encoding, password=password, strip=options.strip, **limits
    )
    return report, False
