"""Memory and time of a run, before anything is loaded."""

from ft.plan.peak import Plan, plan_of
from ft.plan.settings import check_memory, of_run

__all__ = [
    "check_memory",
    "of_run",
    "Plan",
    "plan_of",
]
