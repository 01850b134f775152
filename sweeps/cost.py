"""What the grids cost, in training steps of DDPM: the table of book/sweeps.md. And one run: that of book/gpu.md.

    python sweeps/cost.py > book/_sweeps.md
    python sweeps/cost.py --runs > book/_gpu.md
    python sweeps/cost.py --seconds 0.2       hours at 0.2 seconds a step

The unit is one training step of plain DDPM with the data set's default network, on images of the run's size. How much
longer other methods' steps are, and a network evaluation of the sampler, is measured (benchmarks/speed.json); that
other networks do more work is counted, in multiplications.
"""

import argparse
from collections.abc import Iterable
from functools import cache

import grid
import torch
from torch.utils.flop_counter import FlopCounterMode

from callkit import config, data, metrics, records
from callkit.checkpoints import build_model
from callkit.config import TrainConfig

SPEED = records.benchmark("speed")
CLASSES = {"celeba-hq": 2, "cifar100": 100}  # others: 10


def method_ratio(method: str) -> float:
    """A training step's time over that of DDPM; re-sampling costs nothing."""
    settings = {k: v for k, v in config.METHODS[method].items() if k != "resample"}
    method = next(m for m, of in config.METHODS.items() if of == settings)
    return 1.0 if method == "ddpm" else SPEED["ratios"][f"step, {config.TITLES[method]}"]


@cache
def _multiplications(
    dataset: str, size: int, channels: int, channel_mult: tuple, attention_levels: tuple, blocks: int
) -> int:
    """Of one evaluation of the network, of one image."""
    sizes = dict(channels=channels, channel_mult=channel_mult, attention_levels=attention_levels, num_res_blocks=blocks)
    model = build_model(config.make_config(dataset, method="ddpm", **sizes), 3, 10)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops()


def network_ratio(c: TrainConfig) -> float:
    """The work of the run's network over that of its data set's default one, on images of the same size."""

    def work(c):
        size = data.chosen_size(c.dataset, c.image_size)
        return _multiplications(c.dataset, size, c.channels, c.channel_mult, c.attention_levels, c.num_res_blocks)

    return work(c) / work(config.make_config(c.dataset, image_size=c.image_size))


def training_steps(c: TrainConfig) -> float:
    """Of a run, in the unit."""
    return c.steps * method_ratio(c.method) * network_ratio(c)


def sampling_steps(images: int, steps: int, guidance_scale: float, batch_size: int = SPEED["batch_size"]) -> float:
    """Of sampling so many images in so many steps of DDIM, in training steps of DDPM on that batch and network."""
    evaluations = images / batch_size * steps * (1 if guidance_scale == 1 else 2)
    return evaluations * SPEED["milliseconds"]["sample, plain"] / SPEED["milliseconds"]["step, DDPM"]


def evaluation_steps(c: TrainConfig, guidance_scale: float) -> float:
    """Of sampling all that `evaluate` asks for, theta and with CALL theta^g, in the unit. Guidance evaluates twice."""
    options, classes = config.SAMPLING[c.profile], CLASSES.get(c.dataset, 10)
    splits = data.splits(range(classes, 0, -1))
    images = metrics.generated_counts(splits, classes, options["images"], options["per_split"]).sum()
    return sampling_steps(images, options["steps"], guidance_scale) * (1 + c.call) * network_ratio(c)


def cost(runs: Iterable[tuple[TrainConfig, Iterable[float]]]) -> tuple[float, float]:
    """(training, evaluation) of these runs, each with its guidance scales, in the unit."""
    runs = list(runs)
    evaluation = sum(evaluation_steps(c, scale) for c, scales in runs for scale in scales)
    return sum(training_steps(c) for c, _ in runs), evaluation


def together(grids: Iterable[grid.Grid]) -> list[tuple[TrainConfig, set[float]]]:
    """Every run of these grids once, with the scales that any of them samples it at."""
    runs: dict[str, tuple[TrainConfig, set[float]]] = {}
    for g in grids:
        for folder, c in g.runs.items():
            runs.setdefault(folder, (c, set()))[1].update(g.guidance_scales)
    return list(runs.values())


def table(seconds: float | None = None) -> str:
    """Markdown, one row a grid, and one of all on CIFAR, whose runs overlap. Hours: at `seconds` a step, or times t."""
    grids = [grid.load(name) for name in grid.names()]
    rows = [(f"`{g.path.stem}`", together([g])) for g in grids]
    cifar = [(c, scales) for c, scales in together(grids) if c.dataset.startswith("cifar")]
    rows.append(("all on CIFAR, together", cifar))
    lines = ["| grid | data | runs | training | evaluation | hours |", "|---|---|---:|---:|---:|---:|"]
    for name, runs in rows:
        training, evaluation = cost(runs)
        sets = ", ".join(dict.fromkeys(c.dataset for c, _ in runs))
        hours = (training + evaluation) / 3600
        cell = f"{hours:,.0f} $t$" if seconds is None else f"{hours * seconds:,.1f}"
        lines.append(f"| {name} | {sets} | {len(runs)} | {training / 1e6:.2f} | {evaluation / 1e6:.2f} | {cell} |")
    return "\n".join(lines)


def page() -> str:
    """The table, what it makes of the one t that was measured, and what sampling at several scales adds."""
    t = SPEED["milliseconds"]["step, DDPM"] / 1000
    hours = sum(cost(together([grid.load("digits")]))) * t / 3600
    runs = together([grid.load("table1")])
    alone = sum(cost((c, [2.5]) for c, _ in runs))
    return f"""{table()}

With the $t$ of `benchmarks/speed.json`, {t:.3f} s on one thread of a CPU, `digits` takes {hours:.1f} hours of one core.
Sampled at scale 2.5 alone, `table1` would take {alone / 3600:,.0f} $t$, {1 - alone / sum(cost(runs)):.0%} less.
"""


def run_page() -> str:
    """Markdown: one run of each method on CIFAR-10 at IR 100, in time and on disk."""
    lines = [
        "| profile | method | training | evaluation | hours | run folder | bf16 weights |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for profile in ("gpu", "paper"):
        for method in ("ddpm", "oc", "cbdm", "call", "oc-call"):
            c = config.make_config("cifar10", 100, method, profile)
            training, evaluation = training_steps(c), evaluation_steps(c, config.GUIDANCE_SCALE)
            hours, cells = (training + evaluation) / 3600, [f"`{profile}`", method]
            numbers = sum(p.numel() for p in build_model(c, 3, 10).parameters())
            # weights, their average and Adam's two moments, in float32; the checkpoint before is kept
            folder, weights = 2 * 4 * 4 * numbers / 1e9, 2 * numbers / 1e6
            cells += [f"{training / 1e6:.3f}", f"{evaluation / 1e6:.3f}", f"{hours:,.1f} $t$"]
            lines.append("| " + " | ".join([*cells, f"{folder:.2f} GB", f"{weights:.0f} MB"]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--runs", action="store_true", help="of one run instead of the grids")
    p.add_argument("--seconds", type=float, help="a DDPM step on your machine; default: leave it as t")
    a = p.parse_args()
    print(run_page() if a.runs else page() if a.seconds is None else table(a.seconds) + "\n", end="")
