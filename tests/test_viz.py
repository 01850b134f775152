import importlib
import json
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from callkit import sliders, viz
from callkit.statistics import Paired


@pytest.mark.parametrize("missing", ["ipywidgets", "IPython.display"])
def test_sliders_name_the_extra_that_they_need(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "callkit.sliders")
    with pytest.raises(ImportError, match=r"pip install 'callkit\[book\]'"):
        importlib.import_module("callkit.sliders")


def test_frame_slider_shows_one_frame_and_describes_all():
    html = sliders.frame_slider(
        ["data:a", "data:b"], ["s = 0", 's = "1"'], ["first", '<second> & "last"'], "dial", 1
    ).data
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 2 and " hidden" in images[0] and " hidden" not in images[1]
    assert 'alt="&lt;second&gt; &amp; &quot;last&quot;"' in images[1]
    assert '<input type="range" min="0" max="1" value="1"' in html
    label = re.search(r"<label>(.*?)</label>", html)[1]
    assert "dial" in label and "<output" not in label, "a control's name is no part of its value"
    spoken = re.search(r"spoken = (\[.*?\]),", html)[1]
    assert json.loads(spoken) == ["s = 0. first", 's = "1". <second> & "last"'] and "<" not in spoken
    other = sliders.frame_slider(["data:a"], ["x"], ["y"], "dial").data
    assert re.search(r'id="(.*?)"', html)[1] != re.search(r'id="(.*?)"', other)[1]


def test_an_explorer_is_frames_in_a_page_and_draws_anew_where_there_is_a_kernel():
    drawn = []

    def draw(value):
        drawn.append(value)
        figure, axes = plt.subplots()
        axes.bar([0], [value])
        plt.close(figure)
        return figure, f"height {value}", f"A bar of {value}."

    explorer = sliders.explore(draw, "height", (1, 2), start=2, live=(0.5, 1, 2, 4))
    assert drawn == [1, 2], "live values are drawn when asked for"
    shown = explorer._repr_mimebundle_()
    assert shown["text/html"].count("<img ") == 2 and "application/vnd.jupyter.widget-view+json" in shown
    slider, picture = explorer.children
    assert slider.value == 2 and [v for _, v in slider.options] == [0.5, 1, 2, 4]
    frames = re.findall(r'<img [^>]*src="(.*?)" alt="(.*?)"', shown["text/html"])
    assert re.findall(r'<img src="(.*?)" alt="(.*?)"', picture.value) == [frames[1]] and frames[1][1] == "A bar of 2."
    before = picture.value
    slider.value = 4
    assert drawn == [1, 2, 4] and picture.value != before and 'alt="A bar of 4."' in picture.value
    slider.value = 1
    assert re.findall(r'<img src="(.*?)"', picture.value) == [frames[0][0]], "one function draws both"
    with pytest.raises(ValueError):
        sliders.explore(draw, "height", (1, 2), start=3)


def test_two_classes_have_no_medium():
    viz.style()
    curve = {"step": [1, 2], "distance_many": [1e-6, 1e-5], "distance_few": [1e-5, 0.1]}
    (axes,) = viz.distance_curves([curve], bound=0.1).axes
    assert [line.get_label() for line in axes.lines[:2]] == ["Many", "Few"]
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    figure = viz.class_columns({"a": images}, ["9", "3"], {"many": [0], "few": [1]})
    assert figure.axes[0].texts[1].get_color() == viz.SPLIT_COLORS["few"]


def test_class_columns_puts_every_image_into_the_column_of_its_class():
    viz.style()
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 2, 2)  # two of each of three classes
    figure = viz.class_columns({"a": images}, ["9", "3", "1"], {"many": [0], "medium": [1], "few": [2]})
    canvas = figure.axes[0].images[0].get_array()
    assert canvas[::3, ::3, 0].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert (canvas[2::3, :, 3] == 0).all() and (canvas[:, 2::3, 3] == 0).all() and canvas[0, 0, 3] == 255
    heads = {t.get_text(): t.get_color() for t in figure.axes[0].texts}
    assert heads == {"9": viz.BLUE, "3": viz.ORANGE, "1": viz.VERMILION}


def test_figures_are_returned_not_left_open():
    viz.style()
    before = plt.get_fignums()
    curve = {"step": [1, 2], "distance_many": [1e-4, 1e-4], "distance_medium": [None, 1e-3], "distance_few": [0.1, 0.2]}
    ratio = Paired([0, 1], [0.8, 0.9], 0.85, 0.5, 1.4, 0.1, 0.5)
    figures = [
        viz.class_counts([9, 3, 1], {"many": [0], "medium": [1], "few": [2]}),
        viz.image_rows([torch.zeros(n, c, 8, 8, dtype=torch.uint8) for n, c in ((3, 1), (2, 3))], ["grey", "colour"]),
        viz.split_bars({"DDPM": {"many": (1.0, 0.1), "few": (40.0, float("nan"))}}),
        viz.distance_curves([curve], bound=0.1),
        viz.divergence_curves({"printed": [curve], "bounded": [curve]}, {"printed"}),
        viz.variant_dots({"DDPM": {"many": [2.0, 2.2], "few": [30.0]}, "CALL": {"many": [2.1], "few": [28.0, 29.0]}}),
        viz.interval_dots({"CALL": {"many": ratio, "few": ratio}}),
        viz.forest([("call < ddpm", ratio, "lower", "direction only")]),
        viz.score_curves({m: {s: {"many": [2.0], "few": [30.0]} for s in (1, 1.5)} for m in ("oc", "oc-call")}, "s"),
        viz.signed_mass(np.array([1.0, -0.001, -0.02]), {"many": [0], "medium": [1], "few": [2]}),
        viz.distance_map(np.array([[1e-5, 1e-4], [0.1, 0.2]]), [20, 900]),
        viz.dial_curves([0.0, 1.0], {"many": [2.0, 2.0], "few": [300.0, 30.0]}),
        viz.spectra({"attention": {"q": np.array([0.2, 0.1])}, "convolutions": {"conv1": np.array([0.3])}}),
        viz.probe_curves([20, 900], {"DDPM": [0.9, 0.5]}),
    ]  # fmt: skip
    assert plt.get_fignums() == before
    assert all(viz.png(f).startswith("data:image/png;base64,") for f in figures)
    assert figures[2].axes[0].get_yscale() == "log" and np.isclose(figures[2].axes[0].patches[1].get_height(), 40)


def test_ratios_of_base_losses_and_the_step_of_parting():
    without = {"step": [1, 2, 3], "base_loss": [1.0, 0.5, 0.2], "distance_few": [None, None, None]}
    ours = {"step": [1, 2, 3], "base_loss": [1.0, 0.55, 0.3], "distance_few": [None, 0.02, 0.03]}
    together = ours | {"distance_few": [None, 0.001, 0.002]}
    left, right = viz.base_loss_ratios({"parts": [(ours, without)], "does not": [(together, without)] * 2}).axes
    assert left.lines[0].get_ydata() == pytest.approx([1, 1.1, 1.5]) and left.lines[1].get_xdata() == [2, 2]
    assert len(right.lines) == 2 and right.get_title() == "does not"


def test_rest_points_are_marked_for_the_classes_that_part_and_no_others():
    distance = np.tile([[1e-5, 0.05, 0.2, 0.4]], (4, 1))
    splits = {"many": [0], "medium": [1], "few": [2, 3]}
    figure = viz.rest_points([100, 200, 300, 400], distance, np.array([-1.0, 0.06, 0.2, 0.5]), "abcd", splits)
    whole, end = figure.axes
    lines, marks = ([line for line in end.lines if (line.get_marker() == "<") == m] for m in (False, True))
    assert [line.get_ydata()[-1] for line in lines] == distance[-1].tolist() and len(whole.lines) == 4
    assert [mark.get_ydata()[0] for mark in marks] == [0.06, 0.2, 0.5]
    assert [text.get_text() for text in end.texts] == ["b", "c", "d"]
    assert [t.get_text() for t in whole.get_legend().get_texts()] == ["Many", "Medium", "Few"]
