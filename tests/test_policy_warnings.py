"""What a search warns of: settings of another policy, and more workers than candidates."""

import pytest
from detectron2.modeling import build_model
from toy import make_config, write_config

from auto_panoptic.search.command import check_search, parser, search_config
from auto_panoptic.training import AtomicCheckpointer


@pytest.fixture
def supernet(tmp_path, shapes):
    """The options that name a config, whose policy is path_priority, and its supernet."""
    AtomicCheckpointer(build_model(make_config(tmp_path, shapes)), str(tmp_path)).save("model_final")
    config = write_config(tmp_path / "toy.yaml", shapes)
    return ["--config-file", str(config), "--weights", str(tmp_path / "model_final.pth")]


def test_a_line_of_another_policy_gives_a_warning(caplog, supernet):
    def warnings(*options):
        caplog.clear()
        args = parser().parse_args([*supernet, *options])
        search_config(args)
        return [r.getMessage() for r in caplog.records if "without effect" in r.getMessage()]

    (line,) = warnings("--policy", "random")
    assert line.endswith("whose policy is random: NAS.CYCLES, a setting of path_priority")
    assert not warnings()


@pytest.mark.parametrize(
    "policy, workers, idle", [("posterior", 8, 2), ("posterior", 6, 0), ("random", 8, 0)]
)
def test_workers_without_work_give_a_warning(caplog, supernet, policy, workers, idle):
    args = parser().parse_args([*supernet, "--policy", policy, "--workers", str(workers)])
    args.metrics = ("pq",)
    check_search(args, search_config(args))
    said = [r.getMessage() for r in caplog.records if "will be idle" in r.getMessage()]
    assert [text[:15] for text in said] == [f"{idle} of 8 workers "] * bool(idle)
