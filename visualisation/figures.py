"""Figures of a detector's errors: confusion matrix, precision-recall curves, F1 by score threshold.

All take the dictionary that `metrics.curves.detection_curves` returns (or that was read from JSON), and return a
matplotlib figure that belongs to nobody: no global state, no window.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

# Beyond, single classes are no longer told apart: thin grey lines and the mean.
CLASSES_IN_COLOUR = 10
COUNTS_IN_CELLS = 15
LABELLED_CLASSES = 40


def confusion_matrix_figure(curves: dict[str, Any]) -> Figure:
    """Shares of each true class (rows) by detected class (columns), with counts where they fit."""
    threshold = curves["confusion"]["score_threshold"]
    return matrix_figure(
        np.array(curves["confusion"]["matrix"]),
        [*curves["class_names"], "background"],
        "detected as",
        f"Confusion at score ≥ {threshold:.3f}, IoU ≥ {curves['iou_threshold']:g}",
    )


def matrix_figure(counts: np.ndarray, names: list[str], columns: str, title: str, *, percent: bool = False) -> Figure:
    """Shares of the rows of a confusion matrix, rows the truth, with numbers in the cells where they fit.

    Args:
        counts: (N, N).
        names: of rows and columns.
        columns: what the columns are.
        title: above.
        percent: write shares into the cells in place of counts.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.45 * len(names), 5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046, pad=0.03)
    every = -(-len(names) // LABELLED_CLASSES)
    ticks = sorted({*range(0, len(names) - 1, every), len(names) - 1})
    axes.set_xticks(ticks, [shortened(names[i]) for i in ticks], rotation=90)
    axes.set_yticks(ticks, [shortened(names[i]) for i in ticks])
    axes.set(xlabel=columns, ylabel="truth", title=title)
    if len(names) <= COUNTS_IN_CELLS + 1:
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            text = f"{share:.0%}" if percent else str(count)
            if text not in ("0", "0%"):
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return figure


def precision_recall_figure(curves: dict[str, Any]) -> Figure:
    """Precision by recall for each class, and the mean."""
    data = curves["precision_recall"]
    recall = np.array(data["recall"])
    figure, axes = _square("Recall", "Precision", f"Precision and recall at IoU ≥ {curves['iou_threshold']:g}")

    def label(name: str, values: list[float]) -> str:
        return f"{name} (AP {np.mean(values):.3f})"

    for name, values, style in _lines(data["precision"]):
        axes.plot(recall, values, **style, label=label(shortened(name), values) if "color" in style else None)
    if data["mean"] is not None:
        axes.plot(recall, data["mean"], color="black", linewidth=2.2, label=label("all classes", data["mean"]))
    return _with_legend(figure, axes)


def f1_figure(curves: dict[str, Any]) -> Figure:
    """F1 by score threshold for each class and over all detections, with the best threshold marked."""
    data, best = curves["f1"], curves["best_f1"]["overall"]
    score = np.array(data["score"])
    figure, axes = _square("Score threshold", "F1", f"F1 at IoU ≥ {curves['iou_threshold']:g}")
    for name, values, style in _lines(data["classes"]):
        label = f"{shortened(name)} (best {curves['best_f1']['classes'][name]['f1']:.3f})"
        axes.plot(score, values, **style, label=label if "color" in style else None)
    if data["overall"] is not None:
        axes.plot(score, data["overall"], color="black", linewidth=2.2, label=f"overall (best {best['f1']:.3f})")
    if best["score_threshold"] is not None:
        axes.axvline(best["score_threshold"], color="black", linewidth=1, linestyle=":")
        axes.plot(best["score_threshold"], best["f1"], "o", color="black", label=f"at {best['score_threshold']:.3f}")
    return _with_legend(figure, axes)


FIGURES = {
    "confusion_matrix": confusion_matrix_figure,
    "precision_recall": precision_recall_figure,
    "f1": f1_figure,
}


def save_detection_figures(curves: dict[str, Any], folder: str | Path) -> list[Path]:
    """Write all figures as PNG files into a folder, which is made if needed; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        paths.append(folder / f"{name}.png")
        draw(curves).savefig(paths[-1], dpi=120)
    return paths


def _square(x: str, y: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.2, 5.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    return figure, axes


def _lines(by_class: dict[str, list[float] | None]) -> list[tuple[str, list[float], dict[str, Any]]]:
    """Name, values and line style of the classes that have objects."""
    defined = {name: values for name, values in by_class.items() if values is not None}
    if len(defined) > CLASSES_IN_COLOUR:
        style = {"c": "grey", "linewidth": 0.6, "alpha": 0.5}
        return [(name, values, style) for name, values in defined.items()]
    colours = colormaps["tab10"].colors
    return [(name, values, {"color": colours[i], "linewidth": 1.4}) for i, (name, values) in enumerate(defined.items())]


def _with_legend(figure: Figure, axes: Any) -> Figure:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9)
    return figure


def shortened(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= 20 else name[:19] + "…"
