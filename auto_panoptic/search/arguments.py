"""The options of search_net.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..errors import UserError, at_least
from ..explore import POLICY_REGISTRY
from ..explore.budget import parse_amount
from ..explore.estimators import ESTIMATORS
from ..space import parse_latency
from .selection import Request
from .time_budget import parse_time

# Header keys of a ledger whose change may be accepted. With another space, seed or policy the candidates are
# others.
ACCEPTABLE = ("config", "content", "data", "libraries", "metrics", "versions", "weights")
METRICS = ("pq", "ap", "miou")
CONTROLS = 4
MOST_CYCLES = 10**6  # that a policy may have
LENGTHS = ("cycles", "evaluations", "budget")  # options that say how long to search


def refuse(message: str) -> None:
    """The ``error`` of a parser."""
    raise UserError(f"{message}; --help shows the options")


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what Detectron2's parser lacks."""
    cycles, models = map(", ".join, zip(*(p.cycle_keys() for p in POLICY_REGISTRY.values()), strict=True))
    add = parser.add_argument_group("search").add_argument
    add("--weights", default="", metavar="FILE", help="supernet (default: OUTPUT_DIR/model_final.pth)")
    add("--trust-pickle", action="store_true", help="weights in a .pkl: read it, which runs code in it")
    add("--policy", metavar="NAME", help=f"one of {', '.join(POLICY_REGISTRY)} (default: NAS.POLICY)")
    what = f"search cycles, rounds or generations (default: the policy's {cycles})"
    add("--cycles", type=int, metavar="T", help=what)
    what = f"candidates of a cycle (default: the policy's {models})"
    add("--models-per-cycle", type=int, metavar="E", help=what)
    add("--evaluations", type=int, metavar="N", help="instead of --cycles: so many candidates in all")
    what = "instead of --cycles: as many whole cycles as end in this time, e.g. 30m or 1h30m"
    add("--budget", type=_parsed(parse_time, "--budget"), metavar="TIME", help=what)
    add("--metrics", default="pq", help="of pq, miou, ap; the first of pq and miou ranks (default: pq)")
    add("--retry-failed", action="store_true", help="with --resume: evaluate failed candidates again")
    may = f"with --resume: may differ from the recorded search ({', '.join(ACCEPTABLE)}); may be repeated"
    add("--accept", action="append", default=[], metavar="KEY", help=may)
    add("--workers", type=int, metavar="N", help="evaluate on N Ray workers, one per GPU")
    add("--ray-address", metavar="ADDRESS", help="with --workers: join this Ray cluster (auto, or host:port)")
    add("--dry-run", action="store_true", help="say what would be searched and what that needs")
    add("--verbose", action="store_true", help="show all that goes to OUTPUT_DIR/search/log.txt")


def add_finals_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --finals, --final-steps, --final-weights and --controls."""
    add = parser.add_argument_group("finals").add_argument
    add("--finals", type=int, metavar="K", help="then train the K best for a while; the best is the answer")
    steps = "optimizer steps of a whole training (default: SOLVER.MAX_ITER)"
    add("--final-steps", type=int, metavar="N", help=steps)
    add("--final-weights", metavar="FILE", help="what the trainings start from (default: from scratch)")
    what = f"random networks of equal cost to compare with (default: {CONTROLS})"
    add("--controls", type=int, metavar="C", help=what)


def check_finals(args: argparse.Namespace, processes: int = 1) -> None:
    """Raise UserError for what is wrong with these options."""
    if args.finals is None:
        for option in ("--final-steps", "--final-weights", "--controls"):
            if getattr(args, option[2:].replace("-", "_")) is not None:
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
    """Add --rescore, --estimator, the limits, --within-noise and --pareto."""
    add = parser.add_argument_group("selection").add_argument
    add("--rescore", action="store_true", help="select anew from the ledger in OUTPUT_DIR, evaluate nothing")
    what = "what scores the operators: ranks (paper), mean fitness, ridge regression (default: as the policy)"
    add("--estimator", choices=ESTIMATORS, help=what)
    for option, example in (("--max-macs", "3.5G"), ("--max-params", "24M")):
        limit = f"limit for the whole network, e.g. {example}; selects the best architecture within it"
        add(option, type=_parsed(parse_amount, option), metavar="N", help=limit)
    limit = "limit for one image, e.g. 120ms, by times that python -m auto_panoptic.latency has measured"
    add("--max-latency", type=_parsed(parse_latency, "--max-latency"), metavar="TIME", help=limit)
    what = "the architecture with the fewest MACs whose score is within a standard error of the best"
    add("--within-noise", action="store_true", help=f"select {what} (implies --estimator ridge)")
    add("--pareto", action="store_true", help="show, and write to search/pareto.json, score against MACs")


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
    return bool(args.rescore or args.estimator or limits_asked(args) or args.within_noise or args.pareto)


def limits_asked(args: argparse.Namespace) -> dict[str, int]:
    """The limits of the selection."""
    names = ("max_macs", "max_params", "max_latency")
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def selection_request(args: argparse.Namespace, selects: str = "ranks", own_scores: bool = False) -> Request:
    """How the arguments ask to select from a search whose policy ``selects`` so, with ``own_scores`` or not.

    Raises:
        UserError: --within-noise by scores that have no standard error.
    """
    estimator = args.estimator or (selects if selects in ESTIMATORS else "ranks")
    if args.within_noise:
        if args.estimator not in (None, "ridge"):
            raise UserError(
                f"--within-noise needs standard errors, which --estimator {args.estimator} does not have: "
                "leave out --estimator, or use ridge"
            )
        estimator = "ridge"
    own_scores = own_scores and args.estimator is None and not args.within_noise
    limits = (args.max_macs, args.max_params)
    return Request(estimator, *limits, args.pareto, args.within_noise, args.max_latency, own_scores)


def check_length(args: argparse.Namespace) -> None:
    """Raise UserError for more than one option that says how long to search, or for no evaluation."""
    given = [name for name in LENGTHS if getattr(args, name) is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} both say how long to search: leave one of them out")
    if args.evaluations is not None:
        at_least("--evaluations", args.evaluations, 1)


def length_asked(args: argparse.Namespace) -> dict[str, int]:
    """The option that says how long to search, --budget in seconds; empty for the config's cycles."""
    return {name: value for name in LENGTHS if (value := getattr(args, name)) is not None}


def cycles_asked(args: argparse.Namespace, each: int) -> int | None:
    """How many cycles of ``each`` candidates the arguments ask for; None if they do not say.

    Raises:
        UserError: --evaluations is no number of whole cycles.
    """
    if args.budget is not None:
        return MOST_CYCLES
    if args.evaluations is None:
        return args.cycles
    cycles, rest = divmod(args.evaluations, each)
    if rest:
        few = f"{cycles * each} or " if cycles else ""
        raise UserError(
            f"--evaluations {args.evaluations}: a cycle has {each} candidates and is evaluated whole; give "
            f"{few}{(cycles + 1) * each}, or cycles of another size with --models-per-cycle"
        )
    return cycles


def check_continuation(args: argparse.Namespace) -> None:
    """Raise UserError for options that continue a search without --resume, or an unknown key to --accept."""
    for option, given in (("--retry-failed", args.retry_failed), ("--accept", args.accept)):
        if given and not args.resume:
            raise UserError(f"{option} continues a search: add --resume")
    if unknown := [key for key in args.accept if key not in ACCEPTABLE]:
        raise UserError(f"--accept {unknown[0]}: expected one of {', '.join(ACCEPTABLE)}")


def _parsed(read: Callable[[str, str], int], option: str) -> Callable[[str], int]:
    """``read`` for a parser, which names the option itself."""

    def parse(text: str) -> int:
        try:
            return read(text, option)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{option} is ")) from error

    return parse
