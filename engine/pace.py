"""How long a training will take: a rough word before its first step, the measured one after a few, and signs of life.

All of it goes to the console and log.txt alone; metrics.jsonl and its means do not know of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from config import Config
from dataloaders.io.progress import due, duration
from dataloaders.overview import counted
from engine.device import machine_memory_gb, peak_memory_gb

PUBLISHED_WIDTH = 64  # channels_G
# Of docs/benchmarks.md, for 256² at published width on a CPU: seconds of one core per image, and GB per image and apart.
CORE_SECONDS, PLAIN_CORE_SECONDS = 11.0, 27.0
IMAGE_GB, FIXED_GB = 2.9, 2.4
STEPS, SECONDS = 5, 20.0  # the time is told after so many steps, or after the first that ends so late
PATIENCE = 45.0  # seconds until a word on a first step that has not ended


def expectation(config: Config, size: tuple[int, int], length: int, device: torch.device) -> list[str]:
    """Lines on what is to come, for slices of `size` and epochs of `length` images."""
    lines = []
    if config.model != "gmm":
        total = config.num_epochs * length
        lines.append(f"{total:,} images: {config.num_epochs} epochs of {length:,}, {config.batch_size} a step")
        lines += advice(config, size, total, device)
    if config.metrics == "none":
        lines.append("validation: none (--metrics none), so the best weights are the newest")
    return lines


def advice(config: Config, size: tuple[int, int], total: int, device: torch.device) -> list[str]:
    """What to expect of networks of published width on a CPU, and what is for such machines; nothing for others."""
    if device.type != "cpu" or config.gan is None or config.gan.channels_G < PUBLISHED_WIDTH:
        return []
    threads, share = torch.get_num_threads(), size[0] * size[1] / 256**2
    seconds = (CORE_SECONDS if config.tuned else PLAIN_CORE_SECONDS) * share / threads
    memory = FIXED_GB + IMAGE_GB * share * config.batch_size
    return [
        f"networks of published width are for GPUs: on this CPU ({counted(threads, 'thread')}) expect roughly "
        f"{rate_words(1 / seconds, total)}, and {memory:.0f} GB of memory (of {machine_memory_gb():.0f} GB here)",
        "for such machines: --preset demo (minutes on two cores), or small (a night)",
    ]


def rate_words(images_per_second: float, images: int) -> str:
    """``120 s per 1,000 images, 2:00:00 for 60,000``."""
    return f"{1000 / images_per_second:,.0f} s per 1,000 images, {duration(images / images_per_second)} for {images:,}"


class Pace:
    """Says when a training's time is known, and later how far it is where the log has been silent for long.

    say: takes a line. total: images of the whole run; seen: those before this process.
    """

    def __init__(self, say: Callable[[str], None], total: int, seen: int, device: torch.device) -> None:
        self.say, self.total, self.to_come, self.device = say, total, total - seen, device
        self.steps, self.told = 0, False
        self.start = self.said = self.since = time.monotonic()
        self.first = seen
        self._timer = threading.Timer(
            PATIENCE, say, (f"still in the first step after {PATIENCE:.0f} s (the time it takes is told when it ends)",)
        )
        self._timer.daemon = True
        self._timer.start()

    def logged(self) -> None:
        """The log has said how far the training is."""
        self.said = time.monotonic()

    def after_step(self, images: int) -> None:
        """images: seen by now, the step's own included."""
        now = time.monotonic()
        self.steps += 1
        self._timer.cancel()
        speed = (images - self.first) / max(now - self.since, 1e-9)
        if self.steps == 1:  # it warms up, so it counts only while nothing better is known
            self.since, self.first = now, images
        if not self.told and (self.steps >= STEPS or now - self.start > SECONDS):
            self.told, self.said = True, now
            memory = peak_memory_gb(self.device)
            self.say(f"time: about {rate_words(speed, self.to_come)}; {memory:.1f} GB of memory so far")
        elif self.told and due(now, self.start, self.said):
            self.said = now
            left = duration((self.total - images) / speed)
            self.say(f"{images:>10,}/{self.total:,} images  {speed:.3g}/s  {left} left")

    def close(self) -> None:
        """No more lines."""
        self._timer.cancel()
