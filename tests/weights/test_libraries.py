"""Files of transformers and peft, whose names differ from those of the modules."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ftkit import load_weights, save_delta, save_weights
from ftkit.errors import CheckpointError

transformers = pytest.importorskip("transformers", minversion="5.0")
pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # peft asks for it
]

IMAGES = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES |= {"intermediate_size": 32}
TEXTS = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ROWS = {"num_key_value_heads": 2}
SEQ = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SEQ |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SOUND = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
SOUND |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
DETR = {"use_timm_backbone": False, "use_pretrained_backbone": False, "num_queries": 5}
SEGFORMER = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16]}
SEGFORMER |= {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
SEGFORMER |= {"decoder_hidden_size": 16}

MAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTForImageClassification": ("ViT", IMAGES),
    "DeiTForImageClassification": ("DeiT", IMAGES),
    "BeitForImageClassification": ("Beit", {**IMAGES, "use_relative_position_bias": True}),
    "Dinov2ForImageClassification": ("Dinov2", IMAGES),
    "SwinForImageClassification": (
        "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "SegformerForSemanticSegmentation": ("Segformer", SEGFORMER),
    "Qwen3MoeForCausalLM": (
        "Qwen3Moe",
        {**TEXTS, **ROWS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    ),
    "MixtralForCausalLM": ("Mixtral", {**TEXTS, **ROWS, "num_local_experts": 12}),
    "DetrForObjectDetection": ("Detr", DETR),
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "BertForSequenceClassification": ("Bert", TEXTS),
    "BertForMaskedLM": ("Bert", TEXTS),
    "RobertaForSequenceClassification": ("Roberta", TEXTS),
    "DistilBertForSequenceClassification": (
        "DistilBert",
        {"vocab_size": 64, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    ),
    "GPT2LMHeadModel": ("GPT2", {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "LlamaForCausalLM": ("Llama", {**TEXTS, **ROWS}),
    "Qwen3ForCausalLM": ("Qwen3", {**TEXTS, **ROWS, "head_dim": 8}),
    "T5ForConditionalGeneration": (
        "T5",
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    ),
    "ResNetForImageClassification": ("ResNet", RESNET),
    "ConvNextForImageClassification": ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "Wav2Vec2ForSequenceClassification": ("Wav2Vec2", {**TEXTS, **SOUND}),
    "BartForSequenceClassification": ("Bart", SEQ),
    "WhisperForAudioClassification": ("Whisper", {**SEQ, "num_mel_bins": 8, "max_source_positions": 20}),
}


def build(name: str) -> Any:
    kind, options = {**MAPPED, **PLAIN}[name]
    options = copy.deepcopy(options)
    if kind == "Detr":
        backbone = transformers.ResNetConfig(**RESNET, out_features=["stage2"])
        options |= {key: value for key, value in SEQ.items() if key != "vocab_size"} | {"backbone_config": backbone}
    return getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**options))


def randomized(name: str) -> Any:
    model = build(name)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(one for one in model.buffers() if one.is_floating_point())):
            tensor.uniform_(0.01, 1)
    return model


def inputs_of(model: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    match model.main_input_name:
        case "pixel_values":
            return {"pixel_values": torch.randn(2, 3, 32, 32)}
        case "input_values":
            return {"input_values": torch.randn(2, 800)}
        case "input_features":
            return {"input_features": torch.randn(2, 8, 40)}
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]])
    return {"input_ids": ids, **({"decoder_input_ids": ids} if type(model).__name__.startswith("T5") else {})}


def outputs(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        given = model.eval()(**inputs_of(model)).to_tuple()
    return [one for one in given if isinstance(one, torch.Tensor)]


def assert_same_as_from_pretrained(name: str, folder: Path) -> None:
    randomized(name).save_pretrained(folder)
    theirs = getattr(transformers, name).from_pretrained(folder)
    ours = build(name)
    report = load_weights(ours, folder)
    assert not report.missing_keys, report
    expected, found = outputs(theirs), outputs(ours)
    assert len(expected) == len(found) > 0
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
    state = ours.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["ViTForImageClassification", "MixtralForCausalLM"])
def test_reads_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    assert_same_as_from_pretrained(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MAPPED, *PLAIN])
def test_reads_what_save_pretrained_writes_for_all_kinds_of_models(name: str, tmp_path: Path) -> None:
    assert_same_as_from_pretrained(name, tmp_path)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "MixtralForCausalLM"])
def test_still_reads_the_names_of_the_modules(name: str, tmp_path: Path) -> None:
    model, other = randomized(name), build(name)
    save_weights(model, tmp_path / "own.safetensors")
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "l.ckpt"
    )
    for file in ("own.safetensors", "l.ckpt"):
        other = build(name)
        load_weights(other, tmp_path / file)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))


def test_an_expert_that_is_missing_is_an_error(tmp_path: Path) -> None:
    model = build("MixtralForCausalLM")
    model.save_pretrained(tmp_path)
    whole = _read(tmp_path / "model.safetensors")
    partial = {name: value for name, value in whole.items() if "experts.3.w1" not in name}
    assert len(partial) < len(whole)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match="does not fit the MixtralForCausalLM"):
        load_weights(model, partial)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weights_of_a_base_model_find_their_part_of_a_model_with_a_head(tmp_path: Path) -> None:
    base = randomized("ViTForImageClassification").vit
    base.save_pretrained(tmp_path)
    model = build("ViTForImageClassification")
    report = load_weights(model, tmp_path, strict=False)
    assert report.missing_keys == ["classifier.weight", "classifier.bias"]
    assert not [name for name in report.unexpected_keys if "pooler" not in name]
    assert all(torch.equal(value, model.vit.state_dict()[name]) for name, value in base.state_dict().items())


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


# ---- peft


def with_adapter(seed: int) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    config = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"], init_lora_weights=False)
    return peft.get_peft_model(build("BertForSequenceClassification"), config)


def test_reads_an_adapter_of_peft(tmp_path: Path) -> None:
    tuned, other = with_adapter(1), with_adapter(2)
    tuned.save_pretrained(tmp_path)
    base = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_weights(other, tmp_path)
    ours, theirs = other.state_dict(), tuned.state_dict()
    assert not report.missing_keys
    assert set(report.loaded_keys) == {name for name in ours if ".default." in name}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name] if name in report.loaded_keys else base[name])


def test_an_adapter_needs_a_model_that_has_one(tmp_path: Path) -> None:
    with_adapter(1).save_pretrained(tmp_path)
    for strict in (True, False):
        with pytest.raises(
            CheckpointError, match=r"only an adapter of peft, and the Bert.* has no adapter.*get_peft_model"
        ):
            load_weights(build("BertForSequenceClassification"), tmp_path, strict=strict)
    torch.save(with_adapter(1).state_dict(), tmp_path / "whole.pt")
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=r"a model that peft has wrapped, with its adapter.*get_peft_model"):
            load_weights(build("BertForSequenceClassification"), tmp_path / "whole.pt", strict=strict)
    with pytest.raises(CheckpointError, match="only an adapter of peft"):
        load_weights(build("BertForSequenceClassification"), tmp_path)


def test_an_adapter_of_other_layers_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = with_adapter(1)
    config = peft.LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    peft.get_peft_model(build("BertForSequenceClassification"), config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing in the source: .*value\.lora_A\.default\.weight"):
        load_weights(model, tmp_path)


def test_a_whole_file_of_a_model_with_an_adapter_is_loaded_whole(tmp_path: Path) -> None:
    tuned, other = with_adapter(1), with_adapter(2)
    save_weights(tuned, tmp_path / "whole.safetensors")
    load_weights(other, tmp_path / "whole.safetensors")
    assert all(torch.equal(*pair) for pair in zip(tuned.parameters(), other.parameters(), strict=True))


LORA = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "init_lora_weights": False, "lora_alpha": 8}


def adapted(seed: int, kind: str = "LoraConfig", **options: Any) -> Any:
    """A BERT with an adapter that is not idle."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = build("BertForSequenceClassification")
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, getattr(peft, kind)(**options))
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, model.parameters()):
            parameter.normal_()
    return model


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("lora_alpha", 32),
        ("use_rslora", True),
        ("use_dora", True),
        ("r", 16),
        ("rank_pattern", {"query": 16}),
        ("alpha_pattern", {"query": 16}),
        ("init_lora_weights", "pissa"),
    ],
)
def test_an_adapter_with_another_setting_is_refused(setting: str, other: Any, tmp_path: Path) -> None:
    """No tensor shows its scale; and where one shows another rank, the setting is what to change."""
    adapted(1, **{**LORA, setting: other}).save_pretrained(tmp_path)
    model = adapted(2, **LORA)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for source in (tmp_path, tmp_path / "adapter_model.safetensors"):
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=rf"{setting}={re.escape(repr(other))}, here .*get_peft_model"):
                load_weights(model, source, strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_merged_adapter_is_refused(tmp_path: Path) -> None:
    """New ones would have no effect on its outputs, and its base is no longer the pretrained one."""
    tuned = adapted(1, **LORA)
    tuned.save_pretrained(tmp_path)
    model = adapted(2, **LORA)
    model.merge_adapter()
    with pytest.raises(CheckpointError, match=r"merged into its weights.*unmerge_adapter"):
        load_weights(model, tmp_path)
    with pytest.raises(CheckpointError, match="merged into its weights"):
        save_delta(model, tmp_path / "delta.safetensors")
    model.unmerge_adapter()  # which rounds
    load_weights(model, tmp_path)
    assert all(map(torch.allclose, outputs(tuned), outputs(model)))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.parametrize(
    "setting", [{"fan_in_fan_out": True}, {"lora_alpha": 32, "use_rslora": True, "use_dora": True}]
)
def test_an_adapter_with_the_same_settings_is_loaded(setting: dict[str, Any], tmp_path: Path) -> None:
    """What differs in training only is no matter; fan_in_fan_out peft itself sets as the layer has it."""
    tuned = adapted(1, **{**LORA, **setting, "lora_dropout": 0.5})
    tuned.save_pretrained(tmp_path)
    model = adapted(2, **{**LORA, **setting})
    load_weights(model, tmp_path)
    assert all(map(torch.equal, outputs(tuned), outputs(model)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("IA3Config", {"target_modules": ["query", "output.dense"], "feedforward_modules": ["output.dense"]}),
        ("LoHaConfig", {"target_modules": ["query", "value"], "alpha": 4}),
        ("VeraConfig", {"target_modules": ["query", "value"]}),
        ("OFTConfig", {"target_modules": ["query", "value"], "oft_block_size": 4}),
        ("AdaLoraConfig", {"target_modules": ["query", "value"], "total_step": 10}),
        ("PromptTuningConfig", {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}),
    ],
)
def test_adapters_of_other_kinds_are_read(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    tuned, model = adapted(1, kind, **options), adapted(2, kind, **options)
    tuned.save_pretrained(tmp_path)
    assert not all(map(torch.equal, outputs(tuned), outputs(model)))
    load_weights(model, tmp_path)
    assert all(map(torch.equal, outputs(tuned), outputs(model)))


def test_a_prompt_needs_a_place_of_its_own(tmp_path: Path) -> None:
    """A plain model has none; another kind of adapter is another setting; and one that computes it can't take it."""
    options = {"task_type": "SEQ_CLS", "num_virtual_tokens": 4}
    computed = adapted(1, "PromptEncoderConfig", **options, encoder_hidden_size=8)
    computed.save_pretrained(tmp_path / "computed")
    adapted(1, "PromptTuningConfig", **options).save_pretrained(tmp_path / "prompt")
    for model, folder, message in (
        (build("BertForSequenceClassification"), "prompt", r"contains a prompt .*PeftModel\.from_pretrained"),
        (adapted(2, **LORA), "prompt", "peft_type='PROMPT_TUNING', here 'LORA'"),
        (computed, "computed", r"contains a prompt .*PeftModel\.from_pretrained"),
    ):
        for strict in (True, False):
            with pytest.raises(CheckpointError, match=message):
                load_weights(model, tmp_path / folder, strict=strict)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"r": ' + "[" * 100_000])
def test_damaged_settings_of_an_adapter_are_an_error(text: str, tmp_path: Path) -> None:
    model = adapted(1, **LORA)
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is not what save_pretrained of peft writes"):
        load_weights(model, tmp_path)


def test_another_librarys_models_have_no_mapping() -> None:
    from ftkit._weights.libraries import Library, adapter_names

    assert Library.of(nn.Linear(2, 2)) is None
    assert adapter_names(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("strict", [True, False])
def test_a_base_is_loaded_before_its_model_is_wrapped(strict: bool, tmp_path: Path) -> None:
    """A renaming would fit all but the layers with an adapter, whose weights would stay random."""
    build("BertForSequenceClassification").save_pretrained(tmp_path)
    model = with_adapter(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"contains the model without an adapter.* before the model is wrapped"):
        load_weights(model, tmp_path, strict=strict)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match="does not fit the PeftModel"):
        load_weights(model, {"other.weight": torch.ones(2)}, strict=strict)
