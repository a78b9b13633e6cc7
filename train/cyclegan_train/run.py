"""A training run: begin it in a folder, stop it at any step, resume it.

A run saves its state about once a minute, and ``best`` and ``latest`` with it. A run that was
stopped or killed at any time, and resumed, ends with the weights, the optimisers and the log of an
uninterrupted one, bit for bit on the CPU with the same number of threads; only the seconds in the
log differ. run_folder.py writes and reads the files.

Of several processes (distributed.py) only the first writes files and reports; the state also holds
the pools and random states of the others.

*Best* keeps each generator from the epoch with its best score by validation (validation.py).
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from cyclegan_batch.errors import (
    BackendError,
    CycleganBatchError,
    InputError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.models.checkpoints import run_folder as names
from cyclegan_batch.wording import first_line, printable

from .batches import Feed, Sampler
from .clock import Clock, Schedule
from .cyclegan import NETWORKS, CycleGAN, State
from .data import find_folders
from .devices import cudnn_benchmark
from .distributed import Means, Ranks, joined_ranks
from .health import infinite_weight
from .progress import Progress, Reading
from .reports import Reports
from .run_folder import STATE_VERSION, RunFolder, describe_run, generator_files
from .run_images import RunImages, trainable_sizes
from .settings import Settings
from .start import Beginning, begin_from
from .validation import Best, Scores, Validation
from .validation_images import validation_folders

if TYPE_CHECKING:
    from .sample_video import SampleVideo

_POLL_STEPS = 20
"""The most steps after which several processes ask each other whether to stop or to save."""
_POLL_SECONDS = 1.0
"""The most seconds, about, after which they do; steps may take longer than this."""
_ENDLESS = 10**6
"""Epochs of a run whose number is not known yet: no rate goes down before it is known when."""
_SCORED = ("cycle_A", "cycle_B", "idt_A", "idt_B")
"""The losses whose sum ``plateau`` watches."""


_OLD: State = {"held_out": (0, 0), "best": {"kind": None}}
"""What a state says of the validation that was written before there was one."""


class DivergedError(CycleganBatchError):
    """A loss or a weight is NaN or infinite; the last good state is kept."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    finished: bool
    """False where ``stop`` ended it: the run can be resumed."""
    epoch: int
    """The last epoch that was begun."""
    step: int
    first: bool = True
    """Whether this process is the one that reports, of several."""


def train(
    data: Path | None,
    run: Path,
    settings: Settings,
    *,
    data_a: Path | None = None,
    data_b: Path | None = None,
    test_a: Path | None = None,
    test_b: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda sentence: None,
    watch: Callable[[Progress], None] = lambda progress: None,
    watch_reading: Callable[[Reading], None] = lambda reading: None,
) -> Outcome:
    """Train in the folder ``run``, from its state if it has one, to the last epoch.

    ``data`` holds trainA and trainB (testA, testB for the samples; valA, valB to validate on), or
    ``data_a`` and ``data_b`` are the first two; ``test_a`` and ``test_b`` are other folders for the
    samples. ``stop`` is called before every step; where it returns True, the state is saved and the
    call returns. While the images are read nothing is written yet, and a stop raises
    KeyboardInterrupt. ``say`` is called with each sentence for the user, ``watch_reading`` after
    every image that is read, and ``watch`` after every step. Among several processes of torchrun
    only the first calls these three.

    Raises InputError, ModelError, OutputError, OutOfMemoryError, BackendError (also where another
    process has ended), BackendUnavailableError, and DivergedError.
    """
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    one_size = "crop" in settings.data.preprocess
    with joined_ranks(settings.train.device) as ranks, cudnn_benchmark(one_size):
        if not ranks.first:
            say, watch = (lambda sentence: None), (lambda progress: None)
            watch_reading = lambda reading: None  # noqa: E731 (as the two above)
        folders = find_folders(data, data_a, data_b, test_a, test_b)
        this_run = _Run(
            folders, validation_folders(data), run, settings, stop, say, watch_reading, ranks
        )
        try:
            return this_run.go(stop, watch)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"no memory for a step of {settings.data.batch_size} images of each domain at "
                f"crop_size = {settings.data.crop_size}; use a smaller batch_size or crop_size, or "
                "precision = bf16"
            ) from error
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise BackendError(
                f"torch.compile failed ({type(error).__name__}: {first_line(error)}); check that "
                "a C++ compiler is installed, or leave compile out"
            ) from error
        finally:
            this_run.close()


class _Run:
    """One process's part of a run: once constructed, all is loaded and ready for a step."""

    def __init__(
        self,
        folders: tuple[Path, Path, Path | None, Path | None],
        val_folders: tuple[Path | None, Path | None],
        path: Path,
        settings: Settings,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        watch_reading: Callable[[Reading], None],
        ranks: Ranks,
    ) -> None:
        self.settings, self.say, self.ranks = settings, say, ranks
        self.given = settings
        """The settings before ``minutes`` change the number of epochs."""
        self.folder = RunFolder(path, settings, say)
        # The state and the folders first: reading the images may take minutes.
        state = self.folder.read_state(ranks)
        if settings.data.direction == "BtoA":
            folder_a, folder_b, test_a, test_b = folders
            folders, val_folders = (folder_b, folder_a, test_b, test_a), val_folders[::-1]
        self.model = self._build_model()
        sizes = trainable_sizes(self.model, settings)
        if ranks.first:
            self.folder.check_space(self.model, ranks.size)
        if settings.train.precision == "tf32" and self.model.float32 != "tf32":
            say("tf32 exists on CUDA only: the CPU computes in fp32")
        self.video: SampleVideo | None = None
        """The clip of the samples; None without one, and in all processes but the first."""
        if ranks.first and settings.run.sample_video:
            from .sample_video import open_sample_video  # which loads PyAV

            self.video = open_sample_video(settings, sizes, resumes=state is not None, say=say)
        # The processes of one machine share its cores.
        workers = settings.data.workers or max(1, cpu_threads() // ranks.size)
        held_out = None if state is None else state.get("validation", _OLD)["held_out"]

        def watch(domain: str, read: int, count: int) -> None:
            watch_reading(Reading(domain, read, count))
            if stop():
                raise KeyboardInterrupt

        self.images = RunImages(
            folders,
            val_folders,
            settings,
            sizes,
            workers=workers,
            disk=self.folder.disk(ranks.size),
            held_out=held_out,
            watch=watch,
        )
        self.a, self.b = self.images.a, self.images.b
        for sentence in self.images.sentences(ranks.size):
            say(sentence)
        if self.model.device.type == "cuda":
            self.images.to_device(self.model.device)
        self.sampler = Sampler(
            len(self.a),
            len(self.b),
            batch_size=settings.data.batch_size,
            seed=settings.run.seed,
            serial=settings.data.serial_batches,
            rank=ranks.rank,
            size=ranks.size,
        )
        if self.video is not None:
            say(self.video.sentence())
            self.video.follow(self._samples_per_epoch)
        self.feed = Feed(self.a, self.b, self.sampler, workers=workers)
        self.window = Means(self.model.device, self.model.losses)
        self.whole_epoch = Means(self.model.device, self.model.losses)
        self.clock = Clock(settings)
        self.best: Best | None = None
        """What validation keeps; None where nothing is validated, and in all but the first."""
        if ranks.first and self.images.validated:
            samples = self._samples_per_epoch
            validation = Validation(self.images.validation, settings, self.model.device, samples)
            for sentence in validation.sentences(fixed=not self.clock.waits):
                say(sentence)
            self.best = Best(validation)
        self._best_before: State | None = None
        """What an earlier part of the run has kept as best."""
        self._ends_early = False
        self.last_losses: dict[str, float] = {}
        """The means of the last line of the log."""
        self._seconds_before = 0.0
        """What the run took before this process."""
        self._stop_wanted = False
        self._next_poll = 0
        """The step before which several processes ask each other next."""
        self._since = self._saved = time.monotonic()
        self._ticks: deque[float] = deque(maxlen=50)
        self._asked = 0
        """The steps of this process, those of a warm-up too."""
        self.beginning = Beginning()
        self.reports: Reports | None = None
        """None in all processes but the first."""
        self._begin(state)

    # The start

    def _build_model(self) -> CycleGAN:
        """Seed the random states and build the networks. Raises ModelError."""
        seed = self.settings.run.seed
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            model = CycleGAN(self.settings.train, self.ranks)
        except ValueError as error:
            raise ModelError(f"cannot build the networks: {error}") from error
        if not self.ranks.first:
            # All processes have built the same networks; from here on each draws for itself.
            random.seed(f"{seed} {self.ranks.rank}")
            torch.manual_seed(random.getrandbits(63))
        return model

    def _begin(self, state: State | None) -> None:
        """Go back to ``state``, or begin anew where it is None; write and open the run's files."""
        if self.ranks.first:
            self.folder.create()
        if state is not None:
            self._restore(state)
            self.folder.remove_sheet_of_stop()
        else:
            if self.clock.waits:
                self._follow(Schedule(_ENDLESS, 0, self.sampler.batches))
            self.beginning = begin_from(self.model, self.settings, self.say)
            if self.beginning.warm_up:
                self.sampler.begin_before(self.settings.run.warm_up)
        if self.ranks.first:
            log = self.folder.open_log(state["log_bytes"] if state else 0)
            self.reports = Reports(self.folder, self.model, self.images, self.video, log, self.say)
            if state is not None:
                self.folder.write_index(log, self.images.samples)
            description = describe_run(
                self.model,
                self.given,
                (self.a, self.b),
                self.ranks,
                self.sampler.batches,
                self.best.validation if self.best else None,
            )
            if self.beginning.described:
                description["start"] = self.beginning.described
            if self.video is not None:
                description["sample_video"] = self.video.described()
            self.folder.describe(description, resumes=state is not None)
        if state is None:
            self._save()
        if self.reports is not None:
            # Only now: a state that does not fit must leave the old config in place.
            self.folder.write_config()
            self.reports.open_board()
        self._ends_early = self._improves_no_more()

    # The loop

    def go(self, stop: Callable[[], bool], watch: Callable[[Progress], None]) -> Outcome:
        """Train until the last epoch ends or ``stop`` returns True."""
        model, settings = self.model, self.settings
        while self.clock.waits or (model.epoch <= self.settings.epochs and not self._ends_early):
            stops, due = self._stop_or_save(stop())
            if stops or due:
                self._save()
            if stops:
                self._draw_now(names.STOPPED)
                return Outcome(False, model.epoch, model.steps, self.ranks.first)
            if self.sampler.before_first:
                self._warm_up()
                watch(self._progress())
                continue
            losses = self._step(model.step)
            values = torch.stack([losses[name] for name in model.losses]).double()
            self.window.add(values)
            self.whole_epoch.add(values)
            # The sampler has advanced to the next batch: 0 is the first of another epoch.
            epoch_ended = self.sampler.position == 0
            if epoch_ended or self.window.count == settings.run.log_every:
                self._log_losses()
            if epoch_ended:
                self._end_epoch()
            elif settings.run.save_every_steps and not model.steps % settings.run.save_every_steps:
                self._save()
            self._ticks.append(time.monotonic())
            self.clock.step()
            if self.clock.due(self.sampler, model.steps):
                self._fit_to_clock()
            minutes = self.clock.sheet_due(self._seconds())
            if minutes is not None:
                self._draw_now(names.minute_name(minutes))
            watch(self._progress())
        if self.best is not None and (sentence := self.best.sentence()):
            best = printable(self.folder.checkpoints / names.BEST)
            self.say(f"best by validation: {sentence}: {best}")
        return Outcome(True, model.epoch - 1, model.steps, self.ranks.first)

    def _stop_or_save(self, stop: bool) -> tuple[bool, bool]:
        """Return whether to stop, and whether a save is due, the same in all processes.

        They ask each other every ``_POLL_STEPS`` steps, or about every second where steps take
        longer: an exchange at every step would cost more than a step of a small network.
        """
        every = self.settings.run.save_latest_every
        due = self.ranks.first and 0 < every <= time.monotonic() - self._saved
        if self.ranks.size == 1:
            return stop, due
        self._stop_wanted |= stop
        self._asked += 1
        if self._asked < self._next_poll:
            return False, False
        wait = min(_POLL_STEPS, max(1, int(self._rate() * _POLL_SECONDS)))
        # The greatest of -wait is the shortest wait.
        votes = [int(self._stop_wanted), int(due), -wait]
        stops, due_somewhere, negative_wait = self.ranks.greatest(votes)
        self._next_poll = self._asked - negative_wait
        return bool(stops), bool(due_somewhere)

    def _fit_to_clock(self) -> None:
        """Fit the schedule to the minutes left, where the rate of the steps is known."""
        fitted = self.clock.fit(self.sampler, self._seconds(), self.ranks)
        if fitted is None:
            return
        chosen, sentence = fitted
        self._follow(chosen)
        if self.reports is not None:
            line = {"event": "schedule", "step": self.model.steps, **vars(chosen)}
            self.reports.log.write(line)
        if sentence:
            self.say(sentence)

    def _follow(self, schedule: Schedule) -> None:
        """Make the run as long as ``schedule``."""
        train = replace(
            self.settings.train,
            n_epochs=schedule.n_epochs,
            n_epochs_decay=schedule.n_epochs_decay,
        )
        self.settings = replace(self.settings, train=train)
        self.model.set_epochs(schedule.n_epochs, schedule.n_epochs_decay)
        self.sampler.batches = schedule.batches
        if self.best is not None:
            self.best.validation.follow(self._samples_per_epoch)
        if self.video is not None:
            self.video.follow(self._samples_per_epoch)

    @property
    def _samples_per_epoch(self) -> int:
        return self.sampler.batches * self.settings.data.batch_size * self.ranks.size

    def _draw_now(self, name: str) -> None:
        """Draw a sheet beside those of the epochs, in the first process."""
        if self.reports is not None and self.images.samples is not None and self.model.steps:
            self.reports.sheet(name)
            self.say(f"samples: {printable(self.folder.path / names.SAMPLES / name)}.png")

    def _warm_up(self) -> None:
        """Do a step before the first epoch, in which only some networks learn, and log it."""
        names = self.beginning.warm_up
        losses = self._step(functools.partial(self.model.warm_up, names))
        nothing = torch.zeros((), device=self.model.device)
        values = [losses.get(name, nothing) for name in self.model.losses]
        self.window.add(torch.stack(values).double())
        left = self.sampler.before_first
        if left and self.window.count < self.settings.run.log_every:
            return
        mean = self.window.take(self.ranks)
        if self.reports is not None:
            means = {name: mean[name] for name in losses}
            self.reports.log.write({"event": "warm_up", "left": left, **means})
        self._refuse_infinite(mean)

    def _step(self, compute: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Call ``compute`` with the next batch; raise what goes wrong as an error of this run."""
        try:
            images = self.feed.next()
        except InputError:
            # Not of several processes: the others would not join this save.
            if self.ranks.size == 1:
                self._save()
            raise
        try:
            return compute(*images)
        except ValueError as error:
            sizes = [f"{image.shape[3]}×{image.shape[2]}" for image in images]
            raise ModelError(
                f"the step after step {self.model.steps}, with images of {' and '.join(sizes)}, "
                f"cannot be computed: {error}"
            ) from error

    def close(self) -> None:
        """Release threads and files."""
        self.feed.close()
        self.images.close()
        if self.reports is not None:
            self.reports.close()

    def _log_losses(self) -> None:
        mean = self.window.take(self.ranks)
        self._refuse_infinite(mean)
        self.last_losses = mean
        if self.reports is not None:
            self.reports.losses(mean, self._seconds())

    def _end_epoch(self) -> None:
        model, epoch = self.model, self.model.epoch
        if self.settings.run.minutes and not self.clock.waits and epoch < self.settings.epochs:
            self._fit_to_clock()
        mean = self.whole_epoch.take(self.ranks)
        score = sum(mean[name] for name in _SCORED)
        self._check_weights()
        scores: Scores = {}
        if self.reports is not None:
            scores = self._validate(self.reports, epoch)
        self._ends_early = self._improves_no_more()
        last = epoch == self.settings.epochs or self._ends_early
        if self.reports is not None:
            self.reports.epoch(epoch, score, mean, last=last, ends_early=self._ends_early)
        model.update_learning_rate(score)
        if self.ranks.first and (epoch % self.settings.run.save_every_epochs == 0 or last):
            files = self._generator_files(epoch, scores)
            self.folder.write_generators(names.epoch_name(epoch), *files)
            self.folder.remove_old_epochs()
        every = self.settings.run.save_latest_every
        due = self.ranks.first and time.monotonic() - self._saved >= every
        if last or self.ranks.any(due):
            self._save()

    def _validate(self, reports: Reports, epoch: int) -> Scores:
        """Score the generators where that is due, and keep those that are better than before."""
        if self.best is None or not self.best.validation.due(epoch, self.settings.epochs):
            return {}
        begin = time.monotonic()
        scores = self.best.validation.scores(self.model)
        better = self.best.better(scores, epoch)
        if better:
            self.best.keep(better, *self._generator_files(epoch, scores))
        seconds = round(time.monotonic() - begin, 3)
        reports.validation(epoch, seconds, self.best.validation.kind, scores, better)
        return scores

    def _improves_no_more(self) -> bool:
        """Return whether early_stop ends the run, the same in all processes."""
        patience = self.settings.run.early_stop
        if not patience:
            return False
        without = self.best.epochs_without_better if self.best else 0
        ends = self.ranks.any(without >= patience)
        if ends:
            self.say(f"early_stop = {patience}: no better score by validation for {without} epochs")
        return ends

    def _progress(self) -> Progress:
        epochs, step = self.settings.epochs, self.model.steps
        steps = step + (epochs - self.sampler.epoch + 1) * self.sampler.batches
        steps -= self.sampler.position
        if self.clock.waits:
            epochs = self.model.epoch
            steps = int(step * 60 * self.settings.run.minutes / max(self._seconds(), 1e-9))
        return Progress(
            min(self.model.epoch, epochs),
            epochs,
            step,
            max(step, steps),
            self._rate(),
            self.last_losses,
            self.sampler.before_first,
        )

    def _rate(self) -> float:
        """Return the steps per second over the last fifty; 0 before the second one."""
        ticks = self._ticks
        spent = ticks[-1] - ticks[0] if len(ticks) > 1 else 0.0
        return (len(ticks) - 1) / spent if spent else 0.0

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._since

    # The state

    def _save(self) -> None:
        """Write the state, and the weights of ``latest`` and ``best``."""
        self._check_weights()
        model = self.model.state_dict()
        pools = {
            name: [image.cpu() for image in model[name]] for name in ("fake_A_pool", "fake_B_pool")
        }
        everyone = self.ranks.gathered((self._own_state(), pools))
        if everyone is None or self.reports is None:
            return
        log = self.reports.log
        log.flush()
        state = {
            "version": STATE_VERSION,
            "settings": self.given.flat(),
            "model": model,
            "sampler": self.sampler.state_dict(),
            **everyone[0][0],
            "others": everyone[1:],
            "clock": self.clock.state_dict(),
            "start": {
                "warm_up": list(self.beginning.warm_up),
                "described": self.beginning.described,
            },
            "validation": {
                "held_out": [each.held_out for each in self.images.validation],
                "best": self.best.state_dict() if self.best else self._best_before,
            },
            "last": self.last_losses,
            "log_bytes": log.size,
            "seconds": self._seconds(),
            "data": self._data_digest(),
        }
        if self.best is not None and (kept := self.best.taken()) is not None:
            self.folder.write_generators(names.BEST, *kept)
        if self.model.steps:
            # Between two epochs the weights are of the one that has ended.
            epoch = self.model.epoch - (self.sampler.position == 0)
            self.folder.write_generators(names.LATEST, *self._generator_files(epoch))
            if self.settings.run.reference_names:
                self.folder.write_reference_weights(self.model)
        self.folder.write_state(state)
        self._saved = time.monotonic()

    def _own_state(self) -> State:
        """Return the state that every process has of its own, apart from its pools."""
        device = self.model.device
        return {
            "window": self.window.state_dict(),
            "epoch": self.whole_epoch.state_dict(),
            "random": random.getstate(),
            "torch_random": torch.get_rng_state(),
            "cuda_random": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        }

    def _restore(self, state: State) -> None:
        """Go back to where `_save` was called."""
        others = state.get("others", [])
        own_state, pools = (state, {}) if self.ranks.first else others[self.ranks.rank - 1]
        for digest, domain in zip(state["data"], (self.a, self.b), strict=True):
            if digest != domain.digest:
                raise InputError(
                    f"{printable(domain.folder)}: holds other images than when the run in "
                    f"{printable(self.folder.path)} began; restore them, or begin another run"
                )
        self._seconds_before = state["seconds"]
        if "clock" in state:
            schedule, said = self.clock.restore(state["clock"], state, self.sampler.batches)
            for sentence in said:
                self.say(sentence)
            if schedule is not None:
                self._follow(schedule)
        if self.clock.waits:
            self._follow(Schedule(_ENDLESS, 0, self.sampler.batches))
        try:
            self.model.load_state_dict(state["model"] | pools)
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{printable(self.folder.state)}: holds other networks than config.toml names; "
                "restore the config.toml that the run began with"
            ) from error
        self.sampler.load_state_dict(state["sampler"])
        self.window.load_state_dict(own_state["window"])
        self.whole_epoch.load_state_dict(own_state["epoch"])
        if start := state.get("start"):
            self.beginning = Beginning(tuple(start["warm_up"]), start["described"])
        self.last_losses = state["last"]
        self._best_before = before = state.get("validation", _OLD)["best"]
        if self.best and before is not None and not self.best.load_state_dict(before):
            self.say(
                "best was chosen by another score until now, or on other images: from here on "
                f"{self.best.validation.words()} decides, and replaces what is in best"
            )
        random.setstate(own_state["random"])
        torch.set_rng_state(own_state["torch_random"])
        if self.model.device.type == "cuda" and len(own_state["cuda_random"]) == 1:
            torch.cuda.set_rng_state(own_state["cuda_random"][0], self.model.device)
        before = float(state["model"]["optimizer_G"]["param_groups"][0]["lr"])
        if self.model.learning_rate > before:
            config = self.settings.train
            self.say(
                f"the learning rate goes up from {before:.3g} to {self.model.learning_rate:.3g}: "
                f"with n_epochs = {config.n_epochs} and n_epochs_decay = {config.n_epochs_decay} "
                f"it is that of epoch {self.model.epoch}"
            )

    def _generator_files(
        self, epoch: int, scores: Scores | None = None
    ) -> tuple[dict[str, bytes], dict[str, object]]:
        digest = self._data_digest()
        return generator_files(self.model, self.settings, epoch, digest, scores or {})

    def _data_digest(self) -> list[str]:
        return [self.a.digest, self.b.digest]

    def _refuse_infinite(self, mean: Mapping[str, float]) -> None:
        for name, value in mean.items():
            if not math.isfinite(value):
                self._raise_diverged(f"{name} is {value}")

    def _check_weights(self) -> None:
        networks = {name: getattr(self.model, name) for name in NETWORKS}
        if (name := infinite_weight(networks)) is not None:
            self._raise_diverged(f"{name} holds NaN or infinity")

    def _raise_diverged(self, what: str) -> NoReturn:
        step = self.model.steps
        if self.reports is not None:
            epoch, log = self.model.epoch, self.reports.log
            log.write({"event": "diverged", "epoch": epoch, "step": step, "what": what})
            log.flush()
        raise DivergedError(
            f"the training broke at step {step}: {what}; the last good state and checkpoints stay "
            f"in {printable(self.folder.checkpoints)}, and a lower lr or precision = fp32 may go "
            "further"
        )
