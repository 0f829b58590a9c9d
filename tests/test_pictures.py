"""Pictures of predictions: colours that all can tell apart, mistakes where they are, the right images."""

import itertools

import numpy as np
import pytest
from coloraide import Color

from auto_panoptic.pictures.colours import MISTAKES, OUTLINE, PALETTE, VOID, paint, pattern, rgb, swatch
from auto_panoptic.pictures.drawing import draw_differences, draw_segments, fit, mistakes, strip

# Kinds of colour vision, each simulated in several ways: (filter of coloraide, its options).
VISIONS = [(None, {})]
VISIONS += [("protan", {"method": m}) for m in ("machado", "brettel", "vienot")]
VISIONS += [("deutan", {"method": m}) for m in ("machado", "brettel", "vienot")]
VISIONS += [("tritan", {"method": m}) for m in ("machado", "brettel")]
COLOURS = {
    "classes": PALETTE,
    "mistakes": tuple(colour for colour, _ in MISTAKES.values()),
}


def seen(colour, vision):
    name, options = vision
    colour = Color(colour)
    return colour.filter(name, **options).clip("srgb") if name else colour


def difference(colours):
    """The smallest difference (CIEDE2000) of any two."""
    return min(a.delta_e(b, method="2000") for a, b in itertools.combinations(colours, 2))


@pytest.mark.parametrize("vision", VISIONS, ids=lambda v: "-".join([v[0] or "normal", *v[1].values()]))
@pytest.mark.parametrize("kind", COLOURS)
def test_any_two_colours_differ_for_every_kind_of_vision(kind, vision):
    """2 is what side by side can just be told apart; segments are not always side by side."""
    assert (
        difference([seen(colour, vision) for colour in COLOURS[kind]]) > {"classes": 8, "mistakes": 12}[kind]
    )


@pytest.mark.parametrize("kind", COLOURS)
def test_any_two_colours_differ_in_a_grey_print_and_from_its_paper_and_ink(kind):
    """The steps are even: no two colours share a grey, and none is that of the page or of the outline."""
    lightness = sorted(Color(colour).convert("lab-d65")["l"] for colour in COLOURS[kind])
    assert min(b - a for a, b in itertools.pairwise(lightness)) > 4
    assert lightness[-1] < Color(VOID).convert("lab-d65")["l"] - 6
    if kind == "classes":
        assert lightness[0] > Color(OUTLINE).convert("lab-d65")["l"] + 20


@pytest.mark.parametrize("kind", COLOURS)
def test_any_two_colours_differ_under_the_stray_light_of_a_projector(kind):
    """A room whose light adds a fifth of the white that the projector gives."""
    shown = []
    for colour in COLOURS[kind]:
        light = Color(colour).convert("srgb-linear")
        shown.append(Color("srgb-linear", [(part + 0.2) / 1.2 for part in light.coords()]))
    assert difference(shown) > 6


def test_further_classes_have_a_pattern():
    first, second = swatch(0), swatch(len(PALETTE))
    assert (first == rgb(PALETTE[0])).all()
    striped = (second != first).any(-1)
    assert 0.3 < striped.mean() < 0.5 and np.array_equal(striped, pattern("rising", 16, 16))
    every = [swatch(number).tobytes() for number in range(4 * len(PALETTE))]
    assert len(set(every)) == len(every)
    assert (paint(np.full((2, 2), -1)) == rgb(VOID)).all()


# ------------------------------------------------------------------ what is drawn


def test_mistakes_are_where_they_are():
    """Truth: 1 is found as 5 but for its border, 2 is not found, 3 is taken for 6, 9 is a crowd, 0 void."""
    truth = np.array([[1, 1, 1, 2, 2, 3, 3, 9, 0, 1]])
    found = np.array([[5, 5, 0, 0, 5, 6, 6, 7, 7, 7]])
    kinds = mistakes(found, truth, {(1, 5): 0.6}, ({1, 2, 3}, {5, 6, 7}))
    assert kinds.tolist() == [[0, 0, 4, 1, 1, 3, 3, 0, 0, 2]]
    assert list(MISTAKES) == ["missed", "invented", "taken for another", "border"]


def test_differences_leave_what_is_right_pale_and_without_colour():
    photo = np.zeros((4, 8, 3), np.uint8)
    photo[:, 4:] = 200, 10, 90
    truth = np.ones((4, 8), np.int32)
    found = np.where(np.arange(8) < 6, 5, 0)[None].repeat(4, 0)
    drawn = draw_differences(photo, found, truth, {(1, 5)}, ({1}, {5}), (4, 8))
    assert (drawn[:, 6:] == rgb(MISTAKES["border"][0])).all()
    assert np.ptp(drawn[:, :6], axis=-1).max() == 0 and drawn[:, :6].min() > 160


def test_segments_have_the_colour_of_their_class_an_outline_and_a_name():
    """The larger segment has room for its name; where there is none, the colour is whole."""
    ids = np.zeros((60, 100), np.int64)
    ids[:, 40:] = 1 << 20
    ids[:, 90:] = 7
    names = ["a", "a long name"]
    drawn = draw_segments(ids, {1 << 20: 0, 7: 1}, names, (60, 100))
    assert (drawn[:, 39] == rgb(OUTLINE)).all() and (drawn[:, 89] == rgb(OUTLINE)).all()
    assert (drawn[:, :39] == rgb(VOID)).all()  # no record: void
    assert (drawn[:, 90:] == rgb(PALETTE[1])).all()
    inside = drawn[:, 40:89].reshape(-1, 3).tolist()
    assert inside.count(list(rgb(PALETTE[0]))) > 0.9 * len(inside) and [255, 255, 255] in inside
    assert drawn.dtype == np.uint8


def test_pictures_keep_their_proportions():
    assert fit(128, 160) == (240, 300) and fit(1024, 2048) == (150, 300) and fit(3000, 2) == (300, 1)
    assert fit(100, 50, side=10) == (10, 5)
    panels = [np.zeros((5, w, 3), np.uint8) for w in (3, 4)]
    joined = strip(panels, gap=2)
    assert joined.shape == (5, 9, 3) and (joined[:, 3:5] == 255).all() and joined[:, 5:].max() == 0
