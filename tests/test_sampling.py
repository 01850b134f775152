import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from callkit import sampling
from callkit.data import to_uint8
from callkit.diffusion import NoiseSchedule
from callkit.sampling import balanced_labels, ddim, ddim_timesteps, ddpm, guided_eps, sample

SHORT = NoiseSchedule(torch.linspace(1e-4, 0.02, 50))


def last(steps):
    return list(steps)[-1]


@pytest.mark.parametrize("steps", [8, 10, 50])
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_equals_diffusers(unet, steps, clip):
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
        clip_sample=clip, set_alpha_to_one=True, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    noise, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 3, 4])
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = unet(x, t.repeat(4), y)
            x = scheduler.step(eps, t, x, eta=0.0, use_clipped_model_output=clip).prev_sample
    ours = last(ddim(unet, NoiseSchedule(), noise, y, steps, clip_x0=clip)).x
    scale = max(1.0, x.abs().max().item())  # unclipped samples of a random network are large
    torch.testing.assert_close(ours / scale, x / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_guided_samplers_equal_diffusers(unet, sampler):
    settings = dict(num_train_timesteps=50, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=True)
    torch.manual_seed(0)
    x, y, null = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 3]), torch.full((3,), 4)
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    if sampler == "ddim":
        scheduler, options = DDIMScheduler(**settings, set_alpha_to_one=True), dict(use_clipped_model_output=True)
        scheduler.set_timesteps(10)
        found = last(ddim(unet, SHORT, x, y, 10, 2.5)).x
    else:
        scheduler, options = DDPMScheduler(**settings, variance_type="fixed_large"), dict(generator=theirs)
        found = last(ddpm(unet, SHORT, x, y, ours, guidance_scale=2.5)).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps, without = (unet(x, t.repeat(3), condition) for condition in (y, null))
            x = scheduler.step(without + 2.5 * (eps - without), t, x, **options).prev_sample
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_equals_diffusers(unet, variance, clip):
    settings = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=clip)
    scheduler = DDPMScheduler(num_train_timesteps=50, variance_type=f"fixed_{variance}", **settings)
    torch.manual_seed(0)
    noise, y = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 3, 4])
    x, generator = noise, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t.repeat(4), y), t, x, generator=generator).prev_sample
    generator.manual_seed(1)
    ours = last(ddpm(unet, SHORT, noise, y, generator, variance, clip_x0=clip)).x
    scale = max(1.0, x.abs().max().item())
    torch.testing.assert_close(ours / scale, x / scale, rtol=0, atol=2e-5)


def test_ddpm_refuses_an_unknown_variance(unet):
    with pytest.raises(ValueError, match="unknown variance 'learned'; known: large, small"):
        next(ddpm(unet, NoiseSchedule(), torch.randn(1, 1, 8, 8), torch.tensor([0]), torch.Generator(), "learned"))


def test_timesteps():
    assert ddim_timesteps(1000, 50)[:2] == [980, 960] and ddim_timesteps(1000, 50)[-1] == 0
    assert ddim_timesteps(1000, 1000) == list(range(999, -1, -1))
    for steps in range(1, 1001):  # no two alike, and the first no further from T than the others from one another
        grid = ddim_timesteps(1000, steps)
        gaps = [a - b for a, b in zip([1000, *grid], grid, strict=False)]
        assert len(grid) == steps and grid[-1] == 0 and max(gaps) - min(gaps) <= 1
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=r"steps must be in 1\.\.1000"):
            ddim_timesteps(1000, steps)


class KnowsTheImage(torch.nn.Module):
    """The exact noise predictor of a data set that holds one image per class."""

    num_classes, in_channels = 4, 1

    def __init__(self, images):
        super().__init__()
        self.images, self.schedule = torch.nn.Parameter(images), NoiseSchedule()

    def forward(self, x, t, y):
        return self.schedule.x0_to_eps(x, t, self.images[y])


def test_ddim_reaches_the_only_image_there_is():
    images = torch.rand(4, 1, 8, 8).mul(2).sub(1)
    labels = torch.tensor([3, 0, 2])
    x = last(ddim(KnowsTheImage(images), NoiseSchedule(), torch.randn(3, 1, 8, 8), labels, 20)).x
    torch.testing.assert_close(x, images[labels], rtol=0, atol=1e-4)


def test_guidance_convention(unet, inputs):
    x, t, y = inputs
    with torch.no_grad():
        eps, null = unet(x, t, y), unet(x, t, torch.full_like(y, 4))
        assert torch.equal(guided_eps(unet, x, t, y, 1.0), eps)
        torch.testing.assert_close(guided_eps(unet, x, t, y, 0.0), null, rtol=1e-4, atol=1e-5)
        # the field's (1 + w) form, w = 1.5
        torch.testing.assert_close(guided_eps(unet, x, t, y, 2.5), 2.5 * eps - 1.5 * null, rtol=1e-4, atol=1e-4)


def test_sample_is_reproducible_whatever_the_batch_size(unet):
    y = balanced_labels(4, 3)
    one = sample(unet, NoiseSchedule(), y, 8, seed=3, steps=4)
    assert one.dtype == torch.uint8 and one.shape == (12, 1, 8, 8)
    other = sample(unet, NoiseSchedule(), y, 8, seed=3, steps=4, batch_size=5)
    assert (one.int() - other.int()).abs().max() <= 1  # float summation order may move a rounding
    assert not torch.equal(one, sample(unet, NoiseSchedule(), y, 8, seed=4, steps=4))


@pytest.mark.parametrize(("size", "batches"), [(64, [20]), (1024, [16, 4])])
def test_large_images_are_sampled_few_at_a_time(unet, size, batches, monkeypatch):
    monkeypatch.setattr(sampling, "ddim", lambda model, schedule, x, *_: [sampling.SamplerStep(0, x, x)])
    y = torch.zeros(20, dtype=torch.int64)
    assert [len(images) for images in sampling.sample_batches(unet, NoiseSchedule(), y, size)] == batches


def test_a_model_with_a_way_of_its_own_is_sampled_by_it(unet):
    unet.sample_batches = lambda y, image_size, *_: iter([torch.full((len(y), 3, image_size, image_size), 7)])
    assert (sample(unet, NoiseSchedule(), balanced_labels(4, 1), 8) == torch.full((4, 3, 8, 8), 7)).all()


def test_sample_evaluates_without_dropout_and_leaves_the_mode_as_it_was():
    from conftest import make_unet

    model = make_unet(dropout=0.5).train()
    y = balanced_labels(4, 1)
    first, second = (sample(model, NoiseSchedule(), y, 8, steps=3) for _ in range(2))
    assert torch.equal(first, second) and model.training


def test_balanced_labels():
    assert balanced_labels(3, 2).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("y", [torch.tensor([0, 5]), torch.tensor([-1]), torch.tensor([], dtype=torch.int64)])
def test_labels_out_of_range(unet, y):
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        sample(unet, NoiseSchedule(), y, 8)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_every_step_says_its_time_its_state_and_the_image_implied_there(unet, sampler):
    schedule, y = SHORT, torch.tensor([0, 1, 3])
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if sampler == "ddim":
        steps, grid = list(ddim(unet, schedule, x, y, 5)), ddim_timesteps(50, 5)
    else:
        steps, grid = list(ddpm(unet, schedule, x, y, torch.Generator().manual_seed(1))), list(range(49, -1, -1))
    assert [step.t for step in steps] == grid
    for step in steps:
        t = torch.full_like(y, step.t)
        with torch.no_grad():
            expected = schedule.eps_to_x0(x, t, unet(x, t, y)).clamp(-1, 1)
        torch.testing.assert_close(step.x0, expected)
        assert not step.x.requires_grad, "no graph through all steps is kept"
        x = step.x
    torch.testing.assert_close(x, expected)  # the last goes to alpha_bar = 1


def test_sample_is_ddim_from_its_seeds_noise_with_so_many_steps_and_clipping(unet):
    y = torch.tensor([0, 3, 4, 4])  # the last two without a class
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    *_, step = ddim(unet, NoiseSchedule(), noise, y, 4, 2.0, clip_x0=True)
    assert torch.equal(sample(unet, NoiseSchedule(), y, 8, seed=3, steps=4, guidance_scale=2.0), to_uint8(step.x))
    assert not unet.training
