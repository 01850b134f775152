"""Every table and result figure, from records alone: what `make table` writes.

No network is loaded and no image drawn. Per study (records that may be compared) there are three tables and up to six
figures, each made of all that the study holds, and up to two more per family of studies that differ in their number of
training steps; a record more is a dot, a row or a file more.
"""

import csv
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from callkit import claims, files, records, viz
from callkit.claims import runs
from callkit.config import OF_CALL, TITLES, without_call
from callkit.records import Study, label, method_overrides
from callkit.statistics import Paired, holm, paired

SPLITS = ("many", "medium", "few")  # a data set of two classes has no Medium


def variants(study: Study) -> list[dict]:
    """What was run, as `Study.select` is told: one for each method with its overrides, weights and guidance scale."""
    found = []
    for r in study.records:
        words = {k: r["run"][k] for k in ("method", "weights", "guidance_scale")} | {"overrides": method_overrides(r)}
        if words not in found:
            found.append(words)
    return sorted(found, key=lambda w: (w["method"], str(w["overrides"]), w["guidance_scale"], w["weights"]))


def splits(study: Study) -> list[str]:
    return [s for s in SPLITS if s in study.records[0]["metrics"]]


def _names(words: dict) -> dict:
    return {
        "method": label(words["method"], words["overrides"]),
        "weights": words["weights"],
        "guidance": f"{words['guidance_scale']:g}",
    }


def score_rows(study: Study) -> list[dict]:
    """Mean ± standard deviation over seeds of each variant: FID by split, other metrics overall, and Recall on Few."""
    columns = [(s, "fid") for s in (*splits(study), "overall")]
    columns += [("overall", m) for m in ("kid", "recall", "is")] + [("few", "recall")]
    rows = []
    for words in variants(study):
        found = study.select(**words)
        row = _names(words) | {"seeds": " ".join(str(r["run"]["seed"]) for r in found)}
        for split, metric in columns:
            row[f"{split} {metric.upper()}"] = records.score_words(found, split, metric)
        rows.append(row)
    return rows


def plain(words: dict, method: str, weights: str = "theta") -> dict:
    """What a variant is set against: `method` at the same guidance scale, with the same settings but those of CALL."""
    kept = {k: v for k, v in words["overrides"].items() if k not in OF_CALL}
    return {"method": method, "weights": weights, "guidance_scale": words["guidance_scale"], "overrides": kept}


def difference_rows(study: Study) -> list[dict]:
    """FID of each variant against that of DDPM, and of its own method with the same weights and the default allocation,
    by split: the ratio and the difference, with 95 % intervals over the seeds that both have."""
    rows = []
    for words in variants(study):
        baselines = [plain(words, "ddpm")]
        if (own := plain(words, words["method"], words["weights"])) not in (words, *baselines):
            baselines.append(own)
        for baseline in baselines if words != baselines[0] else []:
            for split in (*splits(study), "overall"):
                pair = study.select(**words), study.select(**baseline), split
                ratio, difference = paired(*pair, ratio=True), paired(*pair)
                if ratio.seeds:
                    row = _names(words) | {"baseline": _names(baseline)["method"] + f" {baseline['weights']}"}
                    row |= {"split": split, "seeds": len(ratio.seeds)}
                    row |= {"FID ratio [95 %]": ratio.words(), "FID difference [95 %]": difference.words()}
                    row["p of ratio"] = f"{ratio.p:.3g}" if len(ratio.seeds) > 1 else ""
                    rows.append(row | {"exact p": f"{ratio.p_exact:.3g}"})
    return rows


def claim_rows(study: Study) -> list[dict]:
    """Each part of each claim of the paper, and its verdict."""
    found = claims.of(study.profile)
    return [{"source": c.source, "claim": c.text} | row for c in found for row in claims.rows(c, study)]


def record_rows(found: list[dict]) -> list[dict]:
    """Every metric of every set of every record: nothing averaged."""
    rows = []
    for r in found:
        run = r["run"]
        words = {k: run[k] for k in ("dataset", "imbalance_ratio", "profile", "method", "seed", "weights")}
        words |= {"overrides": label("", run["overrides"]), "guidance_scale": run["guidance_scale"]}
        for split, scores in r["metrics"].items():
            metrics = {m: scores.get(m) for m in ("fid", "kid", "recall", "precision", "is")}
            rows.append({"file": r["file"]} | words | {"split": split} | metrics)
    return rows


def ratios(study: Study, words: dict, baseline: dict) -> dict[str, Paired]:
    """FID ratio by split, for `viz.interval_dots`."""
    pair = study.select(**words), study.select(**baseline)
    return {s: paired(*pair, s, ratio=True) for s in splits(study)}


def ratio_row(ours: list[dict], baseline: list[dict]) -> dict:
    """For a table: how many seeds pair, and the FID ratio with its 95 % interval in each split and overall."""
    by_split = {s: paired(ours, baseline, s, ratio=True) for s in (*SPLITS, "overall")}
    row = {"seeds": len(by_split["overall"].seeds)}
    return row | {s.capitalize(): ratio.words() for s, ratio in by_split.items()}


def other_steps(
    family: dict[int, Study], ours: str, steps: int, base: str, base_steps: int, scale: float = 1
) -> dict[str, Paired]:
    """FID ratios by split and overall, of method `ours` after `steps` over `base` after `base_steps`, both of
    `records.by_steps` and at one guidance scale: for methods whose steps take unequally long."""
    pair = family[steps].select(ours, guidance_scale=scale), family[base_steps].select(base, guidance_scale=scale)
    return {s: paired(*pair, s, ratio=True, other_steps=True) for s in (*splits(family[steps]), "overall")}


def fids(study: Study, words: dict) -> dict[str, list[float]]:
    """By split, of each seed that has one: a set of one image has none."""
    scores = {s: [r["metrics"][s]["fid"] for r in study.select(**words)] for s in splits(study)}
    return {s: [v for v in of if v is not None] for s, of in scores.items()}


def unguided(study: Study) -> list[dict]:
    """`variants` of the whole network without guidance, plain DDPM first."""
    found = [w for w in variants(study) if w["weights"] == "theta" and w["guidance_scale"] == 1]
    return sorted(found, key=lambda w: w["method"] != "ddpm")


def methods(study: Study) -> list[str]:
    """Those of `unguided` without overrides."""
    return [w["method"] for w in unguided(study) if not w["overrides"]]


class Where(NamedTuple):
    """Where CALL is compared with the same without CALL: a row of `gains`. As text it is the row's name."""

    trained: str  # the data, the imbalance ratio and the training steps
    redrawn: bool  # each seed on its own draw of the images
    cooled: bool  # the learning rate falls towards the end
    base: str  # the method without CALL
    guidance_scale: float

    @classmethod
    def of(cls, study: Study, base: str = "ddpm", guidance_scale: float = 1) -> "Where":
        run = study.records[0]["run"]
        trained = f"{run['dataset']}-ir{records.ratio_word(run['imbalance_ratio'])}, {run['steps']:,} steps"
        return cls(trained, *(name in run["overrides"] for name in ("redraw", "cooldown")), base, guidance_scale)

    def how(self) -> str:
        """In words what is not plain: other images, a falling rate, another base loss than DDPM's, guidance."""
        words = {
            "other images": self.redrawn,
            "falling rate": self.cooled,
            f"on {TITLES[self.base]}": self.base != "ddpm",
            f"guided {self.guidance_scale:g}": self.guidance_scale != 1,
        }
        return ", ".join(word for word, applies in words.items() if applies)

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.trained, self.how())))


def gains(found: list[Study]) -> dict[Where, dict[str, Paired]]:
    """CALL over its base loss without CALL in the studies of `records.ends`, where at least `claims.SEEDS` seeds have
    both, with an FID on Few: FID ratios on Many, Few and overall.

    Under "base" what that base loss itself is worth at this scale: its FID on Few over that of DDPM without guidance.
    Under "kid" the difference of the KIDs on Few.
    """
    made = {}
    for study in records.ends(found):
        for words in variants(study):
            base = without_call(words["method"])
            if base == words["method"] or words["weights"] != "theta" or words["overrides"]:
                continue
            pair = study.select(**words), study.select(**plain(words, base))
            ratio = {s: paired(*pair, s, ratio=True) for s in ("many", "few", "overall")}
            ratio["base"] = paired(pair[1], study.select("ddpm"), "few", ratio=True)
            ratio["kid"] = paired(*pair, "few", "kid")
            if len(ratio["few"].seeds) >= claims.SEEDS:
                made[Where.of(study, base, words["guidance_scale"])] = ratio
    order = [where.trained for where in made]  # other images beside the same data
    return dict(sorted(made.items(), key=lambda item: order.index(item[0].trained)))


def at_best_scale(ratios: dict[Where, dict[str, Paired]]) -> dict[Where, dict[str, Paired]]:
    """Those of `gains` at the guidance scale at which their base loss has the lowest FID on Few, where several were
    tried."""
    scales: dict[Where, list[Where]] = {}
    for where in ratios:
        scales.setdefault(where._replace(guidance_scale=1), []).append(where)
    best = (min(tried, key=lambda where: ratios[where]["base"].mean) for tried in scales.values() if len(tried) > 1)
    return {where: ratios[where] for where in best}


def left_by_holm(ratios: dict[Where, dict[str, Paired]], split: str = "few") -> list[Where]:
    """Those of `gains` on one split, or losses, that Holm's rule over all of them leaves at 0.05."""
    adjusted = holm([of[split].p for of in ratios.values()])
    return [where for where, p in zip(ratios, adjusted, strict=True) if p <= 0.05]


def gain_rows(ratios: dict[Where, dict[str, Paired]]) -> list[dict]:
    """`gains` in words, with the verdict on "CALL is better"."""
    return [
        {
            "where": str(where),
            "seeds": len(ratio["overall"].seeds),
            "CALL / base on Few": ratio["few"].words(),
            "verdict, Few": claims.RULING[claims.verdict(ratio["few"], "lower")],
            "CALL / base overall": ratio["overall"].words(),
            "verdict, overall": claims.RULING[claims.verdict(ratio["overall"], "lower")],
            "base / DDPM on Few": f"{ratio['base'].mean:.3g}" if ratio["base"].seeds else "",
        }
        for where, ratio in ratios.items()
    ]


def gain_figure(ratios: dict[Where, dict[str, Paired]]) -> Figure:
    """`gains` on Few. Data and steps are named in the first row that has them."""
    rows, last = [], None
    for where, of in ratios.items():
        name = where.how() if where.trained == last else str(where)
        rows.append((f"{name} (n = {len(of['few'].seeds)})", of["few"], "", claims.verdict(of["few"], "lower")))
        last = where.trained
    return viz.forest(rows, claims.RULING)


def figures(study: Study) -> dict[str, Figure]:
    """By name; those for which the study has records."""
    made = {}
    fid = {m: fids(study, runs(m)) for m in methods(study)}
    if len(fid) > 1:
        made["methods"] = viz.variant_dots(fid)
        for axes in made["methods"].axes:
            viz.log_axis(axes.xaxis)

    against: dict[bool, dict] = {False: {}, True: {}}  # by whether there are overrides
    for words in unguided(study):
        ratio = ratios(study, words, plain(words, "ddpm"))
        if words["method"] != "ddpm" and ratio["few"].seeds:
            name = f"{label(words['method'], words['overrides'])} (n = {len(ratio['few'].seeds)})"
            against[bool(words["overrides"])][name] = ratio
    for name, rows in zip(("against-ddpm", "variants"), against.values(), strict=True):
        if rows:
            made[name] = viz.interval_dots(rows)

    guided: dict[str, dict] = {}
    for words in variants(study):
        if words["weights"] == "theta" and not words["overrides"]:
            guided.setdefault(words["method"], {})[words["guidance_scale"]] = fids(study, words)
    if guided := {m: by_scale for m, by_scale in guided.items() if len(by_scale) > 1}:
        made["guidance"] = viz.score_curves(guided, "guidance scale")

    if call := study.select("call"):
        made["distance"] = viz.distance_curves([r["training"]["curve"] for r in call], call[0]["config"]["bound"])
    if study.diverged:
        curves: dict[str, list] = {}
        for r in study.diverged:
            name = label(r["run"]["method"], method_overrides(r))
            curves.setdefault(name, []).append(r["training"]["curve"])
        made["divergence"] = viz.divergence_curves(curves, diverged=set(curves))
    return made


def steps_figures(family: dict[int, Study]) -> dict[str, Figure]:
    """Of studies by their training steps (`records.by_steps`), for the methods that were measured at several: FID
    against steps, and over that of DDPM at each."""
    by_method: dict[str, dict[int, Study]] = {}
    for steps, study in family.items():
        for method in methods(study):
            by_method.setdefault(method, {})[steps] = study
    by_method = {method: by_steps for method, by_steps in by_method.items() if len(by_steps) > 1}
    if not by_method:
        return {}
    curves = {m: {n: fids(study, runs(m)) for n, study in by_steps.items()} for m, by_steps in by_method.items()}
    against = {}
    for method, by_steps in by_method.items():
        for steps, study in by_steps.items():
            ratio = ratios(study, runs(method), runs("ddpm"))
            if method != "ddpm" and (n := len(ratio["few"].seeds)):
                against[f"{TITLES[method]}, {steps:,} steps (n = {n})"] = ratio
    made = {"steps": viz.score_curves(curves, "training steps")}
    return made | ({"steps-against-ddpm": viz.interval_dots(against)} if against else {})


def write(finished: list[dict], diverged: list[dict], folder: Path) -> list[Path]:
    """Tables as Markdown and CSV, figures as PNG and SVG. The same records give the same bytes.

    <study>-scores, -differences, -claims; -methods, -against-ddpm, -variants, -guidance, -distance, -divergence;
    <studies>-steps, -steps-against-ddpm;
    gains and all-gains, CALL over its base loss in all studies;
    records.csv, all scores; all.md, every variant and when diverged runs stopped; measured, the claims that are about
    no score; paper-table1 to 5, ours beside the paper's numbers. Of a callkit that was installed without its repository
    neither these nor the claims, and a line says so.
    """
    files.check_writable(folder)
    written = []

    def table(name: str, rows: list[dict], markdown: bool = True) -> None:
        if not rows:
            return
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        written.append(folder / f"{name}.csv")
        if markdown:
            text(name, records.markdown(rows))

    def text(name: str, content: str) -> None:
        (folder / f"{name}.md").write_text(content + "\n", encoding="utf-8")
        written.append(folder / f"{name}.md")

    table("records", record_rows(finished), markdown=False)
    text("all", records.table(finished + diverged))
    of_each = {"scores": score_rows, "differences": difference_rows}
    if records.in_clone():
        of_each["claims"] = claim_rows
        table("measured", claims.measured())
        for number in records.PAPER_TABLES:
            table(f"paper-table{number}", records.rows_beside_the_paper(number, finished))
    else:
        print("no tables of the paper's claims and numbers: these are in the repository, which is not here")
    viz.style()
    studies = records.studies(finished, diverged)
    for study in studies:
        for name, rows in of_each.items():
            if found := rows(study):
                table(f"{study.name}-{name}", found)
    drawn = {study.name: figures(study) for study in studies}
    if found := gains(studies):
        table("gains", gain_rows(found))
        drawn["all"] = {"gains": gain_figure(found)}
    for name, family in records.by_steps(studies).items():
        if len(family) > 1:  # one of them may have the family's name
            drawn[name] = drawn.get(name, {}) | steps_figures(family)
    for (of, made), suffix in product(drawn.items(), ("png", "svg")):
        for name, figure in made.items():
            path = folder / f"{of}-{name}.{suffix}"
            with plt.rc_context({"svg.hashsalt": name}):
                figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
    return written
