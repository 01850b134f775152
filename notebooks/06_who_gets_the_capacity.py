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
# (ch-capacity)=
# # 06 · Who gets the capacity?
#
# **Objective.** Put the paper's motivating picture, its Figure 1(a), to the test: does pruning a trained network hurt
# minorities more? **Prerequisites.** {doc}`03_unet_and_ddim`; for the last exercise {doc}`04_general_and_expert`.
# **Time.** 15 minutes to read, a minute to run. **The one figure.** {numref}`fig-pruning-absolute`.
#
# The argument of the paper starts here. Majorities, it says, take up most of a network's {term}`capacity`; minorities
# hang on few weights. If so, removing a few weights should raise the loss of minority classes most, and its figure
# shows just that for a DDPM on CIFAR-100 with a tenth pruned. The caption leaves three choices open. We try every
# combination:
#
# * *what is pruned*: single weights of smallest magnitude {cite:p}`han2015compression`, over the whole network
#   (*global*) or layer by layer (*layer*), or whole filters {cite:p}`li2017pruning` (*filter*); the paper cites both
#   works;
# * *which images*: those trained on, or the balanced set, most of whose minority images were never seen;
# * *which change*: the difference of the losses, or their ratio.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released DDPM
rate = 0.1  # share of weights, or filters, to prune
draws = 16  # timesteps and noises per image

# %% [markdown]
# ## Pruning
#
# Magnitude pruning in full:

# %%
import pandas as pd
import scipy.stats
import torch

from callkit import data, notebook, sliders, viz
from callkit.checkpoints import load_model
from callkit.diffusion import NoiseSchedule
from callkit.pruning import HOW, losses, prunable, prune, sensitivity

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words, seed=seed, rate=rate, draws=draws)
viz.style()
model, config = load_model(notebook.released(**words, method="ddpm", seed=seed))
theta, _ = load_model(notebook.released(**words, method="call", seed=seed))

weights = torch.cat([layer.weight.flatten() for layer in prunable(model)])
threshold = weights.abs().quantile(rate)
print(
    f"{len(weights):,} prunable weights; {rate:.0%} of them lie within ±{threshold:.4f}"
)

# %% [markdown]
# `callkit.pruning.prune` returns a pruned copy by any of the three ways. `losses` gives each image's noise-prediction
# loss, with the *same* timesteps and noise for every network (common random numbers). The differences are then paired,
# and their intervals far narrower than the spread between images would suggest.

# %%
real = data.load_long_tailed(dataset, imbalance_ratio)
splits = data.splits(real.train.counts)
sets = {"training images": real.train, "balanced set": real.full}
changes = {}
for name, images in sets.items():
    before = losses(model, images, NoiseSchedule(), draws)
    changes[name] = {
        how: sensitivity(
            before,
            losses(prune(model, rate, how), images, NoiseSchedule(), draws),
            images.labels,
            images.num_classes,
        )
        for how in HOW
    }

# %% [markdown]
# ## The figure, twelve times
#
# If the paper is right, bars grow from left (common) to right (rare). Look first at whether the two rows of a figure,
# training images and balanced set, agree.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Change of the loss by class when a tenth is pruned, difference (times 1000), with 95 % intervals over images. DDPM, digits at IR 50, profile cpu, seed 0. Columns share an axis.", "name": "fig-pruning-absolute"}, "image": {"alt": "Six bar charts of the loss change by class: three ways of pruning, each on the training images and on the balanced set. On training images bars rise slightly or stay level towards the rare classes; on the balanced set layer-wise and filter pruning fall towards the rare classes.", "classes": "dark-light"}}
viz.class_changes(
    {
        name: {how: (1e3 * s.change, 1e3 * s.change_ci) for how, s in by_how.items()}
        for name, by_how in changes.items()
    },
    "Δ loss × 1000",
    splits,
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The same as a ratio: change divided by the whole network's loss of that class, in percent.", "name": "fig-pruning-relative"}, "image": {"alt": "Six bar charts of the relative loss change by class. On the balanced set all three fall towards the rare classes or show no trend; on the training images they are about level.", "classes": "dark-light"}}
viz.class_changes(
    {
        name: {
            how: (100 * s.relative, 100 * s.relative_ci) for how, s in by_how.items()
        }
        for name, by_how in changes.items()
    },
    "Δ loss, %",
    splits,
)

# %% [markdown]
# One number for each panel: Spearman's rank correlation between a class's rarity and its change. The paper's pattern is
# $+1$, its reverse $-1$; with ten classes, values between $-0.63$ and $+0.63$ are what chance alone gives 19 times
# in 20.

# %%
rarity = range(real.full.num_classes)
pd.DataFrame(
    {
        (name, measure): {
            how: f"{scipy.stats.spearmanr(rarity, getattr(s, field))[0]:+.2f}"
            for how, s in by_how.items()
        }
        for name, by_how in changes.items()
        for measure, field in (("difference", "change"), ("ratio", "relative"))
    }
)

# %% [markdown]
# Is a tenth the right share to look at? Turn it up: layer by layer, as a ratio, on the training images and on every
# fourth image of the balanced set, to save time. The axis follows the bars.


# %% tags=["hide-input"]
thinned = {
    "training images": real.train,
    "balanced set": real.full.subset(torch.arange(len(real.full)) % 4 == 0),
}
fewer = draws // 4
whole = {name: losses(model, s, NoiseSchedule(), fewer) for name, s in thinned.items()}


def at_rate(share):
    pruned = prune(model, share, "layer")
    found = {
        name: sensitivity(
            whole[name],
            losses(pruned, images, NoiseSchedule(), fewer),
            images.labels,
            images.num_classes,
        )
        for name, images in thinned.items()
    }
    figure = viz.class_changes(
        {
            f"{share:.0%} pruned": {
                name: (100 * s.relative, 100 * s.relative_ci)
                for name, s in found.items()
            }
        },
        "Δ loss, %",
        splits,
    )
    rank = [
        f"{name} {scipy.stats.spearmanr(rarity, s.relative)[0]:+.2f}"
        for name, s in found.items()
    ]
    label = f"{share:.0%} pruned, rank correlation: {', '.join(rank)}"
    alt = "Mean change in percent, Many, Medium and Few: " + "; ".join(
        f"{name} {', '.join(f'{100 * s.relative[c].mean():.1f}' for c in splits.values())}"
        for name, s in found.items()
    )
    return figure, label, alt


sliders.explore(
    at_rate,
    "share of weights pruned",
    (0.05, 0.1, 0.2, 0.3, 0.5),
    0.1,
    live=[i / 20 for i in range(1, 19)],
    dpi=90,
)

# %% [markdown]
# From a tenth on the picture stays the same, while the changes grow more than a hundredfold: on the balanced set the
# rarer a class is, the less it loses; on the training images, pruned layer by layer, rarity makes little difference.
#
# ## What this says
#
# **On the training images**, at a tenth, the correlations are positive, the direction of the paper's picture, though
# most are within what chance gives. **On the balanced set** the sign of layer-wise and filter pruning turns over: there
# minorities lose *less*. A likely reason is in the losses before pruning:

# %%
pd.DataFrame(
    {
        name: {
            split.capitalize(): f"{sum(s.before[c] for c in classes) / len(classes):.4f}"
            for split, classes in splits.items()
        }
        for name, s in ((name, by_how["global"]) for name, by_how in changes.items())
    }
)

# %% [markdown]
# On training images the network fits the rarest classes as well as the common ones: it has learnt their few images by
# heart. On the balanced set its loss on them is far higher, for most of these images are new to it. What was hardly
# learnt has little to lose; on the rarest class layer-wise pruning even *lowers* the loss, as if it removed what had
# been fitted to its three images. So if Figure 1(a) was made on training images, which the paper does not say, it may
# show the class's share of capacity, or just as well how much *memorised* detail of the class the small weights carry.
#
# And rarity and digit are the same thing here: 9 is always the rarest ({doc}`02_long_tailed_data`), and some digits may
# hang on small weights more than others, whatever their number. A network trained on balanced digits and pruned in the
# same way would tell whether the bars follow rarity or the digit. We have not run it.
#
# This is one network, on one small data set. (Ten on CIFAR-10, early in their training, show no trend:
# {doc}`16_cifar10`.) It does not refute the paper's figure, which was made on CIFAR-100. It says that the figure cannot
# be read without its three choices.
#
# ```{admonition} Pitfalls
# :class: warning
# * Different noise before and after pruning buries the change, which is far smaller than the loss's own spread.
# * A ratio rewards classes with a small loss. Before reading "more sensitive", look at what it is divided by.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-common-noise
# Measure the change of the rarest class on the balanced set for global pruning with *different* seeds for the two
# networks. How far is it from the paired value?
# ```
#
# ```{solution-start} ex-common-noise
# :class: dropdown
# ```

# %%
rarest = real.full.subset(real.full.labels == real.full.num_classes - 1)
pruned = prune(model, rate)
before, after = (
    [losses(m, rarest, NoiseSchedule(), draws, seed=s).mean() for s in range(4)]
    for m in (model, pruned)
)
print("change of the loss × 1e-3, by the seeds before and after")
for name, pairs in {
    "paired": [(s, s) for s in range(4)],
    "unpaired": [(s, (s + 1) % 4) for s in range(4)],
}.items():
    print(f"{name:>8}:", *(f"{1e3 * (after[b] - before[a]):+.2f}" for a, b in pairs))

# %% [markdown]
# Unpaired, not even the sign can be trusted: the values scatter by several times the change itself. Paired, all four
# have the same sign, and lie ten times as close together.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-prune-theta
# Do the same for the released CALL network (θ, merged). Should its minorities be more robust?
# ```
#
# ```{solution-start} ex-prune-theta
# :class: dropdown
# ```
#
# If the expert's weights are large where minorities need them, magnitude pruning should spare them. On the training
# images:

# %%
before = losses(theta, real.train, NoiseSchedule(), draws)
after = losses(prune(theta, rate), real.train, NoiseSchedule(), draws)
call = sensitivity(before, after, real.train.labels, real.train.num_classes)
pd.DataFrame(
    {
        name: {
            split.capitalize(): f"{1e3 * s.change[classes].mean():.2f}"
            for split, classes in splits.items()
        }
        for name, s in (
            ("DDPM, Δ loss × 1000", changes["training images"]["global"]),
            ("CALL, Δ loss × 1000", call),
        )
    }
)

# %% [markdown]
# On Few that does not show: in this pair of networks both lose equally much there. On Many and Medium CALL loses less.
#
# ```{solution-end}
# ```
#
# **Take-away.** Whether "minorities are more sensitive to pruning" depends on the images it is measured on. On training
# images, with a tenth pruned and the full number of draws, our correlations are positive, most of them within chance;
# layer by layer at other shares they are about zero or slightly negative. On the balanced set most are negative.
# **Next.** {doc}`07_a_floor_for_the_loss`: why the loss needs a bound.
