"""Train a label-to-image method: ``python train.py --name exp --dataroot path``. The same command again resumes."""

from __future__ import annotations

import sys

from config import Config, parse_train
from dataloaders.folder import load_manifest
from dataloaders.io.manifest import Manifest
from dataloaders.io.progress import tracked
from dataloaders.io.ranks import rank
from dataloaders.lesions.loading import lesion_loaders
from dataloaders.overview import grid, overview
from dataloaders.segmentation_task import SegmentationTask
from dataloaders.slices import SliceDataset, SliceLoader
from dataloaders.unpaired import UnpairedLoader, other_scale, unpaired_manifest
from engine.command import exit_code
from engine.judge import Judge, SegmentationJudge, SynthesisJudge
from engine.run import Run, TrainingState, check_start, only_trains
from models import build_method, wanted_weights
from models.base import Method
from models.segmenter.method import Segmenter


def load_data(config: Config) -> tuple[Manifest, Manifest | None]:
    """The data to synthesise, and for unpaired training those that the real images come from."""
    data = load_manifest(config.dataroot, config.model == "lesion", config.patient_regex)
    for split in ("train", "val"):
        data.refuse_bare(config.dataroot, split, "label map")
    if not config.unpaired:
        data.refuse_bare(config.dataroot, "train", "image")
        return data, None
    try:
        images = load_manifest(config.oasis.images_from or config.dataroot, histograms=False)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace("--dataroot", "--oasis.images_from")) from None
    images.refuse_bare(config.oasis.images_from or config.dataroot, "train", "image")
    return unpaired_manifest(data, images), images


def build_loaders(config: Config, data: Manifest, images: Manifest | None) -> tuple[SliceLoader, SliceLoader | None]:
    """Loaders of the training and, where there is one, the validation split."""
    neighbours = config.gan.neighbours if config.gan else 0
    cases = data.split("train")
    if neighbours and all(len(case.slices) == 1 for case in cases):
        raise ValueError(
            f"--{config.model}.neighbours {neighbours}: no training case in {config.dataroot} has more than one slice"
        )
    common = ("train", config.flip, config.seed, config.cache_gb, neighbours)
    train_loader: SliceLoader
    if config.model == "lesion":
        return lesion_loaders(config, data)
    if images is None:
        training = SliceDataset(config.dataroot, data, *common)
        train_loader = SliceLoader(training, config.batch_size, config.seed, config.num_workers)
    else:
        source = config.oasis.images_from or config.dataroot
        labels = SliceDataset(config.dataroot, data, *common, read="labels")
        looks = SliceDataset(source, images, *common, read="images")
        train_loader = UnpairedLoader(labels, looks, config.batch_size, config.seed, config.num_workers)
    if not data.split("val"):
        return train_loader, None
    validation = SliceDataset(config.dataroot, data, "val", neighbours=neighbours)
    return train_loader, SliceLoader(validation, config.batch_size)


class Synthesis:
    """Label maps to images: what is trained on, and what judges it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.data, self.images = load_data(config)

    def overview(self) -> list[str]:
        """What was found, in lines."""
        lines = [f"data: {self.config.dataroot}", *overview(self.data)]
        if self.images is not None:
            source = self.config.oasis.images_from or self.config.dataroot
            slices = sum(len(case.slices) for case in self.images.split("train"))
            lines.append(
                f"images to imitate, unpaired: {slices:,} training slices of {source}; {grid(self.images.spec)}"
            )
            lines += other_scale(self.data.spec, self.images.spec)
        return lines

    def loader(self) -> SliceLoader:
        """The training slices."""
        loader, self.val_loader = build_loaders(self.config, self.data, self.images)
        return loader

    def judge(self, run: Run, method: Method) -> Judge:
        """After `loader`."""
        return SynthesisJudge(self.config, self.data, method, self.val_loader, run.folder, run.device)


class Segmentation(SegmentationTask):
    """Images to labels, likewise."""

    def judge(self, run: Run, method: Method) -> Judge:
        """Its validation scans are read now."""
        assert isinstance(method, Segmenter)
        return SegmentationJudge(self.config, method, self.validation(), run.device)


def train(config: Config) -> int:
    """The whole run; returns the exit code."""
    check_start(config, wanted_weights(config))  # before the data, which may take longer to read
    work = Segmentation(config) if config.model == "segmenter" else Synthesis(config)
    config = work.config
    run = Run(config, work.data)
    train_loader = work.loader()
    run.introduce(work.overview(), len(train_loader))
    method = build_method(config, work.data.spec).to(run.device)
    run.give_needed_files(method)
    players = method.players()  # none for the GMM; generator and discriminator for OASIS
    state = TrainingState()
    run.track(method, players, state, train_loader, work.judge(run, method))
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

    run.begin()
    with run.kept():
        for batch in run.timed(train_loader.endless(start=state.images_seen)):
            if run.done:
                break  # enough images, or Slurm asked us to stop
            batch = run.entered(batch)
            for name, player in players.items():
                if state.step % player.every == 0:
                    with only_trains(player, players):
                        with run.autocast():
                            losses = player.losses(batch)  # named scalars, already weighted; keys are what gets logged
                        run.step(name, losses, batch)  # backward, finite check, optimiser
            method.after_step()  # moving average
            state.advance(batch)
            run.report(batch)
            run.maybe_preview()
            run.maybe_evaluate()
            run.maybe_save()
        return run.finish()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: train(parse_train())))
