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
# (ch-metrics)=
# # 10 · Metrics and their traps
#
# **Objective.** Derive FID, KID, Recall and IS, compute each by hand; walk into seven traps on purpose; then read the
# leads in the paper's Tables 1, 2, 3 and 5 in units of their deviations. **Prerequisites.** {doc}`02_long_tailed_data`;
# covariance and eigenvalues. **Time.** 35 minutes to read, a minute to run. **The one figure.**
# {numref}`fig-metrics-bias`.
#
# Every claim about a generative model of images ends in such a number, and this book's do too. None of them measures
# what we want to know, whether rare classes are drawn well. Each measures something near it, and it pays to know what.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released DDPM
per_class = 50  # images of each class that this page generates

# %% tags=["remove-output"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from callkit import claims, data, metrics, notebook, records, sampling, viz
from callkit.checkpoints import load_model
from callkit.config import TITLES
from callkit.diffusion import NoiseSchedule
from callkit.statistics import paired

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words, seed=seed, per_class=per_class)
viz.style()
model, _ = load_model(notebook.released(**words, method="ddpm", seed=seed))
real = data.load_long_tailed(dataset, imbalance_ratio)
C, splits = real.full.num_classes, data.splits(real.train.counts)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## Four scores
#
# All four compare *features*: an {term}`extractor`, a network trained to classify, turns each image into a vector,
# and a distance between vectors means more than one between pixels. The paper's extractor is Inception-V3
# {cite:p}`szegedy2016inception`; for our 8 × 8 digits it is a small classifier of digits with 64 features.

# %%
described = metrics.describe(real.full.images)  # all real images: the reference
labels = sampling.balanced_labels(C, per_class)
image_size = real.full.images.shape[-1]
images = sampling.sample(model, NoiseSchedule(), labels, image_size, seed=1, steps=20)
generated = metrics.describe(images)
x, y = generated.features.double().numpy(), described.features.double().numpy()
print(f"generated {x.shape}, real {y.shape}")

# %% [markdown]
# ### FID
#
# Fit a Gaussian to each set of features, $\mathcal{N}(m_1, S_1)$ and $\mathcal{N}(m_2, S_2)$. Their Fréchet distance
# is the least mean squared distance between two random vectors that have these distributions, over all ways to
# *couple* them:
#
# $$
# d^2 = \min_{\text{couplings}} \mathbb{E} \lVert u - v \rVert^2 = \lVert m_1 - m_2 \rVert^2 + \operatorname{Tr} S_1 +
# \operatorname{Tr} S_2 - 2 \max \operatorname{Tr} \operatorname{Cov}(u, v) .
# $$
#
# In one dimension the best coupling is perfect correlation, $\operatorname{Cov}(u, v) = \sigma_1 \sigma_2$, which makes
# $d^2 = (m_1 - m_2)^2 + (\sigma_1 - \sigma_2)^2$. In many dimensions every possible covariance of $u$ and $v$ has the
# form $S_1^{1/2} K S_2^{1/2}$ with $\lVert K \rVert \le 1$, and for Gaussians every such $K$ occurs. The trace
# $\operatorname{Tr}(K\, S_2^{1/2} S_1^{1/2})$ is largest where $K$ turns the singular vectors of $S_2^{1/2} S_1^{1/2}$
# onto each other: it is then the sum of the singular values. These are the roots of the eigenvalues of $S_1^{1/2} S_2
# S_1^{1/2}$, which are those of $S_1 S_2$. So
#
# ```{math}
# :label: eq-fid
# \mathrm{FID} = \lVert m_1 - m_2 \rVert^2 + \operatorname{Tr} \bigl( S_1 + S_2 - 2\, (S_1 S_2)^{1/2} \bigr)
# ```
#
# {cite:p}`heusel2017fid`. The trace of a root is the sum of the roots of the eigenvalues:


# %%
def fid(x, y):
    s1, s2 = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(min=0))
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return shift + np.trace(s1) + np.trace(s2) - 2 * roots.sum()


ours = metrics.compare(generated.features, described.features, generated.logits)
assert np.isclose(fid(x, y), ours["fid"], rtol=1e-4)
print(f"FID {ours['fid']:.2f}")

# %% [markdown]
# Only two moments enter. Two sets with the same mean and covariance have FID 0, whatever else is different.
#
# ### KID
#
# Take a kernel $k(u, v) = (u^\top v / d + 1)^3$, $d$ the number of features, and ask whether pairs *within* a set are
# more alike than pairs *across* {cite:p}`binkowski2018kid`:
#
# ```{math}
# :label: eq-kid
# \begin{aligned}
# \mathrm{KID} = {} & \frac{1}{n (n - 1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{n (n - 1)} \sum_{i \ne j} k(y_i, y_j) \\
# & - \frac{2}{n^2} \sum_{i, j} k(x_i, y_j) .
# \end{aligned}
# ```
#
# It sees the first three moments. An image is never paired with itself, which makes the estimate *unbiased*: its
# expectation does not depend on $n$. The price is that it can be negative. It is averaged over 100 random subsets.


# %%
def kid(x, y):
    n, D = x.shape
    xx, yy, xy = ((a @ b.T / D + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off_diagonal = sum(k.sum() - np.trace(k) for k in (xx, yy)) / (n * (n - 1))
    return off_diagonal - 2 * xy.mean()


same_size = described.features[:: len(y) // len(x)][: len(x)]
theirs = metrics.compare(generated.features, same_size)  # a subset of all is all
assert np.isclose(kid(x, same_size.double().numpy()), theirs["kid"], rtol=1e-3)
print(f"KID {ours['kid']:.2f}")

# %% [markdown]
# The features of the digits classifier are not normalised, so this KID is in the tens where the paper's is in the
# thousandths. Its unit means nothing.
#
# ### Recall, and precision
#
# {term}`Recall <recall>` asks for *diversity*: which share of the real images lies among the generated ones? "Among"
# is made of balls: around each generated feature, as far as its third nearest generated neighbour
# {cite:p}`kynkaanniemi2019prc`. {term}`Precision <precision>` is the same with the roles exchanged: which share of
# the generated images lies among the real ones?


# %%
def covered(points, centres, k=metrics.NEIGHBORHOOD):
    """Share of the points that lie in the ball of some centre."""
    centres, points = torch.as_tensor(centres), torch.as_tensor(points)
    radius = torch.cdist(centres, centres).kthvalue(k + 1, dim=1).values  # 1st: itself
    return (torch.cdist(points, centres) <= radius).any(1).double().mean().item()


assert np.isclose(covered(y, x), ours["recall"], atol=2e-3)
assert np.isclose(covered(x, y), ours["precision"], atol=2e-3)
print(f"recall {ours['recall']:.3f}, precision {ours['precision']:.3f}")

# %% [markdown]
# ### Inception Score
#
# The {term}`Inception Score` does not look at real images at all. A classifier should be sure of each image, and over
# all images it should name all classes: the divergence of $p(c \mid x)$ from its mean should be large
# {cite:p}`salimans2016is`.
#
# ```{math}
# :label: eq-is
# \mathrm{IS} = \exp \Bigl( \mathbb{E}_x \operatorname{KL} \bigl( p(c \mid x) \bigm\| \mathbb{E}_{x'}\, p(c \mid x') \bigr) \Bigr)
# ```
#
# It lies between 1 and the number of classes. By custom it is the mean over ten parts of a shuffled set:


# %%
def inception_score(logits):
    p = logits.double().softmax(1)
    kl = (p * (p / p.mean(0)).log()).sum(1)
    return kl.mean().exp().item()


order = np.random.RandomState(2020).permutation(len(images))
parts = np.split(order, 10)
by_hand = np.mean([inception_score(generated.logits[part]) for part in parts])
assert np.isclose(by_hand, ours["is"], rtol=1e-4)
print(
    f"IS {ours['is']:.2f}, on all images at once {inception_score(generated.logits):.2f}"
)

# %% [markdown]
# ## The protocol
#
# A score is a property of a *comparison*, and what is compared with what is half of it. `callkit.evaluation` follows
# the paper where the paper says what it does. From one record of the book's tables:

# %%
chosen = records.load_records(
    **words,
    method="ddpm",
    seed=seed,
    weights="theta",
    overrides={},
    guidance_scale=1,
)[0]
evaluation, how = chosen["evaluation"], chosen["sampling"]
digest = evaluation["extractor_sha256"][:8]
pd.Series(
    {
        "sampler": f"{how['sampler']}, {how['steps']} steps, {how['weights']} weights",
        "guidance scale": f"{chosen['run']['guidance_scale']:g}",
        "generated images": f"{evaluation['generated_images']:,}",
        "real images": f"{evaluation['real_images']:,}",
        "reference": evaluation["reference"],
        "extractor": f"{evaluation['extractor']}, weights {digest}",
        "recall's k": evaluation["recall_neighborhood"],
    },
    name=chosen["file"],
).to_frame()

# %% [markdown]
# * **Labels are exactly balanced**, as many images of each class, not drawn at random. A rare class counts as much as
#   a common one.
# * **The reference is the whole balanced set**, which contains the training images. That is the field's custom, and a
#   trap (below). For Fashion-MNIST, for which the paper has no numbers, it is the test set.
# * **Splits.** Many, Medium, Few are thirds of the classes by size, the remainder to Few: classes 0–2, 3–5, 6–9 of
#   ten and 0–32, 33–65, 66–99 of a hundred. A split's score compares the generated images of its classes with the
#   real ones of its classes. In the profile `paper` these are 50,000 images overall and 20,000 for each split, as in
#   the paper; in `cpu` all there are of the split's classes.
# * **`class-<c>`** is one class. **`unseen-<split>`** leaves training images out of the reference, and is there only
#   where each class of the split has at least 50 others.
#
# Three extractors can be had. A number of one never stands in a column with a number of another.

# %%
pd.DataFrame(
    {
        "digits": ("digits at 8 × 8", "a small classifier of digits", "64"),
        "lite0": (
            "other data, offline",
            "EfficientNet-Lite0, ImageNet, at 96 × 96",
            "1280",
        ),
        "inception": (
            "profile paper",
            "the paper's Inception-V3, at 299 × 299",
            "2048",
        ),
    },
    index=["used for", "network", "features"],
).T

# %% [markdown]
# ## Trap 1: few images raise FID
#
# Estimate a mean and a covariance from $n$ images, and both are off; {eq}`eq-fid` squares errors and so counts them as
# distance. KID does not. Here are two halves of the *real* digits, whose true distance is nothing, and samples of DDPM,
# each for several $n$, up to half of the 500 samples that we have: subsets of nearly all would be nearly the same.

# %%
generator = rng()
shuffled = torch.randperm(len(y), generator=generator)
half, other_half = y[shuffled[: len(y) // 2]], y[shuffled[len(y) // 2 :]]
sets = {"real, other half": other_half, "DDPM": x}
sample_sizes = (30, 60, 100, 150, 250)
curves = {score.__name__: {name: [] for name in sets} for score in (fid, kid)}
for name, features in sets.items():
    for n in sample_sizes:
        subsets = [
            features[torch.randperm(len(features), generator=generator)[:n]]
            for _ in range(30)
        ]
        curves["fid"][name].append([fid(s, half) for s in subsets])
        against = [
            half[torch.randperm(len(half), generator=generator)[:n]] for _ in subsets
        ]
        pairs = zip(subsets, against, strict=True)
        curves["kid"][name].append([kid(a, b) for a, b in pairs])

# %% tags=["hide-input"] mystnb={"figure": {"caption": "FID and KID against the same half of the real digits, by the number of images: mean over 30 random subsets and, shaded, their standard deviation. Computed on this page, extractor digits.", "name": "fig-metrics-bias"}, "image": {"alt": "Two panels over the number of images, log axis. FID falls steeply with more images, from above 100 to about 20, for the other half of the real digits as for DDPM. The means of KID stay near zero, with bands that are wide at first and narrow.", "classes": "dark-light"}}
figure, panels = plt.subplots(1, 2)
plt.close(figure)
for axes, (metric, by_set) in zip(panels, curves.items(), strict=True):
    for (name, values), color in zip(
        by_set.items(), (viz.GREEN, viz.BLUE), strict=True
    ):
        mean, std = np.mean(values, axis=1), np.std(values, axis=1, ddof=1)
        axes.plot(sample_sizes, mean, "o-", color=color, label=name)
        axes.fill_between(sample_sizes, mean - std, mean + std, color=color, alpha=0.2)
    axes.axhline(0, color=viz.INK, linewidth=0.6)
    axes.set(xscale="log", xlabel="images", title=metric.upper())
    axes.set_xticks(sample_sizes, sample_sizes)
    axes.minorticks_off()
panels[0].legend()
figure

# %%
for name, values in curves["fid"].items():
    inverse = 1 / np.array(sample_sizes[-3:])
    slope, intercept = np.polyfit(inverse, np.mean(values, axis=1)[-3:], 1)
    print(
        f"{name}: FID {np.mean(values[0]):.1f} with {sample_sizes[0]} images, "
        f"{np.mean(values[-1]):.1f} with {sample_sizes[-1]}; a line in 1/n ends at {intercept:.1f}"
    )

# %% [markdown]
# Thirty perfect images have a worse FID than 250 of the network's. (The line in $1/n$ does not end at zero even for the
# real half: the reference is finite too. {cite:t}`chong2020unbiased` report where such a line ends in place of FID, and
# show that its slope depends on the model: equal $n$ does not make a comparison fair.) KID has no such slope. But
# unbiased is not precise: at these sizes its deviation is larger than what separates the two sets.
#
# **FIDs of different numbers of images cannot be compared**, on either side of the comparison. That hits a long-tailed
# table: its splits have fewer real images than the whole. On CIFAR-100 the reference of Few is 34 classes of 500
# images, where that of the overall score is 50,000 images. In the paper's Table 4 eight of nine FIDs of a split are
# *larger* than the overall one of their row. Part of that is this bias. The rest is that pooling hides errors: the
# Gaussian of all classes contains the spread between classes, and errors of different classes may cancel in its two
# moments. So compare a split with the same split.
#
# ## Trap 2: a class of its own
#
# With $n$ images a covariance matrix has rank $n - 1$ at most. With fewer images than features it is flat in all
# other directions, and in those {eq}`eq-fid` charges the whole variance of the real images. Take the *best possible*
# samples of one class, real images of it, and compare them with others: one half of the class gives the samples, the
# other half is the reference, drawn anew 20 times:

# %%
rarest = C - 1
of_class = y[(real.full.labels == rarest).numpy()]
spread, middle = np.trace(np.cov(of_class.T)), len(of_class) // 2
rows = {}
for n in (3, 10, 30, 65, middle):
    scores, ranks = [], []
    for _ in range(20):
        mixed = of_class[torch.randperm(len(of_class), generator=generator)]
        scores.append(fid(mixed[:n], mixed[middle:]))
        ranks.append(np.linalg.matrix_rank(np.cov(mixed[:n].T)))
    rows[n] = {
        "rank of the covariance": f"{np.mean(ranks):.0f}",
        "FID": f"{np.mean(scores):.1f} ± {np.std(scores):.1f}",
        "of the class's variance": f"{np.mean(scores) / spread:.0%}",
    }
print(f"real images of class {rarest} against {len(of_class) - middle} others of it")
pd.DataFrame(rows).rename_axis("n", axis=1).T

# %% [markdown]
# Perfect samples, and by their number alone the FID is anything from a few per cent of the class's variance to all of
# it. (Some of the 64 features are constant on these images, which is why the last rank is below 64.) Inception has 2048
# features and a class of CIFAR-100 has 500 images: a per-class FID there is rank-deficient by a factor of four on the
# real side alone. Our records have per-class scores from 300 generated images. Use them to compare methods on *one*
# class, never to compare classes.
#
# ## Trap 3: the copy machine
#
# The cheapest model, the {term}`copy machine`, shows training images. {doc}`09_rivals` has it as a control; here are
# all scores. It gives each class 300 times, as the evaluation asks, from the handful of images that there are:

# %%
repeated = metrics.copy_machine(real.train, per_class=300)
train = metrics.describe(real.train.images)
copies = metrics.Description(*(values[repeated] for values in train))
machine = metrics.score(copies, real.train.labels[repeated], real, described)


def every(method, scale=1.0):
    return records.load_records(
        **words,
        method=method,
        weights="theta",
        overrides={},
        guidance_scale=scale,
    )


finished = records.same_seeds({method: every(method) for method in TITLES})


def scores_of(runs):
    """Means over runs of what a record and `metrics.score` both have."""
    line = {}
    for split in ("overall", "few", "unseen-few"):
        for metric, decimals in (("fid", 1), ("kid", 0), ("recall", 2)):
            mean, _ = records.mean_std(runs, "metrics", split, metric)
            line[split, metric] = f"{mean:.{decimals}f}"
    nearest, _ = records.mean_std(runs, "copies", "few", "nearest_is_train")
    return line | {("few", "copies"): f"{nearest:.0%}"}


table = {"copy machine": scores_of([machine])}
for method, name in {
    "ddpm": "DDPM",
    "call": "CALL",
    "rs": "RS",
    "rs-sqrt": "RS, square root",
}.items():
    runs = finished[method]
    table[f"{name}, n = {len(runs)}"] = scores_of(runs)
pd.DataFrame(table).T

# %% [markdown]
# Of the models, means over $n$ seeds from the records. **Without guidance the machine is ahead of DDPM and of CALL in
# every column of FID and KID**, also on images that it has never "seen". Only the two re-samplings, which copy as well,
# keep up with it, on Few: ahead by FID, level or behind by KID. Its images are perfect. There are just few of them, and
# two or three moments do not notice. (With guidance most methods pass it on Few, {doc}`09_rivals`.) Recall does notice:
# on Few it is near zero, and against unseen images lower still. So does `copies`, the share of generated images whose
# nearest real image was trained on. ({cite:t}`meehan2020copying` make a statistical test of such distances, with a
# training set, a held-out set and a generated one, as here.)
#
# Two lessons. A long-tailed FID needs a recall and a copy check beside it. And the reference should not contain the
# training images: for Many, where most of the real images *are* training images, we have no other choice, and say so.
#
# Recall by itself is no better a judge than FID. All methods without guidance, overall, from the lowest FID up:

# %%
beside_fid = pd.DataFrame(
    {
        f"{name}, n = {len(runs)}": {
            metric: records.mean_std(runs, "metrics", "overall", metric)[0]
            for metric in ("fid", "recall", "precision")
        }
        for method, name in TITLES.items()
        if (runs := finished[method])
    }
).T.sort_values("fid")
for metric in ("recall", "precision"):
    rank = beside_fid["fid"].corr(beside_fid[metric], method="spearman")
    print(f"rank correlation of FID and {metric}: {rank:+.2f}")
beside_fid.round(2)

# %% [markdown]
# On the whole a worse FID comes with a *higher* recall: OC, whose samples without guidance are far off, has more of it
# than DDPM, and ADA has most. Recall's balls lie around the generated images. Where these are scattered the balls are
# large, and cover real images that nothing generated is like. Precision, with its balls around the real images, falls.
# So read the two as a pair. {cite:t}`naeem2020reliable` name this weakness, and draw all balls around real images:
# *coverage* is the share of the balls with a generated image inside, *density* counts in how many of them a generated
# image lies.
#
# ## Trap 4: one image per class
#
# A worse machine knows one image of each class:

# %%
first = torch.stack([(real.full.labels == c).nonzero()[0, 0] for c in range(C)])
one_each = first.repeat(50)
scores = metrics.compare(described.features[one_each], described.features)
named = {
    "one image a class": described.logits[one_each],
    "DDPM": generated.logits,
    "all real images": described.logits,
}
for name, logits in named.items():
    print(f"{name}: IS {inception_score(logits):.2f} of at most {C}")
print(f"one image a class: FID {scores['fid']:.1f}, recall {scores['recall']:.3f}")

# %% [markdown]
# To IS this is better than reality. It can tell neither collapse within a class nor, when labels are balanced by hand,
# anything about imbalance; {cite:t}`barratt2018is` list more. The paper reports it and says as much.
#
# ## Trap 5: the extractor decides
#
# What counts as a difference is what the extractor sees. The same five sets, 150 images each, against the same 400
# real images; `pixels` uses the image itself as its features:

# %%
order = torch.randperm(len(real.full), generator=rng(1))
reference, others = real.full.images[order[:400]], real.full.images[order[400:550]]
noisy = data.to_float(others) + 0.2 * torch.randn(others.shape, generator=rng(2))
candidates = {
    "real, others": others,
    "shifted by a pixel": others.roll(1, dims=3),
    "with noise": data.to_uint8(noisy),
    "DDPM": images[torch.randperm(len(images), generator=rng(3))[:150]],
    "one image a class": real.full.images[first.repeat(15)],
}
extractors = {
    "pixels": lambda pictures: data.to_float(pictures).flatten(1),
    "digits": lambda pictures: metrics.describe(pictures, "digits").features,
    "lite0": lambda pictures: metrics.describe(pictures, "lite0").features,
}
scores = {}
for name, extract in extractors.items():
    target = extract(reference)
    scores[name] = {
        candidate: metrics.compare(extract(pictures), target)["fid"]
        for candidate, pictures in candidates.items()
    }
frame = pd.DataFrame(scores)
ranks = frame.rank().astype(int)
pd.DataFrame(
    {
        name: [f"{v:.3g} ({r}.)" for v, r in zip(frame[name], ranks[name], strict=True)]
        for name in frame
    },
    index=frame.index,
)

# %% [markdown]
# FID, and in brackets the place in its column. The columns are on scales of their own, and they do not even agree on
# the *order*: a shift by a pixel, noise and a bad model change places. `lite0` never saw anything like these digits,
# and with 150 images in 1280 dimensions it is deep in trap 2. So a score travels with the name of its extractor, and
# with the hash of its weights.
#
# ## Trap 6: guidance moves everything
#
# {numref}`fig-guidance` has FID against the {term}`guidance scale`. What it buys and what it costs shows in two
# scores at once. Every method with records at more than one scale, on Few:

# %%
all_records = records.load_records(
    **words,
    weights="theta",
    overrides={},
)
scales = {
    name: sorted(
        {
            r["run"]["guidance_scale"]
            for r in all_records
            if r["run"]["method"] == method
        }
    )
    for method, name in TITLES.items()
}
guided = {m: n for m, n in TITLES.items() if len(scales[n]) > 1}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Recall and precision on Few, a point per method and guidance scale (mean over the seeds that all its scales have), joined from scale 1 (a square) to the largest that was run. Records in results/.", "name": "fig-metrics-guidance"}, "image": {"alt": "Lines in the plane of recall and precision. Without guidance CBDM and OC lie low. All lines end further left and further up than they begin, that of RS barely: more precision, less recall. Those of DDPM and CALL bend down again at the end.", "classes": "dark-light"}}
styles = viz.method_lines(guided)
figure, axes = plt.subplots(figsize=(6.4, 3.6))
plt.close(figure)
for method, name in guided.items():
    at = records.same_seeds({s: every(method, s) for s in scales[name]}, at_least=1)
    points = np.array(
        [
            [
                records.mean_std(some, "metrics", "few", m)[0]
                for m in ("recall", "precision")
            ]
            for some in at.values()
        ]
    )
    axes.plot(*points.T, label=name, **styles[method])
    axes.plot(*points[0], "s", color=styles[method]["color"], markersize=6)
axes.set(xlabel="recall", ylabel="precision")
axes.legend(fontsize=8, ncols=2)
figure

# %% [markdown]
# A single scale is a point on such a line. FID weighs the two coordinates in some way of its own, so one can often
# lower it by moving along the line, with no better model. The paper does not state its scale; the published commands
# of CBDM and OC have scales from 1.8 to 3, written in this book's way.
#
# ## Trap 7: seeds
#
# Train again with another seed and the score is another. From the records without guidance, of methods with three
# seeds or more: the difference to DDPM on Few, seed by seed (the same seed sees the same images, timesteps and noise;
# but RS other images, and ADA other timesteps and noise), beside how much the seeds scatter by themselves:

# %%
base = {r["run"]["seed"]: r["metrics"]["few"]["fid"] for r in every("ddpm")}


def variance(by_seed):
    return np.var(list(by_seed.values()), ddof=1)


rows = {}
for method, name in TITLES.items():
    own = {r["run"]["seed"]: r["metrics"]["few"]["fid"] for r in every(method)}
    if len(own) < 3 or method == "ddpm":
        continue
    gain = np.array([own[s] - base[s] for s in sorted(base.keys() & own.keys())])
    needed = max(2, 4 * (variance(own) + variance(base)) / gain.mean() ** 2)
    rows[name] = {
        "difference to DDPM, by seed": ", ".join(f"{g:+.1f}" for g in gain),
        "mean": f"{gain.mean():+.1f}",
        "deviation of its seeds": f"{variance(own) ** 0.5:.1f}",
        "seeds needed": f"{np.ceil(needed):.0f}",
    }
print(f"standard deviation of DDPM's {len(base)} seeds: {variance(base) ** 0.5:.1f}")
pd.DataFrame(rows).T

# %% [markdown]
# The last column is how many seeds of each, at least two, would put a difference of that size two standard errors away
# from zero, $4\,(s_1^2 + s_2^2) / \Delta^2$, if nothing were paired. Pairing helps where both methods see the same, and
# it is why we compare seed by seed. And half of such experiments would still miss it: an estimate that is expected at
# two standard errors falls below two standard errors as often as above. With a few seeds even the deviations are
# guesses.
#
# ## The paper's tables, and ours
#
# `results/paper` holds every cell of the paper's five tables; `records.paper_and_ours` sets beside each cell our
# records of the same data, method and settings **if they are comparable**: profile `paper` (300,000 steps, 50,000
# images) and the Inception extractor. A table has a column of ours once there is such a record. Our numbers of other
# profiles are measurements, of something else; they come further down, in a table of their own.

# %%
DATA = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "celeba-hq": "CelebA-HQ",
    "artbench10": "ArtBench-10",
}
SPLITS = {"class-0": "Female", "class-1": "Male"}
SCORES = {"fid": "FID", "kid": "KID", "recall": "recall", "is": "IS"}
NAMES = TITLES | {
    f"oc-call, {term}=0": f"OC + CALL, no {term}"
    for term in ("consistency", "diversity")
}
everything = records.load_records()


def beside(table):
    frame = pd.DataFrame(records.rows_beside_the_paper(table, everything))
    ours = ["ours"] if (frame["ours"] != "not run").any() else []
    return (
        frame.replace({"data": DATA, "method": NAMES, "split": SPLITS})
        .pivot_table(
            index=["data", "IR", "method"],
            columns=["split", "metric"],
            values=["paper", *ours],
            aggfunc=", ".join,
            sort=False,
        )
        .reorder_levels([1, 2, 0], axis=1)
        .rename_axis(columns=[None] * 3)
    )


# %% [markdown]
# **Table 1**, CIFAR. Mean ± standard deviation; the paper does not say over what. OC + CALL is what it calls CALL.

# %% tags=["hide-input"]
beside(1)

# %% [markdown]
# **Table 2**, CelebA-HQ at 64 × 64. Female is the majority.

# %% tags=["hide-input"]
beside(2)

# %% [markdown]
# **Table 3**, ArtBench-10, Stable Diffusion fine-tuned ({doc}`14_stable_diffusion`).

# %% tags=["hide-input"]
beside(3)

# %% [markdown]
# **Table 5**, CALL on three base losses, and without one of its two terms. (Table 4, θ against θᵍ, is in
# {doc}`04_general_and_expert`.)

# %% tags=["hide-input"]
beside(5)

# %%
for table in (1, 2, 3, 5):
    rows = records.paper_and_ours(table, everything)
    ran = sum(bool(row["ours"]) for row in rows)
    print(f"Table {table}: {len(rows)} numbers, {ran} of them run by us")

# %% [markdown]
# ### Read with their deviations
#
# How far ahead is the paper's CALL of the best baseline of each score, in units of the combined deviation
# $\sqrt{s_1^2 + s_2^2}$? KID is printed to four decimals; the last column has what its lead can be before rounding.

# %%
lead, kid_lead = {}, {}
half = 0.00005  # of KID's last decimal
for table in (1, 2, 3):
    groups = {}
    for row in records.paper_table(table):
        key = (row["dataset"], row["imbalance_ratio"], row["split"], row["metric"])
        groups.setdefault(key, {})[row["method"]] = (row["mean"], row["std"])
    for (name, ratio, split, metric), by_method in groups.items():
        sign = 1 if metric in ("recall", "is") else -1
        mean, std = by_method.pop("oc-call")
        best, best_std = max(by_method.values(), key=lambda v: sign * v[0])
        gap = round(sign * (mean - best), 6)
        setting = f"{DATA[name]}, IR {ratio:g}"
        column = f"{SPLITS.get(split, '')} {SCORES[metric]}".strip()
        lead.setdefault(setting, {})[column] = gap / np.hypot(std, best_std)
        if metric == "kid":
            least, most = (
                (gap + 2 * h) / np.hypot(std - h, best_std - h) for h in (-half, half)
            )
            kid_lead[setting] = f"{least:+.1f} to {most:+.1f}"
frame = pd.DataFrame(lead).T
ahead, level, behind = ((np.sign(frame) == s).sum().sum() for s in (1, 0, -1))
print(f"ahead {ahead} times, level {level}, behind {behind}")
frame = frame.map(lambda v: "" if v != v else f"{v:+.1f}")
frame.assign(**{"KID, before rounding": kid_lead})

# %% [markdown]
# By FID and by KID the paper's CALL is ahead of the best baseline in every setting: furthest on ArtBench-10, least on
# CelebA-HQ, where the lead is in the minority's own FID. On recall and IS it is within one deviation of the best, ahead
# or behind. So the claim rests on FID and KID, and recall, the score that sees copies (trap 3), adds nothing to it.
#
# This describes the tables and tests nothing. The paper does not say over how many runs, or over what, its deviations
# are; over $n$ runs the standard error of a mean is $\sqrt n$ times smaller than the deviation. The best of up to six
# baselines is chosen by the very score that it is compared by. And the last column shows how little of some of KID's
# leads is left once rounding is allowed for.
#
# Two of the four gains over DDPM that one sentence of the paper's Section 5.2 states do not follow from its Table 1: it
# has 2.725 (CIFAR-10, IR 100) and 2.571 (CIFAR-100, IR 50), where the cells differ by 2.970 and 2.631. We keep the
# cells.
#
# ### Ours, on digits
#
# The same methods on {doc}`digits <02_long_tailed_data>` at IR 50, overall, at each scale that was run. Extractor
# `digits`: **another scale, another data set, a network a hundredth of the size.** What can be compared with the
# paper is a direction at best:

# %%
lines = {}
for method, name in TITLES.items():
    for scale in scales[name]:
        runs = every(method, scale)
        lines[name, f"s = {scale:g}"] = {"n": len(runs)} | {
            word: records.score_words(runs, "overall", metric)
            for metric, word in SCORES.items()
        }
pd.DataFrame(lines).T


# %% tags=["prose-table"]
def in_print(ours, baseline):
    (mean, std), (other, other_std) = ours, baseline
    level = abs(mean - other) < np.hypot(std, other_std)
    return "level" if level else "better" if mean < other else "worse"


def here(ratio):
    if len(ratio.seeds) < claims.SEEDS:
        return f"ratio {ratio.mean:.2f} (n = {len(ratio.seeds)})"
    verdict = claims.RULING[claims.verdict(ratio, "lower")]
    return f"{verdict} (n = {len(ratio.seeds)})"


paper = {}
for row in records.paper_table(1) + records.paper_table(5):
    if row["metric"] == "fid" and not row["overrides"]:
        setting = (row["dataset"], row["imbalance_ratio"])
        paper.setdefault(setting, {})[row["method"]] = row["mean"], row["std"]
directions = {}
for method, name in TITLES.items():
    if method == "ddpm":
        continue
    line = {
        f"{DATA[d]}, IR {ratio:g}": in_print(v[method], v["ddpm"])
        if method in v
        else ""
        for (d, ratio), v in paper.items()
    }
    for scale in (1.0, 1.5, 2.5):
        ratio = paired(*(every(m, scale) for m in (method, "ddpm")), ratio=True)
        if ratio.seeds:
            line[f"digits, s = {scale:g}"] = here(ratio)
    directions[name] = line
print("overall FID, compared with DDPM at the same scale; in print, level: within one")
print("standard deviation of the difference; here as in chapter 11")
pd.DataFrame(directions).T.fillna("not run")

# %% [markdown]
# Which directions carry over ({doc}`11_ablations` has the words for ours) is decided by the guidance scale. At 2.5,
# where DDPM is far from its own best and OC at the best that it had, CBDM, OC and OC + CALL are ahead of DDPM, as in
# print (where CBDM is level once). Of the others only focal loss is, in each of three seeds, by an interval that
# contains 1; CALL on DDPM's loss is worse than DDPM, by four percent, and ADA is behind it in each seed. Without
# guidance CBDM, OC and OC + CALL are far behind DDPM, and CALL on DDPM's loss is ahead of it; at 1.5 RS is behind, as
# in print. The paper does not say at which scale it compares. With one small data set and a few seeds we would not read
# more into it. The paper's grids are ready to run ({doc}`../book/sweeps`); once their records are in `results/`, the
# tables above show them, as does `python -m callkit table --paper 1`.
#
# ```{admonition} Pitfalls
# :class: warning
# * **Random labels.** Draw the labels of generated images at random, and a rare class has a few more or fewer than a
#   common one; draw them from the training frequencies, and the score hides the tail.
# * **A deviation over reshuffles of one generated set.** It can be as small as one likes, and says nothing about seeds.
# * **Floats.** An image is 8 bits. Scores of unrounded samples are others.
# * **Test set, training set.** "CIFAR-10 FID" has been computed against both.
# * **Recall alone rewards scatter.** A high one means something where precision is not low.
# * **Recall depends on $n$ and $k$ as well** ({ref}`ex-metrics-k`).
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-metrics-moments
# Only two moments enter FID. Make features that have FID near 0 to the real digits and are no digits' features at
# all. Which scores notice?
# ```
#
# ```{solution-start} ex-metrics-moments
# :class: dropdown
# ```
#
# Draw from the fitted Gaussian itself:

# %%
gaussian = np.random.default_rng(0).multivariate_normal(y.mean(0), np.cov(y.T), 1000)
fake = metrics.compare(torch.from_numpy(gaussian[: len(x)]).float(), described.features)
pd.DataFrame({"Gaussian": fake, "DDPM": {k: ours[k] for k in fake}}).T.map(
    "{:.2f}".format
)

# %% [markdown]
# FID prefers the Gaussian cloud to samples of digits, and so does recall: balls around a cloud are large. KID has a
# third moment to object with, and precision sees that hardly any of the cloud is near a real image. Coverage, whose
# balls lie around the real images, sees it too:


# %%
def coverage(real, generated, k=metrics.NEIGHBORHOOD):
    """Share of the real images in whose ball a generated one lies."""
    real, generated = torch.as_tensor(real), torch.as_tensor(generated)
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    nearest = torch.cdist(real, generated).min(1).values
    return (nearest <= radius).double().mean().item()


for name, features in {"Gaussian": gaussian[: len(x)], "DDPM": x}.items():
    print(f"coverage, {len(x)} images: {name} {coverage(y, features):.2f}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-metrics-k
# The published code of CBDM computes Recall with $k = 5$, we with 3. What does $k$ do, and what does the number of
# generated images?
# ```
#
# ```{solution-start} ex-metrics-k
# :class: dropdown
# ```
#
# A larger $k$ means larger balls, and recall rises. Fewer images mean larger balls that are fewer, which work against
# each other:

# %%
pd.DataFrame(
    {
        f"{n} images": {
            f"k = {k}": f"{covered(y, x[torch.randperm(len(x), generator=rng())[:n].numpy()], k):.2f}"
            for k in (1, 3, 5, 10)
        }
        for n in (100, 250, 500)
    }
)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-metrics-splits
# Long-tailed recognition often defines the splits by size: Many above 100 images, Few below 20. Which classes are Few
# then, for our digits, for CIFAR-10 and for CIFAR-100 at IR 100?
# ```
#
# ```{solution-start} ex-metrics-splits
# :class: dropdown
# ```

# %%
counts = {
    dataset: real.train.counts,
    "CIFAR-10": data.long_tailed_counts(5000, 10, 100),
    "CIFAR-100": data.long_tailed_counts(500, 100, 100),
}


def named(classes):
    return f"{classes[0]} to {classes[-1]}" if len(classes) else "none"


pd.DataFrame(
    {
        name: {
            "Few by thirds": len(data.splits(n)["few"]),
            "Few by size": int((n < 20).sum()),
            "they are": named(np.flatnonzero(n < 20)),
            "Many by thirds": len(data.splits(n)["many"]),
            "Many by size": int((n > 100).sum()),
        }
        for name, n in counts.items()
    }
)

# %% [markdown]
# By size CIFAR-10 has no Few at all. Thirds always have a Few, however many images it holds: the largest Few class of
# CIFAR-10 has more images than any class of our digits. "Few" is a rank and not a number of images.
#
# ```{solution-end}
# ```
#
# **Take-away.** A score is a comparison: of how many images with which, seen through which features, at which
# guidance, over how many seeds. On a long tail put recall and precision, and copies, beside FID. **Next.**
# {doc}`11_ablations`: which parts of CALL the scores depend on.
