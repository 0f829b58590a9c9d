"""Files that are named as weights: never more is read than they have, and wrapped weights are found."""

import os
import resource
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from auto_panoptic.errors import UserError
from auto_panoptic.training.archive import damage, read_checkpoint


@pytest.fixture
def path(tmp_path):
    file = str(tmp_path / "model.pth")
    torch.save({"model": {"a": torch.arange(4.0), "b": torch.zeros(2, 3)}}, file)
    return file


def entries(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def rewrite(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        read_checkpoint(path, **options)
    message = str(error.value)
    assert "\n" not in message and message.startswith("MODEL.WEIGHTS: ")
    return message


def test_as_torch_writes_it(path):
    assert damage(path) == ""
    assert read_checkpoint(path)["model"]["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("only", ["data.pkl", "data/0", "bomb"])
def test_compressed_entries(path, only):
    """A small file would become a large one: nothing of it is unpacked."""
    content = entries(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data, zipfile.ZIP_DEFLATED if name.endswith(only) else zipfile.ZIP_STORED)
        if only == "bomb":
            archive.writestr("model/data/9", bytes(10**7), zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch never does" in refusal(path)
    assert os.path.getsize(path) < 10**5


def test_overlapping_entries(path):
    """Many names for the same bytes."""
    rewrite(path, entries(path) | {"model/data/8": bytes(10**5), "model/data/9": b""})
    with zipfile.ZipFile(path, "a") as archive:
        large, small = (archive.getinfo(f"model/data/{number}") for number in "89")
        for number in range(20):
            copy = zipfile.ZipInfo(f"model/data/1{number}")
            copy.header_offset, copy.CRC = large.header_offset, large.CRC
            copy.file_size = copy.compress_size = large.file_size
            archive.filelist.append(copy)
        small.header_offset = 0
        archive._didModify = True
    assert "is no checkpoint (its entries overlap)" in refusal(path)


def test_an_entry_that_is_a_folder(path):
    """One bit of the directory, which no checksum covers: torch takes what lies in memory for its numbers."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("model/data/0").external_attr ^= 0x10
        archive._didModify = True
    assert "is damaged (model/data/0 is a folder)" in refusal(path)


def test_one_of_several_archives(path):
    """zipfile.is_zipfile raises."""
    data = bytearray(Path(path).read_bytes())
    locator = data.rindex(b"PK\x06\x07")
    data[locator + 16] ^= 2  # the number of disks
    Path(path).write_bytes(data)
    assert "is damaged (zipfiles that span multiple disks are not supported)" in refusal(path)


class Swelling:
    """A few bytes of a pickle that torch allows, and very many in memory."""

    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        return bytearray, (self.size,)


@pytest.mark.parametrize("legacy", [False, True])
def test_memory(path, legacy):
    options = {"_use_new_zipfile_serialization": False} if legacy else {}
    before = resource.getrlimit(resource.RLIMIT_DATA)
    torch.save({"model": {"a": torch.ones(1)}, "more": Swelling(10)}, path, **options)
    read_checkpoint(path)
    torch.save({"model": {"a": torch.ones(1)}, "more": Swelling(3 * 10**9)}, path, **options)
    assert "cannot be read as a checkpoint (MemoryError)" in refusal(path)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_very_many_entries(path):
    rewrite(path, entries(path) | {f"model/{number}": b"" for number in range(50_000)})
    assert "is no checkpoint (50008 entries)" in refusal(path)


@pytest.mark.parametrize("mmap", [True, False])
def test_shapes_without_numbers(path, mmap):
    torch.save({"model": {"a": torch.zeros(1).expand(10**12)}}, path)
    assert "holds 'a' of shape (1000000000000,), but not as many numbers" in refusal(path, mmap=mmap)
    torch.save({"model": {"a": torch.zeros(6).as_strided((5, 5), (0, 1))}}, path)
    assert "not as many numbers" in refusal(path, mmap=mmap)


def test_a_shape_beyond_its_storage(path):
    content = entries(path)
    size = b"K\x00K\x04\x85"  # offset 0, shape (4,)
    name = next(name for name in content if name.endswith("data.pkl"))
    assert content[name].count(size) == 1
    content[name] = content[name].replace(size, b"K\x00\x8a\x05" + (10**10).to_bytes(5, "little") + b"\x85")
    rewrite(path, content)
    assert "cannot be read as a checkpoint" in refusal(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(10**12, device="meta"),
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.tensor([1.0]), (10**12,), check_invariants=False),
        torch.zeros(3, dtype=torch.complex64),
    ],
)
def test_tensors_that_are_no_plain_numbers(path, tensor):
    torch.save({"model": {"a": tensor}}, path)
    assert "holds 'a', which is no tensor of plain numbers" in refusal(path)


def test_a_file_out_of_proportion(path):
    """A sparse file, say: it costs no disk, but hours to read."""
    with open(path, "ab") as stream:
        stream.truncate(2**40)
    assert "has 1099511627776 bytes, the weights of the network have 40" in refusal(
        path, model=nn.Linear(4, 2)
    )


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_what_is_no_plain_file(tmp_path, name):
    fifo = str(tmp_path / name)
    os.mkfifo(fifo)
    for file in (fifo, "/dev/zero", str(tmp_path)):
        assert "is no plain file" in refusal(file) and damage(file) == "is no plain file"
    assert "no file" in refusal(fifo + "x")


def test_addresses():
    zoo = "detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x/139514544/model_final_dbfeb4.pkl"
    assert refusal(f"https://dl.fbaipublicfiles.com/{zoo}").endswith(
        f"is no file; write it as {zoo.replace('/', '://', 1)}"
    )
    assert refusal("https://example.org/a.pth").endswith("is no file; download it and give its path")


@pytest.mark.parametrize("key", ["model", "model_state", "model_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_weights(path, key, prefix):
    weights = {f"{prefix}{name}": torch.ones(1) for name in ("a", "b.module.c")}
    torch.save({key: weights, "epoch": 3} if key else weights, path)
    assert list(read_checkpoint(path)["model"]) == ["a", "b.module.c"]


def test_a_prefix_of_some_is_none(path):
    torch.save({"model": {"module.a": torch.ones(1), "b": torch.ones(1)}}, path)
    assert list(read_checkpoint(path)["model"]) == ["module.a", "b"]


@pytest.mark.parametrize("value", [None, 1, "text", [1], {"a": 1}, {1: ["a"]}, {"a": [None]}])
@pytest.mark.parametrize("key", ["meta", "space", "classes", "settings"])
def test_malformed_records(path, key, value):
    """What one may say of a model is a mapping; without any, the names and shapes of the weights count."""
    sound = key == "meta" and isinstance(value, dict) or key in ("space", "classes") and value is None
    torch.save({"model": {"a": torch.ones(1)}, key: value}, path)
    if sound:
        read_checkpoint(path)
    else:
        assert "has malformed records of its model" in refusal(path)
