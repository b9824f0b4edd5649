"""How long a training will take: a rough word before its first step, the measured one after a few, and signs of life.

All of it goes to the console and log.txt alone; metrics.jsonl and its means do not know of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from dataloaders.io.console import due, duration
from engine.device import cpu_has_bf16, peak_memory_gb
from engine.methods.base import Workflow

STEPS, SECONDS = 5, 20.0  # the time is known after so many steps, or after the first that ends so late


def expectation(workflow: Workflow, length: int, device: torch.device) -> list[str]:
    """Lines on what is to come, for epochs of `length` images."""
    lines, config = [], workflow.config
    if not config.method.fitted:
        total = config.num_epochs * length
        lines.append(f"{total:,} images: {config.num_epochs} epochs of {length:,}, {config.batch_size} a step")
        lines += workflow.advice(total, device)
        if config.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
            lines.append(
                "warning: this CPU has no bf16 arithmetic (AVX-512 BF16 or AMX) and imitates it, many times slower than "
                "--precision fp32, which a resumed run may take"
            )
    if config.metrics == "none":
        lines.append("validation: none (--metrics none), so the best weights are the newest")
    return lines


def rate_words(images_per_second: float, images: int) -> str:
    """``120 s per 1,000 images, 2:00:00 for 60,000``."""
    return f"{1000 / images_per_second:,.0f} s per 1,000 images, {duration(images / images_per_second)} for {images:,}"


class Pace:
    """Says when a training's time is known, and later how far it is where the log has been silent for long.

    say: takes a line. total: images of the whole run; seen: those before this process. said: when the log told how far it
    is, which others may set.
    """

    def __init__(self, say: Callable[[str], None], total: int, seen: int, device: torch.device) -> None:
        self.say, self.total, self.to_come, self.device = say, total, total - seen, device
        self.steps, self.known = 0, False
        self.start = self.said = self.since = time.monotonic()
        self.first = seen

    def after_step(self, images: int) -> None:
        """images: seen by now, the step's own included."""
        now = time.monotonic()
        self.steps += 1
        speed = (images - self.first) / max(now - self.since, 1e-9)
        if self.steps == 1:  # it warms up, so it counts only while nothing better is known
            self.since, self.first = now, images
        if not self.known and (self.steps >= STEPS or now - self.start > SECONDS):
            self.known, self.said = True, now
            memory = peak_memory_gb(self.device)
            self.say(f"time: about {rate_words(speed, self.to_come)}; {memory:.1f} GB of memory so far")
        elif self.known and due(now, self.start, self.said):
            self.said = now
            left = duration((self.total - images) / speed)
            self.say(f"{images:>10,}/{self.total:,} images  {speed:.3g}/s  {left} left")
