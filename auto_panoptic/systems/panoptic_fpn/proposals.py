"""Region proposals as the reference code selects them in training."""

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Instances


@PROPOSAL_GENERATOR_REGISTRY.register()
class BatchTopkRPN(RPN):
    """Detectron2's RPN, except that training keeps the best proposals of the whole batch.

    MODEL.RPN.POST_NMS_TOPK_TRAIN is then their number over all images of this process instead of per image
    (reference code: 2000 for two images), so that an image with many confident regions gets more of them. In
    inference nothing differs.
    """

    def predict_proposals(self, *args, **kwargs) -> list[Instances]:
        """As :meth:`RPN.predict_proposals`; one image cannot have more than the whole batch."""
        proposals = super().predict_proposals(*args, **kwargs)
        if not self.training:
            return proposals
        return keep_best_of_batch(proposals, self.post_nms_topk[True])


def keep_best_of_batch(proposals: list[Instances], limit: int) -> list[Instances]:
    """The ``limit`` proposals of highest objectness over all images, in their order within each image.

    Args:
        proposals: per image, with ``objectness_logits`` (n,), best first.
        limit: number to keep in total. Of equal logits the earlier image and the earlier proposal stay.
    """
    counts = [len(p) for p in proposals]
    if sum(counts) <= limit:
        return proposals
    logits = torch.cat([p.objectness_logits for p in proposals])
    keep = torch.zeros_like(logits, dtype=torch.bool)
    keep[logits.sort(descending=True, stable=True).indices[:limit]] = True
    return [p[mask] for p, mask in zip(proposals, keep.split(counts), strict=True)]
