import math

import pytest
import torch
from conftest import make_unet

from callkit import augment
from callkit.augment import Warp, apply, draw


def one(**parameters) -> Warp:
    zero = torch.zeros(1)
    return Warp(
        **{name: torch.tensor([float(parameters[name])]) if name in parameters else zero for name in Warp._fields}
    )


def blob(size: int = 32) -> torch.Tensor:
    """A smooth spot off the centre, zero towards the edges."""
    at = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.exp(-((x - 0.2) ** 2 + (y + 0.1) ** 2) / 0.05)[None, None]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, lambda x: x),
        ({"mirror": 1}, lambda x: x.flip(-1)),
        ({"flip": 1}, lambda x: x.flip(-2)),
        ({"rotation": math.pi / 2}, lambda x: x.rot90(-1, (-2, -1))),  # from the x axis (right) to the y axis (down)
        ({"shift_x": 1}, lambda x: x.roll(4, -1)),  # an eighth of 32 pixels
        ({"shift_y": -0.5}, lambda x: x.roll(-2, -2)),
    ],
)
def test_warps_that_pixels_can_do_exactly(parameters, expected):
    image = blob()
    torch.testing.assert_close(apply(image, one(**parameters).matrix()), expected(image), atol=1e-3, rtol=0)


def test_scale_and_stretch_in_closed_form():
    m = one(scale=2).matrix()[0]
    torch.testing.assert_close(m, torch.diag(torch.tensor([2**0.4, 2**0.4, 1.0])))
    m = one(stretch=-1, stretch_axis=math.pi / 2).matrix()[0]  # shrink along y, stretch along x
    torch.testing.assert_close(m, torch.diag(torch.tensor([2**0.2, 2**-0.2, 1.0])), atol=1e-6, rtol=1e-6)
    assert torch.linalg.det(one(stretch=1.3, stretch_axis=0.4, rotation=1.0).matrix()).item() == pytest.approx(1, 1e-5)


def test_the_inverse_matrix_undoes_a_warp(monkeypatch):
    image = blob().repeat(50, 1, 1, 1)
    monkeypatch.setattr(augment, "PROBABILITY", 0.5)
    warp = draw(50, torch.Generator().manual_seed(0))
    warp = warp._replace(shift_x=0.3 * warp.shift_x, shift_y=0.3 * warp.shift_y)  # the spot must stay in the image
    there = apply(image, warp.matrix())
    back = apply(there, torch.linalg.inv(warp.matrix()))
    inner = (..., slice(8, 24), slice(8, 24))
    assert (back - image)[inner].abs().max() < 0.05 < 0.5 < (there - image).abs().max()


def test_a_warp_does_not_wait_for_the_gpu(monkeypatch):
    monkeypatch.setattr(augment, "PROBABILITY", 1.0)
    matrix = draw(50, torch.Generator().manual_seed(0)).matrix()
    assert torch.equal(torch.linalg.inv_ex(matrix).inverse, torch.linalg.inv(matrix))
    monkeypatch.setattr(torch.linalg, "inv", lambda _: pytest.fail("it looks whether it could"))
    apply(torch.zeros(50, 1, 8, 8), matrix)


def test_nothing_is_nine_zeros_and_the_condition_names_the_warp():
    assert not one().condition().any()
    condition = one(mirror=1, rotation=math.pi, stretch=2, stretch_axis=math.pi / 2, shift_y=0.7).condition()[0]
    expected = torch.tensor([1, 0, 0, -2, 0, 0, 2, 0, 0.7])
    torch.testing.assert_close(condition, expected, atol=1e-6, rtol=0)


def test_warps_have_their_probabilities():
    n = 20_000
    warp = draw(n, torch.Generator().manual_seed(0))
    share = {name: (getattr(warp, name) != 0).float().mean().item() for name in Warp._fields}
    assert share.pop("mirror") == pytest.approx(0.5, abs=0.02)
    assert share.pop("flip") == pytest.approx(0.06, abs=0.01)
    assert all(value == pytest.approx(0.12, abs=0.01) for value in share.values())
    assert torch.equal(warp.shift_x != 0, warp.shift_y != 0) and torch.equal(warp.stretch != 0, warp.stretch_axis != 0)
    assert warp.scale[warp.scale != 0].std().item() == pytest.approx(1, abs=0.05)


def test_images_must_be_square():
    with pytest.raises(ValueError, match="square"):
        apply(torch.zeros(1, 1, 8, 4), one().matrix())


def test_the_network_is_told_and_zeros_say_nothing(inputs):
    model = make_unet(condition_size=augment.CONDITION_SIZE).eval()
    told = one(rotation=1.0).condition().expand(4, -1)
    assert torch.equal(model(*inputs, torch.zeros(4, 9)), model(*inputs))
    assert (model(*inputs, told) - model(*inputs)).abs().max() > 1e-3
