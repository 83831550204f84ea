"""A run's folder: written, resumed, opened again, described, merged, shared."""

from ft.runs.folder import Run as Run
from ft.runs.folder import Target as Target
from ft.runs.folder import check_folder as check_folder
from ft.runs.hub import pull as pull
from ft.runs.hub import push as push
from ft.runs.opened import Finished as Finished
from ft.runs.opened import Opened as Opened
from ft.runs.opened import find as find
from ft.runs.opened import finished as finished
from ft.runs.opened import load as load
from ft.runs.opened import recipe as recipe
from ft.runs.record import finish as finish
from ft.runs.record import start as start
