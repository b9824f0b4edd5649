"""The adversarial methods: slices of pairs, or for OASIS labels and images of which none belong together."""

from __future__ import annotations

from pathlib import Path

import torch

from config import Config
from dataloaders.io.weights import load_state, resolve
from dataloaders.overview import counted, grid
from dataloaders.plain_folder import load_manifest
from dataloaders.slices import BatchLoader
from dataloaders.unpaired import UnpairedDataset, other_scale, unpaired_manifest
from engine.device import machine_memory_gb
from engine.methods.synthesis import SynthesisWorkflow
from engine.pace import rate_words
from models.base import Method
from models.gan.adversarial import Gan

PUBLISHED_WIDTH = 64  # channels_G
# Of docs/benchmarks.md, for 256² at published width on a CPU: seconds of one core per image, and GB per image and apart.
CORE_SECONDS, PLAIN_CORE_SECONDS = 11.0, 27.0
IMAGE_GB, FIXED_GB = 2.9, 2.4


class GanWorkflow(SynthesisWorkflow):
    """SPADE, and what OASIS shares with it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.neighbours, self.row, self.crop = config.own.neighbours, config.own.row, config.own.crop

    def pretrained(self) -> list[str]:
        """The networks of the perceptual losses."""
        weights = {"vgg19": self.config.own.lambda_vgg, "efficientnet_lite1": self.config.own.lambda_lite}
        return [key for key, weight in weights.items() if weight > 0]

    def equip(self, method: Method) -> None:
        """Pretrained weights."""
        assert isinstance(method, Gan)
        for key in self.pretrained():
            method.load_pretrained(key, load_state(resolve(key, self.config.weights)))

    def overview(self) -> list[str]:
        """What was found, in lines; also where a 2.5-D generator has nothing beside its slices."""
        lines = super().overview()
        if self.neighbours and all(len(case.slices) == 1 for case in self.data.split("train")):
            lines.append("neighbours: no training case has more than one slice, so each stands for its neighbours too")
        return lines

    def advice(self, images: int, device: torch.device) -> list[str]:
        """What to expect of networks of published width on a CPU, and what is for such machines; nothing for others."""
        if device.type != "cpu" or self.config.own.channels_G < PUBLISHED_WIDTH:
            return []
        height, width = self.crop or self.data.spec.size
        threads, share = torch.get_num_threads(), height * width / 256**2
        seconds = (CORE_SECONDS if self.config.tuned else PLAIN_CORE_SECONDS) * share / threads
        memory = FIXED_GB + IMAGE_GB * share * self.config.batch_size
        return [
            f"networks of published width are for GPUs: on this CPU ({counted(threads, 'thread')}) expect roughly "
            f"{rate_words(1 / seconds, images)}, and {memory:.0f} GB of memory (of {machine_memory_gb():.0f} GB here)",
            "for such machines: --preset demo (minutes on two cores), or small (hours)",
        ]


class OasisWorkflow(GanWorkflow):
    """Unpaired, --dataroot gives the label maps and --oasis.images_from the images."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.unpaired = config.oasis.unpaired  # nothing is compared without pairs, but names that are given are checked
        self.metrics_needed = not (self.unpaired and config.metrics == "auto")

    def sources(self) -> dict[str, Path]:
        """The folder of the images."""
        given = self.config.oasis.images_from
        return {"--oasis.images_from": given} if self.unpaired and given is not None else {}

    @property
    def images_from(self) -> Path:
        """Folder whose training images are imitated."""
        return self.config.oasis.images_from or self.config.dataroot

    def read(self) -> None:
        """Pairs, or label maps and images."""
        if not self.unpaired:
            return super().read()
        labels = self.read_labels()
        try:
            same = self.images_from.resolve() == self.config.dataroot.resolve()  # then of the drawn patients alone, too
            self.images = labels if same else load_manifest(self.images_from, histograms=False)
        except (ValueError, OSError) as error:
            raise ValueError(str(error).replace("--dataroot", "--oasis.images_from")) from None
        self.images.refuse_bare(self.images_from, "train", "image")
        self.data = unpaired_manifest(labels, self.images)
        return None

    def overview(self) -> list[str]:
        """What was found, in lines."""
        lines = super().overview()
        if self.unpaired:
            slices = sum(len(case.slices) for case in self.images.split("train"))
            what = f"images to imitate, unpaired: {slices:,} training slices of {self.images_from}"
            lines += [f"{what}; {grid(self.images.spec)}", *other_scale(self.data.spec, self.images.spec)]
        return lines

    def training_loader(self) -> BatchLoader:
        """Pairs, or label maps with images in an order of their own."""
        if not self.unpaired:
            return super().training_loader()
        c = self.config
        labels = self.training_slices(c.dataroot, self.data, "labels")
        images = self.training_slices(self.images_from, self.images, "images")
        return BatchLoader(labels, c.batch_size, c.seed, c.num_workers, UnpairedDataset(labels, images, c.seed))
