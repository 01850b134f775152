"""From a run folder to a record: interrupted, resumed, with other extractors, on a folder of one's own."""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from callkit import checkpoints, data, evaluation, files, metrics, records, sampling, training
from callkit.__main__ import main
from callkit.config import SAMPLING, make_config
from callkit.diffusion import NoiseSchedule


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    list(training.train(make_config(profile="smoke", channels=8), folder))
    return folder / checkpoints.CHECKPOINT


def scores(path):
    return json.loads(path.read_text())["metrics"]


def test_an_interrupted_evaluation_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 32)  # 100 images: four batches
    whole = evaluation.evaluate_run(run, results=tmp_path / "whole")
    steps = []
    ddim = sampling.ddim

    def counted(model, schedule, x, y, *args):
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(len(y))
        return ddim(model, schedule, x, y, *args)

    monkeypatch.setattr(sampling, "ddim", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate_run(run, results=tmp_path / "parts")
    steps[:] = [0] * 3  # never two again
    path = evaluation.evaluate_run(run, results=tmp_path / "parts")
    assert steps[3:] == [32, 4], "two batches were there already"
    assert scores(path) == scores(whole)
    assert list((tmp_path / "parts").iterdir()) == [path]


def test_a_record_says_how_long_sampling_took_and_where_though_another_process_began_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 50)
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError):
        broken.setattr(evaluation.metrics, "score", lambda *a: 1 / 0)
        evaluation.evaluate_run(run, results=tmp_path)
    for batch, seconds in zip(sorted(tmp_path.glob(".evaluating-*/*.safetensors")), (40.0, 2.5), strict=True):
        tensors, about = checkpoints.load_checkpoint(batch)
        assert 0 < about["seconds"] < 60 and about["device"].startswith("cpu (")
        checkpoints.save_checkpoint(batch, tensors, {"seconds": seconds, "device": "NVIDIA H200"})
    found = json.loads(evaluation.evaluate_run(run, results=tmp_path).read_text())
    assert (found["sampling"]["seconds"], found["sampling"]["device"]) == (42.5, "NVIDIA H200")
    jsonschema.validate(found, json.loads((records.results_folder() / "schema.json").read_text()))


def test_another_number_of_images_is_another_record_and_another_study(run, tmp_path):
    usual, fewer, rounded = (evaluation.evaluate_run(run, results=tmp_path, images=n) for n in (None, 45, 105))
    assert rounded == usual, "equally many of each class"
    assert fewer.name == usual.name.replace("theta", "n40-theta")
    counts = [records.read_record(p)["evaluation"]["generated_images"] for p in (usual, fewer)]
    assert counts == [100, 40] and scores(usual) != scores(fewer)
    found = records.load_records(tmp_path)
    name = "digits-ir50-smoke-channels=8"
    assert {s.name for s in records.studies(found)} == {name, f"{name}-n40"}
    assert len(records.table(found).splitlines()) == 4, "no mean over both"
    with pytest.raises(ValueError, match="images must be at least two a class, 20; got 19"):
        evaluation.evaluate_run(run, results=tmp_path, images=19)


def test_training_and_evaluation_redraw_the_same_images(tmp_path, monkeypatch):
    draws, load = [], data.load_long_tailed
    monkeypatch.setattr(data, "load_long_tailed", lambda *a: draws.append(a[-1]) or load(*a))
    c = make_config(profile="smoke", channels=8, seed=2, redraw=True)
    list(training.train(c, tmp_path))
    path = evaluation.evaluate_run(tmp_path / checkpoints.CHECKPOINT)
    assert draws == [3, 3]
    found = records.load_records(tmp_path)
    assert "redraw=True" in path.name and "redraw=True" in records.studies(found)[0].name


def test_what_is_measured_was_drawn_as_the_record_says(run, tmp_path):
    model, c = checkpoints.load_model(run)
    torch.manual_seed(0)
    for p in model.parameters():
        p.normal_(0, 0.2)  # a network for which guidance makes a difference
    path = evaluation.evaluate_run(
        run, results=tmp_path, guidance_scale=2.0, save_images=tmp_path / "png", load_model=lambda *_: (model, c)
    )
    words = json.loads(path.read_text())
    found = np.stack([np.asarray(Image.open(p).convert("L")) for p in sorted((tmp_path / "png").iterdir())])
    seed, steps = words["sampling"]["seed"], SAMPLING["smoke"]["steps"]
    drawn = model, NoiseSchedule(), sampling.balanced_labels(10, 10), 8, seed, steps
    guided, plain = (sampling.sample(*drawn, scale)[:, 0].numpy() for scale in (2.0, 1.0))
    assert words["run"]["guidance_scale"] == 2 and words["sampling"]["steps"] == steps
    assert (found == guided).all() and (found != plain).any()


def test_the_curve_of_a_record_has_the_averages_of_the_log():
    rng = np.random.default_rng(0)
    base, allocation, distance = rng.random(50), rng.random(50), rng.random((50, 4))
    distance[:, 3] = np.nan  # a class that was never drawn
    zeros = [0.0] * 4
    log = [
        checkpoints.StepRecord(10 * i + 10, 0.0, base[i], allocation[i], 0.0, 0.0, zeros, distance[i].tolist())
        for i in range(50)
    ]
    curve = evaluation.training_curve(log, [9, 5, 2, 1])
    assert curve["step"] == list(range(20, 501, 20))
    expected = {"base_loss": base, "allocation_loss": allocation}
    expected |= {f"distance_{split}": distance[:, c] for c, split in enumerate(("many", "medium", "few"))}
    for name, values in expected.items():
        assert curve[name] == pytest.approx(values.reshape(25, 2).mean(1)), name


def test_images_are_all_saved_though_an_interrupted_evaluation_saved_none(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 32)
    monkeypatch.setattr(evaluation.metrics, "score", lambda *a: 1 / 0)
    for images in (None, tmp_path / "png"):
        with pytest.raises(ZeroDivisionError):
            evaluation.evaluate_run(run, results=tmp_path, save_images=images)
    assert len(list((tmp_path / "png").iterdir())) == 100


@pytest.mark.parametrize(("size", "batch"), [(32, 500), (64, 500), (128, 125), (1024, 16)])
def test_large_images_are_sampled_few_at_a_time(size, batch, tmp_path, monkeypatch):
    class Model(torch.nn.Linear):
        def sample_batches(self, labels, image_size, seed, steps, scale, batch_size, wanted):
            seen.append(batch_size)
            return ([len(part)] for part in labels.split(batch_size))

    seen = []
    monkeypatch.setattr(evaluation.metrics, "describe", lambda images, *_: describe(images[0]))
    evaluation.describe_samples(Model(1, 1), torch.zeros(130).long(), size, 0, 1, 1.0, "digits", tmp_path)
    assert seen == [batch] and len(list(tmp_path.iterdir())) == -(-130 // batch)


def describe(n):
    return evaluation.metrics.Description(*(torch.zeros(n, 1) for _ in range(3)))


def test_a_scale_that_is_no_number_is_refused_before_any_work(run, tmp_path):
    with pytest.raises(ValueError, match="guidance_scale must be a number, got nan"):
        evaluation.evaluate_run(run, results=tmp_path, guidance_scale=float("nan"))
    assert not list(tmp_path.iterdir())


def test_two_evaluations_of_one_run_take_turns(tmp_path):
    inside = []

    def work(name):
        with evaluation._workplace(tmp_path / ".parts"):
            (tmp_path / ".parts").mkdir()  # fails if the other's is there
            inside.append(name)
            time.sleep(0.2)
            inside.append(name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, "ab"))
    assert "".join(inside) in ("aabb", "bbaa") and not list(tmp_path.iterdir())


def test_a_second_evaluation_says_that_it_waits_and_leaves_the_record_of_the_first(run, tmp_path, monkeypatch, capsys):
    score, second, said = metrics.score, [], []

    def scored_while_another_waits(*args, **options):
        monkeypatch.setattr(metrics, "score", lambda *_, **__: pytest.fail("measured twice"))
        second.append(pool.submit(evaluation.evaluate_run, run, results=tmp_path))
        while not second[0].done() and "waiting for its end" not in "".join(said):
            said.append(capsys.readouterr().err)
            time.sleep(0.01)
        return score(*args, **options)

    monkeypatch.setattr(metrics, "score", scored_while_another_waits)
    with ThreadPoolExecutor(1) as pool:
        path = evaluation.evaluate_run(run, results=tmp_path)
        assert second[0].result() == path
    assert f"another process evaluates this in {tmp_path}; waiting for its end" in "".join(said)
    assert f"{path} has been written by another process meanwhile" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "config",
            {"dataset": "imagefolder:elsewhere/digits"},
            r"other settings \(dataset: 'imagefolder:elsewhere/dig",
        ),
        ("config", {"lr": 0.5}, r"other settings \(lr: 0.5 there, 0.0002 now\): write elsewhere, by --results"),
        ("config", {"general_rank": 8}, "other settings .unknown setting 'general_rank'"),
        ("training", {"provenance": {"finished": "long ago"}}, r"another training .* \(it ended long ago, this one 20"),
    ],
)
def test_a_record_of_another_run_with_the_same_name_is_not_overwritten(run, tmp_path, part, change, message):
    path = evaluation.evaluate_run(run, results=tmp_path)
    record = json.loads(path.read_text())
    files.write_json(path, record | {part: record[part] | change})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate_run(run, results=tmp_path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before, "before any work"
    files.write_json(path, record)
    assert evaluation.evaluate_run(run, results=tmp_path) == path, "its own is replaced"


def test_a_record_with_a_curve_is_not_replaced_by_one_without(run, tmp_path):
    path = evaluation.evaluate_run(run, results=tmp_path)
    checkpoints.save_released(run, tmp_path / "released.safetensors")
    with pytest.raises(
        SystemExit, match=r"has the curve of its training, which is not in .* write elsewhere, by --results"
    ):
        main(["evaluate", str(tmp_path / "released.safetensors"), "--weights", "theta", "--device", "cpu"])
    assert json.loads(path.read_text())["training"]["curve"]["step"] == [5, 10, 15, 20]
    for _ in range(2):
        evaluation.evaluate_run(tmp_path / "released.safetensors", results=tmp_path / "elsewhere")


def test_a_run_that_diverged_goes_on_and_diverges_again_has_one_record(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EXPLODED", 1e-6)
    for ended in ("first", "second"):
        with pytest.raises(checkpoints.TrainingError):
            list(training.train(make_config(profile="smoke", channels=8), tmp_path))
        found = json.loads((tmp_path / checkpoints.DIVERGED).read_text())
        found["provenance"]["finished"] = ended
        (tmp_path / checkpoints.DIVERGED).write_text(json.dumps(found))
        path = evaluation.record_divergence(tmp_path)
    assert list(tmp_path.glob("*-diverged.json")) == [path]
    assert json.loads(path.read_text())["training"]["provenance"] == found["provenance"]


def test_data_that_have_changed_since_the_run_are_refused_before_any_work(run, tmp_path, monkeypatch):
    load = data.load_for
    monkeypatch.setattr(data, "load_for", lambda c, root: load(dataclasses.replace(c, imbalance_ratio=20), root))
    with pytest.raises(ValueError, match="the data set has changed since the run of"):
        evaluation.evaluate_run(run, results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_reference_of_classes_of_one_size_is_balanced_whatever_it_is_called():
    assert "balanced" in evaluation._reference(data.load_long_tailed("digits", None))


def test_an_unfinished_run_is_no_result(tmp_path):
    list(training.train(make_config(profile="smoke", channels=8), tmp_path, minutes=0))  # one step
    with pytest.raises(ValueError, match=r"is at step 1 of .* train it to the end"):
        evaluation.evaluate_run(tmp_path / checkpoints.CHECKPOINT)
    assert not list(tmp_path.glob("*.json"))


def test_another_checkpoint_does_not_find_the_parts_of_the_first(run, tmp_path, monkeypatch):
    seen = []
    describe = evaluation.describe_samples
    monkeypatch.setattr(evaluation, "describe_samples", lambda *a: seen.append(a[7]) or describe(*a))
    for weights, guidance in (("theta", 1.0), ("theta_g", 1.0), ("theta", 1.5)):
        evaluation.evaluate_run(run, weights, tmp_path, guidance_scale=guidance)
    assert len(set(seen)) == 3


def test_an_extractor_is_named_in_the_record_and_its_file(run, tmp_path, capsys):
    images = tmp_path / "png"
    arguments = ["evaluate", str(run), "--device", "cpu", "--weights", "theta", "--results", str(tmp_path / "r")]
    main([*arguments, "--extractor", "lite0", "--save-images", str(images)])
    (path,) = (tmp_path / "r").glob("*.json")
    record = json.loads(path.read_text())
    assert path.name.endswith("-lite0-theta.json") and record["evaluation"]["extractor"] == "lite0"
    main(arguments)
    rows = records.table(records.load_records(tmp_path / "r")).splitlines()[2:]
    assert len(rows) == 2, "scores of two extractors share no row"
    files = sorted((images / "theta").iterdir())
    assert len(files) == 100 and files[0].name == "000-000000.png" and files[-1].name == "009-000099.png"
    assert Image.open(files[0]).size == (8, 8)
    with pytest.raises(SystemExit, match="error: unknown extractor 'vgg'; known: digits, lite0, inception"):
        main([*arguments, "--extractor", "vgg"])


def test_your_own_folder_from_pictures_to_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    for c, (name, n) in enumerate((("owl", 12), ("tit", 9), ("jay", 6))):
        for i in range(n):
            folder = tmp_path / "birds" / name
            folder.mkdir(parents=True, exist_ok=True)
            mode, size = (("RGB", (40, 30)), ("L", (25, 25)), ("RGBA", (16, 48)))[i % 3]
            pixels = torch.randint(60 * c, 60 * c + 90, (size[1], size[0], len(mode)), generator=g, dtype=torch.uint8)
            Image.fromarray(pixels.numpy().squeeze(), mode).save(folder / f"{i}.png")
    small = ["channels=8", "channel_mult=1,2", "attention_levels=1,", "image_size=16", "held_out=0.34"]
    data_set = ["--dataset", "imagefolder:birds", "--imbalance-ratio", "natural", "--profile", "smoke"]
    main(["train", *data_set, "--method", "call", "--device", "cpu", "--set", *small])
    run = "/".join(["runs/imagefolder-birds-irnatural/call-smoke", "-".join(["seed0", *small])])
    main(["sample", run, "--device", "cpu", "--per-class", "2"])
    main(["evaluate", run, "--device", "cpu"])
    schema = json.loads((records.results_folder() / "schema.json").read_text())
    for path in (tmp_path / run).glob("*.json"):  # too few images for most scores of a class: null, not NaN
        jsonschema.validate(json.loads(path.read_text(), parse_constant=pytest.fail), schema)
    theta, _ = sorted(records.load_records(run), key=lambda r: r["run"]["weights"])
    assert theta["evaluation"]["extractor"] == "lite0" and "not of one size" in theta["evaluation"]["reference"]
    assert theta["run"]["class_counts"] == [4, 8, 6], "a third of 6, 12 and 9 is held out"
    assert theta["copies"]["few"]["if_not_copying"] == pytest.approx(4 / 6)
    assert {"overall", "many", "few", "class-2"} <= theta["metrics"].keys()
    capsys.readouterr()
    main(["table", run])
    assert "| imagefolder:birds | natural | smoke | call, " in capsys.readouterr().out
    (tmp_path / "birds" / "owl" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match=r"error: birds/owl/broken.png cannot be read as an image"):
        main(["train", *data_set, "--run", "again", "--device", "cpu", "--set", *small])


def test_a_snapshot_samples_every_set_of_weights_from_the_same_noise(run):
    images = evaluation.snapshot(run, per_class=2)
    assert images.keys() == {"theta", "theta_g"}
    for weights, drawn in images.items():
        model, _ = checkpoints.load_model(run, weights)
        y = sampling.balanced_labels(10, 2)
        assert torch.equal(drawn, sampling.sample(model, evaluation.NoiseSchedule(), y, 8, seed=0, steps=5))
    assert not torch.equal(images["theta"], images["theta_g"])


def test_which_noise_and_which_images_of_which_run(tmp_path, monkeypatch):
    """Another seed, another checkpoint of the same settings, and the paper's numbers of images."""
    seen, describe, score = [], evaluation.describe_samples, metrics.score
    monkeypatch.setitem(SAMPLING, "smoke", dict(images=40, per_split=24, steps=2))
    monkeypatch.setattr(evaluation, "describe_samples", lambda *a: seen.append(a) or describe(*a))
    asked = []
    monkeypatch.setattr(metrics, "score", lambda *a: asked.append(a[4:6]) or score(*a))
    for name, seed, images in (("a", 0, None), ("b", 0, None), ("c", 1, None), ("a", 0, 30)):
        run = tmp_path / name
        steps = 3 if name == "b" else 2
        list(training.train(make_config(profile="smoke", channels=8, steps=2, seed=seed, lr=1e-3 * steps), run))
        path = evaluation.evaluate_run(run / checkpoints.CHECKPOINT, results=tmp_path / name / "r", images=images)
    seeds = [a[3] for a in seen]
    assert seeds == [10_000, 10_000, 10_001, 10_000]
    assert len({a[7].name for a in seen}) == 4, "none finds the parts of another"
    assert asked == [(40, 24)] * 3 + [(30, None)]
    assert json.loads(path.read_text())["evaluation"]["generated_images_per_split"] is None


def test_a_record_counts_the_images_of_its_reference(tmp_path, monkeypatch):
    load = data.load_for

    def apart(c, root):
        real = load(c, root)
        return data.LongTailed(real.full, real.kept, real.full.subset(range(500)))

    monkeypatch.setattr(data, "load_for", apart)
    list(training.train(make_config(profile="smoke", channels=8, steps=1), tmp_path))
    found = json.loads(evaluation.evaluate_run(tmp_path / checkpoints.CHECKPOINT).read_text())
    assert found["evaluation"]["real_images"] == 500 and "test set" in found["evaluation"]["reference"]


def test_the_seconds_of_the_batches_add_up_to_those_that_sampling_took(tmp_path, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: float(next(ticks)))

    class Model(torch.nn.Linear):
        def sample_batches(self, labels, *_, wanted):
            return (torch.zeros(16, 1, 8, 8, dtype=torch.uint8) for _ in wanted)

    evaluation.describe_samples(Model(1, 1), torch.zeros(48).long(), 1024, 0, 1, 1.0, "digits", tmp_path)
    found = [checkpoints.load_checkpoint(p, tensors=False)[1]["seconds"] for p in sorted(tmp_path.iterdir())]
    assert found == [1.0, 1.0, 1.0]
