import re

import matplotlib.pyplot as plt
import numpy as np
import torch

from callkit import viz


def test_frame_slider_shows_one_frame_and_describes_all():
    html = viz.frame_slider(["data:a", "data:b"], ["s = 0", 's = "1"'], ["first", '<second> & "last"'], "dial", 1).data
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 2 and " hidden" in images[0] and " hidden" not in images[1]
    assert 'alt="&lt;second&gt; &amp; &quot;last&quot;"' in images[1]
    assert '<input type="range" min="0" max="1" value="1"' in html
    other = viz.frame_slider(["data:a"], ["x"], ["y"], "dial").data
    assert re.search(r'id="(.*?)"', html)[1] != re.search(r'id="(.*?)"', other)[1]


def test_figures_are_returned_not_left_open():
    viz.style()
    before = plt.get_fignums()
    curve = {"step": [1, 2], "distance_many": [1e-4, 1e-4], "distance_medium": [None, 1e-3], "distance_few": [0.1, 0.2]}
    figures = [
        viz.class_counts([9, 3, 1], {"many": [0], "medium": [1], "few": [2]}),
        viz.image_rows([torch.zeros(n, c, 8, 8, dtype=torch.uint8) for n, c in ((3, 1), (2, 3))], ["grey", "colour"]),
        viz.split_bars({"DDPM": {"many": (1.0, 0.1), "few": (40.0, float("nan"))}}),
        viz.distance_curves([curve], bound=0.1),
        viz.divergence_curves({"printed": [curve], "bounded": [curve]}, {"printed"}),
        viz.variant_dots({"DDPM": {"many": [2.0, 2.2], "few": [30.0]}, "CALL": {"many": [2.1], "few": [28.0, 29.0]}}),
        viz.signed_mass(np.array([1.0, -0.001, -0.02]), {"many": [0], "medium": [1], "few": [2]}),
        viz.distance_map(np.array([[1e-5, 1e-4], [0.1, 0.2]]), [20, 900]),
        viz.dial_curves([0.0, 1.0], {"many": [2.0, 2.0], "few": [300.0, 30.0]}),
        viz.spectra({"attention": {"q": np.array([0.2, 0.1])}, "convolutions": {"conv1": np.array([0.3])}}),
        viz.probe_curves([20, 900], {"DDPM": [0.9, 0.5]}),
    ]  # fmt: skip
    assert plt.get_fignums() == before
    assert all(viz.png(f).startswith("data:image/png;base64,") for f in figures)
    assert figures[2].axes[0].get_yscale() == "log" and np.isclose(figures[2].axes[0].patches[1].get_height(), 40)
