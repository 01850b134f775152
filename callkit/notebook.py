"""What a chapter does first: check its parameters, and find the records and checkpoints that it reads.

Papermill passes a parameter that the notebook does not have as a variable of its own, warns, and runs with the
defaults. And without a data set's records a chapter would fail somewhere in its middle.
"""

import ast
from dataclasses import fields, replace
from pathlib import Path

from IPython import get_ipython

from callkit import records
from callkit.checkpoints import CHECKPOINT
from callkit.config import WORDS, TrainConfig, check_values, make_config


def check(**parameters) -> None:
    """Check all parameters of the notebook, given by name: `check(dataset=dataset, seed=seed)`.

    ValueError if papermill passed one that is not among them, or if one that is also a setting of `TrainConfig`
    has a value that `make_config` does not know.
    """
    if unknown := sorted(_passed() - parameters.keys()):
        raise ValueError(f"unknown parameter {unknown[0]!r}; this notebook has: {', '.join(parameters)}")
    settings = {f.name: parameters[f.name] for f in fields(TrainConfig) if f.name in parameters}
    words = {name: settings.pop(name) for name in WORDS if name in settings}
    check_values(replace(make_config(**words), **settings))  # together they need not fit: the data may be others


def _passed() -> set[str]:
    """The names that papermill was given: it assigns them in a cell of its own, headed by a comment."""
    shell = get_ipython()
    cells = [s for s in shell.user_ns["In"] if s.startswith("# Parameters\n")] if shell else []
    statements = [node for cell in cells for node in ast.parse(cell).body]
    return {name.id for node in statements if isinstance(node, ast.Assign) for name in node.targets}


def released(dataset: str, imbalance_ratio: float | None, method: str, profile: str, seed: int) -> Path:
    """The run's checkpoint in results/; FileNotFoundError that says how to make it."""
    run = make_config(dataset, imbalance_ratio, method, profile, seed)
    path = records.results_folder() / records.released_name(run)
    if not path.exists():
        raise FileNotFoundError(
            f"this chapter needs {path}, which does not exist: make it with `{_train(run)}` and, in Python, "
            f"`callkit.checkpoints.save_released({str(records.run_folder(run) / CHECKPOINT)!r}, {str(path)!r})`"
        )
    return path


def need_record(folder: str | Path | None = None, diverged: bool = False, **words) -> None:
    """FileNotFoundError if `records.load_records` finds none with these arguments; it says how to make one."""
    folder = folder or records.results_folder()
    if not records.load_records(folder, diverged, **words):
        known = {name: words[name] for name in {f.name for f in fields(TrainConfig)} & words.keys()}
        run = make_config(**words.get("overrides", {}), **known)
        raise FileNotFoundError(
            f"this chapter needs a record that {folder} does not have: make it with `{_train(run)}` and "
            f"`python -m callkit evaluate {records.run_folder(run)} --results {folder}`"
        )


def study(dataset: str, imbalance_ratio: float | None, profile: str) -> tuple[records.Study, list[records.Study]]:
    """The study of these words, and all that results/ has; FileNotFoundError if it lacks DDPM or CALL."""
    words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
    for method in ("ddpm", "call"):
        need_record(**words, method=method, overrides={})
    everything = records.studies(records.load_records(), records.load_records(diverged=True))
    return records.find_study(everything, **words), everything


def _train(run: TrainConfig) -> str:
    """The command that trains it."""
    words = run.words() | {"imbalance_ratio": records.ratio_word(run.imbalance_ratio)}
    options = [f"--{name.replace('_', '-')} {value}" for name, value in words.items()]
    if overrides := records.override_words(run):
        options += ["--set", *overrides]
    return " ".join(["python -m callkit train", *options])
