"""A training run: begin it in a folder, stop it at any step, resume it.

A run saves its state about once a minute, and ``best`` and ``latest`` with it. A run that was
stopped or killed at any time, and resumed, ends with the weights, the optimisers and the log of an
uninterrupted one, bit for bit on the CPU with the same number of threads; only the seconds in the
log differ. run_folder.py writes and reads the files.

Of several processes (distributed.py) only the first writes files and reports; the state also holds
the pools and random states of the others.

*Best* is the epoch with the least sum of mean cycle and identity losses. These can be measured
without a truth, but they do not measure how real the images look, and a generator that returns its
input would have the least: look at the samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cyclegan_batch.errors import (
    BackendError,
    CycleganBatchError,
    InputError,
    ModelError,
    OutOfMemoryError,
)
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.models.checkpoints import run_folder as names
from cyclegan_batch.wording import counted, first_line, printable

from .batches import Feed, Sampler
from .cyclegan import LOSSES, NETWORKS, CycleGAN, State, generator_config
from .data import Domain, find_folders, load_domains
from .distributed import Ranks, joined_ranks
from .health import signs_in_losses
from .networks import least_side
from .run_folder import STATE_VERSION, Log, RunFolder, describe_run, generator_files
from .settings import Settings
from .start import Beginning, begin_from

_POLL_STEPS = 20
"""The most steps after which several processes ask each other whether to stop or to save."""
_POLL_SECONDS = 1.0
"""The most seconds, about, after which they do; steps may take longer than this."""
_SCORED = ("cycle_A", "cycle_B", "idt_A", "idt_B")
"""The losses whose sum decides which epoch is best, and which ``plateau`` watches."""


class DivergedError(CycleganBatchError):
    """A loss or a weight is NaN or infinite; the last good state is kept."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """Of the whole run."""
    rate: float
    """Steps per second over the last fifty; 0 before the second step."""
    losses: Mapping[str, float]
    """The means of the last line of the log; empty before the first line."""
    before_first: int = 0
    """The steps of a warm-up that are left before the first epoch."""

    @property
    def seconds_left(self) -> float | None:
        """The time left at the present rate; None while there is no rate."""
        return (self.steps - self.step) / self.rate if self.rate else None


@dataclass(frozen=True)
class Reading:
    """How many images of a domain are read, before the first step."""

    domain: str
    """``A`` or ``B``."""
    read: int
    count: int


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

    ``data`` holds trainA and trainB (and testA, testB for the samples), or ``data_a`` and
    ``data_b`` are these two folders; ``test_a`` and ``test_b`` are other folders for the samples.
    ``stop`` is called before every step; where it returns True,
    the state is saved and the call returns. While the images are read nothing is written yet, and
    a stop raises KeyboardInterrupt. ``say`` is called with each sentence for the user,
    ``watch_reading`` after every image that is read, and ``watch`` after every step. Among several
    processes of torchrun only the first calls these three.

    Raises InputError, ModelError, OutputError, OutOfMemoryError, BackendError (also where another
    process has ended), BackendUnavailableError, and DivergedError.
    """
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    one_size = "crop" in settings.data.preprocess
    with joined_ranks(settings.train.device) as ranks, _cudnn_benchmark(one_size):
        if not ranks.first:
            say, watch = (lambda sentence: None), (lambda progress: None)
            watch_reading = lambda reading: None  # noqa: E731 (as the two above)
        folders = find_folders(data, data_a, data_b, test_a, test_b)
        this_run = _Run(folders, run, settings, stop, say, watch_reading, ranks)
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
        path: Path,
        settings: Settings,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        watch_reading: Callable[[Reading], None],
        ranks: Ranks,
    ) -> None:
        self.settings, self.say, self.ranks = settings, say, ranks
        self.folder = RunFolder(path, settings, say)
        # The state and the folders first: reading the images may take minutes.
        state = self.folder.read_state(ranks)
        folder_a, folder_b, *tests = folders
        if settings.data.direction == "BtoA":
            folder_a, folder_b = folder_b, folder_a
            tests.reverse()
        self.model = self._build_model()
        sizes = self._sizes()
        if ranks.first:
            self.folder.check_space(self.model, ranks.size)
        if settings.train.precision == "tf32" and self.model.float32 != "tf32":
            say("tf32 exists on CUDA only: the CPU computes in fp32")
        # The processes of one machine share its cores.
        workers = settings.data.workers or max(1, cpu_threads() // ranks.size)
        self.data = dataclasses.replace(settings.data, workers=workers)
        self.a, self.b = self._read_images((folder_a, folder_b), sizes, stop, watch_reading)
        self._report_data()
        self.samples = self._read_samples(tests, sizes)
        if self.model.device.type == "cuda":
            self._to_device(self.model.device)
        self.sampler = Sampler(
            len(self.a),
            len(self.b),
            batch_size=settings.data.batch_size,
            seed=settings.run.seed,
            serial=settings.data.serial_batches,
            rank=ranks.rank,
            size=ranks.size,
        )
        self.feed = Feed(self.a, self.b, self.sampler, workers=workers)
        self.window = _Mean(self.model.device)
        self.whole_epoch = _Mean(self.model.device)
        self.best = math.inf
        """The score of the best epoch."""
        self._best_files: dict[str, bytes] | None = None
        """The files of the best epoch, where they are newer than those in ``best``."""
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
        self.log: Log | None = None
        """None in all processes but the first, as the board."""
        self.board: Any = None
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
        else:
            self.beginning = begin_from(self.model, self.settings, self.say)
            if self.beginning.warm_up:
                self.sampler.begin_before(self.settings.run.warm_up)
        if self.ranks.first:
            self.log = self.folder.open_log(state["log_bytes"] if state else 0)
            description = describe_run(
                self.model, self.settings, (self.a, self.b), self.ranks, self.sampler.batches
            )
            if self.beginning.described:
                description["start"] = self.beginning.described
            self.folder.describe(description, resumes=state is not None)
        if state is None:
            self._save()
        if self.ranks.first:
            # Only now: a state that does not fit must leave the old config in place.
            self.folder.write_config()
            self.board = self.folder.open_board(self.model.steps)

    # The loop

    def go(self, stop: Callable[[], bool], watch: Callable[[Progress], None]) -> Outcome:
        """Train until the last epoch ends or ``stop`` returns True."""
        model, settings = self.model, self.settings
        while model.epoch <= settings.epochs:
            stops, due = self._stop_or_save(stop())
            if stops or due:
                self._save()
            if stops:
                return Outcome(False, model.epoch, model.steps, self.ranks.first)
            if self.sampler.before_first:
                self._warm_up()
                watch(self._progress())
                continue
            losses = self._step(model.step)
            values = torch.stack([losses[name] for name in LOSSES]).double()
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
            watch(self._progress())
        return Outcome(True, settings.epochs, model.steps, self.ranks.first)

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

    def _warm_up(self) -> None:
        """Do a step before the first epoch, in which only some networks learn, and log it."""
        names = self.beginning.warm_up
        losses = self._step(functools.partial(self.model.warm_up, names))
        nothing = torch.zeros((), device=self.model.device)
        self.window.add(torch.stack([losses.get(name, nothing) for name in LOSSES]).double())
        left = self.sampler.before_first
        if left and self.window.count < self.settings.run.log_every:
            return
        mean = self.window.take(self.ranks)
        if self.log is not None:
            means = {name: mean[name] for name in losses}
            self.log.write({"event": "warm_up", "left": left, **means})
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
        if self.log is not None:
            self.log.close()
        if self.board is not None:
            self.board.close()

    def _log_losses(self) -> None:
        mean = self.window.take(self.ranks)
        self._refuse_infinite(mean)
        self.last_losses = mean
        if self.log is None:
            return
        self.log.write(
            {
                "event": "losses",
                "epoch": self.model.epoch,
                "step": self.model.steps,
                "lr": self.model.learning_rate,
                "seconds": round(self._seconds(), 1),
                **mean,
            }
        )
        if self.board is not None:
            for name, value in mean.items():
                self.board.add_scalar(f"loss/{name}", value, self.model.steps)
            self.board.add_scalar("lr", self.model.learning_rate, self.model.steps)

    def _end_epoch(self) -> None:
        model, epoch = self.model, self.model.epoch
        mean = self.whole_epoch.take(self.ranks)
        score = sum(mean[name] for name in _SCORED)
        improved = score < self.best
        self.best = min(score, self.best)
        if self.log is not None:
            self._report_epoch(self.log, epoch, score, mean)
        model.update_learning_rate(score)
        self._check_weights()
        if self.ranks.first:
            if improved:
                self._best_files = self._generator_files(epoch)
            if epoch % self.settings.run.save_every_epochs == 0 or epoch == self.settings.epochs:
                self.folder.write_generators(names.epoch_name(epoch), self._generator_files(epoch))
                self.folder.remove_old_epochs()
        every = self.settings.run.save_latest_every
        due = self.ranks.first and time.monotonic() - self._saved >= every
        if epoch == self.settings.epochs or self.ranks.any(due):
            self._save()

    def _report_epoch(self, log: Log, epoch: int, score: float, mean: dict[str, float]) -> None:
        """Log an epoch and its health, draw its samples and the curves."""
        step = self.model.steps
        log.write({"event": "epoch", "epoch": epoch, "step": step, "score": score, **mean})
        signs = list(signs_in_losses(mean, self.settings.train.gan_mode))
        if self.samples is not None:
            signs += self.folder.draw_samples(epoch, self.model, self.samples)
        for sign in signs:
            log.write({"event": "health", "epoch": epoch, "step": step, "sign": sign})
            self.say(f"epoch {epoch}: {sign}")
        self.folder.draw_losses(log)
        if self.board is not None:
            self.board.flush()

    def _progress(self) -> Progress:
        return Progress(
            min(self.model.epoch, self.settings.epochs),
            self.settings.epochs,
            self.model.steps,
            self.settings.epochs * self.sampler.batches,
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
        if everyone is None or self.log is None:
            return
        self.log.flush()
        state = {
            "version": STATE_VERSION,
            "settings": self.settings.flat(),
            "model": model,
            "sampler": self.sampler.state_dict(),
            **everyone[0][0],
            "others": everyone[1:],
            "start": {
                "warm_up": list(self.beginning.warm_up),
                "described": self.beginning.described,
            },
            "best": self.best,
            "last": self.last_losses,
            "log_bytes": self.log.size,
            "seconds": self._seconds(),
            "data": self._data_digest(),
        }
        if self._best_files is not None:
            self.folder.write_generators(names.BEST, self._best_files)
            self._best_files = None
        if self.model.steps:
            # Between two epochs the weights are of the one that has ended.
            epoch = self.model.epoch - (self.sampler.position == 0)
            self.folder.write_generators(names.LATEST, self._generator_files(epoch))
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
        self.best, self.last_losses = state["best"], state["last"]
        if start := state.get("start"):
            self.beginning = Beginning(tuple(start["warm_up"]), start["described"])
        self._seconds_before = state["seconds"]
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

    def _generator_files(self, epoch: int) -> dict[str, bytes]:
        return generator_files(self.model, self.settings, epoch, self._data_digest())

    def _data_digest(self) -> list[str]:
        return [self.a.digest, self.b.digest]

    def _refuse_infinite(self, mean: Mapping[str, float]) -> None:
        for name, value in mean.items():
            if not math.isfinite(value):
                self._raise_diverged(f"{name} is {value}")

    def _check_weights(self) -> None:
        weights = {
            f"{name}.{key}": weight
            for name in NETWORKS
            for key, weight in getattr(self.model, name).named_parameters()
        }
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
        for name, is_finite in zip(weights, finite, strict=True):
            if not is_finite:
                self._raise_diverged(f"{name} holds NaN or infinity")

    def _raise_diverged(self, what: str) -> NoReturn:
        step = self.model.steps
        if self.log is not None:
            epoch = self.model.epoch
            self.log.write({"event": "diverged", "epoch": epoch, "step": step, "what": what})
            self.log.flush()
        raise DivergedError(
            f"the training broke at step {step}: {what}; the last good state and checkpoints stay "
            f"in {printable(self.folder.checkpoints)}, and a lower lr or precision = fp32 may go "
            "further"
        )

    # The data

    def _sizes(self) -> SizeRequirements:
        """Return the sizes that all four networks can be trained on. Raises InputError."""
        config, data = self.settings.train, self.settings.data
        sizes = generator_config(config, "AtoB").sizes
        least = least_side(self.model.netD_A, data.batch_size)
        if "crop" in data.preprocess and data.crop_size < least:
            raise InputError(
                f"crop_size = {data.crop_size}: the discriminator (netD = {config.netD}, "
                f"n_layers_D = {config.n_layers_D}) needs images of at least {least}×{least}; "
                "choose a larger crop_size, or n_layers with a smaller n_layers_D"
            )
        return dataclasses.replace(sizes, minimum=max(sizes.minimum, least))

    def _read_images(
        self,
        folders: tuple[Path, Path],
        sizes: SizeRequirements,
        stop: Callable[[], bool],
        watch_reading: Callable[[Reading], None],
    ) -> tuple[Domain, Domain]:
        """Read both domains. Raises InputError; KeyboardInterrupt where ``stop`` returns True."""

        def watch(domain: str, read: int, count: int) -> None:
            watch_reading(Reading(domain, read, count))
            if stop():
                raise KeyboardInterrupt

        a, b = load_domains(folders, self.data, channels=self._channels, sizes=sizes, watch=watch)
        self._refuse_mixed_sizes(a, b)
        return a, b

    @property
    def _channels(self) -> tuple[int, int]:
        """The channels of the images of A and of B."""
        return self.settings.train.input_nc, self.settings.train.output_nc

    def _refuse_mixed_sizes(self, a: Domain, b: Domain) -> None:
        """Refuse images of several sizes where a step needs one. Raises InputError."""
        sizes = list(dict.fromkeys((*a.shapes, *b.shapes)))
        if self.settings.train.gan_mode == "wgangp" and len(sizes) > 1:
            (height, width), (other_height, other_width) = sizes[:2]
            raise InputError(
                f"gan_mode = wgangp mixes real and fake images of one size, and there are "
                f"{width}×{height} and {other_width}×{other_height}; use a preprocess that crops, "
                "or lsgan"
            )

    def _report_data(self) -> None:
        for letter, domain in (("A", self.a), ("B", self.b)):
            where = "in memory" if domain.cached is not None else "decoded as they are needed"
            count = counted(len(domain), "image")
            self.say(f"{letter}: {count} of {printable(domain.folder)}, {where}")
            for note in domain.notes:
                self.say(note)
            for skipped in domain.skipped[:10]:
                self.say(f"skipped: {skipped.reason}")
            if domain.skipped:
                self.say(f"{letter}: {counted(len(domain.skipped), 'image')} skipped")
        together = self.data.batch_size * self.ranks.size
        if together > max(len(self.a), len(self.b)):
            self.say(
                f"a step takes {together} images of each domain, which is more than either has: "
                "every step repeats some of them, each time with its own cut and flip"
            )

    def _read_samples(
        self, tests: list[Path | None], sizes: SizeRequirements
    ) -> tuple[Domain, Domain] | None:
        """Return the images of the sheets: those for testing, or some of the training."""
        count = self.settings.run.samples
        if not count:
            return None
        a, b = (
            Domain(
                test or train.folder,
                self.data,
                channels=nc,
                sizes=sizes,
                budget=2**30,
                most=count,
            )
            for test, train, nc in zip(tests, (self.a, self.b), self._channels, strict=True)
        )
        return a, b

    def _to_device(self, device: torch.device) -> None:
        """Move the images to the device, where they take less than half of what is free."""
        free, _ = torch.cuda.mem_get_info(device)
        cached = self.a.cached is not None and self.b.cached is not None
        if cached and self.a.bytes + self.b.bytes < free // 2:
            self.a.to(device)
            self.b.to(device)


class _Mean:
    """The running mean of the losses, accumulated on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros(len(LOSSES), dtype=torch.float64, device=device)
        self.count = 0

    def add(self, values: Tensor) -> None:
        self._sum += values
        self.count += 1

    def take(self, ranks: Ranks) -> dict[str, float]:
        """Return the mean over all processes, and start again from zero."""
        values = (ranks.mean(self._sum) / max(1, self.count)).tolist()
        self._sum.zero_()
        self.count = 0
        return dict(zip(LOSSES, values, strict=True))

    def state_dict(self) -> State:
        return {"sum": self._sum.cpu(), "count": self.count}

    def load_state_dict(self, state: State) -> None:
        self._sum.copy_(state["sum"])
        self.count = state["count"]


@contextlib.contextmanager
def _cudnn_benchmark(one_size: bool) -> Iterator[None]:
    """Let cuDNN search the fastest kernels, as the reference does, where all sizes are the same."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or one_size
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
