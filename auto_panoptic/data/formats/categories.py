"""The rules of a COCO-panoptic category list."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping

import numpy as np

from .findings import Problem, findings_in, raise_first
from .panoptic_png import IGNORE


class Categories:
    """The classes of a list: ``things`` {id: isthing} and ``names`` {id: name}, after :meth:`problems`."""

    def __init__(self, content: object):
        self._content = content
        self.things, self.names = {}, {}

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong with the list; the classes are known afterwards."""
        if not isinstance(self._content, (list, tuple)) or not self._content:
            yield "bad-category", None, "'categories' is not a list with at least one category"
            return
        taken = set()
        for position, category in enumerate(self._content):
            where = f"categories[{position}]"
            if not isinstance(category, Mapping):
                yield "bad-category", None, f"{where} is {category!r}, expected an object"
                continue
            number, name, isthing = (category.get(key) for key in ("id", "name", "isthing"))
            if type(number) is not int or number < 0:
                yield "bad-category", None, f"{where} has id {number!r}, expected an integer >= 0"
                continue
            where += f" (id {number}"
            if not isinstance(name, str):
                yield "bad-category", None, f"{where}) has name {name!r}, expected a string"
                name = str(number)
            if not isinstance(isthing, (int, np.bool_)) or isthing not in (0, 1):
                yield "bad-category", None, f"{where}, {name}) has isthing {isthing!r}, expected 0 or 1"
            color = category.get("color")
            if color is not None and not _is_color(color):
                yield "bad-category", None, f"{where}) has color {color!r}, expected three of 0 to 255"
            if number in self.things:
                what = f"categories[{position}] has id {number} ({name}), as {self.names[number]!r} before it"
                yield "duplicate-category-id", None, what
                continue
            if name in taken:
                yield "duplicate-category-name", None, f"{where}) is named {name!r}, as another before it"
            taken.add(name)
            self.things[number], self.names[number] = bool(isthing), name
        stuff = len(self.things) - sum(self.things.values())
        if stuff >= IGNORE:
            what = f"{stuff} stuff classes; label maps of 8 bits hold at most {IGNORE - 1}"
            yield "bad-category", None, what


def _is_color(color) -> bool:
    if not isinstance(color, (list, tuple, np.ndarray)) or len(color) != 3:
        return False
    return all(isinstance(v, numbers.Real) and not isinstance(v, bool) and 0 <= v <= 255 for v in color)


def check_categories(categories: object, where: str) -> None:
    """Raise UserError for the first error of :meth:`Categories.problems`; ``where`` the list is."""
    raise_first(findings_in(where, Categories(categories).problems()))
