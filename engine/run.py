"""One training run: its folder, its log, its states, and when to report, preview, evaluate, save and stop."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import config as options
from dataloaders.io import ranks
from dataloaders.io.console import tracked
from dataloaders.io.files import naming, read_json, write_json, write_text
from dataloaders.io.locks import LOCK, FolderLock, lock_folder
from dataloaders.io.ranks import all_gather, rank, world_size
from dataloaders.io.runlog import RunLog
from dataloaders.io.schema import decode
from dataloaders.io.workers import WorkerLost
from dataloaders.overview import counted
from dataloaders.plain_folder import unwritten
from dataloaders.slices import BatchLoader, Part, fingerprint
from dataloaders.unpaired import typical_windows
from engine import checkpoint, device
from engine.checkpoint import Weights
from engine.command import DEFECT, code_of, message_of, on_rank_zero
from engine.methods.base import Workflow
from engine.pace import Pace, expectation
from engine.signals import EXIT_DIVERGED, EXIT_STALLED, Stopped, StopRequest
from models.base import Batch, Method, Player, lr_factor, scaled_rates
from models.collectives import all_reduce_mean, average_gradients, broadcast_module

WON = 0.99  # accuracy of a discriminator above which the generator gets no useful gradient
ADVICE = (
    "Look at the newest preview and an older one. --which_iter with an older state and a lower --lr_d (or --oasis.lr_w) "
    "may go on learning, or a new run with a larger batch, spectral_gain 1 or more R1; --stop_patience 0 goes on "
    "with this one."
)
FIRST_SLICES = 64  # training slices that a method may look at before its first step
CALIBRATION_SLICES = 256  # training slices that give the moving average its batch statistics


@dataclass
class TrainingState:
    """How far the run is, and what it remembers beside weights and optimisers."""

    step: int = 0
    images_seen: int = 0
    previous: int = 0  # images seen before the newest step
    best: float = math.inf  # loss of the best evaluation
    stale: int = 0  # evaluations since the best one
    finished: bool = False  # all images seen, and the last evaluation and preview made
    won_since: int | None = None  # images seen when a discriminator began to win
    warned: bool = False  # that it has won for long
    origin: dict[str, Any] = field(default_factory=dict)  # the run whose weights this one began with

    def advance(self, batch: Batch) -> None:
        """Count one finished step of all ranks."""
        self.step += 1
        self.previous = self.images_seen
        self.images_seen += len(batch) * world_size()

    def crossed(self, period: int) -> bool:
        """Whether the newest step passed a multiple of `period` images."""
        return self.images_seen // period > self.previous // period

    def saved(self) -> dict[str, Any]:
        """What a state file holds of it."""
        return {name: value for name, value in vars(self).items() if name not in ("images_seen", "previous")}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Go on from a state file, which may be of a version that did not know all of it."""
        vars(self).update({name: found[name] for name in self.saved().keys() & found.keys()})
        self.images_seen = self.previous = found["images"]


@dataclass
class Meter:
    """Losses and measures (name -> sum, count), largest gradient norms, images and waiting time since the last report."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    measures: dict[str, list[float]] = field(default_factory=dict)
    gradient_norm: dict[str, float] = field(default_factory=dict)
    images: int = 0
    waited: float = 0.0  # seconds spent waiting for the loader


def count(totals: dict[str, list[float]], name: str, value: float) -> None:
    """One more value of a loss or a measure."""
    total = totals.setdefault(name, [0.0, 0])
    total[0], total[1] = total[0] + value, total[1] + 1


def means(totals: dict[str, list[float]]) -> dict[str, float]:
    """Mean of each over the steps in which it was played."""
    return {name: total / number for name, (total, number) in totals.items()}


@contextmanager
def only_trains(player: Player, players: dict[str, Player]) -> Iterator[None]:
    """Freeze the other networks' parameters, so that no gradients are computed for them."""
    for other in players.values():
        other.net.requires_grad_(other.net is player.net)  # a penalty shares its net with the player it restrains
    try:
        yield
    finally:
        for other in players.values():
            other.net.requires_grad_(True)


def match_parameters(optimizer: torch.optim.Optimizer, fused: bool) -> None:
    """Give loaded optimiser states the memory layout of their parameters, and the run's own kind of step.

    A state keeps the layout of the machine it was saved on (channels-last on a GPU); fused steps walk through memory in
    order and would mix up its entries silently. ValueError where a state is of other parameters.
    """
    for group in optimizer.param_groups:
        if "fused" in group:
            group["fused"] = fused
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter).copy_(value)
            elif isinstance(value, Tensor) and value.ndim:
                raise ValueError(
                    f"the optimiser's state has {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}: it is of "
                    "networks of another version; begin a new run (--init_from takes the weights along)"
                )


class Run:
    """The run called `config.name` of a workflow that has read its data. ValueError where its folder is another's.

    Where several processes train together, rank 0 alone writes, looks and judges; the others wait for it meanwhile.
    """

    def __init__(self, workflow: Workflow) -> None:
        self.workflow, self.config, self.data = workflow, workflow.config, workflow.data
        config = self.config
        here = ranks.place(os.environ)
        self.device = device.select_device(config.gpu_ids, here.local_rank if here else 0)
        ranks.join(here, self.device)
        if config.tuned and self.device.type == "cpu":
            device.keep_freed_memory()
        self.folder = config.checkpoints_dir / config.name
        self.stop = StopRequest()
        self.stop.install(answer=rank() == 0)
        self.world_size = world_size()
        self.lock: FolderLock | None = None
        try:
            self._check_ranks()
            on_rank_zero(self._claim_folder)
            self.log = RunLog(self.folder, silent=rank() > 0)
        except BaseException:
            self._let_go()
            raise
        self.state, self.meter = TrainingState(), Meter()
        self.judged = False  # whether the newest evaluation gave a verdict
        self.whole = True  # not in the midst of a step
        self.ready_at = -1
        self.played: dict[str, tuple[list[str], Tensor]] = {}  # of this step: names and values of each player's losses
        self.clock = time.perf_counter()
        torch.manual_seed(config.seed)  # initial weights; everything later draws from seeded streams of its own

    # -- folder ---------------------------------------------------------------------------------------------------

    def _check_ranks(self) -> None:
        prints = all_gather(fingerprint(self.config.dataroot))
        if len(set(prints)) > 1:
            other = next(i for i, found in enumerate(prints) if found != prints[0])
            raise ValueError(
                f"--dataroot {self.config.dataroot}: rank {other} finds another manifest there than rank 0"
            )

    def _claim_folder(self) -> None:
        begun = checkpoint.has_work(self.folder)
        if not begun and self.workflow.other is not None:
            self.workflow.other.refuse_other_data(self.config, self.data.spec)
        new = {"config": options.to_dict(self.config), "data": fingerprint(self.config.dataroot)}
        for flag, folder in self.workflow.sources().items():
            try:
                new[flag] = fingerprint(folder)
            except ValueError as error:
                raise ValueError(f"{flag.split()[0]} {error}") from None
        path = self.folder / "config.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.folder)
        if path.is_file():
            if begun:  # a start that failed before it saved anything binds nobody
                self._refuse_other_run(_read_start(path), new)
        elif any(child.name != LOCK for child in self.folder.iterdir()):
            raise ValueError(f"{self.folder} exists and is not a run folder; choose another --name")
        for left in [*self.folder.glob(".tmp-*"), *self.folder.glob("previews/.tmp-*")]:
            if left.is_file():  # half-written by a process that was killed
                left.unlink()
        write_json(path, new)
        if (inferred := unwritten(self.config.dataroot)) is not None:
            inferred.save(self.folder)
        lines = [f"{key}: {value}" for key, value in device.environment(self.device).items()]
        lines.append(f"processes: {self.world_size}")
        write_text(self.folder / "environment.txt", "\n".join(lines) + "\n")

    def _refuse_other_run(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        before = options.to_dict(options.from_dict(old["config"]))  # with the defaults of options it did not know yet
        changed = options.differences(before, new["config"])
        if old["data"] != new["data"]:
            changed.append(f"--dataroot {self.config.dataroot}: its manifest is not that of the data trained on so far")
        for flag in sorted(name for name in {**old, **new} if name.startswith("--")):
            if old.get(flag) != new.get(flag):
                changed.append(f"{flag}: its files are not those of the training so far")
        models = [config["config"]["model"] for config in (old, new)]
        if models[0] != models[1]:
            changed = [f"--model: was {models[0]}, now {models[1]}"]  # which have little in common
        if changed:
            presets = [config["config"]["preset"] for config in (old, new)]
            if models[0] == models[1] and presets[0] != presets[1]:
                changed.insert(0, f"--preset: was {presets[0]}, now {presets[1]}, which sets many of those below")
            raise ValueError(
                f"run {self.config.name!r} in {self.config.checkpoints_dir} was started with other options; "
                "give the old ones to resume it or another --name:\n" + "\n".join(f"  {line}" for line in changed)
            )
        if not self.config.continue_train and checkpoint.list_states(self.folder):
            raise ValueError(
                f"run {self.config.name!r} exists and --no-continue_train was given; choose another --name"
            )

    # -- what is tracked ------------------------------------------------------------------------------------------

    def track(self, method: Method, players: dict[str, Player], train_loader: BatchLoader) -> None:
        """Name the parts whose state is saved and restored, and what is validated."""
        self.method, self.players, self.train_loader = method, players, train_loader
        self.workflow.validate(method, self.folder, self.device)
        self.total = self.config.num_epochs * len(train_loader) if players else len(train_loader)
        parts = self.world_size * self.config.accumulate * train_loader.row
        if players and self.config.batch_size % parts:
            rows = (
                f", in rows of {train_loader.row} slices (--spade.slices_D 1 for none)" if train_loader.row > 1 else ""
            )
            raise ValueError(
                f"--batch_size {self.config.batch_size}: is shared by {self.world_size} processes and --accumulate "
                f"{self.config.accumulate}{rows}, so must be a multiple of {parts}"
            )

    def load_latest(self) -> None:
        """Restore the newest readable state, or the one asked for by --which_iter; none means a fresh start."""
        state = on_rank_zero(self._read_state)
        chosen = ranks.broadcast(None if state is None else state["images"])
        if chosen is None:
            self.log.rewind(0)  # lines of a start that was killed before its first save
            self.log.say(f"{self.config.name}: new run of {self._described()}")
            if self.config.init_from is not None:
                on_rank_zero(self._begin_with_another)
            broadcast_module(self.method)
            return
        if state is None:  # on the other ranks
            state = checkpoint.load_state(checkpoint.state_path(self.folder, chosen))
        self.method.load_state_dict(state["method"])
        before = options.to_dict(options.from_dict(state["config"]))
        changed = options.differences(before, options.to_dict(self.config), rates=True)
        for name, optimizer in self._optimizers().items():
            given = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            match_parameters(optimizer, fused=self.config.tuned)
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate if changed else group["lr"]  # a plateau may have lowered it
        self.state.restore(state)
        self.state.finished &= self.complete  # no more, where --num_epochs has grown
        self._check_best(state)
        self.meter = Meter(**state["meter"]) if "losses" in state["meter"] else Meter()  # up to version 0.2
        self.log.rewind(self.state.images_seen)
        self.log.say(f"{self.config.name}: resumed at {self.state.images_seen:,} of {self.total:,} images")
        for line in changed:
            self.log.say(f"learning rate from here on: {line}")

    def _begin_with_another(self) -> None:
        from engine.trained import origin_line  # of no use to most runs

        assert self.workflow.other is not None
        self.state.origin, taken = self.workflow.other.give_weights(self.method)
        besides = [name for name in list(self.players)[1:] if name not in taken and name in self.method.networks()]
        new = f"; anew: {', '.join(besides)}" if besides else ""
        self.log.say(f"begins with the weights of {origin_line(self.state.origin)}{new}")

    def _check_best(self, state: dict[str, Any]) -> None:
        """Forget the best so far where it was chosen by something else: two measures cannot be compared."""
        # States up to 0.2 do not say by what: by Dice, which is kept with a minus, or by the label-wise Wasserstein.
        measure = state.get("measure", "dice" if state["best"] <= 0 else "wasserstein")
        if measure == self.workflow.measure or not math.isfinite(state["best"]):
            return
        self.state.best, self.state.stale = math.inf, 0
        self.log.say(
            f"warning: the best weights so far were chosen by {measure}, those from here on by {self.workflow.measure}; "
            "the next evaluation replaces weights-best. Copy it first if you want to keep it"
        )

    def _described(self) -> str:
        """Method, preset, device and size of the networks."""
        sizes = [f"{n} {sum(p.numel() for p in net.parameters()):,}" for n, net in self.method.networks().items()]
        parts = [self.config.model + (f", preset {self.config.preset}" if self.players else "") + f", on {self.device}"]
        parts += [counted(torch.get_num_threads(), "thread")] if self.device.type == "cpu" else []
        parts += [f"{self.world_size} processes"] if self.world_size > 1 else []
        return ", ".join(parts) + (f"; parameters: {', '.join(sizes)}" if sizes else "")

    def introduce(self, found: Iterable[str], length: int) -> None:
        """Say what was found, how much there is to do in epochs of `length` images, and what to expect of it."""
        for line in [*found, *expectation(self.workflow, length, self.device)]:
            self.log.say(line)

    def _read_state(self) -> dict[str, Any] | None:
        wanted, marker = self.config.which_iter, self.folder / "which_iter.json"
        # A requeued job repeats its command: the second time, --which_iter has been obeyed and the newest state counts.
        if wanted == "latest":
            marker.unlink(missing_ok=True)
        elif not (marker.is_file() and read_json(marker) == wanted):
            older = self._older_state(wanted)
            state = checkpoint.load_state(older)
            checkpoint.go_back_to(older)
            write_json(marker, wanted)
            return state
        for path in reversed(checkpoint.list_states(self.folder)):
            try:
                return checkpoint.load_state(path)
            except checkpoint.CheckpointError as error:
                self.log.say(f"warning: {error}; trying the one before")
        return None

    def _older_state(self, wanted: str) -> Path:
        if wanted != "best":
            return checkpoint.state_path(self.folder, int(wanted))
        best = checkpoint.best_state(self.folder)
        if best is None:
            there = ", ".join(str(checkpoint.images_of(path)) for path in checkpoint.list_states(self.folder))
            raise ValueError(
                f"--which_iter best: {self.folder} has no state of its best evaluation; it has states of "
                f"{there or 'nothing yet'}"
            )
        return best

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Each optimiser once, by its first player."""
        found: dict[str, torch.optim.Optimizer] = {}
        for name, player in self.players.items():
            if all(player.optimizer is not other for other in found.values()):
                found[name] = player.optimizer
        return found

    def speed_up(self) -> None:
        """Memory layout and compilation, as the options and the device have it."""
        if self.config.tuned and self.device.type == "cuda":
            self.method.to(memory_format=device.channels_last(self.method))
            torch.backends.cudnn.benchmark = True  # all batches are of one size
        if self.config.compile:
            for player in self.players.values():
                player.net.compile()

    def calibration_batches(self) -> Iterator[Batch]:
        """Training batches drawn from all cases alike, on the device."""
        total = min(CALIBRATION_SLICES, len(self.train_loader))
        batches = tracked(self.train_loader.sample(total), "batch statistics", total, count=len)
        return (batch.to(self.device) for batch in batches)

    def first_batches(self) -> Iterator[Batch]:
        """The first few batches of training, image and label as they are trained on, whole, on the device."""
        count = -(-FIRST_SLICES // self.config.batch_size)
        return (batch.to(self.device) for batch in itertools.islice(self.train_loader.endless(part=Part()), count))

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time that passes until each is there is logged as loader_wait.

        One process alone stops waiting as soon as it is asked to stop; several have to agree, which `done` does.
        """
        while True:
            start = time.perf_counter()
            try:
                with self.stop.at_once() if self.world_size == 1 else nullcontext():
                    batch = next(batches, None)
            except Stopped:
                return
            if batch is None:
                return
            self.meter.waited += time.perf_counter() - start
            yield batch

    def unless_stopped(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of a fit, which is whole or nothing: a request to stop ends the process between two of them."""
        for batch in batches:
            if self.stop.exit_code is not None:
                self.log.say("stopped before the fit was whole: nothing to save; the same command begins it again")
                raise SystemExit(self.stop.exit_code)
            yield batch

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the training inside, its state is saved, unless that is in the midst of a step."""
        self.pace = Pace(self.log.say, self.total, self.state.images_seen, self.device)
        try:
            yield
        except SystemExit:  # by a second signal, or when all has been said
            raise
        except BaseException as error:
            if self.state.step > 0 and rank() == 0:
                self.log.say(f"stopped at {self.state.images_seen:,} images, {self._rescue()}: {_cause(error)}")
            raise

    def _rescue(self) -> str:
        """Save the state alone: fresh batch statistics for the weights might read damaged data again. What became of it."""
        if not self.whole:
            newest = checkpoint.list_states(self.folder)[-1:]
            return "in the midst of a step; " + (f"{newest[0].name} is kept" if newest else "nothing was saved before")
        try:
            if not self._is_finite():
                return "state not saved, it is not finite"
            checkpoint.save_state(self.folder, self.state.images_seen, self._state())
        except Exception as error:  # of a broken disk or GPU; what ended the run is to be told, not this
            return f"state not saved ({_cause(error)})"
        return "state saved"

    def _is_finite(self) -> bool:
        """Whether all weights that are trained, or averaged over them, are numbers."""
        weights = [parameter.isfinite().all() for parameter in self.method.parameters()] if self.players else []
        return not weights or bool(torch.stack(weights).all())

    # -- one step -------------------------------------------------------------------------------------------------

    def entered(self, batch: Batch) -> Batch:
        """The batch on the device. From here until `report` the state is not whole."""
        self.whole = False
        return batch.to(self.device)

    def autocast(self) -> AbstractContextManager:
        """Precision of the forward passes."""
        return device.autocast(self.device, self.config.precision)

    def turn(self, name: str, parts: Sequence[Batch]) -> Iterator[Batch]:
        """The parts of a batch, one after the other, for one player's losses; each draws what the whole batch would.

        Spectral norms take their power step with the first part only, as they would with the whole batch.
        """
        self.players[name].optimizer.zero_grad(set_to_none=True)
        self.losses: list[dict[str, Tensor]] = []
        before = parts[0].rng.get_state() if parts[0].rng is not None else None
        for part in parts:
            if part.rng is not None and before is not None:
                part.rng.set_state(before)
            with device.without_power_steps(self.method if part.part[0] else None):
                yield part

    def backward(self, losses: dict[str, Tensor], part: Batch) -> None:
        """Add the gradients of one part's losses, which are means over its images, to those of the batch."""
        (torch.stack(list(losses.values())).sum() / part.part[1]).backward()
        self.losses.append({name: loss.detach() for name, loss in losses.items()})

    def step(self, name: str) -> None:
        """Optimiser step of one player, which nothing moves where a loss or gradient is not finite; see `settle`."""
        player = self.players[name]
        average_gradients(player.net.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in player.net.parameters() if p.grad is not None])
        means = torch.stack([torch.stack(list(losses.values())) for losses in self.losses]).mean(0)
        values = torch.cat([all_reduce_mean(means), norm[None]])
        self.played[name] = ([*self.losses[0], "gradient norm"], values)
        with scaled_rates(player.optimizer, lr_factor(self.config, self.state.images_seen / self.total)):
            device.step_if(values.isfinite().all(), player.optimizer)

    def settle(self, batch: Batch, parts: Sequence[Batch]) -> None:
        """Fetch what all players' losses and measures were, at once; one that was not finite ends the run.

        Each fetch makes the CPU wait for the GPU. A player that was not finite did not move, so its weights are those
        before the step; nothing is averaged or counted yet.
        """
        measures = {key: torch.stack([part.measures[key] for part in parts]).mean() for key in parts[0].measures}
        own = [all_reduce_mean(torch.stack(list(measures.values())))] if measures else []
        numbers = iter(torch.cat([*(values for _, values in self.played.values()), *own]).tolist())
        found = {name: {key: next(numbers) for key in keys} for name, (keys, _) in self.played.items()}
        self.played = {}
        for name, values in found.items():
            if not all(map(math.isfinite, values.values())):
                self._diverged(name, values, batch)
            # The largest since the last report: a mean would hide the spike that announces a collapse.
            largest = self.meter.gradient_norm
            largest[name] = max(values.pop("gradient norm"), largest.get(name, 0.0))
            for loss, value in values.items():
                count(self.meter.losses, f"{name}/{loss}", value)
        for measure in measures:
            count(self.meter.measures, measure, next(numbers))

    def _diverged(self, name: str, values: dict[str, float], batch: Batch) -> None:
        path = self.folder / f"crash-{self.state.images_seen:010d}.pt"
        own = _names(batch)
        slices = [text for part in all_gather(own) for text in part]
        content = {"slices": slices, "player": name, "values": values}
        on_rank_zero(lambda: checkpoint.write(path, {**self._state(), **content}))
        shown = ", ".join(f"{key} {value:g}" for key, value in values.items())
        broken = [text for part in all_gather(_broken_images(batch)) for text in part]
        self.log.say(
            f"error: {name} diverged after {self.state.images_seen:,} images ({shown}) on {', '.join(slices)}; "
            f"weights before the step are in {path}. "
            + (
                f"Not the training but the data are at fault: NaN or infinity in the image of {', '.join(broken)}."
                if broken
                else "Try a lower learning rate or --precision fp32."
            )
        )
        raise SystemExit(EXIT_DIVERGED)

    # -- between steps --------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Enough images seen, or no better evaluation for as many as the method has patience."""
        return self.state.images_seen >= self.total or 0 < self.workflow.patience <= self.state.stale

    @property
    def done(self) -> bool:
        """Complete, or any rank asked to stop; the same answer on all ranks, which ask together."""
        self.stop.exit_code = ranks.max_over_ranks(self.stop.exit_code)
        return self.complete or self.stop.exit_code is not None

    def report(self, batch: Batch) -> None:
        """Count the step; log line and record every --freq_print images."""
        self.whole = True
        self.meter.images += len(batch) * world_size()
        if not self.state.crossed(self.config.freq_print) or not self.meter.losses:
            self.pace.after_step(self.state.images_seen)
            return
        now = time.perf_counter()
        seconds, self.clock = max(now - self.clock, 1e-9), now
        speed = self.meter.images / seconds
        losses, measures = means(self.meter.losses), means(self.meter.measures)
        record = {
            "kind": "train",
            "images": self.state.images_seen,
            "step": self.state.step,
            "losses": losses,
            "measures": measures,
            "gradient_norm": dict(self.meter.gradient_norm),
            "images_per_second": round(speed, 3),
            "loader_wait": round(self.meter.waited / seconds, 4),
            "peak_memory_gb": round(device.peak_memory_gb(self.device), 3),
        }
        self.log.record(record)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in (losses | measures).items())
        left = timedelta(seconds=round((self.total - self.state.images_seen) / speed))
        self.log.say(f"{self.state.images_seen:>10,}/{self.total:,} images  {speed:.1f}/s  {left} left  {shown}")
        self.meter = Meter()
        self.pace.said = time.monotonic()
        self._watch(measures)

    def _watch(self, measures: dict[str, float]) -> None:
        """Stop the run, with its state and advice, when a discriminator has won for --stop_patience images.

        Where losses against the real image go on teaching the generator, that is told once, and it goes on.
        """
        state = self.state
        winners = [name for name, value in measures.items() if name.endswith("accuracy") and value > WON]
        if not winners:
            state.won_since, state.warned = None, False
            return
        state.won_since = state.images_seen if state.won_since is None else state.won_since
        patience = self.config.stop_patience
        if not 0 < patience <= state.images_seen - state.won_since or state.images_seen >= self.total:
            return
        what = f"{winners[0]} has been above {WON} for {patience:,} images"
        if self.method.taught_by_pairs:
            if not state.warned:
                self.log.say(
                    f"warning: {what}; the losses against the real image go on teaching the generator, the adversarial one "
                    "no more. A lower --lr_d may bring it back; it can be changed when the run is resumed"
                )
            state.warned = True
            return
        on_rank_zero(self.save)
        self.log.say(
            f"error: stopped at {self.state.images_seen:,} images, state saved: {what}, so the generator learns nothing "
            f"any more. {ADVICE}"
        )
        raise SystemExit(EXIT_STALLED)

    def maybe_preview(self) -> None:
        """Preview picture and curves every --freq_preview images; a full disk only warns."""
        if self.state.crossed(self.config.freq_preview):
            self._where_there_is_room(self.preview, "no preview")

    def maybe_evaluate(self) -> None:
        """Metrics on the validation split every --freq_fid images; a full disk only warns."""
        if self.state.crossed(self.config.freq_fid):
            self.judged = False
            self._where_there_is_room(self.evaluate, "not evaluated")
            self.judged, self.state.stale = ranks.broadcast((self.judged, self.state.stale))
            if self.judged:
                self.method.after_evaluation(self.state.stale)  # on every rank, since it may change the learning rate

    def maybe_save(self) -> None:
        """State every --freq_save_latest, weights for good every --freq_save_ckpt images; a full disk only warns."""
        if self.state.crossed(self.config.freq_save_ckpt) or self.state.crossed(self.config.freq_save_latest):
            self._where_there_is_room(self._save_what_is_due, "not saved")

    def _save_what_is_due(self) -> None:
        if self.state.crossed(self.config.freq_save_latest):
            self.save()
        if self.state.crossed(self.config.freq_save_ckpt):
            self._ready()
            self._save_weights(str(self.state.images_seen))

    def _where_there_is_room(self, work: Callable[[], None], otherwise: str) -> None:
        def attempt() -> None:
            try:
                work()
            except OSError as error:
                self.log.say(f"warning: {otherwise}: {error}")

        on_rank_zero(attempt)

    def finish(self) -> int:
        """Save; after the last image also evaluate and preview. Returns the process's exit code."""
        if not self.complete:
            assert self.stop.exit_code is not None
            on_rank_zero(lambda: self.save(leaving=True))
            self.log.say(f"stopped at {self.state.images_seen:,} images, state saved; the same command resumes")
            return self.stop.exit_code
        on_rank_zero(self._conclude)
        self.log.say(f"finished: {self.state.images_seen:,} images; {self.folder}")
        return 0

    def _conclude(self) -> None:
        self.save()  # first, so that nothing that goes wrong below can cost the training
        if self.state.images_seen < self.total:
            self.log.say(
                f"stopped early at {self.state.images_seen:,} images: no better evaluation among {self.state.stale}"
            )
        else:
            self.preview()
            self.evaluate()
        self.state.finished = True
        self.save()

    def close(self) -> None:
        """Close the log and let go of the run folder and of the signals."""
        self.log.close()
        self._let_go()

    def _let_go(self) -> None:
        self.stop.close()
        if self.lock is not None:
            self.lock.close()

    @property
    def finished_before(self) -> bool:
        """Whether there was nothing left to do at the start."""
        return self.state.finished and self.complete

    # -- saving, looking, judging ---------------------------------------------------------------------------------

    def _ready(self) -> None:
        """Make the synthesizing weights ready, once per step even where preview, evaluation and saving meet."""
        if self.ready_at != self.state.step:
            self.method.before_synthesis(self.calibration_batches())
            self.ready_at = self.state.step

    def _state(self) -> dict[str, Any]:
        return {
            "config": options.to_dict(self.config),
            "spec": self.data.spec.to_dict(),
            **self.state.saved(),
            "measure": self.workflow.measure,
            "meter": asdict(self.meter),
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
        }

    def save(self, leaving: bool = False) -> None:
        """Write the state, and then the newest weights, which need data and on a slow machine minutes to make ready.

        leaving: where the data cannot be read now, the weights stay as they were.
        """
        self._save_state()
        try:
            self._ready()
        except (ValueError, WorkerLost) as error:
            if not leaving:
                raise
            self.log.say(f"warning: weights-latest stays as it was: {_cause(error)}")
        else:
            self._save_weights("latest")

    def _save_state(self) -> Path:
        if not self._is_finite():
            self.log.say(
                f"error: diverged: weights are no numbers any more after {self.state.images_seen:,} images. They are not "
                "saved; --which_iter goes back to an older state. Try a lower learning rate or --precision fp32."
            )
            raise SystemExit(EXIT_DIVERGED)
        return checkpoint.save_state(self.folder, self.state.images_seen, self._state())

    def _save_weights(self, which: str) -> None:
        weights = Weights(
            self.method.release(),
            options.to_dict(self.config),
            self.data.spec.to_dict(),
            self.state.images_seen,
            [(w.low, w.high) for w in typical_windows(self.data)] if self.workflow.paints_labels else (),
            self.data.provenance.get("expected", {}),
            self.state.origin,
        )
        checkpoint.save_weights(checkpoint.weights_path(self.folder, which), weights)

    def preview(self) -> None:
        """previews/<images>.png by the workflow, and curves.png."""
        self.log.plot()
        self._ready()
        self.workflow.preview(self.folder / "previews" / f"{self.state.images_seen:010d}.png")

    def evaluate(self) -> None:
        """Validate as the method's workflow does; keep the best weights."""
        self._ready()
        metrics = self.workflow.evaluate(self.state.images_seen) if self.config.metrics != "none" else None
        if metrics is None:
            if not math.isfinite(self.state.best):  # else it was judged before, and stays
                self._save_weights("best")
            return
        self.log.record({"kind": "eval", "images": self.state.images_seen, "metrics": metrics})
        sign = -1 if self.workflow.higher else 1  # `best` is a loss
        value = metrics[self.workflow.measure] or 0.0
        better = sign * value < self.state.best
        if better:
            self._save_weights("best")  # first: weights that a full disk has refused are no standard for later ones
            self.state.best = sign * value
        self.judged, self.state.stale = True, 0 if better else self.state.stale + 1
        if better and self.players:
            checkpoint.keep_as_best(self._save_state())
        self.log.say(
            f"{self.state.images_seen:>10,} images  validation {self.workflow.measure} {value:.4f}"
            + (" (best so far)" if better else f" (best {sign * self.state.best:.4f})")
        )
        self.clock = time.perf_counter()  # evaluation does not count as training time


def _cause(error: BaseException) -> str:
    if code_of(error) == DEFECT:
        return f"{type(error).__name__}: {error}"
    return message_of(error).removeprefix("error: ")


def _names(batch: Batch) -> list[str]:
    return [f"{case} z{index}" for case, index in zip(batch.cases, batch.indices, strict=True)]


def _broken_images(batch: Batch) -> list[str]:
    if batch.image is None:
        return []
    return [name for name, image in zip(_names(batch), batch.image, strict=True) if not image.isfinite().all()]


def _read_start(path: Path) -> dict[str, Any]:
    """config.json of a run: its options and what it was trained on."""
    with naming(path):
        found: dict[str, Any] = decode(dict[str, Any], read_json(path), "content")
        config = decode(dict[str, Any], found.get("config"), "config")
        decode(str, found.get("data"), "data")
        decode(str, config.get("preset"), "config.preset")
    return found
