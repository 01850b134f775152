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
# (ch-data)=
# # 02 · Long-tailed data
#
# **Objective.** Turn a balanced data set into a long-tailed one by the rule that the whole field uses, and read off who
# counts for how much. **Prerequisites.** Python and NumPy. **Time.** 10 minutes to read, seconds to run.
# **The one figure.** {numref}`fig-counts`.
#
# Most collections of images are not balanced: a few classes are photographed often, most are rare. To study what that
# does to a generative model we need sets that differ in their imbalance *and in nothing else*. The recipe of
# {cite:t}`cao2019ldam` takes a balanced set and throws images away, more and more from class to class.

# %% tags=["parameters"]
dataset = "digits"  # or fashion-mnist, cifar10, cifar100, which are downloaded
imbalance_ratio = 50

# %% [markdown]
# ## The exponential rule
#
# Let $N_{\max}$ be the size that the largest class is to have, $C$ the number of classes and $\mathrm{IR}$ the
# {term}`imbalance ratio`. Class $c = 0, \dots, C-1$ keeps
#
# ```{math}
# :label: eq-counts
# N_c = \left\lfloor N_{\max}\, \mathrm{IR}^{-c/(C-1)} \right\rfloor
# ```
#
# images: each class is smaller than the one before by the same *factor*, and the last is about $\mathrm{IR}$ times
# smaller than the first. (About, because of the rounding down: our digits at $\mathrm{IR} = 50$ keep 174 and 3 images,
# a factor of
# 58. Sets are named by the $\mathrm{IR}$ of the rule.)
#
# ```{margin} In the paper
# Section 5.1, "Datasets". The paper uses $\mathrm{IR} = 100$ and $50$.
# ```
#
# In code this is one line:

# %%
import textwrap

import numpy as np

from callkit import data, notebook, sliders, viz

notebook.check(dataset=dataset, imbalance_ratio=imbalance_ratio)


def counts_by_hand(n_max, num_classes, imbalance_ratio):
    return [
        int(n_max * (1 / imbalance_ratio) ** (c / (num_classes - 1)))
        for c in range(num_classes)
    ]


counts_by_hand(5000, 10, 100)  # CIFAR-10 at IR 100

# %% [markdown]
# `callkit.data` holds the same line with checks around it, and the data sets by name. The book's default is
# scikit-learn's handwritten digits {cite:p}`alpaydin1998digits`: 8 × 8 pixels, ten classes, 1,797 images, and small
# enough to train a diffusion model on a laptop in minutes. Its classes have 174 to 183 images; $N_{\max}$ is the least
# of these, so that any class could be the largest.

# %%
viz.style()
real = data.load_long_tailed(dataset, imbalance_ratio)
counts, splits = real.train.counts, data.splits(real.train.counts)

assert list(counts) == counts_by_hand(
    real.full.counts.min(), real.full.num_classes, imbalance_ratio
)
print(
    f"{len(real.full):,} images in the balanced set, {len(real.train):,} kept, {len(real.unseen):,} left out"
)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training images per class after the exponential rule, on a log scale, where the rule is a straight line. Colours are the three splits.", "name": "fig-counts"}, "image": {"alt": "Bar chart with a logarithmic axis: training images fall from class to class along a straight line; the first three classes are marked Many, the next three Medium, the last four Few.", "classes": "dark-light"}}
viz.class_counts(counts, splits, real.full.class_names)
# %% [markdown]
# The paper reports results by **split**: *Many*, *Medium* and *Few*, which are thirds of the classes ordered by size
# with the remainder going to Few. On ten classes: 0–2, 3–5 and 6–9.

# %%
for name, classes in splits.items():
    kept = counts[classes].sum()
    print(
        f"{name:>6}: classes {classes[0]}-{classes[-1]}, {kept:4d} images, {kept / counts.sum():.1%} of training"
    )

# %% [markdown]
# Move the slider to see what an imbalance ratio does to the counts.


# %% tags=["hide-input"]
def at_ratio(ratio):
    n = data.long_tailed_counts(
        int(real.full.counts.min()), real.full.num_classes, ratio
    )
    figure = viz.class_counts(n, splits, real.full.class_names)
    alt = f"The classes keep {', '.join(map(str, n[:10]))} images."
    return figure, f"IR {ratio}: {n.sum()} images", alt


sliders.explore(
    at_ratio, "imbalance ratio", (1, 2, 5, 10, 20, 50, 100), 50, live=range(1, 151)
)

# %% [markdown]
# ## Which images are kept
#
# Counts alone do not make a benchmark: two people who keep *different* 3 images of the last class train on different
# data. The field's published subsets come from one procedure, and `callkit` follows it to the index: NumPy's legacy
# generator with seed 0 shuffles the indices of one class after another in place, and the first $N_c$ of each are kept.
# The subset is part of the data set. It does not change with the seed of a training run.

# %%
again = data.load_long_tailed(dataset, imbalance_ratio)
assert (again.train.images == real.train.images).all()

# %% [markdown]
# Here is *all* that a model ever sees of the rarest classes, beside a row of the largest:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Training images: the first 16 of the largest class, and everything there is of the four rarest (at most 16 shown).", "name": "fig-train-images"}, "image": {"alt": "Five rows of training images. The largest class fills its row; the rarest classes have between three and a dozen images each.", "classes": "dark-light"}}
rarest = splits["few"][-4:]
shown = [0, *rarest]
viz.image_rows(
    [real.train.images[real.train.labels == c][:16] for c in shown],
    [f"{real.full.class_names[c]} ({counts[c]} images)" for c in shown],
)
# %% [markdown]
# ## What a step of training sees
#
# A training batch is drawn from all images alike, so class $c$ turns up with probability $p_c = N_c / N$. Over a whole
# training run the rarest class contributes few gradients, and these all come from the same few images:

# %%
p = counts / counts.sum()
batch = 64
for c in (0, real.full.num_classes - 1):
    print(
        f"class {real.full.class_names[c]}: {batch * p[c]:5.2f} images per batch of {batch}; "
        f"each image is seen {batch / counts.sum():.2f} times per step"
    )

# %% [markdown]
# Every *image* is seen equally often. What differs is how much of the batch's gradient a *class* has, and how many
# different images it brings. Both put rare classes at a disadvantage. That the model therefore spends its
# {term}`capacity` on the majority is the paper's thesis; {doc}`06_who_gets_the_capacity` and
# {doc}`08_inside_the_expert` test it. (Chapter 06 needs only 03: read it before 04 if you want to see the motivation
# tested before the method.)
#
# ## Which images we compare with
#
# Models are judged against the **balanced** set: the question is whether a rare class is drawn as well as a common one.
# The field compares with all real images, those that were trained on included, and so do our tables. That rewards
# copying, on every split ({doc}`04_general_and_expert` shows by how much). Where at least 50 images of every class of a
# split were never trained on, we also compare with those *unseen* images alone. Here that is Medium and Few; of class 0
# hardly any is left:

# %%
for name, classes in splits.items():
    left = real.unseen.counts[classes]
    print(f"{name:>6}: unseen images per class: {left.tolist()}")

# %% [markdown]
# (sec-scores)=
# ## How to read the scores
#
# The next chapters judge images by three numbers. {doc}`10_metrics` and {doc}`11_ablations` derive them; this much is
# enough until then:
#
# * **{term}`FID`.** A small classifier turns each image into a list of numbers, its features (64 of them for digits).
#   Fit one Gaussian to the features of the real images and one to those of the generated ones; FID is a distance
#   between the two. It is 0 if means and covariances agree, and lower is better. Its size depends on the classifier and
#   on the number of images, so it can be compared within one table only.
# * **Copies.** The share of generated images whose nearest real image is one that was trained on. Copying lowers FID,
#   so read the two together.
# * **A ratio with its interval**, such as 0.862 [0.777, 0.956]: two methods are trained with the same seeds, their FIDs
#   are divided seed by seed, and the ratios are averaged (geometrically). The brackets hold the 95 % interval of that
#   mean over seeds. If all of it lies below 1, we call the first method *better*.
#
# ```{admonition} Pitfalls
# :class: warning
# * $\lfloor\cdot\rfloor$ of a floating-point power: `int(n_max * ir ** -x)` and `int(n_max * (1 / ir) ** x)` can differ
#   by one image. The published subsets use the second.
# * Classes are ordered by their *index*, not by any property of theirs. On digits "0" is common and "9" rare because
#   we say so; some digits are harder to draw than others, which no imbalance explains.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-mean-count
# What fraction of the balanced set does a model train on at imbalance ratio 100, if there are very many classes?
# Compare your formula with ten classes.
# ```
#
# ```{solution-start} ex-mean-count
# :class: dropdown
# ```
#
# With $u = c/(C-1)$ spread evenly over $[0, 1]$, the mean of $\mathrm{IR}^{-u}$ is $\int_0^1 \mathrm{IR}^{-u}\,du =
# (1 - 1/\mathrm{IR}) / \ln \mathrm{IR}$.

# %%
print("many classes:", (1 - 1 / 100) / np.log(100))
print("ten classes: ", np.mean(data.long_tailed_counts(5000, 10, 100)) / 5000)

# %% [markdown]
# Ten classes keep more, since the largest, whole, is a tenth of them. Before rounding it is a geometric series,
# $(1 - q^C) / (C\,(1 - q))$ with $q = \mathrm{IR}^{-1/(C-1)}$.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-too-steep
# What happens if the imbalance ratio exceeds $N_{\max}$? Try it.
# ```
#
# ```{solution-start} ex-too-steep
# :class: dropdown
# ```
#
# The last class would keep $\lfloor N_{\max}/\mathrm{IR} \rfloor = 0$ images, and a class without images cannot be
# learnt. `callkit` refuses before any work is done:

# %%
try:
    data.load_long_tailed("digits", 500)
except ValueError as error:
    print(textwrap.fill(str(error), 80))

# %% [markdown]
# ```{solution-end}
# ```
#
# **Take-away.** One rule, one number (IR), one fixed subset: imbalance becomes something that we can turn like a dial.
# **Next.** {doc}`03_unet_and_ddim`: the network, its loss and its samplers, on the pixels of these digits.
