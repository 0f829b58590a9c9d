"""The wheel alone: it carries configs, architectures and commands, and predicts from a bundle elsewhere."""

import os
import shutil
import subprocess
import sys

import cv2
import pytest
from test_bundle import world  # noqa: F401
from toy import ROOT

from auto_panoptic.files import HOME

USE = """
import sys, cv2, auto_panoptic
assert auto_panoptic.__file__.startswith(sys.argv[1]), auto_panoptic.__file__
predictor = auto_panoptic.load("bundle.pth")
ids, segments = predictor(cv2.imread("photo.png"))["panoptic_seg"]
print(tuple(ids.shape), len(segments), segments[0]["name"])
from auto_panoptic.space import Architecture, resolve_architecture_path
from auto_panoptic.training import find_config
Architecture.load(resolve_architecture_path("auto_panoptic_coco"))
print(find_config("configs/quick/retrain.yaml"))
"""


def test_in_a_checkout_everything_lies_beside_the_package():
    assert HOME == ROOT


@pytest.mark.slow
def test_the_wheel_alone(tmp_path, world, shapes):  # noqa: F811
    """Built and installed into an empty folder: a bundle predicts, and the commands run, from another one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"
    wanted = shutil.ignore_patterns(".*", "output", "shapes", "tests", "docs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=wanted)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("auto_panoptic-*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(source)
    assert (target / "bin/auto-panoptic").is_file()

    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(world / "alone/bundle.pth", empty)
    cv2.imwrite(str(empty / "photo.png"), cv2.imread(str(next((shapes / "val").iterdir()))))
    # What the wheel does not ask for is hidden.
    (target / "sitecustomize.py").write_text("import sys; sys.modules['panopticapi'] = None")
    environment = {**os.environ, "PYTHONPATH": str(target), "DETECTRON2_DATASETS": str(empty)}

    def run(*command):
        result = subprocess.run(
            [sys.executable, *map(str, command)], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    shape, config = run("-c", USE, target).splitlines()
    assert shape.startswith("(")
    assert config == str(target / "auto_panoptic/shipped/configs/quick/retrain.yaml")
    module = ("-m", "auto_panoptic")
    for command in ("train", "search", "demo", "bundle", "report", "own-data", "install-detectron2"):
        assert f"    {command} " in run(*module, "--help")
    drawn = run(*module, "demo", "--bundle", "bundle.pth", "--input", "photo.png", "--output", "drawn")
    assert "photo.png: " in drawn and (empty / "drawn/photo.png").is_file()
    assert "AutoPanopticFPN" in run(target / "bin/auto-panoptic", "bundle", "bundle.pth")
    assert "--eval-only" in run(*module, "train", "--help") and "--cycles" in run(*module, "search", "--help")
    assert "--sdist" in run(*module, "install-detectron2", "--help")


def test_a_wrong_command_is_told():
    result = subprocess.run(
        [sys.executable, "-m", "auto_panoptic", "trian"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and "invalid choice: 'trian' (choose from" in result.stderr
