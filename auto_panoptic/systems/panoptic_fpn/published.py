"""The paper's search space as published; the space of any other model follows from its choice blocks."""

from auto_panoptic.space import BACKBONE_OPS, HEAD_OPS, INTER_OPS, ChoiceSite, SearchSpace


def default_space() -> SearchSpace:
    """40 backbone, 4 mask, 3 semantic, 4 + 5 attention sites, in the order of the model's modules."""
    rows = (
        ("backbone", 40, BACKBONE_OPS),
        ("mask", 4, HEAD_OPS),
        ("sem_seg", 3, HEAD_OPS),
        ("attention.f2b", 4, INTER_OPS),
        ("attention.b2f", 5, INTER_OPS),
    )
    return SearchSpace(tuple(ChoiceSite(f"{row}.{i}", ops) for row, count, ops in rows for i in range(count)))
