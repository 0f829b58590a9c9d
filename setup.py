"""What pyproject.toml cannot say: a wheel carries configs/ and the commands, in auto_panoptic/shipped/."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ["configs", "train_net.py", "search_net.py", "demo.py", "tools/constraints.txt"]
SHIPPED += ["tools/install_detectron2.py", "tools/detectron2_fixups.py", "tools/detectron2_extension.py"]


class BuildWithConfigs(build_py):
    """Also copies what lies beside the package, unless it is installed as editable."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "auto_panoptic", "shipped")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for name in SHIPPED:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if Path(name).is_dir() else shutil.copyfile)(name, target / name)


setup(cmdclass={"build_py": BuildWithConfigs})
