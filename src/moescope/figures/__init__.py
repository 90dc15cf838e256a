"""Style and the few chart forms all figures share: `style` (sizes, colors, small print) and `charts`."""

from moescope.figures import charts, style
from moescope.figures.style import caption, figure, styled

__all__ = ["caption", "charts", "figure", "style", "styled"]
