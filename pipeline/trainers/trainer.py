"""nnU-Net's trainer with a length that the study file chooses. nnU-Net finds it through nnUNet_extTrainer."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

# On a CPU nnU-Net takes all cores of the machine, whatever it was given: on a shared one they wait for each other. This
# file is read after that, by training and by prediction.
if "MEDSIS_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["MEDSIS_THREADS"]))


def _number(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


class nnUNetTrainerMedsis(nnUNetTrainer):  # noqa: N801 (nnU-Net's way of naming)
    """Epochs, steps and validation batches from MEDSIS_EPOCHS, MEDSIS_ITERATIONS, MEDSIS_VAL_ITERATIONS.

    nnU-Net seeds nothing. Here weights start the same every time; batches do where augmentation has no processes of its own.
    """

    # nnU-Net reads the names of these parameters and finds each among the local variables, so they are spelled out.
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: Any) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        for seeded in (random.seed, np.random.seed, torch.manual_seed):
            seeded(fold)
        self.num_epochs: int = _number("MEDSIS_EPOCHS", 1000)
        self.num_iterations_per_epoch: int = _number("MEDSIS_ITERATIONS", 250)
        self.num_val_iterations_per_epoch: int = _number("MEDSIS_VAL_ITERATIONS", 50)
        # Short runs must leave something to go on from, too.
        self.save_every: int = max(1, min(50, self.num_epochs // 10))
        self.print_to_log_file(f"threads: {torch.get_num_threads()}")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the study's test slices are what counts, and this would predict every validation slice once more."""
        self.print_to_log_file("validation of whole slices left to the study")
