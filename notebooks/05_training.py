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
# (ch-training)=
# # 05 · Training a model yourself
#
# **Objective.** Train, stop, go on, sample and evaluate a model, from a notebook or a terminal. **Prerequisites.**
# {doc}`04_general_and_expert`. **Time.** 5 minutes to read; a full run of the `cpu` profile takes about eight minutes
# on one core. This page shows the first half minute of one. **The one figure.** {numref}`fig-loss`.
#
# Unless a setting is overridden, five words name everything that decides a run: data set, {term}`imbalance ratio`,
# method, {term}`profile`, seed.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
method = "call"  # or ddpm
profile = "cpu"  # smoke (tests only), cpu, gpu, paper
seed = 0
minutes = None  # stop after that long, with a checkpoint; None: train to the end
run = None  # run folder; None: runs/<dataset>-ir<IR>/<method>-<profile>/seed<seed>
device = None  # None: a GPU if there is one

# %% [markdown]
# ## The run
#
# `make_config` looks the words up in the tables of `callkit/config.py` and checks every value before any work is done.
# `train` is a generator: it yields a line of averages every few steps, and the loop around it belongs to you. `follow`
# shows what passes through it; ours also draws some samples whenever there is a new checkpoint.

# %% tags=["remove-output"]
import torch

from callkit import (
    checkpoints,
    config,
    data,
    evaluation,
    live,
    notebook,
    records,
    sliders,
    training,
    viz,
)

notebook.check(
    dataset=dataset,
    imbalance_ratio=imbalance_ratio,
    method=method,
    profile=profile,
    seed=seed,
    minutes=minutes,
    run=run,
    device=device,
)
viz.style()
device = device or ("cuda" if torch.cuda.is_available() else "cpu")
settings = config.make_config(dataset, imbalance_ratio, method, profile, seed)
run = run or records.run_folder(settings)

checkpoint = f"{run}/{checkpoints.CHECKPOINT}"
steps = training.train(settings, run, device, minutes)
snapshots = {}  # step -> weights -> images
for line in live.follow(steps, settings, run):
    if line.step % settings.checkpoint_every == 0:
        snapshots[line.step] = evaluation.snapshot(checkpoint, device=device)

# %% [markdown]
# The checkpoint in the run folder holds the weights, their moving average and the optimiser's state. Run the cell again
# and training goes on from there; so it does after Ctrl-C or *Interrupt Kernel*, which write a checkpoint first. Each
# random draw of step $k$ depends on the seed, on $k$ and on the kind of device alone, so a run in ten pieces equals a
# run in one, bit for bit on the CPU. Two methods with the same seed see the same images, timesteps and noise, unless
# re-sampling or warping the images is what the method does.

# %%
*_, state = checkpoints.load_newest(run, tensors=False)
done, seconds_per_step = state["step"], state["seconds"] / state["step"]
print(
    f"{done:,} of {settings.steps:,} steps done, {1000 * seconds_per_step:.0f} ms each; "
    f"the rest takes about {(settings.steps - done) * seconds_per_step / 60:.0f} minutes here"
)

# %% [markdown]
# (These pages are built on a machine that does other work at the same time. Alone on one core this run took eight
# minutes.)
#
# ## What to expect
#
# The figure shows the slice that this page trained, which may be no more than a dot, and the finished run whose record
# comes with the book. The slice may end before the first point of the finished run, an average over its first 250
# steps; the two should join. If your curve does not, something is different: the seed, the settings, or a bug.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Base loss of this page's slice of training, and of the released run with the same settings (from its record, averages over stretches of it).", "name": "fig-loss"}, "image": {"alt": "Base loss against training step: a short curve that begins near 1 and falls towards the longer, flattening curve of the finished run.", "classes": "dark-light"}}
curves = {}
finished = records.load_records(
    dataset=dataset,
    imbalance_ratio=imbalance_ratio,
    method=method,
    profile=profile,
    seed=seed,
    weights="theta",
    overrides={},
    guidance_scale=1,
)


def middle(steps):
    """Each value is an average over the steps since the one before: plot it in the middle."""
    return [(a + b) / 2 for a, b in zip([0, *steps], steps, strict=False)]


if finished:
    curve = finished[0]["training"]["curve"]
    curves["finished run"] = (middle(curve["step"]), curve["base_loss"])
log = checkpoints.read_log(f"{run}/{checkpoints.LOG}")
curves["this page"] = (middle([r.step for r in log]), [r.base_loss for r in log])
viz.loss_curves(curves)
# %% [markdown]
# ## What is learnt when
#
# Samples at each checkpoint, four a class, always from the same noise. If you train to the end here, these are the
# samples of your run; this page shows those of the run that `sweeps/progress.py` made with the same settings.

# %% tags=["hide-input"]
words = records.data_word(dataset, imbalance_ratio), method, profile, f"seed{seed}"
kept = (
    records.results_folder() / "progress" / ("-".join(map(str, words)) + ".safetensors")
)
if settings.steps not in snapshots and kept.exists():
    tensors, _ = checkpoints.load_checkpoint(kept)
    taken = tensors.pop("step").tolist()
    snapshots = {
        step: {weights: images[i] for weights, images in tensors.items()}
        for i, step in enumerate(taken)
    }

counts = data.load_long_tailed(dataset, imbalance_ratio).train.counts
every = max(1, len(counts) // 10)  # of a hundred classes, ten


def at_step(step):
    drawn = {
        weights: images.unflatten(0, (len(counts), -1))
        for weights, images in snapshots[step].items()
    }
    names = {"theta": "θ", "theta_g": "θᵍ"}
    blocks = {names[w]: images[::every].flatten(0, 1) for w, images in drawn.items()}
    figure = viz.class_columns(
        blocks, [str(n) for n in counts[::every]], data.splits(counts[::every])
    )
    label = f"step {step:,}"
    if len(drawn) == 2:
        apart = (drawn["theta"].float() - drawn["theta_g"]).abs().flatten(1).mean(1)
        by_split = [
            f"{apart[c].mean():.0f} on {s.capitalize()}"
            for s, c in data.splits(counts).items()
        ]
        label += f": θ and θᵍ differ by {', '.join(by_split)}"
    return (
        figure,
        label,
        f"Samples of {' and '.join(blocks)}, a column for each class, the largest first.",
    )


sliders.explore(
    at_step, "training step", list(snapshots), dpi=90
) if snapshots else None

# %% [markdown]
# *Differences are mean absolute ones of pixels from 0 to 255, at equal noise.*
#
# With CALL three things are to be seen. All classes take shape early, the rare ones less clearly. For a while $\theta$
# and $\theta^g$ draw the same: the allocation loss sits on its saddle ({doc}`04_general_and_expert`). Then the rarest
# classes wash out in $\theta^g$, from one checkpoint to the next, and in $\theta$ they do not.
#
# ## Sampling and evaluating
#
# Once the run is finished, `evaluate_run` draws a balanced set of images with the averaged weights, compares it with
# the real images split by split, and writes a record: the JSON file that every table of this book is made of.

# %%
if done == settings.steps:
    paths = [
        evaluation.evaluate_run(checkpoint, weights, device=device)
        for weights in checkpoints.available_weights(checkpoint)
    ]
    print(records.table([records.read_record(path) for path in paths]))
else:
    print(f"stopped at step {done}: a half-trained model is not evaluated")

# %% [markdown]
# ## The same from a terminal
#
# In the environment that `make book` made, `source .venv/bin/activate`:
#
# ```bash
# python -m callkit train --dataset digits --imbalance-ratio 50 --method call --profile cpu --seed 0
# python -m callkit evaluate runs/digits-ir50/call-cpu/seed0
# ```
#
# and, with this page as the report of the run:
#
# ```bash
# papermill notebooks/05_training.ipynb report.ipynb \
#     -p dataset digits -p imbalance_ratio 50 -p method call -p profile cpu -p seed 0
# ```
#
# {doc}`../book/gpu` has the paper's recipe and what a full run needs, {doc}`13_your_own_data` the way from a folder of
# your own photos.
#
# ```{admonition} Pitfalls
# :class: warning
# * A run folder belongs to one set of settings. Change one and reuse the folder, and `train` refuses rather than mixing
#   two runs.
# * Papermill runs with the defaults if a parameter's name is misspelt. `notebook.check`, at the top of each chapter,
#   stops there.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-images-seen
# Training on digits at IR 50, in how many of its 6,000 batches is there no image of the rarest class at all?
# ```
#
# ```{solution-start} ex-images-seen
# :class: dropdown
# ```
#
# A batch is $b$ of the $N$ training images without replacement (but for the few that reach over the end of an epoch),
# and has none of the $m$ images of the class with probability $\binom{N - m}{b} / \binom{N}{b}$. That, and a count:

# %%
import math

from callkit.training import batch_index

train_set = data.load_long_tailed("digits", 50).train
digits = config.make_config("digits", 50, "call", "cpu")
n, m = len(train_set), train_set.counts[-1]
expected = math.comb(n - m, digits.batch_size) / math.comb(n, digits.batch_size)
rare = train_set.labels == 9
without = sum(
    not rare[batch_index(n, digits.batch_size, seed=0, step=k)].any()
    for k in range(digits.steps)
)
print(f"expected {digits.steps * expected:,.0f}, counted {without:,}")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-printed-loss
# Train with the loss as printed in the paper: `make_config(..., allocation="paper")`, in a run folder of its own. What
# happens, and when?
# ```
#
# ```{solution} ex-printed-loss
# :class: dropdown
# It looks like the bounded run until the two predictions part. Then the allocation loss falls without limit, and
# training stops with an error that names the diversity term; the last good checkpoint is kept. When depends on the
# seed: our runs of seeds 0, 1 and 2 stopped at steps 1,850, 3,200 and 1,800 of 6,000 ({doc}`07_a_floor_for_the_loss`).
# ```
#
# **Take-away.** Five words name a run, one folder holds it, one record tells what came of it.
# **Next.** {doc}`06_who_gets_the_capacity` puts the paper's motivation to the test.
