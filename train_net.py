#!/usr/bin/env python
"""Train a supernet or a fixed network, or evaluate one: Detectron2's training script, with its arguments.

python train_net.py --config-file configs/supernet_coco.yaml --num-gpus 8
torchrun --nproc-per-node 2 train_net.py --config-file configs/quick/supernet.yaml     # two CPU processes
python train_net.py --config-file configs/quick/retrain.yaml NAS.ARCHITECTURE architecture.json
python train_net.py --config-file configs/quick/retrain.yaml --eval-only MODEL.WEIGHTS model_final.pth

--eval-only prints panoptic quality with its 95 % interval over the images, AP and mIoU, and appends them to
OUTPUT_DIR/metrics.json. With it go:

--per-class         print panoptic quality per class (in any case it goes to
                    OUTPUT_DIR/inference/panoptic_NAME_per_class.json)
--save-predictions  write OUTPUT_DIR/inference/panoptic_NAME.json and PNGs in COCO's results format
--trim-study        also score with small stuff turned into void, at each of TEST.TRIM_AREAS
--confusion         print how the semantic head confuses things and stuff, and its IoU over both
"""

# ruff: noqa: E402
from auto_panoptic.errors import UserError, hold_warnings, need_detectron2, run_command
from auto_panoptic.signals import end_with_parent

if __name__ == "__main__":
    need_detectron2()
    hold_warnings()  # also those of the imports below
    end_with_parent()

import math
import os

from detectron2.utils import comm

from auto_panoptic.data import data_set_for, holds_classes
from auto_panoptic.evaluation import check_metrics, thing_labels
from auto_panoptic.evaluation.expected import check_expected_results, verify_results
from auto_panoptic.evaluation.tables import report_results, results_of, results_tables
from auto_panoptic.modeling import choice_blocks, meta_model
from auto_panoptic.search.candidate import path_statistics
from auto_panoptic.training import (
    AutoPanopticTrainer,
    build_config,
    check_run,
    check_unread,
    check_weights,
    find_config,
    is_read,
    launch_parser,
    launch_processes,
    load_weights,
    processes,
    started,
    train_in,
)
from auto_panoptic.training.dry_run import dry_run
from auto_panoptic.training.zoo import trust_pickle


class Trainer(AutoPanopticTrainer):
    """What trains and evaluates here: override Detectron2's ``build_train_loader`` and the like."""


def without_merging_limit(cfg):
    """The config of a trim study: merging keeps stuff of any size, so that trimming sees all of it.

    COMBINE.STUFF_AREA_LIMIT drops the same stuff that trimming at this value turns into void. It moves to
    TEST.STUFF_AREA, and the results outside the study stay what they are without it. Networks that do not
    merge that way stay as they are.
    """
    if not is_read(cfg, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    if combine.METHOD != "supplement":  # which has no such limit
        cfg.TEST.STUFF_AREA = max(cfg.TEST.STUFF_AREA, math.ceil(combine.STUFF_AREA_LIMIT))
        combine.STUFF_AREA_LIMIT = 1
    cfg.freeze()
    return cfg


def evaluate(args, cfg):
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST; print the tables and append to OUTPUT_DIR/metrics.json.

    The weights may be a supernet's; then the path's BatchNorm statistics are recalibrated first.
    """
    options = {"save_predictions": True} if args.save_predictions else {}
    options |= {"confusion": True} if args.confusion else {}
    if args.trim_study:
        cfg = without_merging_limit(cfg)
        options["trim_areas"] = sorted(set(cfg.TEST.TRIM_AREAS))
    model = Trainer.build_model(cfg)
    space = load_weights(model, cfg.MODEL.WEIGHTS, cfg=cfg)
    evaluators = {name: Trainer.build_evaluator(cfg, name, **options) for name in cfg.DATASETS.TEST}
    with path_statistics(cfg, model, space):
        results = Trainer.test(cfg, model, list(evaluators.values()))
    if comm.is_main_process():
        by_name = results_of(list(evaluators), results)
        report_results(cfg.OUTPUT_DIR, by_name, evaluators, per_class=args.per_class)
        verify_results(cfg, results)
    return results


def main(args, cfg):
    if args.eval_only:
        with started(args, cfg):
            return evaluate(args, cfg)
    trainer = train_in(args, cfg, Trainer)
    if comm.is_main_process():
        print(f"model: {os.path.join(cfg.OUTPUT_DIR, 'model_final.pth')}")
    if comm.is_main_process() and trainer.last_results:
        print(results_tables(results_of(cfg.DATASETS.TEST, trainer.last_results)))
    return trainer.last_results


def check_flags(args, cfg) -> None:
    """Raise UserError where a flag of the evaluation has nothing to act on."""
    flags = {
        "--per-class": args.per_class,
        "--save-predictions": args.save_predictions,
        "--trim-study": args.trim_study,
        "--confusion": args.confusion,
    }
    for flag in (flag for flag, given in flags.items() if given):
        if not args.eval_only:
            raise UserError(f"{flag} goes with --eval-only; add that, or leave {flag} out")
        if any(holds_classes(name) for name in cfg.DATASETS.TEST):
            raise UserError(
                f"{flag} is for panoptic data sets, DATASETS.TEST holds classified images; drop {flag}"
            )
        metric = "miou" if flag == "--confusion" else "pq"
        if metric not in cfg.TEST.METRICS:
            raise UserError(f"{flag} needs {metric!r} in TEST.METRICS, which is {list(cfg.TEST.METRICS)}")
        if metric == "miou":
            for name in cfg.DATASETS.TEST:
                thing_labels(data_set_for(cfg, name))
        elif cfg.TEST.PANOPTIC_EVALUATOR != "streaming":
            raise UserError(
                f"{flag} needs TEST.PANOPTIC_EVALUATOR streaming, it is {cfg.TEST.PANOPTIC_EVALUATOR!r}"
            )


def check_evaluation(cfg) -> None:
    """Raise UserError for what an evaluation cannot start with."""
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name the data sets to evaluate on")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs weights; add MODEL.WEIGHTS path/to/model_final.pth")
    check_expected_results(cfg)
    check_metrics(cfg, cfg.TEST.METRICS)
    model = meta_model(cfg)
    if any(len(block.candidates) > 1 for block in choice_blocks(model).values()):
        raise UserError(
            "--eval-only scores one network, this config builds a supernet; add NAS.ARCHITECTURE FILE "
            "(the weights may be the supernet's), or score paths with search_net.py"
        )
    check_weights(cfg, cfg.MODEL.WEIGHTS, model=model)


def check(args):
    """The config, with everything that can be wrong found before anything is written."""
    cfg = build_config(args.config_file, args.opts)
    check_flags(args, cfg)
    if args.trust_pickle:
        trust_pickle(cfg.MODEL.WEIGHTS)
    if args.eval_only:
        check_evaluation(cfg)
    else:
        cfg = check_run(cfg, resume=args.resume, processes=processes(args), trainer=Trainer)
    check_unread(cfg, args.config_file, args.opts, Trainer)
    return cfg


def run():
    parser = launch_parser(__doc__, "the training")
    parser.add_argument("--per-class", action="store_true", help="with --eval-only: print PQ per class")
    parser.add_argument("--save-predictions", action="store_true", help="with --eval-only: JSON and PNGs")
    parser.add_argument("--trim-study", action="store_true", help="with --eval-only: compare TEST.TRIM_AREAS")
    parser.add_argument("--confusion", action="store_true", help="with --eval-only: things taken for stuff")
    parser.add_argument("--verbose", action="store_true", help="show all that goes to OUTPUT_DIR/log.txt")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="weights in a .pkl: read it, which runs code in it"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run and what it needs")
    args = parser.parse_args()
    hold_warnings()
    cfg = check(args)
    if args.dry_run:
        return dry_run(args, cfg, Trainer, path_statistics)
    args.config_file = find_config(args.config_file)  # Detectron2 copies it into the log
    launch_processes(main, args, cfg)


if __name__ == "__main__":
    run_command(run)
