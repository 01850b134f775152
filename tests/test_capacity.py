import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import make_unet
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrize

from callkit.capacity import expert_scale, expert_weights, merge, reserve
from callkit.unet import UNet


@pytest.mark.parametrize(
    ("where", "matrices", "parameters"),
    [
        ("up-conv3x3", 27, 1_981_056),
        ("up", 63, 2_515_456),
        ("up-emb", 12, 9 * 25 * (256 + 512) + 3 * 12 * (128 + 512)),
        ("up-no-emb", 51, 2_515_456 - 195_840),
        ("up-tail", 64, 2_516_611),
    ],
)
def test_size_of_the_experts_of_the_papers_network(where, matrices, parameters):
    experts = expert_weights(reserve(UNet(3, 10), where=where))
    assert len(experts) == matrices
    assert sum(e.size for e in experts.values()) == parameters


def test_starts_equal_to_the_plain_network(inputs):
    plain = make_unet().eval()
    assert torch.equal(reserve(make_unet()).eval()(*inputs), plain(*inputs))


def test_a_starts_uniform_by_its_width_and_b_at_zero():
    """As the weights of torch.nn.Linear(k, r): between -1/sqrt(k) and 1/sqrt(k)."""
    torch.manual_seed(0)
    (expert,) = expert_weights(reserve(nn.Linear(400, 300), rank=0.5, where=lambda name, m: True)).values()
    A, half = expert.A.detach(), 400**-0.5
    assert expert.B.abs().max() == 0
    assert A.min().item() == pytest.approx(-half, rel=1e-3) and A.max().item() == pytest.approx(half, rel=1e-3)
    assert A.mean().abs() < 0.01 * half
    assert A.std().item() == pytest.approx(half / 3**0.5, rel=0.01)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0])
def test_a_convolution_computes_equation_3(scale):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3)
    general = conv.weight.detach().clone()
    reserve(conv_in := nn.Sequential(conv), rank=0.5, where=lambda name, m: isinstance(m, nn.Conv2d))
    (expert,) = expert_weights(conv_in).values()
    assert expert.B.shape == (4, 2) and expert.A.shape == (2, 54)
    expert.B.data.normal_()
    x = torch.randn(2, 6, 5, 5)
    # the low-rank part as two convolutions: 3x3 to r channels, then 1x1
    inner = F.conv2d(x, expert.A.view(2, 6, 3, 3))
    expected = F.conv2d(x, general, conv.bias) + scale * F.conv2d(inner, expert.B.view(4, 2, 1, 1))
    with expert_scale(conv_in, scale):
        torch.testing.assert_close(conv_in(x), expected, rtol=1e-4, atol=1e-5)


def test_scale_zero_equals_a_network_without_the_experts(reserved, inputs):
    state = {
        k.replace("parametrizations.weight.original", "weight"): v
        for k, v in reserved.state_dict().items()
        if not k.endswith((".A", ".B"))
    }
    plain = make_unet(seed=5).eval()
    plain.load_state_dict(state)
    with expert_scale(reserved, 0):
        general = reserved(*inputs)
    assert torch.equal(general, plain(*inputs))
    assert not torch.allclose(reserved(*inputs), general, atol=1e-2)


def test_expert_scale_is_put_back_after_an_error(reserved, inputs):
    before = reserved(*inputs)
    with pytest.raises(RuntimeError), expert_scale(reserved, 0.5), expert_scale(reserved, 0):
        raise RuntimeError
    assert torch.equal(reserved(*inputs), before)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_merge_is_plain_and_equal(reserved, inputs, scale):
    merged = merge(reserved, scale)
    with expert_scale(reserved, scale):
        torch.testing.assert_close(merged(*inputs), reserved(*inputs), rtol=1e-5, atol=1e-5)
    assert not any(parametrize.is_parametrized(m) for m in merged.modules())
    plain = make_unet()
    assert {k: v.shape for k, v in merged.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert expert_weights(reserved)  # the original keeps its decomposition


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_merge_equals_pefts_on_the_same_matrices(scale):
    """A convolution too, though peft keeps its A as a convolution and its B as one of 1x1."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(200, 8)).eval()
    x = torch.randn(2, 6, 5, 5)
    theirs = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=["0", "3"]), copy.deepcopy(plain))
    ours = reserve(plain, rank=0.5, where=lambda name, m: isinstance(m, nn.Conv2d | nn.Linear))
    for name, expert in expert_weights(ours).items():
        expert.B.data.normal_()
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(expert.A.view_as(layer.lora_A["default"].weight))
        layer.lora_B["default"].weight.data.copy_(expert.B.view_as(layer.lora_B["default"].weight))
        layer.set_scale("default", scale)
    merged = merge(ours, scale)
    with expert_scale(ours, scale):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    for name in ("0", "3"):
        layer = theirs.get_submodule(name)
        layer.merge()
        torch.testing.assert_close(merged.get_submodule(name).weight, layer.base_layer.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert (merged(x) - merge(ours, scale + 0.5)(x)).abs().max() > 0.1


def test_gradients_reach_all_three_parts(reserved, inputs):
    reserved(*inputs).pow(2).mean().backward()
    for name, expert in expert_weights(reserved).items():
        original = reserved.get_submodule(name).parametrizations.weight.original
        for part in (original, expert.A, expert.B):
            assert part.grad is not None and part.grad.abs().max() > 0, name


def test_without_expert_only_the_general_part_has_gradients(reserved, inputs):
    with expert_scale(reserved, 0):
        reserved(*inputs).pow(2).mean().backward()
    assert all(e.A.grad is None and e.B.grad is None for e in expert_weights(reserved).values())
    assert reserved.tail[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("rank", [0, -0.1, 1.5, float("nan"), 1])
def test_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=r"rank must be in \(0, 1\], a share .*, or 1\.0 for full rank, got"):
        reserve(make_unet(), rank)


def test_refuses():
    with pytest.raises(ValueError, match="unknown where 'down'; known: up-conv3x3, up"):
        reserve(make_unet(), where="down")
    with pytest.raises(ValueError, match="matches no module"):
        reserve(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="already"):
        reserve(reserve(make_unet()))


def test_weights_are_float32_within_autocast(reserved):
    (name, _), *_ = expert_weights(reserved).items()
    layer = reserved.get_submodule(name)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, merge(reserved).get_submodule(name).weight)
        inside = layer.weight
    assert inside.dtype == torch.float32 and torch.equal(inside, layer.weight)


def test_a_layer_alone_can_be_decomposed():
    layer = reserve(nn.Linear(4, 3), rank=0.5, where=lambda name, m: isinstance(m, nn.Linear))
    assert list(expert_weights(layer)) == [""] and not expert_weights(merge(layer))


def test_refuses_what_has_no_plain_weight():
    layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(ValueError, match="matches 1, which has no weight of its own"):
        reserve(layers, where=lambda name, m: name == "1")
    nn.utils.parametrizations.weight_norm(layers[0])
    with pytest.raises(ValueError, match="matches 0, which has no weight of its own"):
        reserve(layers, where=lambda name, m: name == "0")
    assert not expert_weights(layers)
