"""Searches on the toy space, and what a report of them says."""

from html.parser import HTMLParser

import numpy as np
from PIL import Image
from test_search import SPACE, Evaluate, search

from auto_panoptic.evaluation.gallery import Example, Gallery, write_pictures
from auto_panoptic.evaluation.overlap import Overlap
from auto_panoptic.search import Request, ledger_path
from auto_panoptic.search.costs import store_tables
from auto_panoptic.space import Cost, CostTables

COSTS = CostTables(
    SPACE,
    {"backbone": Cost(1000, 10)},
    {
        site.name: {name: Cost(7 + 13 * i + 101 * j, 1 + i + 17 * j) for i, name in enumerate(site.names)}
        for j, site in enumerate(SPACE.sites)
    },
)


def make_search(folder, cycles=2, evaluate=None, **options):
    """A finished search of 24 candidates a cycle in ``folder``, with costs.json."""
    evaluate = evaluate or Evaluate(bootstrap=True)
    options = {"costs": COSTS, "request": Request()} | options
    result, _ = search(folder, evaluate, cycles=cycles, **options)
    store_tables(ledger_path(folder).parent, "a config", COSTS)
    return result


class Page(HTMLParser):
    """What stands in a page: texts by the id of their section or element, tips, tables.

    Attributes:
        text: {id: all text within the element of that id}.
        tips: of the marks, in order.
        tables: {id: rows of cells, each its data-v or else its text}.
        links: values of attributes that name other places.
    """

    def __init__(self, html):
        super().__init__()
        self.text, self.tips, self.tables, self.links = {}, [], {}, []
        self._ids, self._cell, self._table = [], None, None
        self._in_title = False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        if tag not in ("meta", "link", "input", "br"):
            self._ids.append((tag, attributes.get("id")))
        if tag == "table":
            self._table = self.tables.setdefault(attributes.get("id"), [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th"):
            self._cell = attributes.get("data-v", "")
            self._table[-1].append(self._cell)
            self._cell = None if "data-v" in attributes else ""
        elif tag == "title":
            self._in_title = True
            self.tips.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "input", "br"):
            self._ids.pop()

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            if self._cell is not None:
                self._table[-1][-1] = self._cell.strip()
            self._cell = None
        elif tag == "table":
            self._table = None
        elif tag == "title":
            self._in_title = False
        while self._ids and self._ids.pop()[0] != tag:
            pass

    def handle_data(self, data):
        if self._in_title:
            self.tips[-1] += data
            return
        if self._cell is not None:
            self._cell += data
        for _, name in self._ids:
            if name is not None:
                self.text[name] = self.text.get(name, "") + data


def words(text):
    """A text with its white space made single spaces."""
    return " ".join(text.split())


def add_pictures(folder, operators, metrics=None, number=2):
    """Pictures as an evaluation leaves them: of ``number`` images, one half right, the other half wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    photo = folder.parent / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((120, 80)).save(photo)
    truth = np.ones((80, 120), np.int32)
    truth[20:60, 30:70] = 2
    gallery = Gallery(-(-number // 2))
    for i in range(number):
        found = truth if i % 2 == 0 else 3 - truth
        pairs = [[{"id": k, "category_id": k} for k in (1, 2)] for _ in range(2)]
        example = Example(100.0 - i if i % 2 == 0 else i - 1.0, i, str(photo), found, truth,
                          Overlap.of(found, pairs[0], truth, pairs[1]))  # fmt: skip
        gallery.extend([example])
    facts = {"data_set": "scenes", "metrics": metrics, "operators": operators}
    write_pictures(folder, gallery.chosen(), {1: "ground", 2: "ball"}, facts)
