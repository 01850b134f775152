"""Every figure of the book, in one style.

Mid-grey ink on a transparent canvas reads on light and dark pages alike; colours are Okabe and Ito's.
"""

import base64
import io
import itertools
import math
from collections.abc import Collection, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from callkit.config import TITLES, without_call
from callkit.records import parted_at
from callkit.statistics import Paired

INK = "0.5"
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
SPLIT_COLORS = {"many": BLUE, "medium": ORANGE, "few": VERMILION}
METHOD_COLORS = {"DDPM": INK, "CALL, θ": BLUE, "CALL, θᵍ": ORANGE, "θ": BLUE, "θᵍ": ORANGE}
BASE_COLORS = {"ddpm": INK, "focal": INK, "cbdm": GREEN, "oc": ORANGE, "rs": VERMILION, "rs-sqrt": PURPLE, "ada": SKY}


def style() -> None:
    """The house style, for all figures after the call."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.0),
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE]),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": "medium",
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
            "legend.frameon": False,
            "figure.dpi": 110,
        }
    )


def _figure(*grid, **options):
    """plt.subplots, but outside of pyplot's list of open figures: a notebook shows it once, where it is returned."""
    figure, axes = plt.subplots(*grid, **options)
    plt.close(figure)
    return figure, axes


def class_counts(counts, splits: dict[str, list[int]], names=None) -> Figure:
    """Bars of images per class on a log scale, coloured by split."""
    counts = np.asarray(counts)
    figure, axes = _figure()
    for split, classes in splits.items():
        bars = axes.bar(classes, counts[classes], color=SPLIT_COLORS[split], label=split.capitalize())
        if len(counts) <= 20:
            axes.bar_label(bars, fontsize=8, color=INK)
    axes.set(xlabel="class", ylabel="training images", yscale="log", ylim=(0.8, 2 * counts.max()))
    if names is not None and len(counts) <= 20:
        axes.set_xticks(range(len(counts)), names)
    axes.legend()
    return figure


def image_rows(rows: list[Tensor], labels: list[str], size: float = 0.42) -> Figure:
    """One row of images per entry: uint8 (n, C, H, W) each, with a label at its left."""
    columns = max(len(r) for r in rows)
    figure, axes = _figure(len(rows), columns, figsize=(size * (columns + 3), size * len(rows) + 0.1), squeeze=False)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for row, label, line in zip(rows, labels, axes, strict=True):
        for i, cell in enumerate(line):
            cell.set_axis_off()
            if i < len(row):
                image = row[i].permute(1, 2, 0).numpy()
                cell.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        line[0].text(-0.25, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def class_columns(blocks: dict[str, Tensor], heads: list[str], splits: dict[str, list[int]]) -> Figure:
    """A block of images per entry, a column per class: uint8 (classes * k, C, H, W) each, sorted by class.

    `heads` stand above the columns, in the colours of the splits.
    """
    columns = len(heads)
    k = [len(images) // columns for images in blocks.values()]
    size = (0.48 * columns, sum(0.48 * n + 0.3 for n in k) + 0.2)
    figure, axes = _figure(len(blocks), 1, figsize=size, squeeze=False, height_ratios=k)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    colors = {c: SPLIT_COLORS[split] for split, classes in splits.items() for c in classes}
    for (name, images), (cell,), n in zip(blocks.items(), axes, k, strict=True):
        tile = images.unflatten(0, (columns, n)).permute(1, 3, 0, 4, 2).numpy()  # k, H, classes, W, C
        height, width = tile.shape[1] + 1, tile.shape[3] + 1
        canvas = np.zeros((n, height, columns, width, 4), np.uint8)  # transparent lines between the images
        canvas[:, :-1, :, :-1, :3] = tile
        canvas[:, :-1, :, :-1, 3] = 255
        cell.imshow(canvas.reshape(n * height, columns * width, 4), interpolation="nearest")
        cell.set_title(name, loc="left", fontsize=11)
        cell.set_axis_off()
    top = axes[0, 0]
    top.set_title(top.get_title("left"), loc="left", fontsize=11, pad=24)
    for c, head in enumerate(heads):
        top.annotate(
            head, ((c + 0.5) * width - 0.5, 0), (0, 6), textcoords="offset points", ha="center", fontsize=10,
            color=colors[c], fontweight="bold",
        )  # fmt: skip
    return figure


def split_bars(groups: dict[str, dict[str, tuple[float, float]]]) -> Figure:
    """Grouped bars of FID: groups[method][split] = (mean, standard deviation, NaN for none). A log axis where they
    differ tenfold."""
    figure, axes = _figure()
    splits = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    others = itertools.cycle((GREEN, PURPLE, SKY, VERMILION))
    for i, (method, by_split) in enumerate(groups.items()):
        mean, std = np.array([by_split[s] for s in splits]).T
        at = np.arange(len(splits)) + (i - (len(groups) - 1) / 2) * width
        color = METHOD_COLORS.get(method) or next(others)
        spread = None if np.isnan(std).any() else std
        bars = axes.bar(at, mean, 0.9 * width, yerr=spread, label=method, capsize=2, ecolor=INK, color=color)
        axes.bar_label(bars, fmt="%.3g", fontsize=8, color=INK, padding=2)
    axes.set_xticks(range(len(splits)), [s.capitalize() for s in splits])
    values = np.array([m for by_split in groups.values() for m, _ in by_split.values()])
    axes.set(ylabel="FID (lower is better)", yscale="log" if values.max() > 10 * values.min() else "linear")
    axes.margins(y=0.15)
    axes.legend()
    return figure


def class_weights(omega_con, omega_div) -> Figure:
    """The two weights of Eq. (5) over the classes."""
    figure, axes = _figure()
    classes = range(len(omega_con))
    axes.plot(classes, omega_con, "o-", color=BLUE, label=r"consistency $\omega_{Con}$")
    axes.plot(classes, omega_div, "s-", color=VERMILION, label=r"diversity $\omega_{Div}$")
    axes.set(xlabel="class, largest first", ylabel="weight")
    if len(classes) <= 20:
        axes.set_xticks(classes)
    axes.legend()
    return figure


def allocation_curves(distance, losses: dict[str, Tensor], rest: tuple[float, float]) -> Figure:
    """Allocation losses of one class against D; `rest` marks the minimum."""
    figure, axes = _figure()
    for (name, loss), color in zip(losses.items(), (VERMILION, BLUE), strict=True):
        axes.plot(distance, loss, color=color, label=name)
    axes.plot(*rest, "o", color=BLUE)
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set(xlabel="distance D between the two predictions", ylabel="allocation loss")
    axes.legend()
    return figure


def distance_curves(curves: list[dict], bound: float | None) -> Figure:
    """D by split during training, one line a run; curves as in a record's training.curve."""
    figure, axes = _figure()
    for split in (s for s in SPLIT_COLORS if f"distance_{s}" in curves[0]):
        color = SPLIT_COLORS[split]
        for i, curve in enumerate(curves):
            values = np.array(curve[f"distance_{split}"], dtype=float)
            axes.plot(curve["step"], values, color=color, label=split.capitalize() if i == 0 else None)
    if bound is not None:
        axes.axhline(bound, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="training step", ylabel="distance D", yscale="log")
    axes.legend()
    return figure


def rest_points(steps, distance, rest, names: Sequence[str], splits: dict[str, list[int]]) -> Figure:
    """D by class during training, (len(steps), C): all of it on a log axis, and the last quarter on a linear one, where
    a triangle marks at which distance a class should come to rest, `rest` (C,), if that is above zero."""
    figure, (whole, end) = _figure(1, 2, figsize=(7.2, 3.2))
    distance, last = np.asarray(distance, dtype=float), steps[-1]
    for split, classes in splits.items():
        for i, c in enumerate(classes):
            for axes in (whole, end):
                label = split.capitalize() if i == 0 else None
                axes.plot(steps, distance[:, c], color=SPLIT_COLORS[split], linewidth=1, label=label)
            if rest[c] > 0:
                at = 1.03 * last, rest[c]
                end.plot(*at, "<", color=SPLIT_COLORS[split])
                end.annotate(names[c], at, (6, 0), textcoords="offset points", va="center", fontsize=8)
    whole.set(xlabel="training step", ylabel="distance D", yscale="log")
    end.set(xlabel="training step", xlim=(0.75 * last, 1.12 * last))
    whole.legend()
    return figure


def base_loss_ratios(pairs: dict[str, list[tuple[dict, dict]]]) -> Figure:
    """Base loss with CALL over that without during training, a panel for each of `pairs`, a line for each pair (with,
    without) of a record's training.curve. Dashed: where the predictions part in the first pair."""
    figure, panels = _figure(1, len(pairs), figsize=(7.2, 2.6), sharey=True)
    for axes, (title, curves) in zip(panels, pairs.items(), strict=True):
        for ours, theirs in curves:
            ratio = np.array(ours["base_loss"]) / theirs["base_loss"]
            axes.plot(ours["step"], ratio, color=BLUE, linewidth=1)
        if parted := parted_at(curves[0][0]):
            axes.axvline(parted, color=INK, linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="training step")
    panels[0].set_ylabel("base loss, CALL / without")
    return figure


def class_changes(rows: dict[str, dict[str, tuple]], ylabel: str, splits: dict[str, list[int]]) -> Figure:
    """A grid of bars with 95 % intervals: rows[row][column] = (change by class, half-width by class)."""
    columns = list(next(iter(rows.values())))
    figure, grid = _figure(
        len(rows), len(columns), figsize=(7.2, 2.1 * len(rows) + 0.4), sharex=True, sharey="col", squeeze=False
    )
    for line, (row, cells) in zip(grid, rows.items(), strict=True):
        for axes, column in zip(line, columns, strict=True):
            change, half_width = cells[column]
            for split, classes in splits.items():
                axes.bar(
                    classes, change[classes], yerr=half_width[classes], color=SPLIT_COLORS[split], ecolor=INK,
                    capsize=1.5, error_kw={"linewidth": 0.8}, label=split.capitalize(),
                )  # fmt: skip
            axes.axhline(0, color=INK, linewidth=0.6)
            axes.set_title(f"{column}, {row}", fontsize=9)
        line[0].set_ylabel(ylabel)
    for axes in grid[-1]:
        axes.set_xlabel("class, largest first")
        if len(change) <= 20:
            axes.set_xticks(range(len(change)))
    figure.legend(*grid[0][0].get_legend_handles_labels(), fontsize=8, loc="outside upper right", ncols=len(splits))
    return figure


def divergence_curves(runs: dict[str, list[dict]], diverged: set[str]) -> Figure:
    """D on Few during training, one line a run: runs[name] = curves, as in a record's training.curve. A cross
    ends the lines of the names in `diverged`, whose runs were stopped."""
    figure, axes = _figure(figsize=(6.4, 3.6))
    stopped, others = itertools.cycle((VERMILION, ORANGE, PURPLE, SKY)), itertools.cycle((BLUE, GREEN, INK))
    for name, curves in runs.items():
        color = next(stopped if name in diverged else others)
        for i, curve in enumerate(curves):
            values = np.array(curve["distance_few"], dtype=float)
            axes.plot(curve["step"], values, color=color, label=name if i == 0 else None)
            if name in diverged:
                axes.plot(curve["step"][-1], values[-1], "x", color=color, markersize=8, markeredgewidth=2)
    axes.set(xlabel="training step", ylabel="distance D, Few", yscale="log")
    axes.legend(fontsize=8)
    return figure


def _with_values(by_split: Collection[dict[str, list[float]]]) -> list[str]:
    """The splits of which there is a value."""
    return [s for s in next(iter(by_split)) if any(values[s] for values in by_split)]


def variant_dots(rows: dict[str, dict[str, list[float]]]) -> Figure:
    """One panel per split that has values, one line per variant, one dot per seed: rows[variant][split] = values. The
    first variant's range is shaded through all lines."""
    splits = _with_values(rows.values())
    figure, (panels,) = _figure(1, len(splits), figsize=(7.2, 0.32 * len(rows) + 1.1), sharey=True, squeeze=False)
    for axes, split in zip(panels, splits, strict=True):
        if first := next(iter(rows.values()))[split]:
            axes.axvspan(min(first), max(first), color=INK, alpha=0.2, linewidth=0)
        for at, by_split in enumerate(rows.values()):
            axes.plot(by_split[split], [at] * len(by_split[split]), "o", color=SPLIT_COLORS.get(split, INK), alpha=0.8)
        axes.set_title(split.capitalize())
        axes.margins(x=0.15)
    panels[len(splits) // 2].set_xlabel("FID (lower is better)")
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def log_axis(axis, subs=(1, 3)) -> None:
    """A logarithmic x or y axis with plain numbers at `subs` times the powers of ten."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:.4g}")
    axis.set_minor_locator(NullLocator())


def interval_dots(rows: dict[str, dict[str, Paired]], xlabel: str = "FID, as a multiple of DDPM's") -> Figure:
    """One panel per split, one line per variant: a dot per seed, a bar for the interval of the mean ratio, which leaves
    the panel where seeds are too few to tell. rows[variant][split] = a ratio by seed."""
    splits = list(next(iter(rows.values())))
    figure, panels = _figure(1, len(splits), figsize=(6.2, 0.3 * len(rows) + 1.2), sharey=True)
    for axes, split in zip(panels, splits, strict=True):
        color = SPLIT_COLORS.get(split, INK)
        dots = [v for by_split in rows.values() for v in by_split[split].values]
        reach = 1.25 * max(max(dots), 1 / min(dots), 1.25)
        axes.axvline(1, color=INK, linewidth=1, linestyle=":")
        for at, ratio in enumerate(by_split[split] for by_split in rows.values()):
            axes.plot(ratio.values, [at] * len(ratio.values), "o", color=color, alpha=0.5, markersize=4, linewidth=0)
            axes.plot([ratio.low, ratio.high], [at, at], color=color, linewidth=1.5)
            axes.plot(ratio.mean, at, "|", color=color, markersize=11, markeredgewidth=2)
        axes.set(xlim=(1 / reach, reach), title=split.capitalize())
        log_axis(axes.xaxis, (1, 1.4, 7) if reach < 2 else (1, 2, 5) if reach < 8 else (1, 3) if reach < 20 else (1,))
    panels[len(splits) // 2].set_xlabel(xlabel)
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


VERDICT_COLORS = {
    "supported": BLUE,
    "direction only": SKY,
    "not supported": INK,
    "opposite direction": ORANGE,
    "reversed": VERMILION,
    "too few seeds": INK,
}


def forest(rows: list[tuple[str, Paired, str, str]], names: dict[str, str] | None = None) -> Figure:
    """A line per comparison, (label, ratio by seed, expected, verdict): the mean ratio with its interval, drawn and in
    numbers, coloured by verdict, hollow for too few seeds; the marker points to where it was expected, is a square
    for about 1, and a dot where nothing was. `names` are the verdicts' for the legend, if not their own."""
    figure, axes = _figure(figsize=(7, 0.26 * len(rows) + 1.1))
    ends = [v for _, ratio, _, _ in rows for v in (ratio.mean, ratio.low, ratio.high) if math.isfinite(v)]
    looks = {
        v: {"color": c, "fillstyle": "none" if v == "too few seeds" else "full"} for v, c in VERDICT_COLORS.items()
    }
    for at, (_, ratio, expected, verdict) in enumerate(rows):
        marker = {"lower": "<", "higher": ">", "": "o"}.get(expected, "s")
        axes.plot([ratio.low, ratio.high], [at, at], color=VERDICT_COLORS[verdict], linewidth=1.5)
        axes.plot(ratio.mean, at, marker, markersize=6, **looks[verdict])
    seen = {verdict for *_, verdict in rows}
    for verdict in (v for v in VERDICT_COLORS if v in seen):
        axes.plot([], [], "o", linewidth=0, label=(names or {}).get(verdict, verdict), **looks[verdict])
    axes.axvline(1, color=INK, linewidth=1, linestyle=":")
    low, high = min(0.8, *ends) / 1.1, max(1.25, *ends) * 1.1
    axes.set(xlim=(low, high), xlabel="ratio of the two FIDs")
    log_axis(axes.xaxis, (1, 1.25, 8) if high < 3 * low else (1, 3) if high < 300 * low else (1,))
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    numbers = axes.secondary_yaxis("right")
    numbers.set_yticks(range(len(rows)), [ratio.words() for _, ratio, _, _ in rows], fontsize=9)
    numbers.tick_params(length=0)
    numbers.spines[:].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def method_lines(methods: Collection[str]) -> dict[str, dict]:
    """How `plot` is to draw each: in the colour of its base loss, with CALL on top of it dashed and hollow; CALL on
    DDPM's is blue. Focal loss shares DDPM's colour, dotted."""
    styles = {}
    for name in methods:
        color = BLUE if name == "call" else BASE_COLORS[without_call(name)]
        styles[name] = {"color": color, "marker": "o", "markersize": 4}
        if name.endswith("call"):
            styles[name] |= {"linestyle": "--", "markerfacecolor": "none"}
        elif name == "focal":
            styles[name] |= {"linestyle": ":"}
    return styles


def score_curves(by_method: dict[str, dict[float, dict[str, list[float]]]], xlabel: str) -> Figure:
    """FID against a number, as the guidance scale or the training steps, a dot per seed and a line through the means:
    by_method[method][number][split]. One panel per split that has values."""
    splits = _with_values([by_split for by_number in by_method.values() for by_split in by_number.values()])
    figure, (panels,) = _figure(1, len(splits), figsize=(7.2, 3.6), squeeze=False)
    styles = method_lines(by_method)
    for axes, split in zip(panels, splits, strict=True):
        scores = []
        for name, by_number in by_method.items():
            dots = {number: by_split[split] for number, by_split in by_number.items() if by_split[split]}
            mean = [np.mean(values) for values in dots.values()]
            axes.plot([*dots], mean, label=TITLES.get(name, name), **styles[name] | {"marker": ""})
            for number, values in dots.items():
                axes.plot([number] * len(values), values, **styles[name] | {"linestyle": ""})
                scores += values
        axes.set(title=split.capitalize(), xlabel=xlabel)
        axes.xaxis.set_major_formatter("{x:,g}")
        log_axis(axes.yaxis, (1, 3) if max(scores) > 10 * min(scores) else (1, 1.5, 2, 3, 4, 5, 7))
    panels[0].set_ylabel("FID (lower is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def copies_and_fid(by_method: dict[str, dict[int, np.ndarray]], machine: float) -> Figure:
    """FID against the share of copies, a dot per run, and a line through the means of each number of training steps:
    by_method[method][steps] is (runs, 2). `machine` is the FID of the training images themselves."""
    figure, axes = _figure(figsize=(5.2, 3.4))
    styles = method_lines(by_method)
    for method, by_steps in by_method.items():
        color = styles[method]["color"]
        for dots in by_steps.values():
            axes.plot(*dots.T, "o", color=color, alpha=0.6, markersize=4)
        axes.plot(*np.array([dots.mean(0) for dots in by_steps.values()]).T, color=color, label=TITLES[method])
    axes.axhline(machine, color=INK, linewidth=1, linestyle=":", label="the training images")
    axes.set(xlabel="share of copies", ylabel="FID (lower is better)")
    log_axis(axes.yaxis)
    axes.legend()
    return figure


def signed_mass(mass, splits: dict[str, list[int]]) -> Figure:
    """Bars of each class's share of the coefficient of D, up where it pulls together, down where it pushes apart."""
    figure, axes = _figure()
    for split, classes in splits.items():
        axes.bar(classes, mass[classes], color=SPLIT_COLORS[split], label=split.capitalize())
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set(xlabel="class, largest first", ylabel="coefficient of D")
    axes.set_xticks(range(len(mass)))
    axes.legend()
    return figure


def distance_map(distance: np.ndarray, timesteps: list[int]) -> Figure:
    """D by class (rows) and timestep (columns), colours on a log scale."""
    figure, axes = _figure()
    image = axes.imshow(distance, norm="log", aspect="auto", cmap="cividis")
    axes.set(xlabel="timestep t", ylabel="class, largest first")
    axes.set_xticks(range(len(timesteps)), timesteps)
    axes.set_yticks(range(len(distance)))
    bar = figure.colorbar(image, label="distance D")
    bar.outline.set_edgecolor(INK)
    return figure


def dial_curves(scales: list[float], by_split: dict[str, list[float]], ylabel: str = "FID (lower is better)") -> Figure:
    """FID, or another number, of each split as the expert is turned up; a log axis where they differ threefold."""
    figure, axes = _figure()
    for split, values in by_split.items():
        axes.plot(scales, values, "o-", color=SPLIT_COLORS[split], label=split.capitalize())
    axes.set(xlabel="expert's scale: 0 is θᵍ, 1 is θ", ylabel=ylabel)
    values = [v for line in by_split.values() for v in line]
    if max(values) > 3 * min(values):
        axes.set_yscale("log")
    axes.legend()
    return figure


def spectra(by_kind: dict[str, dict[str, np.ndarray]]) -> Figure:
    """One column of dots per matrix, a dot per singular value: by_kind[kind][name] = values, largest first."""
    figure, axes = _figure(figsize=(6.4, 3.6))
    at = 0
    names = []
    for (kind, matrices), color in zip(by_kind.items(), (VERMILION, BLUE, GREEN), strict=False):
        for i, (name, values) in enumerate(matrices.items()):
            axes.plot([at] * len(values), values, "o", color=color, markersize=4, label=kind if i == 0 else None)
            names.append(name)
            at += 1
    axes.set_xticks(range(at), names, rotation=90, fontsize=7)
    axes.set(ylabel="singular values of BA", ylim=(0, None))
    axes.legend()
    return figure


def probe_curves(timesteps: list[int], scores: dict[str, list[float]]) -> Figure:
    """scores[name] by timestep; the dotted line is chance."""
    figure, axes = _figure()
    for name, values in scores.items():
        dash = "--" if "θᵍ" in name else "-"  # θ and θᵍ may coincide
        axes.plot(timesteps, values, dash, marker="o", label=name, color=METHOD_COLORS.get(name))
    axes.axhline(0.5, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="timestep t", ylabel="area under the ROC curve")
    axes.legend()
    return figure


def loss_curves(curves: dict[str, tuple[list, list]]) -> Figure:
    """curves[name] = (steps, losses)."""
    figure, axes = _figure()
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, ".-", label=name)
    axes.set(xlabel="training step", ylabel="base loss", yscale="log")
    axes.legend()
    return figure


def mark_curves(lines: dict[str, list[dict]], groups: list[str]) -> Figure:
    """FID against steps, a panel for each set of classes: lines[name] = what sweeps/train_slice.py wrote, in order."""
    figure, panels = _figure(1, len(groups), figsize=(2.6 * len(groups), 2.8))
    for axes, group in zip(panels, groups, strict=True):
        for name, marks in lines.items():
            dash = "--" if "θᵍ" in name else "-"
            axes.plot([m["step"] for m in marks], [m["fid"][group] for m in marks], dash, marker=".", label=name)
        values = [m["fid"][group] for marks in lines.values() for m in marks]
        log = max(values) > 10 * min(values)
        axes.set(title=group.capitalize(), xlabel="training step", yscale="log" if log else "linear")
    panels[0].set_ylabel("FID (lower is better)")
    panels[0].legend(fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 110) -> str:
    """The figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
