"""Everyday mistakes, one a row: each is an error that says what came, and changes nothing."""

from __future__ import annotations

import collections
import os
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ftkit
from ftkit import FtkitError

SIZE = (2, 3, 8, 8)


class Net(nn.Module):
    """A classifier with an everyday shape and everyday names."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        layers = {"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), "act": nn.ReLU()}
        self.features = nn.Sequential(
            collections.OrderedDict(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()})
        )
        self.classifier = nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.features(images))
        return scores


def quantized(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model, its floats as int8."""
    return {name: (t.to(torch.int8) if t.is_floating_point() else t) for name, t in model.state_dict().items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything."""
    place = tmp_path_factory.mktemp("place")
    model = Net()
    ftkit.save_weights(model, place / "w.safetensors")
    ftkit.save_weights(quantized(model), place / "int8.safetensors")
    ftkit.save_model(model, place / "m.pt")
    ftkit.save_delta(model, place / "d.safetensors")
    with zipfile.ZipFile(place / "pets.zip", "w") as archive:
        archive.writestr("cats/tom.jpg", b"...")
    (place / "folder").mkdir()
    (place / "file").write_text("hello")
    for split in ("train", "val"):
        (place / "img" / split / "cat").mkdir(parents=True)
        Image.radial_gradient("L").save(place / "img" / split / "cat" / "tom.jpg")
    (place / "img/train/cat/bad.jpg").write_bytes(b"<html>")
    return place


@pytest.fixture(scope="module")
def report(place: Path) -> ftkit.ScanReport:
    """The scan of the images there."""
    return ftkit.scan_images(place / "img", workers=1)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> ftkit.Precomputed:
    """What is kept of a model that is half frozen."""
    model, pixels = Net(), [torch.randn(SIZE[1:]) for _ in range(3)]
    ftkit.freeze_except(model, "classifier")
    return ftkit.precompute(model, pixels, tmp_path_factory.mktemp("kept"))


@pytest.fixture
def things(
    place: Path, report: ftkit.ScanReport, cached: ftkit.Precomputed, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the calls below may name."""
    monkeypatch.chdir(place)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    half = Net()
    ftkit.freeze_except(half, "classifier")
    things = {"model": model, "optimizer": optimizer, "report": report, "state": model.state_dict()}
    things |= {"StringIO": StringIO, "ThreadPoolExecutor": ThreadPoolExecutor}
    things |= {
        "half": half,
        "cached": cached,
        "pixels": [torch.randn(SIZE[1:]) for _ in range(3)],
        "schedule": ftkit.FreezeSchedule({0: "classifier"}),
        "summed": ftkit.summary(model, SIZE),
        "stopping": ftkit.EarlyStopping(3, mode="min"),
        "loader": ftkit.ResumableLoader([1, 2, 3]),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
    }
    return {name: getattr(ftkit, name) for name in ftkit.__all__} | globals() | things


# A call, and words of the error that it is.
MISTAKES = r"""
freeze(Net)                                                the class Net: call it
freeze(state)                                              an OrderedDict: load_weights puts a state dict into
freeze("resnet18")                                         'resnet18': load or build the model first
freeze(model, "classifer")                                 Did you mean 'classifier'
freeze(model, None)                                        None is not a selector: expected a name
freeze(model, b"classifier")                               b'classifier' is not a selector
freeze(model, state)                                       an OrderedDict is not a selector
freeze(model, {"features": 1})                             {'features': 1} is not a selector
freeze(model, model.classifier.weight.data)                not a selector: expected
freeze(model, lambda name: True)                           Write a function: lambda name, module: ...
freeze(model, "features", norm_stats="no")                 norm_stats must be True or False, not 'no'
freeze(model, "features", keep_dropout=None)               keep_dropout must be True or False, not None
frozen(model, "clasifier").__enter__()                     Did you mean 'classifier'
freeze_except(model)                                       needs to know what to train
freeze_except(model, "classifier", optimizer="sgd")        optimizer must be a torch.optim.Optimizer, not 'sgd'
unfreeze(model, optimizer=torch.optim.AdamW)               not the class AdamW
unfreeze(model, optimizer=scheduler, scheduler=optimizer)  must be a torch.optim.Optimizer, not a StepLR
unfreeze(model, optimizer=optimizer.state_dict())          must be a torch.optim.Optimizer, not a dict
unfreeze(model, optimizer)                                 is not a selector
is_frozen(model, 3)                                        3 is not a selector
trainable(state)                                           must be a torch.nn.Module, but this is an OrderedDict
FreezeSchedule([("classifier", 0)])                        phases must be a dict such as {0: 'head', 5: 'layer4'}
FreezeSchedule("classifier")                               or a function of the epoch, not 'classifier'
FreezeSchedule({"0": "classifier"})                        must be a whole number of at least 0, not '0'
FreezeSchedule({0: "classifier"}, period="4")              period must be a whole number of at least 1, not '4'
FreezeSchedule({0: "classifier"}, period=2.5)              not 2.5
FreezeSchedule(lambda: "fc").step(0, model=model)          lambda epoch: ...
schedule.step("0", model=model)                            epoch must be a whole number of at least 0, not '0'
schedule.step(1.5, model=model)                            not 1.5
schedule.step(0, model=model, optimizer="adam")            not 'adam'
schedule.load_state_dict(None)                             None is not a state_dict() of a FreezeSchedule
schedule.load_state_dict({"phase": 1})                     it lacks 'trainable', 'groups'
precompute(state, [1], "kept")                             Expected a module as model, got an OrderedDict
precompute(model, [1, 2], "kept")                          Nothing in the model is frozen: call ftkit.freeze()
precompute(half, ["a", "b"], "kept")                       this one comes as
precompute(half, 3, "kept")                                indexable, with a length), such as a list, or a loader, not 3
precompute(half, [torch.ones(3)], "kept")                  fewer than 2 samples
precompute(half, [torch.ones(3), 4], "kept")               can't put these samples into one batch
precompute(half, pixels, None)                             Expected a path as folder, got None
precompute(half, pixels, "s3://kept")                      URL
precompute(half, pixels, "kept", batch_size=0)             batch_size must be a whole number of at least 1, not 0
precompute(half, pixels, "kept", num_workers="2")          num_workers must be a whole number of at least 0, not '2'
precompute(half, pixels, "kept", views=2.5)                views must be a whole number of at least 1, not 2.5
precompute(half, pixels, "kept", views=2)                  gives the same each time. Leave views out
precompute(half, pixels, "kept", dtype="bf16")             dtype must be torch.bfloat16, torch.float16 or None (as
precompute(half, pixels, "kept", max_bytes="ten")          max_bytes must be a number of bytes, or a size such as '8GB'
precompute(half, pixels, "kept", max_bytes=10)             more than max_bytes=10: allow more, or freeze more
precompute(half, pixels, "kept", progress="no")            progress must be True or False, not 'no'
cached.loader(batchsize=2)                                 Did you mean 'batch_size'
cached.features("fc")                                      kept must be one of
param_groups(model, lr="1e-3")                             lr must be a number of at least 0, not '1e-3'
param_groups(model, lr=None)                               not None
param_groups(model, lr=True)                               not True
param_groups(model, lr=[1e-3])                             not [0.001]
param_groups(model, lr=float("nan"))                       not nan
param_groups(model, lr=torch.tensor([1.0, 2.0]))           not tensor([1., 2.])
param_groups(model, 0.1, weight_decay="0.01")              weight_decay must be a number of at least 0, not '0.01'
param_groups(model, 0.1, layer_decay="0.8")                layer_decay must be a number of more than 0 and at most 1
param_groups(model, 0.1, rates=[1e-3, 1e-4])               rates must be a dict of learning rates by selector
param_groups(model, 0.1, rates=("classifier", 1e-4))       rates must be a dict of learning rates by selector
param_groups(model, 0.1, rates={"classifier": "1e-4"})     the rate of 'classifier' must be a number
param_groups(model, 0.1, rates={1e-4: "classifier"})       the rate of 0.0001 must be a number
param_groups(model.parameters(), 0.1)                      must be a torch.nn.Module, but this is a generator
find_head(state)                                           must be a torch.nn.Module
replace_head(model, "3")                                   head must be a whole number of at least 1 (the number of cl
replace_head(model, True)                                  or a function of in_features, not True
replace_head(model, ["cat", "dog"])                        not ['cat', 'dog']
replace_head(model, nn.Linear)                             the class Linear does not take
replace_head(model, lambda n: nn.Linear)                   returned the class Linear
replace_head(model, 3, at="classifer")                     Did you mean 'classifier'
replace_head(model, 3, at="")                              no module ''.
replace_head(model, 3, at=torch.nn.ReLU())                  The ReLU in at= is not part of the
replace_head(model, 3, keep={"cat": 0})                    A new class in keep must be a whole number
replace_head(model, 3, keep={0: 0.5})                      An old class in keep must be a whole number
replace_modules(model, nn.ReLU, nn.GELU)                   lambda name, module: ...
replace_modules(model, nn.ReLU, nn.GELU())                 GELU(approximate='none') does not take
replace_modules(model, nn.ReLU, nn.Linear)                 the class Linear does not take
replace_modules(model, nn.ReLU, None)                      factory must be a function of a name and a module, not None
append_head(model, "3")                                    not '3'
adapt_input(model, 1.0)                                    channels must be a whole number of at least 1, not 1.0
summary(Net, SIZE)                                         the class Net: call it
summary(model, "2,3,8,8")                                  input_size must be a shape such as (32, 3, 224, 224)
summary(model, torch.zeros(SIZE))                          a Tensor: pass it as input_data
summary(model, True)                                       not True
summary(model, SIZE, dtypes="float16")                     dtypes must be a torch.dtype such as torch.float16
summary(model, SIZE, dtypes=np.float32)                    not the class float32
summary(model, SIZE, mode="eavl")                          mode must be 'train' or 'eval', not 'eavl'. Did you mean
summary(model, SIZE, depth="2")                            depth must be a whole number of at least 0, not '2'
summed.text(width=-5)                                      width must be a whole number of at least 1, not -5
summed.text(fold="no")                                     fold must be True or False
summed.plot("p.xyz")                                       p.xyz has no image file extension: .
summed.plot("s3://bucket/p.png")                           is a URL
summed.plot("file/p.png")                                  Can't write
summed.peak_training_bytes("adam")                         Expected an optimizer, its class or a function
compare(model, model)                                      compare takes two summaries, not a Net
largest_batch(model, SIZE, memory="lots", optimizer=None)  memory must be a number of bytes, or a size such as '8GB'
largest_batch(model, SIZE, memory="8G", optimizer=None)    not '8G'
largest_batch(model, SIZE, memory="8Gb", optimizer=None)   (Gb are gigabits), not '8Gb'
largest_batch(model, SIZE, memory="8Mib", optimizer=None)  not '8Mib'
largest_batch(model, SIZE, memory=None, optimizer=None)    not None
largest_batch(model, SIZE, memory=9e9, mode="evla", optimizer=None)  Did you mean 'eval'
save_weights("new.pt", model)                              Expected a path as path, got a Net
save_weights(model, "")                                    got '', which is empty
save_weights(model, "a\0b")                                which contains a NUL
save_weights(model, "https://x.org/new.pt")                is a URL. Download or upload it yourself
save_weights(model, StringIO())                            got a StringIO
save_weights({1: torch.zeros(3)}, "new.safetensors")       The names in a state dict must be strings, not 1
save_weights(optimizer, "new.safetensors")                 must be a torch.nn.Module, but this is an AdamW
save_model(state, "new.pt")                                save_weights saves one
save_model(Net, "new.pt")                                  the class Net: call it
load_weights(model, None)                                  Expected a path, a state dict or a model as the weights
load_weights(model, ["w.safetensors"])                     got ['w.safetensors']
load_weights(model, optimizer)                             got an AdamW
load_weights(model, Net)                                   got the class Net
load_weights(model, "w.safetensor")                        Did you mean 'w.safetensors'
load_weights(model, "https://x.org/w.safetensors")         is a URL
load_weights(model, "int8.safetensors")                    quantized values mean nothing without their scale
load_weights(model, "w.safetensors", strict="no")          strict must be True or False, not 'no'
load_weights(model, "w.safetensors", rename="module.")     rename='module.' is not a dict of prefixes
load_weights(model, "w.safetensors", rename=("ab", "cd"))  a string is not a pair
load_weights(model, "w.safetensors", rename={"a": None})   as strings, but None is not a string
load_weights(model, "w.safetensors", rename=[("^f", 3)])   pairs of a regular expression and its replacement
load_weights(model, "w.safetensors", rename=[("^f", r"\9")])  invalid group reference 9
load_weights(model, "w.safetensors", rename=lambda name: 3)  rename returned 3, not a name or None
load_weights(model, "w.safetensors", rename=lambda: 3)     lambda name: ...
load_model(model)                                          Expected a path as path, got a Net
load_model("m.p")                                          Did you mean 'm.pt'
load_model("m.pt", trusted="no")                           trusted must be True or False, not 'no'
load_model("m.pt", allow="a.b")                            write allow=['a.b']
load_model("m.pt", allow=nn.Linear)                        allow must be a list of classes, functions or their
load_model("m.pt", allow=[...])                            allow takes classes, functions and their full dotted names
load_model("m.pt", allow=[nn.Linear(2, 2)])                not Linear(in_features=2
inspect_checkpoint(state)                                  Expected a path as path, got an OrderedDict
diff_checkpoints("w.safetensors", 3)                       a path, a state dict or a model as the weights, got 3
save_delta(model, None)                                    Expected a path as path, got None
save_delta(model, "new.safetensors", base=3)               got 3
load_delta(model, "https://x.org/d.safetensors")           is a URL
load_delta(model, "dd.safetensors")                        Did you mean 'd.safetensors'
save_checkpoint("new.pt", model=state)                     must be a torch.nn.Module, but this is an OrderedDict
load_checkpoint("x.safetensors")                           There is no file x.safetensors
CheckpointManager("folder", keep_last="3")                 keep_last must be a whole number of at least 0
EarlyStopping("3", mode="min")                             patience must be a whole number of at least 1, not '3'
EarlyStopping(3, mode="min", min_delta="0.1")              min_delta must be a number of at least 0, not '0.1'
stopping.step("0.5")                                       The value of a metric must be a single number, not '0.5'
stopping.step(torch.tensor([1.0, 2.0]))                    not tensor([1., 2.])
stopping.load_state_dict(None)                             None is not a state_dict() of an EarlyStopping
ResumableLoader(None)                                      must be map-style (indexable), such as a list, not None
ResumableLoader("img")                                     not 'img'
ResumableLoader([1, 2], batch_size="2")                    batch_size must be a whole number of at least 0, not '2'
ResumableLoader([1, 2], batch_size=0)                      torch can't build a DataLoader from these arguments
loader.load_state_dict([])                                 [] is not a state_dict() of a ResumableLoader
extract_archive(None, "new")                               Expected a path as source, got None
extract_archive("pets.zip", 3)                             Expected a path as dest, got 3
extract_archive("pet.zip", "new")                          Did you mean 'pets.zip'
extract_archive("folder", "new")                           folder is a folder, not an archive
extract_archive("https://x.org/pets.zip", "new")           is a URL
extract_archive("pets.zip", "new", max_bytes="lots")       max_bytes must be a number of at least 0, not 'lots'
extract_archive("pets.zip", "new", max_files=None)         max_files must be a number of at least 0, not None
extract_archive("pets.zip", "new", encoding=949)           Python has no encoding 949
extract_archive("pets.zip", "new", password=1234)          password must be a string or bytes, not 1234
extract_archive("pets.zip", "new", strip="yes")            strip must be True or False, not 'yes'
scan_images(["img/train", "img/val"])                      Expected a path as root, got ['img/train', 'img/val']
scan_images("imgs")                                        Did you mean 'img'
scan_images("htp://x.org/pets")                            Did you mean 'http'
scan_images("ftp://127.0.0.1:9/pets")                      Check the URL, the connection
scan_images("img", workers="2")                            workers must be a whole number of at least 1
scan_images("img", workers=1.5)                            not 1.5
scan_images("img", timeout="10")                           timeout must be a number of seconds, more than 0 and finite
scan_images("img", splits="train,val")                     write splits=['train', 'val']
scan_images("img", splits=3)                               splits must be a list of folders, not 3
scan_images("img", splits={"train": ["a"]})                as strings, but ['a'] is not a string
scan_images("img", executor=4)                             executor must be a concurrent.futures.Executor, not 4
scan_images("img", executor=ThreadPoolExecutor)            not the class ThreadPoolExecutor
scan_images("img", progress="no")                          progress must be True or False, not 'no'
scan_images("img", journal=True)                           Expected a path as journal, got True
last_blocks(model, 0)                                      must be a whole number of at least 1, not 0
last_blocks(model, 99)                                     Expected a Net with 99 blocks or more
last_blocks(Net, 1)                                        is the class Net: call it
verify_frozen(Net).__enter__()                             is the class Net: call it
report.quarantine(None)                                    Expected a path as dest, got None
report.quarantine("new", 3)                                kinds must be a list of kinds of findings, not 3
report.quarantine("new", "unusabel")                       Did you mean 'unusable'
report.quarantine("new", [3])                              as strings, but 3 is not a string
report.repair(3)                                           Expected a folder for the copies, got 3
report.to_json(3)                                          Expected a path as path, got 3
restore(None)                                              Expected a path as manifest, got None
restore(report)                                            got a ScanReport
restore("https://x.org/manifest.json")                     is a URL
"""
ROWS = [tuple(line.split("  ", 1)) for line in MISTAKES.strip().splitlines()]


def everything(model: nn.Module, place: Path) -> tuple[Any, ...]:
    """What a mistake must not change."""
    learns = [(name, id(p), p.requires_grad, p.tolist()) for name, p in model.named_parameters()]
    return str(model), learns, sorted(str(path) for path in place.rglob("*"))


@pytest.mark.parametrize(("call", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_mistake(call: str, words: str, things: dict[str, Any], place: Path) -> None:
    """It is an error that says what was expected and what came, and nothing has changed."""
    before = everything(things["model"], place)
    with pytest.raises(FtkitError) as caught:
        eval(call, things)
    assert words.strip() in str(caught.value)
    assert everything(things["model"], place) == before


def test_every_function_is_in_the_table() -> None:
    """A new one gets its rows."""
    functions = {name for name in ftkit.__all__ if name[0].islower()}
    assert {name for name in functions if not any(call.startswith(f"{name}(") for call, _ in ROWS)} == set()


INTS = [np.int64(2), np.array(2), torch.tensor(2)]


@pytest.mark.parametrize("two", INTS, ids=["NumPy", "an array", "torch"])
@pytest.mark.parametrize(
    "call",
    [
        "replace_head(model, two).out_features == 2",
        "replace_head(model, 3, keep={0: two}).out_features == 3",
        "append_head(model, two)[1].out_features == 2",
        "adapt_input(model, two) == ['features.conv']",
        "summary(model, (two, 3, 8, 8)).rows[0].input_shape == SIZE",
        "summary(model, np.array([2, 3, 8, 8])).total_params == summary(model, torch.tensor(SIZE)).total_params",
        "len(summed.text(depth=two - two + 1)) > 0",
        "largest_batch(model, SIZE, memory=two * 10**6, optimizer=torch.optim.SGD) > 1",
        "FreezeSchedule({0: 'classifier'}, period=two).step(two, model=model).thawed == ()",
        "EarlyStopping(two, mode='min').patience == 2",
        "EarlyStopping(1, mode='min', min_delta=two).min_delta == 2",
        "param_groups(model, lr=two, weight_decay=two, layer_decay=two / 4)[0]['recipe']['layer_decay'] == 0.5",
        "type(param_groups(model, 1, rates={'classifier': two})[-1]['lr']) is float",
        "ResumableLoader([1, 2, 3], batch_size=two).batch_size == 2",
        "ResumableLoader([1, 2, 3], two).batch_size == 2",
        "scan_images('img', workers=two, timeout=two * 10).files == 3",
    ],
)
def test_numbers_of_numpy_and_torch(call: str, two: Any, things: dict[str, Any]) -> None:
    """They are numbers like others."""
    assert eval(call, {**things, "two": two})


def test_limits_of_an_archive_as_numbers_of_numpy(things: dict[str, Any], tmp_path: Path) -> None:
    """They are numbers like others."""
    limits: dict[str, Any] = {"max_bytes": np.int64(10), "max_files": torch.tensor(10), "max_ratio": np.float32(9)}
    assert ftkit.extract_archive("pets.zip", tmp_path / "pets", **limits).files == 1


def test_a_size_in_words(things: dict[str, Any]) -> None:
    """A GB is 1000 MB, and a GiB 1024 MiB."""
    rows = {"2MB": 2_000_000, "2 MiB": 2 << 20, "2000 kb": 2_000_000, ".5GiB": 1 << 29}
    for words, number in rows.items():
        found = [
            ftkit.largest_batch(things["model"], SIZE, memory=memory, optimizer=torch.optim.SGD)
            for memory in (words, number)
        ]
        assert found[0] == found[1] > 1


@pytest.fixture
def home(things: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, with the everyday folder as the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    assert not any("~" in path.name for path in place.rglob("*"))


WRITERS: dict[str, Callable[[dict[str, Any], str], object]] = {
    "save_weights": lambda things, path: ftkit.save_weights(things["model"], path + ".safetensors"),
    "save_weights as torch": lambda things, path: ftkit.save_weights(things["model"], path + ".pt"),
    "save_model": lambda things, path: ftkit.save_model(things["model"], path),
    "save_delta": lambda things, path: ftkit.save_delta(things["model"], path),
    "save_checkpoint": lambda things, path: ftkit.save_checkpoint(path + ".safetensors", model=things["model"]),
    "plot": lambda things, path: things["summed"].plot(path + ".png"),
    "to_json": lambda things, path: things["report"].to_json(path),
    "to_csv": lambda things, path: things["report"].to_csv(path),
    "to_html": lambda things, path: things["report"].to_html(path),
    "extract_archive": lambda _, path: ftkit.extract_archive("pets.zip", path),
    "journal": lambda _, path: ftkit.scan_images("img", workers=1, journal=path),
    "repair": lambda things, path: things["report"].repair(dest=path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_home_folder_is_written_to(writer: str, home: Path, things: dict[str, Any]) -> None:
    """``~`` is the home folder, and no folder of that name."""
    WRITERS[writer](things, "~/deep/thing" if writer != "journal" else "~/thing")
    if writer != "repair":  # which finds nothing to repair
        assert [path.stem for path in home.rglob("*") if path.stem == "thing"] == ["thing"]


def test_the_home_folder_is_read_from(home: Path, things: dict[str, Any], place: Path) -> None:
    """Whatever reads a path."""
    for name in ("w.safetensors", "d.safetensors", "m.pt", "pets.zip", "img"):
        os.symlink(place / name, home / name)
    model, other = things["model"], things["Net"]()
    assert ftkit.load_weights(model, "~/w.safetensors").missing_keys == []
    assert ftkit.load_weights(other, Path("~/w.safetensors")).missing_keys == []
    assert ftkit.inspect_checkpoint("~/w.safetensors").tensors
    assert not ftkit.diff_checkpoints("~/w.safetensors", model)
    ftkit.load_delta(model, "~/d.safetensors")
    assert type(ftkit.load_model("~/m.pt", trusted=True)) is Net
    assert ftkit.extract_archive("~/pets.zip", home / "pets").files == 1
    assert ftkit.scan_images("~/img", workers=1).files == 3
    with pytest.raises(FtkitError, match=str(home)):
        ftkit.load_checkpoint("~/missing.safetensors")


def test_a_quarantine_in_the_home_folder_comes_back(home: Path) -> None:
    """There and back."""
    (home / "pets/cat").mkdir(parents=True)
    (home / "pets/cat/bad.jpg").write_bytes(b"<html>")
    ftkit.scan_images("~/pets", workers=1).quarantine("~/aside")
    assert not (home / "pets/cat").exists()
    assert ftkit.restore("~/aside", root="~/pets") == [str(home / "pets/cat/bad.jpg")]


def test_a_folder_that_is_called_by_a_tilde(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``./~`` is that folder, however often the name is read on the way."""
    monkeypatch.chdir(home)
    (home / "~").mkdir()
    ftkit.save_weights(nn.Linear(1, 1), "./~/w.pt")
    assert (home / "~/w.pt").is_file()
    (home / "~/w.pt").unlink()
    (home / "~").rmdir()


def test_errors_inside_a_function_of_the_user_come_through(things: dict[str, Any]) -> None:
    """They are theirs to see, where they are."""
    with pytest.raises(TypeError, match="can only concatenate"):
        ftkit.replace_modules(things["model"], nn.ReLU, lambda name, module: name + 1)  # type: ignore[operator, arg-type, return-value]
