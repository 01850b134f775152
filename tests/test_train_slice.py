"""The slice: methods side by side, stopped by the clock and by a signal, and going on from there."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from callkit import checkpoints, training
from callkit.config import make_config

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "sweeps"))

import train_slice  # noqa: E402
from cost import method_ratio  # noqa: E402

WORDS = ["--dataset", "digits", "--imbalance-ratio", "50", "--profile", "smoke", "--device", "cpu", "--images", "40"]
SMALL = ["--set", "channels=8"]


def folders(root: Path) -> dict[str, Path]:
    return {m: root / f"digits-ir50/{m}-smoke/seed0-channels=8" for m in ("ddpm", "oc-call")}


def call(root: Path, minutes: str, *more: str) -> None:
    train_slice.main([*WORDS, *SMALL, "--methods", "ddpm", "oc-call", "--minutes", minutes, "--root", str(root), *more])


def test_methods_take_turns_and_are_measured_at_each_mark(tmp_path, capsys):
    call(tmp_path, "5")
    marks = {m: train_slice.read_marks(run) for m, run in folders(tmp_path).items()}
    theta, both = [(10, "theta"), (20, "theta")], [(s, w) for s in (10, 20) for w in ("theta", "theta_g")]
    assert [(m["step"], m["weights"]) for m in marks["ddpm"]] == theta
    assert [(m["step"], m["weights"]) for m in marks["oc-call"]] == both
    assert all(m["fid"].keys() == {"overall", "many", "medium", "few"} for found in marks.values() for m in found)
    assert marks["oc-call"][2]["fid"] != marks["oc-call"][0]["fid"]
    out = capsys.readouterr().out
    order = ["ddpm: training, step 0 to 10", "oc-call: training, step 0 to 10", "ddpm: training, step 10 to 20"]
    assert sorted(order, key=out.find) == order and all(words in out for words in order)
    assert (
        "FID by digits at step 20, 40 images" in out
        and f"| ddpm | theta | {marks['ddpm'][1]['fid']['overall']:.1f} |" in out
    )
    assert (tmp_path / "digits-ir50/slice-smoke-seed0.png").read_bytes().startswith(b"\x89PNG")
    # what was measured is what was left, half as large, and the run itself is that of `callkit train`
    run = folders(tmp_path)["oc-call"]
    left, about = checkpoints.load_checkpoint(run / train_slice.MEASURED)
    assert about["step"] == 20 and {v.dtype for v in left.values()} == {torch.bfloat16}
    list(training.train(make_config(method="oc-call", profile="smoke", channels=8), tmp_path / "whole"))
    whole, _ = checkpoints.load_checkpoint(tmp_path / "whole" / checkpoints.CHECKPOINT)
    assert all(torch.equal(whole[k].bfloat16(), v) for k, v in left.items())
    call(tmp_path, "5")
    assert {m: train_slice.read_marks(run) for m, run in folders(tmp_path).items()} == marks, "nothing is left to do"


def test_the_first_estimate_is_of_the_network_and_not_of_the_method(tmp_path, monkeypatch):
    """A step of OC + CALL takes longer than one of DDPM; its network samples as fast."""
    runs = {tmp_path / m: make_config(method=m, profile="smoke", channels=8) for m in ("ddpm", "oc-call")}
    of = train_slice.Slice(runs, 1, 40, "cpu", Path("data"))
    seconds = {run: 0.1 * method_ratio(c.method) for run, c in runs.items()}
    monkeypatch.setattr(of, "seconds_per_step", seconds.get)
    ddpm, call = map(of.estimate, runs)
    assert call == pytest.approx(ddpm)
    of.guidance_scale = 2.5
    assert of.estimate(tmp_path / "ddpm") == pytest.approx(2 * ddpm)


def test_an_evaluation_that_does_not_fit_is_put_off_and_then_comes_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_slice.Slice, "estimate", lambda self, run: 1e6)
    call(tmp_path, "5")
    ddpm, call_ = folders(tmp_path).values()
    assert checkpoints.steps_done(ddpm) == 10 and not train_slice.read_marks(ddpm) and not call_.exists()
    assert "the next call begins with it" in capsys.readouterr().out
    call(tmp_path, "5")
    assert len(train_slice.read_marks(ddpm)) == 1 and checkpoints.steps_done(call_) == 10
    assert not train_slice.read_marks(call_)


def test_an_evaluation_that_takes_too_long_is_broken_off(tmp_path, capsys, monkeypatch):
    ddpm = folders(tmp_path)["ddpm"]
    real = train_slice.evaluation.describe_samples
    monkeypatch.setattr(train_slice.Slice, "left", lambda self: 0.2 if checkpoints.steps_done(ddpm) else 60.0)
    monkeypatch.setattr(train_slice.Slice, "estimate", lambda self, run: 0.0)
    monkeypatch.setattr(train_slice.evaluation, "describe_samples", lambda *a, **_: (a[7].mkdir(), time.sleep(300)))
    call(tmp_path, "5")
    assert checkpoints.steps_done(ddpm) == 10 and not train_slice.read_marks(ddpm)
    assert "took longer than the last" in capsys.readouterr().out
    monkeypatch.setattr(train_slice.evaluation, "describe_samples", real)
    call(tmp_path, "5")
    mark, *_ = train_slice.read_marks(ddpm)  # a fast machine gets to the next one as well
    assert mark["step"] == 10, "what a call begins with has no limit"
    assert mark["seconds"]["evaluation"] is None, "part of an evaluation is no estimate of a whole one"


def test_marks_at_another_guidance_scale_are_others(tmp_path, capsys):
    call(tmp_path, "5")
    run = folders(tmp_path)["oc-call"]
    before = train_slice.read_marks(run)
    assert {m["guidance_scale"] for m in before} == {1.0}
    call(tmp_path, "5", "--guidance-scale", "2.5")
    *kept, theta, theta_g = train_slice.read_marks(run)
    assert kept == before, "what is there stays"
    assert (theta["step"], theta["weights"], theta["guidance_scale"]) == (20, "theta", 2.5)
    assert theta_g["weights"] == "theta_g" and theta["fid"] != before[-2]["fid"]
    out = capsys.readouterr().out
    table = out[out.rindex("FID by digits at step 20, 40 images, guidance 2.5") :]
    assert f"| oc-call | theta | {theta['fid']['overall']:.1f} |" in table and table.count("| oc-call |") == 2
    assert {p.name for p in tmp_path.rglob("*.png")} == {"slice-smoke-seed0.png", "slice-smoke-seed0-g2.5.png"}


def test_two_calls_do_not_evaluate_one_mark_twice(tmp_path, monkeypatch):
    run = tmp_path / "run"
    c = make_config(method="ddpm", profile="smoke", channels=8, steps=10)
    list(training.train(c, run))
    slices = [train_slice.Slice({run: c}, 5, 40, "cpu", Path("data")) for _ in range(2)]
    for of in slices:
        of.describe_real()
    inside, describe = threading.Event(), train_slice.evaluation.describe_samples

    def slow(*arguments, **options):
        assert not inside.is_set(), "another is at it"
        inside.set()
        time.sleep(1)
        found = describe(*arguments, **options)
        inside.clear()
        return found

    monkeypatch.setattr(train_slice.evaluation, "describe_samples", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda of: of.evaluate(run, "theta"), slices))
    assert [(m["step"], m["weights"]) for m in train_slice.read_marks(run)] == [(10, "theta")]


def test_help_says_every_default_once_and_what_every_option_is(capsys):
    with pytest.raises(SystemExit):
        train_slice.main(["--help"])
    options = " ".join(capsys.readouterr().out.partition("--help")[2].split()).split(" --")
    assert all(option.count("default") <= 1 for option in options)
    assert all(re.search(r"[a-z]{2,} [a-z]", option) for option in options[1:]), "words and not just a name"


def test_a_damaged_checkpoint_is_passed_over_as_in_training(tmp_path):
    call(tmp_path, "5", "--images", "45")
    run = folders(tmp_path)["oc-call"]
    assert {m["images"] for m in train_slice.read_marks(run)} == {40}, "equally many of each class"
    (run / train_slice.MARKS).unlink()
    (run / checkpoints.CHECKPOINT).write_bytes(b"")
    with pytest.warns(UserWarning, match="going back to"):
        call(tmp_path, "5")
    assert [m["step"] for m in train_slice.read_marks(run)] == [10, 10, 20, 20]


def test_a_split_of_one_real_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train_slice, "_of", lambda labels, classes: torch.arange(len(labels)) == 0)
    with pytest.raises(SystemExit, match="FID needs at least two real images, and Overall has one"):
        call(tmp_path, "5")


def test_without_time_nothing_is_trained(tmp_path, capsys):
    call(tmp_path, "0")
    assert not list(tmp_path.rglob(checkpoints.CHECKPOINT)) and "ddpm: 0 of 20 steps" in capsys.readouterr().out


def test_compile_is_for_each_turn(tmp_path, monkeypatch):
    seen, original = [], training.train

    def train(config, run, device, minutes, data_root, compile):
        seen.append(compile)
        return original(config, run, device, minutes, data_root)

    monkeypatch.setattr(train_slice.training, "train", train)
    monkeypatch.setattr(train_slice.Slice, "evaluate", lambda *_: None)
    monkeypatch.setattr(train_slice.Slice, "lacking", lambda *_: [])
    call(tmp_path, "5", "--compile")
    assert seen == [True] * 4  # two methods, two marks


def test_a_method_that_diverges_leaves_the_others_going(tmp_path, capsys, monkeypatch):
    explode, original = training.EXPLODED, training.train

    def train(config, *arguments):
        monkeypatch.setattr(training, "EXPLODED", 1e-6 if config.call else explode)
        return original(config, *arguments)

    monkeypatch.setattr(train_slice.training, "train", train)
    call(tmp_path, "5")
    ddpm, diverged = folders(tmp_path).values()
    assert checkpoints.steps_done(ddpm) == 20 and (diverged / checkpoints.DIVERGED).exists()
    out = capsys.readouterr().out
    assert "oc-call is out: step 5: the base loss" in out and "0 of 20 steps, diverged" in out
    assert "| ddpm | theta |" in out, "the others' scores are shown"


def test_a_signal_stops_it_with_a_checkpoint_and_status_75(tmp_path):
    command = [sys.executable, str(ROOT / "sweeps/train_slice.py"), *WORDS, "--methods", "ddpm", "--minutes", "5"]
    command += [
        "--root",
        str(tmp_path),
        "--threads",
        "1",
        "--set",
        "channels=8",
        "steps=100000",
        "checkpoint_every=50000",
    ]
    work = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    log = next(iter(tmp_path.rglob(checkpoints.LOG)), None)
    deadline = time.monotonic() + 60
    while log is None or log.stat().st_size == 0:
        assert work.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
        log = next(iter(tmp_path.rglob(checkpoints.LOG)), None)
    work.send_signal(signal.SIGTERM)
    out, _ = work.communicate(timeout=60)
    assert work.returncode == 75 and "stopped; call it again to go on" in out
    assert 5 <= checkpoints.steps_done(log.parent) < 100_000


def test_settings_of_call_are_for_the_methods_that_have_it(monkeypatch):
    made = []
    monkeypatch.setattr(train_slice, "Slice", lambda runs, *_: made.extend(runs.values()) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_slice.main([*WORDS, "--methods", "ddpm", "call", "--set", "lam=0.5", "lr=1e-3"])
    assert [(c.method, c.overrides()) for c in made] == [("ddpm", {"lr": 1e-3}), ("call", {"lam": 0.5, "lr": 1e-3})]
    with pytest.raises(SystemExit, match="error: lam has no effect without CALL, which method ddpm does not have"):
        train_slice.main([*WORDS, "--methods", "ddpm", "--set", "lam=0.5"])


@pytest.mark.parametrize(
    ("words", "ratio"),
    [(["imagefolder:x"], None), (["digits", "--imbalance-ratio", "natural"], None), (["digits"], 100)],
)
def test_the_imbalance_ratio_is_that_of_callkit_train(words, ratio, monkeypatch):
    made = []
    monkeypatch.setattr(train_slice.config, "make_config", lambda dataset, ratio, *_, **__: made.append(ratio) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_slice.main(["--dataset", *words])
    assert made == [ratio]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gan"], "error: unknown method 'gan'"),
        (["--images", "10"], "error: images must be at least two a class, 20; got 10"),
        (["--guidance-scale", "nan"], "error: guidance_scale must be a number, got nan"),
        (["--set", "log_every=3"], "error: checkpoint_every must be a multiple of log_every, 3, got 10"),
    ],
)
def test_wrong_words_are_one_line_before_any_work(arguments, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        train_slice.main([*WORDS, "--root", str(tmp_path), *arguments])
    assert not list(tmp_path.iterdir())


def test_a_mark_that_was_cut_off_is_dropped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / train_slice.MARKS
    path.write_text('{"step": 10}\n{"ste')
    assert train_slice.read_marks(tmp_path) == [{"step": 10}]
    train_slice.add_mark(tmp_path, {"step": 20})
    assert train_slice.read_marks(tmp_path) == [{"step": 10}, {"step": 20}]
