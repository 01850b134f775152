# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Report of a run

# %% tags=["parameters"]
run = "runs/digits-ir50/call-cpu/seed0"  # the run folder, with its records
guidance_scale = 1.0
per_class = 10
classes = 10  # that are drawn: the first so many

# %% tags=["remove-stderr"]
import json
from pathlib import Path

import torch
from IPython.display import Markdown, display

from callkit import checkpoints, config, records, sampling, viz
from callkit.diffusion import NoiseSchedule

viz.style()
found = records.load_records(run) + records.load_records(run, diverged=True)
if not found:
    raise FileNotFoundError(f"no records in {run}: run `python -m callkit evaluate {run}` first")
settings = config.TrainConfig.from_dict(found[0]["config"])
Markdown(f"`{run}`\n\n{records.table(found)}")

# %% [markdown]
# ## Training
#
# The base loss, and with CALL the distance between the two predictions by split.

# %%
log = checkpoints.read_log(Path(run) / checkpoints.LOG)
if log:
    display(viz.loss_curves({settings.method: ([r.step for r in log], [r.base_loss for r in log])}))
    if settings.call:
        display(viz.distance_curves([found[0]["training"]["curve"]], settings.bound))

# %% [markdown]
# ## Samples
#
# One row a class and set of weights; both sets start from the same noise. A diverged run has none.

# %%
checkpoint = Path(run) / checkpoints.CHECKPOINT
if "diverged" not in found[0]:
    metadata = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]
    labels = sampling.balanced_labels(min(classes, metadata["num_classes"]), per_class)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for weights in checkpoints.available_weights(checkpoint):
        model, _ = checkpoints.load_model(checkpoint, weights, device)
        steps = config.SAMPLING[settings.profile]["steps"]
        images = sampling.sample(model, NoiseSchedule(), labels, metadata["image_size"], 0, steps, guidance_scale)
        names = [f"{weights}, {c}" for c in labels[::per_class].tolist()]
        display(viz.image_rows(list(images.split(per_class)), names))

# %% [markdown]
# ## Every setting

# %%
print(json.dumps(settings.to_dict(), indent=1))
