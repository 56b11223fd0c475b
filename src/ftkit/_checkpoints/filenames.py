"""File names of checkpoints: templates with the epoch, the step and the metrics."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Mapping
from typing import Any

from ftkit._formats import CHECKPOINT_SUFFIXES
from ftkit.errors import FtkitError, did_you_mean


def fields(template: str) -> list[tuple[str, str | None, str]]:
    """Split a template into literal texts, each with the name of the field that follows and its format.

    Raises:
        FtkitError: It is not a valid template, or has a field without a name.
    """
    try:
        parsed = [(text, name, form or "") for text, name, form, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise FtkitError(
            f"filename={template!r} is not a valid template ({error}). Write it like '{{epoch}}-{{loss:.4f}}'."
        ) from error
    if any(name == "" for _, name, _ in parsed):
        raise FtkitError(f"filename={template!r} has a field without a name. Write it like '{{epoch}}-{{loss:.4f}}'.")
    return parsed


def fill_in(template: str, values: Mapping[str, Any]) -> str:
    """Fill in a template; the result is a safe name on any file system."""
    there = {name: value for name, value in values.items() if value is not None}
    pieces = []
    for text, name, form in fields(template):
        pieces.append(text)
        if name is None:
            continue
        if name not in there:
            raise FtkitError(
                f"filename={template!r} needs {name!r}; available: {', '.join(there)}.{did_you_mean(name, there)}"
            )
        try:
            pieces.append(format(there[name], form))
        except ValueError as error:
            raise FtkitError(f"filename={template!r} can't format {name}={there[name]!r}: {error}.") from error
    return safe("".join(pieces))


def name_for(template: str | None, value: float | None, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return a checkpoint's name and its extension.

    Args:
        template: Filled in, if it is not None.
        value: The metric to name it by otherwise.
        facts: ``epoch``, ``step`` and ``metrics``; a metric with one of these names does not hide them.
    """
    if template is not None:
        own = {name: facts[name] for name in ("epoch", "step") if facts[name] is not None}
        name = fill_in(template, {**own, **facts["metrics"], **own})
    else:
        detail = "" if value is None else f"-{value:.4f}"
        if not detail and facts["step"] is not None:
            detail = f"-step{facts['step']}"
        name = safe(f"{facts['epoch']}{detail}")
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return (stem, suffix) if suffix in CHECKPOINT_SUFFIXES else (name, ".safetensors")


def safe(name: str) -> str:
    """Return a name that any file system accepts, and that contains no folder."""
    name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).encode(errors="replace")[:200].decode(errors="ignore")
    name = name.strip(" .") or "_"
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    return f"_{name}" if reserved else name
