"""Base losses against brute force and closed forms."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callkit.diffusion import NoiseSchedule
from callkit.objectives import (
    OBJECTIVES,
    Batch,
    Noised,
    _one_of_each_row,
    add_noise,
    cbdm,
    ddpm,
    focal,
    oc,
    transferred_index,
)

SCHEDULE = NoiseSchedule()
FREQUENCY = torch.tensor([0.6, 0.25, 0.1, 0.05])


def test_timesteps_are_uniform_and_noise_is_normal():
    n = 60_000
    y = torch.zeros(n, dtype=torch.int64)
    noised = add_noise(Batch(torch.zeros(n, 1, 1, 1), y, y, torch.ones(1)), SCHEDULE, gen())
    assert scipy.stats.chisquare(noised.t.bincount(minlength=1000).numpy()).pvalue > 1e-3
    assert noised.t.max() == 999
    assert scipy.stats.kstest(noised.eps.flatten().numpy(), "norm").pvalue > 1e-3


def make_batch(size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (size,), generator=g)
    condition = y.clone()
    condition[-1] = 4  # one dropped
    return Batch(torch.rand(size, 1, 8, 8, generator=g) * 2 - 1, y, condition, FREQUENCY)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def noised_at(batch, t, seed=0):
    t = torch.as_tensor(t).expand(len(batch.y)).clone()
    eps = torch.randn(batch.x0.shape, generator=gen(seed))
    return Noised(t, eps, SCHEDULE.q_sample(batch.x0, t, eps))


class Table(torch.nn.Module):
    """A network with one free prediction per class (Null last), whatever the image: gradients in closed form."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Parameter(torch.randn(5, 1, 8, 8, generator=gen(9)))

    def forward(self, x, t, y):
        return self.out[y]


@pytest.mark.parametrize("base", OBJECTIVES)
def test_one_signature_and_reproducible(base, reserved):
    batch = make_batch()
    out, again = (OBJECTIVES[base](reserved, batch, SCHEDULE, gen(), both=True) for _ in range(2))
    assert out.loss.shape == (6,) and out.eps.shape == out.eps_general.shape == batch.x0.shape
    assert torch.equal(out.loss, again.loss)
    assert OBJECTIVES[base](reserved, batch, SCHEDULE, gen()).eps_general is None


def test_ddpm_is_the_mean_squared_error(unet):
    batch = make_batch()
    noised = add_noise(batch, SCHEDULE, gen())
    expected = ((unet(noised.x_t, noised.t, batch.condition) - noised.eps) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(ddpm(unet, batch, SCHEDULE, gen()).loss, expected)


def test_focal_is_ddpm_with_weights_that_average_to_one():
    model, batch = Table(), make_batch()
    plain, out = ddpm(model, batch, SCHEDULE, gen()).loss, focal(model, batch, SCHEDULE, gen(), gamma=2.0).loss
    weight = plain.detach() ** 2 / (plain.detach() ** 2).mean()
    torch.testing.assert_close(out, weight * plain)
    assert weight.mean().item() == pytest.approx(1)
    (gradient,) = torch.autograd.grad(out.sum(), model.out)
    (expected,) = torch.autograd.grad((weight * plain).sum(), model.out)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(focal(model, batch, SCHEDULE, gen(), gamma=0.0).loss, plain)


@pytest.mark.parametrize("prior", ["train", "uniform"])
def test_cbdm_loss_and_gradient_in_closed_form(prior):
    model, batch = Table(), make_batch()
    tau, gamma, pixels = 0.8, 0.3, 64
    out = cbdm(model, batch, SCHEDULE, gen(), tau=tau, gamma=gamma, prior=prior)
    g = gen()
    noised = add_noise(batch, SCHEDULE, g)
    weights = FREQUENCY if prior == "train" else torch.ones(4)
    other = torch.multinomial(weights, 6, replacement=True, generator=g)
    expected, gradient = torch.zeros(6), torch.zeros_like(model.out)
    with torch.no_grad():
        for i in range(6):
            y, y2 = batch.condition[i], other[i]
            h, h2, eps = model.out[y], model.out[y2], noised.eps[i]
            strength = 0.0 if y == 4 else tau * noised.t[i].item() / 1000
            expected[i] = ((h - eps) ** 2).mean() + strength * (1 + gamma) * ((h - h2) ** 2).mean()
            gradient[y] += 2 / pixels * ((h - eps) + strength * (h - h2))
            gradient[y2] += 2 / pixels * strength * gamma * (h2 - h)
    torch.testing.assert_close(out.loss, expected)
    out.loss.sum().backward()
    torch.testing.assert_close(model.out.grad, gradient, rtol=1e-4, atol=1e-6)


def test_cbdm_draws_from_the_training_distribution():
    seen = torch.zeros(4)

    class Spy(Table):
        def forward(self, x, t, y):
            if (y != batch.condition).any():
                seen.add_(y.bincount(minlength=4))
            return super().forward(x, t, y)

    batch = make_batch(200)
    for seed in range(10):
        cbdm(Spy(), batch, SCHEDULE, gen(seed))
    torch.testing.assert_close(seen / seen.sum(), FREQUENCY, atol=0.03, rtol=0)


def brute_force_index(batch, noised, z_draw, mode):
    """The posterior, one pair at a time."""
    weights = torch.zeros(len(batch.y), len(batch.y), dtype=torch.float64)
    for i, t in enumerate(noised.t):
        a = SCHEDULE.alpha_bar[t]
        for j in range(len(batch.y)):
            d = (noised.x_t[i].double() / a.sqrt() - batch.x0[j].double()).pow(2).sum()
            weights[i, j] = -d / (2 * (1 / a - 1))
    z = torch.multinomial(weights.softmax(1), 1, generator=z_draw)[:, 0]
    for i in range(len(z)):
        p, pz = FREQUENCY[batch.y[i]], FREQUENCY[batch.y[z[i]]]
        if (mode == "t2h" and pz < p) or (mode == "h2t" and pz > p):
            z[i] = i
    return z


@pytest.mark.parametrize("mode", ["t2h", "h2t", "full"])
@pytest.mark.parametrize("t", [0, 400, 800, 999])
def test_oc_index_equals_brute_force(mode, t):
    moved = 0
    for seed in range(5):
        batch = make_batch(8, seed)
        noised = noised_at(batch, t, seed)
        ours = transferred_index(batch, noised, SCHEDULE, gen(seed), mode)
        assert torch.equal(ours, brute_force_index(batch, noised, gen(seed), mode))
        moved += int((ours != torch.arange(8)).sum())
    if t == 999:
        assert moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_draw_without_checks_is_multinomials_to_the_bit(dtype, monkeypatch):
    for seed in range(20):
        p = (10 * torch.randn(16, 12, generator=gen(seed), dtype=dtype)).softmax(1)  # some of them next to nothing
        assert torch.equal(_one_of_each_row(p, gen(seed)), torch.multinomial(p, 1, generator=gen(seed))[:, 0])
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: pytest.fail("it would wait for the GPU at each step"))
    batch = make_batch(8)
    transferred_index(batch, noised_at(batch, 900), SCHEDULE, gen())


def test_oc_target_denoises_towards_the_chosen_image():
    """The loss is zero for a network that predicts the noise leading from x_0,z to x_t."""
    batch = make_batch(8)
    g = gen()
    noised = add_noise(batch, SCHEDULE, g)
    z = transferred_index(batch, noised, SCHEDULE, g)

    class Oracle(torch.nn.Module):
        def forward(self, x, t, y):
            return SCHEDULE.x0_to_eps(x, t, batch.x0[z])

    assert oc(Oracle(), batch, SCHEDULE, gen()).loss.max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 999), st.integers(1, 12))
def test_t2h_never_picks_a_rarer_class_and_h2t_never_a_more_frequent_one(seed, t, size):
    batch = make_batch(size, seed)
    noised = noised_at(batch, t, seed)
    p = FREQUENCY[batch.y]
    assert (p[transferred_index(batch, noised, SCHEDULE, gen(seed), "t2h")] >= p).all()
    assert (p[transferred_index(batch, noised, SCHEDULE, gen(seed), "h2t")] <= p).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 100))
def test_at_little_noise_the_oc_target_is_eps(seed, t):
    """Images differ by far more than the noise, so the posterior is the image itself."""
    batch = make_batch(6, seed)
    noised = noised_at(batch, t, seed)
    assert torch.equal(transferred_index(batch, noised, SCHEDULE, gen(seed)), torch.arange(6))


def test_oc_alone_in_its_batch_is_ddpm(unet):
    batch = make_batch(1)
    torch.testing.assert_close(
        oc(unet, batch, SCHEDULE, gen()).loss, ddpm(unet, batch, SCHEDULE, gen()).loss, rtol=1e-5, atol=1e-6
    )


def test_unknown_words(unet):
    with pytest.raises(ValueError, match="unknown mode 'up'; known: t2h, h2t, full"):
        oc(unet, make_batch(), SCHEDULE, gen(), mode="up")
    with pytest.raises(ValueError, match="unknown prior 'flat'; known: train, uniform"):
        cbdm(unet, make_batch(), SCHEDULE, gen(), prior="flat")


def test_timesteps_begin_at_zero():
    n = 60_000
    y = torch.zeros(n, dtype=torch.int64)
    noised = add_noise(Batch(torch.zeros(n, 1, 1, 1), y, y, torch.ones(1)), SCHEDULE, gen())
    assert noised.t.min() == 0 and noised.t.max() == 999


@pytest.mark.parametrize("base", OBJECTIVES)
def test_what_comes_back_for_the_allocation_loss_is_both_predictions_for_the_condition(base, reserved):
    batch = make_batch()
    out = OBJECTIVES[base](reserved, batch, SCHEDULE, gen(), both=True)
    noised = add_noise(batch, SCHEDULE, gen())
    eps, general = reserved.forward_both(noised.x_t, noised.t, batch.condition)
    assert torch.equal(out.eps, eps) and torch.equal(out.eps_general, general)


@pytest.mark.parametrize(("base", "predictions"), [("ddpm", 1), ("focal", 1), ("cbdm", 2), ("oc", 1)])
def test_every_prediction_is_told_the_augmentation(base, predictions):
    heard = []

    class Spy(Table):
        def forward(self, x, t, y, augmentation):
            heard.append(augmentation)
            return super().forward(x, t, y)

    batch = make_batch()._replace(augmentation=torch.ones(6, 9))
    OBJECTIVES[base](Spy(), batch, SCHEDULE, gen())
    assert len(heard) == predictions and all(a is batch.augmentation for a in heard)


def test_the_options_default_to_the_published_values():
    model, batch = Table(), make_batch()
    published = dict(tau=1.0, gamma=0.25, prior="train")
    assert torch.equal(cbdm(model, batch, SCHEDULE, gen()).loss, cbdm(model, batch, SCHEDULE, gen(), **published).loss)
    assert torch.equal(focal(model, batch, SCHEDULE, gen()).loss, focal(model, batch, SCHEDULE, gen(), gamma=1.0).loss)
