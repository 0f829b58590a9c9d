"""One drawn scene of the built-in data set: pixels and panoptic ids, a pure function of a random generator.

What the classes ask of a network (so that architectures can differ):

- fine detail: ``striped_box`` and ``checked_box`` differ in a texture of a few pixels, ``ball`` and
  ``balloon`` only in a thin string; ``bar`` and ``ring`` are thin and may be large;
- receptive field: ``meadow`` and ``dunes`` share the local speckle and half of their colours, and differ in
  the structure of their brightness over some fifteen pixels (blobs or parallel bands);
- colour is a hint that speeds up training, no more: hues of classes overlap, ball and balloon share theirs.

Some objects are left unlabelled (void), some small ones form a crowd. Shape shorthand: H, W.
"""

import math

import cv2
import numpy as np

from ..formats.panoptic_png import VOID

# Ids have gaps on purpose, like COCO's: a confusion of category ids and contiguous ids cannot go unseen.
CATEGORIES = [
    {"id": 1, "name": "ball", "supercategory": "round", "isthing": 1, "color": [220, 20, 60]},
    {"id": 2, "name": "balloon", "supercategory": "round", "isthing": 1, "color": [250, 170, 30]},
    {"id": 3, "name": "ring", "supercategory": "round", "isthing": 1, "color": [0, 0, 230]},
    {"id": 5, "name": "bar", "supercategory": "straight", "isthing": 1, "color": [0, 226, 252]},
    {"id": 6, "name": "striped_box", "supercategory": "straight", "isthing": 1, "color": [182, 60, 255]},
    {"id": 7, "name": "checked_box", "supercategory": "straight", "isthing": 1, "color": [255, 109, 182]},
    {"id": 9, "name": "star", "supercategory": "straight", "isthing": 1, "color": [255, 255, 70]},
    {"id": 101, "name": "sky", "supercategory": "outdoor", "isthing": 0, "color": [70, 130, 180]},
    {"id": 102, "name": "water", "supercategory": "outdoor", "isthing": 0, "color": [58, 190, 178]},
    {"id": 103, "name": "brick", "supercategory": "outdoor", "isthing": 0, "color": [150, 80, 50]},
    {"id": 105, "name": "meadow", "supercategory": "ground", "isthing": 0, "color": [107, 142, 35]},
    {"id": 106, "name": "dunes", "supercategory": "ground", "isthing": 0, "color": [210, 180, 140]},
]
IDS = {c["name"]: c["id"] for c in CATEGORIES}
COLORS = {c["id"]: np.array(c["color"]) for c in CATEGORIES}
THINGS = [c["name"] for c in CATEGORIES if c["isthing"]]
STUFF = [c["name"] for c in CATEGORIES if not c["isthing"]]
SIZES = ((128, 160), (160, 128))  # (H, W)

ROUND_HUE = 10  # of ball and balloon, degrees
BOX_HUES = (345, 310)  # of striped_box and checked_box, degrees
MIN_STUFF_AREA = 1500  # pixels of a stuff region when laid out
MIN_VISIBLE_AREA, MIN_VISIBLE_PART = 40, 0.4  # of an object under those drawn later


def _noise(rng, h: int, w: int, scale: float) -> np.ndarray:
    grid = rng.standard_normal((int(h / scale) + 3, int(w / scale) + 3), dtype=np.float32)
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)


class _Canvas:
    """The scene while it is drawn: RGB floats, panoptic ids, and the records of its segments."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.h, self.w = SIZES[rng.integers(len(SIZES))]
        self.y, self.x = np.mgrid[0 : self.h, 0 : self.w].astype(np.float32)
        self.rgb = np.zeros((self.h, self.w, 3), np.float32)
        self.ids = np.full((self.h, self.w), VOID, np.int32)
        self.categories = {}  # segment id -> category id
        self.crowds = set()
        self.whole = {}  # segment id of an object -> (H, W) its mask when drawn

    def noise(self, scale: float) -> np.ndarray:
        """Smooth noise (H, W), about standard normal, with features of ``scale`` pixels."""
        return _noise(self.rng, self.h, self.w, scale)

    def new_id(self, category: int, jitter: int) -> int:
        """A fresh panoptic id: the category's colour, varied for things, as in COCO."""
        while True:
            color = COLORS[category] + self.rng.integers(-jitter, jitter + 1, 3)
            r, g, b = np.clip(color, 0, 255).tolist()
            segment_id = r + 256 * g + 65536 * b
            if segment_id != VOID and segment_id not in self.categories:
                self.categories[segment_id] = category
                return segment_id


# ---------------------------------------------------------------------------------------------- stuff


def _color(rng, rgb, spread: float = 0.0) -> np.ndarray:
    """An RGB colour, varied by a normal deviate per channel."""
    return np.array(rgb, np.float32) + rng.standard_normal(3, dtype=np.float32) * np.float32(spread)


def _layout(canvas: _Canvas) -> list:
    """Irregular regions: a warped Voronoi diagram of one to four seeds. Returns masks, topmost seed first."""
    rng = canvas.rng
    k = int(rng.choice([1, 2, 3, 4], p=[0.05, 0.35, 0.4, 0.2]))
    seeds = rng.uniform(0.05, 0.95, (k, 2)) * (canvas.h, canvas.w)
    seeds = seeds[np.argsort(seeds[:, 0])].tolist()
    y = canvas.y + 7 * canvas.noise(26) + 2.5 * canvas.noise(7)
    x = canvas.x + 7 * canvas.noise(26) + 2.5 * canvas.noise(7)
    distance = np.stack([(y - sy) ** 2 * 1.6 + (x - sx) ** 2 for sy, sx in seeds])
    while True:
        owner = distance.argmin(0)
        areas = np.bincount(owner.ravel(), minlength=len(distance))
        if areas.min() >= MIN_STUFF_AREA:
            return [owner == i for i in range(len(distance))]
        distance = np.delete(distance, areas.argmin(), axis=0)


def _bands(canvas: _Canvas, period: float, warp: float, warp_scale: float, angle: float) -> np.ndarray:
    """Parallel waves (H, W) in [-1, 1]."""
    phase = canvas.x * (math.cos(angle) / period) + canvas.y * (math.sin(angle) / period)
    return np.sin((2 * math.pi) * (phase + warp * canvas.noise(warp_scale)))


def _ground(canvas: _Canvas, t: float, tone: np.ndarray) -> np.ndarray:
    """Meadow and dunes share the speckle and a palette from green (t = 0) over ochre to sand (t = 1)."""
    rng = canvas.rng
    color = _color(rng, [95 + 95 * t, 130 + 30 * t, 70 + 35 * t], 5)
    speckle = cv2.GaussianBlur(rng.standard_normal((canvas.h, canvas.w), dtype=np.float32), (0, 0), 0.8)
    return color + (tone + 18 * speckle)[..., None]


def _meadow(canvas):
    rng = canvas.rng
    return _ground(canvas, rng.uniform(0, 0.65), 12 * canvas.noise(rng.uniform(9, 13)))


def _dunes(canvas):
    rng = canvas.rng
    wave = _bands(canvas, rng.uniform(13, 18), 0.07, 30, rng.uniform(0, math.pi))
    return _ground(canvas, rng.uniform(0.35, 1), 20 * wave)


def _sky(canvas):
    rng = canvas.rng
    fade = (canvas.y / canvas.h)[..., None]
    clouds = np.clip(canvas.noise(30) + 0.5 * canvas.noise(14), 0, 2)[..., None]
    top, bottom = _color(rng, [90, 140, 205], 10), _color(rng, [180, 205, 225], 8)
    return top + fade * (bottom - top) + clouds * 28


def _water(canvas):
    rng = canvas.rng
    wave = _bands(canvas, rng.uniform(4.5, 7), 0.35, 16, math.pi / 2 + rng.normal(0, 0.15))
    return _color(rng, [60, 130, 160], 12) + (14 * wave + 6 * canvas.noise(25))[..., None]


def _brick(canvas):
    rng = canvas.rng
    height = int(rng.integers(6, 10))
    row = (np.arange(canvas.h) + int(rng.integers(50)))[:, None] // height
    along = np.arange(canvas.w)[None] + int(rng.integers(50)) + row % 2 * height
    column = along // (2 * height)
    tones = rng.standard_normal((64, 64), dtype=np.float32)[row % 64, column % 64]
    mortar = np.diff(row, axis=0, prepend=row[:1]) + np.diff(column, axis=1, prepend=column[:, :1]) != 0
    tone = 9 * tones + 3 * canvas.noise(3)
    tone[mortar] += 42
    return _color(rng, [150, 85, 65], 16) + tone[..., None]


_TEXTURES = {"sky": _sky, "water": _water, "brick": _brick, "meadow": _meadow, "dunes": _dunes}


def _draw_stuff(canvas: _Canvas) -> None:
    names = [STUFF[i] for i in canvas.rng.permutation(len(STUFF))]
    masks = _layout(canvas)
    if "sky" in names[: len(masks)]:  # the sky, if any, is the topmost region
        names.remove("sky")
        names.insert(0, "sky")
    for mask, name in zip(masks, names, strict=False):
        np.copyto(canvas.rgb, _TEXTURES[name](canvas), where=mask[..., None])
        canvas.ids[mask] = canvas.new_id(IDS[name], 0)


# ---------------------------------------------------------------------------------------------- things


class _Patch:
    """The part of the canvas an object of size s at (cx, cy) may touch; h, w, y, x as in the canvas."""

    def __init__(self, canvas: _Canvas, cx: float, cy: float, s: float):
        reach = 1.15 * s + 2
        self.rows = slice(max(0, int(cy - reach)), min(canvas.h, int(cy + reach)))
        self.columns = slice(max(0, int(cx - reach)), min(canvas.w, int(cx + reach)))
        self.y, self.x = canvas.y[self.rows, self.columns], canvas.x[self.rows, self.columns]
        self.h, self.w = self.y.shape
        self.rng = canvas.rng

    def rotated(self, cx: float, cy: float, angle: float):
        """Coordinates (u, v) about (cx, cy), turned by ``angle``."""
        x, y, c, s = self.x - cx, self.y - cy, math.cos(angle), math.sin(angle)
        return x * c + y * s, y * c - x * s

    def fixed_point(self, points: np.ndarray) -> np.ndarray:
        """Points (n, 2) as (x, y) on the canvas, for OpenCV's drawing with four fractional bits."""
        return np.round((points - (self.columns.start, self.rows.start)) * 16).astype(np.int32)

    def polygon(self, points: np.ndarray) -> np.ndarray:
        mask = np.zeros((self.h, self.w), np.uint8)
        cv2.fillPoly(mask, [self.fixed_point(points)], 1, shift=4)
        return mask.astype(bool)


def _vivid(rng, hue: float) -> np.ndarray:
    """A saturated RGB colour about ``hue`` (degrees)."""
    hsv = [rng.normal(hue, 25) % 360, rng.uniform(0.6, 1), rng.uniform(0.55, 1)]
    return cv2.cvtColor(np.array([[hsv]], np.float32), cv2.COLOR_HSV2RGB)[0, 0] * 255


def _sphere(patch, cx, cy, r):
    """A lit sphere: its mask and its brightness (h, w, 1)."""
    light = 1.15 - 0.5 / r * np.hypot(patch.x - (cx - 0.35 * r), patch.y - (cy - 0.35 * r))
    return np.hypot(patch.x - cx, patch.y - cy) <= r, np.clip(light, 0.5, 1.2)[..., None]


def _ball(patch, cx, cy, s):
    mask, light = _sphere(patch, cx, cy, 0.36 * s)
    return mask, _vivid(patch.rng, ROUND_HUE) * light


def _balloon(patch, cx, cy, s):
    rng = patch.rng
    r = 0.36 * s
    t = np.linspace(0, 1, 12)
    lean, wiggle, length = rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.25), rng.uniform(1.2, 1.9)
    xs = cx + r * t * lean + r * wiggle * np.sin(t * rng.uniform(5, 10))
    points = patch.fixed_point(np.stack([xs, cy + r * 0.9 + r * length * t], axis=1))
    string = np.zeros((patch.h, patch.w), np.uint8)
    cv2.polylines(string, [points], False, 1, 2 if s < 50 else 3, shift=4)
    body, light = _sphere(patch, cx, cy, r)
    color = _vivid(rng, ROUND_HUE)
    paint = color * light
    paint[(string > 0) & ~body] = color * 0.55
    return body | (string > 0), paint


def _ring(patch, cx, cy, s):
    rng = patch.rng
    r, squeeze = 0.5 * s, rng.uniform(0.65, 1)
    u, v = patch.rotated(cx, cy, rng.uniform(0, math.pi))
    distance = np.hypot(u, v / squeeze)
    width = max(4.0, r * rng.uniform(0.26, 0.4))
    bulge = 1 - 0.4 / width * np.abs(distance - (r - width / 2))
    return (distance <= r) & (distance >= r - width), _vivid(rng, 280) * bulge[..., None]


def _bar(patch, cx, cy, s):
    rng = patch.rng
    half = max(4.0, s * rng.uniform(0.09, 0.13))
    u, v = patch.rotated(cx, cy, rng.uniform(0, math.pi))
    paint = _vivid(rng, 180) * (1 + 0.15 * np.sin(u * (5 / s)))[..., None]
    return (np.abs(u) <= 0.7 * s) & (np.abs(v) <= half), paint


def _box(patch, cx, cy, s, checked):
    rng = patch.rng
    a, b = 0.42 * s, 0.42 * s * rng.uniform(0.6, 1)
    u, v = patch.rotated(cx, cy, rng.uniform(0, math.pi))
    cell = max(4.0, s * rng.uniform(0.15, 0.2))
    shade = np.floor(u / cell) % 2
    if checked:
        shade = (shade + np.floor(v / cell)) % 2
    paint = _vivid(rng, BOX_HUES[checked]) * (0.35 + 0.65 * shade)[..., None]
    return (np.abs(u) <= a) & (np.abs(v) <= b), paint


def _striped_box(patch, cx, cy, s):
    return _box(patch, cx, cy, s, False)


def _checked_box(patch, cx, cy, s):
    return _box(patch, cx, cy, s, True)


def _star(patch, cx, cy, s):
    rng = patch.rng
    angles = rng.uniform(0, 2 * math.pi) + np.arange(10) * math.pi / 5
    radii = 0.5 * s * np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    mask = patch.polygon(np.stack([cx + radii * np.cos(angles), cy + radii * np.sin(angles)], axis=1))
    return mask, _vivid(rng, 60) * (1 + 0.25 / s * (patch.y - cy))[..., None]


def _clutter(patch, cx, cy, s):
    """An object of no class, left unlabelled: a grey triangle with coarse noise."""
    rng = patch.rng
    angles = np.sort(rng.uniform(0, 2 * math.pi, 3)) + np.array([0, 0.4, 0.8])
    mask = patch.polygon(np.stack([cx + 0.6 * s * np.cos(angles), cy + 0.6 * s * np.sin(angles)], axis=1))
    tone = rng.uniform(60, 190) + 30 * _noise(rng, patch.h, patch.w, 4)
    return mask, np.repeat(tone[..., None], 3, axis=2)


_OBJECTS = {
    "ball": _ball,
    "balloon": _balloon,
    "ring": _ring,
    "bar": _bar,
    "striped_box": _striped_box,
    "checked_box": _checked_box,
    "star": _star,
}


def _paint(canvas: _Canvas, patch: _Patch, mask, paint) -> None:
    """Put an object into the picture, with a thin dark rim unless it is thin itself."""
    edge = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    if np.count_nonzero(mask) > 3 * np.count_nonzero(edge):
        paint = np.where(edge[..., None], paint * np.float32(0.72), paint)
    np.copyto(canvas.rgb[patch.rows, patch.columns], paint, where=mask[..., None])


def _hides_too_much(canvas: _Canvas, under: np.ndarray) -> bool:
    """Whether covering the pixels that now have the ids ``under`` leaves too little of another segment."""
    for segment_id, lost in zip(*np.unique(under, return_counts=True), strict=True):
        if segment_id != VOID:
            left = np.count_nonzero(canvas.ids == segment_id) - lost
            area = np.count_nonzero(canvas.whole.get(int(segment_id), ()))
            if left < max(MIN_VISIBLE_AREA, MIN_VISIBLE_PART * area):
                return True
    return False


def _draw_object(canvas: _Canvas, draw, size: float, segment_id: int) -> bool:
    """Try positions until an object fits, and draw it there as a segment; False if none was found."""
    for _ in range(6):
        cx, cy = (canvas.rng.uniform(0.04, 0.96, 2) * (canvas.w, canvas.h)).tolist()
        if draw is _balloon:  # its string must be in the picture
            cy = min(cy, canvas.h - 0.75 * size)
        patch = _Patch(canvas, cx, cy, size)
        mask, paint = draw(patch, cx, cy, size)
        ids = canvas.ids[patch.rows, patch.columns]
        if np.count_nonzero(mask) >= MIN_VISIBLE_AREA and not _hides_too_much(canvas, ids[mask]):
            _paint(canvas, patch, mask, paint)
            ids[mask] = segment_id
            if segment_id != VOID:
                canvas.whole[segment_id] = canvas.ids == segment_id
            return True
    return False


def _draw_things(canvas: _Canvas) -> None:
    rng = canvas.rng
    sizes = np.exp(rng.uniform(math.log(26), math.log(84), int(rng.integers(2, 7))))
    for size in np.sort(sizes)[::-1].tolist():  # large ones first, so that small ones are not buried
        name = THINGS[rng.integers(len(THINGS))]
        _draw_object(canvas, _OBJECTS[name], size, canvas.new_id(IDS[name], 25))


def _draw_crowd(canvas: _Canvas) -> None:
    """A dozen small objects of one class, labelled as one group."""
    rng = canvas.rng
    name = ("ball", "star", "bar")[rng.integers(3)]
    cx, cy = (rng.uniform(0.2, 0.8, 2) * (canvas.w, canvas.h)).tolist()
    ids, rgb = canvas.ids.copy(), canvas.rgb.copy()
    segment_id = canvas.new_id(IDS[name], 25)
    for dx, dy in rng.normal(0, 11, (int(rng.integers(9, 16)), 2)).tolist():
        size = rng.uniform(9, 14)
        x, y = min(max(cx + dx, 5), canvas.w - 5), min(max(cy + dy, 5), canvas.h - 5)
        patch = _Patch(canvas, x, y, size)
        mask, paint = _OBJECTS[name](patch, x, y, size)
        _paint(canvas, patch, mask, paint)
        canvas.ids[patch.rows, patch.columns][mask] = segment_id
    group = canvas.ids == segment_id
    canvas.ids = ids
    if _hides_too_much(canvas, ids[group]):
        canvas.rgb = rgb
        return
    ids[group] = segment_id
    canvas.crowds.add(segment_id)
    canvas.whole[segment_id] = group


def draw_scene(rng: np.random.Generator):
    """Draw one scene.

    Args:
        rng: the only source of randomness; equal generators give equal scenes.

    Returns:
        image: uint8 RGB (H, W, 3), (H, W) one of ``SIZES``.
        ids: int32 (H, W) panoptic ids, 0 void.
        categories: {id: category id}.
        crowds: set of ids.
        whole: {id of a thing or crowd: (H, W) bool}, as if nothing lay over it: these masks may overlap.
    """
    canvas = _Canvas(rng)
    _draw_stuff(canvas)
    if rng.uniform() < 0.3:
        for _ in range(int(rng.integers(1, 3))):
            _draw_object(canvas, _clutter, rng.uniform(15, 40), VOID)
    if rng.uniform() < 0.12:
        _draw_crowd(canvas)
    _draw_things(canvas)
    light = rng.uniform(0.85, 1.1) + 0.07 * canvas.noise(60)[..., None]
    rgb = cv2.GaussianBlur(canvas.rgb * light, (0, 0), 0.5)
    rgb += 3 * rng.standard_normal(rgb.shape, dtype=np.float32)
    image = np.clip(np.round(rgb), 0, 255).astype(np.uint8)
    return image, canvas.ids, canvas.categories, canvas.crowds, canvas.whole
