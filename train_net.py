#!/usr/bin/env python
"""Train a supernet or a fixed network, or evaluate one: Detectron2's training script, with its arguments.

python train_net.py --config-file configs/supernet_coco.yaml --num-gpus 8
torchrun --nproc-per-node 2 train_net.py --config-file configs/quick/supernet.yaml     # two CPU processes
python train_net.py --config-file configs/quick/retrain.yaml NAS.ARCHITECTURE architecture.json
python train_net.py --config-file configs/quick/retrain.yaml --eval-only MODEL.WEIGHTS model_final.pth
"""

import json
import os

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import results_table
from auto_panoptic.search import path_statistics
from auto_panoptic.space import configured_ops
from auto_panoptic.training import (
    AutoPanopticTrainer,
    build_config,
    check_model,
    check_resume,
    check_training,
    check_weights,
    has_checkpoint,
    launch_processes,
    load_weights,
    run_command,
)


def evaluate(cfg):
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST; print the table and append to OUTPUT_DIR/metrics.json.

    The weights may be a supernet's; then the path's BatchNorm statistics are recalibrated first.
    """
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    with path_statistics(cfg, model, cfg.MODEL.WEIGHTS):
        results = AutoPanopticTrainer.test(cfg, model)
    if comm.is_main_process():
        print(results_table(results))
        line = {f"{task}/{name}": value for task, values in results.items() for name, value in values.items()}
        with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), "a") as stream:
            stream.write(json.dumps(line) + "\n")
    return results


def main(args, cfg):
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="auto_panoptic")
    if args.eval_only:
        return evaluate(cfg)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if comm.is_main_process() and trainer.last_results:
        print(results_table(trainer.last_results))
    return results


def check(args):
    """Everything that can be wrong with the input, found before anything is written."""
    cfg = build_config(args.config_file, args.opts)
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs weights; add MODEL.WEIGHTS path/to/model_final.pth")
    if args.eval_only and any(len(ops) > 1 for ops in configured_ops(cfg).values()):
        raise UserError(
            "--eval-only scores one network, this config builds a supernet; add NAS.ARCHITECTURE FILE "
            "(the weights may be the supernet's), or score paths with search_net.py"
        )
    if not args.eval_only:
        check_training(cfg)
    if args.resume and not args.eval_only:
        check_resume(cfg)
        if has_checkpoint(cfg.OUTPUT_DIR):  # MODEL.WEIGHTS was where the run began
            check_model(cfg)
            return cfg
    if cfg.MODEL.WEIGHTS:
        check_weights(cfg, cfg.MODEL.WEIGHTS, to_train=not args.eval_only)
    else:
        check_model(cfg)
    return cfg


def run():
    args = default_argument_parser().parse_args()
    launch_processes(main, args, check(args))


if __name__ == "__main__":
    run_command(run)
