"""The installation tools: counted fix-ups, hash pinning, clear refusals, continuing after a kill."""

import csv
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import detectron2_fixups  # noqa: E402
import install_detectron2  # noqa: E402
import setup_env  # noqa: E402
from detectron2_fixups import FIXUPS, Fixup, FixupError, apply_fixups  # noqa: E402

pytestmark = pytest.mark.install
INSTALLER = str(ROOT / "tools" / "install_detectron2.py")


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """The pinned source distribution, from the environment's cache or the network."""
    try:
        return install_detectron2.fetch(tmp_path_factory.mktemp("sdist"), Path(sys.prefix) / "cache")
    except install_detectron2.InstallError as error:
        pytest.skip(f"the pinned source distribution is not reachable: {error}")


@pytest.fixture
def source(sdist, tmp_path):
    return install_detectron2.unpack(sdist, tmp_path)


@pytest.fixture
def empty_python(tmp_path):
    """A Python of its own that sees pip and setuptools, a placeholder for torch, and nothing else."""
    folder = tmp_path / "python"
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for name in ("pip", "setuptools"):  # by path: looking pip up would switch off setuptools' distutils
        (site / name).symlink_to(Path(sysconfig.get_paths()["purelib"]) / name)
    (site / "torch.py").write_text("")
    return folder / "bin" / "python", site


def refused(python, *arguments, **environment):
    """Runs the installer, which must refuse with exit code 2 and one line; returns that line."""
    done = subprocess.run(
        [str(python), INSTALLER, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert lines[-1].startswith("error: ") and "Traceback" not in done.stderr, done.stderr
    return lines[-1]


def test_every_fixup_occurs_exactly_as_often_as_the_table_says(source):
    assert apply_fixups(source) == sum(fixup.count for fixup in FIXUPS)
    for fixup in FIXUPS:
        text = (source / fixup.file).read_text(encoding="utf-8")
        assert fixup.new in text
        assert fixup.old in fixup.new or fixup.old not in text


def test_adapted_sources_compile_and_leave_no_removed_name(source):
    apply_fixups(source)
    gone = ("np.int)", "np.bool)", "np.float)", "np.str)", "Image.LINEAR", "pkg_resources", "._LRScheduler")
    for path in [*source.glob("detectron2/**/*.py"), *source.glob("projects/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec")
        assert [name for name in gone if name in text] == [], path


def test_each_fixup_has_a_reason_and_touches_something():
    for fixup in FIXUPS:
        assert fixup.reason and fixup.count > 0 and fixup.old != fixup.new


@pytest.mark.parametrize(
    "text, found",
    [("nothing here", 0), ("interp=Image.LINEAR, interp=Image.LINEAR", 2)],
)
def test_another_count_stops_before_anything_is_written(tmp_path, text, found):
    (tmp_path / "a.py").write_text("old")
    (tmp_path / "b.py").write_text(text)
    table = (Fixup("a.py", "old", "new", 1, "x"), Fixup("b.py", "interp=Image.LINEAR", "y", 1, "x"))
    with pytest.raises(FixupError, match=f"b.py: 'interp=Image.LINEAR' occurs {found} times instead of 1"):
        apply_fixups(tmp_path, table)
    assert (tmp_path / "a.py").read_text() == "old" and (tmp_path / "b.py").read_text() == text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FixupError, match="gone.py: no such file"):
        apply_fixups(tmp_path, (Fixup("gone.py", "a", "b", 1, "x"),))


def test_fixups_that_do_not_fit_become_one_line(sdist, tmp_path, monkeypatch):
    monkeypatch.setattr(
        install_detectron2,
        "apply_fixups",
        lambda root: apply_fixups(root, (Fixup("setup.py", "?!", "", 1, ""),)),
    )
    with pytest.raises(
        install_detectron2.InstallError, match="do not fit the source: setup.py: '\\?!' occurs 0"
    ):
        install_detectron2.prepare(tmp_path, tmp_path / "wheel", sdist)
    assert not (tmp_path / "wheel").exists()


def test_the_fingerprint_follows_the_table(monkeypatch):
    before = detectron2_fixups.fingerprint()
    assert before == detectron2_fixups.fingerprint()
    monkeypatch.setattr(detectron2_fixups, "FIXUPS", FIXUPS[1:])
    assert detectron2_fixups.fingerprint() != before


def test_wheel_is_complete_and_its_record_is_right(sdist, tmp_path):
    wheel = install_detectron2.prepare(tmp_path / "work", tmp_path / "wheel", sdist)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith("/RECORD"))
        rows = {row[0]: row for row in csv.reader(archive.read(record).decode().splitlines())}
        assert set(rows) == names
        for name in names - {record}:
            assert int(rows[name][2]) == len(archive.read(name))
        assert f'"{detectron2_fixups.fingerprint()}"' in archive.read("detectron2/_C.py").decode()
    for name in (
        "detectron2/projects/point_rend/__init__.py",
        "detectron2/projects/deeplab/__init__.py",
        "detectron2/projects/panoptic_deeplab/__init__.py",
        "detectron2/model_zoo/configs/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    ):
        assert name in names
    assert sum(name.startswith("detectron2/model_zoo/configs/") for name in names) == 128
    assert {name.split("/")[0] for name in names} == {"detectron2", record.split("/")[0]}


def test_wrong_hash_installs_nothing(sdist, tmp_path, empty_python):
    python, site = empty_python
    damaged = tmp_path / "pb1-detectron2-0.6.tar.gz"
    damaged.write_bytes(sdist.read_bytes() + b"x")
    before = sorted(os.listdir(site))
    line = refused(python, "--sdist", str(damaged))
    assert "wrong hash" in line and install_detectron2.SHA256 in line
    assert sorted(os.listdir(site)) == before


def test_missing_file_is_named(tmp_path, empty_python):
    assert "no such file" in refused(empty_python[0], "--sdist", str(tmp_path / "gone.tar.gz"))


def test_no_network_says_so_and_installs_nothing(tmp_path, empty_python):
    python, site = empty_python
    before = sorted(os.listdir(site))
    line = refused(python, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_CONFIG_FILE=os.devnull)
    assert "no package index was reached" in line and "--sdist" in line
    assert sorted(os.listdir(site)) == before


def test_pip_checks_the_hash_before_it_runs_the_package(sdist, tmp_path, empty_python):
    """A tampered archive in the index: pip must refuse it, and its setup.py must not run."""
    import tarfile

    python, site = empty_python
    (site / "packages").mkdir()
    (tmp_path / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with tarfile.open(site / "packages" / "pb1-detectron2-0.6.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "pb1-detectron2-0.6/setup.py")
    links = str(site / "packages")
    line = refused(python, PIP_NO_INDEX="1", PIP_FIND_LINKS=links, PIP_CONFIG_FILE=os.devnull)
    assert "wrong hash" in line and install_detectron2.SHA256 in line
    assert not (tmp_path / "ran").exists()


def test_without_torch_the_order_is_explained(empty_python):
    python, site = empty_python
    (site / "torch.py").unlink()
    assert "torch must be installed first" in refused(python)


@pytest.mark.parametrize("version", [(3, 8), (3, 10), (3, 14)])
def test_unsupported_python_is_refused(version):
    with pytest.raises(install_detectron2.InstallError, match=rf"Python {version[0]}\.{version[1]} is not"):
        install_detectron2.check_python(version)
    with pytest.raises(setup_env.SetupError, match=rf"Python {version[0]}\.{version[1]} is not"):
        setup_env.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_python_is_accepted(version):
    install_detectron2.check_python(version)
    setup_env.check_python(version)


def test_an_importable_detectron2_is_used_as_it_is(monkeypatch, capsys):
    def never(*args):
        raise AssertionError("must not be called")

    monkeypatch.setattr(install_detectron2, "probe", lambda: ("-", "0.6", "/somewhere/detectron2"))
    monkeypatch.setattr(install_detectron2, "prepare", never)
    monkeypatch.setattr(install_detectron2, "install", never)
    assert install_detectron2.main([]) == 0
    assert "using the Detectron2 0.6 that is installed in /somewhere/detectron2" in capsys.readouterr().out


def test_a_broken_build_of_somebody_else_is_not_replaced(empty_python):
    python, site = empty_python
    (site / "detectron2").mkdir()
    (site / "detectron2" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    info = site / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    line = refused(python)
    assert "is installed but cannot be imported" in line and "pip uninstall detectron2" in line


@pytest.mark.slow
def test_install_from_nothing_then_again_then_after_a_change(sdist, empty_python):
    """In a Python that has every dependency but Detectron2."""
    import torch

    python, site = empty_python
    (site / "torch.py").unlink()
    for path in Path(torch.__file__).parent.parent.iterdir():
        if "detectron2" not in path.name and path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)

    def run():
        command = [str(python), INSTALLER, "--sdist", str(sdist)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "installed Detectron2 0.6" in run()
    again = run()
    assert "is installed in" in again and "installing" not in again
    extension = site / "detectron2" / "_C.py"
    text = extension.read_text()
    extension.write_text(text.replace(detectron2_fixups.fingerprint(), "older000"))
    assert "installing" in run()
    assert extension.read_text() == text


def test_stamp_is_written_last_and_a_failed_step_is_named(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "env"
    monkeypatch.setattr(setup_env, "works", lambda python: folder.exists())
    monkeypatch.setattr(setup_env, "CONSTRAINTS", str(ROOT / "tools" / "constraints.txt"))
    done = []

    def run(title, command, log):
        done.append(title.split(":")[0])
        assert done[-1] != "virtual environment" or "--clear" in command
        if fail and title.startswith("panopticapi"):
            raise setup_env.SetupError("the step 'panopticapi' failed")
        folder.mkdir(exist_ok=True)

    monkeypatch.setattr(setup_env, "run", run)
    monkeypatch.setattr(setup_env, "compile_bytecode", lambda python: done.append("bytecode"))
    fail = True
    assert setup_env.main(["--venv", str(folder)]) == 2
    assert "the step 'panopticapi' failed" in capsys.readouterr().err
    assert not (folder / setup_env.STAMP).exists()
    fail = False
    assert setup_env.main(["--venv", str(folder)]) == 0
    assert (folder / setup_env.STAMP).exists() and done[-1] == "Detectron2"
    assert done.count("virtual environment") == 2  # what was not finished is made anew
    count = len(done)
    assert setup_env.main(["--venv", str(folder)]) == 0  # nothing is installed again
    assert len(done) == count
    os.utime(folder / setup_env.STAMP, (0, 0))  # older than pyproject.toml
    assert setup_env.main(["--venv", str(folder)]) == 0
    assert done[count:] == [step for step in dict.fromkeys(done) if step != "virtual environment"]


def test_a_failing_step_says_how_to_continue():
    with pytest.raises(
        setup_env.SetupError, match="the step 'torch' failed .* run the same make command again"
    ):
        setup_env.run("torch: a download", [sys.executable, "-c", "raise SystemExit(1)"])


def test_make_names_the_python_it_cannot_use(tmp_path):
    """A Python that is too old, given by hand: one line, exit code, no environment."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    fake = tmp_path / "python3.8"
    fake.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"import sys, runpy; sys.version_info = (3, 8, 0, 'final', 0); "
        "sys.path.insert(0, 'tools'); sys.argv = ['setup_env.py']; "
        "runpy.run_path('tools/setup_env.py', run_name='__main__')\"\n"
    )
    fake.chmod(0o755)
    done = subprocess.run(["make", "doctor", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: Python 3.8 is not supported: 3.11, 3.12 and 3.13 are." in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_step_keeps_the_screen_clean_and_shows_its_end_where_it_fails(tmp_path, monkeypatch, capfd):
    log, code = tmp_path / "env.log", tmp_path / "pip.py"
    log.write_text("Downloading before.whl (1 kB)\n")
    said = "WARNING: root\\n  Downloading https://x.org/y/torch-2.whl (766.7 MB)"
    code.write_text(
        f"import sys, time; print('{said}', flush=True); time.sleep(1); sys.exit(int(sys.argv[1]))"
    )
    monkeypatch.setattr(setup_env, "HEARTBEAT", 0.3)
    monkeypatch.setattr(setup_env, "STEPS", {"first": 100, "torch": 60, "last": 61})
    setup_env.run("torch: a download", [sys.executable, str(code), "0"], str(log))
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0] == "[setup] torch: a download" and lines[-1].startswith("[setup]   done in ")
    assert lines[-2].startswith("[setup]   ... torch (766.7 MB), 1 s, about 2 min left") and err == ""
    assert "WARNING: root" in log.read_text() and "before.whl" in log.read_text()
    with pytest.raises(setup_env.SetupError, match=f"the step 'torch' failed .* all of it: {log}"):
        setup_env.run("torch: a download", [sys.executable, str(code), "3"], str(log))
    assert capfd.readouterr().err.splitlines()[0] == "WARNING: root"
