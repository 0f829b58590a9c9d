"""Supernet training and retraining: one loop, one checkpoint format, one setup."""

from ..errors import run_command
from ..read_config import find_config
from .checkpoint import AtomicCheckpointer, check_resume, has_checkpoint
from .config import build_config
from .gradients import build_optimizer, model_space
from .hooks import RecentMetrics
from .launch import launch_processes, processes
from .loader import build_train_loader
from .loop import FairCycleTrainer
from .run import check_run, started, train, train_in
from .run_folder import check_unused, only_run
from .schedule import build_lr_scheduler
from .trainer import AutoPanopticTrainer, check_supernet, check_training
from .unread import check_unread
from .weights import check_weights, load_weights

__all__ = [
    "AtomicCheckpointer",
    "AutoPanopticTrainer",
    "FairCycleTrainer",
    "RecentMetrics",
    "build_config",
    "build_lr_scheduler",
    "build_optimizer",
    "build_train_loader",
    "check_resume",
    "check_run",
    "check_supernet",
    "check_training",
    "check_unread",
    "check_unused",
    "check_weights",
    "find_config",
    "has_checkpoint",
    "launch_processes",
    "load_weights",
    "model_space",
    "processes",
    "run_command",
    "only_run",
    "started",
    "train",
    "train_in",
]
