#!/usr/bin/env -S uv run --script

# /// script
# dependencies = ["nox>=2025.2.9"]
# ///

"""What can be run on this repository: `nox -l` lists it.

torch is several gigabytes, so every session that needs it runs in one shared environment,
``.nox/torch``; only the lowest declared versions have one of their own, and other frameworks one on top of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BIN = "Scripts" if os.name == "nt" else "bin"

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = True


def groups(*names: str) -> list[str]:
    """Return the requirements of dependency groups of pyproject.toml."""
    return list(nox.project.dependency_groups(PROJECT, *names))


class Environment:
    """A virtual environment that several sessions share: made once, brought up to date by each."""

    def __init__(
        self, session: nox.Session, *requirements: str, name: str = "torch", over: Environment | None = None
    ) -> None:
        self.session = session
        self.folder = ROOT / ".nox" / name
        python = self.folder / BIN / ("python.exe" if os.name == "nt" else "python")
        if not python.exists():
            session.run(sys.executable, "-m", "venv", str(self.folder), external=True)
        self.python = str(python)
        if over is not None:  # what is there need not be installed again
            query = "import sysconfig; print(sysconfig.get_path('purelib'))"
            ours, theirs = (
                subprocess.run([env.python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
                for env in (self, over)
            )
            Path(ours, "over.pth").write_text(f"import site; site.addsitedir({theirs!r})\n", encoding="utf-8")
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)

    def run(self, *arguments: str, **env: str) -> None:
        """Run the environment's Python."""
        self.session.run(self.python, *arguments, env=env, external=True)


def with_torch(session: nox.Session, *names: str) -> Environment:
    """Return the shared environment with ftkit in it, editable, and the groups named."""
    return Environment(session, "--editable", ".", *groups(*names))


def with_frameworks(session: nox.Session, *names: str) -> Environment:
    """Return an environment over the shared one, with the frameworks that ftkit has adapters for."""
    return Environment(session, *groups("frameworks", *names), name="frameworks", over=with_torch(session, "test"))


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Fine-tune a pretrained network from a dirty zip to a shared result (examples/finetune.py)."""
    with_torch(session, "demo").run("examples/finetune.py", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests and the examples of the docstrings."""
    with_torch(session, "test").run("-m", "pytest", *session.posargs)


@nox.session(venv_backend="none", default=False)
def zoo(session: nox.Session) -> None:
    """Run the slow sweeps over whole model collections too."""
    with_torch(session, "test", "zoo", "zoo-more").run("-m", "pytest", "-m", "slow or not slow", *session.posargs)


@nox.session(venv_backend="none", default=False)
def frameworks(session: nox.Session) -> None:
    """Run what needs other frameworks, and the code of the docs, in an environment over the shared one."""
    with_frameworks(session).run("-m", "pytest", "-m", "frameworks", *(session.posargs or ["tests"]))


@nox.session(venv_backend="none", default=False)
def attacks(session: nox.Session) -> None:
    """Try every hostile file, then search for new ones: `nox -s attacks -- 3600` for an hour, into .nox/attacks."""
    env = with_torch(session, "test")
    env.run("-m", "pytest", "-m", "slow or not slow", "tests/attacks")
    seconds = session.posargs[0] if session.posargs else "600"
    env.run("-m", "tests.attacks.fuzz", seconds, str(ROOT / ".nox/attacks"), PYTHONPATH=str(ROOT))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style (ruff) and the one-way imports (import-linter)."""
    session.install(*groups("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", env={"PYTHONPATH": "src"})


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the types, and that everything public has one."""
    env = with_frameworks(session, "types")
    env.run("-m", "mypy")
    path = os.pathsep.join([str(env.folder / BIN), os.environ["PATH"]])  # it looks at the first python there
    env.run("-m", "basedpyright", "--verifytypes", "ftkit", "--ignoreexternal", PATH=path)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build the documentation; any warning is an error."""
    env = with_torch(session, "docs")
    env.run("-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    session.log(f"Open {ROOT / 'docs/_build/html/index.html'}")


@nox.session(venv_backend="none", default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks: `nox -s bench -- freezing` for one of them."""
    env = with_torch(session, "test", "bench")
    names = session.posargs or sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    for name in names:
        env.run(f"benchmarks/{name}.py")


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, look at what is in it, and import every public name from it: `nox -s build -- dist` keeps it."""
    session.install("build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--outdir", folder)
        (wheel,) = Path(folder).glob("*.whl")
        tracked = subprocess.run(
            ["git", "ls-files", "src/ftkit"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
        expected = {path.removeprefix("src/") for path in tracked}
        with zipfile.ZipFile(wheel) as archive:
            found = {name for name in archive.namelist() if ".dist-info/" not in name}
            archive.extractall(Path(folder, "unpacked"))
        if found != expected:
            session.error(f"The wheel lacks {sorted(expected - found)} and has too much: {sorted(found - expected)}")
        check = "import ftkit; [getattr(ftkit, name) for name in ftkit.__all__]; print(ftkit.__file__)"
        with_torch(session).run("-c", check, PYTHONPATH=str(Path(folder, "unpacked")))
        for kept in session.posargs:
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("unpacked"), dirs_exist_ok=True)


@nox.session(venv_backend="none", default=False)
def min_versions(session: nox.Session) -> None:
    """Run the tests on the lowest versions that pyproject.toml allows."""
    declared = [*PROJECT["project"]["dependencies"], *groups("test")]
    lowest = [re.sub(r">=", "==", requirement) for requirement in declared]
    env = Environment(session, *lowest, name="lowest")
    env.run("-m", "pip", "install", "--quiet", "--no-deps", "--editable", ".")
    env.run("-m", "pytest", *session.posargs)


@nox.session(venv_backend="none", default=False)
def newest(session: nox.Session) -> None:
    """Run the tests on the newest versions of everything; what follows `--` says where else pip looks for torch."""
    name = "elsewhere" if session.posargs else "newest"
    env = Environment(session, "--upgrade", *session.posargs, "torch", "torchvision", name=name)
    env.run("-m", "pip", "install", "--quiet", "--upgrade", "--editable", ".", *groups("test"))
    env.run("-m", "pytest")


if __name__ == "__main__":
    nox.main()
