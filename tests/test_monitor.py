"""One rule for "better", and early stopping by it."""

from __future__ import annotations

import itertools
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit import CheckpointManager, EarlyStopping, FtkitError
from ftkit._monitor import best_first, is_better, metric_value, mode_for, numbers_of, whole_number

numbers = st.floats(allow_nan=False, width=32)


@given(numbers, numbers)
def test_min_and_max_are_mirror_images(a: float, b: float) -> None:
    """Lower is better exactly when the negated value is better the other way."""
    assert is_better(a, b, "min") == is_better(-a, -b, "max")


@given(numbers, numbers)
def test_no_two_values_beat_each_other(a: float, b: float) -> None:
    """Better is a strict order."""
    assert not (is_better(a, b) and is_better(b, a))
    assert not is_better(a, a)


@given(
    st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, math.nan, math.inf]))),
    st.sampled_from(["min", "max"]),
)
def test_the_best_comes_first(values: list[float | None], mode: Any) -> None:
    """Nothing beats what stands before it, equals stay in order, and what is no number is left out."""
    ranked = best_first(range(len(values)), lambda index: values[index], mode)
    assert set(ranked) == {index for index, value in enumerate(values) if value is not None and not math.isnan(value)}
    for first, second in itertools.pairwise(ranked):
        assert not is_better(values[second], values[first], mode)
        assert first < second or values[first] != values[second]


@given(st.lists(st.floats(0, 1, width=32), min_size=1), st.integers(1, 5))
def test_stops_exactly_when_patience_runs_out(losses: list[float], patience: int) -> None:
    """It says stop at the first value that ends `patience` values in a row without a new minimum."""
    stopping = EarlyStopping(patience, mode="min")
    answers = [stopping.step(loss) for loss in losses]
    since_best = [len(losses[: i + 1]) - 1 - losses.index(min(losses[: i + 1])) for i in range(len(losses))]
    expected = next((i for i, stale in enumerate(since_best) if stale >= patience), None)
    assert answers.index(True) == expected if expected is not None else not any(answers)


@given(st.lists(st.floats(0, 1, width=32), min_size=2), st.integers(1, 3), st.data())
def test_a_resumed_run_stops_where_the_whole_one_does(losses: list[float], patience: int, data: st.DataObject) -> None:
    """state_dict carries all that the count needs."""
    cut = data.draw(st.integers(0, len(losses)))
    whole = EarlyStopping(patience, mode="max")
    expected = [whole.step(loss) for loss in losses]
    first, second = EarlyStopping(patience, mode="max"), EarlyStopping(patience, mode="max")
    answers = [first.step(loss) for loss in losses[:cut]]
    second.load_state_dict(first.state_dict())
    assert answers + [second.step(loss) for loss in losses[cut:]] == expected


LOWER = """
    loss val_loss val/loss train.loss Loss valLoss BCELoss GLoss loss_epoch total_losses eval_loss log_loss
    logloss nll val_nll error err top1_err error_rate word_error_rate errors perplexity ppl val-ppl mae MAE mse
    MSE val_mse rmse RMSE rmsle mape smape wer WER val/cer ter fid FID eer ece hd95 HD95 epe lpips bpc
    brier_score validation_MAE mae_m loss@best
"""
HIGHER = """
    acc val_acc val/acc valAcc Acc@1 acc1 top1_acc top-5-acc accuracy val_accuracy balanced_accuracy
    MulticlassAccuracy f1 F1 val_f1 f1_score macroF1 F1Score f1-macro auc AUC val_auc roc_auc ROC-AUC auroc
    AUROC MultilabelAUROC auprc pr_auc iou IoU mIoU mean_iou MeanIoU val/mIoU jaccard dice Dice dice_score
    precision recall recall@5 average_precision map mAP mAP50 mAP@0.5 metrics/mAP50-95(B) AP AP75 bleu BLEU
    bleu4 BLEU-4 sacrebleu rouge rougeL rouge1 ROUGE-L meteor CIDEr chrf r2 R2 r2_score R2Score psnr PSNR ssim
    SSIM ms_ssim mcc kappa ndcg@10 mrr MRR hits@1 specificity sensitivity spearman pearsonr
"""
UNDECIDED = """
    v m metric score val_metric top1 gloss glossy floss macchiato account mapping remap preface accept f11
    bleurt lr epoch acc_loss dice_loss iou_loss accuracy_error neg_loss neg_mean_squared_error neg_mse
    negative_precision acc_drop loss_reduction acc_std mae_improvement acc_gap loss_delta 1-acc 1-dice -acc
    error_recall time seconds inverse_loss r f valacc perplexed amplitude diced
"""


@pytest.mark.parametrize(("names", "mode"), [(LOWER, "min"), (HIGHER, "max")])
def test_a_name_tells_which_way_is_better(names: str, mode: str) -> None:
    """Nobody who watches an accuracy gets the worst checkpoint because a word was left out."""
    assert {name: mode_for("EarlyStopping", name) for name in names.split()} == dict.fromkeys(names.split(), mode)


@pytest.mark.parametrize("name", UNDECIDED.split())
def test_a_name_that_does_not_tell_is_an_error_with_both_calls(name: str) -> None:
    """Words that lie inside others, that contradict each other, or that are turned about decide nothing."""
    for make in (partial(EarlyStopping, 3), partial(CheckpointManager, "runs")):
        kind = make.func.__name__
        calls = rf"{kind}\(.*monitor={re.escape(repr(name))}, mode=\"{{}}\"\)"
        with pytest.raises(FtkitError, match=f"{calls.format('min')}.*{calls.format('max')}"):
            make(monitor=name)
        assert make(monitor=name, mode="max").mode == "max"


@given(st.text(max_size=12))
def test_any_name_is_decided_or_refused(name: str) -> None:
    """Whatever a metric is called, there is a mode or an error of ours, and none for a name turned about."""
    try:
        mode = mode_for("EarlyStopping", name)
    except FtkitError:
        return
    assert mode in ("min", "max")
    with pytest.raises(FtkitError):
        mode_for("EarlyStopping", f"neg_{name}")


def test_without_a_monitor_the_mode_is_asked_for() -> None:
    """A bare number may be a loss or an accuracy; a wrong guess would stop a rising run in silence."""
    with pytest.raises(FtkitError, match=r'EarlyStopping\(\.\.\., mode="min"\).*EarlyStopping\(\.\.\., mode="max"\)'):
        EarlyStopping(patience=2)
    CheckpointManager("runs")  # nothing to compare, so nothing to ask


def test_a_rising_accuracy_goes_on_and_its_best_stays(tmp_path: Path) -> None:
    """The name alone is enough, for both."""
    manager, stopping = CheckpointManager(tmp_path, monitor="val_acc"), EarlyStopping(1, monitor="val_acc")
    for epoch, accuracy in enumerate((0.6, 0.72, 0.81, 0.8)):
        metrics = {"val_acc": accuracy}
        manager.save(epoch, model=torch.nn.Linear(1, 1), metrics=metrics)
        assert stopping.step(metrics) == (epoch == 3)
    assert manager.best_path is not None
    assert manager.best_path.stem == "2-0.8100"


def test_an_explicit_mode_wins_and_a_contradiction_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once, when it is made: not at each step."""
    stopping = EarlyStopping(1, monitor="val_acc", mode="min")
    assert [stopping.step(value) for value in (0.5, 0.4, 0.6)] == [False, False, True]
    (record,) = caplog.records
    assert "'val_acc'" in record.message
    assert 'mode="max"' in record.message
    caplog.clear()
    EarlyStopping(1, monitor="val_acc", mode="max")
    EarlyStopping(1, monitor="acc_loss", mode="max")
    assert not caplog.records


@pytest.mark.parametrize("whole", [np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)])
@pytest.mark.parametrize("number", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5, 0])
def test_numbers_of_numpy_and_torch_are_numbers(whole: Any, number: Any, tmp_path: Path) -> None:
    """What a configuration or a computation gives goes in as it is, and is kept as a plain number."""
    stopping = EarlyStopping(whole, mode="min", min_delta=number)
    assert (stopping.patience, type(stopping.patience), type(stopping.min_delta)) == (2, int, float)
    assert [stopping.step(value) for value in (3 + number, 3 + number, 3 + number)] == [False, False, True]
    manager = CheckpointManager(tmp_path, monitor="val_loss", keep_best=whole, keep_last=whole)
    assert (type(manager.keep_best), type(manager.keep_last)) == (int, int)


def test_a_metric_that_is_no_number_is_an_error() -> None:
    """A whole batch of losses, or none."""
    for wrong in (torch.ones(2), None, "low", [1.0]):
        with pytest.raises(FtkitError, match="single number"):
            EarlyStopping(1, monitor="val_loss").step({"val_loss": wrong})  # type: ignore[dict-item]  # on purpose
        with pytest.raises(FtkitError, match="single number"):
            EarlyStopping(1, monitor="val_loss").step(wrong)  # type: ignore[arg-type]  # on purpose


def test_nan_stops_at_once() -> None:
    """A loss that is no number does not recover by waiting."""
    stopping = EarlyStopping(patience=10, monitor="val_loss")
    assert not stopping.step(1.0)
    assert stopping.step(math.nan)
    assert stopping.best == 1.0


def test_min_delta_asks_for_real_progress() -> None:
    """A gain within min_delta does not reset the count, nor move the best."""
    stopping = EarlyStopping(patience=2, mode="min", min_delta=0.1)
    assert [stopping.step(value) for value in (1.0, 0.95, 0.91)] == [False, False, True]
    assert stopping.best == 1.0


def test_takes_tensors_and_dicts_of_metrics() -> None:
    """What a loop has at hand goes in as it is."""
    stopping = EarlyStopping(monitor="val/acc", mode="max", patience=1)
    assert not stopping.step({"loss": 3.0, "val/acc": torch.tensor(0.5)})
    assert not stopping.step(torch.tensor([0.6]))
    assert stopping.step({"val/acc": 0.6})


def test_a_missing_metric_is_an_error_with_the_closest_name() -> None:
    """Never a silent zero."""
    with pytest.raises(FtkitError, match=r"'val_los'.*'train_loss', 'val_loss'.*Did you mean 'val_loss'"):
        metric_value({"train_loss": 1.0, "val_loss": 2.0}, "val_los")
    with pytest.raises(FtkitError, match="monitor='val_loss'"):
        EarlyStopping(patience=1, mode="min").step({"val_loss": 1.0})


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 0},
        {"patience": 1.5},
        {"patience": True},
        {"patience": "5"},
        {"patience": torch.tensor(1.5)},
        {"patience": 1, "mode": "best"},
        {"patience": 1, "min_delta": -1.0},
        {"patience": 1, "min_delta": math.nan},
        {"patience": 1, "min_delta": "a little"},
        {"patience": 1, "monitor": 3},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    """Before the first epoch, not after the last."""
    with pytest.raises(FtkitError, match="must be"):
        EarlyStopping(**{"mode": "min", **arguments})  # type: ignore[arg-type]  # wrong on purpose


def test_a_foreign_state_is_refused() -> None:
    """The message names what is missing."""
    with pytest.raises(FtkitError, match="lacks 'stale', 'stopped'"):
        EarlyStopping(patience=1, mode="min").load_state_dict({"best": 1.0})


def test_a_count_goes_on_the_same_way_only() -> None:
    """A state says which way is better; older ones don't, and are taken."""
    state = EarlyStopping(patience=2, mode="max").state_dict()
    with pytest.raises(FtkitError, match=r"saved with mode='max'.*mode='min'"):
        EarlyStopping(patience=2, mode="min").load_state_dict(state)
    del state["mode"]
    EarlyStopping(patience=2, mode="min").load_state_dict(state)


@pytest.mark.parametrize("metrics", [0.5, "low", [0.5], {"val_loss": "low"}, {"val_loss": None}, {"val_loss": 10**400}])
def test_metrics_are_numbers_by_name(metrics: Any) -> None:
    """Anything else is an error that says what came."""
    with pytest.raises(FtkitError, match=r"must be a dict of numbers|must be a single number"):
        numbers_of(metrics)


def test_numbers_of_other_libraries_are_numbers() -> None:
    """NumPy's and torch's become plain ones."""
    given = {"a": np.float32(0.5), "b": torch.tensor(2), "c": np.int64(3)}
    assert numbers_of(given) == {"a": 0.5, "b": 2.0, "c": 3.0}
    assert {type(value) for value in numbers_of(given).values()} == {float}
    for count in (3, np.int64(3), torch.tensor(3)):
        assert whole_number("epoch", count) == 3
        assert type(whole_number("epoch", count)) is int
    for wrong in ("3", 3.0, True, None, torch.tensor([1, 2])):
        with pytest.raises(FtkitError, match="epoch must be a whole number, not"):
            whole_number("epoch", wrong)
