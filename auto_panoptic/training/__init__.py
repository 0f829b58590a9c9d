"""Supernet training and retraining: one loop, one checkpoint format, one setup."""

# ruff: noqa: F401
from ..errors import run_command
from ..read_config import find_config
from .checkpoint import AtomicCheckpointer
from .gradients import build_optimizer, model_space
from .launch import launch_parser, launch_processes, processes
from .loader import build_train_loader
from .loop import FairCycleTrainer
from .run import build_config, check_run, started, train, train_in
from .schedule import build_lr_scheduler
from .trainer import AutoPanopticTrainer, check_training
from .unread import check_unread, given_keys, is_read
from .weights import check_weights, load_weights
