"""Points in an SVG: each where matplotlib would put it, once, and light; and as they come where it is no SVG."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from reports.drawing import Figure, plain
from reports.svg import GOOD, SHAPES, Marks, document, inline

X, Y = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]


def drawn(x=X, y=Y, **look):
    figure = Figure(figsize=(4, 3))
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.set(xlim=(0, 5), ylim=(0, 4))
    axes.add_line(Marks(x, y, "^", GOOD, **{"filled": True, "size": 4.0, "alpha": 0.6} | look))
    return figure


def points(text):
    """The corners of each path that carries marks."""
    paths = re.findall(r'<path d="M([^"]*)h0" style="fill: none; marker-start', text)
    return [np.array(path.split(), float).reshape(-1, 2) for path in paths]


def test_points_stand_where_matplotlib_puts_them():
    with plain({}):
        (ours,) = points(document(drawn(), "title", "text"))
        figure, out = Figure(figsize=(4, 3)), io.StringIO()
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.set(xlim=(0, 5), ylim=(0, 4))
        axes.plot(X, Y, "^", gid="here")
        figure.savefig(out, format="svg")
    uses = re.search(r'id="here".*?</g>\s*</g>', out.getvalue(), re.DOTALL)[0]
    theirs = [[float(place) for place in use] for use in re.findall(r'<use [^>]*x="(.*?)" y="(.*?)"', uses)]
    np.testing.assert_allclose(ours, theirs, atol=0.06)


@pytest.mark.parametrize("x, left", [([np.nan, 2.0, np.inf], 1), ([np.nan] * 3, 0), ([], 0)])
def test_what_is_no_number_is_no_point(x, left):
    with plain({}):
        text = document(drawn(x, Y[: len(x)]), "title", "text")
    assert sum(map(len, points(text))) == left
    assert "nan" not in text


def test_looks_are_defined_once_each_and_used():
    with plain({}):
        figure = drawn()
        for x in (0.5, 1.5):
            figure.axes[0].add_line(Marks([x], [1.0], "^", GOOD, filled=False, size=4.0, alpha=1.0))
        text = inline(document(figure, "title", "text"), "here")
    defined = re.findall(r'<marker id="(.*?)"', text)
    assert defined == ["here-mark0", "here-mark1"]
    assert set(re.findall(r"marker-\w+: url\(#(.*?)\)", text)) == set(defined)
    assert GOOD not in text, "the theme's colour"


def test_a_picture_of_pixels_has_the_points_too():
    def pixels(figure):
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return np.asarray(Image.open(out))

    with plain({}):
        whole, empty = pixels(drawn(size=20.0)), pixels(drawn([], []))
    assert (whole != empty).any(axis=-1).sum() > 300


def test_every_mark_of_a_chart_has_an_outline():
    from reports import chart, roofline

    assert {shape for shape, *_ in [*chart.MARKS.values(), *roofline.STYLES]} <= SHAPES.keys()


def test_words_are_escaped():
    with plain({}):
        text = document(drawn(), "<title>", "a & b")
    assert "<title>&lt;title&gt;</title>" in text
    assert "<desc>a &amp; b</desc>" in text
