"""Learning from rewards."""

from ft.rewards.guards import Guards as Guards
from ft.rewards.guards import Vitals as Vitals
from ft.rewards.guards import Watch as Watch
from ft.score.rewards import Reward as Reward
from ft.score.rewards import chrf_of as chrf_of
from ft.score.rewards import language as language
from ft.score.rewards import length as length
from ft.score.rewards import matches as matches
from ft.score.rewards import no_repetition as no_repetition
from ft.score.rewards import number_of as number_of
from ft.score.rewards import weighted as weighted
