"""The paper's claims as comparisons of records (`of`), and what the records make of each (`rows`; chapter 15).

A claim is a list of parts. Each part says which runs are set against which, in what split, and whether the FID of the
first should be lower than, higher than or equal to that of the second. A verdict follows from the records by one rule,
`verdict`; nothing is decided by hand.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import log
from typing import NamedTuple

from callkit.config import TITLES, without_call
from callkit.records import PAPER_TABLES, Study, benchmark, label, paper_table
from callkit.statistics import Paired, paired

SEEDS = 3  # for a verdict
MARGIN = 1.1  # two FIDs are "equal" within this factor
EXPECTED = {  # where the ratio of two FIDs should lie
    "lower": (0, 1),
    "higher": (1, float("inf")),
    "equal": (1 / MARGIN, MARGIN),
    "no higher": (0, MARGIN),
}
SYMBOLS = dict(zip(EXPECTED, "<>≈≲", strict=True))
RULING = {  # the verdicts from best to worst, and each on "A is better than B"
    "supported": "better",
    "direction only": "better in each seed",
    "not supported": "neither",
    "opposite direction": "worse in each seed",
    "reversed": "worse",
    "too few seeds": "too few seeds",
    "not tested": "",
}
VERDICTS = tuple(RULING)


def runs(method: str, weights: str = "theta", scale: float = 1.0, **overrides) -> dict:
    """What `Study.select` is told."""
    return dict(method=method, weights=weights, guidance_scale=scale, overrides=overrides)


@dataclass(frozen=True)
class Part:
    """FID of `ours` over FID of `baseline`, seed by seed, is `expected` to be one of EXPECTED of 1."""

    ours: dict
    expected: str
    baseline: dict
    split: str = "overall"

    def ratio(self, study: Study) -> Paired:
        return paired(study.select(**self.ours), study.select(**self.baseline), self.split, "fid", ratio=True)

    def words(self) -> str:
        """For a table or an axis: "CALL > DDPM, at 2.5, Few" says that the FID of CALL should be the higher one."""

        both = self.ours["overrides"] if self.ours["overrides"] == self.baseline["overrides"] else {}

        def side(words):
            name = label(TITLES[words["method"]], {} if both else words["overrides"])
            return name + " θᵍ" * (words["weights"] == "theta_g")

        scale = self.ours["guidance_scale"]
        said = [label(f"{side(self.ours)} {SYMBOLS[self.expected]} {side(self.baseline)}", both)]
        said += [f"at {scale:g}"] if scale != 1 else []
        said += [self.split.capitalize()] if self.split != "overall" else []
        return ", ".join(said)


@dataclass(frozen=True)
class Claim:
    """What the paper says, taken apart into comparisons."""

    name: str
    source: str  # where in the paper
    text: str
    parts: tuple[Part, ...] = ()  # none: this repository has no run that could tell


def verdict(ratio: Paired, expected: str) -> str:
    """One of VERDICTS.

    supported           the 95 % interval lies where it is EXPECTED
    direction only      every seed lies there, but not the whole interval
    reversed            the 95 % interval lies outside
    opposite direction  every seed lies outside, but not the whole interval
    not supported       anything else
    too few seeds       fewer than SEEDS have both
    not tested          no seed has both
    """
    if len(ratio.seeds) < SEEDS:
        return "too few seeds" if ratio.seeds else "not tested"
    low, high = EXPECTED[expected]
    inside = [low < v < high for v in ratio.values]
    if low < ratio.low and ratio.high < high:
        return "supported"
    if ratio.low > high or ratio.high < low:
        return "reversed"
    return "direction only" if all(inside) else "not supported" if any(inside) else "opposite direction"


def whole(verdicts: list[str]) -> str:
    """Of a claim from those of its parts: the worst of those that were tested with enough seeds.

    "supported in part" if that is good but others wait; where some parts speak against a claim and others do not, "not
    supported", and where all speak against it, the mildest.
    """
    tested = [v for v in VERDICTS[:-2] if v in verdicts]  # from best to worst
    if not tested:
        return "too few seeds" if "too few seeds" in verdicts else "not tested"
    if tested == ["supported"] and set(verdicts) != {"supported"}:
        return "supported in part"
    against = [v for v in tested if v in ("opposite direction", "reversed")]
    return tested[-1] if not against else against[0] if against == tested else "not supported"


def files(part: Part, study: Study) -> str:
    """The records behind a part, those of several seeds as seed{0,1,2}: a pattern that a shell expands."""
    patterns: dict[str, list[int]] = {}
    seeds = part.ratio(study).seeds
    for side in (part.ours, part.baseline):
        for r in study.select(**side):
            if (s := r["run"]["seed"]) in seeds:
                patterns.setdefault(r["file"].replace(f"-seed{s}-", "-seed{}-"), []).append(s)
    braces = {p: f"{{{','.join(map(str, s))}}}" if len(s) > 1 else str(s[0]) for p, s in patterns.items()}
    return " ".join(p.replace("{}", braces[p]) for p in patterns)


@cache
def _paper_fids() -> dict[tuple, dict[tuple, float]]:
    """FID by setting (data set, imbalance ratio), then by (method, weights, overrides, split)."""
    found: dict[tuple, dict[tuple, float]] = {}
    for row in (row for number in PAPER_TABLES for row in paper_table(number) if row["metric"] == "fid"):
        key = row["method"], row["weights"], str(row["overrides"]), row["split"]
        found.setdefault((row["dataset"], row["imbalance_ratio"]), {})[key] = row["mean"]
    return found


def paper_ratios(part: Part, call: str = "call") -> list[float]:
    """The same ratio in the paper's tables, of each of its settings; with call="oc-call" CALL on OC takes the place of
    CALL on DDPM's loss, and what OC gains by itself is in its ratio to DDPM."""
    found = []
    for fid in _paper_fids().values():
        keys = [
            (call if w["method"] == "call" else w["method"], w["weights"], str(w["overrides"]), part.split)
            for w in (part.ours, part.baseline)
        ]
        if all(key in fid for key in keys):
            found.append(fid[keys[0]] / fid[keys[1]])
    return found


def in_paper(part: Part) -> str:
    """`paper_ratios` in words, from least to most; where the paper has CALL on OC only, of that."""
    found = sorted(paper_ratios(part) or paper_ratios(part, "oc-call"))
    return " to ".join(dict.fromkeys(f"{v:.2f}" for v in found[:1] + found[-1:]))


def rows(claim: Claim, study: Study) -> list[dict]:
    """What the records of a study say of each part of a claim."""
    found = []
    for part in claim.parts:
        ratio = part.ratio(study)
        found.append(
            {
                "expected": part.words(),
                "seeds": len(ratio.seeds),
                "paper": in_paper(part),
                "ratio [95 %]": ratio.words(),
                "p": "" if ratio.p != ratio.p else f"{ratio.p:.2g}",
                "exact p": "" if ratio.p_exact != ratio.p_exact else f"{ratio.p_exact:.2g}",
                "verdict": verdict(ratio, part.expected),
                "records": files(part, study),
            }
        )
    return found


class Design(NamedTuple):
    """What the grids of a profile run: the paper names no guidance scale, and its tables vary CALL on OC's loss."""

    scales: tuple[float, ...]  # of guidance; the first is none
    call: str  # whose terms, lambda and widths are varied,
    base: str  # and the same without CALL
    terms: tuple[float, ...]  # the scales for the terms and widths,
    lambdas: tuple[float, ...]  # for lambda,
    general: tuple[float, ...]  # and for theta^g against DDPM, where CALL is on OC only those with guidance
    widths: tuple[list[int], ...]  # beside the default


SMALL = Design((1.0, 1.5, 2.5), "call", "ddpm", (1.0,), (1.0,), (1.0,), ([1, 1], [1, 2, 2]))
LARGE = Design((1.0, 1.8, 2.5), "oc-call", "oc", (1.0, 1.8, 2.5), (2.5,), (1.8, 2.5), ([1, 2, 2], [1, 2, 3, 4]))
LAMBDAS = 0.0, 0.5, 0.8, 1.2, 1.5  # of Figure 4, beside the default, 1


@cache
def of(profile: str) -> tuple[Claim, ...]:
    """The paper's claims, with the comparisons that the grids of a profile hold."""
    design = LARGE if profile in ("gpu", "paper") else SMALL

    def improves(methods: tuple[str, ...], *splits: str) -> tuple[Part, ...]:
        """Each method over itself without CALL, at every scale."""
        each = product(methods, splits or ("overall",), design.scales)
        return tuple(Part(runs(m, scale=g), "lower", runs(without_call(m), scale=g), split) for m, split, g in each)

    def against_ddpm(expected: dict[str, str]) -> tuple[Part, ...]:
        each = product(expected.items(), design.scales)
        return tuple(Part(runs(method, scale=g), as_, runs("ddpm", scale=g)) for (method, as_), g in each)

    def general(expected: str, baseline: tuple[str, str], split: str) -> tuple[Part, ...]:
        return tuple(Part(runs(design.call, "theta_g", g), expected, runs(*baseline, g), split) for g in design.general)

    def varied(settings: list[dict], expected: str, baseline: str, scales: tuple[float, ...]) -> tuple[Part, ...]:
        """CALL with other settings, over CALL as it is or over its base loss."""
        return tuple(
            Part(runs(design.call, scale=g, **s), expected, runs(baseline, scale=g))
            for s, g in product(settings, scales)
        )

    lambdas = [dict(lam=lam) for lam in LAMBDAS]
    return (
        Claim(
            "best",
            "Table 1",
            "CALL, on top of OC, has a lower FID than each of its rivals",
            tuple(
                Part(runs("oc-call", scale=g), "lower", runs(rival, scale=g))
                for g, rival in product(design.scales, ("ddpm", "ada", "rs", "focal", "cbdm", "oc"))
            ),
        ),
        Claim(
            "rivals",
            "Table 1",
            "RS is worse than DDPM, focal loss is level with it, and ADA, CBDM and OC are better",
            against_ddpm({"rs": "higher", "focal": "equal", "ada": "lower", "cbdm": "lower", "oc": "lower"}),
        ),
        Claim("ddpm", "Table 5", "CALL improves on plain DDPM overall", improves(("call",))),
        Claim(
            "minorities",
            "Abstract, Figure 2",
            "CALL improves on its base loss, DDPM's or OC's, on Few",
            improves(("call", "oc-call"), "few"),
        ),
        Claim(
            "splits",
            "Figure 2",
            "CALL improves on its base loss, DDPM's or OC's, on Many and on Medium, too",
            improves(("call", "oc-call"), "many", "medium"),
        ),
        Claim("celeba", "Table 2", "CALL is best on two classes of faces, and most so on the minority"),
        Claim("fine-tuning", "Table 3", "CALL is best when Stable Diffusion is fine-tuned with LoRA"),
        Claim(
            "split-pattern",
            "Table 4",
            "Without its expert the network is as good as DDPM on Many and Medium, and worse than with it on Few",
            general("no higher", ("ddpm", "theta"), "many")
            + general("no higher", ("ddpm", "theta"), "medium")
            + general("higher", (design.call, "theta"), "few"),
        ),
        Claim(
            "orthogonal",
            "Table 5",
            "CALL improves whatever base loss it is added to",
            improves(("call", "cbdm-call", "oc-call")),
        ),
        Claim(
            "both-terms",
            "Table 5",
            "Without the consistency or the diversity term CALL is worse",
            varied([dict(consistency=0.0), dict(diversity=0.0)], "higher", design.call, design.terms),
        ),
        Claim(
            "lambda-peak",
            "Figure 4",
            "λ = 1 is better than smaller and larger values",
            varied(lambdas, "higher", design.call, design.lambdas),
        ),
        Claim(
            "lambda-range",
            "Figure 4",
            "CALL improves on its base loss for other λ, from 0.5 to 1.5, too",
            varied(lambdas[1:], "lower", design.base, design.lambdas),
        ),
        Claim(
            "widths",
            "Figure 5",
            f"CALL improves on {TITLES[design.base]} for networks of other widths and depths",
            tuple(
                Part(runs(design.call, scale=g, channel_mult=w), "lower", runs(design.base, scale=g, channel_mult=w))
                for w, g in product(design.widths, design.terms)
            ),
        ),
    )


def measured() -> list[dict]:
    """Three claims about networks and not about scores, from what benchmarks/ measured: one row each.

    The networks are one released pair, so none of the first two can be more than "direction only".
    """
    evidence, *speed = map(benchmark, ("evidence", "speed", "speed-paper"))
    correlations = {images: [by["correlation"] for by in ways.values()] for images, ways in evidence["pruning"].items()}
    few = {name: by_split["few"] for name, by_split in evidence["repairs"].items()}
    gap = log(few["theta_g"] / few["theta"])
    ten, rank_one = (
        log(few["theta_g"] / few[f"theta_g + {addition}"]) / gap
        for addition in ("a number per class", "rank-one embedding projections")
    )
    merged = [of["ratios"]["sample, merged"] for of in speed]
    return [
        {
            "source": "Figure 1a",
            "claim": "Pruning raises the loss of minorities most",
            "rule": "rank correlation of rarity and rise above 0 for all ways of pruning and sets of images",
            "in numbers": "; ".join(f"{min(r):+.2f} to {max(r):+.2f} on the {s}" for s, r in correlations.items()),
            "verdict": "direction only" if min(map(min, correlations.values())) > 0 else "not supported",
            "from": "benchmarks/evidence.json",
        },
        {
            "source": "Table 4, Section 5.3",
            "claim": "The expert holds the minorities' knowledge",
            "rule": "additions to the general network that can hold no image close less than half of the gap to the "
            "whole one, in log FID on Few",
            "in numbers": f"ten numbers close {ten:.0%}, one direction of each embedding projection {rank_one:.0%}",
            "verdict": "direction only" if max(ten, rank_one) < 0.5 else "not supported",
            "from": "benchmarks/evidence.json",
        },
        {
            "source": "Section 4.2",
            "claim": "No additional latency at inference",
            "rule": f"a merged network takes the time of a plain one within a factor {MARGIN}",
            "in numbers": f"{merged[0]:.3f} for the digits network, {merged[1]:.3f} for the paper's",
            "verdict": "supported" if all(1 / MARGIN < m < MARGIN for m in merged) else "not supported",
            "from": "benchmarks/speed.json, speed-paper.json",
        },
    ]
