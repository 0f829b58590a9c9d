"""The paper's search space as a table, in the order of the model's modules.

``SearchSpace.default`` runs this file by itself, without the package around it: it must not import torch.
"""

from auto_panoptic.space.ops import BACKBONE_OPS, HEAD_OPS, INTER_OPS

_ROWS = (
    ("backbone", 40, BACKBONE_OPS),
    ("mask", 4, HEAD_OPS),
    ("sem_seg", 3, HEAD_OPS),
    ("attention.f2b", 4, INTER_OPS),
    ("attention.b2f", 5, INTER_OPS),
)
SPACE = {f"{row}.{i}": ops for row, count, ops in _ROWS for i in range(count)}
