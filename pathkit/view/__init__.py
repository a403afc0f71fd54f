"""Views: interactive in a notebook, a picture where nothing can be interactive.

Views take arrays, tables and callables, never a model, and give what is selected back as rows of a table. When the
environment variable PATHKIT_STATIC is set (as when notebooks are executed for committing), a view stores a PNG of itself
instead of widgets, which a notebook opened later without its kernel could not show.
"""

from pathkit.view.threshold import ThresholdExplorer, draw_outlines, is_static

__all__ = ["ThresholdExplorer", "draw_outlines", "is_static"]
