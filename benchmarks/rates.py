"""Layer-wise rates of whole model collections, compared with the order in which the models use their parameters.

``python benchmarks/rates.py`` runs all of them, ``... timm-`` those whose names contain that. An inverted pair is two
parameters of which the first is used before the second, on the way to it, and yet learns faster. ``... --times`` shows
what ``param_groups`` takes, in forward passes on fake tensors.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import timm
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ftkit import param_groups
from ftkit._groups.layers import layers_of
from ftkit._heads.trace import run_on
from tests.groups import flow, sweep


def cpu(call: Callable[[], object], repeats: int = 5) -> float:
    """The least CPU time of a call, in seconds."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


def times() -> None:
    """Print what groups take with and without a run, as ratios to a forward pass on fake tensors."""
    for name in ("resnet50", "vit_base_patch16_224", "cait_xxs24_224", "densenet121"):
        model: nn.Module = timm.create_model(name)
        forward = cpu(lambda model=model: run_on(model))
        plain = cpu(lambda model=model: param_groups(model, 1.0))
        ran = cpu(lambda model=model: param_groups(model, 1.0, layer_decay=0.75))
        print(f"{name:22} forward {forward:.3f} s   groups {plain / forward:.2f}   by layer {ran / forward:.2f}")


def main(wanted: str) -> None:
    """Print which cases have inverted pairs, by registration and as ftkit has it, and how often it agrees with timm."""
    warnings.simplefilter("ignore")
    logging.disable()
    counts: Counter[str] = Counter()
    for case, build in sweep.cases().items():
        if wanted not in case:
            continue
        try:
            before = sweep.order_of_use(build)
        except Exception as error:
            counts["not built or not run"] += 1
            print(
                f"{case}: {type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}", flush=True
            )
            continue
        model = sweep.built(build)
        rates, order = sweep.rates_of(model)
        by_registration = flow.inverted(before, sweep.rates_by_layer(model, layers_of(model)))
        inverted, timms = flow.inverted(before, rates), sweep.rates_of_timm(model)
        counts.update(["cases", order])
        counts.update(["inverted by registration"] * bool(by_registration) + ["inverted"] * bool(inverted))
        if timms is not None:
            same = all(abs(rate - timms[name]) < 1e-9 * rate for name, rate in rates.items())
            counts.update(["of timm", "as timm's" if same else "not as timm's"])
            counts.update(["inverted by timm"] * bool(flow.inverted(before, timms)))
        if inverted:
            print(f"{case}: {len(inverted)} inverted pairs, such as {inverted[0]}", flush=True)
    print(*(f"{count:5} {what}" for what, count in counts.items()), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--times"]:
        times()
    else:
        main("".join(sys.argv[1:]))
