"""What a GPU alone can show: that it computes what a CPU does. Skipped where there is none."""

import warnings

import pytest
import torch

from callkit import data, evaluation, metrics, objectives, records, sampling
from callkit.allocation import AllocationLoss
from callkit.checkpoints import CHECKPOINT, LOG, build_model, load_checkpoint, load_model, read_log
from callkit.config import METHODS, make_config
from callkit.diffusion import NoiseSchedule
from callkit.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def exact():
    """Float32 is not rounded further."""
    with metrics._no_tf32():
        yield


def smoke(**options):
    return make_config(profile="smoke", **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a CALL run of 20 steps on a GPU."""
    run = tmp_path_factory.mktemp("run")
    with metrics._no_tf32():
        list(train(smoke(), run, "cuda"))
    return run


def curve(run):
    """(records, 3): base loss, allocation loss, gradient's norm."""
    return torch.tensor([[r.base_loss, r.allocation_loss, r.grad_norm] for r in read_log(run / LOG)])


@pytest.mark.parametrize("base", ["ddpm", "focal"])  # the others draw on the device
def test_loss_and_gradients_are_a_cpus(base, monkeypatch):
    draw = objectives.add_noise

    def drawn_on_the_cpu(batch, schedule, generator):
        there = batch.x0.device
        batch = batch._replace(x0=batch.x0.cpu(), y=batch.y.cpu())
        noised = draw(batch, NoiseSchedule(), torch.Generator().manual_seed(0))
        return objectives.Noised(*(v.to(there) for v in noised))

    monkeypatch.setattr(objectives, "add_noise", drawn_on_the_cpu)
    config = smoke(method="call", dropout=0.0)
    counts = data.load_for(config).train.counts
    torch.manual_seed(0)
    model = build_model(config, 1, 10)
    for p in model.parameters():
        p.data.normal_(0, 0.1)
    x0, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    found = {}
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        batch = objectives.Batch(*(v.to(device) for v in (x0, y, y, torch.full((10,), 0.1))))
        out = objectives.OBJECTIVES[base](model, batch, NoiseSchedule().to(device), torch.Generator(device), both=True)
        allocated = AllocationLoss(counts).to(device)(out.eps, out.eps_general, batch.y, out.loss)
        (out.loss.mean() + allocated.loss.mean()).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[device] = [v.detach().cpu() for v in (out.loss, allocated.distance, gradient)]
    for there, here in zip(found["cuda"], found["cpu"], strict=True):
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4 * float(here.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    *_, last = train(smoke(method=method), tmp_path, "cuda")
    assert last.step == 20 and last.base_loss < 1.5


def test_a_run_in_pieces_is_a_run_in_one(finished, tmp_path):
    list(train(smoke(), tmp_path, "cuda", minutes=0))  # one step
    list(train(smoke(), tmp_path, "cuda"))
    torch.testing.assert_close(curve(tmp_path), curve(finished), rtol=1e-3, atol=1e-6)


def test_a_compiled_run_is_the_same_run(finished, tmp_path):
    list(train(smoke(), tmp_path, "cuda", compile=True))
    torch.testing.assert_close(curve(tmp_path), curve(finished), rtol=1e-3, atol=1e-6)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["provenance"]["compiled"]


def test_half_precision_is_near(finished, tmp_path):
    list(train(smoke(precision="bf16"), tmp_path, "cuda"))
    torch.testing.assert_close(curve(tmp_path)[:, 0], curve(finished)[:, 0], rtol=0.02, atol=0)


def test_a_run_that_changes_its_kind_of_device_says_so(tmp_path):
    list(train(smoke(), tmp_path, "cuda", minutes=0))
    with pytest.warns(UserWarning, match="goes on with cpu.* than those of NVIDIA"):
        list(train(smoke(), tmp_path, "cpu"))
    provenance = load_checkpoint(tmp_path / CHECKPOINT)[1]["provenance"]
    assert provenance["device"].startswith("cpu") and provenance["parts"][0]["device"].startswith("NVIDIA")


@pytest.mark.parametrize("weights", ["theta", "theta_g"])
def test_the_images_are_a_cpus(finished, weights):
    labels = sampling.balanced_labels(10, 3)
    images = []
    for device in ("cuda", "cpu"):
        model, _ = load_model(finished / CHECKPOINT, weights, device)
        images.append(sampling.sample(model, NoiseSchedule(), labels, 8, seed=5, steps=10).int())
    assert (images[0] - images[1]).abs().max() <= 1 and images[0].float().std() > 5


def test_features_are_a_cpus_and_the_settings_come_back():
    images = data.load_for(smoke()).train.images[:100]
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    there, here = (metrics.describe(images, "digits", device) for device in ("cuda", "cpu"))
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.testing.assert_close(there.features, here.features, rtol=1e-4, atol=1e-4)
    assert not there.features.is_cuda


def test_a_record_is_a_cpus_but_for_rounding(finished, tmp_path):
    found = []
    for device in ("cuda", "cpu"):
        with warnings.catch_warnings(action="ignore"):
            path = evaluation.evaluate_run(finished / CHECKPOINT, results=tmp_path / device, device=device)
        found.append(records.read_record(path))
    assert "NVIDIA" in found[0]["sampling"]["device"] and "NVIDIA" not in found[1]["sampling"]["device"]
    for split in ("overall", "few"):
        there, here = (r["metrics"][split]["fid"] for r in found)
        assert there == pytest.approx(here, rel=0.01)
