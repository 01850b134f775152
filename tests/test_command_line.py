"""The two stages from a terminal, and every notebook through papermill, at the smoke profile."""

import json
from pathlib import Path

import papermill
import pytest

from callkit import records
from callkit.__main__ import _value, main
from callkit.config import make_config
from callkit.training import train

# What the tests change in a notebook's parameters, to be quick.
PARAMETERS = {
    "05_training": lambda folder: {"profile": "smoke", "run": str(folder / "run"), "device": "cpu"},
    "06_who_gets_the_capacity": lambda folder: {"draws": 1},
    "08_inside_the_expert": lambda folder: {"per_class": 4},
    "14_stable_diffusion": lambda folder: {"steps": 4},
    "13_your_own_data": lambda folder: {"steps": 5, "folder": str(folder / "own")},
}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
WORDS = ["--dataset", "digits", "--imbalance-ratio", "50", "--method", "call", "--profile", "smoke", "--seed", "0"]


def test_train_sample_evaluate_table(tmp_path, capsys):
    run = str(tmp_path / "run")
    train = ["train", *WORDS, "--set", "lam=0.5", "--run", run, "--device", "cpu"]
    main([*train, "--minutes", "0"])
    assert "stopped at step 1 of 20; run again to go on\n" in capsys.readouterr().out
    main(train)
    assert "\nfinished\n" in capsys.readouterr().out
    pictures = [tmp_path / "samples.png", tmp_path / "guided.png"]
    for picture, options in zip(pictures, ([], ["--guidance-scale", "8"]), strict=True):
        main(["sample", run, "--per-class", "2", "--device", "cpu", "--out", str(picture), *options])
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    main(["evaluate", run, "--device", "cpu"])
    main(["evaluate", run, "--weights", "theta", "--guidance-scale", "2", "--device", "cpu"])
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    written = sorted((tmp_path / "run").glob("*.json"))
    words = [(r["run"]["weights"], r["run"]["guidance_scale"]) for r in map(records.read_record, written)]
    assert words == [("theta", 2), ("theta", 1), ("theta_g", 1)]
    assert all(json.loads(p.read_text())["run"]["overrides"] == {"lam": 0.5} for p in written)
    assert "lam=0.5" in written[0].name
    capsys.readouterr()
    main(["table", run])
    assert capsys.readouterr().out.count("| digits | 50 | smoke | call, lam=0.5 |") == 3
    main(["table", run, "--paper", "4"])
    assert capsys.readouterr().out.count("not run") == 12
    other = tmp_path / "other" / "record.json"
    other.parent.mkdir()
    record = json.loads(written[0].read_text())
    record["run"]["overrides"] = {"lam": 2.0}
    other.write_text(json.dumps(record))
    main(["table", run, str(other.parent)])
    out = capsys.readouterr().out
    assert out.count(" call, lam=0.5 |") == 3 and out.count(" call, lam=2.0 |") == 1


@pytest.mark.parametrize("levels", [(2,), (), (0, 1)])
def test_a_run_folder_names_what_its_run_overrides(levels):
    options = dict(lam=0.5, channel_mult=(1, 2, 3), attention_levels=levels, flip=True, bound=None)
    c = make_config("digits", None, "oc-call", "gpu", 3, **options)
    words = records.override_words(c)
    pairs = (word.partition("=") for word in words)
    assert {name: _value(value) for name, _, value in pairs} == options, "must be what --set would make of them"
    assert records.run_folder(c) == Path("runs/digits-irnatural/oc-call-gpu") / "-".join(["seed3", *words])
    assert records.run_folder(make_config(seed=1)) == Path("runs/digits-ir50/call-cpu/seed1")
    options = dict(lr=0.123456789, dropout=0.123456789, ema_decay=0.123456789, lam=0.123456789, rank=0.123456789)
    options |= dict(consistency=0.123456789, diversity=0.123456789, label_drop=0.123456789)
    many, other = (records.run_folder(make_config(**options | dict(bound=b))).name for b in (1.0, 2.0))
    assert many.startswith("seed0-9-overrides-") and len(many) < 50 and many != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--dataset", "mnist"], "error: unknown dataset 'mnist'"),
        (["train", "--set", "steps"], "error: --set takes NAME=VALUE, got 'steps'"),
        (["train", "--set", "lr=1e-3", "lam=2", "--set", "lr=1e-4"], "error: --set gives lr twice"),
        (["train", "--set", "rank=2"], "error: rank must be in"),
        (["train", "--set", "seed=1"], "error: seed is one of the words that name a run: use --seed, not --set"),
        (["train", "--set", "call=yes"], "error: call must be True or False, got 'yes'"),
        (["train", "--set", "base_options=1"], "error: base_options must be a dictionary, got 1"),
        (["train", "--set", "channel_mult=0,"], "error: channel_mult must be one positive factor a level"),
        (["train", "--dataset", "celeba-hq", "--set", "image_size=66"], "error: image_size must be a multiple of 8"),
        (
            ["train", "--set", "where=up-conv"],
            "error: where must be one of up-conv3x3, up, up-emb, up-no-emb, up-tail, all, got up-conv",
        ),
        (["train", "--dataset", "imagefolder:nowhere", "--device", "cpu"], "error: no folder nowhere"),
        (["train", "--set", "held_out=0.1", "--device", "cpu"], "error: held_out is for a data set's own counts"),
        (["train", "--imbalance-ratio", "0"], "error: imbalance_ratio must be at least 1"),
        (["evaluate", "nowhere"], "error: no checkpoint at nowhere"),
        (
            ["sample", "nowhere", "--out", "picture"],
            "error: --out must end like a picture",
        ),
        (["sample", "nowhere", "--guidance-scale", "nan"], "error: guidance_scale must be a number, got nan"),
        (["table", "nowhere"], "error: no records in nowhere"),
    ],
)
def test_errors_are_one_line_before_any_work(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--threads", "-1"], "--threads: must be at least 1, got -1"),
        (["--device", "foo"], "--device: device must be cpu, cuda or cuda:N, got foo"),
        (["--device", "cuda:x"], "--device: device must be cpu, cuda or cuda:N, got cuda:x"),
        (["--device", "cpu:"], "--device: device must be cpu, cuda or cuda:N, got cpu:"),
        (["--device", "cpu:3"], "--device: device must be cpu, cuda or cuda:N, got cpu:3"),
        (["--device", "cuda"], "--device: there is no device cuda: PyTorch finds 0 CUDA devices here"),
    ],
)
def test_options_are_checked_where_they_are_read(option, message, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SystemExit):
        main(["train", *option])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--paper", "1"], ["--out", "tables"]])
def test_a_metric_is_of_the_plain_table_alone(other, capsys):
    with pytest.raises(SystemExit):
        main(["table", "--metric", "kid", *other])
    assert f"{other[0]}: not allowed with argument --metric" in capsys.readouterr().err


def test_weights_that_a_run_lacks_are_refused(tmp_path):
    list(train(make_config(method="ddpm", profile="smoke", channels=8), tmp_path))
    with pytest.raises(SystemExit, match="was trained without CALL: it has no 'theta_g'"):
        main(["evaluate", "--weights", "theta_g", str(tmp_path), "--device", "cpu"])
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_weights_are_one_of_two_words(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "nowhere", "--weights", "best"])
    assert "--weights: invalid choice: 'best'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,2,2", (1, 2, 2)),
        ("1,", (1,)),
        (",", ()),
        ("1e-3", 1e-3),
        ("None", None),
        ("a {class} painting, oil", "a {class} painting, oil"),
    ],
)
def test_a_value_is_a_tuple_where_it_is_one_of_numbers(text, value):
    assert _value(text) == value


def test_what_is_set_adds_up(monkeypatch):
    given = []
    monkeypatch.setattr("callkit.config.make_config", lambda *_, **settings: given.append(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--set", "lam=2", "rank=0.2", "--set", "lr=1e-3"])
    assert given == [{"lam": 2, "rank": 0.2, "lr": 1e-3}]


def test_help_says_which_setting_is_for_python_alone(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "any setting but base_options" in " ".join(capsys.readouterr().out.split())


def test_your_own_images_keep_their_counts_unless_a_ratio_is_given(monkeypatch):
    ratios = []
    monkeypatch.setattr("callkit.config.make_config", lambda dataset, ratio, *_, **__: ratios.append(ratio) or 1 / 0)
    given = (["imagefolder:x"], ["imagefolder:x", "--imbalance-ratio", "50"], ["digits"])
    for words in (*given, ["digits", "--imbalance-ratio", "natural"]):
        with pytest.raises(ZeroDivisionError):
            main(["train", "--dataset", *words])
    assert ratios == [None, 50, 50, None]


def test_table_passes_by_other_json_and_names_what_is_none(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "another.json").write_text('{"schema_version": 1}')
    with pytest.raises(SystemExit, match="error: no records in"):
        main(["table", str(tmp_path)])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match=r"error: .*broken.json is not JSON"):
        main(["table", str(tmp_path)])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_executes(notebook, tmp_path):
    parameters = PARAMETERS.get(notebook.stem, lambda folder: {})(tmp_path)
    assert parameters.keys() <= papermill.inspect_notebook(notebook).keys()
    out = papermill.execute_notebook(
        notebook, tmp_path / notebook.name, parameters, cwd=tmp_path, kernel_name="python3", progress_bar=False
    )
    shown = [o for cell in out.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) or "text/html" in o.get("data", {}) for o in shown)
    assert not list(notebook.parent.glob("*.safetensors"))
