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
# # A page with one of everything
#
# For `tests/test_browser.py`: what the chapters are made of, at its widest. {numref}`fig-sample`.
#
# ```{margin} In the paper
# A note in the margin.
# ```

# %% tags=["parameters"]
dataset = "digits"

# %%
import pandas as pd

from callkit import notebook, sliders, viz

notebook.check(dataset=dataset)
viz.style()
print("a long line of output " * 10)

# %% [markdown]
# ## A formula and a table
#
# ```{math}
# :label: eq-sample
# a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q + r + s + t + u + v + w + x + y + z = 1
# ```
#
# | a heading | another heading | a third heading | a fourth heading | a fifth heading |
# |---|---|---|---|---|
# | `some_code_without_a_space` | `some_code_without_a_space` | `some_code_without_a_space` | text | text |

# %%
pd.DataFrame({f"column {i}": [f"{i} ± {i}"] for i in range(20)})

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Bars.", "name": "fig-sample"}, "image": {"alt": "Two bars.", "classes": "dark-light"}}
bars = viz.class_counts([20, 5], {"many": [0], "few": [1]})
bars

# %% [markdown]
# ## A slider

# %% tags=["hide-input"]
frames = [viz.png(viz.class_counts([20, n], {"many": [0], "few": [1]})) for n in (1, 2, 3)]
sliders.frame_slider(frames, ["one", "two", "three"], ["A bar of 1", "A bar of 2", "A bar of 3"], "a number", start=1)

# %% [markdown]
# ```{admonition} Pitfall
# :class: warning
# A [link](https://example.org) in an admonition.
# ```
#
# ## An exercise
#
# ```{exercise}
# :label: ex-sample
# What is $1 + 1$?
# ```
#
# ```{solution-start} ex-sample
# :class: dropdown
# ```

# %%
1 + 1

# %% [markdown]
# ```{solution-end}
# ```
