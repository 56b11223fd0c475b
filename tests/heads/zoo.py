"""Families beyond the common ones: each model is refitted and compared with one freshly built for the new count.

``benchmarks/zoo.py`` prints the table.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ftkit._heads.inputs import Inputs
from tests.heads import oracle
from tests.heads.families import FAMILIES, Family, images
from tests.heads.test_zoo import SMALL
from tests.heads.written import WRITTEN

# ---- transformers: every class with labels that a small configuration builds

TASKS = (
    "SequenceClassification",
    "TokenClassification",
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
    "AudioFrameClassification",
    "SemanticSegmentation",
    "UniversalSegmentation",
    "ObjectDetection",
    "TimeSeriesClassification",
)
COUNTS = {"num_targets", "num_labels"}  # how configurations call the classes
NO_CLASSES = {  # classes whose configuration counts something else, or whose layers depend on the count
    "ShieldGemma2ForImageClassification",
    "PPOCRV5MobileDetForObjectDetection",
    "LayoutLMv3ForTokenClassification",
}
MORE_SMALL = SMALL | {
    "encoder_hidden_dim": 32,
    "num_queries": 10,
    "encoder_feedforward_dim": 32,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 16,
    "num_mel_bins": 16,
    "max_length": 64,
    "num_frames": 4,
    "embed_dim": 32,
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
}


def tasks_of_transformers() -> dict[str, tuple[str, str]]:
    """Case names to task and model type."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = {}
    for task in TASKS:
        words = "".join(f"_{c}" if c.isupper() else c.upper() for c in task).lstrip("_")
        for family, name in getattr(auto, f"MODEL_FOR_{words}_MAPPING_NAMES", {}).items():
            for one in {name} - NO_CLASSES if isinstance(name, str) else name:
                found[f"transformers-{one}"] = (family, one)
    return found


def shrink(config: object) -> None:
    """Make a configuration, and those in it, small where that needs no thought."""
    values = vars(config)
    for key, small in MORE_SMALL.items():
        if type(values.get(key)) is type(small) is int and values[key] > small:
            setattr(config, key, small)
    for value in list(values.values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value)


def transformer(family: str, name: str, options: Mapping[str, object] | None = None) -> Callable[[int], nn.Module]:
    """How to build one; its configuration gets the options after it was made small."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()

    def build(classes: int) -> nn.Module:
        kind = getattr(transformers, name)
        config = kind.config_class()
        shrink(config)
        for key, value in (options or {}).items():
            setattr(config, key, value)
        for count in COUNTS & {*dir(config)}:
            setattr(config, count, classes)
        return kind(config)

    return build


CASES: dict[str, Callable[[], Callable[[int], nn.Module]]] = {
    case: (lambda family=family, name=name: transformer(family, name))
    for case, (family, name) in tasks_of_transformers().items()
}


# ---- other packages: where a class lives, and how it is called for a number of classes

YOLO = ("yolov3", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n")
GRAPHS = ("GCN", "GraphSAGE", "GAT", "EdgeCNN")  # a GIN's last hidden layer is as wide as its outputs
CLASSIFIERS_OF_DOCTR = ("vgg16_bn_r", "resnet18", "resnet31", "resnet50", "mobilenet_v3_small", "vit_s", "vip_tiny")

FAMILIES |= {
    **{
        f"ultralytics-{name}": Family(
            "ultralytics.nn.tasks",
            "DetectionModel",
            lambda kind, n, name=name: kind(f"{name}.yaml", nc=n, verbose=False),
        )
        for name in YOLO
    },
    **{
        f"ultralytics-{name}": Family(
            "ultralytics.nn.tasks",
            kind,
            lambda kind, n, name=name: kind(f"{name}.yaml", nc=n, verbose=False),
        )
        for name, kind in {
            "yolov8n-cls": "ClassificationModel",
            "yolo11n-cls": "ClassificationModel",
            "yolov8n-seg": "SegmentationModel",
            "yolo11n-seg": "SegmentationModel",
            "yolov8n-obb": "OBBModel",
            "yolo11n-obb": "OBBModel",
            "yolov8n-pose": "PoseModel",
            "yolo11n-pose": "PoseModel",
            "rtdetr-l": "RTDETRDetectionModel",
            "rtdetr-resnet50": "RTDETRDetectionModel",
        }.items()
    },
    **{
        f"doctr-{name}": Family(
            "doctr.models.classification",
            name,
            lambda kind, n: kind(pretrained=False, num_classes=n),
            images(2, 3, 32, 32),
        )
        for name in CLASSIFIERS_OF_DOCTR
    },
    **{
        f"torch_geometric-{name}": Family(
            "torch_geometric.nn",
            name,
            lambda kind, n: kind(in_channels=8, hidden_channels=16, num_layers=2, out_channels=n),
            lambda: (torch.zeros(4, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])),
        )
        for name in GRAPHS
    },
    "torch_geometric-PointNet-like-MLP": Family("torch_geometric.nn", "MLP", lambda kind, n: kind([8, 16, n])),
    "x_transformers-vit": Family(
        "x_transformers",
        "ViTransformerWrapper",
        lambda kind, n: kind(
            image_size=32,
            patch_size=8,
            num_classes=n,
            attn_layers=importlib.import_module("x_transformers").Encoder(dim=32, depth=2, heads=2),
        ),
    ),
    "pytorch_tabnet": Family(
        "pytorch_tabnet.tab_network",
        "TabNet",
        lambda kind, n: kind(input_dim=12, output_dim=n, group_attention_matrix=torch.eye(12)),
    ),
    "pytorch_tabnet-no-embeddings": Family(
        "pytorch_tabnet.tab_network",
        "TabNetNoEmbeddings",
        lambda kind, n: kind(input_dim=12, output_dim=n, group_attention_matrix=torch.eye(12)),
    ),
    "torchaudio-wav2letter": Family("torchaudio.models", "Wav2Letter", lambda kind, n: kind(num_classes=n)),
    "torchaudio-deepspeech": Family("torchaudio.models", "DeepSpeech", lambda kind, n: kind(64, n_class=n)),
    "torchaudio-wav2vec2": Family("torchaudio.models", "wav2vec2_base", lambda kind, n: kind(aux_num_out=n)),
    "torchaudio-hubert": Family("torchaudio.models", "hubert_base", lambda kind, n: kind(aux_num_out=n)),
}


CASES |= {case: family.build for case, family in FAMILIES.items()}
CASES |= {case: (lambda build=build: build) for case, (build, _) in WRITTEN.items()}


def inputs_of(case: str) -> Inputs | None:
    """What the models of a case take, if that can't be made up."""
    make = WRITTEN[case][1] if case in WRITTEN else FAMILIES[case].inputs if case in FAMILIES else None
    return None if make is None else (make(), {})


# ---- judging them, in processes of their own

RIGHTLY_REFUSED = {  # what the error says of heads that no layer is, and what to do instead
    "braindecode-SSTDPN": "put the parameter into an nn.Linear",
    "torch_geometric-GAT": "pass a module for the whole of it",
    "speechbrain-ECAPA.Classifier": "put the parameter into an nn.Linear",
    "pytorch_metric_learning-NormalizedSoftmaxLoss": "Pass a module in its place",
    "monai-Classifier": "in 'reshape' (Reshape)",  # whose shape is written in it
    "vit_pytorch-normalized_vit.nViT": "are scaled by other weights",  # a parameter of the model, one for each class
}
GOOD = (oracle.RIGHT, oracle.RIGHTLY_REFUSED, oracle.ADVISED)
TOO_MUCH, CRASHED, NOT_BUILT = "too slow or too large", "crashed", "not built here"
_SECONDS, _BYTES = 150, 6 << 30  # of CPU time and of memory, for one case
_HANGS = 10  # times as long on the clock


class Verdict(NamedTuple):
    """What came of a case."""

    case: str
    verdict: str
    why: str
    seconds: float


def judge(case: str) -> tuple[str, str]:
    """Say what becomes of a refitted model, and why."""
    try:
        build = CASES[case]()
        oracle.quietly(build, oracle.AFTER)
    except Exception as error:
        return NOT_BUILT, f"{type(error).__name__}: {error}"
    try:
        verdict, why = oracle.judge(build, inputs_of(case))
        expected = verdict == oracle.REFUSED and case in RIGHTLY_REFUSED and RIGHTLY_REFUSED[case] in why
        return (oracle.RIGHTLY_REFUSED if expected else verdict), why
    except Exception as error:
        return CRASHED, f"{type(error).__name__}: {error}"


def judged(cases: Iterable[str], *, workers: int = os.cpu_count() or 1) -> Iterator[Verdict]:
    """Judge many cases side by side; one that takes too long, or too much memory, is ended."""
    waiting = list(cases)[::-1]
    busy: list[_Worker] = []
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker()
                worker.take(waiting.pop())
                busy.append(worker)
            multiprocessing.connection.wait([worker.pipe for worker in busy], timeout=0.2)
            for worker in [*busy]:
                verdict = worker.verdict()
                if verdict is not None:
                    busy.remove(worker)
                    idle += [worker] if worker.is_fit() else []
                    yield verdict
    finally:
        for worker in busy + idle:
            worker.end()


class _Worker:
    """A process that judges one case after another."""

    def __init__(self) -> None:
        self._case, self._since, self._at = "", 0.0, 0.0
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def take(self, case: str) -> None:
        self._case, self._since, self._at = case, self._seconds(), time.monotonic()
        self.pipe.send(case)

    def verdict(self) -> Verdict | None:
        """What came of the case, None as long as the worker may go on."""
        seconds = self._seconds() - self._since
        if self.pipe.poll():
            try:
                return Verdict(self._case, *self.pipe.recv(), seconds)
            except EOFError:
                self.end()
                return Verdict(self._case, CRASHED, f"the process ended with {self._process.exitcode}", seconds)
        if seconds > _SECONDS or self._memory() > _BYTES or time.monotonic() - self._at > _HANGS * _SECONDS:
            why = f"ended after {seconds:.0f} s, at {self._memory() / 2**30:.1f} GiB"
            self.end()
            return Verdict(self._case, TOO_MUCH, why, seconds)
        return None

    def is_fit(self) -> bool:
        """Whether it may take another case; if not, it is ended."""
        if self._process.is_alive() and self._memory() < _BYTES / 2:
            return True
        self.end()
        return False

    def _seconds(self) -> float:
        """The CPU time that the process has taken, as far as the system tells, or else what the clock says."""
        told = Path(f"/proc/{self._process.pid}/stat")
        if not told.exists():
            return time.monotonic()
        return sum(map(int, told.read_text().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def _memory(self) -> int:
        """The bytes that the process holds, as far as the system tells."""
        told = Path(f"/proc/{self._process.pid}/statm")
        return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else 0

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    while True:
        pipe.send(judge(pipe.recv()))


def share_right(verdicts: Iterable[Verdict]) -> float:
    """Which share of what was built is right, or refused with what to do instead."""
    built = [one.verdict in GOOD for one in verdicts if one.verdict != NOT_BUILT]
    return sum(built) / max(len(built), 1)
