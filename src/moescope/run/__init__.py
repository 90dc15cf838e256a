"""The public `capture`: questions -> their statistics, one pass or a trace -> tables, figures, a folder."""

from moescope.run.capturing import Run, capture

__all__ = ["Run", "capture"]
