"""The options of search_net.py."""

from __future__ import annotations

import argparse

from ..errors import UserError, at_least
from ..explore import POLICY_REGISTRY
from ..explore.budget import parse_amount
from ..explore.estimators import ESTIMATORS
from .selection import Request

# Header keys of a ledger whose change may be accepted. With another space, seed or policy the candidates are
# others.
ACCEPTABLE = ("config", "content", "data", "libraries", "metrics", "versions", "weights")
METRICS = ("pq", "ap", "miou")
CONTROLS = 4


def refuse(message: str) -> None:
    """The ``error`` of a parser."""
    raise UserError(f"{message}; --help shows the options")


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what Detectron2's parser lacks."""
    keys = "NAS.{}, NAS.RANDOM.{}, NAS.EVOLUTION.{}"
    add = parser.add_argument_group("search").add_argument
    add("--weights", default="", metavar="FILE", help="supernet (default: OUTPUT_DIR/model_final.pth)")
    add("--trust-pickle", action="store_true", help="weights in a .pkl: read it, which runs code in it")
    add("--policy", metavar="NAME", help=f"one of {', '.join(POLICY_REGISTRY)} (default: NAS.POLICY)")
    default = keys.format("CYCLES", "CYCLES", "GENERATIONS")
    add("--cycles", type=int, metavar="T", help=f"search cycles, or generations (default: {default})")
    default = keys.format("MODELS_PER_CYCLE", "MODELS_PER_CYCLE", "POPULATION")
    add("--models-per-cycle", type=int, metavar="E", help=f"candidates of a cycle (default: {default})")
    add("--metrics", default="pq", help="of pq, miou, ap; the first of pq and miou ranks (default: pq)")
    add("--retry-failed", action="store_true", help="with --resume: evaluate failed candidates again")
    may = f"with --resume: may differ from the recorded search ({', '.join(ACCEPTABLE)}); may be repeated"
    add("--accept", action="append", default=[], metavar="KEY", help=may)
    add("--workers", type=int, metavar="N", help="evaluate on N Ray workers, one per GPU")
    add("--ray-address", metavar="ADDRESS", help="with --workers: join this Ray cluster (auto, or host:port)")


def add_finals_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --finals, --final-steps and --controls."""
    add = parser.add_argument_group("finals").add_argument
    add("--finals", type=int, metavar="K", help="then train the K best for a while; the best is the answer")
    steps = "optimizer steps of a whole training (default: SOLVER.MAX_ITER)"
    add("--final-steps", type=int, metavar="N", help=steps)
    what = f"random networks of equal cost to compare with (default: {CONTROLS})"
    add("--controls", type=int, metavar="C", help=what)


def check_finals(args: argparse.Namespace, processes: int = 1) -> None:
    """Raise UserError for what is wrong with these options."""
    if args.finals is None:
        for option, given in (("--final-steps", args.final_steps), ("--controls", args.controls)):
            if given is not None:
                raise UserError(f"{option} is an option of the finals: add --finals K")
        return
    if args.rescore:
        raise UserError("--finals trains networks, --rescore evaluates nothing: leave one of them out")
    at_least("--finals", args.finals, 1)
    for option, given, least in (("--final-steps", args.final_steps, 1), ("--controls", args.controls, 0)):
        if given is not None:
            at_least(option, given, least)
    if processes > 1:
        raise UserError(
            "--finals trains one network per worker: use --workers N instead of --num-gpus, --num-machines "
            "and torchrun"
        )


def add_selection_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --rescore, --estimator, --max-macs, --max-params and --pareto."""
    add = parser.add_argument_group("selection").add_argument
    add("--rescore", action="store_true", help="select anew from the ledger in OUTPUT_DIR, evaluate nothing")
    what = "what scores the operators: ranks (paper), mean fitness, ridge regression (default: ranks)"
    add("--estimator", choices=ESTIMATORS, help=what)
    for option, example in (("--max-macs", "3.5G"), ("--max-params", "24M")):
        limit = f"limit for the whole network, e.g. {example}; selects the best architecture within it"
        add(option, type=_amount(option), metavar="N", help=limit)
    add("--pareto", action="store_true", help="write search/pareto.json: score against MACs")


def rescore_parser() -> argparse.ArgumentParser:
    """Takes all arguments of a search; those of --rescore count."""
    parser = argparse.ArgumentParser(usage="search_net.py --rescore [options] [KEY VALUE ...]")
    parser.error = refuse
    parser.add_argument("--config-file", default="configs/supernet_coco.yaml", metavar="FILE")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    for option in ("--num-gpus", "--num-machines", "--machine-rank", "--dist-url"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    add_search_arguments(parser)
    add_finals_arguments(parser)
    add_selection_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options")
    return parser


def asks_for_selection(args: argparse.Namespace) -> bool:
    """Whether any option asks for another selection than the policy's own."""
    return bool(args.rescore or args.estimator or args.max_macs or args.max_params or args.pareto)


def selection_request(args: argparse.Namespace) -> Request:
    return Request(args.estimator or "ranks", args.max_macs, args.max_params, args.pareto)


def check_continuation(args: argparse.Namespace) -> None:
    """Raise UserError for options that continue a search without --resume, or an unknown key to --accept."""
    for option, given in (("--retry-failed", args.retry_failed), ("--accept", args.accept)):
        if given and not args.resume:
            raise UserError(f"{option} continues a search: add --resume")
    if unknown := [key for key in args.accept if key not in ACCEPTABLE]:
        raise UserError(f"--accept {unknown[0]}: expected one of {', '.join(ACCEPTABLE)}")


def _amount(option: str):
    def parse(text: str) -> int:
        try:
            return parse_amount(text, option)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{option} is ")) from error

    return parse
