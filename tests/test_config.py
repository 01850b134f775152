import json

import pytest

from callkit.config import PROFILES, TrainConfig, make_config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dataset="mnist"), "unknown dataset 'mnist'; known: digits, fashion-mnist, cifar10"),
        (dict(method="gan"), "unknown method 'gan'; known: ddpm, focal"),
        (dict(profile="huge"), "unknown profile 'huge'; known: smoke, cpu, gpu, paper"),
        (dict(allocation="loose"), "unknown allocation 'loose'; known: paper, released, bounded"),
        (dict(imbalance_ratio=0.5), "imbalance_ratio must be at least 1, or None, got 0.5"),
        (dict(imbalance_ratio=float("nan")), "imbalance_ratio must be at least 1, or None, got nan"),
        (dict(rank=0), r"rank must be in \(0, 1\]"),
        (dict(rank=1.1), r"rank must be in \(0, 1\]"),
        (dict(bound=-1.0), "bound must be positive"),
        (dict(bound_form="hard"), "bound_form must be one of exponential, cap, relative"),
        (dict(lr=0), "lr must be positive"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(steps=1.5), "steps must be an integer, got 1.5"),
        (dict(lr="fast"), "lr must be a number, got 'fast'"),
        (dict(channel_mult=1), "channel_mult must be a tuple of integers, got 1"),
        (dict(channels=30), "channels must be a multiple of 4"),
        (dict(learning_rate=1), "unknown setting 'learning_rate'; known: .*lr"),
    ],
)
def test_refuses_and_says_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_config(**arguments)


def test_the_papers_recipe():
    c = make_config("cifar100", 100, "call", "paper")
    assert (c.steps, c.warmup, c.batch_size, c.lr, c.dropout) == (300_000, 5_000, 64, 2e-4, 0.1)
    assert (c.channels, c.channel_mult, c.rank, c.lam) == (128, (1, 2, 2, 2), 0.1, 1.0)


def test_overrides_win():
    c = make_config(profile="smoke", allocation="paper", steps=7)
    assert c.steps == 7 and c.bound is None and c.batch_size == PROFILES["smoke"]["batch_size"]


def test_survives_json():
    c = make_config("cifar10", 50, "ddpm", "gpu", 3)
    assert TrainConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


def test_overrides_as_a_record_has_them_make_the_config_again():
    config = make_config(channel_mult=(1, 2, 2), lam=0.5, bound=None)
    overrides = json.loads(json.dumps(config.overrides()))
    assert overrides == {"channel_mult": [1, 2, 2], "lam": 0.5, "bound": None}
    assert make_config(**config.words(), **overrides) == config
