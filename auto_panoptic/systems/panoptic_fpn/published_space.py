"""The paper's search space as a table, in the order of the model's modules.

``SearchSpace.default`` runs this file by itself, without the package around it: it must not import torch.
"""

_BACKBONE = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "xception_3x3")
_HEAD = ("dwconv_3x3", "dwconv_5x5", "dfconv_3x3", "dfconv_5x5", "atconv_3x3", "atconv_5x5")
_RATIOS = ("r4", "r8", "r16")

_ROWS = (
    ("backbone", 40, _BACKBONE),
    ("mask", 4, _HEAD),
    ("sem_seg", 3, _HEAD),
    ("attention.f2b", 4, _RATIOS),
    ("attention.b2f", 5, _RATIOS),
)
SPACE = {f"{row}.{i}": ops for row, count, ops in _ROWS for i in range(count)}
