"""Families beyond the common ones: each model is refitted and compared with one freshly built for the new count."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.heads import oracle
from tests.heads.families import FAMILIES
from tests.heads.test_zoo import SMALL

pytestmark = pytest.mark.slow

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


def transformer(family: str, name: str) -> Callable[[int], nn.Module]:
    """How to build one."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()

    def build(classes: int) -> nn.Module:
        kind = getattr(transformers, name)
        config = kind.config_class()
        shrink(config)
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

PACKAGES: dict[str, tuple[str, str, Callable[..., nn.Module]]] = {
    **{
        f"ultralytics-{name}": (
            "ultralytics.nn.tasks",
            "DetectionModel",
            lambda kind, n, name=name: kind(f"{name}.yaml", nc=n, verbose=False),
        )
        for name in YOLO
    },
    **{
        f"ultralytics-{name}": (
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
        f"doctr-{name}": (
            "doctr.models.classification",
            name,
            lambda kind, n: kind(pretrained=False, num_classes=n),
        )
        for name in CLASSIFIERS_OF_DOCTR
    },
    **{
        f"torch_geometric-{name}": (
            "torch_geometric.nn",
            name,
            lambda kind, n: kind(in_channels=8, hidden_channels=16, num_layers=2, out_channels=n),
        )
        for name in GRAPHS
    },
    "torch_geometric-PointNet-like-MLP": ("torch_geometric.nn", "MLP", lambda kind, n: kind([8, 16, n])),
    "x_transformers-vit": (
        "x_transformers",
        "ViTransformerWrapper",
        lambda kind, n: kind(
            image_size=32,
            patch_size=8,
            num_classes=n,
            attn_layers=importlib.import_module("x_transformers").Encoder(dim=32, depth=2, heads=2),
        ),
    ),
    "pytorch_tabnet": (
        "pytorch_tabnet.tab_network",
        "TabNet",
        lambda kind, n: kind(input_dim=12, output_dim=n, group_attention_matrix=torch.eye(12)),
    ),
    "pytorch_tabnet-no-embeddings": (
        "pytorch_tabnet.tab_network",
        "TabNetNoEmbeddings",
        lambda kind, n: kind(input_dim=12, output_dim=n, group_attention_matrix=torch.eye(12)),
    ),
    "torchaudio-wav2letter": ("torchaudio.models", "Wav2Letter", lambda kind, n: kind(num_classes=n)),
    "torchaudio-deepspeech": ("torchaudio.models", "DeepSpeech", lambda kind, n: kind(64, n_class=n)),
    "torchaudio-wav2vec2": ("torchaudio.models", "wav2vec2_base", lambda kind, n: kind(aux_num_out=n)),
    "torchaudio-hubert": ("torchaudio.models", "hubert_base", lambda kind, n: kind(aux_num_out=n)),
}


def packaged(module: str, name: str, call: Callable[..., nn.Module]) -> Callable[[int], nn.Module]:
    """How to build a model of a package."""
    kind = getattr(importlib.import_module(module), name)
    return lambda classes: call(kind, classes)


CASES |= {case: (lambda how=how: packaged(*how)) for case, how in PACKAGES.items()}


CASES |= {case: family.build for case, family in FAMILIES.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_refitted_model_is_like_a_fresh_one(case: str) -> None:
    """In all that the oracle compares; or the head is refused and nothing has changed."""
    try:
        build = CASES[case]()
        oracle.quietly(build, oracle.AFTER)
    except Exception as error:
        pytest.skip(f"not built here: {error}")
    family = FAMILIES.get(case)
    verdict, why = oracle.judge(build, (family.inputs(), {}) if family and family.inputs else None)
    assert verdict != oracle.WRONG, why


@pytest.mark.parametrize("case", CASES)
def test_to_find_a_head_changes_nothing(case: str) -> None:
    """No tensor, mode, attribute, cache or random number, of the model, its classes and what is around it."""
    try:
        build = CASES[case]()
        model = oracle.quietly(build, oracle.BEFORE, values=oracle.is_small(oracle.quietly(build, oracle.BEFORE)))
    except Exception as error:
        pytest.skip(f"not built here: {error}")
    family = FAMILIES.get(case)
    inputs = (family.inputs(), {}) if family and family.inputs else None
    assert not oracle.looked_at(model, inputs, None, ["find_head"])
