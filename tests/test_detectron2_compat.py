"""Detectron2's own v0.6 behaviour, as installed: what the fix-ups repair must work, with exact results."""

import importlib
import json
import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from detectron2 import _C, model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.common import MapDataset
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from PIL import Image

pytestmark = pytest.mark.install
OURS = getattr(_C, "IS_SUBSTITUTE", False) is True
OURS_ERROR = "error" if OURS else "default"  # of a compiled build, warnings are its own matter
ours = pytest.mark.skipif(not OURS, reason="the installed Detectron2 is a compiled build")


@pytest.fixture(autouse=True)
def messages_reach_caplog(monkeypatch):
    """Detectron2's setup_logger, which other tests may have called, cuts its logger off."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)


@pytest.fixture
def catalog():
    """Registers data sets for one test: catalog(name, function, **metadata)."""
    names = []

    def register(name, function, **metadata):
        DatasetCatalog.register(name, function)
        names.append(name)
        return MetadataCatalog.get(name).set(**metadata)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_map_dataset_falls_back_to_another_element_when_the_mapper_returns_none():
    dataset = MapDataset(list(range(6)), lambda x: None if x % 2 else 10 * x)
    values = [dataset[i] for i in range(6)]
    assert values[::2] == [0, 20, 40]
    assert set(values[1::2]) <= {0, 20, 40}
    again = MapDataset(list(range(6)), lambda x: None if x % 2 else 10 * x)
    assert [again[i] for i in range(6)] == values


def test_environment_report_names_the_installation():
    from detectron2.utils.collect_env import collect_env_info

    report = collect_env_info()
    assert torch.__version__ in report and np.__version__ in report
    if OURS:
        assert "none (installed without the compiled extension)" in report


def test_semantic_evaluator_counts_pixels(tmp_path, catalog):
    """Two classes, four pixels: class 0 has IoU 1/2, class 1 has 2/3."""
    Image.fromarray(np.array([[0, 0], [1, 1]], dtype=np.uint8)).save(tmp_path / "gt.png")
    Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    files = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "gt.png")}
    catalog("compat_sem_seg", lambda: [files], stuff_classes=["a", "b"], ignore_label=255)
    evaluator = SemSegEvaluator("compat_sem_seg", distributed=False)
    evaluator.reset()
    prediction = torch.tensor([[0, 1], [1, 1]])
    evaluator.process([files], [{"sem_seg": torch.nn.functional.one_hot(prediction, 2).permute(2, 0, 1)}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["IoU-a"] == pytest.approx(50.0) and result["IoU-b"] == pytest.approx(200 / 3)
    assert result["mIoU"] == pytest.approx(175 / 3) and result["pACC"] == pytest.approx(75.0)


def test_polygons_become_masks():
    from detectron2.structures.masks import polygons_to_bitmask

    square = polygons_to_bitmask([np.array([1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0])], 5, 6)
    expected = np.zeros((5, 6), dtype=bool)
    expected[1:3, 1:4] = True
    assert square.dtype == bool and np.array_equal(square, expected)
    assert not polygons_to_bitmask([], 5, 6).any()
    masks = PolygonMasks([[np.array([1.0, 1, 4, 1, 4, 3])], []])
    assert masks.nonempty().tolist() == [True, False]
    assert BitMasks(torch.as_tensor(square)[None]).get_bounding_boxes().tensor.tolist() == [[1, 1, 4, 3]]


def coco_file(path):
    box = [2.0, 3.0, 10.0, 8.0]
    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 11.0, 2.0, 11.0]
    data = {
        "info": {},
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}],
        "categories": [{"id": 7, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": box, "area": 80.0, "iscrowd": 0}
            | {"segmentation": [polygon]}
        ],
    }
    path.write_text(json.dumps(data))
    return box


def test_coco_evaluator_works_with_its_defaults(tmp_path, catalog, caplog):
    """use_fast_impl=True is the default, and the fast implementation is compiled code: it must fall back."""
    x, y, w, h = coco_file(tmp_path / "gt.json")
    catalog(
        "compat_coco",
        list,
        json_file=str(tmp_path / "gt.json"),
        thing_classes=["thing"],
        thing_dataset_id_to_contiguous_id={7: 0},
        evaluator_type="coco",
    )
    evaluator = COCOEvaluator("compat_coco", distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[:, 3:11, 2:12] = True
    instances = Instances((20, 20), scores=torch.tensor([0.9]), pred_classes=torch.tensor([0]))
    instances.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]]))
    instances.pred_masks = mask
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    with caplog.at_level("INFO"):
        results = evaluator.evaluate()
    assert not OURS or "with official COCO API" in caplog.text
    assert results["bbox"]["AP"] == pytest.approx(100.0) and results["segm"]["AP"] == pytest.approx(100.0)


def test_model_zoo_finds_its_configs():
    path = model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    cfg = get_cfg()
    cfg.merge_from_file(path)  # reads ../Base-Panoptic-FPN.yaml, too
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and cfg.MODEL.RESNETS.DEPTH == 50
    with pytest.raises(RuntimeError, match="not available in Model Zoo"):
        model_zoo.get_config_file("no/such.yaml")


def test_panoptic_fpn_of_the_model_zoo_builds_and_infers():
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    assert model.backbone.size_divisibility == 32
    assert tuple(model.sem_seg_head.predictor.weight.shape) == (54, 128, 1, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(OURS_ERROR)  # nothing that warns at every iteration
        image = torch.zeros(3, 64, 96)
        (out,) = model([{"image": image, "height": 32, "width": 48}])
    assert tuple(out["sem_seg"].shape) == (54, 32, 48)
    assert tuple(out["panoptic_seg"][0].shape) == (32, 48)


def test_visualizer_draws_masks_boxes_and_panoptic_maps(catalog):
    from detectron2.utils.visualizer import Visualizer

    metadata = catalog("compat_visualizer", list, thing_classes=["t"], stuff_classes=["s"])
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    seg = torch.ones(40, 60, dtype=torch.int32)
    seg[:, 30:] = 2
    info = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9},
        {"id": 2, "category_id": 0, "isthing": False, "area": 1200},
    ]
    drawn = Visualizer(image, metadata).draw_panoptic_seg_predictions(seg, info).get_image()
    assert drawn.shape == image.shape and drawn.any()


@pytest.mark.parametrize("name", ["point_rend", "deeplab", "panoptic_deeplab"])
def test_projects_are_importable(name):
    module = importlib.import_module(f"detectron2.projects.{name}")
    assert getattr(
        module, {"point_rend": "PointRendMaskHead", "deeplab": "DeepLabV3Head"}.get(name, "PanopticDeepLab")
    )


def test_every_module_imports_without_a_warning_that_users_see():
    """In a fresh process: FutureWarning and UserWarning are shown by default, so there must be none."""
    code = (
        "import warnings; warnings.simplefilter('error', FutureWarning); "
        "warnings.simplefilter('error', UserWarning)\n"
        "import detectron2, detectron2.modeling, detectron2.engine, detectron2.evaluation, detectron2.data\n"
        "import detectron2.model_zoo, detectron2.export, detectron2.utils.analysis\n"
        "import detectron2.utils.visualizer, detectron2.utils.video_visualizer"
    )
    if not OURS:
        pytest.skip("the installed Detectron2 is a compiled build")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tracing_adapter_needs_no_caffe2():
    from detectron2.export import TracingAdapter, scripting_with_instances

    adapter = TracingAdapter(torch.nn.Identity(), (torch.ones(2),))
    torch.testing.assert_close(adapter(torch.arange(2.0))[0], torch.arange(2.0))
    assert callable(scripting_with_instances)


def test_box_transform_is_still_a_scriptable_class():
    from detectron2.modeling.box_regression import Box2BoxTransform

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))

        def forward(self, deltas, boxes):
            return self.transform.apply_deltas(deltas, boxes)

    boxes = torch.tensor([[0.0, 0.0, 4.0, 2.0]])
    deltas = torch.tensor([[0.5, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[2.0, 0.0, 6.0, 2.0]])
    torch.testing.assert_close(Module()(deltas, boxes), expected)
    torch.testing.assert_close(torch.jit.script(Module())(deltas, boxes), expected)


@ours
def test_rotated_boxes_name_the_remedy():
    from detectron2.layers import ROIAlignRotated, nms_rotated
    from detectron2.structures import RotatedBoxes, pairwise_iou_rotated

    boxes = RotatedBoxes(torch.tensor([[5.0, 5.0, 4.0, 2.0, 30.0]]))
    expected = "rotated boxes. To use it, install a compiled Detectron2: https://"
    with pytest.raises(_C.MissingExtensionError, match=expected):
        pairwise_iou_rotated(boxes, boxes)
    with pytest.raises(_C.MissingExtensionError, match=expected):
        nms_rotated(boxes.tensor, torch.ones(1), 0.5)
    with pytest.raises(_C.MissingExtensionError, match=expected):
        ROIAlignRotated((2, 2), 1.0, 1)(torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 4, 4, 2, 2, 0]]))


@ours
def test_fast_evaluation_and_unknown_names_name_the_remedy():
    with pytest.raises(_C.MissingExtensionError, match="use_fast_impl=False"):
        _ = _C.COCOevalAccumulate
    with pytest.raises(_C.MissingExtensionError, match="torchvision.ops.deform_conv2d"):
        _ = _C.modulated_deform_conv_forward
    assert not hasattr(_C, "anything_else")


def test_boxes_pooling_and_suppression_run_on_the_cpu():
    from detectron2.layers import ROIAlign, batched_nms

    pooled = ROIAlign((1, 1), 1.0, 1)(torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[0.0, 1, 1, 3, 3]]))
    assert pooled.item() == 7.5  # the centre (2, 2) lies between pixels 5, 6, 9 and 10
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 2]])
    assert batched_nms(boxes, torch.tensor([0.1, 0.2]), torch.tensor([0, 0]), 0.5).tolist() == [1]
    assert batched_nms(boxes, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0.5).tolist() == [1, 0]


def test_histogram_of_instances_counts_classes(caplog):
    from detectron2.data.build import print_instances_class_histogram

    annotations = [{"category_id": c, "iscrowd": i} for c, i in ((0, 0), (1, 0), (1, 0), (1, 1))]
    with caplog.at_level("INFO"):
        print_instances_class_histogram([{"annotations": annotations}], ["one", "two"])
    cells = [cell.strip() for cell in caplog.text.replace("\n", "").split("|")]
    assert cells[cells.index("one") + 1] == "1" and cells[cells.index("two") + 1] == "2"


def test_extent_transform_crops():
    from detectron2.data.transforms import ExtentTransform

    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    out = ExtentTransform((1, 1, 3, 3), (2, 2)).apply_image(image)
    assert np.array_equal(out, image[1:3, 1:3])


def test_pascal_voc_reads_its_lists(tmp_path):
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("000001\n000002\n")
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox>"
    for name in ("000001", "000002"):
        (tmp_path / f"Annotations/{name}.xml").write_text(
            f"<annotation><size><width>9</width><height>8</height></size>"
            f"<object><name>cat</name>{box}</object></annotation>"
        )
    first, second = load_voc_instances(str(tmp_path), "train", ["cat"])
    assert (first["image_id"], second["image_id"]) == ("000001", "000002")
    assert first["annotations"][0]["bbox"] == [0.0, 1.0, 5.0, 6.0]


def test_data_loader_benchmark_logs_percentiles(caplog):
    from detectron2.data.benchmark import DataLoaderBenchmark

    with caplog.at_level("INFO"):
        DataLoaderBenchmark._log_time(None, "loader", 0.5, [0.1, 0.2, 0.3])
    assert "avg=2.0 it/s" in caplog.text


def test_objects_survive_the_way_between_processes(monkeypatch):
    import pickle

    from detectron2.utils import comm

    if not hasattr(comm, "_serialize_to_tensor"):
        pytest.skip("this Detectron2 leaves it to torch")
    monkeypatch.setattr(comm.dist, "get_backend", lambda group: "gloo")
    with warnings.catch_warnings():
        warnings.simplefilter(OURS_ERROR)
        tensor = comm._serialize_to_tensor({"a": [1, 2]}, None)
    assert tensor.dtype == torch.uint8 and pickle.loads(tensor.numpy().tobytes()) == {"a": [1, 2]}


def test_panoptic_deeplab_groups_pixels_by_their_centre():
    from detectron2.projects.panoptic_deeplab.post_processing import group_pixels

    with warnings.catch_warnings():
        warnings.simplefilter(OURS_ERROR)
        ids = group_pixels(torch.tensor([[0, 0], [3, 3]]), torch.zeros(2, 4, 4))
    expected = (torch.arange(4)[:, None] + torch.arange(4)[None] > 3).long() + 1
    off_diagonal = torch.arange(4)[:, None] + torch.arange(4)[None] != 3  # equally near to both
    assert torch.equal(ids[0][off_diagonal], expected[off_diagonal])


def test_pascal_voc_evaluation_scores_a_perfect_detection(tmp_path):
    from detectron2.evaluation.pascal_voc_evaluation import voc_eval

    (tmp_path / "image.xml").write_text(
        "<annotation><object><name>cat</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>"
        "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object></annotation>"
    )
    (tmp_path / "train.txt").write_text("image\n")
    (tmp_path / "cat.txt").write_text("image 0.9 1 2 5 6\n")
    files = [str(tmp_path / name) for name in ("{}.txt", "{}.xml", "train.txt")]
    recall, precision, ap = voc_eval(*files, "cat")
    assert (recall[-1], precision[-1], ap) == (1.0, pytest.approx(1.0), pytest.approx(1.0))
