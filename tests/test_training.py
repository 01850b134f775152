import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing

import jsonschema
import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import save_file

from callkit import checkpoints, data, records, training
from callkit.capacity import expert_weights
from callkit.checkpoints import (
    CHECKPOINT,
    DIVERGED,
    LOG,
    PREVIOUS,
    TrainingError,
    build_model,
    load_checkpoint,
    load_model,
    read_log,
    save_checkpoint,
    save_released,
)
from callkit.config import METHODS, TITLES, make_config
from callkit.evaluation import record_divergence
from callkit.training import EXPLODED, batch_index, learning_rate, resampled_index, step_seed, train

ROOT = records.REPOSITORY


def smoke(**options):
    return make_config(profile="smoke", **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished CALL run of 20 steps."""
    run = tmp_path_factory.mktemp("run")
    assert [r.step for r in train(smoke(), run)] == [5, 10, 15, 20]
    return run


def test_a_run_in_pieces_equals_a_run_in_one(finished, tmp_path):
    list(train(smoke(), tmp_path, minutes=0))  # one step
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 1
    for record in train(smoke(), tmp_path):  # abandoned: goes back to the checkpoint at step 10
        if record.step == 15:
            break
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 10
    list(train(smoke(), tmp_path))
    whole, pieces = (load_checkpoint(run / CHECKPOINT)[0] for run in (finished, tmp_path))
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, pieces[name]), name
    without_time = [[r.__dict__ | {"seconds": 0} for r in read_log(run / LOG)] for run in (finished, tmp_path)]
    assert json.dumps(without_time[0]) == json.dumps(without_time[1])


def test_a_finished_run_is_left_alone(finished):
    before = (finished / CHECKPOINT).read_bytes()
    assert list(train(smoke(), finished)) == []
    assert (finished / CHECKPOINT).read_bytes() == before


def test_methods_with_one_seed_share_images_timesteps_noise_and_dropout(tmp_path):
    first = {}
    for method in ("ddpm", "call"):
        run = tmp_path / method
        first[method] = next(iter(train(smoke(method=method, log_every=1, steps=1), run)))
    # at the first step B = 0, so theta is the plain network
    assert first["ddpm"].base_loss_by_class == pytest.approx(first["call"].base_loss_by_class, nan_ok=True)
    assert first["call"].allocation_loss == 0


def test_batches_run_through_shuffled_epochs():
    n, size = 10, 4
    chain = torch.cat([batch_index(n, size, seed=3, step=s) for s in range(5)])
    assert sorted(chain[:10].tolist()) == sorted(chain[10:].tolist()) == list(range(10))
    assert chain[:10].tolist() != chain[10:].tolist()
    assert not torch.equal(batch_index(n, size, seed=4, step=0), chain[:4])


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_resampled_classes_have_their_shares(power):
    counts = np.array([174, 112, 72, 47, 30, 19, 12, 8, 5, 3])
    labels = torch.arange(10).repeat_interleave(torch.tensor(counts))
    drawn = torch.cat([labels[resampled_index(labels, power, 64, seed=0, step=s)] for s in range(200)])
    shares = counts ** (1 - power) / (counts ** (1 - power)).sum()
    assert scipy.stats.chisquare(drawn.bincount().numpy(), shares * len(drawn)).pvalue > 1e-3
    again = resampled_index(labels, power, 64, seed=0, step=7)
    assert torch.equal(again, resampled_index(labels, power, 64, seed=0, step=7))


def test_every_method_has_a_title():
    assert TITLES.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    *_, last = train(smoke(method=method), tmp_path)
    assert last.step == 20 and np.isfinite(last.loss) and last.base_loss < 1.5


def test_step_seeds_do_not_collide():
    seeds = {step_seed(seed, stream, step) for seed in range(3) for stream in range(4) for step in range(500)}
    assert len(seeds) == 3 * 4 * 500


def test_other_settings_need_another_folder(finished):
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.0002 there, 0.001 now\)"):
        next(train(smoke(lr=1e-3), finished))


def test_a_finished_run_can_be_made_longer_and_equals_one_that_was_planned_so(finished, tmp_path):
    list(train(smoke(steps=10), tmp_path))
    assert [r.step for r in train(smoke(), tmp_path)] == [15, 20]
    longer, planned = (load_checkpoint(run / CHECKPOINT) for run in (tmp_path, finished))
    assert longer[1]["config"] == planned[1]["config"]
    assert all(torch.equal(v, longer[0][k]) for k, v in planned[0].items())
    with pytest.raises(ValueError, match=r"other settings \(steps: 20 there, 10 now\)"):
        next(train(smoke(steps=10), tmp_path))


def test_the_learning_rate_falls_as_pytorchs_own_schedule_does():
    config = smoke(steps=12, warmup=0, cooldown=5, lr=0.5)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=5)
    expected = [0.5] * 7
    for _ in range(5):
        expected.append(falling.get_last_lr()[0])
        optimiser.step()
        falling.step()
    assert [learning_rate(config, k) for k in range(12)] == pytest.approx(expected)
    assert optimiser.param_groups[0]["lr"] == 0.0  # after the last step


def test_a_run_whose_learning_rate_has_not_fallen_can_be_made_longer_and_cooled_down(tmp_path):
    planned, grown = tmp_path / "planned", tmp_path / "grown"
    list(train(smoke(steps=15, cooldown=5), planned))
    list(train(smoke(steps=10), grown))
    assert [r.step for r in train(smoke(steps=15, cooldown=5), grown)] == [15]
    first, second = (load_checkpoint(run / CHECKPOINT) for run in (planned, grown))
    assert first[1]["config"] == second[1]["config"]
    assert all(torch.equal(v, second[0][k]) for k, v in first[0].items())
    for longer in (dict(), dict(cooldown=5)):
        with pytest.raises(ValueError, match=r"other settings .*steps: 15 there, 20 now"):
            next(train(smoke(steps=20, **longer), grown))
    with pytest.raises(ValueError, match=r"other settings \(cooldown: 5 there, 6 now\)"):
        next(train(smoke(steps=15, cooldown=6), grown))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100])
def test_a_damaged_checkpoint_is_refused_before_any_work(finished, tmp_path, damage):
    (tmp_path / CHECKPOINT).write_bytes(damage((finished / CHECKPOINT).read_bytes()))
    with pytest.raises(ValueError, match="damaged or was not written by callkit"):
        next(train(smoke(), tmp_path))
    with pytest.raises(ValueError, match="damaged or was not written by callkit"):
        load_model(tmp_path / CHECKPOINT)


@pytest.mark.parametrize(
    ("device", "message"), [("mps", "device must be cpu, cuda or cuda:N, got mps"), ("cuda:7", "no device cuda:7")]
)
def test_a_device_is_checked_before_any_work(device, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    with pytest.raises(ValueError, match=message):
        next(train(smoke(), tmp_path / "run", device))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()  # root may write anywhere, but not below a file
    with pytest.raises(OSError, match="cannot write to"):
        next(train(smoke(), tmp_path / "file" / "run"))


def test_the_printed_loss_stops_with_the_term_that_exploded(tmp_path):
    config = smoke(allocation="paper", diversity=100, lr=3e-3, warmup=1, steps=200, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"loss is -.*no floor with bound=None.* --allocation bounded") as stopped:
        list(train(config, tmp_path))
    kept = load_checkpoint(tmp_path / CHECKPOINT)
    assert kept[1]["step"] < int(str(stopped.value).split()[1].rstrip(":"))
    assert all(v.isfinite().all() for k, v in kept[0].items() if k.startswith(("model", "ema")))
    record = records.read_record(record_divergence(tmp_path))
    assert record["diverged"]["term"] == "allocation loss" and float(record["diverged"]["value"]) < -EXPLODED
    assert record["run"]["steps"] == record["diverged"]["step"] == kept[1]["step"] + 1
    assert records.load_records(tmp_path) == [] and records.load_records(tmp_path, diverged=True) == [record]


@pytest.mark.parametrize(
    ("form", "advice"),
    [
        ("exponential", r"Try a smaller bound, here 2 and by default 0.1, or a smaller lr\.$"),
        ("relative", r"no floor with a large relative bound: try a smaller bound than 2, or the exp.* by default 0\.1"),
    ],
)
def test_an_allocation_loss_that_explodes_for_all_its_bound_says_what_to_try(form, advice, tmp_path):
    with pytest.raises(TrainingError, match=rf"the allocation loss is .*{advice}"):
        list(train(smoke(lam=1e15, bound=2.0, bound_form=form), tmp_path))


def test_a_loss_that_is_not_finite_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(training.data, "to_float", lambda images: images.float() * float("nan"))
    with pytest.raises(TrainingError, match="base loss is nan"):
        list(train(smoke(), tmp_path))
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_first(tmp_path, number):
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 6"):
        for _ in train(smoke(), tmp_path):
            os.kill(os.getpid(), number)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 6
    assert signal.getsignal(number) is handler


def test_signals_act_again_once_the_generator_is_closed(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with closing(train(smoke(), tmp_path)) as steps:
        next(steps)
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_leaves_the_global_generator_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(train(smoke(steps=1), tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_a_torn_last_line_of_the_log_is_done_again(finished, tmp_path):
    list(train(smoke(), tmp_path, minutes=0))
    (tmp_path / LOG).write_text('{"step": 5, "lo')
    list(train(smoke(), tmp_path))
    assert [r.step for r in read_log(tmp_path / LOG)] == [5, 10, 15, 20]


def test_load_model_merges(finished):
    theta, config = load_model(finished / CHECKPOINT)
    theta_g, _ = load_model(finished / CHECKPOINT, "theta_g")
    reserved, _ = load_model(finished / CHECKPOINT, "reserved")
    assert config == smoke() and not theta.training
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([5, 500]), torch.tensor([0, 9])
    full, general = reserved.forward_both(x, t, y)
    torch.testing.assert_close(theta(x, t, y), full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theta_g(x, t, y), general, atol=1e-5, rtol=1e-5)
    assert expert_weights(reserved) and not expert_weights(theta) and not expert_weights(theta_g)


def test_load_model_refuses(finished, tmp_path):
    with pytest.raises(ValueError, match="unknown weights 'best'"):
        load_model(finished / CHECKPOINT, "best")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_model(tmp_path / CHECKPOINT)
    list(train(smoke(method="ddpm", steps=1), tmp_path))
    with pytest.raises(ValueError, match="without CALL"):
        load_model(tmp_path / CHECKPOINT, "theta_g")


def test_a_released_checkpoint_is_the_model_without_the_optimiser(finished, tmp_path):
    save_released(finished / CHECKPOINT, tmp_path / "small.safetensors")
    a, b = (load_model(p)[0].state_dict() for p in (finished / CHECKPOINT, tmp_path / "small.safetensors"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "small.safetensors").stat().st_size < (finished / CHECKPOINT).stat().st_size / 3


def test_a_log_has_a_number_for_each_class_that_was_drawn(finished):
    record = read_log(finished / LOG)[-1]
    drawn = np.isfinite(record.base_loss_by_class)
    assert drawn[0] and (drawn == np.isfinite(record.distance_by_class)).all()
    assert all(json.loads(line)["step"] for line in (finished / LOG).read_text().splitlines())


def test_the_log_is_strict_json(finished):
    def refuse(constant):
        raise AssertionError(constant)

    for line in (finished / LOG).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


WITHOUT_METRICS = """
import sys
from importlib import metadata
version = metadata.version
def hidden(package):
    if package in ("torch-fidelity", "callkit"):
        raise metadata.PackageNotFoundError(package)
    return version(package)
metadata.version, sys.modules["torch_fidelity"] = hidden, None
from callkit import config, sampling, training
print([r.step for r in training.train(config.make_config(profile="smoke", steps=1), sys.argv[1])])
"""


def test_training_and_sampling_need_neither_torch_fidelity_nor_an_installed_callkit(tmp_path):
    command = [sys.executable, "-c", WITHOUT_METRICS, str(tmp_path)]
    assert subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout == "[1]\n"
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["provenance"]["libraries"].keys() == {"torch", "numpy"}


def test_a_wide_network_is_channels_last_and_resumes_to_the_bit(tmp_path):
    c = smoke(channels=64, num_res_blocks=1, steps=3, batch_size=8)
    assert channels_last(build_model(smoke(), 1, 10)) == {False}
    list(train(c, tmp_path / "whole"))
    list(train(c, tmp_path / "pieces", minutes=0))
    list(train(c, tmp_path / "pieces"))
    whole, pieces = (load_checkpoint(tmp_path / run / CHECKPOINT)[0] for run in ("whole", "pieces"))
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    assert channels_last(load_model(tmp_path / "whole" / CHECKPOINT)[0]) == {True}


def channels_last(model):
    """Of the convolutions for which it makes a difference."""
    convs = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1 < m.kernel_size[0]]
    return {m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs}


def test_a_compiled_run_is_the_same_run(finished, tmp_path, monkeypatch):
    compile, modes = torch.compile, []

    def eager(function, mode):
        """Everything of torch.compile but the code that it would generate."""
        modes.append(mode)
        return compile(function, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    compiled = list(train(smoke(), tmp_path, compile=True))
    assert modes == ["default"] * 2
    assert [r.base_loss for r in compiled] == [r.base_loss for r in read_log(finished / LOG)]


def test_a_signal_that_comes_while_the_caller_works_on_a_record_is_not_lost(tmp_path):
    steps = train(smoke(), tmp_path)
    next(steps)
    os.kill(os.getpid(), signal.SIGINT)  # noted, for the end of the next step
    with pytest.raises(KeyboardInterrupt, match="run again"):
        steps.close()
    steps = train(smoke(), tmp_path)
    next(steps)
    steps.close()  # without a signal nothing is raised


@pytest.mark.parametrize("minutes", [0, None])  # at the time limit, and at the end
def test_a_signal_that_comes_while_the_last_checkpoint_is_written_is_not_lost(tmp_path, monkeypatch, minutes):
    save = training.save_checkpoint

    def interrupted(path, tensors, metadata, previous):
        save(path, tensors, metadata, previous)
        if minutes == 0 or metadata["step"] == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt, match="run again"):
        list(train(smoke(), tmp_path, minutes=minutes))
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == (1 if minutes == 0 else 20)


def test_data_that_have_changed_since_the_run_began_are_refused(tmp_path, monkeypatch):
    list(train(smoke(), tmp_path, minutes=0))
    tensors, metadata = load_checkpoint(tmp_path / CHECKPOINT)
    fewer = [metadata["counts"][0] - 1, *metadata["counts"][1:]]
    save_checkpoint(tmp_path / CHECKPOINT, tensors, metadata | {"counts": fewer})
    with pytest.raises(ValueError, match=r"the data set has changed since the run of .* began: .*\[173, 112.*then"):
        next(train(smoke(), tmp_path))


def test_a_checkpoint_says_when_its_part_of_the_run_ended(tmp_path, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(records, "now", lambda: f"time {next(ticks)}")
    list(train(smoke(), tmp_path))
    ends = [load_checkpoint(tmp_path / name)[1]["provenance"]["finished"] for name in (PREVIOUS, CHECKPOINT)]
    assert ends == ["time 1", "time 2"]


def test_a_checkpoint_says_who_trained_each_part_of_the_run(tmp_path, monkeypatch):
    def provenance():
        return load_checkpoint(tmp_path / CHECKPOINT)[1]["provenance"]

    list(train(smoke(), tmp_path, minutes=0))
    alone = provenance()
    assert alone["compiled"] is False and "parts" not in alone
    list(train(smoke(), tmp_path, minutes=0))
    assert provenance() | {"finished": alone["finished"]} == alone, "nothing but the time is another"
    before = provenance()
    monkeypatch.setattr(torch, "compile", lambda function, mode: function)
    list(train(smoke(), tmp_path, minutes=0, compile=True))
    assert provenance()["compiled"] is True and provenance()["parts"] == [before | {"step": 2}]
    list(train(smoke(), tmp_path))
    parts = provenance()["parts"]
    assert [(p["step"], p["compiled"], "parts" in p) for p in parts] == [(2, False, False), (3, True, False)]
    definitions = json.loads((records.results_folder() / "schema.json").read_text())["$defs"]
    jsonschema.validate(provenance(), {"$ref": "#/$defs/provenance", "$defs": definitions})


def test_a_run_that_goes_on_on_another_kind_of_device_says_so(tmp_path):
    list(train(smoke(), tmp_path, minutes=0))
    tensors, metadata = load_checkpoint(tmp_path / CHECKPOINT)
    of_old = {k: v for k, v in metadata["provenance"].items() if k != "compiled"} | {"device": "NVIDIA H100"}
    save_checkpoint(tmp_path / CHECKPOINT, tensors, metadata | {"provenance": of_old})
    with pytest.warns(
        UserWarning, match=r"goes on with cpu .*others than those of NVIDIA H100, which trained it to step 1"
    ):
        list(train(smoke(), tmp_path))
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["provenance"]["parts"] == [of_old | {"step": 1}]


def test_the_compared_subset_is_another_one_at_each_step(tmp_path, monkeypatch):
    asked, original = [], training.step_seed
    monkeypatch.setattr(training, "step_seed", lambda *words: asked.append(words) or original(*words))
    list(train(smoke(seed=7, steps=3, branch_share=0.5), tmp_path))
    for stream in (2, 3, 4):
        assert len({words for words in asked if words[1] == stream}) == 3, stream


def test_seconds_go_on_counting_in_a_resumed_run(tmp_path):
    list(train(smoke(), tmp_path, minutes=0))
    tensors, metadata = load_checkpoint(tmp_path / CHECKPOINT)
    save_checkpoint(tmp_path / CHECKPOINT, tensors, metadata | {"seconds": 1000.0})
    assert 1000 < next(train(smoke(), tmp_path)).seconds < 1600


def test_seconds_are_those_of_training_and_minutes_those_of_the_clock(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    for record in train(smoke(), tmp_path, minutes=5):
        assert record.seconds == 0
        clock[0] += 160
    metadata = load_checkpoint(tmp_path / CHECKPOINT)[1]
    assert (metadata["step"], metadata["seconds"]) == (11, 0), "320 seconds are over"


def test_loading_counts_as_minutes_and_not_as_seconds(tmp_path, monkeypatch):
    clock, load = [0.0], training.data.load_for
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(training.data, "load_for", lambda *words: clock.append(clock.pop() + 301) or load(*words))
    list(train(smoke(), tmp_path, minutes=5))
    metadata = load_checkpoint(tmp_path / CHECKPOINT)[1]
    assert (metadata["step"], metadata["seconds"]) == (1, 0)


def test_what_says_that_a_run_diverged_goes_when_it_goes_on(tmp_path):
    (tmp_path / DIVERGED).write_text("{}")
    list(train(smoke(steps=1), tmp_path))
    assert not (tmp_path / DIVERGED).exists()


def test_a_gradient_that_is_not_finite_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(training.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="the gradient norm is nan"):
        list(train(smoke(), tmp_path))
    assert json.loads((tmp_path / DIVERGED).read_text())["term"] == "gradient norm"
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_relative_bound_is_told_the_base_loss(tmp_path):
    *_, last = train(smoke(bound_form="relative", branch_share=0.5), tmp_path)
    assert np.isfinite(last.loss)


def test_the_log_counts_a_dropped_sample_to_its_own_class(tmp_path):
    record = next(train(smoke(method="ddpm", label_drop=1.0, steps=1), tmp_path))
    counts = data.load_long_tailed("digits", 50).train
    y = counts.labels[training.batch_index(len(counts), 16, 0, 0)]
    assert np.isfinite(record.base_loss_by_class).nonzero()[0].tolist() == y.unique().tolist()


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path):
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(train(smoke(steps=1), tmp_path)))
    thread.start()
    thread.join()
    assert [r.step for r in seen] == [1]


def test_the_last_steps_of_a_run_are_logged(tmp_path):
    assert [r.step for r in train(smoke(steps=7), tmp_path)] == [5, 7]


def test_rank_and_place_of_the_expert_reach_the_network():
    experts = {
        where: {
            name: e.B.shape[1] for name, e in expert_weights(build_model(smoke(rank=r, where=where), 1, 10)).items()
        }
        for where, r in (("up", 0.1), ("all", 0.5))
    }
    assert "head" in experts["all"] and all(name.startswith("up.") for name in experts["up"])
    assert all(experts["all"][name] > rank for name, rank in experts["up"].items())


def test_nothing_is_nan_again_when_a_log_is_read(tmp_path):
    record = next(train(smoke(method="ddpm", steps=1), tmp_path))
    again = read_log(tmp_path / LOG)[0]
    np.testing.assert_equal(again.base_loss_by_class, record.base_loss_by_class)
    assert np.isnan(again.distance_by_class).all()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_safetensors_file_of_somebody_else_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ValueError, match="was not written by callkit"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_there_is_no_expert_to_keep_in_a_run_without_call(tmp_path):
    list(train(smoke(method="ddpm", steps=1), tmp_path))
    with pytest.raises(ValueError, match="without CALL: it has no 'reserved'"):
        load_model(tmp_path / CHECKPOINT, "reserved")


def test_a_checkpoint_that_does_not_fit_its_own_config_is_refused(tmp_path):
    list(train(smoke(method="ddpm", steps=1), tmp_path))
    tensors, metadata = load_checkpoint(tmp_path / CHECKPOINT)
    bias = tensors["ema.tail.2.bias"]
    for change in ({"ema.tail.2.bias": bias.repeat(2)}, {"ema.more": bias.clone()}):
        save_checkpoint(tmp_path / "changed.safetensors", tensors | change, metadata)
        with pytest.raises(ValueError, match=r"does not fit the network.*of 1 parameters"):
            load_model(tmp_path / "changed.safetensors")


def test_a_released_checkpoint_in_bfloat16_is_half_as_large(tmp_path):
    list(train(smoke(method="ddpm", steps=1), tmp_path))
    save_released(tmp_path / CHECKPOINT, tmp_path / "small.safetensors", torch.bfloat16)
    assert {v.dtype for v in load_checkpoint(tmp_path / "small.safetensors")[0].values()} == {torch.bfloat16}
    assert load_model(tmp_path / "small.safetensors")[0].head.weight.dtype == torch.float32


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), checkpoints.locked(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a").exists()
