"""Which settings a run must keep to be continued exactly."""

from __future__ import annotations

import hashlib
import json
import re

from detectron2.config import CfgNode

from ..errors import UserError

# Settings that may change between a run and its continuation: paths, devices, what is only printed, saved or
# evaluated. The architecture, which NAS.ARCHITECTURE names by a path, is compared operator by operator.
HARMLESS = re.compile(
    r"""OUTPUT_DIR | VERSION | VIS_PERIOD
    | MODEL\.(DEVICE | WEIGHTS | PANOPTIC_FPN\.COMBINE\..*)
    | NAS\.(ARCHITECTURE | CYCLES | MODELS_PER_CYCLE | BN_RECALIBRATION\..* | AUDIT_PERIOD)
    | NAS\.(POLICY | RANDOM\..* | EVOLUTION\..*)
    | SOLVER\.(CHECKPOINT_PERIOD | CHECKPOINTS_KEPT)
    | DATALOADER\.NUM_WORKERS
    | DATASETS\.(COCO_PANOPTIC | IMAGE_FOLDERS | TEST | SEARCH)
    | INPUT\.CLASSIFICATION\.(TEST_RESIZE | TEST_SIZE)
    | TEST\.(?!PRECISE_BN).*
    | .*_TEST""",
    re.VERBOSE,
)


def training_settings(cfg: CfgNode, prefix: str = "") -> dict[str, str]:
    """{full key: value as JSON} of the settings that a run must keep."""
    found = {}
    for key, value in sorted(cfg.items()):
        if isinstance(value, CfgNode):
            found.update(training_settings(value, f"{prefix}{key}."))
        elif not HARMLESS.fullmatch(prefix + key):
            found[prefix + key] = json.dumps(value, default=str)
    if found.get("SOLVER.LR_SCHEDULER_NAME") == '"WarmupMultiStepLR"':
        found.pop("SOLVER.MAX_ITER", None)  # only the end of the run depends on it: it may be moved
    return found


def settings_hash(settings: dict[str, str]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of :func:`training_settings`."""
    return hashlib.sha256(json.dumps(sorted(settings.items())).encode()).hexdigest()[:16]


def check_same_settings(before: dict[str, str], now: dict[str, str], path: str) -> None:
    """Raise UserError if a setting that both know has changed; ``path`` is the checkpoint of ``before``."""
    changed = [key for key in sorted(now) if before.get(key, now[key]) != now[key]]
    if changed:
        shown = ", ".join(f"{key} was {before[key]}, is {now[key]}" for key in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"--resume: settings have changed since {path!r}: {shown}{more}; restore them, or start a new "
            "run in another OUTPUT_DIR with MODEL.WEIGHTS set to that file"
        )
