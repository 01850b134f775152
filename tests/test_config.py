import dataclasses
import json

import pytest

from callkit import records
from callkit.config import OF_CALL, OPTION_CHECKS, PROFILES, WORDS, TrainConfig, make_config
from callkit.objectives import OBJECTIVES, option_names
from callkit.training import train


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
        (dict(rank=1), r"rank must be in \(0, 1\], a share of min\(d, k\) such as 0\.1, or 1\.0 for full rank, got 1"),
        (dict(bound=-1.0), "bound must be positive"),
        (dict(bound_form="hard"), "bound_form must be one of exponential, cap, relative"),
        (dict(lr=0), "lr must be positive"),
        (dict(steps=0), "steps must be at least 1"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(steps=1.5), "steps must be an integer, got 1.5"),
        (dict(steps=True), "steps must not be True"),
        (dict(lam=float("nan")), "lam must be at least 0, got nan"),
        (dict(bound=float("inf")), "bound must not be inf"),
        (dict(dataset="celeba-hq", image_size="big"), "image_size must be an integer or None, got 'big'"),
        (dict(dataset="celeba-hq", image_size=32.0), "image_size must be an integer or None, got 32.0"),
        (dict(dataset="celeba-hq", image_size=0), "image_size must be at least 1, or None for the data set's own"),
        (dict(lr="fast"), "lr must be a number, got 'fast'"),
        (dict(channel_mult=1), "channel_mult must be a tuple of integers, got 1"),
        (dict(channels=30), "channels must be a multiple of 4"),
        (dict(base="gan"), "base must be one of ddpm, focal, cbdm, oc, got gan"),
        (dict(where="up-conv"), "where must be one of up-conv3x3, up, up-emb, up-no-emb, up-tail, all, got up-conv"),
        (dict(where=3), "where must be a text, got 3"),
        (dict(num_res_blocks=0), "num_res_blocks must be at least 1, got 0"),
        (dict(warmup=-1), "warmup must be at least 0, got -1"),
        (dict(cooldown=-1), "cooldown must be at least 0, got -1"),
        (dict(attention_levels=(0, 2)), r"attention_levels must lie in 0\.\.1, got \(0, 2\)"),
        (dict(attention_levels=(-1,)), r"attention_levels must lie in 0\.\.1, got \(-1,\)"),
        (dict(base_options={"gamma": 1.0}), "unknown base_options 'gamma' for base ddpm; known: none"),
        (dict(method="cbdm", base_options={"taw": 1.0}), "unknown base_options 'taw' for base cbdm; known: tau, gamma"),
        (dict(lam=-0.5), "lam must be at least 0, got -0.5"),
        (dict(consistency=-1), "consistency must be at least 0, got -1"),
        (dict(diversity=-1.0), "diversity must be at least 0, got -1.0"),
        (dict(method="oc", base_options={"mode": 1}), "base_options 'mode' must be one of t2h, h2t, full, got 1"),
        (dict(method="cbdm", base_options={"prior": "flat"}), "base_options 'prior' must be one of train, uniform"),
        (dict(method="cbdm", base_options={"tau": "1"}), "base_options 'tau' must be a number, at least 0, got '1'"),
        (
            dict(method="focal", base_options={"gamma": -1.0}),
            "base_options 'gamma' must be a number, at least 0, got -1",
        ),
        (
            dict(method="focal", base_options={"gamma": True}),
            "base_options 'gamma' must be a number, at least 0, got Tr",
        ),
        (dict(channel_mult=(1,) * 5), "a multiple of 16 for the 5 levels of channel_mult, got 8, the data set's own"),
        (
            dict(dataset="imagefolder:birds", channel_mult=(1,) * 8),
            "a multiple of 128 for the 8 levels of channel_mult, got 64, the data set's own",
        ),
        (dict(held_out=0.1), "held_out is for a data set's own counts .*; at 50 the images left out are held out al"),
        (dict(dataset="digits:x"), "unknown dataset 'digits:x'; known: digits, .*, imagefolder:PATH"),
        (dict(dataset="imagefolder"), "unknown dataset 'imagefolder'; known: .*, imagefolder:PATH"),
        (dict(dataset="imagefolder:"), "unknown dataset 'imagefolder:'; known: .*, imagefolder:PATH"),
        (dict(image_size=16), "image_size of digits can be 8; got 16"),
        (dict(dataset="imagefolder:birds", image_size=2048), "image_size of imagefolder:birds can be 4 to 1024; got 2"),
        (dict(method="ddpm", lam=3.0), "lam has no effect without CALL, which method ddpm does not have"),
        (dict(method="rs", branch_share=0.5), "branch_share has no effect without CALL, which method rs"),
        (dict(method="oc", allocation="paper"), "allocation has no effect without CALL, which method oc does not have"),
        (dict(bound=None, bound_form="cap"), "bound_form has no effect with bound=None"),
        (dict(allocation="paper", bound_form="cap"), "bound_form has no effect with bound=None"),
        (dict(diversity=0.0, bound_form="cap"), "bound_form has no effect with diversity=0"),
        (dict(diversity=0.0, bound=0.2), "bound has no effect with diversity=0"),
        (dict(diversity=0.0, allocation="paper"), "allocation has no effect with diversity=0"),
        *(
            (dict(lam=0.0) | {name: value}, f"{name} has no effect with lam=0")
            for name, value in dict(
                consistency=0.5,
                diversity=0.5,
                bound=0.2,
                bound_form="cap",
                stop_gradient=True,
                centred=True,
                allocation="released",
            ).items()
        ),
        (dict(dataset="cifar10", method="ada", flip=False), "flip has no effect with augment, whose warps mirror"),
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


@pytest.mark.parametrize(("base", "names"), [("ddpm", []), ("focal", ["gamma"]), ("oc", ["mode"])])
def test_the_options_of_a_base_loss(base, names):
    assert option_names(base) == names
    values = {"gamma": 2, "mode": "full"}
    assert make_config(base=base, base_options={k: values[k] for k in names}).base_options.keys() == set(names)


def test_every_option_of_a_base_loss_is_checked():
    assert {name for base in OBJECTIVES for name in option_names(base)} == OPTION_CHECKS.keys()


def test_every_record_can_be_run_again():
    for record in (json.loads(p.read_text()) for p in records.results_folder().glob("*.json")):
        if isinstance(record, dict) and "overrides" in record.get("run", {}):
            run = record["run"]
            words = {name: run[name] for name in WORDS}
            assert make_config(**words, **run["overrides"]) == TrainConfig.from_dict(record["config"])


def test_settings_of_call_do_nothing_without_it(tmp_path):
    plain = make_config(method="ddpm", profile="smoke")
    changed = {name: 0.5 if isinstance(getattr(plain, name), float) else getattr(plain, name) for name in OF_CALL}
    other = dataclasses.replace(plain, **changed)
    assert other != plain and {f.name for f in dataclasses.fields(plain)} >= set(OF_CALL)
    one, two = ([r.loss for r in train(c, tmp_path / name)] for c, name in ((plain, "a"), (other, "b")))
    assert one == two
