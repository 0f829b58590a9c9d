"""The report in a real browser: every section, no overflow, an empty console, nothing asked of the network.

Skipped where there is no Chromium; with BROWSER_PATH set there must be one.
"""

import os

import pytest
from browser import Browser, find_browser
from report_util import add_pictures, make_search
from test_search import Evaluate, candidates

from auto_panoptic.report import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium; BROWSER_PATH names one")
SECTIONS = ["found", "scores", "candidates", "costs", "architecture", "pictures", "record"]
# Elements that stick out of the page, but for what scrolls in a box of its own.
STICKING_OUT = """[...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest(".scroll") && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((e) => e.outerHTML.slice(0, 120))"""
TEXTS = """[...document.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().width > 0)"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(find_browser(), tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    result = make_search(folder, evaluate=Evaluate(crash=candidates(2)[:3], bootstrap=True))
    for place in ("search/pictures_scenes", "retrain/inference/pictures_val"):
        add_pictures(folder / place, result.architecture.names())
    return write_report(folder)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_section_stands_on_the_page(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    shown = '[...document.querySelectorAll("section")].filter((s) => s.offsetHeight > 60).map((s) => s.id)'
    assert browser.value(shown) == SECTIONS
    assert browser.value("document.documentElement.scrollWidth") == width
    assert browser.value(STICKING_OUT) == []
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    ground = browser.value("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")
    # One drawing of each pair is shown; its texts are of a size that can be read.
    pictures = 'document.querySelectorAll(".pictures div img")'
    assert browser.value(f"{pictures}.length") == 16
    assert browser.value(f"[...{pictures}].every((e) => e.complete && e.naturalWidth === 300)")
    tops = f"new Set([...{pictures}].slice(0, 4).map((e) => e.getBoundingClientRect().top)).size"
    assert browser.value(tops) == (2 if width < 500 else 1)
    kinds = '[...document.querySelectorAll("figure:not(.pictures) > div")]'
    kinds += ".filter((d) => d.offsetHeight).map((d) => d.className)"
    assert browser.value(kinds) == 4 * ["narrow" if width < 500 else "wide"]
    sizes = f"{TEXTS}.map((e) => e.getBoundingClientRect().height)"
    assert min(browser.value(sizes)) >= 8.5


def test_texts_of_a_drawing_do_not_leave_it(browser, page):
    for width in (1280, 390):
        browser.open(page, width)
        outside = f"""{TEXTS}.filter((e) => {{
          const text = e.getBoundingClientRect(), box = e.ownerSVGElement.getBoundingClientRect();
          return text.left < box.left - 2 || text.right > box.right + 2 || text.bottom > box.bottom + 2;
        }}).map((e) => e.textContent)"""
        assert browser.value(outside) == []


def test_the_table_sorts_and_filters(browser, page):
    browser.open(page)
    rows = '[...document.querySelectorAll("#table tbody tr")].filter((r) => !r.hidden)'
    numbers = f"{rows}.map((r) => Number(r.cells[2].dataset.v))"
    first = browser.value(numbers)
    assert len(first) == 45 and first == sorted(first, reverse=True)
    press = 'document.querySelectorAll("#table th button")[{}].click()'
    browser.value(press.format(2))
    browser.value(press.format(2))
    assert browser.value(numbers) == sorted(first)
    browser.value(press.format(0))
    seqs = f"{rows}.map((r) => Number(r.cells[0].textContent))"
    assert browser.value(seqs) == list(range(47, 2, -1))
    choose = """(() => { const box = document.getElementById("{0}"); box.value = "{1}";
      box.dispatchEvent(new Event("change")); })()"""
    browser.value(choose.replace("{0}", "site").replace("{1}", "mask.1"))
    names = browser.value('[...document.getElementById("op").options].map((o) => o.textContent)')
    assert names[0] == "any" and len(names) == 7
    browser.value(choose.replace("{0}", "op").replace("{1}", "2"))
    expected = [i for i, a in enumerate(candidates(2)) if i > 2 and a["mask.1"].name == names[3]]
    assert browser.value(seqs) == expected[::-1]
    assert browser.value('document.getElementById("shown").textContent') == f"{len(expected)} of 45"
    assert browser.complaints() == []


def test_the_pointer_shows_values(browser, page):
    browser.open(page)
    place = """(() => { const mark = [...document.querySelectorAll(".wide [data-tip]")][0];
      mark.scrollIntoView({block: "center", behavior: "instant"}); const box = mark.getBoundingClientRect();
      return [box.left + box.width / 2, box.top + box.height / 2, mark.dataset.tip]; })()"""
    x, y, text = browser.value(place)
    browser.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.value('document.getElementById("tip").hidden') is False
    assert browser.value('document.getElementById("tip").textContent') == text
    assert text.startswith("backbone.0, shuffle_3x3: score ")


def test_a_browser_that_is_named_is_there():
    assert os.access(find_browser(), os.X_OK)
