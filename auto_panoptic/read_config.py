"""Reading a config: a YAML file with its bases, KEY VALUE pairs, modules to import. No file runs code."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher

from detectron2.config import CfgNode, get_cfg

from .config import add_auto_panoptic_config
from .config_files import read_files, read_text
from .errors import UserError
from .files import HOME
from .validate import defaults, shortened, validate


def find_config(config_file: str) -> str:
    """Path of a config: the file itself, or that of this name here or in Detectron2's model zoo.

    Names of ours begin with configs/, and are known in any folder. UserError if there is none.
    """
    if not config_file:
        raise UserError("--config-file is missing; give one, for example configs/quick/supernet.yaml")
    if os.path.isfile(config_file):
        return config_file
    if config_file.startswith("configs/") and (HOME / config_file).is_file():
        return str(HOME / config_file)
    from detectron2 import model_zoo  # needs torch

    try:
        return model_zoo.get_config_file(config_file)
    except RuntimeError:
        remedy = "see configs/, or name one of Detectron2's model zoo"
        raise UserError(f"--config-file: no file {config_file!r}; {remedy}") from None


def given_config(config: CfgNode, opts: Sequence[str] = ()) -> CfgNode:
    """A copy of a config that a program has made, with ``opts``; every value is checked.

    Raises:
        UserError: as :func:`read_config`; our keys were not added.
    """
    if "NAS" not in config:
        raise UserError("the config lacks NAS: call add_auto_panoptic_config(cfg) before you merge files")
    cfg = config.clone()
    cfg.defrost()
    return with_options(cfg, _split_imports(opts)[0])


def read_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config at ``config_file`` with ``opts``, over the defaults; every value is checked by itself.

    The modules of IMPORTS are imported first, so that they can register components. Where one has a function
    ``add_config(cfg)``, that adds its keys. IMPORTS counts in the file named here and in ``opts``; a base or
    a file found elsewhere cannot make a command import anything.

    ``config_file`` may also name a config of Detectron2's model zoo, such as
    ``COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml``; ``opts`` are ``KEY VALUE`` pairs.

    Raises:
        UserError: a file that is missing, no plain YAML or a base of itself; an unknown key; a value of
            another type or one that means nothing; a module that cannot be imported.
    """
    path = find_config(config_file)
    opts, named = _split_imports(opts)
    own, *bases = read_files(path)
    if other := [file["VERSION"] for file in (own, *bases) if file.get("VERSION", 2) != 2]:
        raise UserError(f"{config_file}: VERSION is {shortened(other[0])}; expected 2, Detectron2's today")
    modules = _imports(config_file, own.get("IMPORTS"))
    for base in bases:
        if missing := set(_imports(config_file, base.get("IMPORTS"))) - set(modules):
            problem = f"{config_file}: a base of it has IMPORTS {min(missing)}, which only"
            names = ", ".join(sorted({*modules, *missing}))
            raise UserError(f"{problem} the config you name may do: add IMPORTS: [{names}] there")
    cfg = _defaults_with(import_modules(modules if named is None else named))
    _merge(cfg, config_file, lambda: cfg.merge_from_file(path, allow_unsafe=False))
    return with_options(cfg, opts)


def config_of_text(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """As :func:`read_config`, of the ``text`` of a config without bases that another file, ``source``, holds.

    That cannot make a program import anything: modules of its IMPORTS must have been imported, or ``opts``
    name them.

    Raises:
        UserError: as :func:`read_config`; a module was not imported.
    """
    opts, named = _split_imports(opts)
    content = read_text(text, source)
    modules = _imports(source, content.get("IMPORTS"))
    if missing := [name for name in modules if name not in {*sys.modules, *(named or ())}]:
        problem = f"{source}: its network needs the module {missing[0]}, which only you may import"
        raise UserError(f"{problem}: import it before, or add IMPORTS [{','.join(modules)}] to the options")
    cfg = _defaults_with(import_modules(modules))
    _merge(cfg, source, lambda: cfg.merge_from_other_cfg(CfgNode(content)))
    return with_options(cfg, opts)


def _defaults_with(modules: Iterable) -> CfgNode:
    """Detectron2's defaults with our keys, and those of ``modules``."""
    cfg = get_cfg()
    add_auto_panoptic_config(cfg)
    for module in modules:
        if hasattr(module, "add_config"):
            module.add_config(cfg)
    return cfg


def _split_imports(opts: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """``opts`` with a value of IMPORTS that a config takes, and the modules that it names; None: no such."""
    if flags := [opt for opt in opts if str(opt).startswith("--")]:  # argparse gives the rest to opts
        raise UserError(f"{flags[0]} stands after KEY VALUE pairs: options come before them")
    opts, modules = list(opts), None
    for place in range(0, len(opts) - 1, 2):
        if opts[place] == "IMPORTS":
            modules = opts[place + 1] = _imports("command line", opts[place + 1])
    return opts, modules


def with_options(cfg: CfgNode, opts: Sequence[str] = ()) -> CfgNode:
    """``cfg`` with the ``KEY VALUE`` pairs ``opts``, in place; every value is checked. UserError if wrong."""
    for key in opts[: len(opts) // 2 * 2 : 2]:
        if key not in _keys(cfg):
            raise _unknown(cfg, "command line", key)
        if defaults().get(key, "") is None:  # it may be a number or a name: one must not refuse the other
            cfg.merge_from_list([key, None])
    _merge(cfg, "command line", lambda: cfg.merge_from_list(opts))
    validate(cfg)
    return cfg


def import_modules(names: Iterable[str]) -> list:
    """Import the modules of IMPORTS, as ``python -m`` finds them; UserError if one cannot be imported."""
    modules = []
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            modules.append(importlib.import_module(name))
        except ImportError as error:
            problem = f"IMPORTS: {name!r} cannot be imported ({error})"
            raise UserError(f"{problem}; it is looked for in this folder and on PYTHONPATH") from error
    return modules


def _imports(source: str, value) -> list[str]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            value = [value]
    names = list(value) if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(n, str) and all(part.isidentifier() for part in n.split(".")) for n in names):
        raise UserError(f"{source}: IMPORTS is {value!r}; expected a list of modules, [my.module]")
    return names


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found += [prefix + key] + (_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [])
    return found


def _unknown(cfg: CfgNode, source: str, key: str) -> UserError:
    def likeness(known: str) -> float:
        pairs = [(key[:100], known), (key.rpartition(".")[2][:100], known.rpartition(".")[2])]
        whole, end = (SequenceMatcher(None, a.upper(), b, autojunk=False).ratio() for a, b in pairs)
        return max(whole, 0.9 * end + 0.1 * whole)

    scores = {known: likeness(known) for known in _keys(cfg) + ["_BASE_"] * (key[:1] == "_")}
    least = max(0.6, max(scores.values()) - 0.15)
    near = sorted((known for known in scores if scores[known] > least), key=lambda k: -scores[k])[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "auto_panoptic/config.py lists the keys"
    if "." in key and key in scores:  # with its dots in a file
        hint = f"a file has no dots in it but levels: {key.replace('.', ': {')}: ...{'}' * key.count('.')}"
    return UserError(f"{source}: unknown config key {shortened(key)}; {hint}")


def _merge(cfg: CfgNode, source: str, merge: Callable[[], None]) -> None:
    """Run a yacs merge; its exceptions become one line naming the source and the nearest key."""
    try:
        merge()
    except (KeyError, ValueError, AssertionError, TypeError, RecursionError, MemoryError) as error:
        message = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
        if unknown := re.search(r"Non-existent (?:config )?key: (\S+)", message):
            raise _unknown(cfg, source, unknown[1]) from None
        if section := re.search(r"\.CfgNode'> vs.* for config key: (\S+)", message):
            message = f"{section[1]} is a section; give the keys in it"
        raise UserError(f"{source}: {message if len(message) < 400 else message[:400] + '...'}") from None
