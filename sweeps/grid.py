"""A grid of sweeps/grids/: the runs it stands for, and the folder of each.

    paper_table: 1            # optional: set ours beside this table of the paper
    guidance_scale: [2.5, 1]  # optional, one or a list: how the runs are sampled for evaluation; reports use the first
    common: {dataset: cifar10, imbalance_ratio: [100, 50], profile: paper, seed: [0, 1, 2]}
    runs:
      - method: [ddpm, oc-call]
      - {method: oc-call, lam: [0.5, 2.0]}

Each entry of `runs`, with what all have in `common`, is a call of `callkit.config.make_config`. A list is one run for
each of its values, and several lists are all combinations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from callkit.config import GUIDANCE_SCALE, WORDS, TrainConfig, make_config
from callkit.records import PAPER_TABLES, run_folder

GRIDS = Path(__file__).parent / "grids"
KEYS = ("paper_table", "guidance_scale", "common", "runs")


@dataclass(frozen=True)
class Grid:
    path: Path
    runs: dict[str, TrainConfig]  # by run folder
    guidance_scales: list[float]
    paper_table: int | None


def names() -> list[str]:
    return sorted(path.stem for path in GRIDS.glob("*.yaml"))


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _configs(settings: dict) -> Iterator[TrainConfig]:
    if missing := [word for word in WORDS if word not in settings]:
        raise ValueError(f"no {missing[0]}; each run needs {', '.join(WORDS)}")
    for values in product(*map(_list, settings.values())):
        arguments = dict(zip(settings, values, strict=True))
        if arguments["imbalance_ratio"] == "natural":
            arguments["imbalance_ratio"] = None
        config = make_config(**arguments)
        if config.base_options:
            raise ValueError("base_options cannot be set from the command line, and so not in a grid")
        yield config


def load(grid: str | Path) -> Grid:
    """The grid of that name in sweeps/grids, or in that .yaml file.

    ValueError naming the file, the entry and what is wrong with it.
    """
    path = Path(grid) if str(grid).endswith(".yaml") else GRIDS / f"{grid}.yaml"
    if not path.is_file():
        raise ValueError(f"no grid {str(grid)!r}; there are {', '.join(names())}, or name a .yaml file")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    runs_fit = isinstance(found, dict) and isinstance(found.get("runs"), list) and found["runs"]
    if not runs_fit or not found.keys() <= set(KEYS):
        raise ValueError(f"{path} must have `runs`, a list, and nothing but {', '.join(KEYS)}")
    table, scales = found.get("paper_table"), _list(found.get("guidance_scale", GUIDANCE_SCALE))
    if table not in (None, *PAPER_TABLES):
        raise ValueError(f"{path}: paper_table must be one of {PAPER_TABLES}, got {table!r}")
    if not scales or not all(isinstance(s, int | float) and 0 <= s < float("inf") for s in scales):
        raise ValueError(f"{path}: guidance_scale must be numbers, at least 0, got {scales!r}")
    runs: dict[str, TrainConfig] = {}
    for number, entry in enumerate(found["runs"], 1):
        try:
            for config in _configs(found.get("common", {}) | entry):
                if runs.setdefault(str(run_folder(config)), config) != config:
                    raise ValueError(f"another run with other settings has the same folder, {run_folder(config)}")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, entry {number} of runs ({entry}): {error}") from error
    return Grid(path.resolve(), runs, [float(s) for s in scales], table)
