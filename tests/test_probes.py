import numpy as np
import pytest
import torch
from conftest import make_unet

from callkit import data, probes, pruning
from callkit.allocation import AllocationLoss
from callkit.capacity import expert_scale, expert_weights, merge, reserve
from callkit.diffusion import NoiseSchedule

SCHEDULE = NoiseSchedule()


@pytest.fixture
def images():
    """Four classes of three images each."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 1, 8, 8), generator=g, dtype=torch.uint8)
    return data.ImageSet(pixels, torch.arange(4).repeat(3), ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("counts", "diversity", "negative", "positive"),
    # both data sets' masses were worked out independently of this code
    [
        ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 1.0, -0.066, 2.44),
        ([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 0.2, -0.008, 2.51),
        ([5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100], 1.0, -0.099, 2.04),
    ],
)
def test_signed_mass_of_cifar10(counts, diversity, negative, positive):
    mass = probes.signed_mass(counts, diversity=diversity)
    assert mass[mass < 0].sum() == pytest.approx(negative, abs=6e-4)
    assert mass[mass > 0].sum() == pytest.approx(positive, abs=6e-3)


def test_signed_mass_is_the_allocation_loss_of_an_epoch_at_distance_one():
    counts = [6, 3, 1]
    y = torch.arange(3).repeat_interleave(torch.tensor(counts))
    loss = AllocationLoss(counts, bound=None)(torch.ones(10, 1, 2, 2), torch.zeros(10, 1, 2, 2), y).loss
    by_class = torch.zeros(3).index_add_(0, y, loss) / len(y)
    np.testing.assert_allclose(probes.signed_mass(counts), by_class, rtol=1e-5)


def test_branch_distance_is_that_of_the_two_merged_networks(reserved, images):
    found = probes.branch_distance(reserved, images, SCHEDULE, [10, 900])
    theta, general = merge(reserved, 1.0), merge(reserved, 0.0)
    x0 = data.to_float(images.images)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for k, t in enumerate([10, 900]):
        t = torch.full((12,), t)
        x_t = SCHEDULE.q_sample(x0, t, eps)
        d = (theta(x_t, t, images.labels) - general(x_t, t, images.labels)).pow(2).mean((1, 2, 3))
        for c in range(4):
            assert found[c, k] == pytest.approx(d[images.labels == c].mean().item(), rel=1e-3)


def test_spectra_have_the_rank_and_the_norm(reserved):
    for name, (expert, general) in probes.spectra(reserved).items():
        low_rank = expert_weights(reserved)[name]
        product = low_rank.B @ low_rank.A
        assert len(expert) == low_rank.B.shape[1] and (np.diff(expert) <= 1e-6).all()
        assert np.square(expert).sum() == pytest.approx(product.square().sum().item(), rel=1e-4)
        assert len(general) == min(product.shape)


def test_the_control_has_the_spectrum_and_other_directions(reserved, inputs):
    control = probes.random_expert(reserved)
    for name, s in probes.spectra(control).items():
        np.testing.assert_allclose(s.expert, probes.spectra(reserved)[name].expert, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(s.general, probes.spectra(reserved)[name].general)
    assert (control(*inputs) - reserved(*inputs)).abs().max() > 1e-3
    with expert_scale(control, 0.0), expert_scale(reserved, 0.0):
        assert torch.equal(control(*inputs), reserved(*inputs))


def test_a_truncated_expert_keeps_what_it_is_asked_to(reserved):
    cut = probes.truncated_expert(reserved, rank=1, only="emb")
    whole, nothing = probes.truncated_expert(reserved), probes.truncated_expert(reserved, rank=0)
    assert not any((expert.B @ expert.A).any() for expert in expert_weights(nothing).values())
    for name, expert in expert_weights(reserved).items():
        product = expert.B @ expert.A
        torch.testing.assert_close(expert_weights(whole)[name].B @ expert_weights(whole)[name].A, product)
        kept = expert_weights(cut)[name].B @ expert_weights(cut)[name].A
        if name.endswith("emb"):  # the best approximation of rank one (Eckart-Young)
            tail = torch.linalg.svdvals(product)[1:].square().sum()
            torch.testing.assert_close((product - kept).square().sum(), tail)
        else:
            assert not kept.any()


def test_the_offset_is_what_a_constant_difference_is(images, unet):
    """A network whose two predictions differ by a known number in class 1 and by noise of mean zero in class 2."""

    class Twin(torch.nn.Module):
        num_classes, in_channels = 4, 1

        def forward_both(self, x, t, y):
            general = torch.zeros_like(x)
            checks = torch.ones(8, 8)
            checks[::2, ::2] = checks[1::2, 1::2] = -1
            values = torch.stack([0 * checks, 0 * checks + 0.3, checks, checks + 0.5])
            return general + values[y][:, None], general

    found = probes.offset(Twin(), images, SCHEDULE, draws=2)
    torch.testing.assert_close(found.mean, torch.tensor([0.0, 0.3, 0.0, 0.5]))
    torch.testing.assert_close(found.share, torch.tensor([0.0, 1.0, 0.0, 0.25 / 1.25]))

    x, t, y = torch.zeros(2, 1, 8, 8), torch.tensor([3, 3]), torch.tensor([1, 4])
    repaired = probes.WithOffset(unet, found.mean)(x, t, y) - unet(x, t, y)
    torch.testing.assert_close(repaired[0], torch.full((1, 8, 8), 0.3))
    assert not repaired[1].any()
    assert probes.WithOffset(unet.to("meta"), found.mean).mean.is_meta, "where the network is, on a GPU, say"


def test_hidden_features_feed_the_output_and_do_not_see_the_class(reserved, images):
    found = probes.hidden_features(reserved, images, SCHEDULE, t=300)
    assert found.shape == (12, 8)
    other = data.ImageSet(images.images, (images.labels + 1) % 4, images.class_names)
    assert torch.equal(probes.hidden_features(reserved, other, SCHEDULE, t=300), found)
    assert not reserved.tail[-1]._forward_pre_hooks


def test_the_probe_finds_what_is_linear_and_nothing_in_noise():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(100)
    noise = torch.randn(400, 5, generator=g)
    shifted = noise.clone()
    shifted[labels == 3, 2] += 3
    assert probes.minority_probe(noise, labels, [3]) == pytest.approx(0.5, abs=0.1)
    assert probes.minority_probe(shifted, labels, [3]) > 0.95


def test_the_dial_ends_at_theta_g_and_theta(monkeypatch):
    from callkit.checkpoints import load_model

    seen = {}

    def fake(model, schedule, labels, size):
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        seen[len(seen)] = model(x, torch.tensor([5, 500]), torch.tensor([0, 9]))
        return torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(probes.sampling, "sample", fake)
    path = probes.metrics.Path(__file__).parents[1] / "results" / "digits-ir50-call-cpu-seed0.safetensors"
    points = list(
        probes.dial(load_model(path, "reserved")[0], data.load_long_tailed("digits", 50), [0.0, 1.0], per_class=4)
    )
    assert [p.scale for p in points] == [0, 1] and points[0].scores["few"]["fid"] > 0
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, weights in enumerate(("theta_g", "theta")):
        expected = load_model(path, weights)[0](x, torch.tensor([5, 500]), torch.tensor([0, 9]))
        torch.testing.assert_close(seen[i], expected, atol=1e-5, rtol=1e-4)


def test_signed_mass_is_linear_in_both_weights():
    con, div = (probes.signed_mass([6, 3, 1], c, d) for c, d in ((1, 0), (0, 1)))
    np.testing.assert_allclose(probes.signed_mass([6, 3, 1], 0.5, 0.2), 0.5 * con + 0.2 * div)


def test_probes_measure_without_dropout(images):
    torch.manual_seed(0)
    model = reserve(make_unet(dropout=0.5), 0.5)
    for e in expert_weights(model).values():
        e.B.data.normal_(0, 0.2)
    for measure in (
        lambda m: probes.branch_distance(m, images, SCHEDULE, [500]),
        lambda m: probes.offset(m, images, SCHEDULE, draws=1).mean,
        lambda m: probes.hidden_features(m, images, SCHEDULE, 500),
        lambda m: pruning.losses(m, images, SCHEDULE, draws=1),
    ):
        model.train()
        first = measure(model)
        model.train()
        assert (np.asarray(measure(model)) == np.asarray(first)).all()


def test_spectra_are_those_of_the_two_matrices(reserved):
    found = probes.spectra(reserved)
    for name, weight in merge(reserved, 0.0).state_dict().items():
        if (layer := name.removesuffix(".weight")) in found:
            expected = torch.linalg.svdvals(weight.flatten(1))
            np.testing.assert_allclose(found[layer].general, expected, rtol=1e-4, atol=1e-5)


def test_attention_sizes_are_of_queries_and_keys_on_the_way_up():
    model = make_unet()
    found = probes.attention_sizes(model)
    assert found.keys() == {"up.0.attention", "up.1.attention"}
    block = model.up[1].attention
    for n, m in (("q", block.q), ("k", block.k)):
        size = torch.linalg.matrix_norm(m.weight[:, :, 0, 0], 2).item()
        assert found["up.1.attention"][n] == pytest.approx(size, rel=1e-4)
        assert found["up.1.attention"][f"{n} bias"] == pytest.approx(m.bias.square().sum().sqrt().item(), rel=1e-4)


def test_hidden_features_are_what_enters_the_last_convolution_on_average_over_pixels(unet, images):
    found = probes.hidden_features(unet, images, SCHEDULE, t=300)
    t, null = torch.full((12,), 300), torch.full((12,), 4)
    eps = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    state = unet.encode(SCHEDULE.q_sample(data.to_float(images.images), t, eps), t, null)
    tail, unet.tail = unet.tail, unet.tail[:2]
    expected = unet.decode(state).mean((2, 3))
    unet.tail = tail
    torch.testing.assert_close(found, expected)


def test_the_probe_tells_all_minorities_from_the_rest():
    labels = torch.arange(4).repeat(100)
    features = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    features[labels >= 2, 2] += 5
    assert probes.minority_probe(features, labels, [2, 3]) > 0.95


def test_the_control_shares_no_direction_with_the_expert():
    model = make_unet()
    torch.manual_seed(0)
    model = reserve(model, 0.1)
    for e in expert_weights(model).values():
        e.B.data.normal_(0, 0.2)
    one = expert_weights(model)
    for name, e in expert_weights(probes.random_expert(model)).items():
        if e.B.shape[1] == 1 and len(e.B) >= 8:
            overlap = torch.nn.functional.cosine_similarity(e.B[:, 0], one[name].B[:, 0], 0).abs()
            assert overlap < 0.99, name
