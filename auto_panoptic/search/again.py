"""``search_net.py --rescore``: select anew from a ledger and stored costs, which the first call counts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from ..explore import POLICY_REGISTRY, Ledger
from ..explore.budget import check_budget
from ..files import BUNDLE
from ..space import load_names
from ..validate import flat
from .arguments import check_continuation, check_finals, rescore_parser, selection_request
from .costs import origin, store_tables, stored_tables
from .latency import judged, with_measured
from .records import recorded_space
from .selection import ledger_path, select_again
from .summary import summary


def rescore_command(args: argparse.Namespace | None = None) -> str | None:
    """Select as the arguments ask, by default those of the command line; of several ranks, in the first.

    Returns:
        OUTPUT_DIR, in that one.

    Raises:
        UserError: there is no ledger, a search is writing it, it is of another space than the config's, no
            candidate was evaluated, or no architecture is within the limits.
    """
    args = args or rescore_parser().parse_args()
    check_continuation(args)
    check_finals(args)
    if args.dry_run:
        raise UserError("--rescore evaluates nothing and takes seconds: leave out --dry-run")
    if os.environ.get("RANK", "0") != "0":
        return None
    found = origin(args.config_file, args.opts)
    key, output_dir = found or (None, None)
    tables = stored_tables(ledger_path(output_dir).parent, key) if found else None
    is_stored = tables is not None
    if not is_stored:
        from ..modeling.counting import configured_costs  # needs torch and Detectron2

        cfg = _config(args)
        tables, output_dir = configured_costs(cfg), cfg.OUTPUT_DIR
    path = ledger_path(output_dir)
    if args.max_latency is not None:
        tables = with_measured(tables, path.parent, args.config_file)
    check_budget(tables, args.max_macs, args.max_params, args.max_latency)
    header = recorded_space(path, tables.space)
    policy = POLICY_REGISTRY.get(header["policy"])  # None: of a module that this process has not read
    how = (policy.selects, policy.own_scores) if policy else ()
    request = selection_request(args, *how)
    with Ledger.open(path, header, resume=True) as ledger:  # not while a search is writing
        if key and not is_stored:
            store_tables(path.parent, key, tables)
        before = _selected(path.parent)
        result = select_again(ledger, tables, request)
        if result.architecture.names() != before:
            (path.parent / BUNDLE).unlink(missing_ok=True)  # its weights are the other path's
        print(summary(result))
        if args.max_latency is not None:
            print(*judged(_config(args), tables, result), sep="\n")
    return output_dir


def _config(args: argparse.Namespace):
    """The supernet's config. Its data sets need not be there.

    The numbers of classes, which data sets tell, are those that the search recorded; of a ledger without
    them, those of the data sets.
    """
    from ..data.setup import HEADS  # these need torch and Detectron2
    from ..read_config import read_config
    from .command import search_config

    cfg = read_config(args.config_file, args.opts)
    if cfg.NAS.ARCHITECTURE:
        raise UserError('NAS.ARCHITECTURE is set: a search needs the supernet; set it to ""')
    config = Ledger(ledger_path(cfg.OUTPUT_DIR)).header.get("config")
    if not isinstance(config, dict):
        return search_config(args)
    recorded = dict(flat(config))
    for key in (f"MODEL.{head}.NUM_CLASSES" for head in HEADS.values()):
        if isinstance(number := recorded.get(key), int):
            cfg.merge_from_list([key, number])
    return cfg


def _selected(directory: Path) -> Mapping[str, str]:
    """{site: operator} of the selection so far; empty if there is none."""
    try:
        return load_names(directory / "architecture.json")
    except UserError:
        return {}
