"""Started by test_resume.py under torchrun: two processes train, die, lose a checkpoint and resume."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from detectron2.utils import comm
from toy import TOY_NET, make_config

from auto_panoptic.errors import UserError
from auto_panoptic.training import AutoPanopticTrainer, launch_processes

SCHEDULE = ("SOLVER.MAX_ITER", 5, "SOLVER.WARMUP_ITERS", 2, "SOLVER.STEPS", (4,))


class Killed(Exception):
    pass


def build(folder, shapes, resume):
    """All processes share one output folder."""
    cfg = make_config(
        folder / str(comm.get_rank()),
        shapes,
        *TOY_NET,
        *SCHEDULE,
        "OUTPUT_DIR",
        folder,
        "SOLVER.CHECKPOINT_PERIOD",
        1,
    )
    comm.synchronize()
    torch.manual_seed(comm.get_rank())
    trainer = AutoPanopticTrainer(cfg)
    comm.synchronize()
    trainer.resume_or_load(resume=resume)
    return trainer


def final(trainer):
    trainer.train()
    return {"model": dict(trainer.model.state_dict()), "optimizer": trainer.optimizer.state_dict()}


def die_at(trainer, iteration):
    batch = trainer._trainer.batch

    def dying(number):
        if number == 12 * iteration + 7:
            raise Killed
        return batch(number)

    trainer._trainer.batch = dying
    try:
        trainer.train()
    except Killed:
        comm.synchronize()


def main(args, cfg):
    straight, killed = args.folder / "straight", args.folder / "killed"
    for folder in (straight, killed):
        (folder / str(comm.get_rank())).mkdir(parents=True, exist_ok=True)
    result = {"straight": final(build(straight, args.shapes, resume=False))}
    die_at(build(killed, args.shapes, resume=False), 3)
    if comm.is_main_process():
        (killed / "model_0000002.pth").write_bytes(b"damaged")
    comm.synchronize()
    trainer = build(killed, args.shapes, resume=True)
    result |= {"start": trainer.start_iter, "killed": final(trainer)}
    if comm.is_main_process():
        for file in killed.glob("*.pth"):
            file.write_bytes(b"")
    comm.synchronize()
    try:
        build(killed, args.shapes, resume=True)
    except UserError as error:
        result["error"] = str(error)
    torch.save(result, args.folder / f"{comm.get_rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = SimpleNamespace(folder=Path(sys.argv[1]), shapes=Path(sys.argv[2]))
    config = SimpleNamespace(MODEL=SimpleNamespace(DEVICE="cpu"), RANK_TIMEOUT=120.0)
    launch_processes(main, arguments, config)
