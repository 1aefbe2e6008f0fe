"""Visual questions without end: pictures rendered on the spot, with answers that rules can check.

    settings = read_settings("charts", {"kinds": ["bar", "line"]})
    example = render("charts", settings, seed=0, index=7, is_heldout=False)

One file per task; each draws a scene (what is shown and asked, without pixels) and paints it.
"""

from rl.data.tasks.pictures.drawing import VisualExample
from rl.data.tasks.pictures.tasks import TASKS, ask, draw_scene, read_settings, render

__all__ = ["TASKS", "VisualExample", "ask", "draw_scene", "read_settings", "render"]
