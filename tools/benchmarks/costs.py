"""Counting the costs of the whole search space of the paper, and asking for those of one architecture.

The supernet of configs/supernet_coco.yaml is built on the meta device and counted once; then its tables are
asked for random architectures in three forms. The last line is one JSON object.

    python tools/benchmarks/costs.py [--queries 2000]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from auto_panoptic.modeling.counting import configured_costs  # noqa: E402
from auto_panoptic.read_config import read_config  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=2000, help="of each form (default: 2000)")
    number = parser.parse_args().queries
    cfg = read_config(str(ROOT / "configs/supernet_coco.yaml"))
    start = time.perf_counter()
    tables = configured_costs(cfg)
    result = {"tables_seconds": round(time.perf_counter() - start, 3)}
    print(f"{'tables of ' + str(len(tables.sites)) + ' sites':<32}{result['tables_seconds']:8.2f} s")
    space, rng = tables.space, np.random.default_rng(0)
    architectures = [space.random(rng) for _ in range(number)]
    lists = [a.indices() for a in architectures]
    forms = {
        "architecture": architectures,
        "index_lists": lists,
        "indices": [sum((a[group] for group in space.groups), []) for a in lists],
    }
    for name, queries in forms.items():
        start = time.perf_counter()
        for query in queries:
            tables.cost(query)
        result[f"{name}_us"] = round((time.perf_counter() - start) / number * 1e6, 1)
        print(f"{'one query, ' + name.replace('_', ' '):<32}{result[f'{name}_us']:8.1f} us")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
