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
"""

# ruff: noqa: E402
from auto_panoptic.errors import UserError, hold_warnings, run_command

if __name__ == "__main__":
    hold_warnings()  # also those of the imports below

import json
import math
import os
from pathlib import Path

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from auto_panoptic.data import holds_classes, log_ids
from auto_panoptic.evaluation import (
    build_evaluators,
    check_metrics,
    panoptic_evaluator_of,
    per_class_table,
    results_table,
    trim_table,
)
from auto_panoptic.evaluation.expected import check_expected_results, verify_results
from auto_panoptic.modeling import meta_model
from auto_panoptic.search.candidate import path_statistics
from auto_panoptic.training import (
    AutoPanopticTrainer,
    build_config,
    check_resume,
    check_supernet,
    check_training,
    check_unused,
    check_weights,
    find_config,
    launch_processes,
    load_weights,
    model_space,
    only_run,
    processes,
)


def without_merging_limit(cfg):
    """The config of a trim study: merging keeps stuff of any size, so that trimming sees all of it.

    COMBINE.STUFF_AREA_LIMIT drops the same stuff that trimming at this value turns into void. It moves to
    TEST.STUFF_AREA, and the results outside the study stay what they are without it.
    """
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
    if args.trim_study:
        cfg = without_merging_limit(cfg)
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, cfg.MODEL.WEIGHTS)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    evaluators = [
        build_evaluators(
            cfg,
            name,
            folder,
            tuple(cfg.TEST.METRICS),
            details=True,
            trim_areas=sorted(set(cfg.TEST.TRIM_AREAS)) if args.trim_study else (),
            save_predictions=args.save_predictions,
        )
        for name in cfg.DATASETS.TEST
    ]
    with path_statistics(cfg, model, cfg.MODEL.WEIGHTS):
        results = AutoPanopticTrainer.test(cfg, model, evaluators)
    if comm.is_main_process():
        several = len(cfg.DATASETS.TEST) > 1
        for name, part in zip(cfg.DATASETS.TEST, evaluators, strict=True):
            report(args, cfg.OUTPUT_DIR, name, results[name] if several else results, part, several)
        verify_results(cfg, results)
    return results


def report(args, folder: str, name: str, results: dict, evaluators, several: bool) -> None:
    """Print and save what was found on the data set ``name``, whose name is given if there are several."""
    lines = [name] if several else []
    lines.append(results_table(results))
    flat = {f"{task}/{metric}": value for task, values in results.items() for metric, value in values.items()}
    panoptic = panoptic_evaluator_of(evaluators)
    if panoptic is not None:
        path = Path(folder, "inference", f"panoptic_{name.replace('/', '_')}_per_class.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(panoptic.per_class, indent=1))
        if args.per_class:
            lines.append(per_class_table(panoptic.per_class))
        if args.trim_study:
            lines.append(trim_table(panoptic.trim_study))
            for area, values in panoptic.trim_study.items():
                flat |= {f"trim_study/{area}/{metric}": value for metric, value in values.items()}
    print("\n\n".join(lines))
    with open(os.path.join(folder, "metrics.json"), "a") as stream:
        prefix = f"{name}/" if several else ""
        stream.write(json.dumps({prefix + key: value for key, value in flat.items()}) + "\n")


def main(args, cfg):
    with only_run(cfg.OUTPUT_DIR, fresh=not (args.eval_only or args.resume)):
        return train_or_evaluate(args, cfg)


def train_or_evaluate(args, cfg):
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="auto_panoptic")
    log_ids(cfg)
    if args.eval_only:
        return evaluate(args, cfg)
    trainer = AutoPanopticTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if comm.is_main_process() and trainer.last_results:
        print(results_table(trainer.last_results))
    return results


def check_flags(args, cfg) -> None:
    """Raise UserError where a flag of the evaluation has nothing to act on."""
    flags = {
        "--per-class": args.per_class,
        "--save-predictions": args.save_predictions,
        "--trim-study": args.trim_study,
    }
    for flag in (flag for flag, given in flags.items() if given):
        if not args.eval_only:
            raise UserError(f"{flag} goes with --eval-only; add that, or leave {flag} out")
        if any(holds_classes(name) for name in cfg.DATASETS.TEST):
            raise UserError(
                f"{flag} is for panoptic data sets, DATASETS.TEST holds classified images; drop {flag}"
            )
        if "pq" not in cfg.TEST.METRICS:
            raise UserError(f"{flag} needs 'pq' in TEST.METRICS, which is {list(cfg.TEST.METRICS)}")
        if cfg.TEST.PANOPTIC_EVALUATOR != "streaming":
            raise UserError(
                f"{flag} needs TEST.PANOPTIC_EVALUATOR streaming, it is {cfg.TEST.PANOPTIC_EVALUATOR!r}"
            )


def check(args):
    """Everything that can be wrong with the input, found before anything is written."""
    cfg = build_config(args.config_file, args.opts)
    check_flags(args, cfg)
    if not args.eval_only:
        check_training(cfg)
        cfg = AutoPanopticTrainer.auto_scale_workers(cfg, processes(args))
    check_expected_results(cfg)
    check_metrics(cfg, cfg.TEST.METRICS)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty; name the data sets to evaluate on")
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs weights; add MODEL.WEIGHTS path/to/model_final.pth")
    is_supernet = model_space(meta_model(cfg)).cardinality > 1
    if args.eval_only and is_supernet:
        raise UserError(
            "--eval-only scores one network, this config builds a supernet; add NAS.ARCHITECTURE FILE "
            "(the weights may be the supernet's), or score paths with search_net.py"
        )
    if not args.eval_only and is_supernet:
        check_supernet(cfg)
    if not args.eval_only and not args.resume:
        check_unused(cfg.OUTPUT_DIR)
    if args.resume and not args.eval_only:
        if check_resume(cfg):  # MODEL.WEIGHTS was where the run began
            return cfg
    if cfg.MODEL.WEIGHTS:
        check_weights(cfg, cfg.MODEL.WEIGHTS, to_train=not args.eval_only)
    return cfg


def run():
    parser = default_argument_parser(__doc__)
    parser.add_argument("--per-class", action="store_true", help="with --eval-only: print PQ per class")
    parser.add_argument("--save-predictions", action="store_true", help="with --eval-only: JSON and PNGs")
    parser.add_argument("--trim-study", action="store_true", help="with --eval-only: compare TEST.TRIM_AREAS")
    args = parser.parse_args()
    hold_warnings()
    cfg = check(args)
    args.config_file = find_config(args.config_file)  # Detectron2 copies it into the log
    launch_processes(main, args, cfg)


if __name__ == "__main__":
    run_command(run)
