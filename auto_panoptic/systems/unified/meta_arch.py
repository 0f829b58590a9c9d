"""The unified network: backbone, semantic, detection and panoptic submodule, trained as it is used."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_sem_seg_head
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import nn
from torch.nn import functional as F

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.choice import check_complete
from auto_panoptic.modeling.exportable import fields_of, visible
from auto_panoptic.modeling.searchable import all_regions, detections_from
from auto_panoptic.modeling.targets import padded_labels, training_targets

from .affinity import DenseAffinity, affinity
from .heads import AffinityHead, UnifiedSemSegHead
from .panoptic_loss import match_detections, panoptic_loss, panoptic_targets
from .panoptic_map import best_channels, heuristic_map, panoptic_map, traced_heuristic_map, traced_map
from .potential import PotentialHead
from .roi_heads import UnifiedROIHeads

__all__ = ["UnifiedPanoptic"]


@META_ARCH_REGISTRY.register()
class UnifiedPanoptic(GeneralizedRCNN):
    """Semantic probabilities V and detections make the potential Psi; affinities spread it (supplement A).

    The panoptic logits have a channel for each class of stuff and each detection of the image. They are
    trained as they are used: the panoptic map is their argmax.
    """

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: UnifiedSemSegHead,
        potential: PotentialHead,
        affinity_head: AffinityHead | None = None,
        affinity: DenseAffinity | None = None,
        panoptic_loss: str = "cross_entropy",
        panoptic_loss_weight: float = 0.1,
        score_thresh: float = 0.75,
        merging: Mapping | None = None,
        **kwargs,
    ):
        """
        Args:
            sem_seg_head: semantic submodule.
            potential: makes the potential.
            affinity_head: gives the affinity features Q; None: the logits are the potential.
            affinity: spreads the potential by them.
            panoptic_loss: "cross_entropy" or "lovasz_softmax".
            panoptic_loss_weight: its factor.
            score_thresh: lowest score of a detection that takes part in inference.
            merging: keyword arguments of :func:`auto_panoptic.modeling.fusion.combine`, to merge masks and
                semantic labels by it in inference; None: the panoptic map is the argmax of the logits.
            kwargs: those of :class:`GeneralizedRCNN`; ``roi_heads`` are :class:`UnifiedROIHeads`.
        """
        super().__init__(**kwargs)
        self.register_load_state_dict_post_hook(check_complete)
        self.sem_seg_head = sem_seg_head
        self.potential = potential
        self.affinity_head = affinity_head
        self.affinity = affinity
        self.panoptic_loss = panoptic_loss
        self.panoptic_loss_weight = panoptic_loss_weight
        self.score_thresh = score_thresh
        self.merging = merging
        self.things = self.roi_heads.num_classes
        self.classes = sem_seg_head.predictor.out_channels

    @classmethod
    def from_config(cls, cfg):
        ret, node = super().from_config(cfg), cfg.MODEL.UNIFIED
        shapes = ret["backbone"].output_shape()
        ret["sem_seg_head"] = build_sem_seg_head(cfg, shapes)
        _check_type("MODEL.SEM_SEG_HEAD.NAME", ret["sem_seg_head"], UnifiedSemSegHead)
        _check_type("MODEL.ROI_HEADS.NAME", ret["roi_heads"], UnifiedROIHeads)
        if node.AFFINITY.ENABLED:
            ret["affinity_head"] = AffinityHead(cfg, shapes)
            ret["affinity"] = DenseAffinity(node.AFFINITY.RESIDUAL, node.AFFINITY.NORMALISE)
        stuff = range(cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        ret["potential"] = PotentialHead(
            node.POTENTIAL, stuff, cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE, node.GLOBAL_TERM
        )
        ret["panoptic_loss"] = node.LOSS.PANOPTIC
        ret["panoptic_loss_weight"] = node.LOSS.PANOPTIC_WEIGHT
        if node.INFERENCE == "panoptic":
            ret["score_thresh"] = node.SCORE_THRESH_TEST
        else:
            ret["merging"] = _merging(cfg.MODEL.PANOPTIC_FPN.COMBINE)
        return ret

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: as for :class:`detectron2.modeling.PanopticFPN`, with labels of all classes,
                things first.

        Returns:
            In training a dict of losses (scalars). In inference one dict per image with "sem_seg"
            (K, height, width) logits, "instances" (all detections), and "panoptic_seg": a (height, width) map
            of segment ids and the list of segments.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        instances, labels = training_targets(self, batched_inputs)
        labels = padded_labels(self.backbone, labels, self.sem_seg_head.ignore_value)

        features = self.backbone(images.tensor)
        semantic = self.sem_seg_head.decode(features)
        losses = self.sem_seg_head.losses(semantic, labels)
        proposals, proposal_losses = self.proposal_generator(images, features, instances)
        detections, detector_losses = self.roi_heads(images, features, proposals, instances)
        logits = self.panoptic_logits(features, semantic, detections)
        loss = panoptic_loss(logits, self._targets(detections, instances, labels), self.panoptic_loss)
        losses["loss_panoptic"] = loss * self.panoptic_loss_weight
        return {**losses, **proposal_losses, **detector_losses}

    def _targets(
        self, detections: Sequence[Instances], truth: Sequence[Instances], labels: torch.Tensor
    ) -> list[torch.Tensor]:
        """For each image the channel that every pixel of the logits should choose."""
        stride, targets = self.sem_seg_head.common_stride, []
        for found, instances, label in zip(detections, truth, labels, strict=True):
            matches = match_detections(found.pred_boxes.tensor, found.pred_classes, instances)
            targets.append(panoptic_targets(label, instances, matches, self.potential.stuff, stride))
        return targets

    def panoptic_logits(
        self, features: Mapping[str, torch.Tensor], semantic: torch.Tensor, detections: Sequence[Instances]
    ) -> list[torch.Tensor]:
        """The panoptic logits of each image, Psi spread by the affinities, at the semantic head's stride.

        Args:
            features: of the backbone.
            semantic: (N, K, h, w) logits from the semantic head's ``decode``.
            detections: per image D in pixels of the input; "pred_masks" (D, 1, M, M) probabilities.

        Returns:
            For each image (N_st + D, h, w): stuff by ascending label, then the detections.
        """
        potentials = [self.potential(*image) for image in zip(semantic, detections, strict=True)]
        if self.affinity is None:
            return potentials
        q = self.affinity_head(features)
        return [self.affinity(*image) for image in zip(potentials, q, strict=True)]

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True):
        """Run the model on images.

        Args:
            batched_inputs: as for :meth:`forward`.
            do_postprocess: make the panoptic maps and resize to the output size.

        Returns:
            As :meth:`forward` in inference; without post-processing (list of Instances, (N, K, H, W) logits).
        """
        images = self.preprocess_image(batched_inputs)
        features, semantic, detections = self._parts(images)
        resized = self.sem_seg_head.upsample(semantic)
        if not do_postprocess:
            return detections, resized
        sizes = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        detections = [_visible(x, size) for x, size in zip(detections, sizes, strict=True)]
        if self.merging is None:
            panoptic = self._panoptic(features, semantic, detections, sizes)
        outputs = []
        for i, (size, image_size) in enumerate(zip(sizes, images.image_sizes, strict=True)):
            sem_seg = sem_seg_postprocess(resized[i], image_size, *size)
            instances = detector_postprocess(detections[i], *size)
            if self.merging is None:
                merged = panoptic[i]
            else:
                merged = heuristic_map(
                    instances, resized[i], image_size, sem_seg, self.things, **self.merging
                )
            outputs.append({"sem_seg": sem_seg, "instances": instances, "panoptic_seg": merged})
        return outputs

    def tensors(self, image: torch.Tensor, merge: bool = True) -> dict[str, torch.Tensor]:
        """As :func:`auto_panoptic.modeling.exportable.tensors` says, masks as the mask head gives them."""
        images = self.preprocess_image([{"image": image}])
        features, semantic, detections = self._parts(images)
        kept, size = visible(detections[0]), image.shape[-2:]
        found = fields_of(kept)
        found["sem_seg"] = sem_seg = self.sem_seg_head.upsample(semantic)[0, :, : size[0], : size[1]]
        if merge and self.merging is None:
            chosen = kept[torch.nonzero(kept.scores >= self.score_thresh)[:, 0]]
            logits = self.panoptic_logits(features, semantic, [chosen])[0]
            stride = self.sem_seg_head.common_stride
            found["panoptic_seg"], found["segments"] = traced_map(
                logits, stride, size, self.things, self.classes, chosen.pred_classes
            )
        elif merge:
            found["panoptic_seg"], found["segments"] = traced_heuristic_map(
                found, sem_seg, self.things, **self.merging
            )
        return found

    @torch.no_grad()
    def affinity_of(self, inputs: dict, points: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Instance affinities of some pixels: how much every other counts in their panoptic logits (Fig. B).

        Args:
            inputs: an image, as for :meth:`forward`.
            points: P pixels of the output as (x, y).

        Returns:
            (P, height, width): rows of A, which sum to 1 before they are resized.

        Raises:
            UserError: the network has no affinities.
        """
        if self.affinity is None:
            raise UserError("the network has no affinities; add MODEL.UNIFIED.AFFINITY.ENABLED True")
        images = self.preprocess_image([inputs])
        q = self.affinity_head(self.backbone(images.tensor))[0]
        image_size, stride = images.image_sizes[0], images.tensor.shape[-1] // q.shape[-1]
        size = inputs.get("height", image_size[0]), inputs.get("width", image_size[1])
        scale = torch.tensor([image_size[1] / size[1], image_size[0] / size[0]])
        columns, rows = ((torch.tensor(points) + 0.5) * scale / stride).long().t().to(q.device)
        maps = affinity(q[:, rows, columns].t(), q.flatten(1), self.affinity.normalise).view(-1, *q.shape[1:])
        maps = F.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)[0]
        return sem_seg_postprocess(maps, image_size, *size)

    def _parts(self, images: ImageList):
        """Features of the backbone, semantic logits (N, K, h, w), detections of each image."""
        features = self.backbone(images.tensor)
        semantic = self.sem_seg_head.decode(features)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        return features, semantic, detections

    def _panoptic(
        self,
        features: Mapping[str, torch.Tensor],
        semantic: torch.Tensor,
        detections: Sequence[Instances],
        sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[torch.Tensor, list[dict]]]:
        """The panoptic map and segments of each image, of the detections with scores high enough."""
        numbers = [torch.nonzero(x.scores >= self.score_thresh)[:, 0] for x in detections]
        chosen = [x[index] for x, index in zip(detections, numbers, strict=True)]
        stride, maps = self.sem_seg_head.common_stride, []
        for i, logits in enumerate(self.panoptic_logits(features, semantic, chosen)):
            if len(logits):
                best = best_channels(logits, stride, chosen[i].image_size, sizes[i])
                maps.append(panoptic_map(best, self.things, self.classes, chosen[i], numbers[i].tolist()))
            else:  # neither stuff classes nor detections
                maps.append((torch.zeros(sizes[i], dtype=torch.int32, device=logits.device), []))
        return maps

    def panoptic_only(self) -> AbstractContextManager[None]:
        """Context in which detections that the panoptic maps ignore are dropped before their masks."""
        score = self.score_thresh if self.merging is None else self.merging["score"]
        return detections_from(self.roi_heads, score)

    @torch.no_grad()
    def dry_run(self, size: tuple[int, int]) -> None:
        """Run every layer once; as many detections as the limit allows take part in the panoptic logits."""
        images = self.preprocess_image([{"image": torch.zeros(3, *size, device=self.device)}])
        with all_regions():
            parts = self._parts(images)
            if self.merging is None:
                self.panoptic_logits(*parts)


def _check_type(key: str, part: nn.Module, expected: type) -> None:
    if not isinstance(part, expected):
        raise UserError(
            f"{key} is {type(part).__name__!r}, which does not fit MODEL.META_ARCHITECTURE UnifiedPanoptic; "
            f"add {key} {expected.__name__}"
        )


def _merging(node) -> dict:
    """The keys of MODEL.PANOPTIC_FPN.COMBINE as arguments of ``combine``."""
    return {
        "method": node.METHOD,
        "overlap": node.OVERLAP_THRESH,
        "stuff_area": node.STUFF_AREA_LIMIT,
        "score": node.INSTANCES_CONFIDENCE_THRESH,
        "high_score": node.HIGH_CONFIDENCE_THRESH,
        "instance_area": node.INSTANCE_AREA_LIMIT,
    }


def _visible(detections: Instances, size: tuple[int, int]) -> Instances:
    """The detections whose boxes are not empty in an output of (height, width) ``size``."""
    height, width = detections.image_size
    boxes = detections.pred_boxes.clone()
    boxes.scale(size[1] / width, size[0] / height)
    boxes.clip(size)
    return detections[boxes.nonempty()]
