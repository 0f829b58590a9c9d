"""Systems other than Linux: one line where nothing works, and no use of what only Linux has elsewhere."""

import importlib
import os
import sys

import pytest
from toy import ROOT

import auto_panoptic
from auto_panoptic.data.derive.pool import stream

sys.path.insert(0, str(ROOT / "tools"))
import setup_env  # noqa: E402


def test_windows_gets_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="runs on Linux and macOS; on Windows install it in WSL 2"):
        importlib.reload(auto_panoptic)
    assert setup_env.main([]) == 2
    error = "error: Windows is not supported: run the same command in WSL 2, or on Linux or macOS\n"
    assert capsys.readouterr().err == error


def test_processes_without_linuxs_list_of_usable_cpus(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert list(stream(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_the_licence_is_named_and_there():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()
    assert f"version: {auto_panoptic.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert (ROOT / "auto_panoptic/py.typed").is_file()
