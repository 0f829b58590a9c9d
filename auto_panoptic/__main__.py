"""``python -m auto_panoptic COMMAND ...``, installed as ``auto-panoptic``: the commands, from any folder."""

import argparse
import runpy
import sys

from .errors import need_detectron2
from .files import HOME

SCRIPTS = {
    "train": ("train_net.py", "train a supernet or a network, or evaluate one"),
    "search": ("search_net.py", "search a trained supernet"),
    "demo": ("demo.py", "segment photos and videos"),
    "install-detectron2": ("tools/install_detectron2.py", "install Detectron2 where there is none"),
}
MODULES = {
    "analyze": ("analyze", "what a network costs, part by part, beside another"),
    "bundle": ("bundle", "show a bundle, or make one of a checkpoint"),
    "check": ("data.check", "check a data set"),
    "compare": ("compare", "evaluated networks beside each other, with intervals of their differences"),
    "convert": ("data.convert", "make a COCO-panoptic set of the annotations of other tools"),
    "doctor": ("doctor", "show versions and prove the operators"),
    "export": ("export", "write a network as TorchScript or ONNX"),
    "latency": ("latency", "measure the time of parts, or of every operator for a limit"),
    "own-data": ("own_data", "from annotated photographs to a network of your own"),
    "report": ("report", "write the report of a search"),
}
COMMANDS = SCRIPTS | MODULES
WITHOUT_DETECTRON2 = ("install-detectron2", "doctor", "report")
EPILOG = """commands (each has --help):
{}

train, search and demo are train_net.py, search_net.py and demo.py. Configs are found in any folder by their
names here, such as --config-file configs/quick/supernet.yaml. Several processes:
    torchrun --nproc-per-node 2 -m auto_panoptic train --config-file configs/quick/supernet.yaml"""


def main() -> None:
    """Run the command that the first argument names, as if its file had been called."""
    rows = "\n".join(f"    {name:<20} {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="auto-panoptic",
        description="The commands of Auto-Panoptic, from any folder.",
        epilog=EPILOG.format(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    args = parser.parse_args()
    if args.command not in WITHOUT_DETECTRON2:
        need_detectron2()
    sys.argv[1:] = args.words
    if args.command in MODULES:
        name = MODULES[args.command][0]
        runpy.run_module(f"auto_panoptic.{name}", run_name="__main__", alter_sys=True)
        return
    script = HOME / SCRIPTS[args.command][0]
    sys.argv[0] = str(script)
    sys.path.insert(0, str(HOME))  # demo.py imports train_net
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
