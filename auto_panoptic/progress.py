"""Work under way: a bar with the time left on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized

from tqdm import tqdm

FIRST_LINE = 10.0  # seconds; the lines that follow are ever further apart
LONGEST_SILENCE = 600.0
# Of work within other work: seconds before it gets a bar of its own, or a line.
NESTED_BAR, NESTED_LINE = 2.0, 60.0
_hidden = False
_under_way = 0
_BAR = "{desc} {percentage:3.0f}%|{bar}| {n:,} of {total:,}, {remaining} left{postfix}"


class Progress:
    """A bar on stderr if that is a terminal; else lines on stdout, where the work takes more than seconds.

    Within other work it only shows where it takes long, and its bar goes away at the end.

    Args:
        title: of the work.
        total: number of ``units`` there are; may be set later, :attr:`total`.
        units: what is counted, in the plural.
        done: number that was done before, which does not count for the time left.
        shown: False for the processes of a run that say nothing.
    """

    def __init__(
        self,
        title: str,
        total: int = 0,
        units: str = "images",
        done: int = 0,
        shown: bool = True,
    ):
        self.title, self.total, self.units, self.done = title, total, units, done
        self._start, self._before, self._values = time.monotonic(), done, ""
        global _under_way
        nested, _under_way = _under_way > 0, _under_way + 1
        self._first = NESTED_LINE if nested else FIRST_LINE
        self._next, self._said, self._closed = self._start + self._first, False, False
        terminal, shown = is_terminal(), shown and not _hidden
        self._lines, self._bar = shown and not terminal, None
        if shown and terminal:
            how = {"leave": not nested, "delay": NESTED_BAR * nested, "dynamic_ncols": True}
            how |= {"mininterval": 0.5, "bar_format": _BAR, "file": sys.stderr}
            self._bar = tqdm(desc=title, total=total, initial=done, **how)

    def update(self, number: int = 1, **values: str) -> None:
        """Count ``number`` more, with ``values`` to show behind them."""
        self.done += number
        self._values = "".join(f", {name} {value}" for name, value in values.items()) or self._values
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(self._values[2:], refresh=False)
            self._bar.update(number)
        elif self._lines and (now := time.monotonic()) >= self._next:
            spent, counted = now - self._start, self.done - self._before
            left = spent / counted * (self.total - self.done) if counted > 0 else None
            time_left = "" if left is None else f", {tqdm.format_interval(left)} left"
            self._say(f"{time_left}{self._values}")
            self._next = now + min(max(self._first, spent / 5), LONGEST_SILENCE)

    def skip(self, number: int) -> None:
        """Count ``number`` more that took no time; before all others they begin the time that is measured."""
        if number and self.done == self._before:
            self._start = time.monotonic()
            if self._bar is not None:
                self._bar.start_t = time.time()  # tqdm's clock
        self.done, self._before = self.done + number, self._before + number
        if self._bar is not None:
            self._bar.total, self._bar.initial, self._bar.n = self.total, self._before, self.done
            self._bar.refresh()

    def close(self) -> None:
        """The bar stays as it is; work that took long has a last line."""
        global _under_way
        if not self._closed:
            self._closed, _under_way = True, _under_way - 1
        if self._bar is not None:
            self._bar.close()
        spent = time.monotonic() - self._start
        if self._lines and (self._said or spent > self._first):
            self._say(f" in {tqdm.format_interval(spent)}{self._values}")
        self._bar, self._lines = None, False

    def _say(self, rest: str) -> None:
        self._said = True
        with contextlib.suppress(OSError, ValueError):  # nobody reads stdout any more: the work goes on
            print(f"{self.title}: {self.done:,} of {self.total:,} {self.units}{rest}", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def progress(items: Iterable, title: str, total: int | None = None, **options) -> Iterator:
    """The items, with the :class:`Progress` of what takes them; ``total`` of those without a length."""
    number = total if total is not None else len(items) if isinstance(items, Sized) else 0
    with Progress(title, number, **options) as shown:
        for item in items:
            yield item
            shown.update()


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Within the block no work shows its progress."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


def is_terminal() -> bool:
    """Whether stderr is one, on which a line can be written anew."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
