"""What a difference between two methods over a few seeds is worth: paired by seed, with intervals and p-values.

Derived in chapter 11. Two records of one seed share the training set, the order in which its images come, the noise
that sampling starts from, and, where they were trained on one kind of device, every timestep and noise of training (but
for RS, which draws other images, and ADA, whose warps are drawn first); if code and PyTorch are the same, too, only the
method differs. So differences are taken seed by seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean with Student's 95 % t-interval, whose ends are NaN for fewer than two values."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of `values` and its two-sided 95 % interval, which takes them to be draws of one normal distribution."""
    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided p-value of "each difference could as well have had the other sign".

    The share of the 2^n ways to sign the n differences whose mean is as far from zero as the one seen. It takes no
    distribution for granted, and is never below 2^(1 - n): 0.25 for three seeds, and 0.05 is out of reach below six.
    Beyond 16 differences so many ways are drawn in place of all. ValueError if there is no difference.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < 2:
        if not len(d):
            raise ValueError("there is no difference to test")
        return 1.0
    draw = np.random.default_rng(0)
    return float(stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=2**16, rng=draw).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several, in the same order (Holm's step-down rule): to call those below 0.05
    significant is wrong about any of them at most once in twenty, however they depend on each other."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def _digits(value: float, n: int = 3) -> str:
    return f"{value:#.{n}g}".rstrip(".")  # with the zeros at the end: rows of a column align


def interval_words(mean: float, low: float, high: float) -> str:
    """For a table: 0.830 [0.650, 1.07]. An end that three digits would round to 1 has four, for on which side of 1 it
    lies is what a reader asks."""
    low, high = (_digits(v, 4) if _digits(v) == "1.00" else _digits(v) for v in (low, high))
    return f"{_digits(mean)} [{low}, {high}]"


class Paired(NamedTuple):
    """One method against another, by seed: ratios of their scores, or differences."""

    seeds: list[int]  # that both have
    values: list[float]  # by seed
    mean: float  # of ratios the geometric one
    low: float
    high: float
    p: float  # of the paired t-test; NaN unless two values differ
    p_exact: float  # of the sign-flip test; NaN without a seed

    def words(self) -> str:
        """`interval_words`, or the value alone for one seed."""
        if len(self.seeds) < 2:
            return _digits(self.mean) if self.seeds else ""
        return interval_words(self.mean, self.low, self.high)


# What two records must share for their seeds to pair.
SHARED = (
    *(("run", k) for k in ("dataset", "imbalance_ratio", "profile", "steps", "class_counts")),
    *(("sampling", k) for k in ("sampler", "steps")),
    *(("evaluation", k) for k in ("extractor_sha256", "generated_images", "reference")),
    ("config", "image_size"),  # absent in the first records, which had the data set's own,
    ("config", "redraw"),  # and the published subset
)


def _by_seed(records: list[dict], split: str, metric: str) -> dict[int, dict]:
    """Those that have the score: two classes have no Medium, and a set of one image has no FID."""
    if len({r["run"]["seed"] for r in records}) < len(records):
        datasets = ", ".join(sorted({r["run"]["dataset"] for r in records}))
        raise ValueError(
            f"two records of one seed on {datasets}: select one dataset, weights, guidance scale and set of overrides"
        )
    return {r["run"]["seed"]: r for r in records if r["metrics"].get(split, {}).get(metric) is not None}


def paired(
    ours: list[dict],
    baseline: list[dict],
    split: str = "overall",
    metric: str = "fid",
    ratio: bool = False,
    other_steps: bool = False,
) -> Paired:
    """Records against records, over the seeds in which both have the score: ours - baseline, with `ratio` ours over it.

    Ratios are tested as differences of logarithms. FID is positive and its scatter over seeds grows with its size, so
    for FID take ratios; KID may be negative, and Recall is a share: take differences.

    ValueError if two records have one seed, or differ in what they must share: data and the images of it, steps,
    sampler, extractor. In guidance scale, weights and settings they may; with `other_steps` in training steps, too, to
    compare methods at equal time.
    """
    a, b = (_by_seed(side, split, metric) for side in (ours, baseline))
    seeds = sorted(a.keys() & b.keys())
    for s in seeds:
        for part, key in SHARED:
            if (part, key) == ("run", "steps") and other_steps:
                continue
            if (a[s][part].get(key) or None) != (b[s][part].get(key) or None):
                raise ValueError(f"{a[s]['file']} and {b[s]['file']} differ in {part}.{key}: they do not pair")
    scores = [[r[s]["metrics"][split][metric] for s in seeds] for r in (a, b)]
    x, y = np.log(scores) if ratio else np.array(scores, dtype=float)
    d, back = x - y, np.exp if ratio else np.asarray
    p = float(stats.ttest_1samp(d, 0).pvalue) if len(set(d)) > 1 else float("nan")
    p_exact = sign_flip_p(d) if len(d) else float("nan")
    return Paired(seeds, back(d).tolist(), *(float(back(v)) for v in mean_interval(d)), p, p_exact)
