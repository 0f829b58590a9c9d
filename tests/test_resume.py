"""A run that is killed and resumed is the run that was not: weights, optimizer, schedule, data, losses."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training import assert_same_state
from toy import ROOT, TOY_NET, make_config

from auto_panoptic.errors import UserError
from auto_panoptic.space import SearchSpace
from auto_panoptic.training import AutoPanopticTrainer
from auto_panoptic.training.checkpoint import newest_intact, training_settings
from auto_panoptic.training.hooks import RecentMetrics

ITERATIONS = 8
SCHEDULE = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 3, "SOLVER.STEPS", (6,))


def make_trainer(folder, shapes, *options, resume=False, schedule=SCHEDULE):
    """A trainer with OUTPUT_DIR folder/output that appends "iteration loss" to folder/losses."""
    cfg = make_config(folder, shapes, *TOY_NET, *schedule, *options)
    (folder / "output").mkdir(exist_ok=True)
    torch.manual_seed(0)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    write = trainer._trainer._write_metrics

    def record(passes, data_time):
        write(passes, data_time)
        with open(folder / "losses", "a") as stream:
            total = sum(trainer._trainer.losses.values())
            stream.write(f"{trainer.iter} {total.hex()}\n")

    trainer._trainer._write_metrics = record
    return trainer


def trace(folder):
    """{iteration: its loss, bit for bit}; the last one counts where an iteration was repeated."""
    lines = [line.split() for line in (folder / "losses").read_text().splitlines()]
    return {int(iteration): loss for iteration, loss in (line for line in lines if len(line) == 2)}


def final(folder):
    return torch.load(folder / "output/model_final.pth", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, shapes):
    """Folder of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_trainer(folder, shapes).train()
    assert len(set(trace(folder).values())) == ITERATIONS
    return folder


class Killed(BaseException):
    """Not an Exception: nothing in the loop catches it, as nothing catches a kill."""


def killed_in(trainer, iteration, row):
    """Train until pass ``row`` of an iteration, then drop everything, as a kill does."""
    batch = trainer._trainer.batch

    def dying(number):
        if number == trainer._trainer.space.cycle_length * iteration + row:
            raise Killed
        return batch(number)

    trainer._trainer.batch = dying
    trainer.after_train = lambda: None
    with pytest.raises(Killed):
        trainer.train()


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize("period", [1, 3])
def test_a_kill_at_every_iteration_changes_nothing(tmp_path, shapes, uninterrupted, period):
    """One run that dies in every iteration, at another pass each time."""
    options = ("SOLVER.CHECKPOINT_PERIOD", period)
    resume = False
    for iteration in range(ITERATIONS):
        torch.manual_seed(iteration)
        trainer = make_trainer(tmp_path, shapes, *options, resume=resume)
        assert trainer.start_iter == max(iteration - 1, 0) // period * period
        killed_in(trainer, iteration, row=(5 * iteration) % 12)
        resume = iteration >= period
    make_trainer(tmp_path, shapes, *options, resume=True).train()
    assert trace(tmp_path) == trace(uninterrupted)
    assert_same_state(final(tmp_path), final(uninterrupted))


def losses_in_metrics(folder):
    lines = map(json.loads, (folder / "output/metrics.json").read_text().splitlines())
    return {
        line["iteration"]: {k: v for k, v in line.items() if not k.endswith(("time", "eta_seconds"))}
        for line in lines
        if "total_loss" in line
    }


def test_the_smoothed_losses_of_metrics_json_continue(tmp_path, shapes):
    """They are medians over 20 iterations, which begin before the kill."""
    (tmp_path / "killed").mkdir()
    (tmp_path / "straight").mkdir()
    path = tmp_path / "architecture.json"
    space = SearchSpace.from_config(make_config(tmp_path, shapes, *TOY_NET))
    space.architecture([0] * len(space.sites)).save(path)
    options = ("NAS.ARCHITECTURE", path, "SOLVER.MAX_ITER", 45, "DATASETS.TEST", ())
    make_trainer(tmp_path / "straight", shapes, *options).train()
    options += ("SOLVER.CHECKPOINT_PERIOD", 7)
    killed_in(make_trainer(tmp_path / "killed", shapes, *options), 33, row=0)
    trainer = make_trainer(tmp_path / "killed", shapes, *options, resume=True)
    assert trainer.start_iter == 28
    trainer.train()
    expected = losses_in_metrics(tmp_path / "straight")
    assert list(expected) == [19, 39, 44]
    found = losses_in_metrics(tmp_path / "killed")
    assert {iteration: found[iteration] for iteration in expected} == expected


def test_hooks_keep_their_state(tmp_path, shapes):
    trainer = make_trainer(tmp_path, shapes, "SOLVER.CHECKPOINT_PERIOD", 2)
    killed_in(trainer, 5, row=3)
    hooks = [hook for hook in trainer._hooks if hasattr(hook, "state_dict")]
    saved = torch.load(tmp_path / "output/model_0000003.pth", weights_only=True)["trainer"]["hooks"]
    assert set(saved) == {type(hook).__name__ for hook in hooks if hook.state_dict()}
    assert {"LRScheduler", "FairnessAudit", "RecentMetrics"} <= set(saved)
    assert saved["FairnessAudit"]["passes"] == 4 * 12
    assert len(saved["RecentMetrics"]["total_loss"]) == 4
    assert not any("time" in name for name in saved["RecentMetrics"])
    assert RecentMetrics.WINDOW == 20


def test_a_finished_run_resumed_stays_as_it_is(tmp_path, shapes, uninterrupted):
    shutil.copytree(uninterrupted / "output", tmp_path / "output")
    trainer = make_trainer(tmp_path, shapes, resume=True)
    assert trainer.start_iter == ITERATIONS
    trainer.train()
    assert_same_state(final(tmp_path), final(uninterrupted))


@pytest.mark.parametrize("cut", [None, 1000])
def test_a_run_killed_before_its_last_file_writes_it(tmp_path, shapes, uninterrupted, cut):
    """The last iteration may have a checkpoint of its own, and be killed between the two."""
    options = ("SOLVER.CHECKPOINT_PERIOD", ITERATIONS)
    make_trainer(tmp_path, shapes, *options).train()
    path = tmp_path / "output/model_final.pth"
    path.unlink() if cut is None else path.write_bytes(path.read_bytes()[:cut])
    make_trainer(tmp_path, shapes, *options, resume=True).train()
    assert_same_state(final(tmp_path), final(uninterrupted))


def test_a_random_seed_is_resumed(tmp_path, shapes):
    """SEED -1 draws one; the resumed run continues with the drawn one."""
    first = make_trainer(tmp_path, shapes, "SEED", -1, "SOLVER.CHECKPOINT_PERIOD", 1)
    killed_in(first, 1, row=0)
    second = make_trainer(tmp_path, shapes, "SEED", -1, "SOLVER.CHECKPOINT_PERIOD", 1, resume=True)
    assert second.seed == second._trainer.seed == first.seed


def train_in_child(folder, shapes, resume):
    """Start training in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        logging.disable(logging.CRITICAL)
        os.close(2)
        make_trainer(folder, shapes, "SOLVER.CHECKPOINT_PERIOD", 1, resume=resume).train()
        os._exit(0)
    except BaseException:
        os._exit(1)


def kill_randomly(folder, shapes, kills, generator, longest):
    """SIGKILL a run ``kills`` times, then let it finish; returns the iterations it had reached."""
    reached = []
    while len(reached) < kills:
        child = train_in_child(folder, shapes, resume=bool(newest_intact(folder / "output")[0]))
        time.sleep(generator.uniform(0.02, longest))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        path, problems = newest_intact(folder / "output")
        assert all("is missing" in problem for problem in problems)
        reached.append(torch.load(path, weights_only=True)["trainer"]["iteration"] if path else -1)
        assert reached == sorted(reached)  # nothing is ever lost
        if path.endswith("model_final.pth"):
            break
    child = train_in_child(folder, shapes, resume=bool(newest_intact(folder / "output")[0]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return reached


def test_real_kills_change_nothing(tmp_path, shapes, uninterrupted):
    (tmp_path / "output").mkdir()
    kill_randomly(tmp_path, shapes, 5, random.Random(0), longest=1.5)
    assert trace(tmp_path) == trace(uninterrupted)
    assert_same_state(final(tmp_path), final(uninterrupted))


@pytest.mark.slow
def test_two_processes_resume_from_the_same_file(tmp_path, shapes):
    """The first chooses; a damaged newest one and a folder without any are seen by both."""
    script = Path(__file__).with_name("resume_run.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(script), str(tmp_path), str(shapes)],
        env={**os.environ, "PYTHONPATH": f"{script.parent}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for rank in ranks:
        assert rank["start"] == 2
        assert_same_state(rank["killed"], rank["straight"])
        assert "holds no usable checkpoint (model_final.pth is damaged (0 bytes); " in rank["error"]
    assert_same_state(ranks[0]["killed"]["model"], ranks[1]["killed"]["model"])


# ------------------------------------------------------------------ what must not change


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, shapes):
    """Output folder of a run that died in its third iteration."""
    folder = tmp_path_factory.mktemp("stopped")
    killed_in(make_trainer(folder, shapes, "SOLVER.CHECKPOINT_PERIOD", 1), 2, row=0)
    return folder / "output"


@pytest.fixture
def resumable(tmp_path, stopped):
    """A copy of it as tmp_path/output."""
    shutil.copytree(stopped, tmp_path / "output")


@pytest.mark.parametrize(
    "key, value, was, now",
    [
        ("SOLVER.BASE_LR", 0.02, "0.01", "0.02"),
        ("SOLVER.IMS_PER_BATCH", 4, "2", "4"),
        ("SOLVER.STEPS", (5,), "[6]", "[5]"),
        ("SEED", 1, "0", "1"),
        ("NAS.SEED", 1, "0", "1"),
        ("NAS.GRADIENTS", "sum", '"mean"', '"sum"'),
        ("NAS.SAMPLING", "uniform", '"fair"', '"uniform"'),
        ("MODEL.SHUFFLENET.STEM_CHANNELS", 12, "8", "12"),
        ("INPUT.MIN_SIZE_TRAIN", (64,), "[48, 64]", "[64]"),
        ("DATASETS.TRAIN", ("toy_panoptic_val",), '["toy_panoptic_nas_train"]', '["toy_panoptic_val"]'),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", '"WarmupMultiStepLR"', '"WarmupCosineLR"'),
    ],
)
def test_changed_settings_are_refused(tmp_path, shapes, resumable, key, value, was, now):
    with pytest.raises(UserError) as error:
        make_trainer(tmp_path, shapes, key, value, resume=True)
    path = str(tmp_path / "output/model_0000001.pth")
    assert str(error.value) == (
        f"--resume: settings have changed since {path!r}: {key} was {was}, is {now}; restore them, or start "
        "a new run in another OUTPUT_DIR with MODEL.WEIGHTS set to that file"
    )


def test_many_changed_settings_are_one_line(tmp_path, shapes, resumable):
    options = ("SEED", 1, "NAS.SEED", 1, "SOLVER.BASE_LR", 1.0, "SOLVER.GAMMA", 1.0, "SOLVER.MOMENTUM", 0.0)
    with pytest.raises(UserError) as error:
        make_trainer(tmp_path, shapes, *options, resume=True)
    assert "NAS.SEED was 0, is 1, SEED was 0, is 1, SOLVER.BASE_LR was 0.01, is 1.0, " in str(error.value)
    assert " and 1 more; restore them, or start" in str(error.value) and "\n" not in str(error.value)


def test_another_architecture_is_refused_whatever_its_file_is_called(tmp_path, shapes):
    space = SearchSpace.from_config(make_config(tmp_path, shapes, *TOY_NET))
    path = tmp_path / "architecture.json"
    space.architecture([0] * len(space.sites)).save(path)
    options = ("NAS.ARCHITECTURE", path, "DATASETS.TEST", ())
    trainer = make_trainer(tmp_path, shapes, *options, "SOLVER.CHECKPOINT_PERIOD", 1)
    killed_in(trainer, 2, row=0)
    path.rename(tmp_path / "moved.json")
    moved = ("NAS.ARCHITECTURE", tmp_path / "moved.json", *options[2:])
    assert make_trainer(tmp_path, shapes, *moved, resume=True).start_iter == 2
    space.architecture([1] * len(space.sites)).save(path)
    with pytest.raises(UserError, match="--resume: .* another architecture: backbone.0 is shuffle_3x3 there"):
        make_trainer(tmp_path, shapes, *options, resume=True)


def test_harmless_settings_may_change(tmp_path, shapes, resumable):
    changes = ("SOLVER.CHECKPOINTS_KEPT", 1, "DATALOADER.NUM_WORKERS", 1, "SOLVER.CHECKPOINT_PERIOD", 4)
    changes += ("VIS_PERIOD", 5, "NAS.AUDIT_PERIOD", 2, "NAS.CYCLES", 3, "INPUT.MIN_SIZE_TEST", 80)
    changes += ("MODEL.WEIGHTS", "nowhere.pth", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 20)
    assert make_trainer(tmp_path, shapes, *changes, resume=True).start_iter == 2


def test_where_the_schedule_follows_the_length_it_may_not_change(tmp_path, shapes):
    cfg = make_config(tmp_path, shapes, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    assert training_settings(cfg)["SOLVER.MAX_ITER"] == "2"
    assert "SOLVER.MAX_ITER" not in training_settings(make_config(tmp_path, shapes))


def test_settings_are_those_that_a_run_depends_on(tmp_path, shapes):
    """No pattern is a slip of the pen, and none takes more than it should."""
    found = training_settings(make_config(tmp_path, shapes))
    for key in ("SOLVER.BASE_LR", "MODEL.MASK_ON", "TEST.PRECISE_BN.ENABLED", "NAS.SPACE.HEAD_OPS", "SEED"):
        assert key in found
    for key in ("OUTPUT_DIR", "TEST.EVAL_PERIOD", "MODEL.RPN.POST_NMS_TOPK_TEST", "NAS.CYCLES"):
        assert key not in found


def test_another_number_of_processes_keeps_the_paths_and_says_so(tmp_path, shapes, resumable, monkeypatch):
    messages = []
    monkeypatch.setattr(
        logging.getLogger("auto_panoptic.training.trainer"), "warning", lambda *a: messages.append(a)
    )
    trainer = make_trainer(tmp_path, shapes, resume=True)
    state = trainer.state_dict() | {"processes": 8}
    assert messages == []
    trainer.load_state_dict(state)
    assert [(m[1:]) for m in messages] == [(8, 1)]
    trainer.train()  # the audit stops a run whose paths are not used equally
    counter = trainer._trainer.counter
    assert counter.passes == ITERATIONS * trainer._trainer.space.cycle_length


def test_other_data_under_the_same_name_is_refused(tmp_path, shapes, resumable):
    trainer = make_trainer(tmp_path, shapes, resume=True)
    state = trainer.state_dict()
    assert state["images"] == 14
    with pytest.raises(UserError, match="--resume: DATASETS.TRAIN .* had 15 images, now it has 14; rest"):
        trainer.load_state_dict(state | {"images": 15})
    before = state["contents"]["toy_panoptic_nas_train"]
    assert set(before) == {"labels", "PNGs", "photos", "label maps", "instances JSON"}
    changed = {"toy_panoptic_nas_train": {**before, "labels": "0", "photos": "0"}}
    with pytest.raises(UserError, match="changed: labels of toy_.*, photos of toy_panoptic_nas_train; rest"):
        trainer.load_state_dict(state | {"contents": changed})
    del state["contents"]  # of an earlier version
    trainer.load_state_dict(state)


@pytest.mark.parametrize(
    "key, value", [("processes", ...), ("hooks", {"FairnessAudit": {}}), ("_trainer", 3)]
)
def test_a_checkpoint_of_another_state_is_refused(tmp_path, shapes, resumable, key, value):
    path = tmp_path / "output/model_0000001.pth"
    data = torch.load(path, weights_only=True)
    data["trainer"][key] = value
    if value is ...:
        del data["trainer"][key]
    torch.save(data, path)
    with pytest.raises(UserError, match="model_0000001.pth' holds no state of a run .*; remove it to go on"):
        make_trainer(tmp_path, shapes, resume=True)


@pytest.mark.parametrize("state", ["text", None, [1]])
def test_a_file_whose_state_is_none_counts_as_weights(tmp_path, shapes, resumable, caplog, state):
    """Its name does not tell the iteration either."""
    folder = tmp_path / "output"
    data = torch.load(folder / "model_0000001.pth", weights_only=True)
    data.pop("iteration", None)
    torch.save(data | {"trainer": state}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    assert make_trainer(tmp_path, shapes, resume=True).start_iter == 2
    assert "Not used: model_final.pth holds only weights. Continuing from" in caplog.text
