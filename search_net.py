#!/usr/bin/env python
"""Search the paths of a trained supernet for the best panoptic architecture.

    python search_net.py --cycles 5 --models-per-cycle 12
    python search_net.py --config-file configs/quick/supernet.yaml --weights supernet/model_final.pth --resume

Writes OUTPUT_DIR/search/{ledger.jsonl, scoreboard.json, architecture.json}.
"""

import argparse
import os

from detectron2.utils.logger import setup_logger

from auto_panoptic.data import is_classifier
from auto_panoptic.errors import UserError
from auto_panoptic.evaluation import check_metrics
from auto_panoptic.explore import Ledger
from auto_panoptic.search import (
    CandidateEvaluator,
    ledger_path,
    run_search,
    search_cycles,
    search_header,
    summary,
)
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
        "--policy", default="path_priority", choices=["path_priority"], help="how candidates are chosen"
    )
    p.add_argument("--cycles", type=int, metavar="T", help="search cycles (default: NAS.CYCLES)")
    p.add_argument(
        "--models-per-cycle",
        type=int,
        metavar="E",
        help="candidates in a cycle (default: NAS.MODELS_PER_CYCLE)",
    )
    p.add_argument("--metrics", default="pq", help="comma-separated: pq, ap, miou (default: pq)")
    p.add_argument("--resume", action="store_true", help="continue the search in OUTPUT_DIR")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return p


def run():
    args = parser().parse_args()
    opts = list(args.opts)
    for key, value in (("NAS.CYCLES", args.cycles), ("NAS.MODELS_PER_CYCLE", args.models_per_cycle)):
        opts += [key, str(value)] if value is not None else []
    cfg = build_config(args.config_file, opts)
    if cfg.NAS.ARCHITECTURE:
        raise UserError('NAS.ARCHITECTURE is set: a search needs the supernet; set it to ""')
    if is_classifier(cfg):
        raise UserError(f"{args.config_file} is a classifier; a search needs a panoptic supernet")
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
    search_cycles(cfg, space)
    header = search_header(cfg, space, weights)
    with Ledger.open(ledger_path(cfg), header, resume=args.resume):
        pass  # whoever may not write it learns so now, not after the images are read

    setup_logger(name="auto_panoptic", abbrev_name="search")
    model = AutoPanopticTrainer.build_model(cfg)
    load_weights(model, weights)
    evaluate = CandidateEvaluator(cfg, model, metrics)
    result = run_search(cfg, space, evaluate, header, args.resume, lambda a: tables.cost(a)._asdict())
    print(summary(result))


if __name__ == "__main__":
    run_command(run)
