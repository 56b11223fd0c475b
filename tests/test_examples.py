"""The examples for each framework do what they say: killed and resumed, and rebuilt from a delta, bit for bit."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "frameworks"
PAGES = FOLDER.parents[1] / "docs" / "frameworks"
OUTPUT = re.compile(r"^```(?:text|console\n\$ .*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name != "parts.py")

pytestmark = [pytest.mark.slow, pytest.mark.frameworks]


def needs(path: Path) -> set[str]:
    """Return the packages that an example imports, or looks for by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "find_spec":
            found.add(ast.literal_eval(node.args[0]))
    return {name.partition(".")[0] for name in found} - {"parts"}


def run(folder: Path, path: Path, *launcher: str) -> str:
    """Run an example in a folder of its own, on one thread; return what it printed."""
    if absent := [name for name in sorted(needs(path)) if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(absent)}")
    source = str(FOLDER.parents[1] / "src")
    done = subprocess.run(
        [sys.executable, *launcher, str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "NOT" not in done.stdout
    assert list(folder.iterdir()) == []  # what it writes lies in a temporary folder
    return done.stdout


def test_there_are_examples() -> None:
    """None is left out because the folder was renamed."""
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_resumes_and_is_shared(path: Path, tmp_path: Path) -> None:
    """A kill loses nothing but the unfinished epoch, and the delta rebuilds the model."""
    said = run(tmp_path, path)
    assert "resumed: the same weights" in said
    assert "pretrained network + delta: the same weights" in said
    pages = [page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")]
    shown = [block for page in pages if path.name in page for block in OUTPUT.findall(page)]
    assert shown
    assert [line for block in shown for line in block.splitlines() if line not in said.splitlines()] == []


@pytest.mark.filterwarnings("ignore")  # fastai's own
def test_fastai_saves_no_epoch_that_it_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through all epochs before ``start_epoch``: a second kill in these must find what the first one left."""
    pytest.importorskip("fastai")
    monkeypatch.syspath_prepend(FOLDER)
    parts, example = importlib.import_module("parts"), importlib.import_module("with_fastai")

    def killed(pictures: int) -> dict[Path, bytes]:
        with pytest.raises(parts.PowerCut):
            example.train(tmp_path, parts.Pictures(power=pictures))
        return {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}

    assert killed(24 * 3 + 12) == killed(0)


def test_the_notebook_runs(tmp_path: Path) -> None:
    """From top to bottom, with the outputs that it shows at its end."""
    notebook = json.loads((FOLDER.parent / "fine_tuning.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    script = tmp_path / "notebook.py"
    script.write_text(re.sub(r"^( *)%pip .*", r"\1raise", code, flags=re.MULTILINE), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    said = run(tmp_path / "empty", script)
    assert "the power failed\nepoch 2:" in said
    assert said.endswith("the same outputs, bit for bit: True\n")
    assert all(not cell["outputs"] or cell["outputs"][0]["name"] == "stdout" for cell in cells)


def test_accelerate_on_two_processes(tmp_path: Path) -> None:
    """What thaws is averaged between processes, so each of them ends with the same weights."""
    said = run(
        tmp_path, FOLDER / "with_accelerate.py", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"
    )
    assert said.count("killed and resumed: the same weights") == 2
