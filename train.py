"""Train a label-to-image method: ``python train.py --name exp --dataroot path``. The same command again resumes."""

from __future__ import annotations

import sys
from contextlib import closing

import engine.signals  # noqa: F401  # isort: skip

from config import Config, parse_train
from dataloaders.io.console import tracked
from dataloaders.io.ranks import rank
from engine.command import exit_code
from engine.methods.base import workflow_of
from engine.run import Run, only_trains
from models import build_method


def train(config: Config) -> int:
    """The whole run; returns the exit code."""
    workflow = workflow_of(config)  # the method's data and validation
    workflow.check_start()  # before the data, which may take longer to read
    workflow.read()
    with closing(Run(workflow)) as run:
        return learn(run)


def learn(run: Run) -> int:
    """From where the run stands to its end, or until it is asked to stop; returns the exit code."""
    workflow, config = run.workflow, run.config
    train_loader = workflow.loader()
    run.introduce(workflow.overview(), len(train_loader))
    method = build_method(config, run.data.spec).to(run.device)
    workflow.equip(method)
    players = method.players()  # none for the GMM; generator and discriminator for OASIS
    run.track(method, players, train_loader)
    state = run.state
    run.speed_up()
    run.load_latest()  # same command again = resume
    if run.finished_before:
        run.log.say(
            f"{config.name}: already finished; raise --num_epochs or what ended it to go on, or choose another --name"
        )
        return 0

    if not players and not run.done:
        batches = tracked(train_loader.share(), "fit", len(train_loader) // run.world_size, rank() == 0, len)
        method.fit(batch.to(run.device) for batch in run.unless_stopped(batches))
        state.images_seen = len(train_loader)
    if players and state.step == 0 and (warning := method.calibrate(run.first_batches())):
        run.log.say(f"warning: {warning}")

    with run.kept():
        for batch in run.timed(train_loader.endless(start=state.images_seen)):
            if run.done:
                break  # enough images, or Slurm asked us to stop
            parts = run.entered(batch).parts(config.accumulate)  # one, unless memory is short
            for name, player in players.items():
                if state.step % player.every == 0:
                    with only_trains(player, players):
                        for part in run.turn(name, parts):
                            with run.autocast():
                                losses = player.losses(part)  # named scalars, already weighted; logged by name
                            run.backward(losses, part)
                        run.step(name)
            run.settle(batch, parts)  # losses to the log; the end, where they are no numbers
            method.after_step(state.step)  # moving average
            state.advance(batch)
            run.report(batch)
            run.maybe_preview()
            run.maybe_evaluate()
            run.maybe_save()
        return run.finish()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: train(parse_train())))
