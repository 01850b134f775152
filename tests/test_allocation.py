import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callkit.allocation import PRESETS, AllocationLoss, class_weights, saturate

COUNTS = [174, 112, 72, 47, 30, 19, 12, 8, 5, 3]


def predictions(*distances):
    """eps and eps_general, one sample per distance D."""
    general = torch.randn(len(distances), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor(distances).sqrt()[:, None, None, None]
    return (general + offset).requires_grad_(), general.requires_grad_()


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=100))
def test_weights_follow_equation_5(counts):
    con, div = class_weights(counts)
    n, c = np.array(counts, dtype=float), len(counts)
    np.testing.assert_allclose(con, c * n / n.sum(), rtol=1e-5)
    np.testing.assert_allclose(div, c / (n * (1 / n).sum()), rtol=1e-5)
    assert con.mean() == pytest.approx(1, rel=1e-4) and div.mean() == pytest.approx(1, rel=1e-4)


def test_weights_at_the_ends_of_cifar10():
    con, div = class_weights([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    assert (con - div)[0].item() == pytest.approx(3.99, abs=5e-3)
    assert (con - div)[-1].item() == pytest.approx(-3.98, abs=5e-3)
    assert ((con - div) < 0).tolist().index(True) == 5


@pytest.mark.parametrize("counts", [[3, 0], [-1, 2], [[1, 2]]])
def test_weights_refuse(counts):
    with pytest.raises(ValueError, match="counts"):
        class_weights(counts)


def test_a_balanced_set_costs_nothing_as_printed():
    loss = AllocationLoss([7] * 4, **PRESETS["paper"])
    eps, general = predictions(0.0, 0.3, 2.0, 50.0)
    out = loss(eps, general, torch.arange(4))
    assert torch.equal(out.loss, torch.zeros(4))
    out.loss.sum().backward()
    assert not eps.grad.any() and not general.grad.any()


def test_distance_is_the_mean_over_pixels():
    out = AllocationLoss(COUNTS)(*predictions(0.0, 0.3, 2.0), torch.tensor([0, 4, 9]))
    torch.testing.assert_close(out.distance, torch.tensor([0.0, 0.3, 2.0]))


def test_presets():
    """Eq. (4) to (6) as printed; the weights of the authors' later code; ours, the default."""
    assert PRESETS == {
        "paper": dict(consistency=1.0, diversity=1.0, bound=None),
        "released": dict(consistency=1.0, diversity=0.2, bound=None),
        "bounded": dict(consistency=1.0, diversity=1.0, bound=0.1),
    }
    default = AllocationLoss(COUNTS)
    assert {k: getattr(default, k) for k in PRESETS["bounded"]} == PRESETS["bounded"]


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_per_sample_is_the_formula(preset):
    p, lam = PRESETS[preset], 0.7
    D, y = (0.01, 0.5), torch.tensor([2, 9])
    out = AllocationLoss(COUNTS, lam=lam, **p)(*predictions(*D), y)
    con, div = class_weights(COUNTS)
    for i in range(2):
        phi = D[i] if p["bound"] is None else p["bound"] * (1 - math.exp(-D[i] / p["bound"]))
        expected = lam * (p["consistency"] * con[y[i]] * D[i] - p["diversity"] * div[y[i]] * phi)
        assert out.loss[i].item() == pytest.approx(expected.item(), rel=1e-4)


@given(st.floats(0, 100, allow_subnormal=False), st.floats(1e-3, 10))
def test_saturation_is_bounded_increasing_and_below_the_identity(d, bound):
    value = saturate(torch.tensor(d, dtype=torch.float64), bound).item()
    assert 0 <= value <= bound * (1 + 1e-12) and value <= d * (1 + 1e-12)
    assert saturate(torch.tensor(d + 0.1, dtype=torch.float64), bound).item() >= value


def test_saturation_keeps_the_printed_gradient_at_zero():
    d = torch.zeros((), requires_grad=True)
    saturate(d, 0.1).backward()
    assert d.grad == 1
    assert saturate(torch.tensor(3.0), None) == 3


@pytest.mark.parametrize("settings", [{}, dict(lam=0.3, bound=0.2), dict(consistency=2.0, diversity=0.5)])
def test_the_rest_points_are_where_the_loss_has_its_minimum(settings):
    loss, grid = AllocationLoss(COUNTS, **settings), torch.linspace(0, 2, 2001).tolist()
    at = loss.rest_points()
    assert at.shape == (10,) and at[0] == 0 < at[-1]
    for c in range(10):
        values = loss(*predictions(*grid), torch.full((2001,), c)).loss
        assert grid[int(values.argmin())] == pytest.approx(at[c].item(), abs=2e-3), c


def test_a_loss_without_a_minimum_has_no_rest_points():
    grid = torch.linspace(0, 2, 2001).tolist()
    # the printed loss has none: it still falls at the end of the grid
    printed = AllocationLoss(COUNTS, **PRESETS["paper"])(*predictions(*grid), torch.full((2001,), 9)).loss
    assert int(printed.argmin()) == 2000
    for settings in (PRESETS["paper"], dict(bound_form="cap"), dict(bound_form="relative")):
        with pytest.raises(ValueError, match="rest points need an exponential bound"):
            AllocationLoss(COUNTS, **settings).rest_points()


def test_gradients_reach_both_predictions_and_pull_or_push():
    eps, general = predictions(0.04, 0.04)
    AllocationLoss(COUNTS)(eps, general, torch.tensor([0, 9])).loss.sum().backward()
    torch.testing.assert_close(eps.grad, -general.grad)
    direction = ((eps - general).detach() * eps.grad).flatten(1).sum(1)
    assert direction[0] > 0 > direction[1]  # descent closes the gap of the head and opens that of the tail


def test_bound_must_be_positive():
    with pytest.raises(ValueError, match="bound must be positive"):
        AllocationLoss(COUNTS, bound=0.0)


def test_a_cap_stops_the_gain_at_the_bound_and_not_before():
    loss = AllocationLoss(COUNTS, bound=0.1, bound_form="cap")
    torch.testing.assert_close(loss.phi(torch.tensor([0.05, 0.1, 3.0])), torch.tensor([0.05, 0.1, 0.1]))


def test_a_relative_bound_is_in_units_of_the_base_loss_and_constant_in_the_gradient():
    loss = AllocationLoss(COUNTS, bound=2.0, bound_form="relative")
    base = torch.tensor([0.01, 0.5], requires_grad=True)
    d = torch.tensor([5.0, 0.3])
    torch.testing.assert_close(loss.phi(d, base), torch.stack([saturate(d[0], 0.02), saturate(d[1], 1.0)]))
    assert not loss.phi(d, base).requires_grad
    with pytest.raises(ValueError, match="the relative bound needs base_loss"):
        loss(*predictions(0.04), torch.tensor([0]))


def test_stop_gradient_moves_theta_g_alone():
    eps, general = predictions(0.04, 0.04)
    AllocationLoss(COUNTS, stop_gradient=True)(eps, general, torch.tensor([0, 9])).loss.sum().backward()
    assert eps.grad is None and general.grad.any()


def test_a_centred_distance_ignores_a_constant_and_is_the_variance_of_the_rest():
    g = torch.Generator().manual_seed(0)
    general = torch.randn(2, 3, 8, 8, generator=g)
    constant = torch.tensor([0.3, -2.0, 5.0])[None, :, None, None]  # one per channel
    rest = torch.randn(2, 3, 8, 8, generator=g)
    loss = AllocationLoss(COUNTS, centred=True)
    y = torch.tensor([0, 9])
    assert loss(general + constant, general, y).distance.max() < 1e-10
    expected = rest.flatten(2).var(2, correction=0).mean(1)
    torch.testing.assert_close(loss(general + constant + rest, general, y).distance, expected)


def a_batch(size: int = 64):
    g = torch.Generator().manual_seed(0)
    y = torch.multinomial(torch.tensor(COUNTS).float(), size, replacement=True, generator=g)
    return y, torch.rand(size, generator=g) ** 2


@pytest.mark.parametrize("size", [1, 16, 32, 63, 64])
def test_a_subset_is_unbiased_and_repeats_nothing(size):
    """The draw depends on one uniform number alone: average over a grid of it, which is the expectation."""
    allocation, (y, distance) = AllocationLoss(COUNTS), a_batch()
    loss = allocation.omega_con[y] * distance - allocation.omega_div[y] * saturate(distance, 0.1)
    estimates = []
    for u in (torch.arange(2_000, dtype=torch.float64) + 0.5) / 2_000:
        with mock.patch("torch.rand", return_value=u):
            rows, weights = allocation.subset(y, size, None)
        assert len(rows) == len(rows.unique()) == size
        estimates.append((weights * loss[rows]).sum())
    estimates = torch.stack(estimates)
    assert estimates.mean().item() == pytest.approx(loss.mean().item(), abs=2e-2 * loss.abs().mean().item())
    if size == 64:
        assert estimates.std() < 1e-6


def test_a_subset_draws_each_sample_as_often_as_its_weight_says():
    allocation, (y, _) = AllocationLoss([1000, 10, 10, 1]), (torch.arange(64) % 4, None)
    g, times, chance = torch.Generator().manual_seed(1), torch.zeros(64), torch.zeros(64)
    for _ in range(2_000):
        rows, weights = allocation.subset(y, 24, g)
        times[rows] += 1
        chance[rows] = 1 / (64 * weights)
    assert (times / 2_000 - chance).abs().max() < 0.05
    assert (times > 0).all()
    rows, weights = allocation.subset(y, 40, g)
    assert (weights[y[rows] == 3] == 1 / 64).all() and (y[rows] == 3).sum() == 16, "for certain, with their own weight"


def test_a_subset_has_less_variance_than_a_uniform_one():
    allocation, (y, distance) = AllocationLoss(COUNTS), a_batch()
    distance = torch.where(y > 6, 0.2, 1e-4) * (0.5 + distance)  # as it is once the predictions have parted
    loss = allocation(distance.sqrt()[:, None, None, None], torch.zeros(64, 1, 1, 1), y).loss
    g = torch.Generator().manual_seed(2)
    ours = torch.stack([(w * loss[r]).sum() for r, w in (allocation.subset(y, 32, g) for _ in range(500))])
    uniform = torch.stack([loss[torch.randperm(64, generator=g)[:32]].mean() for _ in range(500)])
    assert ours.var() < uniform.var() / 4


def test_a_subset_of_no_size():
    for size in (0, 65):
        with pytest.raises(ValueError, match=r"size must lie in 1\.\.64, the batch, got"):
            AllocationLoss(COUNTS).subset(a_batch()[0], size, torch.Generator())


def test_a_moved_loss_leaves_the_first_where_it_is():
    loss = AllocationLoss([3, 2, 1])
    there = loss.to("meta")
    assert {there.omega_con.device.type, there.omega_div.device.type} == {"meta"}
    assert {v.device.type for v in (loss.omega_con, loss.omega_div, there.priority)} == {"cpu"}
