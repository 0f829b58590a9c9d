#!/usr/bin/env python
"""Search the paths of a trained supernet for the best architecture.

    python search_net.py --cycles 5 --models-per-cycle 12
    python search_net.py --config-file configs/quick/supernet.yaml --weights supernet/model_final.pth --resume
    python search_net.py --policy evolution OUTPUT_DIR output/evolution
    python search_net.py --num-gpus 8                            # a candidate per GPU at a time
    torchrun --nproc-per-node 2 search_net.py                    # the same, on two CPU processes
    python search_net.py --rescore --max-macs 250G --pareto      # select anew, evaluate nothing

Writes OUTPUT_DIR/search/{ledger.jsonl, scoreboard.json, architecture.json, costs.json}, and from them
report.html and figures/, which python -m auto_panoptic.report OUTPUT_DIR makes anew at any time.
"""

import sys

from auto_panoptic.errors import hold_warnings, need_detectron2, run_command
from auto_panoptic.search.again import rescore_command
from auto_panoptic.signals import end_with_parent


def run():
    hold_warnings()
    if "--rescore" in sys.argv[1:]:
        output_dir = rescore_command()
    else:
        need_detectron2()
        from auto_panoptic.search.command import search_command  # torch and Detectron2 take seconds to import

        output_dir = search_command(__doc__)
    if output_dir is not None:
        from auto_panoptic.report import report_after_search

        report_after_search(output_dir)


if __name__ == "__main__":
    end_with_parent()
    run_command(run)
