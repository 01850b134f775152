"""Figures behind sliders, which a static page shows as well: frames drawn beforehand need no kernel and no library."""

import html
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

try:
    import ipywidgets
    from IPython.display import HTML
except ImportError as error:
    raise ImportError("sliders need IPython and ipywidgets: pip install 'callkit[book]'") from error

from callkit import viz

_ids = itertools.count()


def frame_slider(frames: list[str], labels: list[str], alts: list[str], caption: str, start: int = 0) -> HTML:
    """Images (data URIs) behind a native range input: works with no kernel, library or network, by keyboard,
    and tells a screen reader each frame's label and alternative text."""
    name = f"frame-slider-{next(_ids)}"
    images = "".join(
        f'<img class="dark-light" src="{frame}" alt="{html.escape(alt)}"{"" if i == start else " hidden"}>'
        for i, (frame, alt) in enumerate(zip(frames, alts, strict=True))
    )
    spoken = [f"{label}. {alt}" for label, alt in zip(labels, alts, strict=True)]
    script = (
        f"(() => {{ const root = document.getElementById('{name}'), labels = {_script(labels)},"
        f" spoken = {_script(spoken)}, input = root.querySelector('input'), images = root.querySelectorAll('img');"
        " const show = () => { images.forEach((m, i) => { m.hidden = i != input.value });"
        " root.querySelector('output').textContent = labels[input.value];"
        " input.setAttribute('aria-valuetext', spoken[input.value]) };"
        " input.addEventListener('input', show); show() })()"
    )
    return HTML(
        f'<figure class="frame-slider" id="{name}"><div class="controls"><label>{html.escape(caption)} '
        f'<input type="range" min="0" max="{len(frames) - 1}" value="{start}" autocomplete="off"></label>'
        f' <output aria-live="off">{html.escape(labels[start])}</output></div>'
        f"<div>{images}</div></figure><script>{script}</script>"
    )


def _script(value) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


class Explorer(ipywidgets.VBox):
    """A figure behind a slider, for readers with a kernel and without. Where widgets live, as in JupyterLab, each move
    draws anew; a static page shows the `frames`, drawn beforehand."""

    frames: HTML

    def _repr_mimebundle_(self, **kwargs):
        return super()._repr_mimebundle_(**kwargs) | {"text/html": self.frames.data}


def explore(
    draw: Callable[[Any], tuple[Figure, str, str]],
    caption: str,
    values: Sequence,
    start: Any = None,
    live: Sequence | None = None,
    dpi: int = 110,
) -> Explorer:
    """What `draw` makes of a value, on a slider over `values`.

    draw   a number -> (figure, label, alternative text)
    start  the value shown first; by default the first one
    live   what the slider that draws anew offers, for finer or further values; by default `values`
    """
    start = values[0] if start is None else start
    shown = [(viz.png(figure, dpi), label, alt) for figure, label, alt in map(draw, values)]
    first = list(values).index(start)

    def page(frame: str, label: str, alt: str) -> str:
        return f'<p>{html.escape(label)}</p><img src="{frame}" alt="{html.escape(alt)}">'

    slider = ipywidgets.SelectionSlider(
        options=[(f"{value:g}", value) for value in (values if live is None else live)],
        value=start,
        description=caption,
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "32rem", "max_width": "100%"},
    )
    picture = ipywidgets.HTML(page(*shown[first]))

    def redraw(change) -> None:
        figure, label, alt = draw(change.new)
        picture.value = page(viz.png(figure, dpi), label, alt)

    slider.observe(redraw, "value")
    explorer = Explorer([slider, picture])
    explorer.frames = frame_slider(*map(list, zip(*shown, strict=True)), caption, first)
    return explorer
