"""Whole model collections: nothing learns faster than what comes after it."""

from __future__ import annotations

import pytest

from tests.groups import flow, sweep

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", sweep.cases())
def test_rates_rise_on_every_path(case: str) -> None:
    """By an account of the order of use that is not ftkit's own; timm's own groups where that allows them."""
    build = sweep.cases()[case]
    try:
        before = sweep.order_of_use(build)
    except Exception as error:
        pytest.skip(f"not built or not run here: {error}")
    model = sweep.built(build)
    rates, order = sweep.rates_of(model)
    assert not flow.inverted(before, rates)
    timms = sweep.rates_of_timm(model)
    if timms is not None and not flow.inverted(before, timms):
        assert order == "declared"
        assert rates == pytest.approx(timms)
