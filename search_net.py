#!/usr/bin/env python
"""Search the paths of a trained supernet for the best panoptic architecture.

    python search_net.py --cycles 5 --models-per-cycle 12
    python search_net.py --config-file configs/quick/supernet.yaml --weights supernet/model_final.pth --resume
    python search_net.py --policy evolution OUTPUT_DIR output/evolution
    python search_net.py --num-gpus 8                            # a candidate per GPU at a time
    torchrun --nproc-per-node 2 search_net.py                    # the same, on two CPU processes
    python search_net.py --rescore --max-macs 250G --pareto      # select anew, evaluate nothing

Writes OUTPUT_DIR/search/{ledger.jsonl, scoreboard.json, architecture.json}.
"""

import argparse
import contextlib
import os
from functools import partial

from auto_panoptic.errors import UserError, run_command
from auto_panoptic.explore import POLICIES, Ledger
from auto_panoptic.search import (
    ACCEPTABLE,
    CYCLE_KEYS,
    InProcess,
    add_selection_arguments,
    asks_for_selection,
    check_limits,
    ledger_path,
    rescore,
    search_header,
    search_policy,
    selection_summary,
    summary,
)
from auto_panoptic.search.stored_config import store_config, stored_config
from auto_panoptic.space import SearchSpace

# torch and Detectron2 take seconds to import; the functions that need them do so themselves.


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; --help shows the options")


def parser():
    p = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    group = p.add_argument_group("processes", "one candidate each at a time; started as by train_net.py")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs per machine (default: 1)")
    group.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines (default: 1)")
    group.add_argument(
        "--machine-rank", type=int, default=0, metavar="K", help="number of this machine, from 0"
    )
    group.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="where the machines meet: tcp://HOST:PORT of the first",
    )
    add_selection_arguments(p)
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return p


def check_arguments(args):
    """What is wrong with the arguments whatever the config says."""
    if late := [word for word in args.opts if word.startswith("--")]:
        raise UserError(f"{late[0]} stands after KEY VALUE pairs: options come before them")
    for option, given in (("--retry-failed", args.retry_failed), ("--accept", args.accept)):
        if given and not args.resume:
            raise UserError(f"{option} continues a search: add --resume")
    if unknown := [key for key in args.accept if key not in ACCEPTABLE]:
        raise UserError(f"--accept {unknown[0]}: expected one of {', '.join(ACCEPTABLE)}")
    if args.ray_address and args.workers is None:
        raise UserError("--ray-address names a Ray cluster for workers: add --workers N")
    for option, number in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
        if number < 1:
            raise UserError(f"{option} is {number}; expected at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank is {args.machine_rank}; expected 0 to {args.num_machines - 1}, "
            f"as --num-machines is {args.num_machines}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UserError(f"--num-machines {args.num_machines}: add --dist-url tcp://HOST:PORT of machine 0")
    if args.workers is not None and processes(args) > 1:
        raise UserError(
            f"--workers starts processes, of which this run has {processes(args)}: leave out --workers, or "
            "--num-gpus, --num-machines and torchrun"
        )
    if not {"pq"} <= set(args.metrics.split(",")) <= {"pq", "ap", "miou"}:
        raise UserError(
            f"--metrics {args.metrics!r}; expected pq, optionally with ap and miou, e.g. pq,ap,miou"
        )


def processes(args):
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1")) * args.num_gpus * args.num_machines


def search_config(args):
    """The config that the arguments ask for."""
    from auto_panoptic.data import holds_classes
    from auto_panoptic.training import build_config

    cfg = build_config(args.config_file, args.opts + (["NAS.POLICY", args.policy] if args.policy else []))
    cfg.defrost()
    cycles, models = CYCLE_KEYS.get(cfg.NAS.POLICY, CYCLE_KEYS["path_priority"])
    for key, value in ((cycles, args.cycles), (models, args.models_per_cycle)):
        cfg.merge_from_list([key, value] if value is not None else [])
    cfg.freeze()
    if cfg.NAS.ARCHITECTURE:
        raise UserError('NAS.ARCHITECTURE is set: a search needs the supernet; set it to ""')
    if any(holds_classes(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.SEARCH)):
        raise UserError(f"{args.config_file} is of classified images; a search needs a panoptic supernet")
    return cfg


def run():
    args = parser().parse_args()
    check_arguments(args)
    stored = stored_config(args.config_file, args.opts) if args.rescore else None
    cfg = stored or search_config(args)
    check_limits(cfg, args)
    if args.rescore:
        if os.environ.get("RANK", "0") == "0":
            report_selection(cfg, args)
            if stored is None:
                store_config(cfg, args.config_file, args.opts)
        return
    from auto_panoptic.evaluation import check_metrics
    from auto_panoptic.training import check_weights, launch_processes

    args.weights = args.weights or cfg.MODEL.WEIGHTS or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    check_weights(cfg, args.weights)
    space = SearchSpace.from_config(cfg)
    if space.cardinality == 1:
        raise UserError(
            f"{args.config_file}: every site has one operator, there is nothing to search; list at least two "
            "in NAS.SPACE.BACKBONE_OPS, NAS.SPACE.HEAD_OPS or MODEL.CROSS_ATTENTION.RATIOS"
        )
    args.metrics = tuple(args.metrics.split(","))
    check_metrics(cfg, args.metrics)
    search_policy(cfg, space)
    launch_processes(main, args, cfg)


def main(args, cfg):
    """One process of the search; with several, the first leads the others."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    setup_logger(name="auto_panoptic", abbrev_name="search", distributed_rank=comm.get_rank())
    if comm.get_world_size() == 1:
        search(args, cfg, candidate_executor)
        return
    from auto_panoptic.search.executors.ranks import Ranks, follow, leading, rank_evaluator

    make_evaluate = partial(rank_evaluator, cfg, args.weights, args.metrics)
    if comm.is_main_process():
        with leading():
            search(args, cfg, lambda *_: contextlib.nullcontext(Ranks(make_evaluate)))
    else:
        follow(make_evaluate)


def search(args, cfg, candidate_executor):
    """Search, and print what came of it."""
    from auto_panoptic.modeling.counting import configured_costs
    from auto_panoptic.search import run_search

    space = SearchSpace.from_config(cfg)
    tables = configured_costs(cfg)
    header = search_header(cfg, space, args.weights, args.metrics)
    with Ledger.open(ledger_path(cfg), header, resume=args.resume, allow_changed=args.accept):
        pass  # whoever may not write it learns so now, not after the images are read
    store_config(cfg, args.config_file, args.opts)

    from auto_panoptic.data import log_ids

    log_ids(cfg)
    with candidate_executor(args, cfg) as executor:
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


def candidate_executor(args, cfg):
    """Context with what evaluates the candidates: this process, or Ray workers."""
    if args.workers is not None:
        from auto_panoptic.search.executors.ray import RayWorkers

        return RayWorkers(cfg, args.weights, args.metrics, args.workers, args.ray_address)
    from auto_panoptic.search.evaluate import load_evaluator

    return contextlib.nullcontext(InProcess(load_evaluator(cfg, args.weights, args.metrics)))


def report_selection(cfg, args):
    """Select from the ledger as the arguments ask, and say what is decided."""
    selection = rescore(cfg, args.estimator or "ranks", args.max_macs, args.max_params, args.pareto)
    print(selection_summary(selection, ledger_path(cfg).parent))


if __name__ == "__main__":
    run_command(run)
