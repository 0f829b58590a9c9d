"""``search_net.py``: search the paths of a supernet."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data import check_ground_truth, data_set_for, holds_classes, log_ids
from ..errors import UserError
from ..evaluation import check_metrics
from ..evaluation.evaluators import metrics_of
from ..explore import POLICY_REGISTRY, Ledger
from ..explore.budget import check_budget
from ..files import BUNDLE, disk_errors, open_own
from ..modeling.counting import configured_costs
from ..screen import set_up_logs
from ..signals import resumable
from ..space import CostTables
from ..training import (
    build_config,
    check_unread,
    check_weights,
    given_keys,
    launch_parser,
    launch_processes,
    processes,
)
from ..training.run_folder import check_room, only_run
from ..training.zoo import trust_pickle
from ..validate import defaults, flat
from .again import rescore_command
from .arguments import (
    ACCEPTABLE,
    CONTROLS,
    METRICS,
    add_finals_arguments,
    add_search_arguments,
    add_selection_arguments,
    asks_for_selection,
    check_continuation,
    check_finals,
    check_length,
    cycles_asked,
    length_asked,
    limits_asked,
    refuse,
    selection_request,
)
from .bundle import write_path_bundle
from .candidate import load_evaluator
from .costs import origin, store_tables
from .dry_run import dry_run
from .executors.in_process import InProcess
from .executors.ranks import Ranks, follow, leading, rank_evaluator
from .executors.ray import RayWorkers, import_ray
from .final_training import FOLDER, FinalTraining, ray_trainings
from .finalists import FinalsRequest, contenders, evaluated_candidates
from .finals import Finals, finals_header, open_journal, write_finals
from .header import comparable, search_header, search_policy, weights_digest
from .latency import judged, with_measured
from .loop import run_search
from .pictures import search_pictures
from .selection import FITNESS, SearchResult, ledger_path
from .summary import summary


def search_command(epilog: str | None = None) -> str | None:
    """Search as the command line says; ``epilog`` is shown by --help.

    Returns:
        OUTPUT_DIR, in the first process of the first machine.
    """
    args = parser(epilog).parse_args()
    if args.rescore:
        check_arguments(args)
        return rescore_command(args)
    cfg = prepared(args)
    if args.dry_run:
        return dry_run(args, cfg, None if args.finals is None else finals_request(args, cfg))
    launch_processes(main, args, cfg)
    return cfg.OUTPUT_DIR if args.machine_rank == 0 and os.environ.get("RANK", "0") == "0" else None


def prepared(args: argparse.Namespace) -> CfgNode:
    """The config of a search, with everything that can be wrong found before anything is written."""
    check_arguments(args)
    args.metrics = tuple(args.metrics.split(","))
    cfg = search_config(args)
    args.weights = args.weights or cfg.MODEL.WEIGHTS or os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    check_room(cfg.OUTPUT_DIR)
    if args.trust_pickle:
        trust_pickle(args.weights)
    args.costs = check_search(args, cfg)
    return cfg


def search_here(config: str | os.PathLike | CfgNode, options: Sequence = (), **arguments) -> SearchResult:
    """``auto_panoptic.search``: search in this process, as ``search_net.py`` does, its report included.

    Args:
        config: path of a YAML file, or a config; ``options`` are ``KEY, VALUE`` pairs that override it.
        arguments: those of the command: ``weights="model_final.pth"``, ``resume=True``, ``cycles=5``,
            ``max_macs="250G"``, ``verbose=True``; a list for an option that may be repeated.

    Returns:
        the selected ``architecture``, the ``directory`` of the files, and what the choice rests on.

    Raises:
        UserError: a mistake in the config, the arguments, the data or the weights.
    """
    words = []
    for name, value in arguments.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            option = f"--{name.replace('_', '-')}"
            words += [option] if item is True else [] if item in (None, False) else [f"{option}={item}"]
    args = parser().parse_args(words)
    args.config_file = config if isinstance(config, CfgNode) else str(config)
    args.opts = [str(option) for option in options]
    if args.rescore or args.dry_run or processes(args) > 1:
        raise UserError("in Python a search runs in one process and evaluates: use the command search_net.py")
    result = main(args, prepared(args))
    from ..report import report_after_search

    report_after_search(str(result.directory.parent))
    return result


def _name(args: argparse.Namespace) -> str:
    return "the config" if isinstance(args.config_file, CfgNode) else args.config_file


def parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Detectron2's parser, with the options of a search."""
    p = launch_parser(epilog, "the search", "configs/supernet_coco.yaml")
    p.error = refuse
    next(action for action in p._actions if action.dest == "eval_only").help = argparse.SUPPRESS
    add_search_arguments(p)
    add_finals_arguments(p)
    add_selection_arguments(p)
    return p


def check_arguments(args: argparse.Namespace) -> None:
    """What is wrong with the arguments whatever the config says."""
    if args.eval_only:
        raise UserError("--eval-only is an option of train_net.py: a search evaluates candidates")
    check_continuation(args)
    check_finals(args, processes(args))
    check_length(args)
    metrics = args.metrics.split(",")
    if not set(metrics) & set(FITNESS) or not set(metrics) <= set(METRICS):
        raise UserError(
            f"--metrics {args.metrics!r}; expected pq or miou, optionally with others, e.g. pq,ap,miou"
        )
    check_processes(args)


def check_processes(args: argparse.Namespace) -> None:
    """What is wrong with the arguments that start processes."""
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
    if args.num_machines > 1 and args.dist_url.startswith("tcp://127.0.0.1:"):  # Detectron2's default
        raise UserError(f"--num-machines {args.num_machines}: add --dist-url tcp://HOST:PORT of machine 0")
    if args.workers is not None and processes(args) > 1:
        raise UserError(
            f"--workers starts processes, of which this run has {processes(args)}: leave out --workers, or "
            "--num-gpus, --num-machines and torchrun"
        )
    if args.workers is not None:
        import_ray()


def search_config(args: argparse.Namespace):
    """The config that the arguments ask for."""
    cfg = build_config(args.config_file, args.opts + (["NAS.POLICY", args.policy] if args.policy else []))
    cfg.defrost()
    cycles, models = POLICY_REGISTRY.of(cfg.NAS.POLICY).cycle_keys()
    cfg.merge_from_list([] if args.models_per_cycle is None else [models, args.models_per_cycle])
    number = cycles_asked(args, max(1, dict(flat(cfg.NAS, "NAS."))[models]))
    cfg.merge_from_list([] if number is None else [cycles, number])
    cfg.freeze()
    if cfg.NAS.ARCHITECTURE:
        raise UserError('NAS.ARCHITECTURE is set: a search needs the supernet; set it to ""')
    if any(holds_classes(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.SEARCH)):
        raise UserError(f"{_name(args)} is of classified images; a search needs segmented ones")
    check_unread(cfg, args.config_file, args.opts)
    check_policy_keys(cfg, args)
    return cfg


def check_policy_keys(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Warn of settings in the config file that another policy than NAS.POLICY reads.

    Raises:
        UserError: a ``KEY VALUE`` pair is one.
    """
    name = cfg.NAS.POLICY
    others = POLICY_REGISTRY.keys_of_others(name)
    for key in args.opts[::2]:
        if key in others:
            raise UserError(
                f"{key} is a setting of the policy {others[key]}, but this search's is {name}: leave it out, "
                f"or add --policy {others[key]}"
            )
    now, usual = dict(flat(cfg)), defaults()
    for key in given_keys(args.config_file):
        if key in others and now[key] != usual.get(key):
            logging.getLogger(__name__).warning(
                "%s: without effect on this search, whose policy is %s: %s, a setting of %s",
                *(_name(args), name, key, others[key]),
            )


def check_search(args: argparse.Namespace, cfg) -> CostTables:
    """What may be wrong before anything is written; the costs of the supernet."""
    costs = configured_costs(cfg)
    if args.max_latency is not None:
        directory = ledger_path(cfg.OUTPUT_DIR).parent
        costs = with_measured(costs, directory, _name(args))
    check_budget(costs, args.max_macs, args.max_params, args.max_latency)
    check_weights(cfg, args.weights)
    if args.final_weights:
        check_weights(cfg, args.final_weights, to_train=True)
    if costs.space.cardinality == 1:
        raise UserError(
            f"{_name(args)}: every site has one operator, there is nothing to search; list at least two "
            "in NAS.SPACE.BACKBONE_OPS, NAS.SPACE.HEAD_OPS or MODEL.CROSS_ATTENTION.RATIOS"
        )
    check_metrics(cfg, args.metrics)
    for name in cfg.DATASETS.SEARCH:
        possible = metrics_of(data_set_for(cfg, name), METRICS)
        if unknown := [metric for metric in args.metrics if metric not in possible]:
            raise UserError(
                f"--metrics has {unknown[0]}, data set {name} is evaluated by {', '.join(possible)}"
            )
    policy = search_policy(cfg, costs.space)
    if (args.finals or 0) > (most := policy.cycles * policy.models):
        raise UserError(f"--finals {args.finals}: the search has {most} candidates; ask for at most so many")
    selection_request(args, policy.selects, policy.own_scores)
    if policy.uses_history and (workers := args.workers or processes(args)) > policy.models:
        logging.getLogger(__name__).warning(
            "%d of %d workers will be idle: a cycle of the policy %s has %d candidates; a search with "
            "--models-per-cycle %d, which has other candidates, keeps all busy",
            *(workers - policy.models, workers, policy.name, policy.models, workers),
        )
    return costs


@resumable()
def main(args: argparse.Namespace, cfg) -> SearchResult | None:
    """One process of the search; with several, the first leads the others, and has the result."""
    if comm.get_world_size() == 1:
        return search(args, cfg, partial(executor_of_one, args, cfg))
    make_evaluate = partial(rank_evaluator, cfg, args.weights, args.metrics)
    if not comm.is_main_process():
        setup_logger(name="auto_panoptic", distributed_rank=comm.get_rank())
        return follow(make_evaluate)
    with leading():
        return search(args, cfg, lambda: contextlib.nullcontext(Ranks(make_evaluate)))


def executor_of_one(args: argparse.Namespace, cfg):
    """Context with what evaluates the candidates of a single process: itself, or Ray workers."""
    if args.workers is not None:
        return RayWorkers(cfg, args.weights, args.metrics, args.workers, args.ray_address)
    return contextlib.nullcontext(InProcess(load_evaluator(cfg, args.weights, args.metrics)))


def search(args: argparse.Namespace, cfg, make_executor) -> SearchResult:
    """Search, select, and print what came of it."""
    policy = search_policy(cfg, args.costs.space)
    policy.keep(args.costs, limits_asked(args))
    header = search_header(cfg, policy, args.weights, args.metrics, length_asked(args))
    by_scores = policy.selects != "best" or asks_for_selection(args)
    path = ledger_path(cfg.OUTPUT_DIR)
    options = {"resume": args.resume, "allow_changed": args.accept}
    options |= {"acceptable": ACCEPTABLE, "comparable": comparable}
    with (
        only_run(cfg.OUTPUT_DIR, alone=True),
        disk_errors(cfg.OUTPUT_DIR, "run the command again with --resume"),
        Ledger.open(path, header, **options) as ledger,  # before the images are read: it may be refused
    ):
        os.close(open_own(path.parent / "log.txt"))
        set_up_logs(str(path.parent), verbose=args.verbose)
        if found := origin(args.config_file, args.opts):
            store_tables(path.parent, found[0], args.costs)
        log_ids(cfg)
        check_ground_truth(cfg)
        (path.parent / BUNDLE).unlink(missing_ok=True)  # of an earlier selection
        with make_executor() as executor:
            how = (policy.selects, policy.own_scores)
            request = selection_request(args, *how) if by_scores else None
            result = run_search(policy, ledger, executor, args.costs, request, args.retry_failed, args.budget)
            search_pictures(cfg, executor, result.architecture, result.directory)
        print(summary(result))
        if args.max_latency is not None:
            print(*judged(cfg, args.costs, result), sep="\n")
        if args.finals is not None:
            result = hold_finals(args, cfg, ledger, result)
        if bundle := write_path_bundle(cfg, args.weights, result):
            print(f"{'bundle':<13} {bundle}")
    return result


def finals_request(args: argparse.Namespace, cfg) -> FinalsRequest:
    """What the arguments ask of the finals."""
    controls = CONTROLS if args.controls is None else args.controls
    start, steps = weights_digest(args.final_weights or ""), args.final_steps or cfg.SOLVER.MAX_ITER
    return FinalsRequest(args.finals, controls, steps, start=start)


def hold_finals(args: argparse.Namespace, cfg, ledger: Ledger, result: SearchResult) -> SearchResult:
    """Train the finalists of a finished search, and say what came of it; the result with the best of them."""
    request = finals_request(args, cfg)
    evaluated = evaluated_candidates(ledger, args.costs.space)
    finalists = contenders(request, result, evaluated, args.costs)
    header = finals_header(ledger, request, finalists, cfg.SOLVER)
    training = FinalTraining(cfg, args.final_weights or "", result.directory / FOLDER, args.metrics)
    with (
        open_journal(result.directory, header) as journal,
        ray_trainings(training, args.workers, args.ray_address)
        if args.workers is not None
        else contextlib.nullcontext(InProcess(training)) as executor,
    ):
        finals = Finals(request, journal, executor, args.retry_failed, training.clean)
        limits = result.selection.limits if result.selection else None
        found = finals.run(finalists, args.costs, limits)
    print("\n".join(found.lines()))
    winner = write_finals(result.directory, request, found, args.costs)
    return replace(result, architecture=winner)
