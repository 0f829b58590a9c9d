#!/usr/bin/env python
"""Makes ``.venv``: a virtual environment with torch, the project, panopticapi and Detectron2.

Run by ``make``; needs the standard library only, and refuses a Python that is not a supported one. A stamp is
written last: an environment without it, such as that of an interrupted run, is made anew, with what pip has
downloaded so far. One with an older stamp is brought up to date. Of two runs at once, one waits.

Environment: ``TORCH_PIP_ARGS`` is passed to the installation of torch, for example
``TORCH_PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"`` for the smaller build without CUDA.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONSTRAINTS = os.path.join(ROOT, "tools", "constraints.txt")
STAMP = ".installed"
HEARTBEAT = 30  # seconds between signs of life where no line can be written anew
# Seconds that the steps take the first time on a usual machine and line, for the time left.
STEPS = {
    "virtual environment": 5,
    "build tools": 5,
    "torch and torchvision": 150,
    "dependencies and the project": 70,
    "panopticapi": 5,
    "bytecode": 30,
    "Detectron2": 15,
}
SUPPORTED = ((3, 11), (3, 14))  # from, below


class SetupError(Exception):
    """The environment cannot be made; the message is one line with the remedy."""


def say(text):
    print("[setup] " + text, flush=True)


def check_python(version=None):
    """Raises SetupError on Windows, and for a Python that is unsupported or cannot make environments."""
    if sys.platform == "win32":
        raise SetupError("Windows is not supported: run the same command in WSL 2, or on Linux or macOS")
    version = tuple(version or sys.version_info[:2])
    name = f"{version[0]}.{version[1]}"
    if not SUPPORTED[0] <= version < SUPPORTED[1]:
        raise SetupError(
            f"Python {name} is not supported: 3.11, 3.12 and 3.13 are. "
            "Install one of them, or name it: make PYTHON=/path/to/python3.11"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError(
            f"this Python has no venv module; on Debian or Ubuntu: apt install python{name}-venv"
        ) from None


def run(title, command, log=None):
    """Runs one step, showing what it downloads and the time left; SetupError when it fails.

    The output of the command, pip's warnings among it, goes to the file ``log``; where the step fails the
    end of it is shown.
    """
    name, start, told = title.split(":")[0], time.time(), time.time()
    anew = sys.stdout.isatty()  # a line can be written anew
    before, end = ("\r\x1b[K", "") if anew else ("", "\n")
    say(title)
    with tempfile.TemporaryFile("w+b") if log is None else open(log, "a+b") as stream:
        begin = stream.seek(0, os.SEEK_END)
        with subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream) as process:
            while process.poll() is None:
                time.sleep(0.2)
                if time.time() - told > (1 if anew else HEARTBEAT):
                    told, spent = time.time(), time.time() - start
                    what = f"{fetched(stream, begin)}{spent:.0f} s, about {left(name, spent)} left"
                    print(f"{before}[setup]   ... {what}", end=end, flush=True)
        print(end=before, flush=True)
        if process.returncode:
            stream.seek(begin)
            lines = stream.read().decode(errors="replace").splitlines()
            print("\n".join(lines[-20:]), file=sys.stderr)
            raise SetupError(
                f"the step '{name}' failed (see above{f', all of it: {log}' if log else ''}); "
                "when the cause is gone, run the same make command again"
            )
    say(f"  done in {time.time() - start:.0f} s")


def fetched(stream, begin):
    """What pip works on, such as "torch (766.7 MB), "; empty where it does not say."""
    output = os.pread(stream.fileno(), 1 << 20, max(begin, os.fstat(stream.fileno()).st_size - (1 << 20)))
    pattern = r"Downloading (?:\S*/)?([^\s/]+?)-\d\S* (\([\d.]+ [kMG]B\))"
    if b"Installing collected packages" in output:
        return "unpacking, "
    found = re.findall(pattern, output.decode(errors="replace"))
    return f"{' '.join(found[-1])}, " if found else ""


def left(name, spent):
    """About how long this step, of which ``spent`` seconds are over, and those after it take.

    One that takes longer than usual is expected to be not the only one.
    """
    names, usual = list(STEPS), STEPS.get(name, 30)
    after = sum(STEPS[other] for other in names[names.index(name) + 1 :]) if name in names else 0
    seconds = max(usual - spent, spent / 5, 5) + after * max(spent / usual, 1)
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"


def works(python):
    """Whether this Python exists, runs and is a supported one."""
    probe = f"import sys; sys.exit(not {SUPPORTED[0]} <= sys.version_info[:2] < {SUPPORTED[1]})"
    try:
        return subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def site_packages(python):
    """The folder that pip installs to."""
    where = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    return subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()


def compile_bytecode(python):
    """Compiles on all cores what pip was told not to compile one file after the other.

    Where PYTHONDONTWRITEBYTECODE is set, each import of torch would else cost some seconds more, for ever.
    """
    skip = r"/(tests?|testing/_internal)/"
    command = [python, "-m", "compileall", "-q", "-q", "-j", "0", "-x", skip, site_packages(python)]
    start = time.time()
    say("bytecode: the first time half a minute")
    subprocess.run(command)  # some packages carry files for other versions of Python: no error
    say(f"  done in {time.time() - start:.0f} s")


def install(venv, anew):
    """Makes the environment in the folder ``venv`` anew, or brings it up to date."""
    begin = time.time()
    python = os.path.join(venv, "bin", "python")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "-c", CONSTRAINTS]
    pip += ["--progress-bar", "off"]
    log = venv.rstrip("/") + ".log"
    with open(log, "w"):
        say(f"what pip and the others say: {log}")
    if anew or not works(python):
        title = f"virtual environment: {venv} with Python {sys.version.split()[0]}"
        run(title, [sys.executable, "-m", "venv", "--clear", venv], log)
    run("build tools", [*pip, "setuptools", "wheel"], log)
    extra = shlex.split(os.environ.get("TORCH_PIP_ARGS", ""))
    title = "torch and torchvision: the first time a download of 2 to 3 GB"
    run(title, [*pip, *extra, "torch", "torchvision"], log)
    run(
        "dependencies and the project: the first time about a minute",
        [*pip, "--no-build-isolation", "-e", ".[dev]"],
        log,
    )
    # Its metadata demands numpy<2; its code runs on numpy 2.
    run("panopticapi", [*pip, "--no-deps", "panopticapi-lite"], log)
    compile_bytecode(python)
    installer = os.path.join(ROOT, "tools", "install_detectron2.py")
    run("Detectron2", [python, installer, "--cache", os.path.join(venv, "cache")], log)
    with open(os.path.join(venv, STAMP), "w") as stream:
        stream.write("installed\n")
    say(f"ready after {time.time() - begin:.0f} s: {venv}")


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--venv", default=os.path.join(ROOT, ".venv"), help="folder of the environment")
    args = parser.parse_args(argv)
    try:
        check_python()
        import fcntl

        venv = os.path.abspath(args.venv)
        inputs = [__file__, CONSTRAINTS, os.path.join(ROOT, "pyproject.toml")]
        tools = os.path.join(ROOT, "tools")
        inputs += [os.path.join(tools, name) for name in os.listdir(tools) if "detectron2" in name]
        with open(venv.rstrip("/") + ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                say(f"another installation into {venv} is running: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            stamp = os.path.join(venv, STAMP)
            finished = os.path.exists(stamp)
            if finished and os.path.getmtime(stamp) >= max(os.path.getmtime(f) for f in inputs):
                return 0
            if finished:
                os.remove(stamp)
            install(venv, anew=not finished)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; run the same make command again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
