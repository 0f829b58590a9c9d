"""Adds to the pages of docs/ those that are made: the reference, and texts that lie elsewhere in the project.

A hook of MkDocs (mkdocs.yml); "make docs" builds the pages.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from commands import ROOT  # noqa: E402
from reference import reference  # noqa: E402

# Texts that lie where people look for them, {page: file}.
TEXTS = {
    "data_sets.md": "datasets/README.md",
    "model_zoo.md": "MODEL_ZOO.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
MADE = ("reference.md", *TEXTS)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)")


def on_files(files, config):
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for page in MADE:
        content = reference() if page == "reference.md" else text_of(page)
        files.append(File.generated(config, page, content=content))
    return files


def text_of(page: str) -> str:
    """A text from elsewhere: links to other pages lead there, those to files become the files' names."""
    source = Path(TEXTS[page])
    pages = {file: name for name, file in TEXTS.items()} | {"README.md": "index.md"}

    def link(found: re.Match) -> str:
        target = (source.parent / found[2]).as_posix()
        name = pages.get(target, target.removeprefix("docs/") if target.startswith("docs/") else "")
        if name:
            return f"[{found[1]}]({name}{found[3] or ''})"
        return f"`{target}`" if found[1] == "yaml" else found[1]

    return _LINK.sub(link, (ROOT / source).read_text(encoding="utf-8"))
