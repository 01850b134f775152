"""Every figure of the book, in one style, and the frame slider that needs no kernel.

Mid-grey ink on a transparent canvas reads on light and dark pages alike; colours are Okabe and Ito's.
"""

import base64
import html
import io
import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from torch import Tensor

INK = "0.5"
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
SPLIT_COLORS = {"many": BLUE, "medium": ORANGE, "few": VERMILION}
METHOD_COLORS = {"DDPM": INK, "CALL, θ": BLUE, "CALL, θᵍ": ORANGE}


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


def split_bars(groups: dict[str, dict[str, tuple[float, float]]], ylabel: str = "FID (lower is better)") -> Figure:
    """Grouped bars: groups[method][split] = (mean, standard deviation). A log axis where values differ tenfold."""
    figure, axes = _figure()
    splits = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for i, (method, by_split) in enumerate(groups.items()):
        mean, std = np.array([by_split[s] for s in splits]).T
        at = np.arange(len(splits)) + (i - (len(groups) - 1) / 2) * width
        bars = axes.bar(
            at, mean, 0.9 * width, yerr=np.nan_to_num(std), label=method, capsize=2, ecolor=INK,
            color=METHOD_COLORS.get(method),
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.3g", fontsize=8, color=INK, padding=2)
    axes.set_xticks(range(len(splits)), [s.capitalize() for s in splits])
    values = np.array([m for by_split in groups.values() for m, _ in by_split.values()])
    axes.set(ylabel=ylabel, yscale="log" if values.max() > 10 * values.min() else "linear")
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
    for split, color in SPLIT_COLORS.items():
        for i, curve in enumerate(curves):
            values = np.array(curve[f"distance_{split}"], dtype=float)
            axes.plot(curve["step"], values, color=color, label=split.capitalize() if i == 0 else None)
    if bound is not None:
        axes.axhline(bound, color=INK, linestyle=":", linewidth=1)
    axes.set(xlabel="training step", ylabel="distance D", yscale="log")
    axes.legend()
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
    grid[0][0].legend(fontsize=7, loc="upper left")
    return figure


def divergence_curves(runs: dict[str, list[dict]], diverged: set[str], split: str = "few") -> Figure:
    """D of one split during training, one line a run: runs[name] = curves, as in a record's training.curve. A cross
    ends the lines of the names in `diverged`, whose runs were stopped."""
    figure, axes = _figure(figsize=(6.4, 3.6))
    for (name, curves), color in zip(runs.items(), (VERMILION, ORANGE, PURPLE, SKY, BLUE, GREEN), strict=False):
        for i, curve in enumerate(curves):
            values = np.array(curve[f"distance_{split}"], dtype=float)
            axes.plot(curve["step"], values, color=color, label=name if i == 0 else None)
            if name in diverged:
                axes.plot(curve["step"][-1], values[-1], "x", color=color, markersize=8, markeredgewidth=2)
    axes.set(xlabel="training step", ylabel=f"distance D, {split.capitalize()}", yscale="log")
    axes.legend(fontsize=8)
    return figure


def variant_dots(rows: dict[str, dict[str, list[float]]], xlabel: str = "FID (lower is better)") -> Figure:
    """One panel per split, one line per variant, one dot per seed: rows[variant][split] = values. The first variant's
    range is shaded through all lines."""
    splits = list(next(iter(rows.values())))
    figure, panels = _figure(1, len(splits), figsize=(7.2, 0.32 * len(rows) + 1.1), sharey=True)
    for axes, split in zip(panels, splits, strict=True):
        first = next(iter(rows.values()))[split]
        axes.axvspan(min(first), max(first), color=INK, alpha=0.2, linewidth=0)
        for at, by_split in enumerate(rows.values()):
            axes.plot(by_split[split], [at] * len(by_split[split]), "o", color=SPLIT_COLORS.get(split, INK), alpha=0.8)
        axes.set(xlabel=xlabel if split == splits[len(splits) // 2] else "", title=split.capitalize())
        axes.margins(x=0.15)
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
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


def dial_curves(scales: list[float], by_split: dict[str, list[float]]) -> Figure:
    """FID of each split as the expert is turned up, log axis."""
    figure, axes = _figure()
    for split, values in by_split.items():
        axes.plot(scales, values, "o-", color=SPLIT_COLORS[split], label=split.capitalize())
    axes.set(xlabel="expert's scale: 0 is θᵍ, 1 is θ", ylabel="FID (lower is better)", yscale="log")
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


def png(figure: Figure, dpi: int = 110) -> str:
    """The figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_ids = itertools.count()


def frame_slider(frames: list[str], labels: list[str], alts: list[str], caption: str, start: int = 0) -> HTML:
    """Images (data URIs) behind a native range input: works with no kernel, library or network, by keyboard,
    and with one alternative text per frame for a screen reader."""
    name = f"frame-slider-{next(_ids)}"
    images = "".join(
        f'<img class="dark-light" src="{frame}" alt="{html.escape(alt)}"{"" if i == start else " hidden"}>'
        for i, (frame, alt) in enumerate(zip(frames, alts, strict=True))
    )
    script = (
        f"(() => {{ const root = document.getElementById('{name}'), labels = {json.dumps(labels)},"
        " input = root.querySelector('input'), images = root.querySelectorAll('img');"
        " const show = () => { images.forEach((m, i) => { m.hidden = i != input.value });"
        " root.querySelector('output').textContent = labels[input.value];"
        " input.setAttribute('aria-valuetext', labels[input.value]) };"
        " input.addEventListener('input', show); show() })()"
    )
    return HTML(
        f'<figure class="frame-slider" id="{name}"><label>{html.escape(caption)} '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}" autocomplete="off">'
        f" <output></output></label><div>{images}</div></figure><script>{script}</script>"
    )
