import torch
from diffusers import DDPMScheduler

from callkit.diffusion import NoiseSchedule, noised


def reference():
    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def test_alpha_bar_equals_diffusers():
    torch.testing.assert_close(NoiseSchedule().alpha_bar.float(), reference().alphas_cumprod, rtol=1e-5, atol=1e-7)


def test_q_sample_equals_diffusers():
    torch.manual_seed(0)
    x0, eps, t = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 250, 700, 999])
    torch.testing.assert_close(
        NoiseSchedule().q_sample(x0, t, eps), reference().add_noise(x0, eps, t), rtol=1e-5, atol=1e-5
    )


def test_noise_and_image_imply_each_other():
    torch.manual_seed(0)
    schedule = NoiseSchedule()
    x0, eps, t = torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4), torch.tensor([1, 100, 500, 800])
    x_t = schedule.q_sample(x0, t, eps)
    torch.testing.assert_close(schedule.eps_to_x0(x_t, t, eps), x0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(schedule.x0_to_eps(x_t, t, x0), eps, rtol=1e-3, atol=1e-4)


def test_a_moved_schedule_leaves_the_first_where_it_is():
    schedule = NoiseSchedule(torch.linspace(1e-4, 0.02, 10))
    there = schedule.to("meta")
    assert {there.alpha_bar.device.type, there.betas.device.type} == {"meta"} and there.timesteps == 10
    assert {schedule.alpha_bar.device.type, schedule.betas.device.type} == {"cpu"}


def test_noised_samples_are_where_the_model_is_all_of_them_in_order():
    x0, eps, t, y = (
        torch.randn(1001, 1, 2, 2),
        torch.randn(1001, 1, 2, 2),
        torch.arange(1001) % 1000,
        torch.arange(1001),
    )
    found = [torch.cat(a) for a in zip(*noised(torch.nn.Linear(1, 1), NoiseSchedule(), x0, t, y, eps), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(found, (NoiseSchedule().q_sample(x0, t, eps), t, y, eps), strict=True))
    elsewhere = [*noised(torch.nn.Linear(1, 1, device="meta"), NoiseSchedule(), x0, t, y, eps)]
    assert {a.device.type for part in elsewhere for a in part} == {"meta"}
    assert [len(part[0]) for part in elsewhere] == [500, 500, 1]
