"""Videos and the camera: every frame drawn into an .mp4, whole or not at all."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from test_bundle import world  # noqa: F401
from toy import error_line, run_script

import demo as script
from auto_panoptic.bundle import with_stuff_colors


@pytest.fixture
def film(tmp_path, shapes):
    """A video of three frames."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for photo in sorted((shapes / "val").iterdir())[:3]:
        writer.write(cv2.resize(cv2.imread(str(photo)), (64, 48)))
    writer.release()
    return path


def frames_of(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames, capture.get(cv2.CAP_PROP_FPS)


def demo(world, *arguments):  # noqa: F811
    run_script("demo", "--bundle", world / "alone", *arguments)


def test_a_video_is_drawn_frame_by_frame(world, film, tmp_path, capfd):  # noqa: F811
    demo(world, "--video-input", film, "--output", tmp_path / "drawn")
    assert f"{tmp_path / 'drawn/film.mp4'}: 3 frames" in capfd.readouterr().out
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == ["film.mp4"]
    frames, rate = frames_of(tmp_path / "drawn/film.mp4")
    before, _ = frames_of(film)
    assert len(frames) == 3 and rate == 5 and frames[0].shape == (384, 512, 3)  # names need room
    small = [cv2.resize(frame, (64, 48), interpolation=cv2.INTER_AREA) for frame in frames]
    changes = [np.abs(a.astype(int) - b).mean() for a, b in zip(small, before, strict=True)]
    assert all(5 < change < 120 for change in changes)  # drawn over, and still the film
    demo(world, "--video-input", film, "--output", tmp_path / "named.mp4")
    assert (tmp_path / "named.mp4").is_file()


class Drive:
    """A predictor: sky above a road, a parked car, and one that drives past; no class has a colour."""

    metadata = Metadata(name="drive", thing_classes=["car"], stuff_classes=["things", "sky", "road"])
    drawn_metadata = with_stuff_colors(metadata)
    seen = 0

    def __call__(self, image, name):
        ids = torch.ones(480, 640, dtype=torch.int32)
        ids[240:] = 2
        ids[200:300, 50 + 20 * self.seen : 170 + 20 * self.seen] = 3
        ids[350:420, 500:600] = 4
        self.seen += 1
        kinds = [(False, 1, "sky"), (False, 2, "road"), (True, 0, "car"), (True, 0, "car")]
        return {
            "panoptic_seg": (
                ids,
                [
                    {"id": i, "isthing": thing, "category_id": label, "name": name}
                    for i, (thing, label, name) in enumerate(kinds, 1)
                ],
            )
        }


def test_what_is_seen_keeps_its_colour(tmp_path):
    """Each class of stuff its own, and each object; Detectron2 draws stuff without colours at random."""
    grey = [(True, np.full((480, 640, 3), 128, np.uint8))] * 6 + [(False, None)]
    film = type(
        "Film", (), {"get": lambda *_: 5.0, "read": lambda *_: grey.pop(0), "release": lambda _: None}
    )
    script.segment_video(Drive(), film(), tmp_path / "drive.mp4", live=False)
    frames, _ = frames_of(tmp_path / "drive.mp4")
    spots = [[f[30, 30], f[460, 20], f[250, 60 + 20 * i], f[360, 510]] for i, f in enumerate(frames)]
    spots = np.array(spots, int)  # (frames, things that are seen, 3)
    assert len(spots) == 6 and (np.abs(spots - spots[0]).max(axis=0) < 12).all()  # but for compression
    sky, road, *_ = spots[0]
    assert np.abs(sky - road).max() > 30


class Camera:
    """A camera that sees one frame again and again, until somebody presses Ctrl-C."""

    def __init__(self, source):
        assert source == 0
        self.left = 2

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def read(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return True, np.full((48, 64, 3), 90, np.uint8)

    def release(self):
        self.left = None


def test_the_camera_until_ctrl_c(world, tmp_path, monkeypatch, capfd):  # noqa: F811
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    demo(world, "--webcam", "--output", tmp_path / "drawn")
    monkeypatch.undo()
    assert "webcam.mp4: 2 frames" in capfd.readouterr().out
    assert len(frames_of(tmp_path / "drawn/webcam.mp4")[0]) == 2


def test_ctrl_c_leaves_no_half_video(world, film, tmp_path, monkeypatch, capfd):  # noqa: F811
    usual = cv2.VideoCapture
    camera = Camera(0)
    camera_of = {0: usual, str(film): lambda path: camera}
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: camera_of[source](source))
    with pytest.raises(SystemExit) as end:
        demo(world, "--video-input", film, "--output", tmp_path / "drawn")
    assert end.value.code == 130 and not list((tmp_path / "drawn").iterdir())


def test_what_cannot_be_shown(world, film, tmp_path, capfd):  # noqa: F811
    def line(*arguments):
        with pytest.raises(SystemExit) as end:
            demo(world, *arguments)
        assert end.value.code == 2
        return error_line(capfd)

    out = ("--output", tmp_path / "drawn")
    assert "there is no file" in line("--video-input", tmp_path / "no.mp4", *out)
    (tmp_path / "text.mp4").write_text("no video")
    assert "cannot be read as a video" in line("--video-input", tmp_path / "text.mp4", *out)
    assert "--json is of photos" in line("--video-input", film, "--json", *out)
    assert "--rows is of photos" in line("--video-input", film, "--rows", *out)
    film.rename(tmp_path / "film.mp4")
    assert "would be overwritten" in line("--video-input", tmp_path / "film.mp4", "--output", tmp_path)
    assert not (tmp_path / "drawn").exists()
