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
# (ch-ablations)=
# # 11 · Ablations
#
# **Objective.** Change one thing of CALL at a time, $\lambda$, its two terms, rank, place, the network's widths, and
# say what the change is worth, with an interval. **Prerequisites.** {doc}`04_general_and_expert`,
# {doc}`07_a_floor_for_the_loss`. **Time.** 20 minutes to read, seconds to run. **The one figure.**
# {numref}`fig-ablations`.
#
# Everything here is computed from the records in `results/` when the page is built. How many seeds a row has is written
# beside it. Where there is one, it is an anecdote, and the page says so.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"

# %% tags=["remove-output"]
import numpy as np
import pandas as pd
import scipy.stats
import torch
from IPython.display import display

from callkit import claims, data, notebook, records, tables, viz
from callkit.allocation import class_weights, saturate
from callkit.checkpoints import build_model
from callkit.config import make_config
from callkit.statistics import mean_interval, paired, sign_flip_p

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words)
viz.style()
study, everything = notebook.study(**words)
splits = tables.splits(study)
everywhere = (*splits, "overall")

# %% [markdown]
# ## What a difference is worth
#
# Before any ablation, the ruler. Let $F_s$ be the FID of a method with seed $s$ and $F'_s$ that of what it is compared
# with. The training images are the same for all runs; a seed fixes the batches, every timestep and noise of training,
# and the noise that sampling starts from, and both methods meet the same (but for RS, which draws other images, and
# ADA, whose warps come before timesteps and noise). So compare *within* a seed, then average:
#
# ```{math}
# :label: eq-paired
# d_s = \log \frac{F_s}{F'_s}, \qquad
# \bar d \pm t_{n-1}\, \frac{\operatorname{sd}(d)}{\sqrt n}, \qquad
# \frac{F}{F'} = e^{\bar d} \ \bigl[\, e^{\bar d - \dots},\ e^{\bar d + \dots} \bigr] ,
# ```
#
# with $t_{n-1}$ the 97.5 % quantile of Student's distribution with $n - 1$ degrees of freedom: 4.30 for three seeds,
# 2.78 for five. It is the {term}`paired interval` of this book, and it excludes 1 just where the p-value of the paired
# t-test is below 0.05. In full, for CALL against DDPM on Few:

# %%
ddpm, call = study.select("ddpm"), study.select("call")


def few(found):
    return {r["run"]["seed"]: r["metrics"]["few"]["fid"] for r in found}


seeds = sorted(few(call).keys() & few(ddpm).keys())
d = np.log([few(call)[s] / few(ddpm)[s] for s in seeds])
half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
by_hand = np.exp([d.mean(), d.mean() - half, d.mean() + half])

ratio = paired(call, ddpm, "few", ratio=True)
assert np.allclose(by_hand, [ratio.mean, ratio.low, ratio.high])
print("seeds", ratio.seeds, "ratios", np.round(ratio.values, 3))
print(
    f"CALL / DDPM on Few: {ratio.words()}, p = {ratio.p:.3f} (t), {ratio.p_exact:.3f} (exact)"
)

# %% [markdown]
# **Why pair?** A seed may be lucky or unlucky for both methods, and that part cancels. Standard deviation over seeds of
# $\log F$, of each method and of the difference; where the last row is well below the one above it, pairing pays:

# %%
logs = {
    s: {
        m: np.log([r["metrics"][s]["fid"] for r in found if r["run"]["seed"] in seeds])
        for m, found in (("DDPM", ddpm), ("CALL", call))
    }
    for s in everywhere
}
pd.DataFrame(
    {
        s.capitalize(): {
            "DDPM": both["DDPM"].std(ddof=1),
            "CALL": both["CALL"].std(ddof=1),
            "difference, if they were independent": np.hypot(
                *(v.std(ddof=1) for v in both.values())
            ),
            "difference, paired": (both["CALL"] - both["DDPM"]).std(ddof=1),
        }
        for s, both in logs.items()
    }
).round(3)

# %% [markdown]
# **Why logarithms?** FID is positive, and its scatter over seeds grows with its size. Over all variants with at least
# three seeds, the rank correlation of mean and standard deviation on Few:

# %%
spread = [
    records.mean_std(found, "metrics", "few", "fid")
    for words in tables.variants(study)
    if len(found := study.select(**words)) >= 3
]
correlation = scipy.stats.spearmanr(*zip(*spread, strict=True))[0]
print(f"{correlation:+.2f} over {len(spread)} variants")

# %% [markdown]
# **What if it is not normal?** Three seeds cannot tell. A second test takes no distribution for granted: if the method
# made no difference, each $d_s$ could as well have had the other sign. Count the share of all $2^n$ sign patterns whose
# mean is at least as far from zero as the one seen. The price is that it can never be small for few seeds:

# %%
smallest = {n: sign_flip_p([1] * n) for n in (2, 3, 4, 5, 6, 8)}
pd.DataFrame({"smallest p": smallest}).rename_axis("seeds").T.round(3)

# %% [markdown]
# Below six seeds it cannot reach 0.05 whatever the truth. So our rule uses the interval, and the exact p is printed
# beside it as a warning:
#
# > We call A **better** than B if the whole 95 % interval of the paired FID ratio lies below 1, and **worse** if it lies
# > above, with **at least three seeds**. If every seed has the same sign and the interval does not exclude 1, we speak
# > of a *direction*: better, or worse, *in each seed*. With fewer seeds there is nothing to call.
#
# One more warning. **Where a comparison here has five seeds, two were added after three had been looked at**, mostly as
# these agreed in CALL's favour. If seeds are added until an interval excludes 1, a 95 % interval covers the truth less
# often than 95 %; {doc}`12_does_the_gain_last` sets the first three and the added two side by side.
#
# **What does a seed fix?** On one machine, with one version of everything, the run, bit for bit. With other dropout
# masks the same seed is another run, and with another version of PyTorch it may be. Our code drew these masks in
# another way until 24 November 2026, when seeds 0 to 2 of DDPM and of CALL had been trained. So in these seeds most
# rows below share images, timesteps and noise with what they are compared with, but not the masks; in seeds 3 and 4
# they share the masks as well. Some seeds were trained again after that to be sampled with guidance. Their loss curves
# tell which:

# %%
curves = {}
for words_ in tables.variants(study):
    if words_["weights"] == "theta" and not words_["overrides"]:
        for r in study.select(**words_):
            by_curve = curves.setdefault((words_["method"], r["run"]["seed"]), {})
            losses = tuple(r["training"]["curve"]["base_loss"])
            by_curve.setdefault(losses, []).append(f"{words_['guidance_scale']:g}")
for (method, seed), by_curve in curves.items():
    if len(by_curve) > 1:
        of = "; another ".join(f"run at {', '.join(at)}" for at in by_curve.values())
        print(f"{method}, seed {seed}: one {of}")

# %% [markdown]
# How much does that matter? Two seeds of DDPM and CALL were measured without guidance again as well, and these records
# kept apart (`benchmarks/again`):

# %%
again = records.load_records(
    records.REPOSITORY / "benchmarks" / "again", **words, overrides={}, guidance_scale=1
)
twice = {r["run"]["seed"] for r in again}
runs = pd.DataFrame(
    {
        "method": r["run"]["method"],
        "seed": r["run"]["seed"],
        "run": run,
        **{s.capitalize(): r["metrics"][s]["fid"] for s in ("few", "overall")},
    }
    for run, found in (("first", ddpm + call), ("second", again))
    for r in found
    if r["run"]["seed"] in twice
)
if again:
    fid = runs.set_index(["method", "seed", "run"]).unstack()
    parts = {"DDPM": fid.loc["ddpm"], "CALL": fid.loc["call"]}
    parts["CALL / DDPM"] = parts["CALL"] / parts["DDPM"]
    display(pd.concat(parts).round(2))

# %% [markdown]
# CALL is ahead in both again. But the seed whose ratio was by far the lowest of all had a bad run of DDPM to thank for
# it: the second one is better by a tenth on Few, where CALL's whole lead is a seventh. Pairing removes the luck that
# two runs share, and not this kind. It stays in the differences, and the interval is made of those.
#
# ## The variants
#
# One change at a time; everything else as in {doc}`04_general_and_expert`. Which values there are depends on which
# records there are.

# %% tags=["hide-input"]
LABELS = {  # the settings of this chapter: what to call a value
    "lam": lambda v: f"λ = {v:g}",
    "consistency": {0.0: "no consistency"}.get,
    "diversity": {0.0: "no diversity"}.get,
    "rank": lambda v: f"rank {v:g}",
    "where": {
        "up-conv3x3": "3 × 3 only",
        "up-emb": "embedding only",
        "up-no-emb": "all but embedding",
        "all": "whole network",
    }.get,
    "channel_mult": lambda v: f"widths {v}",
}


def label(overrides):
    """None for what is not of this chapter."""
    (setting, value), *more = overrides.items()
    return None if more or setting not in LABELS else LABELS[setting](value)


def order(overrides):
    (setting, value), *_ = overrides.items()
    return list(LABELS).index(setting), str(value)


changed = [
    w["overrides"]
    for w in tables.variants(study)
    if (w["method"], w["weights"], w["guidance_scale"]) == ("call", "theta", 1)
    and w["overrides"]
    and label(w["overrides"])
]
variants = {"default": {}} | {label(o): o for o in sorted(changed, key=order)}


def against(method, overrides):
    """FID ratio by split of CALL with `overrides` to `method`, in a network of the same widths."""
    words = {"method": "call", "guidance_scale": 1, "overrides": overrides}
    return tables.ratios(study, words, tables.plain(words, method))


def figure(method, rows):
    found = {label: against(method, overrides) for label, overrides in rows.items()}
    return viz.interval_dots(
        {
            f"{label} (n = {len(r['few'].seeds)})": r
            for label, r in found.items()
            if r["few"].seeds
        },
        f"FID, as a multiple of {method.upper()}'s",
    )


for title, settings in {
    "λ": ("lam",),
    "terms": ("consistency", "diversity"),
    "rank": ("rank",),
    "place": ("where",),
    "widths": ("channel_mult",),
}.items():
    found = [name for name, o in variants.items() if o and next(iter(o)) in settings]
    print(f"{title:>7}: {', '.join(found) or 'no record yet'}")

# %% mystnb={"figure": {"caption": "FID of θ over that of DDPM with the same seed, by split, on a logarithmic axis: a dot per seed, a bar for the 95 % interval of the mean; n seeds. Left of the dotted line CALL is better. Rows differ in their seeds; the next figure compares with the default seed by seed. From the records in results/, without guidance.", "name": "fig-ablations"}, "image": {"alt": "Three panels, Many, Medium and Few, a row per variant of CALL. Means scatter about the line of DDPM; on Few those of the default, of λ from 0.5 to 1.5 of ranks 0.05 and 0.2 and of both other widths lie to the left of it with their whole intervals. Intervals of three seeds are wide, and include the line.", "classes": "dark-light"}}
figure("ddpm", variants)
# %% [markdown]
# An ablation asks another question: not whether a variant beats DDPM, but whether the change matters. So compare with
# the default CALL:

# %% mystnb={"figure": {"caption": "The same runs over the default CALL with the same seed: right of the dotted line the change does harm.", "name": "fig-ablations-default"}, "image": {"alt": "Three panels, Many, Medium and Few, a row per variant of CALL against the default one. Means lie on both sides of the line.", "classes": "dark-light"}}
same_width = {name: o for name, o in variants.items() if o and "channel_mult" not in o}
figure("call", same_width)


# %% tags=["hide-input"]
def told_apart(method, rows):
    """Prints the rows and splits with a verdict of their own: from at least three seeds an interval without 1."""
    found = {name: against(method, overrides) for name, overrides in rows.items()}
    enough = [
        (f"{name}, {split.capitalize()}", r)
        for name, by_split in found.items()
        for split, r in by_split.items()
        if len(r.seeds) >= claims.SEEDS
    ]
    lines = [
        f"  {name}: {ruling}, {r.words()}"
        for name, r in enough
        if (ruling := claims.RULING[claims.verdict(r, "lower")]) in ("better", "worse")
    ]
    print(
        f"against {method.upper()}: {len(lines)} of {len(enough)} intervals exclude 1 "
        f"(if nothing mattered, about {len(enough) / 20:.1f} would by luck)"
    )
    print("\n".join(lines))


told_apart("ddpm", variants)
told_apart("call", same_width)
table = {}
for name, overrides in same_width.items():
    pair = study.select("call", overrides), call
    exact = paired(*pair, "few", ratio=True).p_exact
    table[name] = tables.ratio_row(*pair) | {"exact p, Few": f"{exact:.2f}"}
pd.DataFrame(table).T

# %% [markdown]
# Read it with the rule: a row of one seed has no interval. Against DDPM nine rows are better, all on Few: the default,
# every λ from 0.5 to 1.5, both other ranks, and both other widths. Against the default three are worse on Few: without
# either term, and λ = 0, without both; and one is better there, rank 0.2. The fifth that excludes 1 is on Many: without
# diversity FID there is 2.5 percent lower, which is luck or the price of pushing. (All of these have five seeds, with
# which the exact p is 0.06 at best. With their first three only λ = 0.8 would be told from DDPM, and none from the
# default.)
#
# ## λ
#
# ```{margin} In the paper
# Figure 4: "CALL maintains a consistent advantage over OC across a wide range of $\lambda$ values, with its performance
# peaking around $\lambda = 1.0$", on CIFAR-10 and CIFAR-100. The figure's values are not in the text.
# ```
#
# What should $\lambda$ do? Suppose the base loss does not care how $\theta$ is split into $\theta^g$ and $\theta^e$, as
# in the two-number model of {eq}`eq-two-numbers`. Then a class comes to rest where the slope of the allocation loss in
# $D$ vanishes,
#
# ```{math}
# :label: eq-lambda-rest
# \begin{aligned}
# & \lambda\,\bigl(\omega_\text{Con} - \omega_\text{Div}\, \varphi_b'(D)\bigr) = 0 \\
# \Longrightarrow\quad & D^* = b \ln \frac{\omega_\text{Div}}{\omega_\text{Con}} \quad\text{for every } \lambda > 0
# \end{aligned}
# ```
#
# if $\omega_\text{Div} > \omega_\text{Con}$, and at $D^* = 0$ otherwise. $\lambda$ cancels. It decides *when* the two
# predictions part, the rate of leaving the saddle being that of {doc}`07_a_floor_for_the_loss` with $\lambda \kappa$
# for $\kappa$, and not *how far*. At $\lambda = 0$ the argument is silent: $BA$ is then a part of the weights like any
# other, and nothing pushes the two predictions apart or holds them together. The records have $D$ during training:


# %% tags=["hide-input"]
def shared(changes, weights="theta"):
    """Records of CALL by change of settings, of the seeds that all of these have."""
    return records.same_seeds(
        {name: study.select("call", o, weights) for name, o in changes.items()}
    )


rows = {}
lambdas = {
    0.0: {"lam": 0.0},
    1.0: {},
} | {o["lam"]: o for o in variants.values() if "lam" in o}
by_lambda = {
    lam: found for lam, found in shared(dict(sorted(lambdas.items()))).items() if found
}
for lam, found in by_lambda.items():
    curves = [r["training"]["curve"] for r in found]
    parted = [records.parted_at(c) for c in curves]
    fid = {
        s.capitalize(): records.score_words(found, s, "fid") for s in ("few", "overall")
    }
    rows[f"{lam:g}"] = {"seeds": len(found)} | fid
    rows[f"{lam:g}"] |= {
        f"D on Few passes {records.PARTED} by step": ", ".join(
            f"{s:,}" if s else "never" for s in parted
        ),
        "D on Few at the end": ", ".join(
            f"{c['distance_few'][-1]:.2g}" for c in curves
        ),
    }
if len(rows) == 1:
    print("no record of another λ yet")
pd.DataFrame(rows).rename_axis(columns="λ").T

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The paper's Figure 4, with our base loss: FID of θ, on logarithmic axes, against λ, a dot per seed and a line through the means, of the seeds that all have. Dotted: the mean of DDPM with these seeds. At λ = 0 capacity is reserved and not allocated.", "name": "fig-lambda"}, "image": {"alt": "Two panels, Few and Overall, with FID against λ from 0 to 1.5. The means lie close together for all λ above 0, and the dots of the five seeds scatter more than the means differ.", "classes": "dark-light"}}
two = ("few", "overall")
curve = {
    lam: {s: [r["metrics"][s]["fid"] for r in found] for s in two}
    for lam, found in by_lambda.items()
}
plot = viz.score_curves({"call": curve}, "λ")
seeds = {r["run"]["seed"] for found in by_lambda.values() for r in found}
for axes, split in zip(plot.axes, two, strict=True):
    beside = [r for r in ddpm if r["run"]["seed"] in seeds]
    level, _ = records.mean_std(beside, "metrics", split, "fid")
    axes.axhline(level, color="k", linestyle=":", linewidth=1)
plot
# %% [markdown]
# The means fall from $\lambda = 0$ to 0.5 and change little from there on, on Few as overall. There is no peak to see.
# (That the dots of one $\lambda$ scatter more than the means differ is no argument: most of that scatter is the seeds',
# and cancels in pairs. {numref}`fig-ablations-default` has the pairs: on Few 1.2 and 1.5 are level with 1 within some
# five percent, while the intervals of 0.5 and 0.8 leave room for more than ten.)
#
# Where the two predictions have parted, $D$ ends at the same value for every $\lambda > 0$, as the argument says. It is
# right about *when* they part as well: the larger $\lambda$, the sooner, in every seed. Only $\lambda = 1$ falls out of
# the order, in seeds 1 and 2, whose runs had other dropout masks. At 0.5 one run has not parted when it ends. So an
# ablation of $\lambda$ with a fixed number of steps compares, in part, for how long the two have been apart. At
# $\lambda = 0$ $D$ passes the mark as well, in four of five runs, but it grows alike in all splits: capacity is
# reserved, and nothing is allocated. That is the control that a claim for *allocation* has to beat, rather than plain
# DDPM:

# %%
reserved = study.select("call", {"lam": 0.0})
pd.DataFrame(
    {
        "reserved only / DDPM": tables.ratio_row(reserved, ddpm),
        "CALL / reserved only": tables.ratio_row(call, reserved),
    }
).T

# %% [markdown]
# **CALL beats this control too**, on Few and overall, and by about as much as it beats DDPM, from which the control
# cannot be told. So the gain of these runs comes with the allocation loss, and not with the parameters that it
# allocates. (Two of the five seeds were added after three had agreed, see above; and by KID the overall difference is
# undecided, that on Few is not, see below. And at {term}`imbalance ratio` 20 the loss cannot be told from the control:
# {doc}`12_does_the_gain_last`.)
#
# Whether $\lambda = 1$ is the best of them is for {numref}`fig-ablations-default` to say, where rows "λ = …" are the
# comparison with it. A peak there needs all of the others to be worse, and of these only $\lambda = 0$ is;
# {doc}`15_report` applies that rule.
#
# ## The two terms
#
# Each term has its job, and the records of $\theta^g$ show it more plainly than those of $\theta$:

# %%
rows = {}
changes = {
    "both": {},
    "without consistency": {"consistency": 0.0},
    "without diversity": {"diversity": 0.0},
}
for weights, symbol in (("theta", "θ"), ("theta_g", "θᵍ")):
    for name, found in shared(changes, weights).items():
        if found:
            rows[name, symbol] = {"seeds": len(found)} | {
                s.capitalize(): records.score_words(found, s, "fid") for s in everywhere
            }
pd.DataFrame(rows).T

# %% [markdown]
# Consistency is what holds $\theta^g$ to the majorities: without it every class is pushed, and $\theta^g$ draws nothing
# well. Diversity is what makes the two part: without it they stay one network. So the terms do what they are for.
# Whether $\theta$, the network that is used, needs them is a separate question. The paper's answer, from its Table 5
# (CIFAR-100, base loss OC; not our measurement), beside ours (base loss DDPM), as the overall FID over that of the
# whole CALL:

# %%
paper = {
    tuple(r["overrides"]): r["mean"]
    for r in records.paper_table(5)
    if r["metric"] == "fid" and r["method"] == "oc-call"
}
rows = {}
for term in ("consistency", "diversity"):
    without = study.select("call", {term: 0.0})
    ratio = paired(without, call, ratio=True)
    rows[f"without {term}"] = {
        "paper": f"{paper[(term,)] / paper[()]:.3f}",
        "seeds": len(ratio.seeds),
        "ours [95 %]": ratio.words(),
        "on Few": paired(without, call, "few", ratio=True).words(),
        "over DDPM, on Few": paired(without, ddpm, "few", ratio=True).words(),
    }
pd.DataFrame(rows).T

# %% [markdown]
# The same by {term}`KID`, and beside them the control $\lambda = 0$, without both:

# %%
rows = {}
for name, change in {
    "without consistency": {"consistency": 0.0},
    "without diversity": {"diversity": 0.0},
    "λ = 0": {"lam": 0.0},
}.items():
    pair = study.select("call", change), call
    rows[name] = {
        f"KID, {s.capitalize()}, difference": paired(*pair, s, "kid").words()
        for s in two
    }
pd.DataFrame(rows).T

# %% [markdown]
# Here, too, FID is higher without either term, overall and on Few, and about that of DDPM: what CALL gains in these
# runs takes both. By KID so it is on Few; overall KID leaves it open. (Three seeds had agreed on that before two were
# added, see above. And where CALL gains nothing, there is nothing to ablate.)

# %% [markdown]
# ## Rank
#
# The paper decomposes at a tenth of the full rank and has no ablation of it. If $\theta$ and $\theta^g$ part in one or
# two directions of a few small matrices ({doc}`08_inside_the_expert`), one would expect rank to decide little. Here are
# half the default's and twice the default's, over the default, with the first and with the second runs of its seeds,
# and over DDPM:

# %%
second = [r for r in again if r["run"]["method"] == "call"]
baselines = {
    "the default": call,
    "the default, second runs": second
    + [r for r in call if r["run"]["seed"] not in twice],
    "DDPM": ddpm,
}
rows = {}
for name, overrides in variants.items():
    for over, base in baselines.items() if "rank" in overrides else ():
        pair = study.select("call", overrides), base
        fid = {s.capitalize(): paired(*pair, s, ratio=True) for s in two}
        row = {f"FID, {split}": found.words() for split, found in fid.items()}
        row["KID, Overall, difference"] = paired(*pair, metric="kid").words()
        rows[f"{name} / {over}"] = {"seeds": len(fid["Few"].seeds)} | row
pd.DataFrame(rows).T

# %% [markdown]
# Half the rank is level with the default. **Twice the rank is better**: overall against both sets of the default's
# runs, and by KID; on Few against the first. (Two of its five seeds were added after three had agreed.) It is not only
# that a larger expert parts sooner, though it does ({doc}`07_a_floor_for_the_loss`): a larger $\lambda$ makes it part
# sooner as well, and brings nothing. Does it take the allocation loss, or is a network with two factors of that size
# easier to train? The control is rank 0.2 reserved with $\lambda = 0$:

# %%
larger, reserved = (
    study.select("call", {"rank": 0.2, **o}) for o in ({}, {"lam": 0.0})
)
pairs = {
    "reserved only / DDPM": (reserved, ddpm),
    "rank 0.2 / reserved only": (larger, reserved),
}
pd.DataFrame({k: tables.ratio_row(*pair) for k, pair in pairs.items() if all(pair)}).T

# %% [markdown]
# **It takes the loss**, here as at the default's rank: reserved alone the larger expert cannot be told from DDPM. (The
# same at ratio 20, and what becomes of all this after 6,000 steps, where every row of this chapter ends:
# {doc}`12_does_the_gain_last`.)
#
# ## Widths
#
# The paper varies the multipliers of its channels (Figure 5) and finds "clear advantages across different network
# configurations". A thesis about capacity suggests more: the less of it there is, the more there should be to gain from
# sharing it out. Here are three networks, each with CALL over a DDPM *of the same widths*; the default's are 1 and 2:

# %%
rows = {}
for widths in ([1, 1], [1, 2], [1, 2, 2]):
    of_widths = {"channel_mult": widths} if widths != [1, 2] else {}
    ours, base = study.select("call", of_widths), study.select("ddpm", of_widths)
    network = build_model(make_config(**words, **of_widths), 1, 10)
    rows[str(widths)] = {
        "parameters": f"{sum(p.numel() for p in network.parameters()):,}",
        "seeds": len(paired(ours, base).seeds),
        "DDPM, Few": records.score_words(base, "few", "fid"),
        "CALL / DDPM, Few": paired(ours, base, "few", ratio=True).words(),
        "Overall": paired(ours, base, ratio=True).words(),
        "KID, Few, difference": paired(ours, base, "few", "kid").words(),
    }
pd.DataFrame(rows).rename_axis(columns="widths").T

# %% [markdown]
# **CALL is better in all three**, on Few and overall by FID; on Few by KID in the other two and, in the default's, with
# the second runs of two seeds ({doc}`12_does_the_gain_last`). That the smaller network gains more is not to be seen:
# the three means lie within their intervals. (For the largest network five seeds were planned in one go; for the
# smallest two were added after three had agreed.)
#
# ## Place, bound, precision
#
# * **Place.** Rows "3 × 3 only" (convolutions), "embedding only" (its projections), "all but embedding" and "whole
#   network" of the figures. How many parameters each takes, and what becomes of $\theta^g$, is in
#   {doc}`07_a_floor_for_the_loss`. If $\theta$ and $\theta^g$ part in a few small matrices, one would expect those
#   alone to suffice. They nearly do: of the lead over DDPM on Few that the default has in the mean of the same three
#   seeds, a sixth, they have most, an eighth; overall they are 4 percent behind it, by an interval that excludes 1.
#   (The default's runs of these seeds are older and had other dropout masks.)
# * **The bound** has its own chapter, {doc}`07_a_floor_for_the_loss`, for without one there is nothing to ablate.
# * **Precision.** With bfloat16 matrix products are computed in 16 bits, which makes a training step faster
#   ({doc}`04_general_and_expert`). It is no part of the method, and should make no difference; on CIFAR-10, with
#   attention in it, it made a large one ({doc}`16_cifar10`). Here is the ratio of its one run on digits, from when
#   attention was in bfloat16 as well, to the default's run of that seed. One run cannot tell it from chance:

# %%
for half in everything:
    if half.name == f"{study.name}-precision=bf16":
        row = tables.ratio_row(half.select("call"), call)
        display(pd.DataFrame({"bf16 over fp32": row}).T)

# %% [markdown]
# ```{admonition} Pitfalls
# :class: warning
# * Two intervals that overlap do not show that two methods are level. The interval *of the difference* is the question.
# * All seeds share one training set. The intervals cover the luck of training and sampling, not that of *which* few
#   images of a rare class were kept.
# * With many rows some intervals exclude 1 by luck: one in twenty, if nothing makes a difference. Look for rows that agree.
# * An ablation of one seed invites a story. Each of these rows can have a story; that is the problem.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-how-many-seeds
# With the scatter seen between seeds, how many seeds does it take before the half-width of the interval for CALL against
# DDPM on Few is below 10 %? And on Many?
# ```
#
# ```{solution-start} ex-how-many-seeds
# :class: dropdown
# ```
#
# The half-width is $t_{n-1} \operatorname{sd}(d) / \sqrt n$, and has to fall below $\log 1.1$:


# %%
def seeds_needed(sd, factor=1.1):
    return next(
        n
        for n in range(2, 1000)
        if scipy.stats.t.ppf(0.975, n - 1) * sd / n**0.5 < np.log(factor)
    )


for split in splits:
    sd = np.std(np.log(paired(call, ddpm, split, ratio=True).values), ddof=1)
    print(f"{split:>7}: sd of d is {sd:.3f}: {seeds_needed(sd)} seeds")

# %% [markdown]
# The standard deviation is itself an estimate from few seeds, so take these for orders of magnitude.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-lambda-cancels
# Check {eq}`eq-lambda-rest` for the rarest class by minimising over a grid of $D$. What would a base loss that prefers
# small $D$ change?
# ```
#
# ```{solution-start} ex-lambda-cancels
# :class: dropdown
# ```
#
# With a base loss that grows like $\mu D$ the slope is $\mu + \lambda (\omega_\text{Con} - \omega_\text{Div}
# \varphi_b')$, and the rest point moves out with $\lambda$:

# %%
counts = data.load_long_tailed(dataset, imbalance_ratio).train.counts
con, div = (w[-1].item() for w in class_weights(counts))
D = torch.linspace(0, 1.5, 15_001)
allocation = con * D - div * saturate(D, 0.1)
pd.DataFrame(
    {
        f"λ = {lam:g}": {
            f"μ = {mu:g}": D[(mu * D + lam * allocation).argmin()].item()
            for mu in (0.0, 0.1)
        }
        for lam in (0.5, 1.0, 1.5)
    }
).round(3)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-coverage
# Does an interval from three seeds hold what it promises? Draw three numbers from a normal distribution many times.
# ```
#
# ```{solution-start} ex-coverage
# :class: dropdown
# ```

# %%
draws = np.random.default_rng(0).normal(size=(5000, 3))
for kind, draw in (("normal", draws), ("log-normal", np.exp(draws) - np.exp(0.5))):
    covered = [i.low <= 0 <= i.high for i in map(mean_interval, draw)]
    print(f"{kind}: {np.mean(covered):.1%} of the intervals hold the mean")

# %% [markdown]
# For a normal distribution it does. For a skewed one it does not, and with three values one cannot see the skew:
# another reason for logarithms, and for more seeds.
#
# ```{solution-end}
# ```
#
# **Take-away.** Pair by seed, state the number of seeds, and let the interval decide: a change that no interval
# supports is a direction at best. **Next.** {doc}`12_does_the_gain_last`: CALL in longer training, on other data and on
# other base losses.
