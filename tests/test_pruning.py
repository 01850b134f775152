import numpy as np
import pytest
import scipy.stats
import torch
from conftest import make_unet

from callkit import data
from callkit.diffusion import NoiseSchedule
from callkit.pruning import losses, prunable, prune, sensitivity


def weights(module):
    return torch.cat([m.weight.detach().flatten() for m in prunable(module)])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_global_zeroes_exactly_the_smallest(unet, rate):
    before, after = weights(unet), weights(prune(unet, rate))
    gone = after == 0
    assert gone.sum() == int(rate * len(before))
    assert torch.equal(after[~gone], before[~gone])
    if rate:
        assert before[gone].abs().max() <= before[~gone].abs().min()


def test_layer_zeroes_the_same_share_everywhere(unet):
    for old, new in zip(prunable(unet), prunable(prune(unet, 0.3, "layer")), strict=True):
        gone = new.weight == 0
        assert gone.sum() == int(0.3 * gone.numel())
        assert old.weight[gone].abs().max() <= old.weight[~gone].abs().min()


def test_filter_zeroes_whole_filters_and_their_bias(unet):
    for old, new in zip(prunable(unet), prunable(prune(unet, 0.25, "filter")), strict=True):
        norms = old.weight.flatten(1).abs().sum(1)
        gone = (new.weight == 0).flatten(1).all(1)
        assert gone.sum() == int(0.25 * len(norms))
        assert not new.bias[gone].any() and torch.equal(new.bias[~gone], old.bias[~gone])
        if gone.any():
            assert norms[gone].max() <= norms[~gone].min()


def test_filter_takes_layers_without_a_bias():
    layer = torch.nn.Linear(2, 4, bias=False)
    assert (prune(layer, 0.25, "filter").weight == 0).all(1).sum() == 1


@pytest.mark.parametrize("how", ["global", "layer", "filter"])
def test_only_convolutions_and_linear_maps_change_and_the_original_not_at_all(unet, how):
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    pruned = prune(unet, 0.5, how).state_dict()
    assert all(torch.equal(v, unet.state_dict()[k]) for k, v in state.items())
    changed = {k for k in state if not torch.equal(state[k], pruned[k])}
    assert changed and not any("norm" in k or k.startswith("label") for k in changed)


def test_refuses(unet, reserved):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        prune(unet, 1)
    with pytest.raises(ValueError, match="unknown how 'random'; known: global, layer, filter"):
        prune(unet, how="random")
    with pytest.raises(ValueError, match="merge the expert"):
        prune(reserved)


class Zero(torch.nn.Module):
    def forward(self, x, t, y):
        return torch.zeros_like(x)


def test_predicting_nothing_costs_the_noise_s_variance():
    digits = data.load("digits").subset(range(200))
    assert losses(Zero(), digits, NoiseSchedule(), draws=20).mean().item() == pytest.approx(1, abs=0.02)


def test_common_random_numbers_and_even_timesteps():
    seen = []

    class Spy(Zero):
        def forward(self, x, t, y):
            seen.append(t)
            return super().forward(x, t, y)

    digits = data.load("digits").subset(range(50))
    first, second = (losses(Spy(), digits, NoiseSchedule(), draws=4, seed=3) for _ in range(2))
    assert torch.equal(first, second)
    for k in range(4):
        assert 250 * k <= seen[k].min() and seen[k].max() < 250 * (k + 1)


def test_sensitivity_is_the_paired_change():
    labels = torch.tensor([0] * 50 + [1] * 40)
    g = torch.Generator().manual_seed(0)
    before = torch.rand(90, generator=g) + 1
    step = torch.where(labels == 1, 0.5, 0.1) + 0.01 * torch.randn(90, generator=g)
    s = sensitivity(before, before + step, labels, 2)
    d = (step[:50].double()).numpy()
    np.testing.assert_allclose(s.change[0], d.mean(), rtol=1e-5)
    interval = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    np.testing.assert_allclose(s.change[0] + s.change_ci[0], interval.high, rtol=1e-4)
    np.testing.assert_allclose(s.relative, s.change / s.before)
    assert s.change_ci.max() < 0.01  # pairing removes the spread between images


def test_pruning_nothing_changes_nothing():
    model, digits = make_unet(), data.load("digits").subset(range(20))
    clipped = data.ImageSet(digits.images, digits.labels.clamp(max=3), tuple("abcd"))
    before, after = (losses(m, clipped, NoiseSchedule(), draws=2) for m in (model, prune(model, 0)))
    assert torch.equal(before, after)


def test_every_convolution_and_linear_map_may_be_pruned(unet):
    names = {n for n, m in unet.named_modules() if m in set(prunable(unet))}
    assert names == {
        n.removesuffix(".weight") for n, p in unet.named_parameters() if n.endswith(".weight") and p.ndim > 1
    } - {"label"}


def test_a_negative_rate_is_refused(unet):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got -0.1"):
        prune(unet, -0.1)


def test_filters_are_ordered_by_their_l1_norm():
    layer = torch.nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, 1, 1, 1], [3, 0, 0, 0]])  # L1: 4 and 3; L2: 2 and 3
    assert prune(layer, 0.5, "filter").weight.any(1).tolist() == [True, False]


def test_losses_are_of_each_image_told_its_own_class_at_its_own_time_and_noise():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t, y):
            seen.append((x, t, y))
            return torch.zeros_like(x)

    digits = data.load("digits").subset(range(40))
    same = data.ImageSet(digits.images[:1].expand(40, -1, -1, -1), digits.labels, digits.class_names)
    one, other = (losses(Spy(), same, NoiseSchedule(), draws=2, seed=s) for s in (0, 1))
    _, t, y = seen[0]
    assert torch.equal(y, same.labels) and len(t.unique()) > 20 and t.max() > 400
    assert len(one.unique()) == 40 and not torch.equal(one, other)
