"""Figure of the kinds of errors that cost a detector precision."""

from typing import Any

from matplotlib.figure import Figure

KINDS = {
    "classification": "class",
    "localisation": "place",
    "both": "class and place",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
}
SPECIAL = {"false_positive": "false positives", "false_negative": "false negatives"}


def tide_figure(errors: dict[str, Any]) -> Figure:
    """Bars of the precision that the repair of each kind of error would gain, with the number of errors.

    Args:
        errors: what `metrics.tide.tide` returns, or that was read from JSON.
    """
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    main, special = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    gains = [errors["errors"][kind]["dAP"] or 0.0 for kind in KINDS]
    counts = [errors["errors"][kind]["count"] for kind in KINDS]
    rest = [errors["special"][name] or 0.0 for name in SPECIAL]
    bars = main.bar(list(KINDS.values()), gains, color="tab:blue")
    labels = [f"{gain:.3f}\n{count} x" for gain, count in zip(gains, counts, strict=True)]
    main.bar_label(bars, labels, padding=2, fontsize=8)
    bars = special.bar(list(SPECIAL.values()), rest, color="tab:grey")
    special.bar_label(bars, [f"{gain:.3f}" for gain in rest], padding=2, fontsize=8)
    for axes in (main, special):
        axes.tick_params(axis="x", rotation=30)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    main.set_ylim(0, 1.25 * max([*gains, *rest, 0.01]))
    ap = errors["AP"]
    main.set(ylabel="gain of AP", title="by repairing one kind of error")
    special.set_title("or all of a side")
    score = "undefined" if ap is None else f"{ap:.3f}"
    figure.suptitle(f"Errors at IoU ≥ {errors['iou_threshold']:g} (AP {score})")
    return figure
