# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-quickstart)=
# # 00 · Quickstart
#
# **Objective.** See in one minute what CALL does to the rare classes of an imbalanced data set.
# **Prerequisites.** You have met a diffusion model before. **Time.** 5 minutes to read, about 20 seconds to run on a laptop.
#
# Two small diffusion models come with this book. Both were trained on handwritten digits of which there are 174 zeros
# but only 3 nines ({doc}`01_long_tailed_data`). One is an ordinary DDPM {cite:p}`ho2020ddpm`. The other was trained
# with CALL {cite:p}`call2025`, which keeps two sets of parameters in one network:
#
# * $\theta^g$ holds majority and general knowledge;
# * $\theta = \theta^g \oplus \theta^e$ adds a low-rank {term}`expert` $\theta^e$ that is *reserved* for the minorities.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released models
sampling_seed = 1

# %%
import torch

from callkit import data, sampling, viz
from callkit.config import SAMPLING
from callkit.diffusion import NoiseSchedule
from callkit.records import results_folder
from callkit.training import load_model

viz.style()


def released(method, weights):
    path = (
        results_folder()
        / f"{dataset}-ir{imbalance_ratio}-{method}-{profile}-seed{seed}.safetensors"
    )
    return load_model(path, weights)


ddpm, config = released("ddpm", "theta")
theta, _ = released("call", "theta")
theta_g, _ = released("call", "theta_g")
print(
    f"{sum(p.numel() for p in theta.parameters()):,} parameters each, trained for {config.steps:,} steps"
)

# %% [markdown]
# ## Three models, every class
#
# The three networks have the same shape and cost the same to run: the expert is merged into the weights. Each is given
# the same noise, so differences in a column are the networks' alone.

# %%
full = data.load(dataset)
per_class = 4
labels = sampling.balanced_labels(full.num_classes, per_class)


def draw(model, y=labels):
    return sampling.sample(
        model,
        NoiseSchedule(),
        y,
        full.images.shape[-1],
        seed=sampling_seed,
        steps=SAMPLING[profile]["steps"],
    )


samples = {
    "real": None,
    "DDPM": draw(ddpm),
    "CALL, θᵍ": draw(theta_g),
    "CALL, θ": draw(theta),
}

# %% tags=["hide-input", "save:quickstart.png"] mystnb={"figure": {"caption": "Samples of DDPM, of CALL without its expert (θᵍ) and of CALL (θ), four per class from the same noise, below four real images per class. Upper block: the five largest classes; lower block: the five rarest, 9 being the rarest of all. Profile cpu, IR 50, training seed 0.", "name": "fig-quickstart"}, "image": {"alt": "Two blocks of four rows of small digit images. In the upper block, digits 0 to 4, all rows show clear digits. In the lower block, digits 5 to 9, the row of CALL without its expert has lost the digits, while CALL with its expert shows them.", "classes": "dark-light"}}
samples["real"] = torch.cat(
    [
        full.images[full.labels == c][20 : 20 + per_class]
        for c in range(full.num_classes)
    ]
)
half = len(labels) // 2
viz.image_rows(
    [
        images[part]
        for part in (slice(None, half), slice(half, None))
        for images in samples.values()
    ],
    [f"{name}  {block}" for block in ("0–4", "5–9") for name in samples],
)

# %% [markdown]
# Read the lower block. Without its expert, CALL's network *cannot* draw the rare digits: whatever it knows about them is
# in $\theta^e$. With the expert it can. On the common digits of the upper block the expert changes next to nothing. That
# is the division of labour that the method asks for, and {doc}`02_general_and_expert` measures it.
#
# ```{margin} In the paper
# This is Table 4's comparison, made visible.
# ```
#
# ## The expert dial
#
# Since $W = W^g + s\,BA$, the expert can also be turned up gradually, from $s = 0$ ($\theta^g$) to $s = 1$ ($\theta$).
# `expert_scale` does so on a network that keeps its decomposition. Move the slider:

# %%
from callkit.capacity import expert_scale

reserved, _ = released("call", "reserved")
rarest = labels[-4 * per_class :]
dial = [i / 10 for i in range(11)]
frames = []
for scale in dial:
    with expert_scale(reserved, scale):
        frames.append(draw(reserved, rarest))

# %% tags=["hide-input"]
names = [str(c) for c in rarest[::per_class].tolist()]
viz.frame_slider(
    [
        viz.png(viz.image_rows(list(images.split(per_class)), names, size=0.6))
        for images in frames
    ],
    [f"s = {scale:.1f}" for scale in dial],
    [
        f"Samples of the four rarest digits with the expert scaled by {scale:.1f}."
        for scale in dial
    ],
    "expert scale s",
)

# %% [markdown]
# *The four rarest digits, four samples each from fixed noise, as the expert is turned up.*
#
# ## Train one yourself
#
# From the repository's folder, with a progress bar and a checkpoint that a second call goes on from:
#
# ```bash
# python -m callkit train --dataset digits --imbalance-ratio 50 --method call --profile cpu --seed 0
# python -m callkit evaluate runs/digits-ir50/call-cpu/seed0
# ```
#
# {doc}`03_training` does the same from a notebook.
#
# ```{admonition} Pitfall
# :class: warning
# These are 8 × 8 digits and networks of 0.4 million parameters. They show the mechanism, honestly measured; they do not
# show what the paper's 36-million-parameter network does on CIFAR.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-dial-beyond
# Nothing stops you at $s = 1$. What do you expect at $s = 2$, and what happens?
# ```
#
# ```{solution-start} ex-dial-beyond
# :class: dropdown
# ```
#
# Training only ever saw $s = 0$ and $s = 1$. Beyond 1 the network extrapolates.

# %% mystnb={"image": {"alt": "Four rows of four samples of the rarest digits with the expert doubled.", "classes": "dark-light"}}
with expert_scale(reserved, 2.0):
    doubled = draw(reserved, rarest)
viz.image_rows(list(doubled.split(per_class)), names, size=0.6)
# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-same-noise
# Draw the same classes with `sampling_seed = 2`. Is the difference between $\theta$ and $\theta^g$ a matter of the
# noise?
# ```
#
# ```{solution-start} ex-same-noise
# :class: dropdown
# ```

# %% mystnb={"image": {"alt": "Two rows of samples of the rarest digits from another seed: CALL without its expert above, CALL below.", "classes": "dark-light"}}
pair = [
    sampling.sample(m, NoiseSchedule(), rarest, full.images.shape[-1], seed=2)
    for m in (theta_g, theta)
]
viz.image_rows(pair, ["θᵍ", "θ"])

# %% [markdown]
# ```{solution-end}
# ```
#
# **Take-away.** One network, two sets of parameters, and a dial between them.
# **Next.** {doc}`01_long_tailed_data`: where the imbalance comes from.
