"""Panoptic-DeepLab: backbone, semantic branch, branch of centres and offsets; pixels are grouped by them."""

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import nn

from auto_panoptic.errors import UserError
from auto_panoptic.modeling.backbones.builders import norm_name
from auto_panoptic.modeling.choice import check_complete

from .heads import AutoPanopticDeepLabInsEmbedHead, AutoPanopticDeepLabSemSegHead
from .post_processing import instances_of, panoptic_segmentation
from .traced_post_processing import traced_segmentation
from .upstream import PanopticDeepLab, build_ins_embed_branch

__all__ = ["AutoPanopticDeepLab"]

_TARGETS = ("sem_seg", "center", "center_weights", "offset", "offset_weights")


@META_ARCH_REGISTRY.register()
class AutoPanopticDeepLab(PanopticDeepLab):
    """Detectron2's Panoptic-DeepLab with searched convolutions, and with what its supplement varies.

    The same losses and maps for the same weights. Labels: every class has its own, things come first.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        ins_embed_head: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        things: int,
        stuff_area: int = 2048,
        threshold: float = 0.1,
        nms_kernel: int = 7,
        top_k: int = 200,
        size_divisibility: int = -1,
        predict_instances: bool = True,
        instance_score: str = "product",
        objectness_at: str = "centroid",
        rescale_offsets: bool = False,
    ):
        """
        Args:
            backbone, sem_seg_head, ins_embed_head: the network.
            pixel_mean, pixel_std: one number for each channel of an image.
            things: how many classes are things; their labels are 0, 1, ...
            stuff_area, threshold, nms_kernel, top_k: see :func:`panoptic_segmentation`.
            size_divisibility: images are padded to a multiple of it; -1: of the backbone's.
            predict_instances: whether outputs have instances, for AP.
            instance_score, objectness_at: see :func:`instances_of`.
            rescale_offsets: scale offsets to pixels of the output.
        """
        nn.Module.__init__(self)  # Detectron2's takes a config
        self.register_load_state_dict_post_hook(check_complete)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.ins_embed_head = ins_embed_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.things = things
        self.grouping = {
            "stuff_area": stuff_area,
            "threshold": threshold,
            "nms_kernel": nms_kernel,
            "top_k": top_k,
        }
        self.size_divisibility = size_divisibility if size_divisibility > 0 else backbone.size_divisibility
        self.predict_instances = predict_instances
        self.instance_score = instance_score
        self.objectness_at = objectness_at
        self.rescale_offsets = rescale_offsets

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node, backbone = cfg.MODEL.PANOPTIC_DEEPLAB, build_backbone(cfg)
        shapes = backbone.output_shape()
        parts = {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shapes),
            "ins_embed_head": build_ins_embed_branch(cfg, shapes),
        }
        _check_type("MODEL.SEM_SEG_HEAD.NAME", parts["sem_seg_head"], AutoPanopticDeepLabSemSegHead)
        _check_type("MODEL.INS_EMBED_HEAD.NAME", parts["ins_embed_head"], AutoPanopticDeepLabInsEmbedHead)
        if node.PREDICT_INSTANCES:
            parts["instance_score"] = node.INSTANCE_SCORE
            if node.INSTANCE_SCORE != "class":
                parts["objectness_at"] = node.OBJECTNESS_AT
        if norm_name(cfg, "SyncBN") == "BN":
            for part in parts.values():
                if isinstance(part, nn.Module):
                    _unsynchronise(part)
        return parts | {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "things": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "stuff_area": node.STUFF_AREA,
            "threshold": node.CENTER_THRESHOLD,
            "nms_kernel": node.NMS_KERNEL,
            "top_k": node.TOP_K_INSTANCE,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "predict_instances": node.PREDICT_INSTANCES,
            "rescale_offsets": node.RESCALE_OFFSETS,
        }

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: dicts with "image" (C, H, W). In training with the targets of
                :class:`detectron2.projects.panoptic_deeplab.PanopticDeeplabDatasetMapper`; in inference
                "height" and "width" are the size of the output, that of the image by default.

        Returns:
            In training a dict of losses (scalars). In inference one dict per image with "sem_seg"
            (K, height, width) logits, "panoptic_seg": a (height, width) map of segment ids and the list of
            segments, and "instances", the things of that map.
        """
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Losses of semantic labels, centres and offsets.

        Raises:
            UserError: an image has no targets.
        """
        for key in _TARGETS:
            if any(key not in x for x in batched_inputs):
                raise UserError(
                    f"a training image comes without {key!r}; leave INPUT.DATASET_MAPPER_NAME empty, or name "
                    "a mapper that makes the targets of Panoptic-DeepLab"
                )
        # Logits are upsampled by a whole number: targets are padded to a multiple of it.
        step = math.lcm(max(self.size_divisibility, 1), self.sem_seg_head.common_stride)

        def padded(key: str, value: float = 0) -> torch.Tensor:
            tensors = [x[key].to(self.device) for x in batched_inputs]
            return ImageList.from_tensors(tensors, step, value).tensor

        features = self.backbone(self._images(batched_inputs, step).tensor)
        weighted = all("sem_seg_weights" in x for x in batched_inputs)
        weights = padded("sem_seg_weights") if weighted else None
        labels = padded("sem_seg", self.sem_seg_head.ignore_value)
        _, losses = self.sem_seg_head(features, labels, weights)
        *_, center, offset = self.ins_embed_head(
            features,
            padded("center")[:, None],
            padded("center_weights"),
            padded("offset"),
            padded("offset_weights"),
        )
        return {**losses, **center, **offset}

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Outputs of :meth:`forward`."""
        images = self._images(batched_inputs, self.size_divisibility)
        maps = self._maps(images)
        outputs = []
        for inputs, size, *image in zip(batched_inputs, images.image_sizes, *maps, strict=True):
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            logits, heatmap, offsets = (sem_seg_postprocess(x.float(), size, height, width) for x in image)
            if self.rescale_offsets:
                offsets = offsets * offsets.new_tensor([height / size[0], width / size[1]])[:, None, None]
            panoptic, segments, _ = panoptic_segmentation(
                logits.argmax(dim=0), heatmap, offsets, range(self.things), **self.grouping
            )
            output = {"sem_seg": logits, "panoptic_seg": (panoptic, segments)}
            if self.predict_instances:
                output["instances"] = instances_of(
                    panoptic,
                    segments,
                    logits.softmax(dim=0),
                    heatmap,
                    self.instance_score,
                    self.objectness_at,
                )
            outputs.append(output)
        return outputs

    def tensors(self, image: torch.Tensor, merge: bool = True) -> dict[str, torch.Tensor]:
        """As :func:`auto_panoptic.modeling.exportable.tensors` says; "center" and "offset" are the maps."""
        images = self._images([{"image": image}], self.size_divisibility)
        cropped = (x[0, :, : image.shape[-2], : image.shape[-1]].float() for x in self._maps(images))
        found = dict(zip(("sem_seg", "center", "offset"), cropped, strict=True))
        if merge:
            logits, heatmap, offsets = found.values()
            found["panoptic_seg"], found["segments"] = traced_segmentation(
                logits.max(dim=0).indices, heatmap, offsets, range(self.things), len(logits), **self.grouping
            )
        return found

    def _images(self, batched_inputs: list[dict], size_divisibility: int) -> ImageList:
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, size_divisibility)

    def _maps(self, images: ImageList) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, K, ...) logits, (N, 1, ...) heatmap, (N, 2, ...) offsets, not smaller than the images."""
        features = self.backbone(images.tensor)
        logits, _ = self.sem_seg_head(features)
        heatmap, offsets, *_ = self.ins_embed_head(features)
        return logits, heatmap, offsets

    @contextlib.contextmanager
    def panoptic_only(self) -> Iterator[None]:
        """Context in which no instances are made of the panoptic maps."""
        with mock.patch.object(self, "predict_instances", False):
            yield

    @torch.no_grad()
    def dry_run(self, size: tuple[int, int]) -> None:
        """Run every layer once, in evaluation mode."""
        self._maps(self._images([{"image": torch.zeros(3, *size)}], self.size_divisibility))


def _unsynchronise(part: nn.Module) -> None:
    """Make every SyncBatchNorm a BatchNorm, in place: PyTorch trains the former on GPUs only."""
    for layer in part.modules():
        if type(layer) is nn.SyncBatchNorm:  # a subclass may do more
            layer.__class__ = nn.BatchNorm2d  # its attributes and weights; what refers to it keeps it


def _check_type(key: str, part: nn.Module, expected: type) -> None:
    if not isinstance(part, expected):
        raise UserError(
            f"{key} is {type(part).__name__!r}, which does not fit MODEL.META_ARCHITECTURE "
            f"AutoPanopticDeepLab; add {key} {expected.__name__}"
        )
