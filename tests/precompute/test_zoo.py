"""A sweep over whole collections of models: the same outputs, gradients and buffers to the bit, or a clear refusal."""

from __future__ import annotations

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Forks, and limits what the processes take.", allow_module_level=True)

from tests.precompute.zoo import CASES, NOT_BUILT, REFUSED, SAME, TOO_MUCH, WRONG, judged, share_same

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fork")]

VARIED = (
    "timm-resnet", "timm-levit", "timm-swin_transformer", "torchvision-googlenet", "torchvision-fcn_resnet50",
    "transformers-BertForSequenceClassification", "transformers-T5ForSequenceClassification",
    "transformers-CLIPForImageClassification",
)  # fmt: skip


@pytest.mark.parametrize("case", VARIED)
def test_varied_families(case: str) -> None:
    """Convolutions, attention with a table of biases, auxiliary heads, encoders with decoders."""
    assert [(one.verdict, one.why) for one in judged([case])] == [(SAME, "")] * 2


def test_all() -> None:
    """Nothing is wrong, 97 of 100 are the same to the bit, and the others are told why not."""
    outcomes = list(judged(CASES))
    assert [one for one in outcomes if one.verdict == WRONG] == []
    assert [one for one in outcomes if one.verdict == REFUSED and "late" in one.why] == []
    assert sum(one.verdict in (NOT_BUILT, TOO_MUCH) for one in outcomes) < len(outcomes) / 10
    assert share_same(outcomes) >= 0.97, [one for one in outcomes if one.verdict != SAME]
