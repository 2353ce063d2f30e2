"""Training: STG, the methods it is judged against, and comparisons of them all, on one loop."""

from __future__ import annotations

from pymtg.trainers._errors import (
    CheckpointWarning,
    KeepBestWarning,
    NonFiniteLossError,
    NotFittedError,
    UnlabelledTaskWarning,
)
from pymtg.trainers.baselines import ensemble, mtl, random_groups, stl
from pymtg.trainers.compare import ABLATIONS, METHODS, VIEWS, compare
from pymtg.trainers.comparison import Comparison, ComparisonView, Difference, MethodSummary, Summary
from pymtg.trainers.config import ModelFactory, OptimizerFactory, SchedulerFactory, TrainConfig
from pymtg.trainers.dmtg import DMTGTrainer
from pymtg.trainers.results import DMTGResult, EpochRecord, MethodResult, StageResult, STGResult
from pymtg.trainers.stg import STGTrainer

__all__ = [
    "ABLATIONS",
    "METHODS",
    "VIEWS",
    "CheckpointWarning",
    "Comparison",
    "ComparisonView",
    "DMTGResult",
    "DMTGTrainer",
    "Difference",
    "EpochRecord",
    "KeepBestWarning",
    "MethodResult",
    "MethodSummary",
    "ModelFactory",
    "NonFiniteLossError",
    "NotFittedError",
    "OptimizerFactory",
    "STGResult",
    "STGTrainer",
    "SchedulerFactory",
    "StageResult",
    "Summary",
    "TrainConfig",
    "UnlabelledTaskWarning",
    "compare",
    "ensemble",
    "mtl",
    "random_groups",
    "stl",
]
