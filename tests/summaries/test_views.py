"""The printed tree, its page and its picture."""

from __future__ import annotations

import textwrap

import pytest
from torch import nn

from ftkit import FtkitError, summary
from tests.summaries.helpers import TOKENS, Network


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
        Freezing    99.8% of the parameters are frozen. Compared with training everything, that saves
                    50% of the backward FLOPs and 14.5% of the bytes kept.
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
