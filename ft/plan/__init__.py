"""Memory and time of a run, before anything is loaded."""

from ft.plan.peak import Plan as Plan
from ft.plan.peak import plan_of as plan_of
from ft.plan.settings import check_memory as check_memory
from ft.plan.settings import of_run as of_run
