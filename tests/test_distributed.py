"""Two processes equal one: gradients, weights, logs, samples."""

import os
import socket
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch

from callkit import checkpoints, distributed, records
from callkit.checkpoints import CHECKPOINT, LOG
from callkit.config import make_config
from callkit.training import train

ROOT = Path(__file__).parents[1]


def together(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess:
    """`python *arguments` in several processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [p.communicate(timeout=300)[0] for p in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 3])])
def test_the_gradients_of_two_shares_add_up_to_that_of_the_whole(reserved, inputs, rows, monkeypatch):
    """In one process that plays both; the expert is not zero, as it is at the start of training."""

    def loss(eps, general):
        return eps.pow(2).mean() + (general - (eps if rows is None else eps[rows])).pow(2).mean()

    whole = reserved.forward_both(*inputs, rows=rows)
    loss(*whole).backward()
    expected = {name: p.grad.clone() for name, p in reserved.named_parameters()}
    reserved.zero_grad()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    sent = cycle([eps.detach() for eps in whole])

    def all_gather(parts, own):
        for part, of in zip(parts, next(sent).chunk(2), strict=True):
            part.copy_(of)

    monkeypatch.setattr(distributed.dist, "all_gather", all_gather)
    for rank in (lambda: 0, lambda: 1):
        monkeypatch.setattr(distributed, "rank", rank)
        loss(*distributed.Sharded(reserved).forward_both(*inputs, rows=rows)).backward()  # adds to what is there
    for name, p in reserved.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


# OC and focal look at the whole batch, CBDM predicts three times, the subset and ADA draw more
VARIANTS = {
    "call": [],
    "cbdm-call": ["dropout=0.3"],
    "oc-call": ["branch_share=1.0", "where=all"],
    "focal": [],
    "ada": [],
}


@pytest.mark.parametrize("method", VARIANTS)
def test_two_processes_take_the_steps_of_one(method, tmp_path):
    """Adam divides the gradient by its own size, so compare what is linear in it: the first moment."""
    settings = ["steps=2", "warmup=0", "log_every=1", "grad_clip=1000.0", *VARIANTS[method]]
    command = ["-m", "callkit", "train", "--profile", "smoke", "--method", method, "--device", "cpu", "--threads", "1"]
    first, _ = together(*command, "--run", str(tmp_path / "two"), "--set", *settings)
    assert "checkpoint:" in first
    overrides = dict(pair.split("=") for pair in settings)
    overrides = {k: v if k == "where" else float(v) if "." in v else int(v) for k, v in overrides.items()}
    list(train(make_config(profile="smoke", method=method, **overrides), tmp_path / "one"))
    (one, about), (two, _) = (checkpoints.load_checkpoint(tmp_path / run / CHECKPOINT) for run in ("one", "two"))
    for name, tensor in one.items():
        if name.startswith("exp_avg."):
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-6, msg=name)
    logs = [checkpoints.read_log(tmp_path / run / LOG) for run in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
        assert b.base_loss_by_class == pytest.approx(a.base_loss_by_class, rel=1e-3, nan_ok=True)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
    assert about["provenance"]["processes"] == 1


def test_training_goes_on_with_another_number_of_processes_and_the_evaluation_is_shared(tmp_path):
    run, options = tmp_path / "run", ["--device", "cpu", "--threads", "1"]
    command = ["-m", "callkit", "train", "--profile", "smoke", "--run", str(run), *options, "--set", "steps=10"]
    together(*command, "branch_share=0.5", "--minutes", "0")
    assert checkpoints.steps_done(run) == 1
    list(train(make_config(profile="smoke", steps=10, branch_share=0.5), run))
    assert checkpoints.steps_done(run) == 10
    evaluate = ["evaluate", str(run), "--weights", "theta", *options]
    # batches of 30 images, so that both processes have some
    small = "import sys; from callkit import sampling, __main__; sampling.BATCH = 30; __main__.main(sys.argv[1:])"
    first, second = together("-c", small, *evaluate, "--results", str(tmp_path / "two"))
    assert "records:" in first and "records:" not in second
    one = subprocess.run(
        [sys.executable, "-c", small, *evaluate, "--results", str(tmp_path / "one")], cwd=ROOT, capture_output=True
    )
    assert one.returncode == 0, one.stderr
    a, b = (records.read_record(next((tmp_path / n).glob("*.json"))) for n in ("one", "two"))
    assert a["metrics"].keys() == b["metrics"].keys() and a["sampling"]["seed"] == b["sampling"]["seed"]
    for split, scores in a["metrics"].items():  # the last digits depend on the number of rows in a matrix product
        assert scores == pytest.approx(b["metrics"][split], rel=1e-5, nan_ok=True), split


def test_one_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"device must be cuda under torchrun.*got cuda:0"):
        with distributed.started("cuda:0"):
            pass


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "99")
    monkeypatch.setenv("LOCAL_RANK", "98")
    with pytest.raises(ValueError, match="there is no device cuda:98"):
        with distributed.started("cuda"):
            pass


def test_a_process_that_fails_does_not_wait_for_the_others(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: pytest.fail("it would wait"))
    with pytest.raises(OSError, match="disk full"):
        with distributed.started("cpu"):
            raise OSError("disk full")


def test_a_batch_that_does_not_divide_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("callkit.distributed.world_size", lambda: 3)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the number of processes, 3, got 16"):
        next(train(make_config(profile="smoke"), tmp_path))


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [distributed.checked_device(d) for d in ("cpu", "cuda", "cuda:0")] == [
        torch.device(d) for d in ("cpu", "cuda", "cuda:0")
    ]
    for wrong in ("cuda:0x", "cpu:0", "gpu"):
        with pytest.raises(ValueError, match=f"device must be cpu, cuda or cuda:N, got {wrong}"):
            distributed.checked_device(wrong)


def test_a_flag_in_any_process_is_up(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def all_reduce(flags, op):
        others = torch.tensor([1.0])
        flags.copy_(
            {distributed.dist.ReduceOp.MAX: torch.maximum, distributed.dist.ReduceOp.MIN: torch.minimum}[op](
                flags, others
            )
        )

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    assert distributed.any_process(False) is True
