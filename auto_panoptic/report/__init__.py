"""The report of a search: a page that opens anywhere, and its figures as SVG and PNG.

``facts`` reads a ledger and the files beside it; ``score_map`` and each ``*_figure`` make one drawing, of
what ``drawing`` knows: rectangles, lines, marks and texts; ``wording`` says what the data show; ``page`` puts
all together. Needs neither torch nor Detectron2, but for the operators that a system registers.
"""

from .page import report_after_search, write_report

__all__ = ["report_after_search", "write_report"]
