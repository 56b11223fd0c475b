"""Plot the learning curves of a run."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREY = "#2a6f97", "#e07a1f", "#8a8a8a"


def plot_curves(history: Path, picture: Path, unfrozen: int) -> None:
    """Draw losses and accuracy from rows of (epoch, training loss, validation loss, accuracy)."""
    epochs, train_loss, val_loss, accuracy = np.loadtxt(history, delimiter=",", ndmin=2).T
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    left.plot(epochs, train_loss, "o-", color=GREY, label="training")
    left.plot(epochs, val_loss, "o-", color=BLUE, label="validation")
    left.set(title="Loss", xlabel="epoch", ylim=(0, None))
    right.plot(epochs, 100 * accuracy, "o-", color=BLUE)
    right.set(title="Validation accuracy, %", xlabel="epoch")
    right.margins(y=0.12)
    best = accuracy.argmax()
    place = (epochs[best], 100 * accuracy[best])
    right.annotate(f"{place[1]:.1f}", place, (0, 7), textcoords="offset points", ha="center", color=BLUE)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.axvline(unfrozen - 0.5, color=ORANGE, linestyle=":", label="two blocks thaw")
    left.legend(frameon=False)
    figure.savefig(picture, dpi=130)
    plt.close(figure)
