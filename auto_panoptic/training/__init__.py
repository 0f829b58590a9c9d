"""Supernet training and retraining: one loop, one checkpoint format, one setup."""

from .checkpoint import AtomicCheckpointer, check_model, check_weights, load_weights
from .data_loader import build_train_loader
from .fair_trainer import FairCycleTrainer, FairSamplingHook, model_space
from .launch import launch_processes
from .setup import build_config, run_command
from .trainer import AutoPanopticTrainer, check_training

__all__ = [
    "AtomicCheckpointer",
    "AutoPanopticTrainer",
    "FairCycleTrainer",
    "FairSamplingHook",
    "build_config",
    "build_train_loader",
    "check_model",
    "check_training",
    "check_weights",
    "launch_processes",
    "load_weights",
    "model_space",
    "run_command",
]
