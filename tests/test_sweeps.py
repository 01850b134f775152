"""The sweeps: what a grid holds, and a small one run for real, killed on the way and run again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from callkit import checkpoints, records, training
from callkit.config import TrainConfig, make_config

snakemake = pytest.importorskip("snakemake.cli", reason="no Snakemake 9: it needs Python 3.11 to 3.13").main
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "sweeps"))

import cost  # noqa: E402
import grid  # noqa: E402

SNAKEFILE, PROFILES = ROOT / "sweeps/Snakefile", ROOT / "sweeps/profiles"


def arguments(name, folder, profile="local", report="", compiled="") -> list[str]:
    words = ["--snakefile", SNAKEFILE, "--directory", folder, "--config", f"grid={name}"]
    words += [f"report={report}", f"compile={compiled}", "--profile", PROFILES / profile]
    return [str(word) for word in words]


def write_grid(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_grids_hold_what_the_paper_ran():
    runs = {name: grid.load(name).runs for name in grid.names()}
    assert {name: len(found) for name, found in runs.items()} == {
        "table1": 7 * 2 * 2 * 3,  # methods, data sets, imbalance ratios, seeds
        "table2": 4 * 1 * 2 * 3,
        "table4": 2 * 3,
        "table5": (6 + 2) * 3,
        "fig2": 7 * 2 * 3,
        "fig4": (1 + 6) * 2 * 2 * 3,
        "fig5": 4 * 3 * 2 * 3,  # methods, widths, data sets, seeds
        "digits": 10 * 3,
        # methods at two ratios, RS + CALL, variants, widths, other images; seeds
        "digits-study": (10 * 2 + 1 + 24 + 6 + 2 * 2 + 2) * 5,
        "digits-guided": 10 * 5,
        "fashion": 8 * 5,
        "lasting": (2 * 5 + 2 + 1 + 4 * 3 + 2 * 2) * 5,
        "cifar10": 2 * 5,
        "cifar10-early": 4 * 5,
    }
    assert runs["table4"].keys() < runs["table5"].keys() and runs["fig2"].keys() < runs["table1"].keys(), "shared"
    assert runs["digits"].keys() < runs["digits-study"].keys() > runs["digits-guided"].keys(), "shared"
    for number in (1, 2, 4, 5):
        have = [c.words() | {"overrides": c.overrides()} for c in runs[f"table{number}"].values()]
        for row in records.paper_table(number):
            words = ("dataset", "imbalance_ratio", "method", "overrides")
            assert sum(all(c[w] == row[w] for w in words) for c in have) == 3, row
    assert {c.lam for c in runs["fig4"].values() if c.call} == {0, 0.5, 0.8, 1, 1.2, 1.5}
    assert {c.channel_mult for c in runs["fig5"].values()} == {(1, 2, 2), (1, 2, 2, 2), (1, 2, 3, 4)}


def test_a_grid_holds_every_run_that_has_a_record():
    """But for one with bfloat16 on digits, which chapter 16 looks at and nobody needs again."""
    found = [grid.load(name) for name in grid.names()]
    have = {(run, scale) for of in found for run in of.runs for scale in of.guidance_scales}
    for r in records.load_records() + records.load_records(diverged=True):
        run = str(records.run_folder(TrainConfig.from_dict(r["config"])))
        held = (run, r["run"].get("guidance_scale", 1)) in have
        assert held or r["run"]["overrides"] == {"precision": "bf16"}, r["file"]


HOLD = """
import os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
began = time.time()
time.sleep(1)
path.write_text(f"{os.environ['CUDA_VISIBLE_DEVICES']} {began} {time.time()}")
"""


def test_jobs_side_by_side_never_have_the_same_gpu(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0,GPU-b", "TMPDIR": str(tmp_path)}
    command = [sys.executable, ROOT / "sweeps/one_gpu.py", "-c", HOLD]
    jobs = [subprocess.Popen([*command, tmp_path / f"job{i}"], env=environment) for i in range(5)]
    assert [job.wait(60) for job in jobs] == [0] * 5
    held = [(tmp_path / f"job{i}").read_text().split() for i in range(5)]
    assert {gpu for gpu, *_ in held} == {"0", "GPU-b"}
    for i, (gpu, began, ended) in enumerate(held):
        for other, its_begin, its_end in held[i + 1 :]:
            assert gpu != other or float(ended) < float(its_begin) or float(its_end) < float(began)


def test_without_a_gpu_a_job_just_runs_and_keeps_its_exit_status(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path)}
    command = [sys.executable, ROOT / "sweeps/one_gpu.py", "-c", "import sys; sys.exit(75)"]
    assert subprocess.run(command, env=environment).returncode == 75
    assert not list(tmp_path.iterdir())


def test_a_list_is_one_run_for_each_value_and_overrides_name_the_folder(tmp_path):
    text = """
    guidance_scale: [1, 2.5]
    common: {dataset: digits, imbalance_ratio: [50, natural], profile: smoke, seed: 3}
    runs:
      - method: ddpm
      - {method: call, allocation: [paper, bounded], channel_mult: [[1, 2, 2]]}
    """
    found = grid.load(write_grid(tmp_path, text))
    folders = [
        "ddpm-smoke/seed3",
        "call-smoke/seed3-channel_mult=1,2,2-bound=None",
        "call-smoke/seed3-channel_mult=1,2,2",
    ]
    assert set(found.runs) == {f"runs/digits-ir{ir}/{folder}" for ir in ("50", "natural") for folder in folders}
    assert found.guidance_scales == [1, 2.5]
    printed = make_config("digits", None, "call", "smoke", 3, "paper", channel_mult=(1, 2, 2))
    assert found.runs["runs/digits-irnatural/call-smoke/seed3-channel_mult=1,2,2-bound=None"] == printed


COMMON = "common: {dataset: digits, imbalance_ratio: 50, profile: smoke, seed: [0, 1]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (COMMON + "runs: [{method: ddpm}, {metod: ddpm}]", r"entry 2 of runs \(\{'metod': 'ddpm'\}\): no method"),
        (COMMON + "runs: [{method: gan}]", r"entry 1 of runs .*: unknown method 'gan'"),
        (COMMON + "runs: [{method: ddpm, lamda: 2}]", "entry 1 of runs .*: unknown setting 'lamda'"),
        (COMMON + "runs: [{method: ddpm, lr: 5e-4}]", "entry 1 of runs .*: lr must be a number, got '5e-4'"),
        (COMMON + "runs: [{method: ddpm, channel_mult: [1, 2]}]", "channel_mult must be a tuple of integers, got 1"),
        (COMMON + "runs: [{method: ddpm, bound: none}]", "entry 1 of runs .*bound"),
        (COMMON + "runs: [{method: focal, base_options: {gamma: 2.0}}]", "base_options cannot be set"),
        (COMMON + "runs: [ddpm]", r"entry 1 of runs \(ddpm\)"),
        (COMMON + "runs: [{method: ddpm}]\nsteps: 5", "nothing but paper_table, guidance_scale, common, runs"),
        (COMMON + "guidance_scale: strong\nruns: [{method: ddpm}]", "guidance_scale must be numbers"),
        (COMMON + "guidance_scale: [-1]\nruns: [{method: ddpm}]", "guidance_scale must be numbers, at least 0"),
        (COMMON + "guidance_scale: [.nan]\nruns: [{method: ddpm}]", "guidance_scale must be numbers, at least 0"),
        (COMMON + "runs: 3", "must have `runs`, a list"),
        (COMMON + "runs: []", "must have `runs`, a list"),
        (COMMON + "paper_table: 6\nruns: [{method: ddpm}]", "paper_table must be one of"),
        (COMMON, "must have `runs`"),
        ("runs: [", "is not YAML"),
    ],
)
def test_a_wrong_grid_is_an_error_that_names_the_entry(text, message, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)mine.yaml.*{message}"):
        grid.load(write_grid(tmp_path, text))


def test_two_folders_of_images_with_one_name_are_not_confused(tmp_path):
    text = "common: {imbalance_ratio: natural, profile: smoke, seed: 0, method: ddpm}\n"
    text += "runs: [{dataset: ['imagefolder:a/birds', 'imagefolder:b/birds']}]"
    with pytest.raises(ValueError, match="another run with other settings has the same folder"):
        grid.load(write_grid(tmp_path, text))


def test_an_unknown_grid_is_an_error_that_lists_them():
    with pytest.raises(
        ValueError,
        match="no grid 'table9'; there are cifar10, cifar10-early, digits, digits-guided, digits-study, fashion",
    ):
        grid.load("table9")


@pytest.mark.parametrize("name", grid.names())
def test_dry_run(name, tmp_path, capfd):
    with pytest.raises(SystemExit) as exit:
        snakemake([*arguments(name, tmp_path), "--dry-run"])
    counts = dict(line.split() for line in capfd.readouterr().out.splitlines() if line.startswith(("train ", "evalu")))
    assert exit.value.code == 0
    loaded = grid.load(name)
    evaluations = len(loaded.runs) * len(loaded.guidance_scales)
    assert counts == {"train": str(len(loaded.runs)), "evaluate": str(evaluations)}
    assert not (tmp_path / "runs").exists()


def test_dry_run_on_a_cluster_stops_training_before_the_time_limit(tmp_path, capfd):
    with pytest.raises(SystemExit) as exit:
        snakemake(
            [*arguments("table4", tmp_path, "slurm", compiled="1"), "--dry-run", "--printshellcmds", "--cores", "8"]
        )
    out = capfd.readouterr().out
    assert exit.value.code == 0
    jobs = 6 + 6 * 3  # trainings, and evaluations at three guidance scales
    assert out.count("runtime=1440, gpu=1") == jobs and out.count(" --threads 4 ") == jobs
    assert out.count("timeout 1430m ") == 6 and out.count(" --compile ") == out.count(" --wait ") == 6


def test_a_grid_with_a_typo_starts_no_job(tmp_path, capfd):
    path = write_grid(tmp_path, COMMON + "runs: [{method: ddpm}, {method: ddpm, lamda: 2}]")
    with pytest.raises(SystemExit) as exit:
        snakemake(arguments(path, tmp_path))
    said = capfd.readouterr().err
    assert exit.value.code == 1 and "entry 2 of runs ({'method': 'ddpm', 'lamda': 2}): unknown setting 'lamda'" in said
    assert not (tmp_path / "runs").exists()


def start(name, folder, *targets, report="") -> subprocess.Popen:
    """A sweep of two jobs at a time, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", *arguments(name, folder, report=report), "--cores", "2", *targets]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when_there_is(path: Path, sweep: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert sweep.poll() is None and time.monotonic() < deadline, sweep.stdout.read()
        time.sleep(0.01)
    os.killpg(sweep.pid, signal.SIGKILL)
    sweep.communicate()


def test_killed_it_goes_on_and_one_that_fails_stops_no_other(tmp_path):
    text = """
    common: {dataset: digits, imbalance_ratio: 50, profile: smoke, seed: 0}
    runs:
      - {method: call, steps: 60}
      - {method: ddpm, lr: 1.0e+9}     # diverges
      - {method: ddpm, imbalance_ratio: 1000} # fails: the largest class has 174 images
    """
    path = write_grid(tmp_path, text)
    long, diverging, failing = (tmp_path / run for run in grid.load(path).runs)

    sweep = start(path, tmp_path, f"{long.relative_to(tmp_path)}/trained")
    kill_when_there_is(long / checkpoints.CHECKPOINT, sweep)
    done, log = checkpoints.steps_done(long), (long / "train.log").read_bytes()
    assert 10 <= done < 60 and not (long / "trained").exists()

    evaluated = long / "evaluated-g1.txt"
    kill_when_there_is(evaluated, start(path, tmp_path, evaluated.relative_to(tmp_path)))
    assert not evaluated.read_text(), "an output that is there and not whole"

    sweep = start(path, tmp_path)
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 1 and out.count("Error in rule") == 1 and "smallest class empty" not in out
    assert "imbalance_ratio 1000 leaves the smallest class empty" in (failing / "train.log").read_text()
    assert not (failing / "trained").exists()
    assert [r["run"]["weights"] for r in records.load_records(long)] == ["theta", "theta_g"]
    (stopped,) = records.load_records(diverging, diverged=True)
    assert stopped["run"]["overrides"] == {"lr": 1e9} and (diverging / "evaluated-g1.txt").exists()

    resumed = (long / "train.log").read_bytes()
    assert resumed.startswith(log) and len(resumed) > len(log), "logs are appended to"
    config = grid.load(path).runs[str(long.relative_to(tmp_path))]
    assert [r.step for r in training.train(config, tmp_path / "whole")][-1] == 60
    whole, _ = checkpoints.load_checkpoint(tmp_path / "whole" / checkpoints.CHECKPOINT)
    ours, _ = checkpoints.load_checkpoint(long / checkpoints.CHECKPOINT)
    assert whole.keys() == ours.keys() and all(torch.equal(whole[k], ours[k]) for k in whole)

    # Without the run that fails there is nothing left to do but the table and the reports.
    write_grid(tmp_path, "\n".join(line for line in text.splitlines() if "1000" not in line))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/*/*/*")}
    sweep = start(path, tmp_path, report="1")
    out, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 0, out
    assert {p: p.stat().st_mtime_ns for p in before} == before
    table = (tmp_path / "runs/tables/mine.md").read_text()
    assert table.count("| digits | 50 | smoke |") == 3 and "diverged at step 5" in table
    for run, figures in ((long, 4), (diverging, 0)):  # loss, distance, samples of theta and theta^g; it stopped before
        assert (run / "report.ipynb").read_text().count('"image/png"') == figures


def test_the_page_shows_the_cost_of_the_grids():
    assert (ROOT / "book/_sweeps.md").read_text() == cost.page(), (
        "out of step: run `python sweeps/cost.py > book/_sweeps.md`"
    )


def test_the_page_of_one_run_shows_its_cost():
    assert (ROOT / "book/_gpu.md").read_text() == cost.run_page(), (
        "out of step: run `python sweeps/cost.py --runs > book/_gpu.md`"
    )


def test_the_page_of_the_paper_profile_shows_every_setting():
    page = (ROOT / "book/gpu.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    shown = {name.strip(" `"): value.strip(" `") for name, value in rows}
    values = make_config("cifar10", 100, "oc-call", "paper").to_dict()
    for word in ("dataset", "imbalance_ratio", "method", "profile", "seed"):
        del values[word]
    as_typed = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in values.items()}
    assert {k: v for k, v in shown.items() if k in values} == as_typed


def test_cost_by_hand():
    ratios, milliseconds = cost.SPEED["ratios"], cost.SPEED["milliseconds"]
    found = grid.load("table4")
    training_steps, evaluation_steps = cost.cost(cost.together([found]))
    assert training_steps == pytest.approx(3 * 300_000 * (1 + ratios["step, OC + CALL"]))
    # 20,000 images in each split are more than 50,000 in all need; 50 steps, twice at the two scales that are guidance;
    # theta, and two of CALL
    evaluations = 3 * 20_000 / 64 * 50 * (2 + 2 + 1) * 3 * (1 + 2)
    one = milliseconds["sample, plain"] / milliseconds["step, DDPM"]
    assert evaluation_steps == pytest.approx(evaluations * one, rel=1e-3)
    default, deep = (make_config("cifar10", method="ddpm", channel_mult=m) for m in ((1, 2, 2, 2), (1, 2, 3, 4)))
    assert cost.network_ratio(default) == 1 < cost.network_ratio(deep) < 4


def test_the_unit_is_a_step_at_the_size_of_the_runs():
    fashion = [c for c in grid.load("fashion").runs.values() if c.method == "ddpm"]
    assert {(c.image_size, cost.training_steps(c)) for c in fashion} == {(8, 10_000.0)}


def test_a_run_of_several_grids_counts_once_with_the_scales_of_all():
    table1, fig4 = grid.load("table1"), grid.load("fig4")
    runs = cost.together([fig4, table1])
    assert len(runs) == len(table1.runs.keys() | fig4.runs.keys())
    scales = {(c.method, c.lam): s for c, s in runs}
    assert scales["oc-call", 1.0] == {1, 1.8, 2.5} and scales["oc-call", 0.5] == {2.5}


def test_the_papers_tables_are_not_sampled_at_the_scale_of_one_method():
    several = [name for name in grid.names() if len({c.base for c in grid.load(name).runs.values()}) > 1]
    papers = [name for name in several if name.startswith(("table", "fig"))]
    assert papers == ["fig2", "fig5", "table1", "table2", "table4", "table5"]
    assert all(grid.load(name).guidance_scales == [2.5, 1.8, 1] for name in papers)


def test_jobs_of_slurm_do_not_wait_for_each_other(tmp_path):
    command = [sys.executable, ROOT / "sweeps/one_gpu.py", "-c"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0", "TMPDIR": str(tmp_path), "SLURM_JOB_ID": "1"}
    stays = f"import pathlib, time; pathlib.Path({str(tmp_path / 'began')!r}).touch(); time.sleep(600)"
    first = subprocess.Popen([*command, stays], env=environment)
    try:
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        subprocess.run([*command, ""], env=environment | {"SLURM_JOB_ID": "2"}, check=True, timeout=60)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run([*command, ""], env=environment, timeout=2)
    finally:
        first.kill()
        first.wait()


def test_minus_one_is_no_gpu(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, ROOT / "sweeps/one_gpu.py", "-c", ""], env=environment, check=True)
    assert not list(tmp_path.iterdir())
