"""Region heads whose detections make the panoptic output, in training too."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import StandardROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, mask_rcnn_inference
from detectron2.structures import Boxes, ImageList, Instances

from auto_panoptic.errors import UserError, one_of

from .lovasz import lovasz_hinge

__all__ = ["UnifiedROIHeads", "lovasz_mask_loss"]


def lovasz_mask_loss(logits: torch.Tensor, instances: Sequence[Instances]) -> torch.Tensor:
    """Lovasz hinge of each region's mask, the mean over the regions; 0 with a graph without any.

    Args:
        logits: (R, classes, M, M), or (R, 1, M, M) where masks know no class.
        instances: R regions in all, with "proposal_boxes", "gt_classes" and "gt_masks" where there are any.
    """
    instances = [x for x in instances if len(x)]
    if not instances:
        return logits.sum() * 0
    side = logits.shape[-1]
    targets = [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side) for x in instances]
    targets = torch.cat([t.to(logits.device) for t in targets]) > 0.5  # polygons may give numbers
    classes = torch.cat([x.gt_classes for x in instances]) if logits.shape[1] > 1 else 0
    logits = logits[torch.arange(len(logits), device=logits.device), classes]
    return lovasz_hinge(logits.flatten(1), targets.flatten(1))


@ROI_HEADS_REGISTRY.register()
class UnifiedROIHeads(StandardROIHeads):
    """Detectron2's heads; in training they also return detections for the dynamic potential.

    Predicted detections (supplement A.4) come from the proposals before any are sampled or added from the
    ground truth. Their scores and masks keep gradients, their boxes have none. Score 1 and the true boxes are
    the ablation.
    """

    @configurable
    def __init__(
        self,
        *,
        train_detections: str = "predicted",
        train_score_thresh: float = 0.05,
        train_topk: int = 100,
        train_proposals: int = 1000,
        detect_masks: bool = True,
        mask_loss: str = "lovasz_hinge",
        **kwargs,
    ):
        """
        Args:
            train_detections: "predicted" or "ground_truth".
            train_score_thresh: detections in training have a higher score.
            train_topk: most detections per image in training.
            train_proposals: most proposals per image from which they come.
            detect_masks: whether the potential needs masks.
            mask_loss: "lovasz_hinge" or "bce".
            kwargs: see :class:`StandardROIHeads`. The mask head is a :class:`BaseMaskRCNNHead`.

        Raises:
            UserError: unknown ``train_detections`` or ``mask_loss``; another mask head.
        """
        super().__init__(**kwargs)
        modes = ("predicted", "ground_truth")
        self.train_detections = one_of("MODEL.UNIFIED.TRAIN_DETECTIONS", train_detections, modes)
        self.train_score_thresh = train_score_thresh
        self.train_topk = train_topk
        self.train_proposals = train_proposals
        self.detect_masks = detect_masks
        self.mask_loss = one_of("MODEL.UNIFIED.LOSS.MASK", mask_loss, ("lovasz_hinge", "bce"))
        if self.mask_on and not isinstance(self.mask_head, BaseMaskRCNNHead):
            raise UserError(
                f"MODEL.ROI_MASK_HEAD.NAME is {type(self.mask_head).__name__!r}, no BaseMaskRCNNHead, and "
                "its masks cannot enter the potential; add MODEL.ROI_MASK_HEAD.NAME MaskRCNNConvUpsampleHead"
            )

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.UNIFIED
        ret = super().from_config(cfg, input_shape)
        ret["train_detections"] = node.TRAIN_DETECTIONS
        if node.TRAIN_DETECTIONS == "predicted":
            ret["train_score_thresh"] = node.TRAIN_SCORE_THRESH
            ret["train_topk"] = node.TRAIN_TOPK
            ret["train_proposals"] = node.TRAIN_PROPOSALS
        ret["detect_masks"] = node.POTENTIAL != "A"
        if cfg.MODEL.MASK_ON:
            ret["mask_loss"] = node.LOSS.MASK
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """As :class:`StandardROIHeads`, but in training with the detections instead of the proposals.

        Returns:
            Per image "pred_boxes", "scores", "pred_classes" and, with masks, "pred_masks" (D, 1, M, M)
            probabilities; and in training the losses.
        """
        if not self.training:
            return super().forward(images, features, proposals)
        if self.train_detections == "predicted":
            detections = self._predicted(features, proposals)
        else:
            detections = [_true_detections(x) for x in targets]
        if self.detect_masks:
            mask_rcnn_inference(self._mask_logits(features, [x.pred_boxes for x in detections]), detections)
        _, losses = super().forward(images, features, proposals, targets)
        return detections, losses

    def _predicted(self, features: dict[str, torch.Tensor], proposals: list[Instances]) -> list[Instances]:
        """What the box head finds now."""
        proposals = [x[: self.train_proposals] for x in proposals]  # best first
        pooled = self.box_pooler(
            [features[f] for f in self.box_in_features], [x.proposal_boxes for x in proposals]
        )
        predictor = self.box_predictor
        predictions = predictor(self.box_head(pooled))
        detections, _ = fast_rcnn_inference(
            [boxes.detach() for boxes in predictor.predict_boxes(predictions, proposals)],
            predictor.predict_probs(predictions, proposals),
            [x.image_size for x in proposals],
            self.train_score_thresh,
            predictor.test_nms_thresh,
            self.train_topk,
        )
        return detections

    def _forward_mask(self, features: dict[str, torch.Tensor], instances: list[Instances]):
        if not (self.training and self.mask_on and self.mask_loss == "lovasz_hinge"):
            return super()._forward_mask(features, instances)
        instances, _ = select_foreground_proposals(instances, self.num_classes)
        logits = self._mask_logits(features, [x.proposal_boxes for x in instances])
        return {"loss_mask": lovasz_mask_loss(logits, instances) * self.mask_head.loss_weight}

    def _mask_logits(self, features: dict[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """(D, classes, M, M) of D boxes in all."""
        return self.mask_head.layers(self.mask_pooler([features[f] for f in self.mask_in_features], boxes))


def _true_detections(targets: Instances) -> Instances:
    """One image's ground truth as detections of score 1."""
    return Instances(
        targets.image_size,
        pred_boxes=targets.gt_boxes,
        scores=torch.ones_like(targets.gt_classes, dtype=torch.float32),
        pred_classes=targets.gt_classes,
    )
