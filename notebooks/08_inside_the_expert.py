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
# (ch-inside)=
# # 08 · Inside the expert
#
# **Objective.** Find out what the expert $\theta^e$ of a trained network really does, with six looks at one network,
# and a seventh at other runs. **Prerequisites.** {doc}`04_general_and_expert`. **Time.** 20 minutes to read, some
# minutes to run. **The one figure.** {numref}`fig-repairs`.
#
# {doc}`04_general_and_expert` found a striking result: without its expert, the network draws majorities as well as
# before and fails on minorities. The paper reads its own such result (Table 4) as *the expert holds the minorities'
# knowledge*. There is a second reading. The loss rewards $\theta^g$ for being **wrong** on minorities, and there are
# many ways to be wrong, some of which need no knowledge at all. The two readings make different predictions, so we can
# ask.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released checkpoint
per_class = 100  # generated images a class and measurement

# %% tags=["remove-output"]
import pandas as pd
import torch
import torch.nn.functional as F

from callkit import data, notebook, probes, sampling, viz
from callkit.capacity import expert_scale, expert_weights, merge
from callkit.checkpoints import load_model
from callkit.diffusion import NoiseSchedule

words = dict(
    dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile, seed=seed
)
notebook.check(**words, per_class=per_class)
viz.style()
model, config = load_model(notebook.released(**words, method="call"), "reserved")
ddpm, _ = load_model(notebook.released(**words, method="ddpm"))
real = data.load_long_tailed(dataset, imbalance_ratio)
schedule, splits = NoiseSchedule(), data.splits(real.train.counts)

# %% [markdown]
# Everything below is about one training run (see the parameters). FIDs come from few images, so compare them with one
# another and not with the tables.
#
# ## 1 · How much of the loss pushes?
#
# Near $D = 0$ the allocation loss multiplies the $D$ of a training image by $\omega_\text{Con} - \omega_\text{Div}$ of
# its class. The sum of these coefficients over the images of each class, divided by the number of all images:

# %% mystnb={"figure": {"caption": "Coefficient of the distance D in the allocation loss, by class, weighted by how often the class is drawn. Axis linear within ±0.01, logarithmic beyond.", "name": "fig-signed-mass"}, "image": {"alt": "Bars by class: the first five are positive, between more than 1 and a few hundredths; the last five are negative and at most a few hundredths deep.", "classes": "dark-light"}}
mass = probes.signed_mass(real.train.counts)
print(f"pull {mass[mass > 0].sum():.2f}, push {mass[mass < 0].sum():.3f}")
viz.signed_mass(mass, splits)
# %% [markdown]
# The push is a small part of the loss, for minorities are rarely drawn. It wins where it acts because nothing else
# there cares what $\theta^g$ says: the base loss sees only $\theta$.
#
# ## 2 · Where do the two predictions differ?
#
# $D$ by class and timestep, on the balanced set:

# %% mystnb={"figure": {"caption": "Distance between the predictions of θ and θᵍ by class and timestep, balanced set, one noise per image.", "name": "fig-distance-map"}, "image": {"alt": "A map of ten classes by seven timesteps. Rows 0 to 4 are dark at 0.0001 and below; rows 5 to 9 are bright, from 0.04 to 0.5; along a row the colour hardly changes.", "classes": "dark-light"}}
timesteps = [20, 100, 200, 400, 600, 800, 950]
distance = probes.branch_distance(model, real.full, schedule, timesteps)
viz.distance_map(distance, timesteps)
# %% [markdown]
# The classes separate as the weights ask. But look along a row: for the minorities $D$ is the same at every $t$. At
# $t = 950$ the input is noise. A prediction $\hat\epsilon$ implies an image $\hat{\mathbf{x}}_0$, and both networks see
# the same $\mathbf{x}_t$, so a *squared* difference in noise is the squared difference of the implied images times
# $\bar\alpha_t / (1 - \bar\alpha_t)$ ({eq}`eq-unet-snr`), which is $1.1 \cdot 10^{-4}$ here. Pixels lie in $[-1, 1]$,
# so two images differ by at most $2^2 = 4$ a pixel in the square: two networks with *any* two images in mind would be
# at $D < 5 \cdot 10^{-4}$. These two are at 0.04 to 0.4, a hundred to a thousand times as far. Whatever separates them
# there cannot be knowledge of images.
#
# ## 3 · Turning the dial
#
# Between $\theta^g$ and $\theta$ lies $W^g + s\,BA$:

# %% mystnb={"figure": {"caption": "FID by split against the scale of the expert, all from one noise.", "name": "fig-dial"}, "image": {"alt": "Three lines over the scale from 0 to 1, log axis: Many is flat, Medium falls by a factor of about three, Few by a factor of about twenty, most of it before 0.75.", "classes": "dark-light"}}
scales = [0.0, 0.25, 0.5, 0.75, 1.0]
points = list(probes.dial(model, real, scales, per_class))
viz.dial_curves(scales, {s: [p.scores[s]["fid"] for p in points] for s in splits})
# %% [markdown]
# Many does not move; Few falls twentyfold, most of it (as a ratio: the axis is logarithmic) between a half and three
# quarters of the expert, and little after. That looks like a switch more than like a store.
#
# ## 4 · The shape of the expert
#
# Each decomposed matrix has its own $BA$ of a rank that we chose. Did training use it? The singular values:

# %% mystnb={"figure": {"caption": "Singular values of BA for every decomposed matrix, by kind of layer. Numbers are the places of the blocks in the up path; emb projects the embedding of time and class.", "name": "fig-spectra"}, "image": {"alt": "A column of dots for each matrix. Two of the embedding projections have one value far above everything else, 1.6 and 0.8; almost all other dots of the figure lie below 0.3.", "classes": "dark-light"}}
spectra = probes.spectra(model)
kinds = {"embedding projections": "emb", "attention": "attention", "convolutions": ""}
by_kind = {kind: {} for kind in kinds}
for name, spectrum in spectra.items():
    kind = next(k for k, word in kinds.items() if word in name)
    by_kind[kind][name.removeprefix("up.")] = spectrum.expert
viz.spectra(by_kind)
# %% [markdown]
# The largest directions are in the projections of the time-and-class embedding, in two of the four, and there it is
# *one* direction of the rank that was reserved. A projection of the embedding adds the same vector to all pixels: it
# can tell classes apart, and cannot draw.
#
# ## 5 · Repairing θᵍ
#
# Now the decisive comparison. We take $\theta^g$ and add
#
# * a **random** $BA$ of the same singular values: does any perturbation of that size do?
# * the same random $BA$, **scaled up** until it changes the prediction on Few as much as the trained one does;
# * only the **embedding projections** of the expert, each cut to rank **one**;
# * no expert at all, but **one number per class**, the mean of $\epsilon_\theta - \epsilon_{\theta^g}$ over the pixels
#   of the training images, added to every pixel of $\theta^g$'s prediction. Ten numbers, of which five are about zero.

# %%
offset = probes.offset(model, real.train, schedule)
pd.DataFrame(
    {
        "number": offset.mean.numpy().round(3) + 0.0,  # no -0.0
        "share of D that it explains": [f"{s:.0%}" for s in offset.share],
    }
).rename_axis("class").T

# %% [markdown]
# How far each addition moves the prediction away from that of $\theta^g$, as $D$ on the balanced set, the mean of three
# of the timesteps above:

# %%
control = probes.random_expert(model)
factor = 45  # by trial: D on Few is then about that of the trained expert
embeddings = probes.truncated_expert(model, rank=1, only="emb")
some = slice(None, None, 3)  # of the timesteps


def moved(network, scale=1.0):
    with expert_scale(network, scale):
        moves = probes.branch_distance(network, real.full, schedule, timesteps[some])
    return moves.mean(1)


by_class = {
    "θᵍ + random BA": moved(control),
    f"θᵍ + random BA × {factor}": moved(control, factor),
    "θᵍ + a number per class": offset.mean.square().numpy(),
    "θᵍ + rank-one embeddings": moved(embeddings),
    "θ": distance[:, some].mean(1),
}
pd.DataFrame(
    {
        name: {f"D, {s.capitalize()}": f"{d[c].mean():.2g}" for s, c in splits.items()}
        for name, d in by_class.items()
    }
).T

# %% mystnb={"figure": {"caption": "FID by split of θᵍ, of θᵍ with four additions, and of θ; one noise for all.", "name": "fig-repairs"}, "image": {"alt": "Grouped bars, log axis. The random expert scaled up is above 700 on Many and Medium, far above all others, which on Many are about equal. On Few both random experts leave the FID of θᵍ about where it was, one number per class lowers it by more than half, and the rank-one embedding projections bring it close to that of θ.", "classes": "dark-light"}}
general = merge(model, 0.0)
repaired = {
    "θᵍ": general,
    "θᵍ + random BA": merge(control),
    f"θᵍ + random BA × {factor}": merge(control, factor),
    "θᵍ + a number per class": probes.WithOffset(general, offset.mean),
    "θᵍ + rank-one embeddings": merge(embeddings),
    "θ": merge(model),
}
fid = {}
for name, network in repaired.items():
    scores = probes.scores(network, real, per_class)
    fid[name] = {s: (scores[s]["fid"], float("nan")) for s in ("many", "medium", "few")}
figure = viz.split_bars(fid)
figure.set_figwidth(8)
figure.axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
figure
# %% mystnb={"figure": {"caption": "Class 9, three training images: samples from the same noises.", "name": "fig-repaired-samples"}, "image": {"alt": "Four rows of small images of the digit nine: those of θᵍ are washed out; those with a number per class are dark and noisy, a nine hardly to be made out; those with rank-one embeddings resemble those of θ.", "classes": "dark-light"}}
labels = sampling.balanced_labels(model.num_classes, 1)[-1:].repeat(12)
size = real.full.images.shape[-1]
shown = {
    n: sampling.sample(m, schedule, labels, size)
    for n, m in repaired.items()
    if "random" not in n
}
viz.image_rows(list(shown.values()), list(shown))
# %% [markdown]
# A random expert repairs nothing. At the singular values of the trained one that says little, for it hardly changes the
# prediction. Scaled up, the random expert changes the prediction on Few as much as the trained one does, leaves the FID
# there about where it was, and ruins Many and Medium, for it cannot tell classes apart. So the directions matter. But
# one number for each class undoes a good part of what separates $\theta^g$ from $\theta$ on Few, by FID though not to
# the eye, and one direction in each of a few small matrices nearly all of it. Neither can hold what a 9 looks like.
# Rank one gives each block *one* fixed vector, times a number that depends on class and time; all classes share the
# vector and differ in the number alone. A few such vectors cannot draw five digits. But four projections make four
# numbers a class, which could be enough to *select* one of five digits, for $W^g$ to draw. Here they are: each is a
# direction's singular value times what the direction reads off the embedding, and multiplies a vector of length one.
# Signs are such that the rarest class has positive ones.

# %%
parts = {n: e for n, e in expert_weights(embeddings).items() if n.endswith("emb")}
classes = torch.arange(model.num_classes)
minorities = torch.from_numpy(mass < 0)  # by the loss: 5 to 9
rows = {}
for t in (20, 980):
    with torch.no_grad():
        told = F.silu(model.embed(torch.full_like(classes, t), classes))
        numbers = [e.B[:, 0].norm() * (told @ e.A[0]) for e in parts.values()]
    table = torch.stack([v * v[-1].sign() for v in numbers])  # (projections, classes)
    squares = torch.linalg.svdvals(table[:, minorities]).square()
    print(f"t = {t}: one direction has {squares[0] / squares.sum():.1%} of classes 5-9")
    for name, values in zip(parts, table, strict=True):
        rows[f"t = {t}", name] = [f"{v:.2f}" for v in values]
pd.DataFrame(rows).rename_axis("class").T

# %% [markdown]
# For the majorities they are small. For the five minorities the four numbers are nearly one pattern times a strength of
# each class: a table of rank one holds 99 % of the sum of their squares. And a strength cannot say *which* digit.
# Except in the projection that does least, 8 and 9 have almost the same numbers; which of the two has the larger ones
# even depends on $t$. So these directions have next to nothing by which to tell 8 from 9. They say *how much*, not
# *which*. What turns the one into an 8 and the other into a 9 is in what both networks have, $W^g$ and the layers
# before it. **In this run $\theta^g$ knows the minorities.** When it is told their class it adds a fixed vector to the
# features of its up-path blocks, and the expert's main work is to take these vectors away again. In the prediction they
# show mostly as a constant; but to subtract that constant at the end, the "number per class" above, does not restore
# the images. (One run. On CIFAR-10, by the loss alone, one direction in each projection does most of it in seven
# networks of ten, and one in each decomposed matrix all of it in ten: {doc}`16_cifar10`.)
#
# ## 6 · Is a minority easier to recognise?
#
# One more way to ask. Does $\theta$ see minorities better than $\theta^g$ does, or a plain DDPM, if nobody tells it the
# class? We give the networks noised images under Null, take the features that enter the last convolution, averaged over
# pixels, and let a logistic regression decide "is it of Few?" Its score is the area under the ROC curve: the chance
# that an image of Few gets a higher value than another image. One half is guessing:

# %% mystnb={"figure": {"caption": "How well a linear classifier tells the classes of Few from the rest, by features and timestep; five-fold cross-validation on the balanced set. Dotted: chance.", "name": "fig-probe"}, "image": {"alt": "Three falling lines from about 0.9 at t = 20 to chance beyond t = 500. θ and θᵍ lie on one another, DDPM slightly above.", "classes": "dark-light"}}
probe_timesteps = [20, 100, 200, 300, 400, 600]
networks = {"DDPM": ddpm, "CALL, θ": repaired["θ"], "CALL, θᵍ": general}
auc = {
    name: [
        probes.minority_probe(
            probes.hidden_features(network, real.full, schedule, t),
            real.full.labels,
            splits["few"],
        )
        for t in probe_timesteps
    ]
    for name, network in networks.items()
}
viz.probe_curves(probe_timesteps, auc)
# %% [markdown]
# It does not: when no class is given, $\theta$ and $\theta^g$ have the same features, and DDPM's are a little better,
# in this one pair of runs. Read no more into it. An expert that acts only when a class is given cannot show here,
# whatever it holds; and under Null, which stands for all classes in turn, the loss as a whole pulls the two predictions
# together (the first figure). So this probe rules out that $\theta$ recognises minorities without being told the class,
# and it cannot tell knowledge from a switch. The repairs above can.
#
# ## 7 · What if a constant gains nothing?
#
# The cheapest way to differ can be forbidden: with `centred=True` $D$ is that of the difference without its mean over
# pixels. FID on Few in other runs, and $D$ on Few at the end of their training, beside the default and a smaller bound:

# %%
study, _ = notebook.study(dataset, imbalance_ratio, profile)
variants = {"default": {}, "b = 0.01": {"bound": 0.01}, "centred": {"centred": True}}


def by_seed(method, overrides, weights="theta"):
    return {r["run"]["seed"]: r for r in study.select(method, overrides, weights)}


plain, rows = by_seed("ddpm", {}), {}
for name, overrides in variants.items():
    theta = by_seed("call", overrides)
    theta_g = by_seed("call", overrides, "theta_g")
    for k in sorted(theta.keys() & theta_g.keys() & plain.keys()):
        rows[f"{name}, seed {k}"] = {
            title: f"{of[k]['metrics']['few']['fid']:.1f}"
            for title, of in (("DDPM", plain), ("θ", theta), ("θᵍ", theta_g))
        } | {"D": f"{theta[k]['training']['curve']['distance_few'][-1]:.3f}"}
pd.DataFrame(rows).T

# %% [markdown]
# With `centred` $\theta^g$ parts all the same, by something else than a constant. ($D$ in these rows is that of the
# centred difference. It ends where the default's does because the rest point is a matter of counts and $b$.) But
# $\theta^g$ does not always fail on minorities now: its FID on Few is 481, 21 and 120, and in seed 1 the network
# *without* its expert is ahead of the one with it, and of DDPM. With b = 0.01 the same happens in the same seed, by
# less. So parting in $D$ need not make $\theta^g$ bad.
#
# ## What follows
#
# * *$\theta^g$ fails on minorities while $\theta$ does not* is one way for the two to differ, and to differ is what the
#   loss asks for. That alone does not show that knowledge moved. Only controls like those above can, and here they say
#   that little did.
# * Nor does a large $D$ imply that $\theta^g$ fails on minorities, as the last table shows. In its runs $\theta$ cannot
#   be told from the default's ({numref}`fig-bounds`), whatever $\theta^g$ draws.
# * An expert that *can* hold no image does the same: with the embedding projections alone decomposed the predictions
#   part as far, $\theta^g$ fails on Few, and $\theta$ is on Few nearly as good ({doc}`07_a_floor_for_the_loss`, in
#   three seeds).
# * That $\theta$ can still be better on Few than DDPM ({doc}`04_general_and_expert`) is a separate observation, and
#   needs a separate explanation.
# * All of this is about a small network on 8 × 8 images. Nothing here says what the experts of the paper's networks
#   hold. To find out takes three of these probes and one checkpoint: {numref}`fig-distance-map`, {numref}`fig-spectra`
#   and {numref}`fig-repairs`.
#
# ```{admonition} Pitfalls
# :class: warning
# * A distance says *that* two predictions differ. Split it into what a constant explains and the rest before you call it
#   knowledge.
# * A control must match what it stands for in *effect*: with the same singular values our random expert moves the
#   prediction hundreds of times less than the trained one.
# * A mean with its deviation can hide the run that contradicts you. If there are only a few runs, show them one by one.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-cheapest-lie
# Among all ways for $\theta^g$ to differ from $\theta$ by a given $D$ on class $c$ at every $t$, why is a constant a cheap
# one for this network? Which layers can produce it?
# ```
#
# ```{solution-start} ex-cheapest-lie
# :class: dropdown
# ```
#
# A constant needs no information about $\mathbf{x}_t$ or $t$, only the class, and the class enters through
# `emb`, the projections of the embedding, which add a vector to all pixels alike. One direction in one of them that
# answers to minority classes is enough to make *a* constant; the layers behind it pass it on. And a matrix of rank one
# can undo it. This run spread its constant over two or three projections, so one of them repairs only part (next
# exercise).

# %%
print([name for name in expert_weights(model) if name.endswith("emb")])

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-one-projection
# Is a single projection of the embedding enough? Keep the rank-one part of only one of them and measure.
# ```
#
# ```{solution-start} ex-one-projection
# :class: dropdown
# ```

# %%
strongest = max(spectra, key=lambda name: spectra[name].expert[0])
one = merge(probes.truncated_expert(model, rank=1, only=strongest))
few = probes.scores(one, real, per_class)["few"]["fid"]
print(
    f"only {strongest}: Few {few:.1f}; θᵍ {fid['θᵍ']['few'][0]:.1f}, θ {fid['θ']['few'][0]:.1f}"
)

# %% [markdown]
# The strongest one alone does part of the work, as the constant does.
#
# ```{solution-end}
# ```
#
# **Take-away.** In the run of this page, on digits, capacity *is* allocated, and the expert *is* needed; but what it
# holds is mostly a switch. **Next.** {doc}`09_rivals`: what others do for minorities.
