"""The panoptic model: Detectron2's PanopticFPN with inter-modular attention between its branches."""

from contextlib import AbstractContextManager

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.choice import check_complete
from auto_panoptic.modeling.exportable import fields_of, visible
from auto_panoptic.modeling.fusion import check_method, combine, semantic_labels
from auto_panoptic.modeling.searchable import detections_from
from auto_panoptic.modeling.targets import padded_labels, training_targets
from auto_panoptic.modeling.traced_fusion import merged

from .attention import CrossAttention


@META_ARCH_REGISTRY.register()
class AutoPanopticFPN(PanopticFPN):
    """Backbone and FPN -> semantic subnet -> attention both ways -> RPN, box, mask and semantic outputs.

    The semantic subnet reads the raw FPN features F. RPN, box and mask heads read F' = (1 + a_b2f) F, the
    classifier reads S' = (1 + a_f2b) S. Without attention F' = F and S' = S, and any of Detectron2's semantic
    heads will do.
    """

    @configurable
    def __init__(
        self,
        *,
        attention: CrossAttention | None = None,
        combine_method: str = "detectron2",
        combine_high_score_thresh: float = 0.725,
        combine_instance_area_limit: int = 4096,
        **kwargs,
    ):
        """
        Args:
            attention: the inter-modular attention, or None to leave the features as they are.
            combine_method, combine_high_score_thresh, combine_instance_area_limit: ``method``, ``high_score``
                and ``instance_area`` of :func:`auto_panoptic.modeling.fusion.combine`.
            kwargs: those of :class:`detectron2.modeling.PanopticFPN`. With attention, ``sem_seg_head`` offers
                ``subnet`` and ``predict`` as :class:`SearchableSemSegFPNHead` does.
        """
        super().__init__(**kwargs)
        check_method(combine_method)
        self.register_load_state_dict_post_hook(check_complete)
        self.attention = attention
        self.combine_method = combine_method
        self.combine_high_score_thresh = combine_high_score_thresh
        self.combine_instance_area_limit = combine_instance_area_limit

    @classmethod
    def from_config(cls, cfg):
        ret = super().from_config(cfg)
        merging = cfg.MODEL.PANOPTIC_FPN.COMBINE
        ret["combine_method"] = merging.METHOD
        ret["combine_high_score_thresh"] = merging.HIGH_CONFIDENCE_THRESH
        ret["combine_instance_area_limit"] = merging.INSTANCE_AREA_LIMIT
        ret["attention"] = None
        if cfg.MODEL.CROSS_ATTENTION.ENABLED:
            head = ret["sem_seg_head"]
            if not (hasattr(head, "subnet") and hasattr(head, "predict")):
                raise UserError(
                    f"MODEL.SEM_SEG_HEAD.NAME is {cfg.MODEL.SEM_SEG_HEAD.NAME!r}, which takes no attention; "
                    "use SearchableSemSegFPNHead, or MODEL.CROSS_ATTENTION.ENABLED False"
                )
            shapes = ret["backbone"].output_shape()
            ret["attention"] = CrossAttention(
                cfg,
                foreground_channels={name: shapes[name].channels for name in cfg.MODEL.RPN.IN_FEATURES},
                background_channels={name: head.conv_dim for name in head.in_features},
            )
        return ret

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as for :class:`detectron2.modeling.PanopticFPN`: "image" (C, H, W), in training
                "instances" (possibly empty) and "sem_seg" (H, W) labels, optionally "height" and "width"
                of the output.

        Returns:
            In training a dict of losses (scalars). In inference one dict per image with "sem_seg"
            (K, height, width) logits, "instances", and "panoptic_seg": a (height, width) map of segment ids
            and the list of segments.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        instances, labels = training_targets(self, batched_inputs)
        labels = padded_labels(self.backbone, labels, self.sem_seg_head.ignore_value)

        features, subnet_features, gates = self.attended_features(images.tensor)
        proposals, proposal_losses = self.proposal_generator(images, features, instances)
        _, detector_losses = self.roi_heads(images, features, proposals, instances)
        _, sem_seg_losses = self._semantic(features, subnet_features, gates, labels)
        return {**sem_seg_losses, **proposal_losses, **detector_losses}

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True):
        """Run the model on images.

        Args:
            batched_inputs: as for :meth:`forward`.
            do_postprocess: merge the branches and resize to the output size.

        Returns:
            As :meth:`forward` in inference; without post-processing (list of Instances, (N, K, H, W) logits).
        """
        images = self.preprocess_image(batched_inputs)
        features, subnet_features, gates = self.attended_features(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        sem_seg, _ = self._semantic(features, subnet_features, gates)
        if not do_postprocess:
            return detections, sem_seg
        return [
            self._merge(*result)
            for result in zip(detections, sem_seg, batched_inputs, images.image_sizes, strict=True)
        ]

    def panoptic_only(self) -> AbstractContextManager[None]:
        """Context in which detections that the merging ignores are dropped before their masks are computed.

        Non-maximum suppression and the merging go from high to low scores: the panoptic maps stay the same.
        """
        return detections_from(self.roi_heads, self.combine_instances_score_thresh)

    def attended_features(self, images: torch.Tensor):
        """Backbone, FPN, subnet and attention.

        Args:
            images: (N, 3, H, W), normalised and padded.

        Returns:
            F' per FPN level, raw S per semantic level, and the gates to be applied to S; without attention F,
            None and None.
        """
        features = self.backbone(images)
        if self.attention is None:
            return features, None, None
        f2b_gates = self.attention.foreground_to_background(features)
        subnet_features = self.sem_seg_head.subnet(features)
        b2f_gates = self.attention.background_to_foreground(subnet_features)
        return self.attention.apply_gates(features, b2f_gates), subnet_features, f2b_gates

    def _semantic(self, features, subnet_features, gates, labels: torch.Tensor | None = None):
        """(logits, losses) of the semantic head from the result of :meth:`attended_features`."""
        head = self.sem_seg_head
        if self.attention is None:
            return head(features, labels)
        return head.predict(subnet_features, gates, labels)

    def _merge(self, detections, logits: torch.Tensor, inputs: dict, image_size: tuple[int, int]) -> dict:
        """Resize one image's outputs to the requested size and merge them."""
        height, width = inputs.get("height", image_size[0]), inputs.get("width", image_size[1])
        sem_seg = sem_seg_postprocess(logits, image_size, height, width)
        instances = detector_postprocess(detections, height, width)
        labels = semantic_labels(self.combine_method, logits, image_size, sem_seg)
        panoptic_seg = combine(self.combine_method, instances, labels, **self._merging())
        return {"sem_seg": sem_seg, "instances": instances, "panoptic_seg": panoptic_seg}

    def tensors(self, image: torch.Tensor, merge: bool = True) -> dict[str, torch.Tensor]:
        """As :func:`auto_panoptic.modeling.exportable.tensors` says, masks as the mask head gives them."""
        detections, logits = self.inference([{"image": image}], do_postprocess=False)
        found = fields_of(visible(detections[0]))
        found["sem_seg"] = sem_seg = logits[0, :, : image.shape[-2], : image.shape[-1]]
        if merge:
            found["panoptic_seg"], found["segments"] = merged(
                self.combine_method,
                *(found[name] for name in ("pred_boxes", "pred_masks", "scores", "pred_classes")),
                sem_seg.max(dim=0).indices,
                self.sem_seg_head.predictor.out_channels,
                **self._merging(),
            )
        return found

    def _merging(self) -> dict[str, float]:
        """The thresholds of :func:`combine`."""
        return {
            "overlap": self.combine_overlap_thresh,
            "stuff_area": self.combine_stuff_area_thresh,
            "score": self.combine_instances_score_thresh,
            "high_score": self.combine_high_score_thresh,
            "instance_area": self.combine_instance_area_limit,
        }
