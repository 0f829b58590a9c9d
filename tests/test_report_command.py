"""The commands around a report: what they print, what they refuse, and the drawings of architectures."""

import json
import shutil
import sys

import pytest
import yaml
from report_util import Page, make_search, words
from test_configs import FOLDER, read
from toy import toy_space

from auto_panoptic.errors import run_command
from auto_panoptic.explore import Ledger
from auto_panoptic.modeling import meta_model, space_of
from auto_panoptic.report import palette, report_after_search, write_report
from auto_panoptic.report.architecture_figure import _lines
from auto_panoptic.report.axes import amount, ticks
from auto_panoptic.report.command import main
from auto_panoptic.report.layout import lanes_of, stages_of
from auto_panoptic.report.retraining import retraining_config
from auto_panoptic.search import ledger_path
from auto_panoptic.space import Architecture, OpSpec, SearchSpace, register_ops, resolve_architecture_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_search(folder, cycles=1)
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command line in this process; (exit code, standard output, standard error)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
        code = 0
        try:
            run_command(main)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_prints_where_the_page_is(finished, command):
    assert command(finished) == (0, f"{finished}/search/report.html\n", "")


def _damage(folder):
    text = ledger_path(folder).read_text().replace('"seq": 3', '"seq": 4')
    ledger_path(folder).write_text(text)


WRONG = [
    (lambda folder: shutil.rmtree(folder / "search"), "cannot read the ledger: No such file or directory"),
    (lambda folder: ledger_path(folder).write_text(""), "the ledger has no header"),
    (lambda folder: ledger_path(folder).write_text("[]\n"), "line 1 is damaged"),
    (_damage, "line 5 is damaged (its checksum does not match)"),
    (lambda folder: ledger_path(folder).write_text(ledger_path(folder).read_text().split("\n")[0] + "\n"),
     "holds no candidates yet"),
    (lambda folder: (folder / "search/figures").write_text(""), "figures: File exists"),
]  # fmt: skip


@pytest.mark.parametrize("change, problem", WRONG)
def test_what_is_no_search_gives_one_line(finished, tmp_path, command, change, problem):
    shutil.copytree(finished / "search", tmp_path / "search", ignore=shutil.ignore_patterns("figures"))
    change(tmp_path)
    code, out, err = command(tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and problem in err


@pytest.mark.parametrize("words, problem", [
    ((), "the following arguments are required: OUTPUT_DIR"),
    (("architecture",), "the following arguments are required: FILE"),
    (("nowhere", "--import", "no_such_module"), "--import no_such_module: No module named"),
    (("architecture", "no_such_name"), "no architecture file 'no_such_name'; give the path"),
    (("architecture", "random_0", "--output", "no/such/stem"), "there is no folder no/such"),
])  # fmt: skip
def test_wrong_arguments_give_one_line(command, words, problem):
    code, out, err = command(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and problem in err


def test_ledgers_of_other_metrics_are_not_compared(finished, tmp_path, command):
    text = ledger_path(finished).read_text()
    header, record = map(json.loads, text.splitlines()[:2])
    del header["format"], header["checksum"], record["seq"], record["checksum"]
    record["metrics"]["mIoU"] = 40.0
    with Ledger.open(ledger_path(tmp_path), header | {"fitness": "mIoU"}) as ledger:
        ledger.append(record)
    code, _, err = command(finished, "--compare", tmp_path)
    assert code == 2 and "is ranked by mIoU" in err and err.count("\n") == 1


def test_a_failed_report_loses_no_search(finished, tmp_path, capsys):
    shutil.copytree(finished / "search", tmp_path / "search", ignore=shutil.ignore_patterns("figures"))
    report_after_search(tmp_path)
    assert capsys.readouterr().out == f"report        {tmp_path}/search/report.html\n"
    shutil.rmtree(tmp_path / "search/figures")
    (tmp_path / "search/figures").write_text("")
    report_after_search(tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("report: not written (") and f"python -m auto_panoptic.report {tmp_path}" in err


# ------------------------------------------------------------------ the command that retrains


@pytest.mark.parametrize("searched, config", [
    ("quick/supernet", "quick/retrain"),
    ("quick/unified_supernet", "quick/unified"),
    ("supernet_coco", "auto_panoptic_coco"),
    ("supernet_ade20k", "auto_panoptic_ade20k"),
    ("reference/supernet_coco", "reference/auto_panoptic_coco"),
    ("unified/supernet_coco", "unified/searched_coco"),
])  # fmt: skip
def test_every_shipped_search_has_its_retraining(searched, config):
    cfg = yaml.safe_load(read(FOLDER / f"{searched}.yaml").dump())
    assert retraining_config(cfg) == f"configs/{config}.yaml"


def test_a_search_of_ones_own_has_none(finished):
    assert retraining_config({"MODEL": {"META_ARCHITECTURE": "Mine"}, "DATASETS": {"TEST": ["mine"]}}) is None
    page = Page(write_report(finished).read_text())
    assert words(page.text["command"]).startswith(
        "python train_net.py --config-file CONFIG NAS.ARCHITECTURE /"
    )


# ------------------------------------------------------------------ architectures


def test_published_architectures_side_by_side(tmp_path, command, monkeypatch):
    names = ("auto_panoptic_coco", "auto_panoptic_ade20k")
    code, out, err = command("architecture", *names, "--output", tmp_path / "two")
    assert (code, out, err) == (0, f"{tmp_path}/two.html\n", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["two.html", "two.png", "two.svg"]
    first, second = (Architecture.load(resolve_architecture_path(name)).names() for name in names)
    page = Page((tmp_path / "two.html").read_text())
    boxes = [tip for tip in page.tips if ": " in tip]
    drawn = [f"{site}: {op}" for sites in (first, second) for site, op in sites.items()]
    assert sorted(boxes) == sorted(2 * drawn)
    differ = sum(first[site] != second[site] for site in first)
    assert f"auto_panoptic_ade20k: differs at {differ} of 56 sites" in page.text["architecture"]


def test_architectures_of_two_spaces_are_not_counted_against_each_other(tmp_path, command):
    toy_space(backbone=4, head=2, inter=2).architecture([0] * 8).save(tmp_path / "toy.json")
    command("architecture", "random_0", tmp_path / "toy.json", "--output", tmp_path / "two")
    page = Page((tmp_path / "two.html").read_text())
    assert "toy: of another search space" in page.text["architecture"]
    assert "differs" not in page.text["architecture"].replace("differs from the first architecture", "")


def test_a_file_of_ones_own_and_an_unknown_network(tmp_path, command):
    """A network that brings no layout is drawn row by row of its sites."""
    register_ops(*[OpSpec(f"report_{k}", kind="report", group="mine", kernel=k) for k in (1, 3)])
    space = SearchSpace.from_dict(
        {"stem.0": ["report_1", "report_3"], "stem.1": ["report_3"], "top": ["report_1"]}
    )
    path = tmp_path / "own.json"
    space.architecture([1, 0, 0]).save(path)
    assert command("architecture", path, "--output", tmp_path / "own")[0] == 0
    page = Page((tmp_path / "own.html").read_text())
    assert [tip for tip in page.tips if ": " in tip] == 2 * [
        "stem.0: report_3", "stem.1: report_3", "top: report_1"
    ]  # fmt: skip
    lanes = lanes_of(Architecture.load(path))
    assert [[lane["sites"] for lane in row] for row in lanes] == [["stem"], ["top"]]
    assert all(lane["apart"] and lane["parallel"] for row in lanes for lane in row)


def test_a_panoptic_deeplab_is_drawn_branch_by_branch(tmp_path, command):
    """The sites of its quick configs, from the backbone to the heads of centres and offsets."""
    space = space_of(meta_model(read(FOLDER / "quick/panoptic_deeplab_supernet.yaml")))
    architecture = space.architecture([i % len(site.ops) for i, site in enumerate(space.sites)])
    architecture.save(tmp_path / "deep.json")
    lanes = lanes_of(architecture)
    drawn = [[lane.get("sites", "box") for lane in row] for row in lanes]
    assert drawn == [["backbone"], ["box"], ["decoder"], ["center", "offset"], ["box"]]
    config = {"MODEL": {"META_ARCHITECTURE": "AutoPanopticDeepLab", "SHUFFLENET": {"STAGE_REPEATS": [2, 8]}}}
    assert lanes_of(architecture, config) == lanes and stages_of(lanes[0][0], 10, config) == [2, 8]
    assert command("architecture", tmp_path / "deep.json", "--output", tmp_path / "deep")[0] == 0
    page = Page((tmp_path / "deep.html").read_text())
    boxes = [tip for tip in page.tips if ": " in tip]
    assert sorted(boxes) == sorted(2 * [f"{site}: {op}" for site, op in architecture.names().items()])
    for name in ("Decoders: semantic stages and head", "Centre head", "Offset head", "grouped by centres"):
        assert name in page.text["architecture"]


def test_the_layout_is_that_of_the_model():
    """Its lanes hold all sites of an architecture; a config's model decides where rows are alike."""
    coco = Architecture.load(resolve_architecture_path("auto_panoptic_coco"))
    lanes = lanes_of(coco)
    drawn = [lane["sites"] for row in lanes for lane in row if "sites" in lane]
    assert sorted(drawn) == ["attention.b2f", "attention.f2b", "backbone", "mask", "sem_seg"]
    assert stages_of(lanes[0][0], 40) == [8, 8, 16, 8]
    part = SearchSpace(tuple(s for s in coco.space.sites if s.part in ("backbone", "mask", "sem_seg")))
    part = part.architecture([0] * len(part.sites))
    for model, box in (
        ("AutoPanopticFPN", "merging: panoptic map"),
        ("UnifiedPanoptic", "potential, spread by"),
    ):
        config = {"MODEL": {"META_ARCHITECTURE": model, "SHUFFLENET": {"STAGE_REPEATS": [2, 38]}}}
        lanes = lanes_of(part, config)
        assert lanes[-1][-1]["box"].startswith(box)
        assert stages_of(lanes[0][0], 40, config) == [2, 38]
    assert all(lane["name"] == lane["sites"] for row in lanes_of(part) for lane in row)
    toy = toy_space(backbone=4, head=2, inter=2).architecture([0] * 8)
    assert stages_of(lanes_of(toy)[0][0], 4) == [4]


@pytest.mark.parametrize("stages, width, lines", [
    ([2, 3], 5 * 24 - 3 + 15, [[2, 3]]),
    ([2, 3], 5 * 24 - 3 + 14, [[2], [3]]),
    ([7], 3 * 24 - 3, [[3], [3], [1]]),
    ([1, 7], 3 * 24 - 3, [[1, 1], [3], [3]]),
])  # fmt: skip
def test_lanes_wrap(stages, width, lines):
    """Boxes of 21 with gaps of 3, and 15 more before a stage; by hand."""
    assert _lines(stages, width) == lines


def test_axes():
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.3, 1.1, 3) == [0, 0.5, 1]
    assert [amount(v) for v in (647335168, 1732842, 999.6, 12, 999_999, 3.2e12)] == [
        "647 M", "1.73 M", "1 k", "12", "1 M", "3.2 T"
    ]  # fmt: skip


# ------------------------------------------------------------------ colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritan": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def linear(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def luminance(colour):
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one, two):
    """Of WCAG."""
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def lab(colour, deficiency):
    """CIE L*a*b* of what a person sees, D65."""
    rgb = [min(max(sum(a * b for a, b in zip(row, linear(colour), strict=True)), 0), 1) for row in deficiency]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, rgb, strict=True)) for row in matrix]
    f = [(v / w) ** (1 / 3) if v / w > 0.008856 else 7.787 * v / w + 16 / 116
         for v, w in zip(xyz, (0.9505, 1, 1.089), strict=True)]  # fmt: skip
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_everyone_tells_the_colours_apart(colours, deficiency):
    """The first six categories differ by at least 10 in CIE L*a*b*, where 2.3 is just noticeable."""
    seen = [lab(colours[name], DEFICIENCIES[deficiency]) for name in palette.CATEGORIES[:6]]
    for i, one in enumerate(seen):
        for two in seen[:i]:
            assert sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) ** 0.5 >= 10


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_texts_are_readable_and_steps_keep_their_order_in_grey(colours):
    for text in ("ink", "muted", "blue"):
        for ground in ("page", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for i in range(palette.STEPS):
        assert contrast(colours[f"on{i}"], colours[f"q{i}"]) >= 4.5, i
    for category, text in palette.ON_CATEGORY.items():
        assert contrast(colours[text], colours[category]) >= 4.5, category
    steps = [luminance(colours[f"q{i}"]) for i in range(palette.STEPS)]
    assert steps == sorted(steps, reverse=colours is palette.LIGHT) and len(set(steps)) == palette.STEPS
