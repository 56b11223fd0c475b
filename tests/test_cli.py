"""Tests for ``ftkit._cli``: the library's calls from a shell, with errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import ftkit
from ftkit import save_weights
from ftkit._cli import _parser, main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a way to run a command in an empty folder: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = int(exit.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Return a zip of two good pictures and a cut one."""
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for number, name in enumerate(["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"]):
            picture = tmp_path / "picture.jpg"
            Image.radial_gradient("L").rotate(30 * number).resize((64, 64)).convert("RGB").save(picture)
            data = picture.read_bytes()
            archive.writestr(f"pets/{name}", data[:500] if "dogs" in name else data)
    return tmp_path / "pets.zip"


def test_extract(run: Run, pets: Path, tmp_path: Path) -> None:
    """An archive is unpacked, and the report printed."""
    status, out, err = run("extract", "pets.zip", "data", "--strip")
    assert (status, err) == (0, "")
    assert out.startswith("pets.zip (zip) -> data: 3 files")
    assert (tmp_path / "data/cats/1.jpg").exists()


def test_extract_json_and_limits(run: Run, pets: Path) -> None:
    """The report as JSON, and the limits by their names."""
    status, out, _ = run("extract", "pets.zip", "data", "--json", "--max-files", "6", "--max-ratio", "1.5")
    assert status == 0
    assert json.loads(out)["files"] == 3
    status, out, err = run("extract", "pets.zip", "more", "--max-files", "5")
    assert (status, out) == (2, "")
    assert "raise max_files" in err


def test_extract_asks_for_the_password(run: Run, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that shall not stand in the shell's history is asked for."""
    asked: list[bool] = []
    monkeypatch.setattr("getpass.getpass", lambda: asked.append(True) or "secret")
    assert run("extract", "pets.zip", "data", "--password")[0] == 0
    assert asked == [True]


def test_scan(run: Run, pets: Path, tmp_path: Path) -> None:
    """Unusable files are told, and give the status 1; a clean folder gives 0."""
    run("extract", "pets.zip", "data", "--strip")
    status, out, _ = run("scan", "data", "--workers", "1", "--html", "report.html", "--csv", "report.csv")
    assert status == 1
    assert "1 unusable" in out
    assert "<html" in (tmp_path / "report.html").read_text()
    assert "dogs/1.jpg" in (tmp_path / "report.csv").read_text()
    shutil.rmtree(tmp_path / "data" / "dogs")
    status, out, _ = run("scan", "data", "--workers", "1", "--exact", "--json")
    assert status == 0
    assert json.loads(out)["images"] == 2


def test_summary_of_listed_models(run: Run) -> None:
    """Names of timm and torchvision, with and without an input."""
    status, out, _ = run("summary", "resnet18", "2,3,64,64", "--depth", "1")
    assert status == 0
    assert "layer4" in out
    status, out, _ = run("summary", "shufflenet_v2_x0_5", "--json")  # torchvision's alone
    assert json.loads(out)["total_params"] == 1_366_792


def test_summary_of_own_models(run: Run, tmp_path: Path) -> None:
    """A function, a class or a model of the user's own module in the current folder."""
    code = (
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(4, 2)\n"
        "def make(): return Net()\n"
        "ready = Net()\n"
        "def broken(): raise RuntimeError('no data\\nfor it')\n"
        "def other(): return 3\n"
    )
    (tmp_path / "my_own_models.py").write_text(code)
    for name in ("Net", "make", "ready"):
        status, out, _ = run("summary", f"my_own_models:{name}", "1,4", "--json")
        assert status == 0
        assert json.loads(out)["total_params"] == 10
    assert "RuntimeError: no data for it" in run("summary", "my_own_models:broken")[2]
    assert "Did you mean 'make'" in run("summary", "my_own_models:maker")[2]
    assert "this is 3" in run("summary", "my_own_models:other")[2]


def test_inspect_and_diff(run: Run, tmp_path: Path) -> None:
    """Files of weights are told and compared; a difference gives the status 1, as for diff."""
    model = torch.nn.Linear(4, 2)
    save_weights(model, tmp_path / "a.safetensors")
    torch.nn.init.zeros_(model.bias)
    save_weights(model, tmp_path / "b.safetensors")
    status, out, _ = run("inspect", "a.safetensors")
    assert status == 0
    assert "2 tensors" in out
    status, out, _ = run("diff", "a.safetensors", "b.safetensors")
    assert status == 1
    assert "bias" in out
    assert run("diff", "a.safetensors", "a.safetensors")[0] == 0


def test_inspect_and_diff_as_json(run: Run, tmp_path: Path) -> None:
    """The same as JSON that any reader takes: a bias that was zero grew by no ratio that JSON could hold."""
    whole = {"w": torch.ones(2, 3), "b": torch.zeros(2), "n": torch.tensor(1)}
    torch.save(whole | {"epoch": 3, "best": float("nan")}, tmp_path / "a.pt")
    torch.save(whole | {"b": torch.ones(2), "n": torch.tensor(1.0)}, tmp_path / "b.pt")
    status, out, _ = run("inspect", "a.pt", "--json")
    assert status == 0
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["tensors"]["w"] == {"shape": [2, 3], "dtype": "float32"}
    assert told["metadata"] == {"epoch": 3, "best": None}
    status, out, _ = run("diff", "a.pt", "b.pt", "--json")
    assert status == 1
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["changed"] == [{"name": "b", "largest": 1.0, "relative": None}]
    assert told["reshaped"] == [{"name": "n", "was": "int64 []", "is": "float32 []"}]
    assert told["same"] == ["w"]


def test_convert(run: Run, tmp_path: Path) -> None:
    """The weights of a training checkpoint as safetensors; an existing file is replaced only by force."""
    model = torch.nn.Linear(4, 2)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    status, out, err = run("convert", "last.ckpt", "linear.safetensors")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "last.ckpt -> linear.safetensors: 2 tensors, 40 B, the same bit for bit"
    fresh = torch.nn.Linear(4, 2)
    ftkit.load_weights(fresh, "linear.safetensors")
    assert torch.equal(fresh.weight, model.weight)
    assert "--force" in run("convert", "last.ckpt", "linear.safetensors")[2]
    status, _, err = run("convert", "last.ckpt", "linear.safetensors", "--forc")
    assert (status, "unrecognized arguments: --forc" in err) == (2, True)
    status, out, _ = run("convert", "last.ckpt", "linear.safetensors", "--part", "state_dict", "--force", "--json")
    assert (status, json.loads(out)["left"]) == (0, ["epoch"])


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudoterminal")
@pytest.mark.parametrize("no_color", ["", "1"])
def test_colors_are_for_terminals_that_want_them(tmp_path: Path, no_color: str) -> None:
    """A headline in bold and an error in red; plain in a pipe, and where NO_COLOR is set."""
    save_weights(torch.nn.Linear(4, 2), tmp_path / "a.safetensors")
    code = "import sys; from ftkit._cli import main; main(['inspect', 'a.safetensors']); main(['inspect', 'none.pt'])"
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert said.startswith("a.safetensors:" if no_color else "\x1b[1ma.safetensors:")
    assert ("\x1b[1;31mftkit:\x1b[0m" in said) is not bool(no_color)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr


def test_completion(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that bash accepts, with every command; without shtab, an error that says what to install."""
    pytest.importorskip("shtab")
    status, script, _ = run("--print-completion", "bash")
    assert status == 0
    assert "convert" in script
    assert "--print-completion" in script
    if shell := shutil.which("bash"):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    monkeypatch.setitem(sys.modules, "shtab", None)
    status, _, err = run("--print-completion", "bash")
    assert status == 2
    assert "pip install 'ftkit[completion]'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["extract", "missing.zip", "data"],
        ["scan", "missing"],
        ["inspect", "missing.safetensors"],
        ["diff", "missing.safetensors", "missing.safetensors"],
        ["convert", "missing.pt", "new.safetensors"],
        ["summary", "resnet1818"],
        ["summary", "no.such.module:make"],
        ["summary", "resnet18", "2,5,64,64"],
        ["summary", "resnet18", "1,x"],
        ["fly"],
        ["quarantine", "missing", "aside"],
        ["repair", "missing"],
        ["restore", "missing"],
        ["summary", "resnet18", "--mode", "trane"],
    ],
    ids=" ".join,
)
def test_errors_take_one_line(run: Run, arguments: list[str]) -> None:
    """Whatever goes wrong is told in one line on stderr, with the status 2 and no traceback."""
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("ftkit")
    assert err.count("\n") == 1


def test_an_empty_folder(run: Run, tmp_path: Path) -> None:
    """It is an error that names the option for a shell, too."""
    (tmp_path / "empty").mkdir()
    status, _, err = run("scan", "empty", "--workers", "1")
    assert status == 2
    assert "--allow-empty" in err
    assert run("scan", "empty", "--workers", "1", "--allow-empty")[0] == 0


def test_no_command_prints_help(run: Run) -> None:
    """Bare ``ftkit`` says what there is, and so does ``python -m ftkit``."""
    status, out, err = run()
    assert (status, err) == (0, "")
    for command in ("summary", "inspect", "diff", "convert", "scan", "quarantine", "repair", "restore", "extract"):
        assert f"    {command}  " in out
    done = subprocess.run([sys.executable, "-m", "ftkit", "-V"], capture_output=True, text=True, check=True)
    assert done.stdout == f"ftkit {ftkit.__version__}\n"


def test_misspelled_commands_and_choices(run: Run) -> None:
    """The closest name is offered."""
    assert "Did you mean 'scan'?" in run("scna", "data")[2]
    assert "Did you mean 'train'?" in run("summary", "resnet18", "--mode", "trane")[2]


def test_every_argument_is_described(run: Run) -> None:
    """No argument of any command comes without a word of help."""
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        assert [action.dest for action in command._actions if not action.help] == [], name


def test_as_a_program(pets: Path, tmp_path: Path) -> None:
    """The installed call: no torch for archives, and a reader that stops early is no error."""
    code = "import sys; from ftkit._cli import main; status = main(); sys.exit(9 if 'torch' in sys.modules else status)"
    command = [sys.executable, "-c", code, "extract", "pets.zip", "data"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reader, writer = os.pipe()
    os.close(reader)
    command[-1] = "more"
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_names_that_a_terminal_can_not_show(pets: Path, tmp_path: Path, more: list[str]) -> None:
    """On an ASCII terminal they are escaped, as JSON has it where it is JSON; that is no error."""
    code = "import sys; from ftkit._cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "extract", "pets.zip", "é 사진", *more],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    if more:
        assert json.loads(done.stdout)["dest"] == "é 사진"
    else:
        assert rb"\xe9 \uc0ac\uc9c4" in done.stdout


def test_quarantine_and_restore(run: Run, pets: Path, tmp_path: Path) -> None:
    """A dry run shows what would move; what has moved comes back."""
    run("extract", "pets.zip", "data", "--strip")
    common = ("data", "aside", "--workers", "1")
    status, out, err = run("quarantine", *common, "--dry-run")
    assert (status, err) == (0, "")
    assert "1 file would be moved" in out
    assert "dogs/1.jpg" in out
    assert not (tmp_path / "aside").exists()
    assert run("quarantine", *common, "--kinds", "duplicates,leaks")[1].startswith("0 files moved")
    status, out, _ = run("quarantine", *common, "--json")
    assert (status, json.loads(out)["moved"]) == (0, 1)
    assert not (tmp_path / "data/dogs").exists()
    assert run("quarantine", *common)[:2] == (0, f"0 files moved from {tmp_path / 'data'}; nothing was written\n")
    status, out, _ = run("restore", "aside", "--dry-run")
    assert (status, out.splitlines()[0]) == (0, "1 file would be restored")
    status, out, _ = run("restore", "aside/manifest.json", "--json")
    assert (status, json.loads(out)["files"]) == (0, [str(tmp_path / "data/dogs/1.jpg")])
    assert run("restore", "aside")[:2] == (0, "0 files restored\n")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert "root=" in run("restore", "aside")[2]
    assert run("restore", "aside", "--root", "moved")[0] == 0


def test_a_list_of_what_to_move(run: Run, pets: Path, tmp_path: Path) -> None:
    """As the page saves it; a path that the scan has nothing to say about is an error; what can't move gives 1."""
    run("extract", "pets.zip", "data", "--strip")
    (tmp_path / "data/dogs").rename(tmp_path / "data/two\ndogs")
    (tmp_path / "list.txt").write_text(json.dumps("two\ndogs/1.jpg") + "\n")
    status, out, _ = run("quarantine", "data", "aside", "--workers", "1", "--only", "list.txt", "--dry-run", "--json")
    assert (status, list(json.loads(out)["files"])) == (0, ["two\ndogs/1.jpg"])
    (tmp_path / "list.txt").write_text("dogs/1.jpg\n")
    status, out, err = run("quarantine", "data", "aside", "--workers", "1", "--only", "list.txt")
    assert (status, out) == (2, "")
    assert "no finding about 'dogs/1.jpg'" in err
    (tmp_path / "data/link").symlink_to("two\ndogs/1.jpg")
    assert run("quarantine", "data", "aside", "--workers", "1", "--kinds", "truncated")[0] == 1
    (tmp_path / "data/1.jpg").write_bytes((tmp_path / "data/cats/1.jpg").read_bytes())
    assert run("quarantine", "data", "aside", "--workers", "1", "--kinds", "beside_classes")[0] == 0


def test_repair(run: Run, pets: Path, tmp_path: Path) -> None:
    """Copies beside the data set, or where asked; what can't be mended gives the status 1."""
    run("extract", "pets.zip", "data", "--strip")
    (tmp_path / "data/cats/1.jpg").rename(tmp_path / "data/cats/1.png")
    status, out, _ = run("repair", "data", "--workers", "1", "--dry-run")
    assert status == 0
    assert "1 repaired copy would be written" in out
    assert not (tmp_path / "data-repaired").exists()
    assert run("repair", "data", "--workers", "1")[0] == 0
    assert (tmp_path / "data-repaired/cats/1.jpg").is_file()
    status, out, _ = run("repair", "data", "mended", "--workers", "1", "--kinds", "truncated", "--json")
    assert (status, list(json.loads(out)["failed"])) == (1, ["data/dogs/1.jpg"])


def test_the_table_of_a_scan(run: Run, pets: Path, tmp_path: Path) -> None:
    """By the file's extension; another one is an error before the scan."""
    run("extract", "pets.zip", "data", "--strip")
    run("scan", "data", "--workers", "1", "--table", "table.csv")
    assert (tmp_path / "table.csv").read_text().startswith("path,class,split,width")
    status, _, err = run("scan", "data", "--table", "table.xlsx")
    assert status == 2
    assert "must name a .csv or .parquet file" in err


def test_two_outputs_are_two_files(run: Run, pets: Path, tmp_path: Path) -> None:
    """By whatever spelling; that is said before the scan."""
    run("extract", "pets.zip", "data", "--strip")
    status, out, err = run("scan", "data", "--csv", "a.csv", "--table", "./a.csv", "--workers", "0")
    assert (status, out) == (2, "")
    assert "--csv and --table both name './a.csv'" in err


def test_no_report_lands_in_the_data_set(run: Run, pets: Path, tmp_path: Path) -> None:
    """That is said before the scan, not after it."""
    run("extract", "pets.zip", "data", "--strip")
    for option, name in (("--table", "new.csv"), ("--csv", "cats/1.jpg"), ("--html", "report.html")):
        status, out, err = run("scan", "data", option, f"data/{name}", "--workers", "0")  # which a scan would refuse
        assert (status, out) == (2, "")
        assert "the data set data. Choose a path outside, such as" in err


def test_the_status_says_whether_all_is_done(run: Run, pets: Path, tmp_path: Path) -> None:
    """What is done already is done: 0. What had to stay, or could not be written, gives 1; what is lost, 2."""
    run("extract", "pets.zip", "data", "--strip")
    (tmp_path / "list.txt").write_text("dogs/1.jpg\n")
    move = ("quarantine", "data", "aside", "--workers", "1", "--only", "list.txt")
    assert run(*move)[0] == 0
    status, out, _ = run(*move)
    assert (status, "gone already" in out) == (0, True)
    assert run(*move, "--dry-run")[0] == 0
    assert run("restore", "aside")[0] == 0
    assert run("restore", "aside")[:2] == (0, "0 files restored\n")
    (tmp_path / "data/link").symlink_to("dogs/1.jpg")
    assert run(*move, "--dry-run")[0] == 1
    assert run(*move)[0] == 1
    (tmp_path / "data/link").unlink()
    assert run(*move)[0] == 0
    (tmp_path / "aside/manifest.json").unlink()  # of the first quarantine
    (tmp_path / "aside/files-2/dogs/1.jpg").unlink()
    for more in ([], ["--dry-run"]):
        status, out, err = run("restore", "aside", *more)
        assert (status, out, "1 can't be found" in err) == (2, "", True)
    for status in (0, 0):
        assert run("repair", "data", "mended", "--workers", "1")[0] == status
    (tmp_path / "data/cats/1.jpg").rename(tmp_path / "data/cats/1.png")
    for status in (0, 1):  # a copy that is there may be of something else
        assert run("repair", "data", "mended", "--workers", "1")[0] == status


@pytest.mark.parametrize("command", ["", "summary", "inspect", "diff", "convert", "scan", "quarantine", "restore"])
def test_misspelled_options_get_the_closest_one(run: Run, command: str) -> None:
    """Of the command that they were given to."""
    parser = _parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    known = commands[command] if command else parser
    needed = ["x" for action in known._actions if not action.option_strings and action.nargs is None and command]
    for option in (name for action in known._actions for name in action.option_strings if name.startswith("--")):
        for wrong in (f"{option}{option[-1]}", f"{option}{option[-1]}=3"):
            status, out, err = run(*[command] * bool(command), *needed, wrong)
            assert (status, out) == (2, "")
            assert f"unrecognized arguments: {wrong}. Did you mean '{option}'?" in err
            assert f"(see {known.prog} --help)" in err


def test_an_argument_too_many(run: Run) -> None:
    """No option is close to it."""
    status, _, err = run("extract", "pets.zip", "data", "--stripp", "--enc", "utf-8")
    assert (status, "--stripp --enc utf-8. Did you mean '--strip'?" in err) == (2, True)
    assert "unrecognized arguments: c. (see ftkit diff --help)" in run("diff", "a", "b", "c")[2]
