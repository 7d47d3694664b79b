"""Figures of what the members look at: which, what they show of images, and the same bytes again."""

from __future__ import annotations

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ensemble.reports.attribution_figures import COLOURS, Attribution, attribution_figures
from ensemble.runs.attribution import ClassMap, ErrorMap, Grid, MemberMaps

NAMES = ("hat", "bare")


def grid(row: int, column: int, value: float) -> Grid:
    """Return a map with one effect."""
    effects = np.zeros((8, 8))
    effects[row, column] = value
    return tuple(map(tuple, effects.tolist()))


def maps(member: str = "small_cnn", scale: float = 2.0) -> MemberMaps:
    zero = grid(0, 0, 0.0)
    classes = (ClassMap(0, 200, grid(2, 5, 3.0), zero), ClassMap(1, 150, grid(6, 1, -1.0), zero))
    errors = (ErrorMap("000007", 1, 0, grid(3, 3, 4.0)), ErrorMap("=cmd()$x$", 0, 1, grid(4, 4, 0.5)))
    return MemberMaps(member, 200, scale, classes, errors, {"0": "ab"})


def texts(picture: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture.decode())


def test_without_maps_there_are_no_figures() -> None:
    assert attribution_figures(Attribution(()), NAMES) == ()


def test_of_one_member_all_classes_are_in_one_figure() -> None:
    of_classes, errors = attribution_figures(Attribution((maps(),)), NAMES)
    assert of_classes.title == "What small_cnn looks at"
    assert {"label hat", "label bare"} <= set(texts(of_classes.picture))
    assert "label hat: +1.50 in row 3, column 6. label bare: -0.50 in row 7, column 2." in of_classes.alt
    assert "at most 200 images of a class" in of_classes.caption
    assert "2 most confident errors. " in errors.alt


def test_of_several_members_each_class_has_a_figure() -> None:
    hat, bare, errors = attribution_figures(Attribution((maps("a"), maps("b", scale=4.0))), NAMES)
    assert hat.title.endswith("label hat") and bare.title.endswith("label bare")
    assert "a: +1.50 in row 3, column 6. b: +0.75 in row 3, column 6." in hat.alt
    assert "000007, label bare, predicted hat: +1.50 in row 4, column 4." in errors.alt  # the mean of 2 and 1


def test_classes_share_their_colours() -> None:
    """A class whose effects are small looks so beside one whose effects are large."""
    for figure in attribution_figures(Attribution((maps("a"), maps("b"))), NAMES)[:2]:
        assert {"1.5", "1.0"} & set(texts(figure.picture)), "the colour bar ends at 1.5"
        colours = pixels_of(figure.picture)
        assert any(image.shape[:2] == (8, 8) for image in colours)


def test_effects_that_decide_nothing_are_pale() -> None:
    zero = grid(0, 0, 0.0)
    weak = replace(maps(), classes=(ClassMap(0, 9, grid(2, 5, 0.01), zero),), errors=())
    (figure,) = attribution_figures(Attribution((weak,)), NAMES)
    (shown, *_) = [image for image in pixels_of(figure.picture) if image.shape == (8, 8, 4)]
    assert shown[..., :3].min() > 200  # at the end of the colours, orange has a channel below 30
    assert "+.00" not in texts(figure.picture) and "+.01" not in texts(figure.picture)


def pixels_of(picture: bytes) -> list[np.ndarray]:
    """Return the images that an SVG holds, as RGBA."""
    found = re.findall(r'data:image/png;base64,\s*([^"]+)"', picture.decode())
    decoded = [cv2.imdecode(np.frombuffer(base64.b64decode(each), np.uint8), cv2.IMREAD_UNCHANGED) for each in found]
    return [cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA) for image in decoded if image.ndim == 3 and image.shape[2] == 4]


def test_a_square_has_the_colour_of_its_effect() -> None:
    import matplotlib

    of_classes, _ = attribution_figures(Attribution((maps(),)), NAMES)
    first, second, *_ = [image for image in pixels_of(of_classes.picture) if image.shape == (8, 8, 4)]
    colours = matplotlib.colormaps[COLOURS]
    expected = np.zeros((2, 8, 8))
    expected[0, 2, 5], expected[1, 6, 1] = 1.5, -0.5
    for shown, effects in zip((first, second), expected, strict=True):
        np.testing.assert_allclose(shown, colours(effects / 3 + 0.5, bytes=True), atol=1)


def test_without_pictures_nothing_of_an_image_is_shown() -> None:
    for figure in attribution_figures(Attribution((maps(),)), NAMES):
        shapes = {image.shape for image in pixels_of(figure.picture)}
        assert all(shape == (8, 8, 4) or 1 in shape[:2] or shape[1] < 10 for shape in shapes), "maps and colour bars"


def test_pictures_are_shown_where_they_are() -> None:
    rng = np.random.default_rng(0)
    image, mean = (rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2))
    shown = Attribution((maps(),), {0: mean, 1: mean}, {"000007": image})
    of_classes, errors = attribution_figures(shown, NAMES)
    assert "over the mean image of the class" in of_classes.alt and "each beside its image" in errors.alt
    assert any(np.array_equal(each[..., :3], image) for each in pixels_of(errors.picture))
    grey = [each[..., 0] for each in pixels_of(of_classes.picture) if each.shape[:2] == (12, 12)]
    assert len(grey) == 2 and np.array_equal(grey[0], np.round(mean.mean(axis=2)))


def test_an_error_that_one_member_lacks_is_left_out() -> None:
    other = replace(maps("b"), errors=maps().errors[1:])
    *_, errors = attribution_figures(Attribution((maps("a"), other)), NAMES)
    assert "000007" not in errors.alt and "1 most confident error. " in errors.alt
    none = replace(maps("b"), errors=())
    assert len(attribution_figures(Attribution((maps("a"), none)), NAMES)) == 2


def test_the_same_maps_give_the_same_bytes() -> None:
    first, second = (attribution_figures(Attribution((maps(),)), NAMES) for _ in range(2))
    assert [each.picture for each in first] == [each.picture for each in second]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "line\nbreak", "\\frac{1}{0}$"])
def test_odd_names_are_drawn_as_text(name: str) -> None:
    odd = replace(maps(), errors=(ErrorMap(name, 0, 1, grid(0, 0, 1.0)),))
    *_, errors = attribution_figures(Attribution((odd,)), NAMES)
    assert b"<script" not in errors.picture
    assert errors.uri.startswith("data:image/svg+xml;")
