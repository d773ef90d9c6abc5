"""Figures of a segmenter's errors: IoU per class, and which class is taken for which."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from visualisation.figures import matrix_figure, shortened


def iou_figure(values: dict[str, float]) -> Figure:
    """A bar per class that has an IoU, and the mean.

    Args:
        values: `mIoU` and `IoU/<class name>`, as the metric computes them.
    """
    bars = [(key.removeprefix("IoU/"), v) for key, v in values.items() if key.startswith("IoU/") and not np.isnan(v)]
    bars.sort(key=lambda bar: bar[1])
    figure = Figure(figsize=(7, float(np.clip(1.2 + 0.28 * len(bars), 3, 30))), layout="constrained")
    axes = figure.subplots()
    axes.barh([shortened(name) for name, _ in bars], [value for _, value in bars], color="tab:blue")
    for row, (_, value) in enumerate(bars):
        axes.text(value + 0.01, row, f"{value:.3f}", va="center", fontsize=8)
    axes.axvline(values["mIoU"], color="black", linestyle=":", label=f"mean {values['mIoU']:.3f}")
    axes.set(xlim=(0, 1.08), xlabel="IoU", title="IoU per class")
    axes.legend(loc="lower right", frameon=False)
    return figure


def save_segmentation_figures(
    values: dict[str, float], confusion: np.ndarray, class_names: Sequence[str], folder: str | Path
) -> list[Path]:
    """Write both figures as PNG files into a folder, which is made if needed; returns their paths.

    Args:
        values: see `iou_figure`.
        confusion: (K, K) counts of pixels, rows the truth.
        class_names: K names.
        folder: where to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "class_iou": iou_figure(values),
        "confusion_matrix": matrix_figure(
            confusion, list(class_names), "predicted as", "Pixels of a class by what they were taken for", percent=True
        ),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths
