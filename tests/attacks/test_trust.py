"""Trust: what runs, opens or imports is never admitted, whoever asks for it and by whatever name."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import CheckpointManager, FreezeSchedule, freeze_except, load_model, load_weights
from ftkit._pickles import admission
from ftkit.errors import CheckpointError, UntrustedFileError
from tests.attacks.payloads import Call, body, touch

# Importing these opens a browser, prints a poem, starts a program, or needs what is not there.
_LOUD = {*re.findall(r"\w+", "antigravity this idlelib turtle turtledemo tkinter lib2to3 test __main__ ensurepip")}
# What code names that executes, opens or imports.
_MEANS = {
    *re.findall(
        r"\w+",
        "exec eval compile open __import__ import_module system popen Popen fork execv execve spawnv "
        "startfile loads load Unpickler CDLL LoadLibrary run_path run_module runctx urlopen urlretrieve "
        "socket connect unlink rmtree remove check_output call_function_from_file get_data load_module "
        "exec_module runcall _pyprofile fdopen FileIO popen2 posix_spawn ",
    )
}
_TORCHS = ("hub", "package", "jit", "fx", "utils.collect_env", "utils.cpp_extension", "utils.data", "export")


def modules() -> Iterator[tuple[str, types.ModuleType]]:
    """The modules of Python, torch and numpy, and the names under which they are imported."""
    names = [name for name in sorted(sys.stdlib_module_names) if name not in _LOUD]
    names += [f"torch.{name}" for name in _TORCHS]
    for name in names:
        with contextlib.suppress(ImportError):  # what another system has
            importlib.import_module(name)
    roots = {*sys.stdlib_module_names} - _LOUD | {"torch", "numpy"}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in roots and type(module) is types.ModuleType:
            yield name, module


def callables() -> dict[str, Any]:
    """Everything that a file could name and call: by the module where it is found, its own or another."""
    found: dict[str, Any] = {}
    for home, module in modules():
        for name, thing in list(vars(module).items()):
            if callable(thing) and name.isidentifier():
                found[f"{home}.{name}"] = thing
            if isinstance(thing, type):
                own = (part for part in list(vars(thing).items()) if not part[0].startswith("__"))
                found |= {
                    f"{home}.{name}.{part}": getattr(thing, part)
                    for part, value in own
                    if isinstance(value, types.FunctionType | staticmethod | classmethod)
                }
    return found


@pytest.fixture(scope="module")
def everybodys() -> dict[str, Any]:
    """Everything in Python, torch and numpy that can be called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some warn as soon as they are looked at
        return callables()


def names_in(code: types.CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(names_in, inner))


def makers(thing: Any) -> list[types.CodeType]:
    """The code that runs when something is called, or made of a file's parts."""
    made_by = ("__init__", "__new__", "__setstate__", "__call__") if isinstance(thing, type) else ()
    functions = [thing, *(getattr(thing, name, None) for name in made_by)]
    codes = (getattr(getattr(function, "__func__", function), "__code__", None) for function in functions)
    return [code for code in codes if isinstance(code, types.CodeType)]


def runs(thing: Any) -> bool:
    """Whether calling something may execute, open or import: it says so, or can't be looked into."""
    if isinstance(thing, types.BuiltinFunctionType | types.BuiltinMethodType):
        return True
    return any(names_in(code) & _MEANS for code in makers(thing))


def calling(path: Path, name: str) -> None:
    """Write a pickle that calls something by a name."""
    module, _, function = name.rpartition(".")
    path.write_bytes(
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(function)])
        + function.encode()
        + b"\x93\x8c\x0atouch MARK\x85R."
    )


def test_nothing_that_runs_is_admitted(tmp_path, monkeypatch, everybodys):
    """Of all that Python, torch and numpy bring, what executes, opens or imports is never admitted to be called."""
    monkeypatch.chdir(tmp_path)
    running = [name for name, thing in everybodys.items() if runs(thing)]
    assert len(running) > 5000
    assert {"pickle.loads", "_pickle.loads", "_io.open", "cProfile.run", "pydoc.pipepager", "builtins.eval"} <= {
        *running
    }
    assert {"torch.storage._load_from_bytes", "torch.utils.collect_env.run", "subprocess.Popen"} <= {*running}
    for name in running:
        things = admission.admitted([name]).values()
        assert not any(admission.may_be_called(thing, bare=bare) for thing in things for bare in (True, False)), name
    for name in running[::20]:
        calling(tmp_path / "x.pkl", name)
        with pytest.raises(UntrustedFileError) as caught:
            load_model(tmp_path / "x.pkl", allow=[name])
        assert "attacks" in str(caught.value) or "would call" in str(caught.value)
        assert "admits these" not in str(caught.value)
    assert not (tmp_path / "MARK").exists()


def test_what_everybody_has_is_admitted_only_if_it_is_made_of_parts(everybodys):
    """What is admitted of Python, torch and numpy are classes that run nothing when made, and functions of tensors."""
    admitted = {name: thing for name, thing in everybodys.items() if admission.may_be(name, thing)}
    assert {"torch.nn.modules.linear.Linear", "torch.nn.functional.relu", "functools.partial"} <= admitted.keys()
    for name, thing in admitted.items():
        assert isinstance(thing, type) or name.startswith(("torch.nn.functional.", "torch._C._nn.")), name
        assert not (isinstance(thing, type) and runs(thing)), name


@pytest.mark.parametrize(
    "name",
    [
        *("_pickle.loads", "_io.open", "cProfile.run", "pydoc.pipepager", "torch.utils.collect_env.run", "os.system"),
        *(
            "torch.storage._load_from_bytes",
            "torch.hub.load",
            "numpy.load",
            "numpy._core.records.fromfile",
            "runpy.run_path",
        ),
        *(
            "torch.serialization.os.system",
            "torch.nn.functional.importlib.import_module",
            "tests.attacks.test_trust.sys.exit",
        ),
        *("tests.attacks.test_trust.importlib.import_module", "tests.attacks.payloads.os.system", "antigravity.x"),
    ],
)
def test_the_refusal_never_proposes_what_runs(tmp_path, name):
    """What can't be admitted is called an attack, however it is reached, and isn't imported to find out."""
    calling(tmp_path / "x.pkl", name)
    with pytest.raises(UntrustedFileError, match="this is how attacks look") as caught:
        load_model(tmp_path / "x.pkl")
    assert "allow=" not in str(caught.value)
    with pytest.raises(UntrustedFileError):
        load_model(tmp_path / "x.pkl", allow=[name])
    assert "antigravity" not in sys.modules


def test_a_file_in_a_file_is_listed_and_never_admitted(tmp_path, monkeypatch):
    """A zip of torch's inside a pickle would be opened without a look at it: its names are listed, it is refused."""
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Call(__import__("os").system, touch()), inner)
    torch.save(body(Call(torch.storage._load_from_bytes, inner.getvalue())), tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match=r"posix\.system|nt\.system") as caught:
        load_model(tmp_path / "x.pt", allow=["torch.storage._load_from_bytes", torch.storage._load_from_bytes])
    assert "torch.storage._load_from_bytes  <- this is how attacks look" in str(caught.value)
    assert load_weights(nn.ParameterDict({"w": torch.zeros(4096)}), tmp_path / "x.pt").loaded_keys == ["w"]
    assert not (tmp_path / "MARK").exists()


def test_objects_of_ours_are_made_without_their_constructors(tmp_path):
    """A schedule that somebody kept whole comes back where it is admitted; a manager is not made, with its folder."""
    torch.save({"schedule": FreezeSchedule({0: ["1"]})}, tmp_path / "x.pt")
    allow = [
        FreezeSchedule,
        "functools.partial",
        freeze_except,
        "ftkit._freezing.freeze.freeze",
        "ftkit._freezing.freeze.unfreeze",
    ]
    assert isinstance(load_model(tmp_path / "x.pt", allow=allow)["schedule"], FreezeSchedule)
    torch.save(Call(CheckpointManager, str(tmp_path / "made")), tmp_path / "x.pt")
    with pytest.raises(UntrustedFileError, match="would call"):
        load_model(tmp_path / "x.pt", allow=[CheckpointManager])
    assert not (tmp_path / "made").exists()


ran: list[str] = []


def helper(text: object = "") -> str:
    """A function of the user's own, which a file may name."""
    ran.append("function")
    return str(text)


class Net(nn.Module):
    """A model of the user's own, all of whose doors tell when they are used."""

    def __init__(self, *parts: object) -> None:
        ran.append("constructor")
        super().__init__()

    def __call__(self, *args: object) -> None:
        ran.append("call")


class Slotted:
    """An object of the user's own with a slot and a property."""

    __slots__ = ("size",)

    @property
    def door(self) -> None:
        return None

    @door.setter
    def door(self, value: object) -> None:
        ran.append("setter")


NET = b"ctests.attacks.test_trust\nNet\n"


@pytest.mark.parametrize(
    "raw",
    [
        NET + b")R",  # its constructor
        NET + b")\x81)R",  # an instance is called
        b"ctests.attacks.test_trust\nSlotted\n)\x81N}\x8c\x04doorK\x01s\x86b",  # a property is set
        b"ctests.attacks.test_trust\nhelper\n\x8c\x01a\x85R",  # a function is called
        b"ctests.attacks.test_trust\nhelper\n)\x81",
    ],
)
def test_what_was_admitted_runs_nothing_but_what_makes_it(tmp_path, raw):
    """Admitted modules are made without their constructor; instances, properties and functions are never called."""
    ran.clear()
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + raw + b".")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "x.pkl", allow=[Net, Slotted, helper])
    assert ran == []
    with contextlib.suppress(Exception):
        load_model(tmp_path / "x.pkl", trusted=True)
    assert ran or raw.endswith(b"\x81")  # the files do what they are for


def test_functions_are_values(tmp_path):
    """A function that is a part of a model comes back with it, once it is admitted."""
    model = nn.TransformerEncoderLayer(4, 1, 4, activation=nn.functional.gelu)
    model.note, model.sizes = helper, Slotted()
    model.sizes.size = 3
    torch.save(model, tmp_path / "x.pt")
    classes = {type(module) for module in model.modules()}
    back = load_model(tmp_path / "x.pt", allow=[*classes, Slotted, helper, nn.functional.gelu])
    assert back.note is helper
    assert back.activation is nn.functional.gelu
    assert back.sizes.size == 3
    with pytest.raises(CheckpointError, match="not 5"):
        load_model(tmp_path / "x.pt", allow=[5])


def test_what_is_set_on_a_tensor_is_not_called_either(tmp_path):
    """A call that hides in the attributes of a parameter is refused like any other."""
    ran.clear()
    weight = nn.Parameter(torch.ones(2))
    weight.note = [Call(helper, "a")]
    torch.save({"w": weight}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "x.pt", allow=[helper])
    assert ran == []
