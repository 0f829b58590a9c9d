"""Who evaluates the candidates: ``in_process``, one candidate on each of the ``ranks``, ``ray`` workers."""
