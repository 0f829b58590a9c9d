#!/usr/bin/env python
"""Search the paths of a trained supernet for the best panoptic architecture.

    python search_net.py --cycles 5 --models-per-cycle 12
    python search_net.py --config-file configs/quick/supernet.yaml --weights supernet/model_final.pth --resume
    python search_net.py --policy evolution OUTPUT_DIR output/evolution
    python search_net.py --rescore --max-macs 250G --pareto      # select anew, evaluate nothing

Writes OUTPUT_DIR/search/{ledger.jsonl, scoreboard.json, architecture.json}.
"""

import argparse
import contextlib
import os

from detectron2.utils.logger import setup_logger

from auto_panoptic.data import is_classifier
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import check_metrics
from auto_panoptic.explore import POLICIES, Ledger
from auto_panoptic.search import (
    ACCEPTABLE,
    CYCLE_KEYS,
    CandidateEvaluator,
    InProcess,
    add_selection_arguments,
    asks_for_selection,
    check_limits,
    ledger_path,
    rescore,
    run_search,
    search_header,
    search_policy,
    selection_summary,
    summary,
)
from auto_panoptic.search.workers import RayWorkers
from auto_panoptic.space import SearchSpace
from auto_panoptic.space.network_cost import cost_tables_from_config
from auto_panoptic.training import AutoPanopticTrainer, build_config, check_weights, load_weights, run_command


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--config-file", default="configs/supernet_coco.yaml", metavar="FILE", help="config of the supernet"
    )
    p.add_argument(
        "--weights", default="", metavar="FILE", help="supernet (default: OUTPUT_DIR/model_final.pth)"
    )
    p.add_argument(
        "--policy",
        metavar="NAME",
        help=f"how candidates are chosen: {', '.join(POLICIES)} (default: NAS.POLICY)",
    )
    p.add_argument(
        "--cycles",
        type=int,
        metavar="T",
        help="search cycles, generations of an evolution (default: NAS.CYCLES, NAS.RANDOM.CYCLES, "
        "NAS.EVOLUTION.GENERATIONS)",
    )
    p.add_argument(
        "--models-per-cycle",
        type=int,
        metavar="E",
        help="candidates in a cycle, population of an evolution (default: NAS.MODELS_PER_CYCLE, "
        "NAS.RANDOM.MODELS_PER_CYCLE, NAS.EVOLUTION.POPULATION)",
    )
    p.add_argument("--metrics", default="pq", help="comma-separated: pq, ap, miou (default: pq)")
    p.add_argument("--resume", action="store_true", help="continue the search in OUTPUT_DIR")
    p.add_argument("--retry-failed", action="store_true", help="with --resume: evaluate failed ones again")
    p.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="KEY",
        help=f"with --resume: may differ from the recorded search ({', '.join(ACCEPTABLE)}); may be repeated",
    )
    p.add_argument(
        "--workers", type=int, metavar="N", help="evaluate N candidates at a time in Ray workers, one per GPU"
    )
    p.add_argument(
        "--ray-address", metavar="ADDRESS", help="with --workers: join this Ray cluster (auto, or host:port)"
    )
    add_selection_arguments(p)
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return p


def run():
    args = parser().parse_args()
    cfg = build_config(args.config_file, args.opts + (["NAS.POLICY", args.policy] if args.policy else []))
    cfg.defrost()
    cycles, models = CYCLE_KEYS.get(cfg.NAS.POLICY, CYCLE_KEYS["path_priority"])
    for key, value in ((cycles, args.cycles), (models, args.models_per_cycle)):
        cfg.merge_from_list([key, value] if value is not None else [])
    cfg.freeze()
    for option, given in (("--retry-failed", args.retry_failed), ("--accept", args.accept)):
        if given and not args.resume:
            raise UserError(f"{option} continues a search: add --resume")
    if unknown := [key for key in args.accept if key not in ACCEPTABLE]:
        raise UserError(f"--accept {unknown[0]}: expected one of {', '.join(ACCEPTABLE)}")
    if cfg.NAS.ARCHITECTURE:
        raise UserError('NAS.ARCHITECTURE is set: a search needs the supernet; set it to ""')
    if is_classifier(cfg):
        raise UserError(f"{args.config_file} is a classifier; a search needs a panoptic supernet")
    if args.ray_address and args.workers is None:
        raise UserError("--ray-address names a Ray cluster for workers: add --workers N")
    check_limits(cfg, args)
    if args.rescore:
        report_selection(cfg, args)
        return
    metrics = tuple(args.metrics.split(","))
    if not {"pq"} <= set(metrics) <= {"pq", "ap", "miou"}:
        raise UserError(
            f"--metrics {args.metrics!r}; expected pq, optionally with ap and miou, e.g. pq,ap,miou"
        )
    weights = args.weights or cfg.MODEL.WEIGHTS or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    check_weights(cfg, weights)
    space = SearchSpace.from_config(cfg)
    if space.cardinality == 1:
        raise UserError(
            f"{args.config_file}: every site has one operator, there is nothing to search; list at least two "
            "in NAS.SPACE.BACKBONE_OPS, NAS.SPACE.HEAD_OPS or MODEL.CROSS_ATTENTION.RATIOS"
        )
    tables = cost_tables_from_config(cfg)
    check_metrics(cfg, metrics)
    search_policy(cfg, space)
    header = search_header(cfg, space, weights)
    with Ledger.open(ledger_path(cfg), header, resume=args.resume, allow_changed=args.accept):
        pass  # whoever may not write it learns so now, not after the images are read

    setup_logger(name="auto_panoptic", abbrev_name="search")
    with candidate_executor(args, cfg, weights, metrics) as executor:
        result = run_search(
            cfg,
            space,
            executor,
            header,
            resume=args.resume,
            retry_failed=args.retry_failed,
            describe=lambda a: tables.cost(a)._asdict(),
            accept=args.accept,
        )
    print(summary(result))
    if cfg.NAS.POLICY == "path_priority" or asks_for_selection(args):
        report_selection(cfg, args)


def candidate_executor(args, cfg, weights, metrics):
    """Context with what evaluates the candidates: this process, or Ray workers."""
    if args.workers is not None:
        return RayWorkers(cfg, weights, metrics, args.workers, args.ray_address)
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, weights)
    return contextlib.nullcontext(InProcess(CandidateEvaluator(cfg, model, metrics)))


def report_selection(cfg, args):
    """Select from the ledger as the arguments ask, and say what is decided."""
    selection = rescore(cfg, args.estimator or "ranks", args.max_macs, args.max_params, args.pareto)
    print(selection_summary(selection, ledger_path(cfg).parent))


if __name__ == "__main__":
    run_command(run)
