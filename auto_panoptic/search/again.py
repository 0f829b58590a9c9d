"""``search_net.py --rescore``: select anew from a ledger and stored costs, which the first call counts."""

from __future__ import annotations

import argparse
import os

from ..explore import Ledger
from ..explore.budget import check_budget
from .arguments import check_continuation, check_finals, rescore_parser, selection_request
from .costs import origin, store_tables, stored_tables
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
    if os.environ.get("RANK", "0") != "0":
        return None
    found = origin(args.config_file, args.opts)
    key, output_dir = found or (None, None)
    tables = stored_tables(ledger_path(output_dir).parent, key) if found else None
    is_stored = tables is not None
    if not is_stored:
        from ..modeling.counting import configured_costs  # needs torch and Detectron2
        from .command import search_config

        cfg = search_config(args)
        tables, output_dir = configured_costs(cfg), cfg.OUTPUT_DIR
    path, request = ledger_path(output_dir), selection_request(args)
    check_budget(tables, request.max_macs, request.max_params)
    header = recorded_space(path, tables.space)
    with Ledger.open(path, header, resume=True) as ledger:  # not while a search is writing
        if key and not is_stored:
            store_tables(path.parent, key, tables)
        print(summary(select_again(ledger, tables, request)))
    return output_dir
