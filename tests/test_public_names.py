"""What is public, and its signatures: a change here is a change for every user.

``public_names.txt`` holds every public name with its parameters or fields. Whoever means to change one writes the list
anew, ``python tests/test_public_names.py``, so that the change is seen in review.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftkit
import ftkit.errors
import ftkit.selection

ADAPTERS = ("ftkit.lightning", "ftkit.transformers")  # each needs its framework

WRITTEN = Path(__file__).with_name("public_names.txt")


def parameters(function: Callable[..., Any]) -> str:
    """Return what a call depends on: the parameters without their types."""
    signature = inspect.signature(function)
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in signature.parameters.values()]
    return str(inspect.Signature(bare))


def members(kind: type) -> Iterator[str]:
    """Yield the public fields, properties and methods of a class; reports are made by functions, so fields do."""
    if dataclasses.is_dataclass(kind):
        yield from (f".{field.name}" for field in dataclasses.fields(kind))
    own = [base for base in kind.__mro__ if base.__module__.startswith("ftkit.")]
    if not is_record(kind) and "__init__" in vars(kind):  # its attributes
        yield from (f".{name}" for name in re.findall(r"self\.(\w+)\b.* = ", inspect.getsource(kind.__init__)))
    for name, value in (pair for base in own for pair in vars(base).items()):
        function = getattr(value, "__func__", value)  # of a class method or a static one
        yield f".{name}{parameters(function) if inspect.isfunction(function) else ''}"


def is_record(thing: object) -> bool:
    """Whether it is what functions return: fields, and what follows from them."""
    return inspect.isclass(thing) and (dataclasses.is_dataclass(thing) or issubclass(thing, tuple))


def lines_of(name: str, thing: Any) -> Iterator[str]:
    """Yield the line of a public name, and one for each public member of a class."""
    if not inspect.isclass(thing):
        yield f"{name}{parameters(thing) if callable(thing) and inspect.isroutine(thing) else ''}"
    elif issubclass(thing, Exception):
        yield f"{name}: {', '.join(base.__name__ for base in thing.__bases__)}"
    else:
        yield name if is_record(thing) or getattr(thing, "_is_protocol", False) else f"{name}{parameters(thing)}"
        yield from sorted({f"    {line}" for line in members(thing) if not line.startswith("._")})


def public_face() -> list[str]:
    """Return every public name and its parameters, as the written list has them."""
    modules = [ftkit, ftkit.errors, ftkit.selection, *map(importlib.import_module, installed())]
    named = [
        (f"{module.__name__}.{name}", getattr(module, name)) for module in modules for name in sorted(module.__all__)
    ]
    return [line for name, thing in named for line in lines_of(name, thing)]


def installed() -> list[str]:
    """Return the adapters whose frameworks are there."""
    return [name for name in ADAPTERS if importlib.util.find_spec(name.removeprefix("ftkit."))]


@pytest.mark.frameworks
def test_the_public_face_is_the_written_one() -> None:
    """Names and parameters change on purpose only."""
    written = WRITTEN.read_text(encoding="utf-8")
    for name in set(ADAPTERS).difference(installed()):
        written = re.sub(rf"^{name}\..*\n(    .*\n)*", "", written, flags=re.MULTILINE)
    assert public_face() == written.splitlines()


def test_all_lists_every_public_name_once() -> None:
    """Sorted, without doubles, and each is really there."""
    assert len(set(ftkit.__all__)) == len(ftkit.__all__)
    assert set(ftkit.__all__) <= set(dir(ftkit))
    assert [name for name in ftkit.__all__ if getattr(ftkit, name).__name__ != name] == []


def test_every_other_module_has_an_underscore_in_its_path() -> None:
    """So a name alone tells what is public."""
    found = {module.name for module in pkgutil.walk_packages(ftkit.__path__, "ftkit.")}
    assert {name for name in found if "._" not in name} == {"ftkit.errors", "ftkit.selection", *ADAPTERS}


def test_every_public_name_is_documented_by_an_example() -> None:
    """Docstrings have an example that the tests run; what a function returns or raises is shown by that function."""
    public = {name: getattr(ftkit, name) for name in ftkit.__all__}
    lacking = {name for name, thing in public.items() if ">>>" not in (inspect.getdoc(thing) or "")}
    shown = {name for name, thing in public.items() if is_record(thing) or thing.__module__ == "ftkit.errors"}
    assert lacking - shown == set()


def test_names_live_in_the_module_that_the_stub_says() -> None:
    """So that a traceback and the documentation agree on where to look."""
    assert [name for name in ftkit.__all__ if not getattr(ftkit, name).__module__.startswith("ftkit.")] == []


if __name__ == "__main__":
    WRITTEN.write_text("\n".join(public_face()) + "\n", encoding="utf-8")
