"""A look into two runs: what is measured of networks and is no score."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from callkit import checkpoints, data, pruning, records, training
from callkit.config import TITLES, make_config
from callkit.diffusion import NoiseSchedule

sys.path.append(str(records.REPOSITORY / "benchmarks"))

import probe
import speed


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {}
    for method in ("ddpm", "call", "oc", "oc-call"):
        folders[method] = tmp_path_factory.mktemp(method)
        list(training.train(make_config(method=method, profile="smoke", channels=8, lr=0.01), folders[method]))
    return folders


@pytest.mark.parametrize(("base", "call"), [("ddpm", "call"), ("oc", "oc-call")])
def test_a_look_into_two_runs(base, call, runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    arguments = [str(runs[base]), str(runs[call]), "--per-class", "2", "--draws", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["probe.py", *arguments])
    probe.main()
    found = json.loads(out.read_text())
    train = data.load_long_tailed("digits", 50).train
    images = train.subset([int(i) for c in range(10) for i in np.flatnonzero(train.labels.numpy() == c)[:2]])
    for name, run, weights in ((TITLES[base], base, "theta"), ("theta", call, "theta"), ("theta_g", call, "theta_g")):
        model, _ = checkpoints.load_model(runs[run] / checkpoints.CHECKPOINT, weights)
        losses = pruning.losses(model, images, NoiseSchedule(), 3)
        by_hand = [losses[images.labels == c].mean().item() for c in range(10)]
        assert found["loss"][name] == pytest.approx(by_hand, rel=1e-5), name
    assert np.shape(found["distance"]) == (10, len(found["timesteps"]))
    assert found["pruning"].keys() == {"training images", "balanced set"}
    for by_how in found["pruning"].values():
        assert by_how.keys() == set(pruning.HOW) and -1 <= by_how["layer"]["correlation"] <= 1
        assert any(by_how["filter"]["change"])
    plain, _ = checkpoints.load_model(runs[call] / checkpoints.CHECKPOINT)
    block, sizes = plain.up[0].attention, found["attention"]["theta"]["up.0.attention"]
    assert sizes["q"] == pytest.approx(np.linalg.norm(block.q.weight.flatten(1).numpy(), 2), rel=1e-5)
    assert sizes["k bias"] == pytest.approx(np.linalg.norm(block.k.bias.numpy()), rel=1e-5)
    log = checkpoints.read_log(runs[call] / checkpoints.LOG)
    assert found["runs"][call]["log"]["step"] == [r.step for r in log]
    of_the_last = np.array(found["runs"][call]["log"]["distance"][-1], dtype=float)  # null: not drawn
    assert of_the_last == pytest.approx(np.array(log[-1].distance_by_class), nan_ok=True)
    assert found["runs"][base]["config"]["method"] == base and found["runs"][base]["step"] == 20


@pytest.mark.parametrize("change", [{"imbalance_ratio": 20}, {"redraw": True, "seed": 1}])
def test_runs_of_different_data_are_not_set_side_by_side(change, runs, tmp_path, monkeypatch, capsys):
    other = make_config(method="call", profile="smoke", channels=8, steps=1, **change)
    list(training.train(other, tmp_path))
    monkeypatch.setattr(sys, "argv", ["probe.py", str(runs["ddpm"]), str(tmp_path)])
    with pytest.raises(SystemExit):
        probe.main()
    said = f"digits-ir{other.imbalance_ratio:g}, seed {other.seed}"
    assert f"the runs have other training images, digits-ir50, seed 0 and {said}" in capsys.readouterr().err


@pytest.fixture
def speed_of(tmp_path, monkeypatch):
    """Time two variants and measure their memory: the file that is written."""
    out = tmp_path / "speed.json"
    words = ["--only", "none", "--rounds", "1", "--batch-size", "2", "--memory", "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *words])
    return out


def test_times_outlast_a_measurement_of_memory_that_fails(speed_of, monkeypatch, capfd):
    before = signal.getsignal(signal.SIGINT)

    def run(command, **options):
        assert signal.getsignal(signal.SIGINT) is before, "no training is left"
        return run_it([sys.executable, "-c", "import sys; sys.exit('no memory')"], **options)

    run_it = subprocess.run
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit, match="memory of 'sample, plain' could not be measured"):
        speed.main()
    said = capfd.readouterr()
    assert "no memory" in said.err and "step, DDPM" in said.out
    found = json.loads(speed_of.read_text())
    assert found["milliseconds"].keys() == {"sample, plain", "step, DDPM"} and not found["peak_memory_bytes"]


def test_memory_is_in_the_file_where_it_was_measured(speed_of, monkeypatch):
    monkeypatch.setattr(speed, "memory_of", len)
    speed.main()
    assert json.loads(speed_of.read_text())["peak_memory_bytes"] == {"sample, plain": 13, "step, DDPM": 10}


def test_memory_that_cannot_be_read_is_refused_before_any_work(speed_of, monkeypatch, capsys):
    monkeypatch.setattr(speed, "STATUS", Path("nowhere"))
    with pytest.raises(SystemExit):
        speed.main()
    assert "--memory on a CPU reads nowhere, which Linux alone has" in capsys.readouterr().err
