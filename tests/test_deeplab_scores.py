"""Instance scores of the whole network: they rank instances, and change nothing else."""

import pytest
import torch
from deeplab_util import FIXED, answer, deeplab_cfg, scene
from detectron2.modeling import build_model

SCORES = ("objectness", "class", "product")


@pytest.mark.parametrize("place", ["centroid", "center"])
def test_scores_leave_maps_and_labels_as_they_are(place):
    """Maps and logits, of which PQ and mIoU are made, are equal; "product" is that of the two others."""
    torch.manual_seed(0)
    model = answer(build_model(deeplab_cfg(*FIXED)))
    model.objectness_at = place
    outputs = {}
    for score in SCORES:
        model.instance_score = score
        with torch.no_grad():
            (outputs[score],) = model([{k: scene()[k] for k in ("image", "height", "width")}])
    first, *others = outputs.values()
    assert len(first["instances"]) > 1
    for other in others:
        assert torch.equal(other["panoptic_seg"][0], first["panoptic_seg"][0])
        assert other["panoptic_seg"][1] == first["panoptic_seg"][1]
        assert torch.equal(other["sem_seg"], first["sem_seg"])
        for field in ("pred_masks", "pred_classes"):
            assert torch.equal(other["instances"].get(field), first["instances"].get(field))
    objectness, likely, product = (outputs[score]["instances"].scores for score in SCORES)
    assert torch.equal(product, likely * objectness)
    assert not torch.equal(product, likely) and not torch.equal(product, objectness)
