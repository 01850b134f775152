"""The settings of a fine-tuning run of Stable Diffusion (`lora`), and the tables they come from."""

import math
from dataclasses import dataclass, field, replace

from callkit import config, data
from callkit.allocation import PRESETS

MODEL = "lambdalabs/miniSD-diffusers"  # the paper's: Stable Diffusion 1, fine-tuned to 256 x 256
WHERE = ("attention", "all")  # all: every matrix and convolution of the U-Net

# Data sets in colour that can be had at 256 x 256, and all methods but ADA, which has to tell the network.
DATASETS = ("artbench10", "celeba-hq", "imagefolder")
METHODS = {name: words for name, words in config.METHODS.items() if not words.get("augment")}
# As config.PROFILES. `smoke` is for a tiny random pipeline (`tiny_sd`); there is no `cpu`: a step would take minutes.
# `paper` is 100 epochs of Imb. ArtBench-10.
PROFILES: dict[str, dict] = {
    "smoke": dict(steps=4, ema_decay=0.9, batch_size=4, log_every=2, checkpoint_every=2),
    "gpu": dict(steps=2_000, ema_decay=0.999, batch_size=64, at_once=16, log_every=20, checkpoint_every=500),
    "paper": dict(ema_decay=0.9999, batch_size=64, at_once=16, log_every=100, checkpoint_every=1_000),
}
# Without effect unless a method has `call`; expert_rank must be below general_rank whatever the method.
OF_CALL = ("lam", "consistency", "diversity", "bound")
PAPER_EPOCHS, ARTBENCH_CLASS = 100, 5_000  # images of each class before it is made long-tailed


@dataclass(frozen=True)
class TuneConfig(config.Settings):
    """Everything that decides a fine-tuning run. Build it with `make_config`; names as in `config.TrainConfig`."""

    dataset: str
    imbalance_ratio: float | None
    method: str
    profile: str
    seed: int
    base: str
    call: bool  # with the expert adapter and the allocation loss
    steps: int
    ema_decay: float
    batch_size: int
    log_every: int
    checkpoint_every: int
    # the pre-trained pipeline and its adapters
    model: str = MODEL  # a name on the Hugging Face hub, or a folder
    prompt: str = "a {class} painting"
    image_size: int = 256
    general_rank: int = 128
    expert_rank: int = 8
    where: str = "attention"
    at_once: int = 64  # samples whose activations are kept for the backward pass; of larger batches, none are
    # allocation, without effect unless `call`
    lam: float = 1.0
    consistency: float = PRESETS["bounded"]["consistency"]
    diversity: float = PRESETS["bounded"]["diversity"]
    bound: float | None = PRESETS["bounded"]["bound"]
    # optimisation: AdamW at a constant rate; the paper calls 3e-4 the initial one, and names no schedule
    lr: float = 3e-4
    warmup: int = 0
    cooldown: int = 0
    weight_decay: float = 1e-6
    dropout: float = 0.1  # of what enters an adapter
    label_drop: float = 0.1  # share of samples trained with the empty prompt, for guidance
    grad_clip: float = 1.0
    resample: float = 0.0
    held_out: float = 0.0
    redraw: bool = False
    base_options: dict = field(default_factory=dict)

    def overrides(self) -> dict:
        """Settings that differ from what the words stand for. On data that pixel models know too, they stand for a
        pixel model: there `model` is always named, so that no table mixes the two."""
        named = {} if self.dataset == "artbench10" else {"model": self.model}
        return named | config.differing(self, make_config(**self.words()))


def make_config(
    dataset: str = "artbench10",
    imbalance_ratio: float | None = 100,
    method: str = "oc-call",
    profile: str = "paper",
    seed: int = 0,
    allocation: str = "bounded",
    **overrides,
) -> TuneConfig:
    """Look the words up, apply the overrides, check every value; ValueError as from `config.make_config`."""
    config.check_names(TuneConfig, overrides)
    kinds = {name: {} for name in DATASETS}
    settings = (
        config.choose(kinds, "dataset", dataset.partition(":")[0])
        | config.choose(METHODS, "method", method)
        | config.choose(PROFILES, "profile", profile)
        | config.choose(PRESETS, "allocation", allocation)
        | overrides
    )
    by_epochs = profile == "paper" and "steps" not in overrides
    tune = TuneConfig(dataset, imbalance_ratio, method, profile, seed, **({"steps": 1} if by_epochs else {}) | settings)
    count = (lambda v: v >= 1, "at least 1")
    checks = {
        "general_rank": count,
        "at_once": count,
        "expert_rank": (lambda v: 1 <= v < tune.general_rank, "at least 1 and below general_rank"),
        "where": (lambda v: v in WHERE, f"one of {', '.join(WHERE)}"),
        "prompt": (lambda v: "{class}" in v, "a text with {class} in it"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
    }
    config.check_values(tune, config.CHECKS | checks)
    config.check_effects(tune, allocation, overrides, OF_CALL)
    data.check_held_out(tune.held_out, imbalance_ratio)
    data.chosen_size(dataset, tune.image_size)
    if not by_epochs:
        return tune
    images = int(data.long_tailed_counts(ARTBENCH_CLASS, 10, imbalance_ratio or 1).sum())  # on any other data, too
    return replace(tune, steps=math.ceil(PAPER_EPOCHS * images / tune.batch_size))
