"""What a command says when it ends: its error alone, or its warnings."""

import logging
import warnings

import pytest
from test_cli import toy  # noqa: F401
from torch.distributed import HashStore
from toy import run_script

from auto_panoptic import errors
from auto_panoptic.errors import Diverged, UserError, hold_warnings, run_command, show_warnings


def warn():
    hold_warnings()
    warnings.warn("an old function", stacklevel=2)
    logger = logging.getLogger("a.library.without.handlers")
    logger.propagate = False  # pytest has handlers at the root
    logger.warning("an %s", "old file")
    logger.propagate = True


@pytest.fixture(autouse=True)
def as_a_command():
    """Pytest's filters for warnings are out of the way; afterwards all is as before."""
    before = logging.lastResort
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
    assert logging.lastResort is before


@pytest.mark.parametrize("error, code", [(UserError, 2), (Diverged, 3)])
@pytest.mark.parametrize("said, text", [(False, "error: it is so\n"), (True, "")])
def test_an_error_stands_alone(capsys, monkeypatch, said, text, error, code):
    """Of the processes of a run the first to fail speaks, whichever it is."""
    monkeypatch.setattr(errors, "shared_store", HashStore())
    assert not said or errors.shared_store.add(errors._SAID, 1)

    def main():
        warn()
        raise error("it is so")

    with pytest.raises(SystemExit) as end:
        run_command(main)
    assert end.value.code == code and capsys.readouterr().err == text


def test_warnings_of_a_run_that_starts_are_shown(capsys):
    def main():
        warn()
        assert capsys.readouterr().err == ""
        show_warnings()
        err = capsys.readouterr().err
        assert "UserWarning: an old function" in err and err.endswith("an old file\n")

    run_command(main)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_what_is_held_at_the_end_is_shown(capsys, error):
    def main():
        warn()
        if error:
            raise error

    if error:
        with pytest.raises((SystemExit, ZeroDivisionError)):
            run_command(main)
    else:
        run_command(main)
    err = capsys.readouterr().err
    assert "an old function" in err and "an old file\n" in err


@pytest.mark.parametrize("script", ["train_net", "search_net"])
def test_commands_hold_what_is_said_before_they_start(capsys, toy, script):  # noqa: F811
    """Here the class counts, which follow from the data, and cpu in place of cuda."""
    options = ("MODEL.WEIGHTS", "nowhere.pth", "MODEL.DEVICE", "cuda")
    with pytest.raises(SystemExit):
        run_script(script, "--config-file", toy, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: MODEL.WEIGHTS: no file 'nowhere.pth'")


def test_a_message_is_one_line_whatever_names_it_holds():
    assert str(UserError("site 'a\nb\r\nc\u2028d' has no operator")) == "site 'a\\nb\\nc\\nd' has no operator"
