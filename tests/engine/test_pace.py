"""What a training says about its time: before the first step, after a few, and where the log is silent for long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import parse_train
from dataloaders.io.manifest import Manifest
from engine import pace
from engine.methods import gan
from engine.methods.base import workflow_of
from engine.pace import Pace, expectation
from tests.toy import toy_spec

CPU = torch.device("cpu")
BASE = ["--name", "exp", "--dataroot", "data"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def expected(*flags: str, size: int = 256, device: torch.device = CPU) -> list[str]:
    workflow = workflow_of(parse_train([*BASE, *flags]))
    workflow.data = Manifest(replace(toy_spec(), size=(size, size)), (), {})
    return expectation(workflow, 300, device)


@pytest.mark.slow
def test_published_networks_on_a_cpu_say_what_they_cost_and_what_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    images, cost, instead = expected("--preset", "oasis")
    assert images == "60,000 images: 200 epochs of 300, 8 a step"
    assert "5,500 s per 1,000 images, 3 days, 19:40:00 for 60,000, and 26 GB of memory" in cost
    assert "--preset demo" in instead
    assert "small" in instead
    assert "1,375 s per 1,000 images" in expected("--preset", "oasis", size=128)[1]
    assert len(expected("--preset", "oasis", device=torch.device("cuda", 0))) == 1
    for preset in ("small", "demo"):
        assert len(expected("--preset", preset)) == 1
    assert len(expected("--preset", "spade")) == 3
    assert expected("--model", "gmm") == []
    assert "newest" in expected("--metrics", "none")[-1]


@pytest.mark.parametrize("native", [True, False])
def test_bf16_on_a_cpu_that_imitates_it_is_said_to_be_slow(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(pace, "cpu_has_bf16", lambda: native)
    bf16 = ("--preset", "demo", "--precision", "bf16")
    assert any("slower than --precision fp32" in line for line in expected(*bf16)) is not native
    assert not any("bf16" in line for line in expected("--preset", "demo"))
    assert not any("bf16" in line for line in expected(*bf16, device=torch.device("cuda", 0)))


def test_slow_steps_are_measured_within_a_minute(clock: list[float]) -> None:
    """With --freq_print 1000 a step of half a minute would say nothing for an hour."""
    said: list[str] = []
    steps = Pace(said.append, 6000, 0, CPU)
    clock[0] += 40
    steps.after_step(8)
    assert said[0].startswith("time: about 5,000 s per 1,000 images, 8:20:00 for 6,000; ")
    assert "GB of memory so far" in said[0]
    for step in range(2, 200):
        clock[0] += 30
        steps.after_step(8 * step)
    assert said[1] == "        16/6,000 images  0.267/s  6:14:00 left"
    assert 30 < len(said) < 100  # ever farther apart
    assert said[-1].startswith("     1,")


def test_the_documented_speed_is_what_is_told() -> None:
    """0.183 images a second at 256² on two cores, 0.0737 untuned; 5.26 GB with one image a step."""
    table = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert "| tuned, fp32 | 0.183 |" in table
    assert pytest.approx(gan.CORE_SECONDS, rel=0.02) == 2 / 0.183
    assert pytest.approx(gan.PLAIN_CORE_SECONDS, rel=0.02) == 2 / 0.0737
    assert pytest.approx(5.26, rel=0.02) == gan.FIXED_GB + gan.IMAGE_GB
