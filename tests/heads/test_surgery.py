"""What counts the classes follows a new head, all of it or nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ftkit import replace_head
from ftkit.errors import HeadError
from tests.heads.nets import Net, features, wired


def test_counters_and_the_weights_of_a_loss_follow() -> None:
    """What counts the classes in the model, a configuration or a loss has the new count."""
    model = Net(fc=nn.Linear(8, 10), loss=nn.CrossEntropyLoss(weight=torch.arange(10.0)))
    model.num_classes, model.config, model.n_layers = 10, {"classes": 10, "depth": 10}, 10
    replace_head(model, 3, at="fc", keep={0: 7})
    assert (model.num_classes, model.config, model.n_layers) == (3, {"classes": 3, "depth": 10}, 10)
    assert model.loss.weight.tolist() == [7.0, 1.0, 1.0]


def test_a_tied_table_is_untied_or_cut_together() -> None:
    """Without keep the embedding stays; with keep it is cut or grown with the layer, as the same object."""

    def build() -> nn.Module:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table, self.out = nn.Embedding(50, 16, padding_idx=3), nn.Linear(16, 50, bias=False)
                self.out.weight = self.table.weight

            def forward(self, ids: torch.Tensor) -> torch.Tensor:
                return self.out(self.table(ids))

        return Tied()

    model = build()
    weight = model.table.weight
    replace_head(model, 7)
    assert model.table.weight is weight
    assert (model.table.num_embeddings, model.out.weight.shape) == (50, (7, 16))
    model = build()
    weight, before = model.table.weight, model.table.weight.detach().clone()
    replace_head(model, 53, keep={i: i for i in range(50)})
    assert model.out.weight is weight is model.table.weight
    assert torch.equal(weight[:50], before)
    assert model(torch.tensor([[52]])).shape == (1, 1, 53)
    replace_head(model, 4, keep={0: 2, 1: 3})
    assert (model.table.padding_idx, model.out.out_features) == (1, 4)
    assert torch.equal(weight[:2], before[2:4])


def test_a_failure_midway_leaves_the_model_as_it_was() -> None:
    """A counter that refuses the new count: layers and counters are taken back."""

    class Strict(Net):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "num_classes" and value != 10:
                raise RuntimeError("ten classes, always")
            super().__setattr__(name, value)

    model = Strict(fc=nn.Linear(8, 10))
    model.num_classes = 10
    before = model.fc
    with pytest.raises(RuntimeError, match="always"):
        replace_head(model, 3)
    assert model.fc is before
    assert model.num_classes == 10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("fasterrcnn_mobilenet_v3_large_320_fpn", marks=pytest.mark.slow),
        pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_detectors_train_with_the_new_count(name: str) -> None:
    """A torchvision detector's own loss takes labels up to the new count, and its predictions stay below it."""
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    head = replace_head(model, 5)
    assert head.out_features == 5
    images = [torch.rand(3, 96, 96) for _ in range(2)]
    target = {
        "boxes": torch.tensor([[10.0, 10, 60, 60], [5, 5, 40, 70]]),
        "labels": torch.tensor([1, 4]),
        "masks": torch.zeros(2, 96, 96, dtype=torch.uint8),
    }
    sum(model.train()(images, [target, target]).values()).backward()
    with torch.no_grad():
        assert all((found["labels"] < 5).all() for found in model.eval()(images))


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Sequential, int]:
    """A perceptron of any depth, and how many outputs it has."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=draw(st.booleans())), draw(st.sampled_from([nn.ReLU(), nn.Tanh()]))]
    if draw(st.booleans()):
        layers.insert(1, nn.LayerNorm(widths[1]))
    outputs = draw(st.integers(2, 9).filter(lambda count: count != widths[0]))  # else it might be an autoencoder
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs)), outputs


@settings(max_examples=25, deadline=None)
@given(networks(), st.integers(1, 12), st.data())
def test_surgery_never_changes_an_unrelated_tensor(
    made: tuple[nn.Sequential, int], count: int, data: st.DataObject
) -> None:
    """Whatever the network: the last layer goes, kept rows are carried, all else is the same object."""
    model, outputs = made
    name, old = str(len(model) - 1), model[-1]
    keep = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, outputs - 1)))
    before = {n: p for n, p in model.named_parameters() if not n.startswith(f"{name}.")}
    head = replace_head(model, count, keep=keep)
    assert head.names == (name,)
    assert {n: id(p) for n, p in model.named_parameters() if n in before} == {n: id(p) for n, p in before.items()}
    for new, kept in keep.items():
        assert torch.equal(model[-1].weight[new], old.weight[kept])
    assert model(torch.zeros(3, model[0].in_features)).shape == (3, count)


@pytest.mark.frameworks
def test_transformers_labels_follow() -> None:
    """num_labels, the names of labels that stay, and the model's own loss."""
    transformers = pytest.importorskip("transformers")
    labels = {0: "cat", 1: "dog", 2: "cow"}
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=37,
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    model = transformers.ViTForImageClassification(config)
    replace_head(model, 4, keep={3: 1})
    assert (model.num_labels, model.config.id2label[3], model.config.label2id["dog"]) == (4, "dog", 3)
    assert model(pixel_values=torch.zeros(1, 3, 32, 32), labels=torch.tensor([3])).loss.isfinite()


@pytest.mark.frameworks
@pytest.mark.parametrize("keep", [None, {0: 0, 2: 5}])
def test_only_the_side_of_the_head_counts_its_words(keep: dict[int, int] | None) -> None:
    """The encoder of a pair has as many words as before; the configuration of the pair tells both."""
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sides = transformers.BertConfig(**size), transformers.BertConfig(**size, is_decoder=True, add_cross_attention=True)
    pair = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
    model = transformers.EncoderDecoderModel(pair)
    replace_head(model, 12, keep=keep)
    assert (model.config.encoder.vocab_size, model.config.decoder.vocab_size) == (9, 12)
    assert model.config.encoder is model.encoder.config
    assert model.config.decoder is model.decoder.config
    assert (pair.encoder.vocab_size, pair.decoder.vocab_size) == (9, 9)
    tokens = torch.ones(1, 3, dtype=torch.long)
    assert model(input_ids=tokens, decoder_input_ids=tokens).logits.shape == (1, 3, 12)


def test_a_detector_that_learns_from_noisy_labels() -> None:
    """The embedding of labels has a row more for "none", and the loss a weight more for "no object"."""

    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_labels = 5
            self.register_buffer("empty_weight", torch.tensor([1.0, 2, 3, 4, 5, 0.1]))

    model = wired(
        lambda self, x: {"logits": self.class_predictor(self.body(x)), "noise": self.denoising_class_embed.weight},
        body=features(),
        denoising_class_embed=nn.Embedding(6, 4, padding_idx=5),
        class_predictor=nn.Linear(8, 6),
        criterion=Criterion(),
        num_labels=5,
    )
    old = model.denoising_class_embed.weight
    head = replace_head(model, 3, keep={1: 4})
    assert head.names == ("class_predictor", "denoising_class_embed")
    assert (model.class_predictor.out_features, model.num_labels, model.criterion.num_labels) == (4, 3, 3)
    assert model.criterion.empty_weight.tolist() == pytest.approx([1, 5, 1, 0.1])
    table = model.denoising_class_embed
    assert (table.num_embeddings, table.padding_idx) == (4, 3)
    torch.testing.assert_close(table.weight[[1, 3]], old[[4, 5]])
    with pytest.raises(HeadError, match="class count"):
        replace_head(model, lambda width: nn.Linear(width, 4))


def test_what_a_crf_learns_between_tags_is_new_too() -> None:
    """Its transitions have no part in the forward pass, yet count the tags."""

    class Crf(nn.Module):
        def __init__(self, num_tags: int) -> None:
            super().__init__()
            self.num_tags = num_tags
            self.start, self.transitions = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(5, 5))

    model = wired(
        lambda self, x: self.emissions(self.table(x)),
        table=nn.Embedding(20, 8),
        emissions=nn.Linear(8, 5),
        crf=Crf(5),
    )
    old = model.crf.transitions.detach()
    replace_head(model, 3, keep={2: 4, 0: 1})
    assert (model.crf.num_tags, model.crf.start.shape, model.crf.transitions.shape) == (3, (3,), (3, 3))
    assert model.crf.transitions[2, 0] == old[4, 1]


@pytest.mark.parametrize("head", [7, nn.Linear(6, 7)], ids=["count", "module"])
def test_a_configuration_no_longer_ties_a_head_that_left_its_embedding(head: int | nn.Module) -> None:
    """So that the next checkpoint is read with the weight that the head has."""
    model = wired(lambda self, ids: self.lm_head(self.table(ids)), table=nn.Embedding(9, 6), lm_head=nn.Linear(6, 9))
    model.lm_head.weight = model.table.weight
    model.config = type("Config", (), {})()
    model.config.vocab_size, model.config.tie_word_embeddings = 9, True
    replace_head(model, head)
    assert model.table.weight.shape == (9, 6)
    assert (model.config.vocab_size, model.config.tie_word_embeddings) == (7, False)
