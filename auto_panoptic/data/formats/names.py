"""Names of files in a JSON: they stay below the folder that they belong to."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from ...errors import UserError

RELATIVE = "write a path below the folder of the files, without '..' and without '/' in front"


def name_problem(name: object) -> str | None:
    """Why ``name`` cannot be the name of a file below a folder, or None.

    Derived files are named after those in the JSON: a name that leaves its folder would overwrite a file
    elsewhere, and an absolute one the very file it names.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return "is no name of a file"
    if name.startswith("/"):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    return "names a folder" if parts[-1] in ("", ".") else None


def png_name(name: str) -> str:
    """Name of what is derived from the panoptic PNG ``name``: the same, normalised, ending in ".png"."""
    return str(PurePosixPath(name).with_suffix(".png"))


def below(folder: str | os.PathLike, name: str, sources: str | os.PathLike) -> Path:
    """The path of ``name`` below ``folder``, which may itself be a link, with its folder made, for writing.

    Raises:
        UserError: the name or a link in ``folder`` leads elsewhere, or ``folder`` is a link into ``sources``.
    """
    path, root = Path(folder) / name, Path(folder).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    parent = path.parent.resolve()
    if name_problem(name) or not parent.is_relative_to(root):
        raise UserError(f"{path} leads out of {folder}, to {parent}; remove the link, nothing was written")
    if Path(folder).is_symlink() and root.is_relative_to(Path(sources).resolve()):
        raise UserError(f"{folder} is a link into {sources}, whose files are only read; remove the link")
    return path
