import pytest
import torch
from conftest import make_unet

from callkit.capacity import expert_scale, expert_weights, reserve
from callkit.unet import Attention, ResBlock, UNet, group_norm


@pytest.mark.parametrize(("num_classes", "parameters"), [(10, 35_751_427), (100, 35_797_507)])
def test_the_papers_network_has_the_published_size(num_classes, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(3, num_classes).parameters()) == parameters


@pytest.mark.parametrize(("channel_mult", "parameters"), [((1, 2, 2), 25_843_715), ((1, 2, 3, 4), 81_321_859)])
def test_the_widths_of_figure_5(channel_mult, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(3, 10, channel_mult=channel_mult).parameters()) == parameters


def test_starts_near_zero():
    torch.manual_seed(0)
    out = UNet(1, 4, channels=8, channel_mult=(1, 2))(
        torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 1])
    )
    assert out.abs().max() < 1e-2


def test_null_adds_exactly_nothing_and_may_differ_per_sample(unet, inputs):
    _, t, y = inputs
    mixed = unet.embed(t, y)
    unet.label.weight.data.zero_()
    without = unet.embed(t, y)
    assert torch.equal(mixed[3], without[3])
    assert not torch.allclose(mixed[:3], without[:3])


def test_a_class_beyond_null_is_an_error_and_not_the_last_class(unet, inputs):
    x, t, y = inputs
    with pytest.raises(IndexError):
        unet(x, t, y + unet.num_classes + 1)


def test_samples_do_not_affect_each_other(unet, inputs):
    x, t, y = inputs
    together = unet(x, t, y)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_depends_on_image_time_and_class(unet, inputs):
    x, t, y = inputs
    out = unet(x, t, y)
    for other in (unet(x + 1, t, y), unet(x, 999 - t, y), unet(x, t, (y + 1) % 4)):
        assert (out - other).abs().flatten(1).amax(1).min() > 1e-4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(channels=0), "channels must be a multiple of 4, got 0"),
        (dict(channels=6), "channels must be a multiple of 4, got 6"),
        (dict(attention_levels=(2,)), r"attention_levels must lie in 0\.\.1, got \(2,\)"),
    ],
)
def test_sizes_of_which_no_network_can_be_made(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_unet(**sizes)


def test_wrong_image_size(unet):
    for shape in ((1, 3, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"images must be \(B, 1, H, W\)"):
            unet(torch.zeros(shape), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(torch.zeros(1, 1, 7, 8), torch.tensor([0]), torch.tensor([0]))


def test_what_starts_near_zero():
    model = UNet(1, 4, channels=8, channel_mult=(1, 2), attention_levels=(1,), num_res_blocks=1)
    largest = {name: p.abs().max().item() for name, p in model.named_parameters() if p.ndim == 4}
    near_zero = {name for name, value in largest.items() if value < 1e-4}
    assert near_zero == {name for name in largest if name.endswith("conv2.weight")} | {"tail.2.weight"}


@pytest.mark.parametrize("where", ["up", lambda name, m: isinstance(m, torch.nn.Conv2d)])
def test_forward_both_equals_two_forwards_with_gradients(where, inputs):
    def model():
        m = reserve(make_unet(), 0.5, where)
        for i, e in enumerate(expert_weights(m).values()):
            e.B.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
        return m.eval()

    torch.manual_seed(2)
    shared = model()
    torch.manual_seed(2)
    separate = model()
    both = shared.forward_both(*inputs)
    with expert_scale(separate, 0):
        general = separate(*inputs)
    two = (separate(*inputs), general)
    for a, b in zip(both, two, strict=True):
        torch.testing.assert_close(a, b)
    assert (both[0] - both[1]).abs().max() > 0.1  # the expert does something
    for pair in (both, two):
        (pair[0].pow(2).mean() + pair[0].sub(pair[1]).pow(2).mean()).backward()
    for (name, p), q in zip(shared.named_parameters(), separate.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_forward_both_uses_the_same_dropout_masks(inputs):
    model = reserve(make_unet(dropout=0.5)).train()  # B = 0: theta equals theta^g
    eps, general = model.forward_both(*inputs)
    assert torch.equal(eps, general)
    assert not torch.equal(model(*inputs), eps)  # while dropout is on


@pytest.mark.parametrize("where", ["up", "all"])
def test_a_second_prediction_of_some_rows_is_that_of_all(where, inputs):
    model = reserve(make_unet(dropout=0.5), 0.5, where).train()
    for e in expert_weights(model).values():
        e.B.data.normal_(0, 0.2)
    masks, rows = model.dropout_masks(inputs[0]), torch.tensor([3, 1])
    eps, general = model.forward_both(*inputs, masks=masks)
    eps_again, some = model.forward_both(*inputs, rows=rows, masks=masks)
    assert torch.equal(eps, eps_again) and (eps - general).abs().max() > 0.1
    torch.testing.assert_close(some, general[rows])


def test_dropout_masks_keep_a_share_and_the_mean():
    model = make_unet(dropout=0.3).train()
    masks = model.dropout_masks(torch.zeros(64, 1, 8, 8))
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert len(masks) == len(blocks)
    for mask in masks:
        torch.testing.assert_close(mask.unique(), torch.tensor([0, 1 / 0.7]))
        assert abs(mask.mean() - 1) < 0.02
    model(torch.zeros(64, 1, 8, 8), torch.zeros(64).long(), torch.zeros(64).long(), masks=masks)  # shapes fit
    assert model.eval().dropout_masks(torch.zeros(1, 1, 8, 8)) == [None] * len(blocks)


def test_masks_are_drawn_outside_the_compiled_half(inputs, monkeypatch):
    """torch.compile has generators of its own: inside, the same seed would draw other masks."""
    model, given = make_unet(dropout=0.5).train(), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *a: given.append(a[-1]) or encode(*a))
    model(*inputs)
    model.forward_both(*inputs)
    assert [[m is None for m in masks] for masks in given] == [[False] * len(model.dropout_masks(inputs[0]))] * 2


def test_attention_is_the_softmax_of_scaled_products():
    torch.manual_seed(0)
    x, layer = torch.randn(2, 8, 4, 4), Attention(8)
    h = layer.norm(x)
    q, k, v = (
        torch.einsum("oc,bcn->bno", f.weight[:, :, 0, 0], h.flatten(2)) + f.bias for f in (layer.q, layer.k, layer.v)
    )
    weights = torch.softmax(torch.einsum("bnc,bmc->bnm", q, k) / 8**0.5, dim=2)
    expected = x + layer.proj(torch.einsum("bnm,bmc->bcn", weights, v).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected)


def test_dropout_acts_where_ddpm_has_it(inputs):
    """With everything dropped, a residual block is its shortcut plus its second convolution's bias."""
    block = make_unet().down[0]
    x, emb = torch.randn(2, 8, 8, 8), torch.randn(2, 32)
    out = block(x, emb, torch.zeros(2, 8, 8, 8))
    torch.testing.assert_close(out, block.attention(x + block.conv2.bias[:, None, None]))


def test_bfloat16_inside_float32_outside(inputs):
    model = reserve(make_unet(), 0.5)
    exact = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        eps, general = model.forward_both(*inputs)
    assert eps.dtype == general.dtype == torch.float32
    error = (eps - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert 1e-4 < error < 0.05


def test_in_bfloat16_attention_sends_no_gradient_to_its_keys_bias():
    """A number added to a query's every score changes no softmax: that gradient is zero, but for rounding."""
    torch.manual_seed(0)
    block, x = Attention(32), torch.randn(4, 32, 8, 8) + 2 * torch.randn(4, 32, 1, 1)
    size = {}
    for enabled in (False, True):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = block(x.bfloat16() if enabled else x)
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32), "as what comes in"
        (out.float() * torch.linspace(-1, 1, x.numel()).view(x.shape)).sum().backward()
        size[enabled] = (block.k.bias.grad.norm() / block.q.bias.grad.norm()).item()
    assert size[True] < 1e-4 and size[False] < 1e-4  # 3e-3 with scores and products in bfloat16


def test_group_norm_has_32_groups_or_the_most_of_four_channels_or_more():
    assert [group_norm(c).num_groups for c in (128, 256, 64, 24, 8)] == [32, 32, 16, 6, 2]


def test_wrong_image_width(unet):
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(torch.zeros(1, 1, 8, 7), torch.tensor([0]), torch.tensor([0]))


def from_the_middle_on(name, module):
    return name.startswith(("middle.", "up.")) and isinstance(module, torch.nn.Conv2d)


@pytest.mark.parametrize("where", ["up", "all", from_the_middle_on])
def test_forward_both_equals_two_forwards_with_ada(where, inputs):
    model = reserve(make_unet(condition_size=9), 0.5, where).eval()
    for e in expert_weights(model).values():
        e.B.data.normal_(0, 0.2)
    told = (*inputs, torch.randn(4, 9, generator=torch.Generator().manual_seed(0)))
    both = model.forward_both(*told)
    with expert_scale(model, 0):
        general = model(*told)
    torch.testing.assert_close(both, (model(*told), general))
    assert (model(*told) - model(*inputs)).abs().max() > 1e-3


def test_the_last_class_is_none_and_no_augmentation_is_zeros():
    model = UNet(1, 4, channels=8, channel_mult=(1, 2), condition_size=9)
    model.augmentation.weight.data.normal_()
    t, y = torch.tensor([5, 5]), torch.tensor([3, 4])
    assert not torch.equal(*model.embed(t, y))
    torch.testing.assert_close(model.embed(t, y, torch.zeros(2, 9)), model.embed(t, y), rtol=0, atol=0)
