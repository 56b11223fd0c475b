"""Sweeps over whole collections of models: minutes rather than seconds, one test for each family."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torchvision
from timm.models._registry import _model_to_module
from torch import Tensor, nn

from ftkit import find_head, param_groups, replace_head
from ftkit.errors import HeadError

pytestmark = pytest.mark.slow

CLASSES = 7


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


def tensors(output: object) -> Iterator[Tensor]:
    """All tensors in what a model gives."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from tensors(value)


def refit(model: nn.Module) -> tuple[str, ...]:
    """Replace the head, and check that everything else is the same object; return the head's names."""
    before = dict(model.named_parameters(remove_duplicate=False))
    old = find_head(model)
    new = replace_head(model, CLASSES)
    assert new.names == old.names
    assert new.out_features == CLASSES
    inside = tuple(f"{name}." for name in new.names)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert [n for n in before if not n.startswith(inside) and after.get(n) is not before[n]] == []
    assert getattr(model, "num_classes", CLASSES) == CLASSES
    return new.names


def rates_rise_to_the_head(model: nn.Module, names: tuple[str, ...]) -> None:
    """With layer decay, the head learns fastest, alone at the top, and every parameter is in one group."""
    groups = param_groups(model, 1.0, layer_decay=0.5)
    rates = [group["lr"] for group in groups]
    assert rates == sorted(rates)
    top = [name for group in groups if group["lr"] == 1.0 for name in group["param_names"]]
    assert {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{n}." for n in names))} <= set(top)
    assert len(set(rates)) > 2
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))


TIMM: defaultdict[str, list[str]] = defaultdict(list)
for _name in timm.list_models():
    TIMM[_model_to_module[_name]].append(_name)


@pytest.mark.parametrize("family", TIMM)
def test_every_timm_model(family: str) -> None:
    """Each model gives the new count; one that was built without a head says so."""
    for name in TIMM[family]:
        model = on_meta(lambda name=name: timm.create_model(name))
        if getattr(model, "num_classes", 0) == 0:
            with pytest.raises(HeadError):
                find_head(model)
            continue
        names = refit(model)
        rates_rise_to_the_head(model, names)
        image = torch.zeros(2, *model.pretrained_cfg["input_size"], device="meta")
        with torch.no_grad():
            assert [out.shape[1] for out in tensors(model.eval()(image))] == [CLASSES], name


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_classifier(name: str) -> None:
    """Each model gives the new count, in training mode too, where auxiliary heads answer."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    build = torchvision.models.get_model
    if "regnet" in name:  # it computes its widths with tensors
        model = build(name, weights=None).to("meta")
    else:
        model = on_meta(lambda: build(name, weights=None, **options))
    rates_rise_to_the_head(model, refit(model))
    side = 299 if name == "inception_v3" else 224
    with torch.no_grad():
        for mode in (True, False):
            found = {out.shape[1] for out in tensors(model.train(mode)(torch.zeros(2, 3, side, side, device="meta")))}
            assert found == {CLASSES}


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models.segmentation))
def test_every_torchvision_segmenter(name: str) -> None:
    """The auxiliary head follows where there is one."""
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    build = torchvision.models.get_model
    model = on_meta(lambda: build(name, weights=None, weights_backbone=None, **options))
    rates_rise_to_the_head(model, refit(model))
    with torch.no_grad():
        found = [out.shape[1] for out in tensors(model(torch.zeros(2, 3, 224, 224, device="meta")))]
    assert set(found) == {CLASSES}
    assert len(found) == 1 + len(options)


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models.video))
def test_every_torchvision_video_model(name: str) -> None:
    """Clips instead of images."""
    model = on_meta(lambda: torchvision.models.get_model(name, weights=None))
    rates_rise_to_the_head(model, refit(model))
    clip = torch.zeros(1, 3, 16, *((112, 112) if name in ("mc3_18", "r3d_18", "r2plus1d_18") else (224, 224)))
    with torch.no_grad():
        assert [out.shape[1] for out in tensors(model(clip.to("meta")))] == [CLASSES]


SMP = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet")


@pytest.mark.parametrize(
    ("architecture", "encoder"), [*itertools.product(SMP, ["resnet18", "efficientnet-b0", "mobilenet_v2"])]
)
def test_every_segmentation_architecture(architecture: str, encoder: str) -> None:
    """The mask's classes follow."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = on_meta(lambda: getattr(smp, architecture)(encoder, encoder_weights=None, classes=21))
    rates_rise_to_the_head(model, refit(model))
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 224, 224, device="meta")).shape[1] == CLASSES


# Small enough to be real, whatever the family calls its sizes.
SMALL = {
    "hidden_size": 32,
    "d_model": 32,
    "dim": 32,
    "n_embd": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "intermediate_size": 37,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "hidden_dim": 37,
    "d_ff": 37,
    "d_kv": 8,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
TRANSFORMERS = {
    "SequenceClassification": ("bert", "roberta", "distilbert", "electra", "gpt2", "llama", "mistral", "qwen2", "opt"),
    "TokenClassification": ("bert", "roberta", "distilbert", "electra", "gpt2", "qwen2"),
    "ImageClassification": ("vit", "dinov2", "data2vec-vision", "beit"),
    "QuestionAnswering": ("bert", "roberta", "distilbert", "electra"),
}


@pytest.mark.parametrize(("task", "family"), [(t, f) for t, families in TRANSFORMERS.items() for f in families])
def test_transformers(task: str, family: str) -> None:
    """Scores and the model's own loss follow the count; a question's start and end stay two."""
    transformers = pytest.importorskip("transformers")
    labels = 2 if task == "QuestionAnswering" else 5
    config_class = type(transformers.AutoConfig.for_model(family))
    known = inspect.signature(config_class.__init__).parameters | dict.fromkeys(dir(config_class()))
    config = config_class(**{key: value for key, value in SMALL.items() if key in known}, num_labels=labels)
    model = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
    if task == "ImageClassification":
        inputs, target = {"pixel_values": torch.zeros(2, 3, 32, 32)}, torch.tensor([0, CLASSES - 1])
    else:
        inputs = {"input_ids": torch.randint(5, 90, (2, 9))}
        target = torch.full((2, 9) if task == "TokenClassification" else (2,), CLASSES - 1)
    if task == "QuestionAnswering":
        assert (find_head(model).names, find_head(model).out_features) == (("qa_outputs",), 2)
        return
    refit(model)
    out = model(**inputs, labels=target)
    assert out["logits"].shape[-1] == CLASSES
    assert out["loss"].isfinite()
    assert (model.num_labels, len(model.config.id2label)) == (CLASSES, CLASSES)
