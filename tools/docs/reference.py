"""The reference page: every option of every command, and every config key, from the code itself."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import commands

_ASSIGNED = re.compile(r"^\s*(\w+)((?:\.[A-Z0-9_]+)+) = ")
_ALIAS = re.compile(r"^\s*(\w+) = (\w+)((?:\.[A-Z0-9_]+)+)$")
_HEADING = re.compile(r"^\s*# -{5,}")


def reference() -> str:
    """The page in Markdown."""
    return "\n".join(
        (
            "# Options and keys",
            "",
            "Made from the code when these pages are built. Commands first, then config keys: "
            "[ours](#keys-of-auto-panoptic) and [Detectron2's](#keys-of-detectron2).",
            "",
            *_options(),
            *_keys(),
            "",
        )
    )


# ------------------------------------------------------------------ options


def _options() -> Iterator[str]:
    for words in commands.commands():
        parser = commands.parser_of(words)
        rows = list(_rows(parser))
        if not rows:
            continue
        yield from (f"## `{' '.join(('python', *words))}`", "")
        if words[0] in commands.MAIN:
            yield from ("`KEY VALUE` pairs at the end change the config.", "")
        yield from ("| option | default | meaning |", "|---|---|---|", *rows, "")


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A row for each option that --help shows, but for --help itself; the kinds of a command one by one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind in action._choices_actions:
                yield f"| **`{kind.dest}`** | | {_cell(kind.help or '')} |"
                yield from _rows(action.choices[kind.dest])
            continue
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{_metavar(action)}`"
        if action.option_strings and action.nargs != 0:
            names += f" `{_metavar(action)}`"
        default = action.default
        shown = "" if default in (None, False, argparse.SUPPRESS, "", [], ()) else f"`{_short(default)}`"
        words = " ".join((action.help or "").split())
        meaning = words % {"default": default, "prog": parser.prog} if words else ""
        if action.choices and action.nargs is None:
            meaning += f" ({', '.join(map(str, action.choices))})"
        yield f"| {names} | {_cell(shown)} | {_cell(meaning)} |"


def _metavar(action: argparse.Action) -> str:
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    name = " ".join(name) if isinstance(name, tuple) else name
    return f"{name} ..." if action.nargs in ("+", "*", argparse.REMAINDER) else name


# ------------------------------------------------------------------ keys


def _keys() -> Iterator[str]:
    from detectron2.config import get_cfg

    from auto_panoptic.validate import defaults, flat

    values = defaults()
    theirs = set(dict(flat(get_cfg())))
    texts = described()
    yield from ("## Keys of Auto-Panoptic", "")
    yield from ("Keys without a meaning here are those of Detectron2's DeepLab and Panoptic-DeepLab.", "")
    yield from _key_table((key for key in values if key not in theirs), values, texts)
    yield from ("", "## Keys of Detectron2", "")
    link = "https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references"
    yield from (f"They mean what [Detectron2's reference]({link}) says, where nothing else is said.", "")
    yield from _key_table((key for key in values if key in theirs), values, texts)


def _key_table(keys, values: dict, texts: dict[str, str]) -> Iterator[str]:
    from auto_panoptic.validate import REFUSED, rule_of

    refused = {key: f"Only {neutral!r}: {reason}." for key, neutral, reason in REFUSED}
    yield from ("| key | default | may be | meaning |", "|---|---|---|---|")
    for key in keys:
        allowed = "" if key in refused else rule_of(key).expected
        meaning = " ".join(filter(None, (texts.get(key, ""), refused.get(key, ""))))
        default = _cell(f"`{_short(values[key])}`")
        yield f"| `{key}` | {default} | {_cell(allowed)} | {_cell(meaning)} |"


def described() -> dict[str, str]:
    """{full key: the comment above it in the code}; keys in a row below one comment share it."""
    from detectron2.config import defaults as detectron2_defaults
    from detectron2.projects.deeplab import config as deeplab
    from detectron2.projects.panoptic_deeplab import config as panoptic_deeplab

    from auto_panoptic.explore import POLICY_REGISTRY

    texts = {}
    for module in (detectron2_defaults, deeplab, panoptic_deeplab):
        texts |= _comments(Path(inspect.getsourcefile(module)), shared=False)
    for path in sorted((commands.ROOT / "auto_panoptic").rglob("*config*.py")):
        texts |= _comments(path, shared=True)
    for policy in POLICY_REGISTRY.values():
        summary = policy.__doc__.splitlines()[0].partition("; see")[0].rstrip(".")
        texts |= {policy.full_key(key): f"Policy `{policy.name}`: {summary}." for key in policy.keys}
    return texts


def _comments(path: Path, shared: bool) -> dict[str, str]:
    """Comments above assignments to keys; ``shared``: an assignment right below another has its comment."""
    texts, aliases, lines, last = {}, {}, [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if alias := _ALIAS.match(line):
            aliases[alias[1]] = aliases.get(alias[2], "") + alias[3]
        if _HEADING.match(line) or not line.strip():
            lines, last = [], ""
        elif line.lstrip().startswith("#"):
            lines.append(line.lstrip().lstrip("# "))
        elif found := _ASSIGNED.match(line):
            key, text = (aliases.get(found[1], "") + found[2]).removeprefix("."), " ".join(lines)
            texts[key] = text or (last if shared else "")
            if text:
                last = text if line.endswith("CN()") else f"See `{key}`."
            lines = []
        else:
            lines = []
    return texts


def _short(value) -> str:
    text = str(value) if isinstance(value, str) and value else repr(value)
    text = text.replace(str(commands.ROOT) + "/", "")
    return text.replace("`", "'")


def _cell(text: str) -> str:
    """Text of a table's cell: no column and, outside of code, no tag and no emphasis begins in it."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
