"""Learning from rewards."""

from ft.rewards.guards import Guards as Guards
from ft.rewards.guards import Watch as Watch
from ft.score.rewards import Reward as Reward
from ft.score.rewards import chrf_of as chrf_of
