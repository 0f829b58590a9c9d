"""Checkpoint files: what is in them, without running any of it, and not more than the file has bytes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import resource
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import UserError, first_line

CATALOGUE = "detectron2://"  # Detectron2's own models, downloaded from its authors
_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"  # of the catalogue
_WRAPPERS = ("model", "model_state", "model_state_dict", "state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_SAFETENSORS = ".safetensors"
_FOLDER = 0x10  # among the attributes of an archive's entry
ENTRIES = 50_000  # of an archive; a network has one for each of its tensors
LARGEST = 100  # times the weights of the network; a supernet with its optimizer has 20 times those of a path
# Buffers that follow from the config, never from a checkpoint; its key is their name in capitals.
DERIVED = ("pixel_mean", "pixel_std")


def optional(name: str) -> bool:
    """Whether a model does without: what follows from the config, counters, the settings of its layers."""
    return name in DERIVED or name.endswith(("num_batches_tracked", "_extra_state"))


def damage(path: str) -> str:
    """What is wrong with the archive ``path``, such as "has 0 bytes"; "" if its checksums hold."""
    try:
        if problem := swollen(path):
            return problem
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # a damaged directory leads zipfile to errors of many kinds
        size = os.path.getsize(path)
        return f"is damaged ({str(error).splitlines()[0] if size and str(error) else f'{size} bytes'})"
    return f"is damaged (the checksum of {entry} does not hold)" if entry else ""


def _is_archive(path: str) -> bool:
    """Whether a file is an archive, intact or not."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # such as one of several disks
        return True


def _begins_as_archive(path: str) -> bool:
    with open(path, "rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def swollen(path: str) -> str:
    """Why reading ``path`` may take more than its own bytes, or never end; "" if not; may raise anything."""
    if not os.path.isfile(path):
        return "is no plain file"
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if len(entries) > ENTRIES:
        return f"is no checkpoint ({len(entries)} entries)"
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            return f"is no checkpoint ({entry.filename} is compressed, which torch never does)"
        if entry.is_dir() or entry.external_attr & _FOLDER:
            return f"is damaged ({entry.filename} is a folder)"  # torch would read any numbers there
    overlap = sum(entry.file_size for entry in entries) > os.path.getsize(path)
    return "is no checkpoint (its entries overlap)" if overlap else ""


def read_checkpoint(
    path: str, key: str = "MODEL.WEIGHTS", *, tested: bool = False, mmap: bool = False, model=None
) -> dict:
    """Read a checkpoint without running any code in it: "model": {name: tensor}, and what else it holds.

    ``key``: the setting that named the file; ``tested``: :func:`damage` found nothing; ``mmap``: tensors stay
    on the disk until they are looked at; ``model``: the network, to whose size the file's is in proportion.

    Raises:
        UserError: the file is missing, damaged, a pickle, or no checkpoint.
    """
    subject = f"{key}: {path!r}"
    if path.startswith(_ADDRESS):
        raise UserError(f"{subject} is no file; write it as {path.replace(_ADDRESS, CATALOGUE)}")
    if "://" in path:
        raise UserError(f"{subject} is no file; download it and give its path")
    if not os.path.isfile(path):
        problem = f"{subject} is no plain file" if os.path.exists(path) else f"{key}: no file {path!r}"
        raise UserError(f"{problem}; give the path of a checkpoint (of training: OUTPUT_DIR/model_final.pth)")
    is_archive = _is_archive(path)
    if path.endswith(_SAFETENSORS) and not importlib.util.find_spec("safetensors"):
        remedy = "pip install safetensors, or install this package with its extra 'deeplab'"
        raise UserError(f"{subject} needs safetensors: {remedy}")
    if path.endswith(".pkl") and not is_archive:
        files = shlex.quote(path), shlex.quote(path.removesuffix(".pkl") + ".pth")
        raise UserError(
            f"{subject} is a pickle, and reading one runs code in it; take the numbers out of it with "
            f"python tools/convert_pickle.py {' '.join(files)} and give the latter, or add --trust-pickle"
        )
    if model is not None:
        own = sum(v.numel() * v.element_size() for v in model.state_dict().values())
        size = os.path.getsize(path)
        if size > LARGEST * own + 2**30:
            problem = f"{subject} has {size} bytes, the weights of the network have {own}"
            raise UserError(f"{problem}; give its weights")
    if not is_archive and _begins_as_archive(path):
        problem = f"is cut off, or damaged at its end ({os.path.getsize(path)} bytes)"
        raise UserError(f"{subject} {problem}; give an intact copy")
    if not tested and is_archive and (problem := damage(path)):
        raise UserError(f"{subject} {problem}; give an intact copy")
    try:
        data = load(path, mmap and is_archive)
    except Exception as error:  # a malformed file leads torch's reader to errors of many kinds
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to run what it holds
            reason = "it is no file of torch, or holds other things than numbers, which are not read"
        problem = f"{subject} cannot be read as a checkpoint ({reason})"
        raise UserError(f"{problem}; give an intact file of weights") from None
    data = data if isinstance(data, dict) else {}
    weights = next((data[key] for key in _WRAPPERS if isinstance(data.get(key), dict)), data)
    data = {**(data if "model" in data else {}), "model": weights}  # records under other names are not ours
    if problem := odd_content(data):
        raise UserError(f"{subject} {problem}; expected a dict of tensors under 'model'")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in weights)), ""):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return {**data, "model": weights}


def load(path: str, mmap: bool):
    """What torch reads from a file, with little more memory than the file has bytes; may raise anything.

    Files named .safetensors are in the format of that name.
    """
    with bounded_memory(path):
        if path.endswith(_SAFETENSORS):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


@contextlib.contextmanager
def bounded_memory(path: str) -> Iterator[None]:
    """Context in which this process gets four times the bytes of a file and 1 GiB; then a MemoryError."""
    most = 4 * os.path.getsize(path) + 2**30
    before = resource.getrlimit(resource.RLIMIT_DATA)
    # Where Linux does not tell, or a limit is lower, there is none.
    with contextlib.suppress(OSError, TypeError, ValueError):
        used = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
        limits = [limit for limit in (used + most, *before) if limit >= 0]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def odd_content(data: dict) -> str:
    """What is wrong with a checkpoint; "" if its tensors are plain numbers, each of them in the file."""
    weights = data.get("model")
    if not isinstance(weights, dict) or not weights:
        return "holds no model weights"
    if not all(isinstance(v, torch.Tensor) and isinstance(k, str) for k, v in weights.items()):
        return "holds no model weights, but other things"
    for name, value in weights.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not plain or value.is_quantized or value.is_complex():
            return f"holds {name!r}, which is no tensor of plain numbers"
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"holds {name!r} of shape {tuple(value.shape)}, but not as many numbers"
    try:
        texts = [data.get("meta", {}).get("meta_architecture", ""), *data.get("settings", {}).values()]
        texts += [text for site, ops in (data.get("space") or {}).items() for text in (site, *list.copy(ops))]
        for key, rows in (data.get("classes") or {"labels": ""}).items():
            texts += [rows] if key == "labels" else [name for _, name, _ in rows]
        sound = all(isinstance(text, str) for text in texts) and "labels" in (
            data.get("classes") or ["labels"]
        )
    except (AttributeError, TypeError, ValueError):
        sound = False
    return "" if sound else "has malformed records of its model"
