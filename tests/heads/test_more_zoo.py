"""Families beyond the common ones, each compared with a model freshly built for the new count."""

from __future__ import annotations

import pytest

from tests.heads import oracle
from tests.heads.zoo import CASES, GOOD, NOT_BUILT, Verdict, inputs_of, judged, share_right

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, Verdict]:
    """What came of the chosen cases, which are judged side by side."""
    here = (item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function))
    chosen = {item.callspec.params["case"] for item in here if hasattr(item, "callspec")}
    return {verdict.case: verdict for verdict in judged(case for case in CASES if case in chosen)}


@pytest.mark.parametrize("case", CASES)
def test_a_refitted_model_is_like_a_fresh_one(verdicts: dict[str, Verdict], case: str) -> None:
    """In all that the oracle compares; or the head is refused and nothing has changed."""
    if verdicts[case].verdict == NOT_BUILT:
        pytest.skip(verdicts[case].why)
    assert verdicts[case].verdict in (*GOOD, oracle.REFUSED), verdicts[case].why


def test_nearly_all_are_right(verdicts: dict[str, Verdict]) -> None:
    """Most of what was built is right, or refused with what to do instead."""
    assert share_right(verdicts.values()) >= 0.95


@pytest.mark.parametrize("case", CASES)
def test_to_find_a_head_changes_nothing(case: str) -> None:
    """No tensor, mode, attribute, cache or random number, of the model, its classes and what is around it."""
    try:
        build = CASES[case]()
        model = oracle.quietly(build, oracle.BEFORE, values=oracle.is_small(oracle.quietly(build, oracle.BEFORE)))
    except Exception as error:
        pytest.skip(f"not built here: {error}")
    assert not oracle.looked_at(model, inputs_of(case), None, ["find_head"])
