"""Run folders, result records with their provenance, and the tables made from them and from the paper's numbers.

A record is one JSON file per finished run and evaluation. Every number the book shows comes from one.
"""

import csv
import hashlib
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import torch

from callkit.config import default_extractor, usual_images

SCHEMA_VERSION = 1
Key = TypeVar("Key", bound=Hashable)
REPOSITORY = Path(__file__).resolve().parent.parent


def ratio_word(imbalance_ratio: float | None) -> str:
    """As `--imbalance-ratio` takes it."""
    return "natural" if imbalance_ratio is None else f"{imbalance_ratio:g}"


def data_word(dataset: str, imbalance_ratio: float | None) -> str:
    """<dataset>-ir<IR>, fit for a file name: of "imagefolder:PATH" the last part of the path."""
    kind, _, path = dataset.partition(":")
    name = f"{kind}-{Path(path).name}" if path else kind
    return f"{name}-ir{ratio_word(imbalance_ratio)}"


def override_words(config) -> list[str]:
    """NAME=VALUE of each setting that the run overrides, as `--set` takes them and as folders and files are named."""

    def word(value) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value)) + "," * (len(value) <= 1)
        return Path(str(value)).name  # a value may be a path

    return [f"{name}={word(value)}" for name, value in config.overrides().items()]


def file_words(config) -> list[str]:
    """`override_words`, or their hash where file names would become too long for a file system."""
    words = override_words(config)
    joined = "-".join(words).encode()
    return words if len(joined) <= 150 else [f"{len(words)}-overrides-{hashlib.sha256(joined).hexdigest()[:16]}"]


def run_folder(config, root: str | Path = "runs") -> Path:
    """runs/<dataset>-ir<IR>/<method>-<profile>/seed<seed>, then -NAME=VALUE for each setting that it overrides, or for
    many a hash."""
    data = data_word(config.dataset, config.imbalance_ratio)
    run = "-".join([f"seed{config.seed}", *file_words(config)])
    return Path(root) / data / f"{config.method}-{config.profile}" / run


def released_name(config) -> str:
    """The file in results/, and in results/progress/, that keeps something of this run's networks."""
    data = data_word(config.dataset, config.imbalance_ratio)
    return f"{data}-{config.method}-{config.profile}-seed{config.seed}.safetensors"


def in_clone() -> bool:
    """Whether this is the repository's callkit, with the paper's numbers and what was measured beside it."""
    return (REPOSITORY / "results").is_dir()


def results_folder() -> Path:
    """results/ of the repository; FileNotFoundError if callkit was installed without it."""
    if not in_clone():
        raise FileNotFoundError(
            "the records and released checkpoints are in the repository's results/ folder: "
            "clone it and `pip install -e .`"
        )
    return REPOSITORY / "results"


def benchmark(name: str) -> dict:
    """What benchmarks/ measured and wrote to <name>.json there."""
    return json.loads((REPOSITORY / "benchmarks" / f"{name}.json").read_text())


def _git(*arguments: str) -> str | None:
    if not (REPOSITORY / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed: metrics are an extra, and callkit itself runs from a bare clone."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def now() -> str:
    """UTC, as in a record."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def provenance(device: torch.device) -> dict:
    """What a number needs beside it to be believed: code, libraries, hardware, time."""
    used = [p for p in ("diffusers", "peft", "transformers") if p in sys.modules]
    # Untracked files do not count: the last run's records, not yet committed, are no change of the code.
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "libraries": _versions("torch", "numpy", "torch-fidelity", "callkit", *used),
        "finished": now(),
    }


def read_record(path: str | Path) -> dict:
    """One record, with its file name under "file"; {} if the file is another's JSON. ValueError if it is none."""
    try:
        record = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or not {"schema_version", "run", "config"} <= record.keys():
        return {}
    record["file"] = Path(path).name
    record["run"].setdefault("overrides", {})  # the first records had neither
    if "sampling" in record:
        record["run"].setdefault("guidance_scale", record["sampling"].get("guidance_scale"))
    return record


def load_records(folder: str | Path | None = None, diverged: bool = False, **where) -> list[dict]:
    """All records in `folder` and below (default: the repository's results/) whose run words equal `where`.

    load_records(dataset="digits", imbalance_ratio=50, method="call", overrides={}, weights="theta", guidance_scale=1)

    Of finished runs; with diverged=True instead of those that training stopped, which have no weights or metrics.
    """
    found = [read_record(p) for p in sorted(Path(folder or results_folder()).rglob("*.json"))]
    found = [r for r in found if r and ("diverged" in r) == diverged]
    return [r for r in found if all(r["run"].get(k) == v for k, v in where.items())]


# overrides that are of the data and the budget, and not of the method
BUDGET = ("image_size", "held_out", "redraw", "steps", "cooldown", "channels", "precision")


@dataclass(frozen=True)
class Study:
    """All records whose scores may be compared with one another: same data, profile, budget, extractor and number of
    generated images."""

    name: str
    records: list[dict]
    diverged: list[dict]

    @property
    def profile(self) -> str:
        return self.records[0]["run"]["profile"]

    def select(self, method: str, overrides: dict | None = None, weights: str = "theta", guidance_scale: float = 1):
        """The records of one method, set of weights and scale, by seed; `overrides` without those of the study."""
        wanted = dict(method=method, weights=weights, guidance_scale=guidance_scale)
        found = [r for r in self.records if all(r["run"][k] == v for k, v in wanted.items())]
        return sorted((r for r in found if method_overrides(r) == (overrides or {})), key=lambda r: r["run"]["seed"])


def method_overrides(record: dict) -> dict:
    """The overrides that are of the method: those that are not of BUDGET."""
    return {k: v for k, v in record["run"]["overrides"].items() if k not in BUDGET}


def study_name(dataset: str, imbalance_ratio: float | None, profile: str, **budget) -> str:
    """Of records with the usual extractor and number of images; `budget` has the settings of BUDGET that are not the
    profile's."""
    words = [f"{k}={budget[k]}" for k in BUDGET if k in budget]
    return "-".join([data_word(dataset, imbalance_ratio), profile, *words])


def _with_path(name: str, dataset: str) -> str:
    """The name of a study where another data set of the records has the same `data_word`."""
    return f"{name}-{quote(dataset, safe='')}"


def studies(records: list[dict], diverged: list[dict] = ()) -> list[Study]:
    """Records, and those of diverged runs, by what they may be compared with; the largest study first.

    A diverged run, which no extractor has seen, belongs to each study of its data and budget. Where two folders of
    images have one last name, their studies' names tell the whole paths.
    """
    datasets: dict[str, set[str]] = {}
    for run in (r["run"] for r in (*records, *diverged)):
        datasets.setdefault(data_word(run["dataset"], run["imbalance_ratio"]), set()).add(run["dataset"])

    def words(r) -> str:
        run = r["run"]
        name = study_name(run["dataset"], run["imbalance_ratio"], run["profile"], **run["overrides"])
        shared = len(datasets[data_word(run["dataset"], run["imbalance_ratio"])]) > 1
        return _with_path(name, run["dataset"]) if shared else name

    def measured(r) -> list[str]:
        """The extractor and the number of images, unless they are the usual ones."""
        run, by, images = r["run"], r["evaluation"]["extractor"], r["evaluation"]["generated_images"]
        usual = usual_images(run["profile"], len(run["class_counts"]))
        others = [by] if by != default_extractor(run["dataset"], run["profile"]) else []
        return others + ([f"n{images}"] if images != usual else [])

    found: dict[str, list[dict]] = {}
    for r in records:
        found.setdefault("-".join([words(r), *measured(r)]), []).append(r)
    made = [Study(name, of, [r for r in diverged if words(r) == words(of[0])]) for name, of in found.items()]
    return sorted(made, key=lambda study: -len(study.records))


def by_steps(found: list[Study]) -> dict[str, dict[int, Study]]:
    """Families of studies that differ in nothing but their number of training steps, in that order; often of one."""
    families: dict[str, dict[int, Study]] = {}
    for study in found:
        steps = study.records[0]["run"]["steps"]
        families.setdefault(study.name.replace(f"-steps={steps}", ""), {})[steps] = study
    return {name: dict(sorted(family.items())) for name, family in families.items()}


def ends(found: list[Study]) -> list[Study]:
    """Of each family of `by_steps` the study with the profile's own number of steps and the one with the most."""
    return [
        study
        for family in by_steps(found).values()
        for steps, study in family.items()
        if steps == max(family) or "steps" not in study.records[0]["run"]["overrides"]
    ]


def find_study(found: list[Study], dataset: str, imbalance_ratio: float | None, profile: str) -> Study:
    """The one with these words, nothing of the budget overridden, and the usual extractor and number of images;
    ValueError if there is none."""
    name = study_name(dataset, imbalance_ratio, profile)
    for study in found:
        if study.name in (name, _with_path(name, dataset)) and study.records[0]["run"]["dataset"] == dataset:
            return study
    raise ValueError(f"no records of {dataset} as {name}; there are {', '.join(s.name for s in found) or 'none'}")


def label(method: str, overrides: dict) -> str:
    """How tables name a method and the settings that it overrides."""
    return ", ".join(filter(None, [method, *(f"{k}={v}" for k, v in overrides.items())]))


def mean_std(records: list[dict], *keys: str) -> tuple[float, float]:
    """Mean and sample standard deviation over records of the number at that path, e.g. "metrics", "few", "fid"."""
    values = []
    for value in records:
        for key in keys:
            value = value[key]
        values.append(float("nan") if value is None else value)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


PARTED = 0.01  # a distance D far above what two predictions of one network differ by, and below where they rest


def parted_at(curve: dict) -> int | None:
    """The first step of a record's training.curve at which D on Few passes PARTED; None if it never does."""
    passed = (s for s, d in zip(curve["step"], curve["distance_few"], strict=True) if d is not None and d > PARTED)
    return next(passed, None)


def score_words(records: list[dict], split: str, metric: str) -> str:
    """Mean ± standard deviation over records for a table; of one record the score alone."""
    mean, std = mean_std(records, "metrics", split, metric)
    digits = {"fid": 2, "is": 2}.get(metric, 3)
    if metric == "kid":  # 0.003 give or take 0.0001 by Inception, 50 by the digits' classifier
        size = next((abs(v) for v in (std, mean) if v and math.isfinite(v)), 1)
        digits = min(max(2 - math.floor(math.log10(size)), 0), 5)
    return f"{mean:.{digits}f} ± {std:.{digits}f}" if len(records) > 1 else f"{mean:.{digits}f}"


def table(records: list[dict], metric: str = "fid") -> str:
    """Markdown: mean ± standard deviation over seeds (the value alone for one seed), one column per split.

    One row per method (with the settings that it overrides), weights, guidance scale, extractor and number of generated
    images. A row of diverged runs has the steps at which they stopped in place of scores.
    """
    rows: dict[tuple, list[dict]] = {}
    for r in records:
        run = r["run"]
        method = label(run["method"], run["overrides"])
        words = (run["dataset"], ratio_word(run["imbalance_ratio"]), run["profile"], method)
        if "diverged" in r:
            key = (*words, "", "", "", "")
        else:
            key = (*words, run["weights"], f"{run['guidance_scale']:g}", r["evaluation"]["extractor"])
            key += (f"{r['evaluation']['generated_images']:,}",)
        rows.setdefault(key, []).append(r)
    names = ("data", "IR", "profile", "method", "weights", "guidance", "extractor", "images", "seeds")
    splits = ("many", "medium", "few", "overall")
    lines = []
    for key, group in rows.items():
        seeds = [r["run"]["seed"] for r in group]
        if twice := sorted({s for s in seeds if seeds.count(s) > 1}):
            raise ValueError(f"two records of seed {twice[0]} on {key[0]}: {', '.join(r['file'] for r in group)}")
        cells = dict.fromkeys(splits, "")
        if "diverged" in group[0]:
            cells["many"] = "diverged at step " + ", ".join(f"{r['diverged']['step']:,}" for r in group)
        else:
            for split in cells.keys() & group[0]["metrics"].keys():  # two classes have no Medium
                cells[split] = score_words(group, split, metric)
        lines.append(dict(zip(names, (*key, len(group)), strict=True)) | cells)
    return markdown(lines)


def same_seeds(groups: dict[Key, list[dict]], at_least: int = 3) -> dict[Key, list[dict]]:
    """Each group without the seeds that another group of `at_least` seeds or more lacks: over what is left their means
    may be compared, for a seed may be a hard one for every method. As they are, if no group has so many."""
    seeds = {key: {r["run"]["seed"] for r in group} for key, group in groups.items()}
    many = [s for s in seeds.values() if len(s) >= at_least]
    kept = set.intersection(*many) if many else set().union(*seeds.values())
    return {key: [r for r in group if r["run"]["seed"] in kept] for key, group in groups.items()}


PAPER_TABLES = (1, 2, 3, 4, 5)


def paper_table(number: int) -> list[dict]:
    """A table of the paper: rows of dataset, imbalance_ratio, method, overrides, weights, split, metric, mean, std.

    `method` and `overrides` are our words for what the row is: the paper's "CALL" has base loss OC and is "oc-call".
    """
    if number not in PAPER_TABLES:
        raise ValueError(f"the paper has tables {', '.join(map(str, PAPER_TABLES))}; got {number}")
    with (results_folder() / "paper" / f"table{number}.csv").open() as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        settings = (pair.split("=") for pair in row["overrides"].split() if pair)
        row |= {"overrides": {k: float(v) for k, v in settings}}
        row |= {k: float(row[k]) for k in ("imbalance_ratio", "mean", "std")}
    return rows


PAPER_WORDS = ("dataset", "imbalance_ratio", "method", "overrides", "weights")


def paper_and_ours(number: int, records: list[dict]) -> list[dict]:
    """`paper_table`, each row with "ours": our comparable records by guidance scale and precision, which the paper does
    not state.

    Comparable are records of the profile `paper` with the paper's extractor, `inception`, and no others.
    """
    comparable = [r for r in records if r["run"]["profile"] == "paper" and r["evaluation"]["extractor"] == "inception"]
    rows = paper_table(number)
    for row in rows:
        row["ours"] = {}
        for r in comparable:
            run = r["run"] | {"overrides": {k: v for k, v in r["run"]["overrides"].items() if k != "precision"}}
            if all(run[k] == row[k] for k in PAPER_WORDS):
                row["ours"].setdefault((run["guidance_scale"], r["config"]["precision"]), []).append(r)
    return rows


def rows_beside_the_paper(number: int, records: list[dict]) -> list[dict]:
    """`paper_and_ours` in words: each number of the paper, ours where we ran it, and the difference of the two."""
    rows = []
    for row in paper_and_ours(number, records):
        method = ", ".join([row["method"], *(f"{k}={v:g}" for k, v in row["overrides"].items())])
        paper = {"data": row["dataset"], "IR": f"{row['imbalance_ratio']:g}", "method": method}
        paper |= {k: row[k] for k in ("weights", "split", "metric")}
        paper["paper"] = f"{row['mean']:g} ± {row['std']:g}"
        for (scale, precision), ours in row["ours"].items():
            mean, _ = mean_std(ours, "metrics", row["split"], row["metric"])
            score = score_words(ours, row["split"], row["metric"])
            files = ", ".join(r["file"] for r in ours)
            ours = {"ours": score, "difference": f"{mean - row['mean']:+.3g}", "guidance": f"{scale:g}"}
            rows.append(paper | ours | {"precision": precision, "records": files})
        if not row["ours"]:
            rows.append(paper | {"ours": "not run", "difference": "", "guidance": "", "precision": "", "records": ""})
    return rows


def beside_the_paper(number: int, records: list[dict]) -> str:
    """`rows_beside_the_paper` as Markdown."""
    return markdown(rows_beside_the_paper(number, records))


def markdown(rows: list[dict]) -> str:
    """A table of rows that have the same keys."""
    head = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(head + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])
