"""``make doctor``: what it reports, and what it says when something is broken."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from auto_panoptic import doctor

pytestmark = pytest.mark.install
ROOT = Path(__file__).resolve().parent.parent


def run_doctor(*paths, code="from auto_panoptic.doctor import main; raise SystemExit(main([]))"):
    """Runs the doctor in a fresh process with ``paths`` before everything else on the module path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT]))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_all_is_well_here(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    for name in (*doctor.LIBRARIES, "torch", "torchvision", "detectron2", *doctor.OPERATORS):
        assert any(line.split("  ")[0] == name and " ok " in line for line in out.splitlines()), name
    for name in ("Python", "PyTorch", "GPU available", "Pillow"):  # Detectron2's table
        assert f"\n{name} " in f"\n{out}"
    assert out.endswith("all ok\n") and "FAIL" not in out


def test_it_imports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import auto_panoptic.doctor; print('numpy' in sys.modules)"
    )
    done = run_doctor(code=code)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def broken(monkeypatch):
    """broken(module, error): importing that module raises that error, in the doctor's eyes."""
    real = importlib.import_module

    def set_broken(module, error):
        def import_module(name):
            if name == module:
                raise error
            return real(name)

        monkeypatch.setattr(doctor.importlib, "import_module", import_module)

    return set_broken


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist"),
        OSError("libtorch_cuda.so: undefined symbol: _ZN3c10\n and so on"),
        ImportError("cannot import name"),
        AttributeError("partially initialized module"),
    ],
)
def test_a_torchvision_of_another_torch_names_the_command(broken, capsys, error):
    """The import of a torchvision that was built for another torch fails with one of these."""
    import torch

    broken("torchvision", error)
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    minor = int(torch.__version__.split(".")[1])
    command = f"-m pip install --force-reinstall --no-deps 'torchvision==0.{minor + 15}.*'"
    assert f"remedy: {sys.executable} {command}\n" in out
    assert out.endswith("FAIL: torchvision\n") and "and so on" not in out


def test_a_torchvision_without_operators_names_the_command(monkeypatch, capsys):
    """Some mismatched torchvision import, and lack their operators."""
    import torch

    monkeypatch.setattr(torch.ops, "torchvision", object())
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    assert "torchvision             FAIL" in out and "'torchvision==0." in out


def test_a_missing_detectron2_names_the_installer(broken, capsys):
    broken("detectron2.layers", ImportError("no module"))
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    assert f"remedy: {sys.executable} {ROOT / 'tools' / 'install_detectron2.py'}\n" in out
    assert out.endswith("FAIL: detectron2\n")


@pytest.mark.parametrize(
    "source", ["raise OSError('libcudart.so.13: cannot open')", "raise ImportError('broken')"]
)
def test_a_broken_torch_is_reported_without_a_traceback(tmp_path, source):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(source + "\n")
    done = run_doctor(tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert f"remedy: {sys.executable} -m pip install --force-reinstall torch torchvision" in done.stdout
    assert done.stdout.endswith("FAIL: torch\n")


def test_a_wrong_result_is_a_failure(monkeypatch, capsys):
    """An operator that runs but computes something else must not be called ok."""
    import detectron2.layers
    import torch

    monkeypatch.setattr(detectron2.layers, "batched_nms", lambda *args: torch.tensor([0, 1, 2]))
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    assert "expected [1, 2], got [0, 1, 2]" in out and out.endswith("FAIL: NMS\n")


def test_an_exception_in_an_operator_is_one_line(monkeypatch, capsys):
    def fails():
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(doctor.OPERATORS, "NMS", fails)
    assert doctor.main([]) == 2
    out = capsys.readouterr().out
    assert "RuntimeError: first line\n" in out and "second line" not in out and "remedy: " in out


@pytest.mark.parametrize(
    "torch_version, expected",
    [
        ("2.14.1", "'torchvision==0.29.*'"),
        ("2.6.0+cpu", "'torchvision==0.21.*'"),
        ("unknown", "torchvision"),
        ("", "torchvision"),
        ("3.0", "torchvision"),
    ],
)
def test_pairs_of_torch_and_torchvision(torch_version, expected):
    assert doctor.matching_torchvision(torch_version) == expected


def test_the_tested_pair_follows_the_same_rule():
    lines = (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert (
        doctor.matching_torchvision(pinned["torch"])
        == f"'torchvision=={pinned['torchvision'].rsplit('.', 1)[0]}.*'"
    )
