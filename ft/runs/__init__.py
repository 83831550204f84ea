"""A run's folder: written, resumed, opened again, described, merged, shared."""

from ft.runs.folder import Run, Target, check_folder
from ft.runs.hub import pull, push
from ft.runs.opened import Finished, Opened, find, finished, load, recipe
from ft.runs.record import finish, start

__all__ = [
    "check_folder",
    "find",
    "finish",
    "Finished",
    "finished",
    "load",
    "Opened",
    "pull",
    "push",
    "recipe",
    "Run",
    "start",
    "Target",
]
