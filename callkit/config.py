"""One run's settings, and the tables they come from: data set, method, profile.

Later tables override earlier ones; keyword arguments override all. Nothing is hidden elsewhere.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields

from callkit.allocation import BOUND_FORMS, PRESETS
from callkit.capacity import RANK, WHERE
from callkit.objectives import CBDM_PRIORS, OBJECTIVES, OC_MODES, option_names
from callkit.unet import check_sizes

# The network and what goes with the images.
_CIFAR = dict(channels=128, channel_mult=(1, 2, 2, 2), attention_levels=(1,), num_res_blocks=2, flip=True)
_SMALL = dict(channels=24, channel_mult=(1, 2), attention_levels=(1,), num_res_blocks=1, flip=False)
NETWORKS: dict[str, dict] = {
    "digits": _SMALL,
    "fashion-mnist": _SMALL,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "celeba-hq": _CIFAR | dict(attention_levels=(2,)),  # at 16 x 16, as for CIFAR
    "imagefolder": _CIFAR | dict(attention_levels=(2,), flip=False),
}

METHODS: dict[str, dict] = {
    "ddpm": dict(base="ddpm", call=False),
    "focal": dict(base="focal", call=False),
    "cbdm": dict(base="cbdm", call=False),
    "oc": dict(base="oc", call=False),
    "rs": dict(base="ddpm", call=False, resample=1.0),
    "rs-sqrt": dict(base="ddpm", call=False, resample=0.5),
    "ada": dict(base="ddpm", call=False, augment=True),
    "call": dict(base="ddpm", call=True),
    "cbdm-call": dict(base="cbdm", call=True),
    "oc-call": dict(base="oc", call=True),  # the paper's choice of base
    "rs-sqrt-call": dict(base="ddpm", call=True, resample=0.5),
}
TITLES: dict[str, str] = {  # of the methods, in tables and figures, and in their order
    "ddpm": "DDPM",
    "rs": "RS",
    "rs-sqrt": "RS, square root",
    "ada": "ADA",
    "focal": "focal",
    "cbdm": "CBDM",
    "oc": "OC",
    "call": "CALL",
    "cbdm-call": "CBDM + CALL",
    "oc-call": "OC + CALL",
    "rs-sqrt-call": "RS, square root + CALL",
}


def without_call(method: str) -> str:
    """The method that this one is without CALL: itself, if it has none."""
    return method.removesuffix("call").removesuffix("-") or "ddpm"


# Without effect unless a method has `call`: of capacity and of the allocation loss.
OF_CALL = (
    *("rank", "where", "lam", "consistency", "diversity", "bound"),
    *("bound_form", "stop_gradient", "centred", "branch_share"),
)

# Of these, with the preset's own word, those of the allocation loss: without effect where it weighs nothing.
OF_ALLOCATION = ("allocation", "consistency", "diversity", "bound", "bound_form", "stop_gradient", "centred")

# smoke: seconds, for tests, never a result. cpu: minutes, what the book shows. gpu: meant for about an hour on one GPU;
# not timed. paper: Section 5.1.
PROFILES: dict[str, dict] = {
    "smoke": dict(steps=20, warmup=5, ema_decay=0.9, batch_size=16, log_every=5, checkpoint_every=10),
    "cpu": dict(steps=6_000, lr=5e-4, warmup=200, ema_decay=0.999, batch_size=64, log_every=50, checkpoint_every=500),
    "gpu": dict(steps=30_000, warmup=1_000, ema_decay=0.9995, batch_size=64, log_every=100, checkpoint_every=2_000),
    "paper": dict(steps=300_000, warmup=5_000, ema_decay=0.9999, batch_size=64, log_every=100, checkpoint_every=5_000),
}

# How a profile's runs are sampled for evaluation: images overall and in each split (None: those of the overall set that
# are of its classes), equally many of each class, and DDIM steps.
SAMPLING: dict[str, dict] = {
    "smoke": dict(images=100, per_split=None, steps=5),
    "cpu": dict(images=3_000, per_split=None, steps=50),
    "gpu": dict(images=10_000, per_split=None, steps=50),
    "paper": dict(images=50_000, per_split=20_000, steps=50),
}
GUIDANCE_SCALE = 1.0  # 1 is none; see sampling for the convention


def usual_images(profile: str, num_classes: int) -> int:
    """How many images an evaluation samples overall unless told otherwise: equally many of each class."""
    return SAMPLING[profile]["images"] // num_classes * num_classes


def default_extractor(dataset: str, profile: str) -> str:
    """`digits` for digits; else the paper's in the profile `paper`, and `lite0`, which needs no download, in others."""
    if dataset == "digits":
        return "digits"
    return "inception" if profile == "paper" else "lite0"


WORDS = ("dataset", "imbalance_ratio", "method", "profile", "seed")  # the five that name a run


class Settings:
    """What settings can do: a frozen dataclass that has the five words among its fields."""

    def to_dict(self) -> dict:
        """JSON-ready: tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def words(self) -> dict:
        """The five that name the run."""
        return {name: getattr(self, name) for name in WORDS}

    @classmethod
    def from_dict(cls, values: dict):
        """Settings from those of a checkpoint or record. ValueError for a name that there is not."""
        check_names(cls, values)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def differing(settings: Settings, plain: Settings) -> dict:
    """The settings whose values are not those of `plain`, JSON-ready."""
    values = plain.to_dict()
    return {k: v for k, v in settings.to_dict().items() if v != values[k]}


def other_words(settings: Settings, saved: dict) -> str:
    """How `settings` differ from those saved in a checkpoint or record; "" if they do not. ValueError if the saved ones
    are of another kind."""
    saved = type(settings).from_dict(saved).to_dict()
    return "; ".join(f"{k}: {saved[k]!r} there, {v!r} now" for k, v in settings.to_dict().items() if saved[k] != v)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Everything that decides a training run. Build it with `make_config`."""

    # the words that name the run
    dataset: str
    imbalance_ratio: float | None  # None: the data set's own counts
    method: str
    profile: str
    seed: int
    # method
    base: str  # L_base, a key of objectives.OBJECTIVES
    call: bool  # add the capacity allocation loss
    # schedule of the run
    steps: int
    warmup: int  # steps of linear learning-rate warm-up
    ema_decay: float  # after a ramp: min(ema_decay, (1 + step) / (10 + step))
    batch_size: int
    log_every: int  # steps averaged into one record
    checkpoint_every: int
    # network
    channels: int
    channel_mult: tuple[int, ...]
    attention_levels: tuple[int, ...]
    num_res_blocks: int
    flip: bool  # mirror training images at random; with `augment` that is the pipeline's to do
    # capacity, Eq. (3), and allocation, Eq. (4)-(6); without effect unless `call`
    rank: float = 0.1
    where: str = "up"
    lam: float = 1.0
    consistency: float = PRESETS["bounded"]["consistency"]
    diversity: float = PRESETS["bounded"]["diversity"]
    bound: float | None = PRESETS["bounded"]["bound"]
    bound_form: str = "exponential"
    stop_gradient: bool = False
    centred: bool = False
    branch_share: float = 1.0  # share of the batch that is predicted twice; below 1 an unbiased estimate, and cheaper
    # optimisation, Section 5.1
    lr: float = 2e-4
    cooldown: int = 0  # steps of linear learning-rate decay towards 0 at the end
    dropout: float = 0.1
    label_drop: float = 0.1  # share of samples trained with the Null condition, for guidance
    grad_clip: float = 1.0
    precision: str = "fp32"  # or "bf16": matrix products in bfloat16, weights and losses in float32
    # the data's and the base loss's own words
    image_size: int | None = None  # None: the data set's own
    held_out: float = 0.0  # share of each class that is never trained on, where imbalance_ratio is None
    redraw: bool = False  # with each seed another subset of the data, in place of the field's published one
    resample: float = 0.0  # class shares in a batch: N_c^(1 - resample), so 0 natural, 0.5 square root, 1 balanced
    augment: bool = False  # ADA: warp the images and tell the network how
    base_options: dict = field(default_factory=dict)  # keyword arguments of the objective

    def overrides(self) -> dict:
        """Settings that differ from what the words alone stand for, JSON-ready."""
        return differing(self, make_config(**self.words()))


def choose(table: dict[str, dict], kind: str, name: str) -> dict:
    """table[name], or a ValueError that lists what there is."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return table[name]


def check_names(kind: type[Settings], overrides: dict) -> None:
    """ValueError if there is no such setting."""
    known = {f.name for f in fields(kind)}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")


_COUNT = (lambda v: v >= 1, "at least 1")
_POSITIVE = (lambda v: v > 0, "positive")
_SHARE = (lambda v: 0 <= v <= 1, "in [0, 1]")
_NOT_NEGATIVE = (lambda v: v >= 0, "at least 0")
CHECKS: dict[str, tuple[Callable, str]] = {  # of settings by name: what is fine, and how to say it
    "imbalance_ratio": (lambda v: v is None or v >= 1, "at least 1, or None"),
    "seed": _NOT_NEGATIVE,
    "base": (lambda v: v in OBJECTIVES, f"one of {', '.join(OBJECTIVES)}"),
    "steps": _COUNT,
    "warmup": _NOT_NEGATIVE,
    "cooldown": _NOT_NEGATIVE,
    "batch_size": _COUNT,
    "log_every": _COUNT,
    "checkpoint_every": _COUNT,
    "channel_mult": (lambda v: v and min(v) >= 1, "one positive factor a level"),
    "num_res_blocks": _COUNT,
    "where": (lambda v: v in WHERE, f"one of {', '.join(WHERE)}"),
    "rank": RANK,
    "lam": _NOT_NEGATIVE,
    "consistency": _NOT_NEGATIVE,
    "diversity": _NOT_NEGATIVE,
    "bound": (lambda v: v is None or v > 0, "positive, or None for the printed loss"),
    "image_size": (lambda v: v is None or v >= 1, "at least 1, or None for the data set's own"),
    "bound_form": (lambda v: v in BOUND_FORMS, f"one of {', '.join(BOUND_FORMS)}"),
    "branch_share": (lambda v: 0 < v <= 1, "in (0, 1], a share of the batch"),
    "precision": (lambda v: v in ("fp32", "bf16"), "fp32 or bf16"),
    "lr": _POSITIVE,
    "ema_decay": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "dropout": (lambda v: 0 <= v < 1, "in [0, 1)"),
    "label_drop": _SHARE,
    "grad_clip": _POSITIVE,
    "resample": _SHARE,
    "held_out": (lambda v: 0 <= v < 1, "in [0, 1)"),
}
# of base_options by name
_STRENGTH = (lambda v: type(v) in (int, float) and 0 <= v < math.inf, "a number, at least 0")
OPTION_CHECKS: dict[str, tuple[Callable, str]] = {
    "gamma": _STRENGTH,
    "tau": _STRENGTH,
    "prior": (lambda v: v in CBDM_PRIORS, f"one of {', '.join(CBDM_PRIORS)}"),
    "mode": (lambda v: v in OC_MODES, f"one of {', '.join(OC_MODES)}"),
}


def check_values(settings: Settings, checks: dict[str, tuple[Callable, str]] = CHECKS) -> None:
    """ValueError naming a setting of the wrong type or out of range, what came and what is allowed."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        if f.type is int and not isinstance(value, int):
            raise ValueError(f"{f.name} must be an integer, got {value!r}")
        if f.type == int | None and not isinstance(value, int | None):
            raise ValueError(f"{f.name} must be an integer or None, got {value!r}")
        if f.type is str and not isinstance(value, str):
            raise ValueError(f"{f.name} must be a text, got {value!r}")
        if f.type in (bool, dict) and not isinstance(value, f.type):
            raise ValueError(f"{f.name} must be {'True or False' if f.type is bool else 'a dictionary'}, got {value!r}")
        if f.type is float and not isinstance(value, int | float):
            raise ValueError(f"{f.name} must be a number, got {value!r}")
        if f.type == float | None and not isinstance(value, int | float | None):
            raise ValueError(f"{f.name} must be a number or None, got {value!r}")
        if f.type == tuple[int, ...] and not (isinstance(value, tuple) and all(isinstance(v, int) for v in value)):
            raise ValueError(f"{f.name} must be a tuple of integers, got {value!r}")
        fine, allowed = checks.get(f.name, (lambda v: True, ""))
        if not fine(value):
            raise ValueError(f"{f.name} must be {allowed}, got {value}")
        if (isinstance(value, bool) and f.type is not bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{f.name} must not be {value!r}")
    allowed = option_names(settings.base)
    if unknown := sorted(set(settings.base_options) - set(allowed)):
        known = ", ".join(allowed) or "none"
        raise ValueError(f"unknown base_options {unknown[0]!r} for base {settings.base}; known: {known}")
    for name, value in settings.base_options.items():
        fine, allowed = OPTION_CHECKS.get(name, (lambda v: True, ""))
        if not fine(value):
            raise ValueError(f"base_options {name!r} must be {allowed}, got {value!r}")


def check_effects(settings: Settings, allocation: str, overrides: dict, of_call: tuple[str, ...] = OF_CALL) -> None:
    """ValueError naming what was asked for and would change nothing but the name of the run."""
    given = [name for name in of_call if name in overrides]
    if allocation != "bounded":
        given.insert(0, "allocation")
    idle = {
        f"without CALL, which method {settings.method} does not have": given if not settings.call else (),
        "with lam=0": OF_ALLOCATION if settings.lam == 0 else (),
        "with diversity=0": ("allocation", "bound", "bound_form") if settings.diversity == 0 else (),
        "with bound=None": ("bound_form",) if settings.bound is None else (),
    }
    for why, names in idle.items():
        if without_effect := [name for name in given if name in names]:
            raise ValueError(f"{without_effect[0]} has no effect {why}")


def make_config(
    dataset: str = "digits",
    imbalance_ratio: float | None = 50,
    method: str = "call",
    profile: str = "cpu",
    seed: int = 0,
    allocation: str = "bounded",
    **overrides,
) -> TrainConfig:
    """Look the words up, apply the overrides, and check every value before any work is done.

    ValueError naming the argument, what came and what is allowed.
    """
    from callkit import data  # here, for it needs this module

    settings = (
        choose(NETWORKS, "dataset", dataset.partition(":")[0])
        | choose(METHODS, "method", method)
        | choose(PROFILES, "profile", profile)
        | choose(PRESETS, "allocation", allocation)
        | overrides
    )
    words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, method=method, profile=profile, seed=seed)
    config = TrainConfig.from_dict(words | settings)  # a record's overrides have lists where a config has tuples
    check_values(config)
    check_effects(config, allocation, overrides)
    if config.augment and "flip" in overrides:
        raise ValueError("flip has no effect with augment, whose warps mirror images themselves")
    levels = len(config.channel_mult)
    check_sizes(config.channels, levels, config.attention_levels)
    data.check_held_out(config.held_out, imbalance_ratio)
    size, shrinks = data.chosen_size(dataset, config.image_size), 2 ** (levels - 1)
    if size % shrinks:
        raise ValueError(
            f"image_size must be a multiple of {shrinks} for the {levels} levels of channel_mult, got {size}"
            + ("" if config.image_size else ", the data set's own")
        )
    return config
