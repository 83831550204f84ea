"""Whether a run can go right, what it will need and how long it takes, before anything is loaded."""

from ft.plan.checks import checked
from ft.plan.peak import Plan, plan_of
from ft.plan.settings import check_memory, of_run

__all__ = [
    "check_memory",
    "checked",
    "of_run",
    "Plan",
    "plan_of",
]
