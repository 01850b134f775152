"""One step of training against its formulas: what it draws, what it minimises, what it does to the weights and logs."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from callkit import data, training
from callkit.allocation import AllocationLoss
from callkit.checkpoints import CHECKPOINT, load_checkpoint
from callkit.config import make_config
from callkit.diffusion import NoiseSchedule
from callkit.objectives import OBJECTIVES, Batch, ObjectiveOutput

CPU = torch.device("cpu")


def smoke(**options):
    return make_config(profile="smoke", **options)


def by_hand(p, targets, lr, warmup, cooldown, clip, largest_decay):
    """In float64, Adam on both losses of theta, theta^g = p, for `toy` below: the weights, their average and first
    moment; and for each step what is logged."""
    m = v = 0
    ema, logged = p, []
    for k, target in enumerate(targets, 1):
        q = torch.tensor(p, requires_grad=True)
        base = ((q[0] - target - 0.25) ** 2).mean(1)
        distance = ((q[0] - q[1]) ** 2).mean()  # of the second sample, whose class is the rarer: omega = 0.2 and 1.8
        allocation = 0.7 * (0.2 * distance - 1.8 * 0.1 * (1 - torch.exp(-distance / 0.1)))
        (g,) = torch.autograd.grad(base.mean() + allocation, q)
        g, norm = g.numpy(), g.norm().item()
        logged.append([*base.tolist(), distance.item(), base.mean().item(), allocation.item(), norm])
        g = g * min(1, clip / norm)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = lr * min(1, k / warmup, (len(targets) + 1 - k) / cooldown)
        p = p - rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
        decay = min(largest_decay, k / (9 + k))
        ema = decay * ema + (1 - decay) * p
    return {"model": p, "ema": ema, "exp_avg": m}, np.array(logged)


def test_a_run_is_adam_with_warm_up_cool_down_clipping_and_an_average_on_the_sum_of_both_losses(tmp_path, monkeypatch):
    """A network of two free vectors, theta and theta^g, and two samples of which the second is compared."""
    start = torch.tensor([[1.0, -2.0, 0.5], [0.9, -1.7, 0.4]])
    targets = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0))
    model, seeds = torch.nn.ParameterList([*start.clone()]), []

    def toy(network, batch, schedule, generator, both, shift):
        seeds.extend([generator.initial_seed(), torch.initial_seed()])
        eps, general = (p.expand(2, 3)[:, :, None, None] for p in network)
        return ObjectiveOutput((eps - batch.x0 - shift).pow(2).flatten(1).mean(1), eps, general[batch.rows])

    def draw(step, _):
        y, rows = torch.tensor([0, 1]), torch.tensor([1])
        batch = Batch(targets[step][:, :, None, None], y, y, torch.tensor([0.9, 0.1]), rows=rows)
        return batch, torch.tensor([0.7])

    monkeypatch.setitem(OBJECTIVES, "toy", toy)
    numbers = dict(warmup=7, cooldown=9, lr=0.05, grad_clip=0.3, ema_decay=0.5)
    c = smoke(base="toy", base_options={"shift": 0.25}, steps=40, batch_size=2, log_every=40, **numbers)
    pieces = training.Pieces(
        network=model,
        parameters=dict(theta=model[0], general=model[1]),
        optimiser=torch.optim.Adam(model.parameters(), lr=9.0, fused=True),  # the run's own lr takes its place
        draw=draw,
        allocation=AllocationLoss([9, 1]),
        schedule=NoiseSchedule(),
        counts=np.array([9, 1]),
        about={},
    )
    (record,) = training.carry_out(c, tmp_path, CPU, None, lambda: pieces)
    tensors, logged = by_hand(start.double().numpy(), targets.double(), 0.05, 7, 9, 0.3, 0.5)
    found, _ = load_checkpoint(tmp_path / CHECKPOINT)
    for kind, (theta, general) in tensors.items():
        np.testing.assert_allclose(found[f"{kind}.theta"], theta, rtol=1e-3, atol=1e-4, err_msg=kind)
        np.testing.assert_allclose(found[f"{kind}.general"], general, rtol=1e-3, atol=1e-4, err_msg=kind)
    assert logged[:, -1].max() > 0.3, "some gradients were clipped"
    head, tail, distance, base, allocation, norm = logged.mean(0)
    assert record.base_loss == pytest.approx(base, rel=1e-3)
    assert record.allocation_loss == pytest.approx(allocation, rel=1e-3)
    assert record.loss == pytest.approx(base + allocation, rel=1e-3)
    assert record.grad_norm == pytest.approx(norm, rel=1e-3)
    assert record.base_loss_by_class == pytest.approx([head, tail], rel=1e-3)
    assert record.base_loss_by_split == pytest.approx({"many": head, "few": tail}, rel=1e-3)
    assert record.distance_by_class == pytest.approx([float("nan"), distance], rel=1e-3, nan_ok=True)
    assert len(set(seeds)) == 80, "a seed for each step, and another for its dropout"


def test_every_setting_of_the_loss_reaches_it():
    own = dict(lam=0.3, consistency=0.6, diversity=0.2, bound=0.05, bound_form="cap", stop_gradient=True, centred=True)
    one, two = (training._pieces(smoke(dropout=0.3, seed=s, **own), CPU, "data", False) for s in (0, 1))
    assert {k: getattr(one.allocation, k) for k in own} == own
    assert one.network.dropout == 0.3
    assert not torch.equal(one.parameters["head.weight"], two.parameters["head.weight"]), "the seed initialises"


def test_every_stream_of_random_numbers_hangs_on_the_seed(tmp_path, monkeypatch):
    """Initial weights, noise, dropout, images, the compared subset."""
    asked, original = [], training.step_seed
    monkeypatch.setattr(training, "step_seed", lambda *words: asked.append(words) or original(*words))
    training._permutation.cache_clear()
    list(training.train(smoke(seed=7, steps=2, branch_share=0.5), tmp_path))
    assert {(seed, stream) for seed, stream, *_ in asked} == {(7, stream) for stream in range(5)}


def drawn(**options):
    """The training set; images and labels that the step is for; the batch that it draws."""
    real, c = data.load_long_tailed("digits", 50).train, smoke(batch_size=512, **options)
    index = training.batch_index(len(real), 512, c.seed, 3)
    batches = training._Batches(c, real, AllocationLoss(real.counts), CPU)
    batch, _ = batches.draw(3, torch.Generator().manual_seed(0))
    return real, data.to_float(real.images[index]), real.labels[index], batch


def test_a_batch_is_mirrored_and_its_labels_dropped_as_often_as_the_settings_say():
    real, x0, y, batch = drawn(flip=True, label_drop=0.25)
    same, mirrored = ((batch.x0 == x).flatten(1).all(1) for x in (x0, x0.flip(-1)))
    assert (same | mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.08)
    null = batch.condition == 10
    assert torch.equal(batch.y, y) and torch.equal(batch.condition[~null], y[~null])
    assert null.float().mean().item() == pytest.approx(0.25, abs=0.07)
    np.testing.assert_allclose(batch.frequency, real.counts / real.counts.sum(), rtol=1e-6)
    _, x0, y, batch = drawn(flip=False, label_drop=0.0)
    assert torch.equal(batch.x0, x0) and torch.equal(batch.condition, y)


def test_ada_moves_the_images_that_it_says_it_moves():
    _, x0, _, batch = drawn(augment=True)
    moved = (batch.x0 - x0).abs().flatten(1).amax(1) > 1e-4
    assert torch.equal(moved, batch.augmentation.any(1))
    assert 0.5 < moved.float().mean() < 0.9


@pytest.mark.parametrize("resample", [0.5, 1.0])
def test_re_sampling_reaches_the_batch(resample):
    real, _, _, batch = drawn(resample=resample)
    shares = real.counts ** (1 - resample) / (real.counts ** (1 - resample)).sum()
    assert scipy.stats.chisquare(batch.y.bincount(minlength=10).numpy(), 512 * shares).pvalue > 1e-3


def test_bfloat16_is_used_where_it_is_asked_for_and_comes_close(tmp_path):
    moment = {}
    for precision in ("fp32", "bf16"):
        list(training.train(smoke(method="ddpm", steps=1, precision=precision), tmp_path / precision))
        moment[precision] = load_checkpoint(tmp_path / precision / CHECKPOINT)[0]["exp_avg.tail.2.weight"]
    error = (moment["bf16"] - moment["fp32"]).norm() / moment["fp32"].norm()
    assert 1e-4 < error < 0.05


def test_a_run_starts_with_dropout_on_and_plain_adam():
    pieces = training._pieces(smoke(), CPU, "data", False)
    assert pieces.network.training
    assert type(pieces.optimiser) is torch.optim.Adam and pieces.optimiser.defaults["weight_decay"] == 0


def test_with_ada_images_are_mirrored_by_the_warp_alone():
    real = data.load_long_tailed("digits", 50).train
    c = dataclasses.replace(smoke(batch_size=512, augment=True), flip=True)
    batch, _ = training._Batches(c, real, AllocationLoss(real.counts), CPU).draw(3, torch.Generator().manual_seed(0))
    x0 = data.to_float(real.images[training.batch_index(len(real), 512, c.seed, 3)])
    moved = (batch.x0 - x0).abs().flatten(1).amax(1) > 1e-4
    assert torch.equal(moved, batch.augmentation.any(1))


def test_each_process_compares_as_many_samples_of_its_own_share(monkeypatch):
    real = data.load_long_tailed("digits", 50).train
    monkeypatch.setattr(training.distributed, "world_size", lambda: 2)
    batches = training._Batches(smoke(branch_share=0.25), real, AllocationLoss(real.counts), CPU)
    y, sums = real.labels[torch.arange(0, len(real), len(real) // 16)[:16]], []
    for step in range(300):
        rows, weights = batches._compared(y, step)
        assert (rows[:2] < 8).all() and (rows[2:] >= 8).all() and len(rows) == len(weights) == 4
        sums.append(weights.sum().item())
    assert np.mean(sums) == pytest.approx(1, abs=0.1), "an average over the batch"


def test_the_loss_of_a_split_is_an_average_over_its_samples_and_the_sums_begin_anew():
    state = training._State(smoke(), {}, None, [9, 6, 3, 2], CPU)
    for loss, drawn in (([8.0, 1.0, 6.0, 1.0], [4.0, 1.0, 2.0, 1.0]), ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0])):
        state.by_class[:2] += torch.tensor([loss, drawn])
        record = state.record(5, 0.0)
        for split, classes in state.splits.items():
            expected = sum(loss[c] for c in classes) / sum(drawn[c] for c in classes)
            assert record.base_loss_by_split[split] == pytest.approx(expected), split
