"""The printed tree, the exports, and what is said of freezing."""

from __future__ import annotations

import csv
import io
import json
import textwrap

import pytest
import torch
from torch import nn

from ftkit import FtkitError, compare, largest_batch, summary


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layer = nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(self.norm(x))


class Network(nn.Module):
    """An embedding, blocks and a head that shares the embedding's weight."""

    def __init__(self, blocks=4, width=64):
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.spare = nn.Linear(width, width)
        self.head = nn.Linear(width, 1000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.blocks(self.embed(tokens)))


TOKENS = {"input_size": (2, 16), "dtypes": torch.long}


def golden(text):
    """A summary as it stands in a test."""
    return textwrap.dedent(text).strip("\n")


def test_tree_of_a_network_that_trains():
    """Repeated blocks are one line with their sums, a tied weight counts once, what is not called says so."""
    assert summary(Network(), **TOKENS).text(width=100) == golden("""
        module                        output         params  state   forward  backward   saved
        ──────────────────────────────────────────────────────────────────────────────────────
        Network                       (2, 16, 1000)  85.3 K  trains   5.14 M    10.3 M  73 KiB
        ├─ embed  Embedding           (2, 16, 64)      64 K  trains        -         -       -
        ├─ blocks  Sequential         (2, 16, 64)    17.2 K  trains   1.05 M     2.1 M  65 KiB
        │  └─ 0 … 3  4 x Block        (2, 16, 64)    17.2 K  trains   1.05 M     2.1 M  65 KiB
        │     ├─ norm  4 x LayerNorm  (2, 16, 64)       512  trains        -         -  33 KiB
        │     └─ layer  4 x Linear    (2, 16, 64)    16.6 K  trains   1.05 M     2.1 M  32 KiB
        ├─ spare  Linear              not called     4.16 K  trains        -         -       -
        └─ head  Linear               (2, 16, 1000)    64 K  trains    4.1 M    8.19 M   8 KiB
        ──────────────────────────────────────────────────────────────────────────────────────
        Parameters  85.3 K in 333 KiB; head.weight tied, counted once.
        One step    5.14 MFLOP forward, 10.3 MFLOP backward; 198 KiB kept for the backward pass (125 KiB by
                    the loss).
    """)


def test_tree_of_a_network_that_is_partly_frozen():
    """What is frozen and still passes gradients says so; so does a false economy, within the width asked for."""
    model = Network(blocks=2)
    model.requires_grad_(False)
    model.blocks[0].norm.requires_grad_(True)
    model.blocks[1].eval()
    assert summary(model, **TOKENS).text(width=94) == golden("""
        module                    params  state                     forward  backward     saved
        ───────────────────────────────────────────────────────────────────────────────────────
        Network                   76.7 K  partial                    4.62 M    4.62 M  16.5 KiB
        ├─ embed  Embedding         64 K  frozen                          -         -         -
        ├─ blocks  Sequential     8.58 K  partial                     524 K     524 K  16.5 KiB
        │  ├─ 0  Block            4.29 K  partial                     262 K     262 K  8.25 KiB
        │  │  ├─ norm  LayerNorm     128  trains                          -         -  8.25 KiB
        │  │  └─ layer  Linear    4.16 K  frozen, passes gradients    262 K     262 K         -
        │  └─ 1  Block            4.29 K  frozen, passes gradients    262 K     262 K  8.25 KiB
        │     ├─ norm  LayerNorm     128  frozen, passes gradients        -         -  8.25 KiB
        │     └─ layer  Linear    4.16 K  frozen, passes gradients    262 K     262 K         -
        ├─ spare  Linear          4.16 K  frozen                          -         -         -
        └─ head  Linear             64 K  frozen, passes gradients    4.1 M     4.1 M         -
        ───────────────────────────────────────────────────────────────────────────────────────
        Parameters  76.7 K in 300 KiB, of which 128 train and 76.6 K are frozen; head.weight tied,
                    counted once.
        One step    4.62 MFLOP forward, 4.62 MFLOP backward; 142 KiB kept for the backward pass
                    (125 KiB by the loss).
        Freezing    99.8% of the parameters are frozen. Against training all, that saves 50% of the
                    backward FLOPs and 14.5% of the bytes kept.
    """)


def test_a_false_economy_is_named():
    """Much is frozen, and hardly any memory is saved."""
    model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Tanh())])
    model[2:].requires_grad_(False)
    found = summary(model, (32, 64))
    assert found.saved_bytes > 0.9 * found.unfrozen_saved_bytes
    assert "A false economy: 0 trains" in str(found)
    model[:14].requires_grad_(False)
    model[14].requires_grad_(True)
    found = summary(model, (32, 64))
    assert found.saved_bytes < 0.4 * found.unfrozen_saved_bytes
    assert "false economy" not in str(found)
    model.requires_grad_(False)
    assert "there is no backward pass" in str(summary(model, (32, 64)))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_fits_the_terminal(width):
    """What a step costs in a narrow one, all there is in a wide one."""
    model = Network(blocks=2)
    model.requires_grad_(False)
    model.blocks[0].norm.requires_grad_(True)
    model.blocks[1].eval()
    for found in (summary(model, **TOKENS), summary(model)):
        assert max(map(len, found.text(width=width).splitlines())) <= width
    text = summary(model, **TOKENS).text(width=width)
    assert text.splitlines()[0].split()[-1] == "saved"
    assert ("frozen, passes gradients" in text) == (width >= 80)
    assert ("(2, 16, 64)" in text) == (width == 120)


def test_depth_and_folding_are_up_to_the_reader():
    """Every block on its own line, or only the top."""
    found = summary(Network(), **TOKENS)
    assert "4 x" not in found.text(fold=False)
    assert found.text(fold=False, depth=2).count("Block") == 4
    assert len(found.text(depth=0, width=120).splitlines()) == 6
    assert len(str(summary(Network(), **TOKENS, depth=1)).splitlines()) == 10


def test_a_module_called_often_is_one_row():
    """With its calls, and the sum of its costs."""
    layer = nn.Linear(8, 8)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer), (4, 8))
    assert [(row.name, row.calls) for row in found.rows] == [("", 1), ("0", 3), ("1", 1), ("3", 1)]
    assert found.rows[1].forward_flops == found.forward_flops == 3 * 2 * 4 * 8 * 8
    assert "0  Linear (called 3x)" in str(found)


def test_figures_of_a_tied_model():
    """Parameters, bytes and buffers count once, by module and in all."""
    model = Network(blocks=1)
    model.register_buffer("scale", torch.ones(3))
    found = summary(model)
    assert (found.total_params, found.buffers) == (1000 * 64 + 2 * 64 + 2 * (64 * 64 + 64), 3)
    assert found.param_bytes == 4 * found.total_params
    assert found.tied == ("head.weight",)
    assert {row.name: row.params for row in found.rows}["head"] == 64_000
    with pytest.raises(FtkitError, match="give summary"):
        found.peak_training_bytes(torch.optim.SGD)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"input_size": (4, 8)}, (4, 8)),
        ({"input_size": [(4, 8), (4, 1)]}, ((4, 8), (4, 1))),
        ({"input_size": (4, 8), "dtypes": torch.float64}, (4, 8)),
        ({"input_data": torch.ones(4, 8)}, (4, 8)),
        ({"input_data": (torch.ones(4, 8), torch.ones(4, 1))}, ((4, 8), (4, 1))),
        ({"input_data": {"x": torch.ones(4, 8)}}, (4, 8)),
        ({"input_data": ((torch.ones(4, 8),), {"scale": torch.ones(4, 1)})}, ((4, 8), (4, 1))),
    ],
)
def test_inputs_come_in_many_ways(given, shape):
    """Shapes or data, positional or by keyword."""

    class Scaled(nn.Module):
        def forward(self, x, scale=None):
            return x if scale is None else x * scale

    assert summary(Scaled(), **given).rows[0].input_shape == shape


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_size": (2, 8), "input_data": torch.ones(2, 8)}, "got both"),
        ({"input_size": (2, -8)}, r"got \(2, -8\)"),
        ({"input_size": "2x8"}, "got '2x8'"),
        ({"input_size": (2, 8), "dtypes": [torch.float32] * 2}, "as many dtypes as shapes, got 2 for 1"),
        ({"dtypes": torch.float32}, "dtypes belong to input_size"),
        ({"input_data": [torch.ones(2, 8)]}, "got list: if that is the model's only argument"),
        ({"input_size": (2, 8), "mode": "trian"}, "Did you mean 'train'"),
        ({"input_size": (2, 9)}, "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_bad_arguments_say_what_was_expected(given, said):
    """Each error names what came."""
    with pytest.raises(FtkitError, match=said):
        summary(nn.Linear(8, 8), **given)
    with pytest.raises(FtkitError, match=r"Expected a torch.nn.Module, got type"):
        summary(nn.Linear, (2, 8))


def test_tokens_given_as_floats_are_explained():
    """The mistake that input_size invites."""
    with pytest.raises(FtkitError, match=r"Tokens are integers: pass dtypes=torch\.long"):
        summary(Network(), (2, 16))


def test_mode_is_as_it_ran():
    """By default as it stands; else as asked, and the model is left alone."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).eval()
    assert {row.mode for row in summary(model, (2, 8)).rows} == {"eval"}
    assert {row.mode for row in summary(model, (2, 8), mode="train").rows} == {"train"}
    assert not any(module.training for module in model.modules())


def test_what_is_in_force_around_the_call_holds():
    """Under autocast, what is kept is what autocast keeps."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    plain = summary(model, (32, 64))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = summary(model, (32, 64))
    assert half.forward_flops == plain.forward_flops
    assert half.backward_flops == plain.backward_flops
    assert half.saved_bytes != plain.saved_bytes


def test_a_loss_of_ones_own_counts():
    """What it keeps is kept by the step, and belongs to no module."""
    model = nn.Linear(8, 1000)
    target = torch.zeros(4, dtype=torch.long)
    found = summary(model, (4, 8), loss=lambda output: nn.functional.cross_entropy(output, target))
    assert found.saved_bytes >= 4 * 1000 * 4 > found.rows[0].saved_bytes
    assert summary(model, (4, 8), loss=torch.sum).saved_bytes == found.rows[0].saved_bytes


def test_exports_hold_all_figures():
    """JSON and CSV can be read back."""
    found = summary(Network(), **TOKENS)
    read = json.loads(found.to_json())
    assert read["total_params"] == found.total_params
    assert read["rows"][0]["output_shape"] == [2, 16, 1000]
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [line["name"] for line in lines] == [row.name for row in found.rows]
    assert sum(int(line["forward_flops"]) for line in lines if line["type"] == "Linear") == found.forward_flops


def test_a_ragged_dimension_has_no_size():
    """It is -1 wherever shapes are written."""

    class Ragged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(torch.nested.nested_tensor([x[0], x[1][:3]], layout=torch.jagged)).values()

    found = summary(Ragged(), input_data=torch.randn(2, 5, 8))
    assert found.rows[1].output_shape == (2, -1, 8)
    assert found.forward_flops == found.backward_flops == 2 * (5 + 3) * 8 * 8
    assert json.loads(found.to_json())["rows"][1]["output_shape"] == [2, -1, 8]


def test_html_unfolds_without_a_script():
    """It brings its own style, links to nothing, and escapes names."""
    Odd = type("A<b>", (nn.Linear,), {})
    page = summary(nn.Sequential(Odd(8, 8)), (2, 8))._repr_html_()
    assert page.count("<details") == page.count("</details>") == 1
    assert "A&lt;b&gt;" in page
    assert "A<b>" not in page
    assert not any(word in page for word in ("<script", "http", "@import", "url("))


def test_plot_draws_a_picture(tmp_path):
    """In the format that the suffix names."""
    matplotlib = pytest.importorskip("matplotlib")
    model = Network()
    model.embed.requires_grad_(False)
    found = summary(model, **TOKENS)
    found.plot(tmp_path / "cost.png")
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        found.plot(tmp_path / "cost.svg")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    assert "blocks.0 … 3.norm" in (tmp_path / "cost.svg").read_text(encoding="utf-8")
    with pytest.raises(FtkitError, match="nothing to draw"):
        summary(model).plot(tmp_path / "none.png")


def test_compare_shows_what_differs():
    """Totals, and the modules whose cost is not the same."""
    model = Network()
    before = summary(model, **TOKENS)
    model.blocks.requires_grad_(False)
    both = compare(before, summary(model, **TOKENS))
    assert [line.split() for line in str(both).split("\n")][3] == ["trainable", "85.3", "K", "68.2", "K", "-20.1%"]
    assert {"blocks", "blocks.0", "blocks.0.norm"} <= set(both.differing())
    assert "spare" not in both.differing()
    other = summary(nn.Linear(4, 4), (2, 4))
    assert str(compare(before, other)).split("\n")[0].split() == ["Network", "Linear"]
    with pytest.raises(FtkitError, match="this is a Linear"):
        compare(before, nn.Linear(4, 4))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("memory", [3_000_000, 20_000_000])
def test_largest_batch_is_the_largest(optimizer, memory):
    """One more example would not fit."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 900, 10))
    batch = largest_batch(model, (7, 3, 32, 32), memory=memory, optimizer=optimizer)
    peaks = [summary(model, (size, 3, 32, 32)).peak_training_bytes(optimizer) for size in (batch, batch + 1)]
    assert peaks[0] <= memory < peaks[1]


def test_largest_batch_can_be_none():
    """Where the parameters alone are too much; and where nothing grows, it says so."""
    model = nn.Linear(100, 100)
    assert largest_batch(model, (1, 100), memory=1000, optimizer=torch.optim.SGD) == 0

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10))

        def forward(self, x):
            return self.weight.sum()

    with pytest.raises(FtkitError, match="does not grow with the batch"):
        largest_batch(Constant(), (1, 0), memory=10**9, optimizer=torch.optim.SGD)


def test_wrapped_models_are_looked_at_from_inside():
    """Names and figures are those of the model itself."""
    model = Network()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert summary(wrapped, **TOKENS).to_dict() == summary(model, **TOKENS).to_dict()


def test_a_detection_model_takes_its_list(tmp_path):
    """Shapes that depend on values are found in one real step, which the summary tells."""
    import torchvision

    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    found = summary(model.eval(), input_data=([torch.rand(3, 64, 64)],))
    boxes, labels, scores = found.rows[0].output_shape
    assert boxes[0] == labels[0] == scores[0]
    assert "with real tensors" in str(found)


@pytest.mark.slow
def test_zoo_agrees_with_the_counter():
    """FLOPs and output shapes of a hundred networks, against torch's counter with plain attention."""
    import timm
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for name in timm.list_models()[::12]:
        model = timm.create_model(name).eval()
        if sum(parameter.numel() for parameter in model.parameters()) > 30e6:
            continue
        x = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])
        found = summary(model, input_data=x)
        model.requires_grad_(False)  # the counter can't follow a parameter's view that has no history
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            output = model(x)
        assert found.forward_flops == counter.get_total_flops(), name
        assert found.rows[0].output_shape == tuple(output.shape), name


def test_a_list_of_layers_costs_what_they_cost():
    """Though it is never called itself."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    found = summary(Listed(), (4, 8))
    whole, listed = found.rows[:2]
    assert (listed.calls, listed.output_shape) == (0, None)
    for name in ("forward_flops", "backward_flops", "saved_bytes"):
        assert getattr(listed, name) == getattr(whole, name) > 0
    assert "not called" not in str(found)
