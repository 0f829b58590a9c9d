#!/usr/bin/env python
"""Installs Detectron2 v0.6 into the Python that runs this script, from PyPI alone and without a compiler.

Upstream publishes no package. If a Detectron2 can be imported already it is used as it is. Otherwise the
source distribution ``pb1-detectron2`` 0.6 (v0.6's Python files, byte for byte) is downloaded through pip,
checked against the sha256 below before any of its code runs, adapted by the table in
``detectron2_fixups.py``, packed into a pure-Python wheel in a temporary folder, and installed. torch must be
installed before.

    python tools/install_detectron2.py                 # install
    python tools/install_detectron2.py --sdist FILE    # the same without network
    python tools/install_detectron2.py --wheel-dir DIR # only build the wheel

Exit code 0: Detectron2 is ready; 2: it is not, nothing was installed, and one line says what to do.
"""

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from detectron2_fixups import FixupError, apply_fixups, fingerprint, write_substitute  # noqa: E402

SDIST = "pb1-detectron2"
VERSION = "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
PYTHONS = ((3, 11), (3, 14))  # from, below
OFFICIAL = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"

# What v0.6 declares, without what only its Caffe2 export and code formatter need.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7,<0.1.10",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
)

# Upstream's package_dir: small projects that become part of the package.
PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

# Exit status 0: a usable Detectron2; prints "<fingerprint of our fix-ups or ->|<version>|<folder>".
PROBE = """
import os, sys, warnings
warnings.simplefilter("ignore")
import detectron2, detectron2.layers
from detectron2 import _C
mark = getattr(_C, "FIXUPS_FINGERPRINT", "-") if getattr(_C, "IS_SUBSTITUTE", False) is True else "-"
print("|".join([mark, detectron2.__version__, os.path.dirname(detectron2.__file__)]))
"""


class InstallError(RuntimeError):
    """Detectron2 cannot be installed; the message is one line with the remedy."""


def say(text: str) -> None:
    print(f"[detectron2] {text}", flush=True)


def probe():
    """Imports Detectron2 in a fresh process.

    Returns:
        (fingerprint or "-", version, folder), or None when it cannot be imported.
    """
    if importlib.util.find_spec("detectron2") is None:
        return None
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    lines = done.stdout.strip().splitlines()
    return tuple(lines[-1].split("|", 2)) if done.returncode == 0 and lines else None


def refuse_to_replace(found) -> None:
    """Raises InstallError when somebody else's Detectron2 is installed but broken."""
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        return
    if found is None and "+pure." not in version:
        raise InstallError(
            f"Detectron2 {version} is installed but cannot be imported; reinstall it for this torch "
            f"({OFFICIAL}), or remove it to get the one for this project: "
            f"{sys.executable} -m pip uninstall detectron2"
        )


def check_python(version=None) -> None:
    """Raises InstallError for a Python that v0.6 with our fix-ups does not run on."""
    version = tuple(version or sys.version_info[:2])
    if not PYTHONS[0] <= version < PYTHONS[1]:
        raise InstallError(
            f"Python {version[0]}.{version[1]} is not supported (3.11 to 3.13 are); "
            "run it with one of those, e.g. make PYTHON=python3.11"
        )


def check_sha256(path: Path, expected: str) -> None:
    """Raises InstallError unless the file has the expected sha256."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"wrong hash: {path.name} has sha256 {actual}, expected {expected}; "
            f"it was not used. Check your package mirror, or install Detectron2 yourself: {OFFICIAL}"
        )


def download(folder: Path, expected: str = SHA256) -> Path:
    """Fetches the source distribution through pip, which checks the hash before it runs anything.

    Args:
        folder: where the file goes.
        expected: its sha256.

    Returns:
        Path of the file.

    Raises:
        InstallError: no torch, no network, another hash.
    """
    missing = [name for name in ("torch", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(
            f"{' and '.join(missing)} must be installed first (the source distribution imports them to be "
            f"built); run: {sys.executable} -m pip install torch torchvision 'setuptools<81'"
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{SDIST}=={VERSION} --hash=sha256:{expected}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--require-hashes", "-d", str(folder), "-r", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(folder.glob("*.tar.gz"))
    if done.returncode or not files:
        output = done.stdout + done.stderr
        if "DO NOT MATCH THE HASHES" in output:
            got = [line.split()[-1] for line in output.splitlines() if line.strip().startswith("Got ")]
            raise InstallError(
                f"wrong hash: the package index serves {SDIST} {VERSION} with sha256 {(got or ['?'])[0]}, "
                f"expected {expected}; it was not used. Check your package mirror, "
                f"or install Detectron2 yourself: {OFFICIAL}"
            )
        errors = [line.strip() for line in output.splitlines() if "ERROR" in line]
        reason = (errors or output.strip().splitlines() or ["no output"])[-1]
        if "No matching distribution" in output or "Could not find a version" in output:
            raise InstallError(
                f"{SDIST} {VERSION} cannot be fetched: no package index was reached, or it lacks the package "
                f"({reason}); check the network and pip's index-url, or pass --sdist FILE"
            )
        raise InstallError(f"pip could not download {SDIST} {VERSION} ({reason}); or pass --sdist FILE")
    check_sha256(files[0], expected)
    return files[0]


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks the source distribution and returns its top folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{SDIST}-{VERSION}"


def arrange(source: Path) -> None:
    """Moves the projects to where upstream's setup.py installs them: ``detectron2.projects.*``."""
    for name, path in PROJECTS.items():
        shutil.move(str(source / path), str(source / "detectron2" / "projects" / name))


def wheel_name() -> str:
    return f"detectron2-{VERSION}+pure.{fingerprint()}-py3-none-any.whl"


def build_wheel(source: Path, folder: Path) -> Path:
    """Packs ``source/detectron2`` into a wheel: the files, METADATA, WHEEL and RECORD.

    Args:
        source: the adapted source tree.
        folder: where the wheel goes.

    Returns:
        Path of the wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version = f"{VERSION}+pure.{fingerprint()}"
    info = f"detectron2-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {version}",
        "Summary: Detectron2 v0.6 without its compiled extension, adapted to current Python, torch and numpy",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        f"Requires-Python: >={PYTHONS[0][0]}.{PYTHONS[0][1]}",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIREMENTS),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: auto-panoptic", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    contents = {}
    for path in sorted((source / "detectron2").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            contents[path.relative_to(source).as_posix()] = path.read_bytes()
    contents[f"{info}/LICENSE"] = (source / "LICENSE").read_bytes()
    contents[f"{info}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    contents[f"{info}/WHEEL"] = ("\n".join(wheel) + "\n").encode()
    record = []
    target = folder / wheel_name()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}")
            archive.writestr(zipfile.ZipInfo(name, (2021, 11, 15, 0, 0, 0)), data)
        record.append(f"{info}/RECORD,,\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", (2021, 11, 15, 0, 0, 0)), "\n".join(record))
    return target


def fetch(folder: Path, cache: Path | None, expected: str = SHA256) -> Path:
    """The source distribution from the cache if it is there and intact, else downloaded and put there."""
    kept = cache / f"{SDIST}-{VERSION}.tar.gz" if cache else None
    if kept and kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == expected:
        return kept
    say(f"downloading {SDIST} {VERSION} (0.5 MB) and checking its sha256")
    sdist = download(folder, expected)
    if kept:
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        shutil.copyfile(sdist, partial)
        os.replace(partial, kept)
    return sdist


def prepare(
    folder: Path, out: Path, sdist: Path | None = None, cache: Path | None = None, expected: str = SHA256
) -> Path:
    """Source distribution to wheel.

    Args:
        folder: an empty working folder.
        out: where the wheel goes.
        sdist: a local source distribution, or None to take it from the cache or the network.
        cache: folder that keeps the source distribution, or None.
        expected: its sha256.

    Returns:
        Path of the wheel.

    Raises:
        InstallError: with the remedy.
    """
    if sdist is None:
        sdist = fetch(folder, cache, expected)
    elif not sdist.is_file():
        raise InstallError(f"--sdist {sdist}: no such file; expected {SDIST}-{VERSION}.tar.gz")
    else:
        check_sha256(sdist, expected)
    source = unpack(sdist, folder)
    try:
        count = apply_fixups(source)
    except FixupError as error:
        raise InstallError(
            f"the fix-ups do not fit the source: {error}; install Detectron2 yourself: {OFFICIAL}"
        ) from None
    write_substitute(source)
    arrange(source)
    say(f"made {count} counted replacements for current Python, torch, numpy and Pillow")
    return build_wheel(source, out)


def install(wheel: Path) -> str:
    """pip-installs the wheel, imports it in a fresh process, and returns where it is."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    done = subprocess.run(
        [*command, "--force-reinstall", "--quiet", str(wheel)], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["unknown"])[-1]
        raise InstallError(f"pip could not install the wheel: {reason}")
    found = probe()
    if found is None:
        uninstall = [sys.executable, "-m", "pip", "uninstall", "-y", "-q", "detectron2"]
        subprocess.run(uninstall, capture_output=True)
        check = subprocess.run(
            [sys.executable, "-c", "import torchvision, fvcore, pycocotools, detectron2"],
            capture_output=True,
            text=True,
        )
        reason = (check.stderr.strip().splitlines() or ["unknown"])[-1]
        raise InstallError(
            f"the installed package does not import and was removed again ({reason}); "
            "install the project's dependencies first: pip install -e ."
        )
    return found[2]


def run(args) -> None:
    if args.wheel_dir is None:
        check_python()
        found = probe()
        if found and found[0] == "-":
            say(f"using the Detectron2 {found[1]} that is installed in {found[2]}")
            return
        if found and found[0] == fingerprint():
            say(f"Detectron2 {found[1]} is installed in {found[2]}")
            return
        refuse_to_replace(found)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as temporary:
        folder = Path(temporary)
        wheel = prepare(folder, args.wheel_dir or folder / "wheel", args.sdist, args.cache, args.sha256)
        if args.wheel_dir:
            say(f"built {wheel}")
            return
        say("installing and importing it")
        say(f"installed Detectron2 {VERSION} in {install(wheel)}")


def main(argv=None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--sdist", type=Path, help=f"a local {SDIST}-{VERSION}.tar.gz, not the download")
    parser.add_argument("--cache", type=Path, help="keep the source distribution there and look there first")
    parser.add_argument("--sha256", default=SHA256, help="expected sha256 of the source distribution")
    parser.add_argument("--wheel-dir", type=Path, help="build the wheel there and install nothing")
    args = parser.parse_args(argv)
    os.environ.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    try:
        run(args)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
