"""From a folder of annotated photographs to a searched, retrained and evaluated network, in one command.

    python -m auto_panoptic.own_data my --output output/my --max-macs 3G --onnx

The folder holds panoptic.json, panoptic/ and images/, as python -m auto_panoptic.data.convert writes it. The
command checks every file, sets images aside, one part to score candidates and one to evaluate the result, and
runs three commands that it shows: supernet training, search and retraining, with configs/own/; with --onnx a
fourth, which writes the network as an ONNX file. --opts changes settings of all. What to expect:
docs/own_data.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from . import signals
from .data.check import format_report, run_check
from .data.check.sets import from_paths
from .data.formats.findings import ERROR
from .data.search_split import write_split
from .data.source import paths_in
from .errors import UserError, hold_warnings, run_command, show_warnings
from .explore.budget import parse_amount
from .export import check_onnx
from .files import HOME, WriterLock, read_bytes, write_text
from .read_config import read_config
from .training.run_folder import check_unused

FEW = 100  # images below which a network learns little
ONNX = "network.onnx"
STAGES = ("supernet", "retrain")
LIMITS = ("--max-macs", "--max-params")
# Images that the recipes' lengths are meant for: fewer are trained on for fewer steps, down to a quarter.
WHOLE_LENGTH = {"cpu": 100, "gpu": 1000}
LEAST_LENGTH = 0.25
# Part of the images, at most so many.
SHARES = {"val": (0.15, 1000), "search": (0.15, 500)}


def share(part: str, images: int) -> int:
    """How many of ``images`` go to "val" or "search" unless the user says."""
    fraction, most = SHARES[part]
    return max(1, min(round(fraction * images), most))


def checked(name: str, paths: dict[str, str], processes: int | None) -> int:
    """Read every file of a set and print its classes; returns the number of images.

    Raises:
        UserError: an error in the set, after all of them were printed.
    """
    report = run_check(from_paths(name, paths), processes, progress=sys.stderr.isatty())
    if report.interrupted:
        raise report.interrupted
    print(format_report(report), flush=True)
    if errors := report.number(ERROR):
        raise UserError(f"{name}: {errors} error{'s' * (errors != 1)}, listed above; mend the set and repeat")
    return report.total


def split(panoptic_json: Path, folder: Path, sizes: dict[str, int], seed: int) -> dict[str, Path]:
    """Write the parts of the images: {"train", "search", "val": JSON}, and "all" to retrain with.

    Args:
        panoptic_json: all images.
        folder: where the parts go.
        sizes: {"search": images, "val": images}; without "val", none are set aside for it.
        seed: of the draws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"all": panoptic_json}
    draws = [("val", "all")] * ("val" in sizes) + [("search", "train")]
    for drawn, rest in draws:
        names = {"nas_train": rest, "nas_val": drawn}
        targets = {part: folder / f"{name}.json" for part, name in names.items()}
        write_split([parts["all"]], lambda _, part, to=targets: to[part], sizes[drawn], seed)
        parts |= {name: targets[part] for part, name in names.items()}
    return parts


def recipe_file(recipe: str, stage: str) -> Path:
    """The config of configs/own/ for one of :data:`STAGES`."""
    return HOME / f"configs/own/{'cpu_' if recipe == 'cpu' else ''}{stage}.yaml"


def length(recipe: str, images: int) -> float:
    """The part of a recipe's steps that a set of so many images is trained for, unless the user says."""
    return min(max(images / WHOLE_LENGTH[recipe], LEAST_LENGTH), 1.0)


def scaled(solver, steps: int) -> dict:
    """The schedule of ``cfg.SOLVER``, squeezed or stretched to so many iterations."""
    if steps == solver.MAX_ITER:
        return {}
    factor = steps / solver.MAX_ITER
    return {
        "MAX_ITER": steps,
        "STEPS": sorted({round(step * factor) for step in solver.STEPS} - {0, steps}),
        "WARMUP_ITERS": min(solver.WARMUP_ITERS, steps // 5),
        "CHECKPOINT_PERIOD": max(1, min(solver.CHECKPOINT_PERIOD, steps)),
    }


def write_config(path: Path, base: Path, content: dict, resume: bool) -> None:
    """A config over ``base``; UserError where a run to be resumed had another one."""
    head = f"# Written by python -m auto_panoptic.own_data.\n_BASE_: {base}\n"
    text = head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)
    if resume and path.exists() and read_bytes(path).decode(errors="replace") != text:
        raise UserError(
            f"--resume: {path} says otherwise; give the options of the first call, or another --output"
        )
    write_text(path, text)


def check_search(command: list[str]) -> None:
    """Raise UserError for what the search could not start with, before hours of training."""
    from .search import command as search

    args = search.parser().parse_args(command)
    search.check_arguments(args)
    cfg = search.search_config(args)
    costs, request = search.configured_costs(cfg), search.selection_request(args)
    search.check_budget(costs, request.max_macs, request.max_params)
    search.search_policy(cfg, costs.space)
    show_warnings(drop=True)  # the commands say it again


def shown_command(words: list[str]) -> str:
    """What a user would type for a command of this package."""
    return shlex.join(["python", "-m", "auto_panoptic", *words])


def run(words: list[str]) -> None:
    """Run a command of this package and show it; a signal is passed on to it.

    Raises:
        UserError: it failed.
    """
    print(f"\n$ {shown_command(words)}", flush=True)
    command = [sys.executable, "-m", "auto_panoptic", *words]
    child = subprocess.Popen(command, **signals.bound(OMP_WAIT_POLICY="passive"))
    try:
        code = child.wait()
    except KeyboardInterrupt as error:
        child.send_signal(getattr(error, "number", signal.SIGINT))
        child.wait()  # a training ends after the running step; a second signal ends both at once
        error.args = ("interrupted; --resume continues",)
        raise
    finally:
        child.kill()
    if code:
        raise UserError(f"the command above ended with exit code {code}; --resume goes on from there")


def own_data(args: argparse.Namespace) -> None:
    """Check, split, train the supernet, search, retrain and evaluate."""
    output, paths = args.output, _paths(args)
    images = checked(str(args.folder or args.panoptic_json), paths, args.processes)
    if args.val is not None:
        checked(str(args.val), paths_in(args.val), args.processes)
    sizes = _sizes(args, images)
    for stage in STAGES:
        steps = f"{stage}_steps"
        if getattr(args, steps) is None:
            whole = read_config(str(recipe_file(args.recipe, stage))).SOLVER.MAX_ITER
            setattr(args, steps, round(length(args.recipe, images) * whole))
    if not args.resume:
        check_unused(str(output / "supernet"))
    output.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(output / "own_data.lock", protects=str(output), option="--output")
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        parts = split(Path(paths["panoptic_json"]), output / "data", sizes, args.seed)
        commands = _commands(args, _write_configs(args, paths, parts))
        check_search(commands["search"][1:])
        shown = {"train": images - sum(sizes.values()), **sizes}
        print("\nimages: " + ", ".join(f"{number} {part}" for part, number in shown.items()))
        print(f"steps: {args.supernet_steps} supernet, {args.retrain_steps} retraining", flush=True)
        if args.resume and (output / "supernet/model_final.pth").exists():
            del commands["supernet"]
        for command in commands.values():
            run(command)
    made = {
        "architecture": output / "search/architecture.json",
        "report": output / "search/report.html",
        "network": output / "retrain/bundle.pth",
    } | ({"onnx": output / ONNX} if args.onnx else {})
    print("\n" + "\n".join(f"{name:<14}{path}" for name, path in made.items()))
    drawn = ["--bundle", str(output / "retrain"), "--input", "PHOTOS", "--output", str(output / "drawn")]
    print(f"\nnow: {shown_command(['demo', *drawn])}")


def _sizes(args: argparse.Namespace, images: int) -> dict[str, int]:
    """{"val", "search": images that are set aside}; UserError where too few are left."""
    sizes = {} if args.val is not None else {"val": args.val_images or share("val", images)}
    left = images - sum(sizes.values())
    sizes["search"] = args.search_images or share("search", max(left, 1))
    if sizes["search"] >= left:
        wanted = " and ".join(f"{number} for {part}" for part, number in sizes.items())
        remedy = "add images, or give --val-images and --search-images"
        raise UserError(f"{images} images are too few to set {wanted} aside; {remedy}")
    if images < FEW:
        print(f"\n{images} images: enough to try the commands; a network to use needs hundreds", flush=True)
    return sizes


def _commands(args: argparse.Namespace, configs: dict[str, str]) -> dict[str, list[str]]:
    """{stage: command and arguments}."""
    supernet, retrain = (["--config-file", configs[stage]] for stage in ("supernet", "retrain"))
    trained = str(args.output / "supernet/model_final.pth")
    resume = ["--resume"] * args.resume
    start = ["MODEL.WEIGHTS", str(args.weights)] if args.weights else []
    limits = [word for option in LIMITS for word in _given(args, option)]
    begun = ["--resume"] * (args.resume and (args.output / "search/ledger.jsonl").exists())
    searched = ["--weights", trained, *limits, *begun, *args.opts, "OUTPUT_DIR", str(args.output)]
    commands = {
        "supernet": ["train", *supernet, *resume, *args.opts, *start],
        "search": ["search", *supernet, *searched],
        "retrain": ["train", *retrain, *resume, *args.opts, "MODEL.WEIGHTS", trained],
    }
    if args.onnx:
        final = str(args.output / "retrain/model_final.pth")
        written = ["--output", str(args.output / ONNX), *args.opts, "MODEL.WEIGHTS", final]
        commands["export"] = ["export", *retrain, *written]
    return commands


def _given(args: argparse.Namespace, option: str) -> list[str]:
    value = getattr(args, option[2:].replace("-", "_"))
    return [] if value is None else [option, value]


def _paths(args: argparse.Namespace) -> dict[str, str]:
    given = {key: getattr(args, key) for key in ("panoptic_json", "panoptic_root", "image_root")}
    if args.folder is not None:
        if any(given.values()):
            raise UserError("give the folder of the set, or --panoptic-json and the other paths, not both")
        if not args.folder.is_dir():
            raise UserError(f"{args.folder} is no folder")
        return paths_in(args.folder)
    if not all(given.values()):
        raise UserError(
            "name the folder of the set, or give --panoptic-json, --panoptic-root and --image-root"
        )
    return {key: os.path.expanduser(value) for key, value in given.items()}


def _write_configs(args: argparse.Namespace, paths: dict, parts: dict[str, Path]) -> dict[str, str]:
    """{"supernet", "retrain": config in the output folder}."""
    output = args.output

    def entry(name: str, panoptic_json: Path, roots: dict) -> dict:
        places = {key: roots[key] for key in ("panoptic_root", "image_root")}
        places |= {"panoptic_json": panoptic_json, "derived_root": output / "data/derived"}
        return {"name": f"own_{name}", **{key: os.path.abspath(path) for key, path in places.items()}}

    validation = entry("val", parts["val"], paths) if args.val is None else None
    if validation is None:
        own = paths_in(args.val)
        same = {"categories": os.path.abspath(paths["panoptic_json"])}
        validation = {**entry("val", Path(own["panoptic_json"]), own), **same}
    sets = {
        "supernet": [
            entry("train", parts["train"], paths),
            entry("search", parts["search"], paths),
            validation,
        ],
        "retrain": [entry("all", parts["all"], paths), validation],
    }
    configs = {}
    for stage, entries in sets.items():
        base, path = recipe_file(args.recipe, stage), output / f"{stage}.yaml"
        names = {"TRAIN": [entries[0]["name"]], "TEST": ["own_val"]}
        if stage == "supernet":
            names["SEARCH"] = ["own_search"]
        content = {"DATASETS": {"COCO_PANOPTIC": entries, **names}, "OUTPUT_DIR": str(output / stage)}
        if solver := scaled(read_config(str(base)).SOLVER, getattr(args, f"{stage}_steps")):
            content["SOLVER"] = solver
        if stage == "retrain":
            content["NAS"] = {"ARCHITECTURE": str(output / "search/architecture.json")}
        write_config(path, base, content, args.resume)
        configs[stage] = str(path)
    return configs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m auto_panoptic.own_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, help="folder with panoptic.json, panoptic/ and images/")
    add("--panoptic-json", metavar="FILE", help="in place of the folder: the COCO-panoptic JSON")
    add("--panoptic-root", metavar="FOLDER", help="with it: folder of its PNGs")
    add("--image-root", metavar="FOLDER", help="with it: folder of its images")
    add(
        "--val", type=Path, metavar="FOLDER", help="another set to evaluate on (default: a part of the first)"
    )
    add(
        "--val-images", type=int, metavar="N", help="images that only evaluate (default: 15 %%, at most 1000)"
    )
    text = "images that score candidates (default: 15 %% of the rest, at most 500)"
    add("--search-images", type=int, metavar="N", help=text)
    add(
        "--output", type=Path, default=Path("output/own"), help="folder of all results (default: %(default)s)"
    )
    add("--resume", action="store_true", help="go on with what is in --output")
    add("--recipe", choices=("gpu", "cpu"), help="configs/own/ for one GPU, or for a few CPU cores")
    add("--max-macs", metavar="N", help="most multiply-adds of the network, e.g. 3G")
    add("--max-params", metavar="N", help="most parameters of the network, e.g. 20M")
    add("--onnx", action="store_true", help="write the network as an ONNX file, too, compared with it")
    add("--weights", type=Path, metavar="FILE", help="the supernet starts from these weights")
    text = "fair cycles of the supernet (default: the recipe's; fewer for few images)"
    add("--supernet-steps", type=int, metavar="N", help=text)
    text = "iterations of the retraining (default: the recipe's; fewer for few images)"
    add("--retrain-steps", type=int, metavar="N", help=text)
    add("--seed", type=int, default=0, help="of the draw of the parts (default: 0)")
    add("--processes", type=int, help="processes that check the files (default: one per CPU, up to 16)")
    text = "KEY VALUE ... for all three commands; last"
    add("--opts", default=[], nargs=argparse.REMAINDER, help=text)
    return parser


def main() -> None:
    """Run the command."""
    hold_warnings()
    args = _parser().parse_args()
    for option in ("val-images", "search-images", "supernet-steps", "retrain-steps", "processes"):
        value = getattr(args, option.replace("-", "_"))
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}; expected at least 1")
    if args.val is not None and args.val_images is not None:
        raise UserError("--val names the images to evaluate on: leave out --val-images")
    for option in LIMITS:
        for value in _given(args, option)[1:]:
            parse_amount(value, option)
    if args.onnx:
        check_onnx("--onnx")
    args.recipe = args.recipe or ("gpu" if torch.cuda.is_available() else "cpu")
    signals.end_with_parent()
    own_data(args)


if __name__ == "__main__":
    run_command(main)
