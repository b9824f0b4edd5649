"""Train a label-to-image method: ``python train.py --name exp --dataroot path``. The same command again resumes."""

from __future__ import annotations

import sys

from config import Config, parse_train
from dataloaders.dataset import SliceDataset, SliceLoader
from dataloaders.folder import load_manifest
from dataloaders.manifest import Manifest
from engine.command import exit_code
from engine.run import Run, TrainingState, only_trains
from models import build_method


def build_loaders(config: Config, data: Manifest) -> tuple[SliceLoader, SliceLoader | None]:
    """Loaders of the training and, where there is one, the validation split."""
    training = SliceDataset(config.dataroot, data, "train", config.flip, config.seed, config.cache_gb)
    train_loader = SliceLoader(training, config.batch_size, config.seed, config.num_workers)
    if not data.split("val"):
        return train_loader, None
    return train_loader, SliceLoader(SliceDataset(config.dataroot, data, "val"), config.batch_size)


def train(config: Config) -> int:
    """The whole run; returns the exit code."""
    data = load_manifest(config.dataroot)
    run = Run(config, data)
    train_loader, val_loader = build_loaders(config, data)
    method = build_method(config, data.spec).to(run.device)
    players = method.players()  # none for the GMM; generator and discriminator for OASIS
    state = TrainingState()
    run.track(method, players, state, train_loader, val_loader)
    run.load_latest()  # same command again = resume
    if run.finished_before:
        run.log.say(f"{config.name}: already finished; raise --num_epochs to go on, or choose another --name")
        return 0

    if not players and not run.done:
        method.fit(batch.to(run.device) for batch in train_loader.once())
        state.images_seen = len(train_loader)

    for batch in train_loader.endless(start=state.images_seen):
        if run.done:
            break  # enough images, or Slurm asked us to stop
        batch = batch.to(run.device)
        for name, player in players.items():
            if state.step % player.every == 0:
                with only_trains(player, players):
                    with run.autocast():
                        losses = player.losses(batch)  # named scalars, already weighted; the keys are what gets logged
                    run.step(name, losses, batch)  # backward, finite check, optimiser
        method.after_step()  # moving average
        state.advance(batch)
        run.report()
        run.maybe_preview()
        run.maybe_evaluate()
        run.maybe_save()
    return run.finish()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: train(parse_train())))
