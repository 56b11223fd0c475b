"""What importing costs: no torch until a name needs it, and never for cleaning data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
EVERY = """
import importlib, pkgutil, ftkit.{0} as room
for module in pkgutil.walk_packages(room.__path__, "ftkit.{0}."):
    importlib.import_module(module.name)
"""


def loaded(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    path = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
    code = path + statement + "\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import ftkit",
        "from ftkit import FtkitError, EarlyStopping",
        "from ftkit import extract_archive",
        "from ftkit import scan_images, restore, ScanReport",
        EVERY.format("_archives"),
        EVERY.format("_images"),
        "import ftkit._cli",
    ],
)
def test_no_torch(statement: str) -> None:
    """What does not need torch does not wait seconds for it."""
    assert not loaded(statement) & {"torch", "torchvision"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Names come when they are used."""
    assert not loaded("import ftkit") & {"torch", "numpy", "PIL", "safetensors", "xxhash", "jinja2", "tqdm"}


def test_torch_comes_with_the_first_name_that_needs_it() -> None:
    """The check above can fail."""
    assert "torch" in loaded("from ftkit import freeze")
