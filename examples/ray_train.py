"""A run under Ray Train, which starts the processes; needs `pip install "ray[train]"`, no dependency of the toolkit.

python examples/ray_train.py run.yaml WORKERS
"""

from __future__ import annotations

import sys

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def train(settings: dict[str, str]) -> None:
    """One worker; the toolkit reads RANK, WORLD_SIZE and LOCAL_RANK, which Ray has set."""
    from ai_finetuning.config.load import load_config
    from ai_finetuning.trainers.from_config import run_training

    run_training(load_config(settings["config"]))


workers = ScalingConfig(num_workers=int(sys.argv[2]), use_gpu=torch.cuda.is_available())
TorchTrainer(train, train_loop_config={"config": sys.argv[1]}, scaling_config=workers).fit()
