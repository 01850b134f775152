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
# **Objective.** See in one minute what CALL does to the rare classes of an imbalanced data set. **Prerequisites.** You
# have met a diffusion model before. **Time.** 5 minutes to read, less than a minute to run on a laptop. **The one
# figure.** {numref}`fig-quickstart`.
#
# Two small diffusion models come with this book. Both were trained on handwritten digits of which there are 174 zeros
# but only 3 nines ({doc}`02_long_tailed_data`). One is an ordinary *denoising diffusion probabilistic model*, DDPM
# {cite:p}`ho2020ddpm`. The other was trained with CALL {cite:p}`call2025`, which keeps two sets of parameters in one
# network:
#
# * $\theta^g$ is meant to hold majority and general knowledge;
# * $\theta = \theta^g \oplus \theta^e$ adds a low-rank {term}`expert` $\theta^e$ that is *reserved* for the minorities.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released models
sampling_seed = 1

# %%
import torch

from callkit import data, notebook, sampling, sliders, viz
from callkit.checkpoints import load_model
from callkit.config import SAMPLING
from callkit.diffusion import NoiseSchedule

notebook.check(
    dataset=dataset,
    imbalance_ratio=imbalance_ratio,
    profile=profile,
    seed=seed,
    sampling_seed=sampling_seed,
)
viz.style()


def released(method, weights):
    path = notebook.released(dataset, imbalance_ratio, method, profile, seed)
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
real = data.load_long_tailed(dataset, imbalance_ratio)
per_class = 2
labels = sampling.balanced_labels(real.full.num_classes, per_class)


def draw(model, y=labels, seed=sampling_seed):
    return sampling.sample(
        model,
        NoiseSchedule(),
        y,
        real.full.images.shape[-1],
        seed=seed,
        steps=SAMPLING[profile]["steps"],
    )


samples = {
    "DDPM": draw(ddpm),
    "CALL without its expert, θᵍ": draw(theta_g),
    "CALL, θ": draw(theta),
}

# %% tags=["hide-input", "save:quickstart.png"] mystnb={"figure": {"caption": "A real image of each class, and two samples of each network from the same noise: DDPM, CALL without its expert (θᵍ) and CALL (θ). The numbers are those of the training images, coloured by split: the three largest classes (Many), the next three (Medium) and the four rarest (Few). Training seed 0.", "name": "fig-quickstart"}, "image": {"alt": "Four blocks of small digit images, a column for each digit from 0 with 174 training images to 9 with 3. Real digits; DDPM's samples, clear on the left, and less so on the right; samples of CALL without its expert, as clear on the left, and washed out on the right; samples of CALL, digits in all columns.", "classes": "dark-light"}}
real_images = torch.cat(
    [
        real.full.images[real.full.labels == c][20:21]
        for c in range(real.full.num_classes)
    ]
)
counts = real.train.counts
viz.class_columns(
    {"Real, and how many were trained on": real_images, **samples},
    [str(n) for n in counts],
    data.splits(counts),
)

# %% [markdown]
# Read from left to right. Without its expert, CALL's network washes the rare digits out; with the expert it draws them,
# though not always right: from this noise one of the two 8s comes out as a 1, as with DDPM. (Without the expert a 5
# washes out, too. Its class has 19 images, and the loss also counts it as rare: {doc}`04_general_and_expert`.) On the
# common digits the expert changes next to nothing. That is the division of labour that the method asks for, and
# {doc}`04_general_and_expert` measures it. Whether what the network knows about rare digits therefore sits in
# $\theta^e$ is another question, that of {doc}`08_inside_the_expert`.
#
# DDPM and CALL cannot be told apart by eye. By {term}`FID`, where less is better, CALL is ahead by a seventh on these
# rare digits, in the mean over seeds; {doc}`12_does_the_gain_last` shows when it is not.
#
# ```{margin} In the paper
# This is the comparison of Table 4, made visible; there CALL is on top of OC, another base loss ({doc}`09_rivals`),
# here on DDPM's.
# ```
#
# ## The expert dial
#
# CALL stores a weight matrix as $W = W^g + BA$: a full matrix, and a product of two thin ones, the expert. So the
# expert can also be turned up gradually, $W^g + s\,BA$, from $s = 0$ ($\theta^g$) to $s = 1$ ($\theta$). `expert_scale`
# does so on a network that keeps its decomposition. Move the slider:

# %%
from callkit import metrics
from callkit.capacity import expert_scale

reserved, _ = released("call", "reserved")
rarest = sampling.balanced_labels(real.full.num_classes, 4)[-16:]
names = [str(c) for c in rarest[::4].tolist()]


def at_scale(scale):
    with expert_scale(reserved, scale):
        images = draw(reserved, rarest)
    figure = viz.image_rows(list(images.split(4)), names, size=0.6)
    right = (metrics.describe(images).logits.argmax(1) == rarest).sum()
    label = f"s = {scale:.2g}: {right} of {len(rarest)} read as their digit"
    return figure, label, "Samples of the four rarest digits, four each."


sliders.explore(
    at_scale,
    "expert scale s",
    [i / 10 for i in range(11)],
    live=[i / 20 for i in range(-20, 41)],
)

# %% [markdown]
# *The four rarest digits, four samples each from fixed noise, as the expert is turned up. They are read by a small
# classifier of digits, which also measures FID in this book.*
#
# Even without the expert the classifier reads a few of the sixteen as the digit that they should be; with it, it reads
# most. From about $s = 0.6$ on hardly anything changes.
#
# The page holds eleven pictures, drawn in advance. In JupyterLab (`make lab`) the same cell shows a slider that samples
# anew wherever you stop it, below 0 and beyond 1 too. So it is with every slider of this book.
#
# ## Train one yourself
#
# From the repository's folder, after `source .venv/bin/activate`, with a progress bar and a checkpoint that a second
# call goes on from:
#
# ```bash
# python -m callkit train --dataset digits --imbalance-ratio 50 --method call --profile cpu --seed 0
# python -m callkit evaluate runs/digits-ir50/call-cpu/seed0
# ```
#
# {doc}`05_training` does the same from a notebook.
#
# ```{admonition} Pitfall
# :class: warning
# These are 8 × 8 digits and networks of 0.4 million parameters. They show the mechanism, honestly measured; they do not
# show what a network of 36 million parameters, such as the paper's, does on CIFAR.
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
# Training only ever saw $s = 0$ and $s = 1$. Beyond 1 the network extrapolates. It still draws digits: the 6 and the 7
# as crisp as before, the 8 and the 9, from five images and three, more uneven.

# %% mystnb={"image": {"alt": "Four rows of four samples of the rarest digits with the expert doubled.", "classes": "dark-light"}}
with expert_scale(reserved, 2.0):
    doubled = draw(reserved, rarest)
viz.image_rows(list(doubled.split(4)), names, size=0.6)
# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-same-noise
# Draw samples of the four rarest digits from other noise: `draw(..., seed=2)`. Is the difference between $\theta$ and
# $\theta^g$ a matter of the noise?
# ```
#
# ```{solution-start} ex-same-noise
# :class: dropdown
# ```

# %% mystnb={"image": {"alt": "Two rows of samples of the four rarest digits from another seed: CALL without its expert above, CALL below.", "classes": "dark-light"}}
pair = [draw(m, rarest, seed=2) for m in (theta_g, theta)]
viz.image_rows(pair, ["θᵍ", "θ"])

# %% [markdown]
# No: with this noise, too, $\theta^g$ is washed out in every image, and $\theta$ is not.
#
# ```{solution-end}
# ```
#
# **Take-away.** One network, two sets of parameters, and a dial between them. **Next.** {doc}`01_two_dimensions`: a
# diffusion model in the plane, where the right answer is known.
