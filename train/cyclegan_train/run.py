"""A training run in a folder: begin it, stop it anywhere, go on, and read how it went.

    RUN/
      config.toml               every key of the run, and what it means
      run.json                  versions, the machine, the data and their digest, what was skipped
      log.jsonl                 one JSON object per line: losses, epochs, signs of bad health
      losses.png                their curves
      samples/epoch_0001.png    what the generators make of the same pictures, epoch by epoch
      tensorboard/              where TensorBoard is installed
      checkpoints/
        state.pt                all that the next step depends on: what --resume reads
        latest/ best/ epoch_0005/
          netG_A.safetensors    a generator that says itself what it is (netG_A_ema: its average)
          checkpoint.json       the same in one file for people

``state.pt`` is the truth: it holds the keys of the run and the length of the log, too, and a
resumed run cuts off what was written after it. It is written about once a minute, and ``best`` and
``latest`` with it. So a run that was stopped anywhere, or killed, ends with the weights, the
optimisers and the log of one that never was, bit for bit on the CPU with the same number of
threads; only the seconds in the log differ.

Of several processes (distributed.py) the first alone writes and speaks; the state holds what each
of them has of its own.

*Best* is the epoch whose mean cycle and identity losses were least. That is what can be measured
without a truth, it says nothing of how real the pictures look, and a generator that does nothing
would win it: look at the samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from cyclegan_batch import __version__
from cyclegan_batch.errors import (
    BackendError,
    CycleganBatchError,
    InputError,
    ModelError,
    OutOfMemoryError,
    OutputError,
)
from cyclegan_batch.files import output_error, publish, temporary_path
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.wording import printable

from .charts import losses_png, sheet_png
from .cyclegan import LOSSES, CycleGAN, generator_config
from .data import Domain, Feed, Sampler, find_folders, load_domains
from .distributed import Ranks, joined_ranks
from .health import signs_in_losses, signs_in_samples
from .networks import least_side
from .settings import Settings, changed_keys, toml_from

_STATE_VERSION = 1
_ASKED_EVERY = 20
"""Steps, at most, after which several processes ask each other whether to stop or to save."""
_ASKED_WITHIN = 1.0
"""Seconds, about, within which they do."""
_SCORED = ("cycle_A", "cycle_B", "idt_A", "idt_B")
"""The losses whose sum decides which epoch is best, and what ``plateau`` watches."""


class DivergedError(CycleganBatchError):
    """A loss or a weight is no number any more; the last good state is kept."""


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    epoch: int
    epochs: int
    step: int
    steps: int
    """Of the whole run."""
    rate: float
    """Steps per second, lately; 0 before the second one."""
    losses: Mapping[str, float]
    """The means of the last line of the log; empty before it."""

    @property
    def seconds_left(self) -> float | None:
        """What is left at the present rate; None while there is none."""
        return (self.steps - self.step) / self.rate if self.rate else None


@dataclass(frozen=True)
class Reading:
    """How many pictures of a domain are read: what there is to tell before the first step."""

    domain: str
    """``A`` or ``B``."""
    read: int
    count: int


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    finished: bool
    """False where ``stop`` ended it: it can be resumed."""
    epoch: int
    """The last one that was begun."""
    step: int
    first: bool = True
    """Whether this process is the one that speaks, of several."""


def train(
    data: Path | None,
    run: Path,
    settings: Settings,
    *,
    data_a: Path | None = None,
    data_b: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda sentence: None,
    watch: Callable[[Progress], None] = lambda progress: None,
    watch_reading: Callable[[Reading], None] = lambda reading: None,
) -> Outcome:
    """Train in the folder ``run``, from its state if it has one, to the last epoch.

    ``data`` holds trainA and trainB (and testA, testB for the samples), or ``data_a`` and
    ``data_b`` are the two. ``stop`` is asked before every step: where it says so, the state is
    saved and the call returns; while the pictures are read nothing is written yet, and it raises
    KeyboardInterrupt. ``say`` is told sentences, ``watch`` where the run is, and before its first
    step ``watch_reading`` how far the pictures are read. In one of several processes of torchrun
    it trains with the others, and only the first tells anything.

    Raises InputError, ModelError, OutputError, OutOfMemoryError, BackendError (also for another
    process that has ended), BackendUnavailableError, and DivergedError.
    """
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    one_size = "crop" in settings.data.preprocess
    with joined_ranks(settings.train.device) as ranks, _kernels_searched(one_size):
        if not ranks.first:
            say, watch = (lambda sentence: None), (lambda progress: None)
            watch_reading = lambda reading: None  # noqa: E731 (as the two above)
        begun = _Run(data, data_a, data_b, run, settings, stop, say, watch_reading, ranks)
        try:
            return begun.go(stop, watch)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"no room for a step of {settings.data.batch_size} pictures of each domain at "
                f"crop_size = {settings.data.crop_size}; use a smaller batch_size or crop_size, or "
                "precision = bf16"
            ) from error
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise BackendError(
                f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); see "
                "that a C++ compiler is installed, or leave compile out"
            ) from error
        finally:
            begun.close()


class _Run:
    """One process's part of a run: everything is loaded, restored, and ready for a step."""

    def __init__(
        self,
        data: Path | None,
        data_a: Path | None,
        data_b: Path | None,
        folder: Path,
        settings: Settings,
        stop: Callable[[], bool],
        say: Callable[[str], None],
        watch_reading: Callable[[Reading], None],
        ranks: Ranks,
    ) -> None:
        self.folder, self.settings, self.say, self.ranks = folder, settings, say, ranks
        self.checkpoints = folder / "checkpoints"
        config = settings.train
        # Before the pictures, which take the time.
        state = self._read_state()
        folder_a, folder_b, *tests = find_folders(data, data_a, data_b)
        random.seed(settings.run.seed)
        torch.manual_seed(settings.run.seed)
        try:
            self.model = CycleGAN(config, ranks)
        except ValueError as error:
            raise ModelError(f"cannot build the networks: {error}") from error
        sizes = self._sizes()
        if ranks.first:
            self._check_space()
        if config.precision == "tf32" and self.model.float32 != "tf32":
            say("tf32 is CUDA's: the CPU computes in fp32")
        if not ranks.first:
            # The networks are the same everywhere; what is drawn from now on is one's own.
            random.seed(f"{settings.run.seed} {ranks.rank}")
            torch.manual_seed(random.getrandbits(63))
        channels = (config.input_nc, config.output_nc)

        def watch(domain: str, read: int, count: int) -> None:
            watch_reading(Reading(domain, read, count))
            if stop():
                raise KeyboardInterrupt

        # The processes of one machine share its cores.
        workers = settings.data.workers or max(1, cpu_threads() // ranks.size)
        self.data = dataclasses.replace(settings.data, workers=workers)
        self.a, self.b = load_domains(
            (folder_a, folder_b), self.data, channels=channels, sizes=sizes, watch=watch
        )
        self._refuse_mixed_sizes()
        self._tell_data()
        self.samples = self._read_samples(tests, channels, sizes)
        if self.model.device.type == "cuda":
            self._to_device(self.model.device)
        self.sampler = Sampler(
            len(self.a),
            len(self.b),
            batch_size=settings.data.batch_size,
            seed=settings.run.seed,
            rank=ranks.rank,
            size=ranks.size,
        )
        self.feed = Feed(self.a, self.b, self.sampler, workers=workers)
        self.window = _Mean(self.model.device)
        self.whole_epoch = _Mean(self.model.device)
        self.best = math.inf
        self.seconds = 0.0
        """What the run took before this process."""
        self.last: dict[str, float] = {}
        self._best: dict[str, bytes] | None = None
        """The files of the best epoch, where they are newer than those in ``best``."""
        self._stop_wanted = False
        self._asked_at = 0
        """The step before which several processes ask each other next."""
        self._since = self._saved = time.monotonic()
        self._ticks: deque[float] = deque(maxlen=50)
        self.log: _Log | None = None
        """None where another process writes it, as the board."""
        self.board: Any = None
        if ranks.first:
            with _writing(folder):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                (folder / "samples").mkdir(exist_ok=True)
        if state is not None:
            self._restore(state)
        if ranks.first:
            self.log = _Log(folder / "log.jsonl", state["log_bytes"] if state else 0)
            if self.log.lost:
                say(
                    f"{printable(self.log.path)}: lacks {self.log.lost} bytes of what it held when "
                    "the state was saved; the run goes on all the same, and the curves lack them"
                )
            self._describe(resumes=state is not None)
        if state is None:
            self._save()
        if ranks.first:
            # After the state is known to fit: a resumed run may have been given other keys.
            _write(folder / "config.toml", toml_from(settings).encode())
            self.board = self._open_board()

    # The loop

    def go(self, stop: Callable[[], bool], watch: Callable[[Progress], None]) -> Outcome:
        """Train until the last epoch ends or ``stop`` says so."""
        model, settings = self.model, self.settings
        while model.epoch <= settings.epochs:
            stops, due = self._asked(stop())
            if stops or due:
                self._save()
            if stops:
                return Outcome(False, model.epoch, model.steps, self.ranks.first)
            losses = self._step()
            values = torch.stack([losses[name] for name in LOSSES]).double()
            self.window.add(values)
            self.whole_epoch.add(values)
            # The sampler stands at the next batch already.
            ended = self.sampler.position == 0
            if ended or self.window.count == settings.run.log_every:
                self._log_losses()
            if ended:
                self._end_epoch()
            elif settings.run.save_every_steps and not model.steps % settings.run.save_every_steps:
                self._save()
            self._ticks.append(time.monotonic())
            watch(self._progress())
        return Outcome(True, settings.epochs, model.steps, self.ranks.first)

    def _asked(self, stop: bool) -> tuple[bool, bool]:
        """Return whether to stop, and whether a save is due, as all processes do it together.

        They ask each other every ``_ASKED_EVERY`` steps, or within about a second where steps take
        longer: waiting for each other at every step would cost more than a step of a small network.
        """
        every = self.settings.run.save_latest_every
        due = self.ranks.first and 0 < every <= time.monotonic() - self._saved
        if self.ranks.size == 1:
            return stop, due
        self._stop_wanted |= stop
        if self.model.steps < self._asked_at:
            return False, False
        wait = min(_ASKED_EVERY, max(1, int(self._rate() * _ASKED_WITHIN)))
        wanted = [int(self._stop_wanted), int(due), -wait]
        stops, due_somewhere, wait = self.ranks.greatest(wanted)
        self._asked_at = self.model.steps - wait
        return bool(stops), bool(due_somewhere)

    def _step(self) -> dict[str, Tensor]:
        try:
            pictures = self.feed.next()
        except InputError:
            # Of several processes the others do not come to save with this one.
            if self.ranks.size == 1:
                self._save()
            raise
        try:
            return self.model.step(*pictures)
        except ValueError as error:
            sizes = [f"{picture.shape[3]}×{picture.shape[2]}" for picture in pictures]
            raise ModelError(
                f"the step after step {self.model.steps}, with pictures of {' and '.join(sizes)}, "
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
        mean = self.window.taken(self.ranks)
        for name, value in mean.items():
            if not math.isfinite(value):
                self._diverged(f"{name} is {value}")
        self.last = mean
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
        mean = self.whole_epoch.taken(self.ranks)
        score = sum(mean[name] for name in _SCORED)
        improved = score < self.best
        self.best = min(score, self.best)
        if self.log is not None:
            self._tell_epoch(self.log, epoch, score, mean)
        model.update_learning_rate(score)
        self._check_weights()
        if self.ranks.first:
            if improved:
                self._best = self._weights(epoch)
            if epoch % self.settings.run.save_every_epochs == 0 or epoch == self.settings.epochs:
                self._write_weights(f"epoch_{epoch:04d}", self._weights(epoch))
                self._forget_old_checkpoints()
        every = self.settings.run.save_latest_every
        due = self.ranks.first and time.monotonic() - self._saved >= every
        if epoch == self.settings.epochs or self.ranks.any(due):
            self._save()

    def _tell_epoch(self, log: _Log, epoch: int, score: float, mean: dict[str, float]) -> None:
        """Write how an epoch was: for the log, and for the eye."""
        step = self.model.steps
        log.write({"event": "epoch", "epoch": epoch, "step": step, "score": score, **mean})
        signs = list(signs_in_losses(mean, self.settings.train.gan_mode))
        if self.samples is not None:
            signs += self._draw_samples(epoch)
        for sign in signs:
            log.write({"event": "health", "epoch": epoch, "step": step, "sign": sign})
            self.say(f"epoch {epoch}: {sign}")
        self._draw_losses(log)
        if self.board is not None:
            self.board.flush()

    def _progress(self) -> Progress:
        return Progress(
            min(self.model.epoch, self.settings.epochs),
            self.settings.epochs,
            self.model.steps,
            self.settings.epochs * self.sampler.batches,
            self._rate(),
            self.last,
        )

    def _rate(self) -> float:
        """Return the steps per second, lately; 0 before the second one."""
        ticks = self._ticks
        spent = ticks[-1] - ticks[0] if len(ticks) > 1 else 0.0
        return (len(ticks) - 1) / spent if spent else 0.0

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self._since

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
            "version": _STATE_VERSION,
            "settings": self.settings.flat(),
            "model": model,
            "sampler": self.sampler.state_dict(),
            **everyone[0][0],
            "others": everyone[1:],
            "best": self.best,
            "last": self.last,
            "log_bytes": self.log.size,
            "seconds": self._seconds(),
            "data": [self.a.digest, self.b.digest],
        }
        if self._best is not None:
            self._write_weights("best", self._best)
            self._best = None
        if self.model.steps:
            # Between two epochs the weights are of the one that has ended.
            epoch = self.model.epoch - (self.sampler.position == 0)
            self._write_weights("latest", self._weights(epoch))
            if self.settings.run.reference_names:
                for net in ("G_A", "G_B", "D_A", "D_B"):
                    weights = _plain(getattr(self.model, f"net{net}"))
                    _write_tensors(self.checkpoints / f"latest_net_{net}.pth", weights)
        # Last: until it is there, the run is where it was before.
        _write_tensors(self.checkpoints / "state.pt", state)
        self._saved = time.monotonic()

    def _own_state(self) -> dict[str, Any]:
        """Return what is another one in every process, as the pools are."""
        device = self.model.device
        return {
            "window": self.window.state_dict(),
            "epoch": self.whole_epoch.state_dict(),
            "random": random.getstate(),
            "torch_random": torch.get_rng_state(),
            "cuda_random": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        }

    def _read_state(self) -> dict[str, Any] | None:
        """Return the state that this run can go on from; None where none was saved yet."""
        path = self.checkpoints / "state.pt"
        # Asked of all before one of them writes it.
        if not self.ranks.any(path.exists()):
            return None
        try:
            state: dict[str, Any]
            state = torch.load(path, map_location="cpu", weights_only=True)
            version = state["version"]
        # torch raises all kinds of things at a damaged file; it is the file that is wrong.
        except Exception as error:
            raise InputError(
                f"{printable(path)}: is no whole state of a run ({type(error).__name__}); restore "
                "it, or begin another run"
            ) from error
        if version != _STATE_VERSION:
            raise InputError(
                f"{printable(path)}: is of version {version} where this release reads "
                f"{_STATE_VERSION}; go on with the release that wrote it"
            )
        began = 1 + len(state.get("others", []))
        if began != self.ranks.size:
            raise InputError(
                f"{printable(path)}: is of {began} processes, each with pools and random states "
                f"of its own, and {self.ranks.size} would go on; start {began}, with torchrun "
                "--nproc-per-node where they are several"
            )
        # Those of before 2026-12 hold no settings.
        if changed := changed_keys(state.get("settings", {}), self.settings):
            words = [f"{name} = {now!r} instead of {was!r}" for name, (was, now) in changed.items()]
            raise InputError(
                f"{printable(self.folder / 'config.toml')}: holds other keys than the run was made "
                f"with ({', '.join(words)}); restore them, or begin another run"
            )
        return state

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go back to where `_save` was called."""
        path = self.checkpoints / "state.pt"
        others = state.get("others", [])
        own, pools = (state, {}) if self.ranks.first else others[self.ranks.rank - 1]
        for digest, domain in zip(state["data"], (self.a, self.b), strict=True):
            if digest != domain.digest:
                raise InputError(
                    f"{printable(domain.folder)}: holds other pictures than when the run in "
                    f"{printable(self.folder)} began; restore them, or begin another run"
                )
        try:
            self.model.load_state_dict(state["model"] | pools)
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{printable(path)}: is of other networks than config.toml names; restore the "
                "config.toml that the run began with"
            ) from error
        self.sampler.load_state_dict(state["sampler"])
        self.window.load_state_dict(own["window"])
        self.whole_epoch.load_state_dict(own["epoch"])
        self.best, self.last, self.seconds = state["best"], state["last"], state["seconds"]
        random.setstate(own["random"])
        torch.set_rng_state(own["torch_random"])
        if self.model.device.type == "cuda" and len(own["cuda_random"]) == 1:
            torch.cuda.set_rng_state(own["cuda_random"][0], self.model.device)
        before = float(state["model"]["optimizer_G"]["param_groups"][0]["lr"])
        if self.model.learning_rate > before:
            config = self.settings.train
            self.say(
                f"the learning rate goes up from {before:.3g} to {self.model.learning_rate:.3g}: "
                f"with n_epochs = {config.n_epochs} and n_epochs_decay = {config.n_epochs_decay} "
                f"it is that of epoch {self.model.epoch}"
            )

    def _describe(self, *, resumes: bool) -> None:
        """Write run.json; where the run goes on, only if there is none, and tell what differs."""
        path = self.folder / "run.json"
        if resumes:
            try:
                threads = json.loads(path.read_text("utf-8"))["machine"]["threads"]
            except (OSError, ValueError, KeyError, TypeError):
                self.say(
                    f"{printable(path)}: does not say how the run began; it is written anew, and "
                    "says how it goes on"
                )
            else:
                if threads != torch.get_num_threads():
                    self.say(
                        f"the run began on {threads} CPU threads and goes on on "
                        f"{torch.get_num_threads()}: the last bits of its weights can differ from "
                        "those of an uninterrupted one"
                    )
                return
        _write(path, _json(self._description()))

    def _check_weights(self) -> None:
        weights = {
            f"{name}.{key}": weight
            for name in ("netG_A", "netG_B", "netD_A", "netD_B")
            for key, weight in getattr(self.model, name).named_parameters()
        }
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
        for name, sound in zip(weights, finite, strict=True):
            if not sound:
                self._diverged(f"{name} holds NaN or infinity")

    def _diverged(self, what: str) -> None:
        step = self.model.steps
        if self.log is not None:
            epoch = self.model.epoch
            self.log.write({"event": "diverged", "epoch": epoch, "step": step, "what": what})
            self.log.flush()
        raise DivergedError(
            f"the training broke at step {step}: {what}; the last good state and checkpoints stay "
            f"in {printable(self.checkpoints)}, and a lower lr or precision = fp32 may go further"
        )

    # The checkpoints

    def _write_weights(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write what `_weights` has returned, in a folder of that name."""
        place = self.checkpoints / name
        with _writing(place):
            place.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            _write(place / file, data)

    def _weights(self, epoch: int) -> dict[str, bytes]:
        """Return the files that hold both generators as they are."""
        files: dict[str, bytes] = {}
        described: dict[str, Any] = {}
        for letter, direction in (("A", "AtoB"), ("B", "BtoA")):
            averaged: nn.Module | None = getattr(self.model, f"ema_{letter}")
            for suffix, network in (
                ("", getattr(self.model, f"netG_{letter}")),
                ("_ema", averaged),
            ):
                if network is not None:
                    card = self._card(direction, "ema" if suffix else "raw", epoch)
                    file = f"netG_{letter}{suffix}.safetensors"
                    metadata = {key: _text(value) for key, value in card.items()}
                    files[file] = _safetensors(_plain(network), metadata)
                    described[file] = card
        return files | {"checkpoint.json": _json(described)}

    def _card(self, direction: str, weights: str, epoch: int) -> dict[str, Any]:
        """Return what a generator's file says of itself."""
        data = self.settings.data
        return {
            "format": "cyclegan-batch generator 1",
            "tool_version": __version__,
            "direction": direction,
            "weights": weights,
            "generator": dataclasses.asdict(generator_config(self.settings.train, direction)),
            "trained_size": data.crop_size if "crop" in data.preprocess else None,
            "preprocess": data.preprocess,
            "epoch": epoch,
            "step": self.model.steps,
            "data_digest": [self.a.digest, self.b.digest],
        }

    def _forget_old_checkpoints(self) -> None:
        numbered = sorted(self.checkpoints.glob("epoch_*"))
        for old in numbered[: -self.settings.run.keep_last or len(numbered)]:
            if self.settings.run.keep_last:
                shutil.rmtree(old, ignore_errors=True)

    # What is looked at

    def _draw_samples(self, epoch: int) -> Iterator[str]:
        """Draw the sheet of an epoch; return the signs in it."""
        signs: list[str] = []
        rows: list[list[tuple[str, Any]]] = []
        nets = [
            getattr(self.model, f"ema_{letter}") or getattr(self.model, f"netG_{letter}")
            for letter in "AB"
        ]
        assert self.samples is not None
        with self.model.computing(), _evaluating(*nets):
            for domain, there, back, own, other in (
                (self.samples[0], nets[0], nets[1], "A", "B"),
                (self.samples[1], nets[1], nets[0], "B", "A"),
            ):
                sources, fakes = [], []
                for number in range(len(domain)):
                    real = domain.centred(number)[None].to(self.model.device)
                    fake = there(real)
                    row = [(f"real_{own}", real), (f"fake_{other}", fake)]
                    row.append((f"rec_{own}", back(fake)))
                    if self.settings.train.lambda_identity:
                        # The reference shows what the generator back leaves of it beside it.
                        row.append((f"idt_{other}", back(real)))
                    rows.append([(title, _pixels(picture[0])) for title, picture in row])
                    sources.append(real[0].float().cpu())
                    fakes.append(fake[0].float().cpu())
                signs += signs_in_samples(f"G_{own}", sources, fakes)
        _write(self.folder / "samples" / f"epoch_{epoch:04d}.png", sheet_png(rows))
        return iter(signs)

    def _draw_losses(self, log: _Log) -> None:
        steps: list[int] = []
        losses: dict[str, list[float]] = {name: [] for name in LOSSES}
        log.flush()
        for event in log.read():
            if event["event"] == "losses":
                steps.append(int(event["step"]))
                for name in LOSSES:
                    losses[name].append(float(event[name]))
        _write(self.folder / "losses.png", losses_png(steps, losses))

    def _open_board(self) -> Any:
        if not self.settings.run.tensorboard:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        place, step = str(self.folder / "tensorboard"), self.model.steps
        return SummaryWriter(place, purge_step=step + 1 if step else None)

    # The data

    def _sizes(self) -> SizeRequirements:
        """Return which pictures all four networks can be trained on. Raises InputError."""
        config, data = self.settings.train, self.settings.data
        sizes = generator_config(config, "AtoB").sizes
        least = least_side(self.model.netD_A, data.batch_size)
        if "crop" in data.preprocess and data.crop_size < least:
            raise InputError(
                f"crop_size = {data.crop_size}: the discriminator (netD = {config.netD}, "
                f"n_layers_D = {config.n_layers_D}) judges pictures from {least} on; choose a "
                "larger crop_size, or n_layers with a smaller n_layers_D"
            )
        return dataclasses.replace(sizes, minimum=max(sizes.minimum, least))

    def _check_space(self) -> None:
        """Refuse a disk that cannot hold the checkpoints. Raises OutputError."""
        config, data, run = self.settings.train, self.settings.data, self.settings.run
        generators, networks = (
            sum(
                weight.nbytes
                for name in names
                for weight in getattr(self.model, name).state_dict().values()
            )
            for names in (("netG_A", "netG_B"), ("netG_A", "netG_B", "netD_A", "netD_B"))
        )
        averages = generators if config.ema else 0
        side = data.crop_size if "crop" in data.preprocess else data.load_size
        pools = config.pool_size * (config.input_nc + config.output_nc) * side**2 * 4
        # Two moments of Adam for every weight.
        state = 3 * networks + averages + self.ranks.size * pools
        numbered = self.settings.epochs // run.save_every_epochs + 1
        numbered = min(numbered, run.keep_last) if run.keep_last else numbered
        whole = state + (2 + numbered) * (generators + averages)
        whole += networks if run.reference_names else 0
        there = sum(file.stat().st_size for file in self.checkpoints.rglob("*") if file.is_file())
        place = next(
            path for path in (self.folder, *self.folder.resolve().parents) if path.exists()
        )
        free = shutil.disk_usage(place).free
        # A new state is written beside the old one.
        needed = state + max(0, whole - there)
        if free < needed:
            raise OutputError(
                f"cannot train in {printable(self.folder)}: its checkpoints take up to "
                f"{needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB of the disk are free; free "
                "some space, use a smaller keep_last, or name another folder"
            )

    def _refuse_mixed_sizes(self) -> None:
        """Refuse pictures of several sizes where a step needs one. Raises InputError."""
        sizes = {size: domain for domain in (self.a, self.b) for size in domain.shapes}
        if self.settings.train.gan_mode == "wgangp" and len(sizes) > 1:
            (height, width), (other_height, other_width) = list(sizes)[:2]
            raise InputError(
                f"gan_mode = wgangp mixes real and fake pictures of one size, and there are "
                f"{width}×{height} and {other_width}×{other_height}; use a preprocess that crops, "
                "or lsgan"
            )

    def _tell_data(self) -> None:
        for letter, domain in (("A", self.a), ("B", self.b)):
            where = "in memory" if domain.kept is not None else "decoded as they are needed"
            count = _counted(len(domain), "picture")
            self.say(f"{letter}: {count} of {printable(domain.folder)}, {where}")
            for note in domain.notes:
                self.say(note)
            for skipped in domain.skipped[:10]:
                self.say(f"skipped: {skipped.reason}")
            if domain.skipped:
                self.say(f"{letter}: {_counted(len(domain.skipped), 'picture')} skipped")
        together = self.data.batch_size * self.ranks.size
        if together > max(len(self.a), len(self.b)):
            self.say(
                f"a step takes {together} pictures of each domain, which is more than either has: "
                "every step has some of them several times, each cut and mirrored by itself"
            )

    def _read_samples(
        self, tests: list[Path | None], channels: tuple[int, int], sizes: SizeRequirements
    ) -> tuple[Domain, Domain] | None:
        """Return the pictures of the sheets: those for testing, or some that are trained on."""
        count = self.settings.run.samples
        if not count:
            return None
        found = [
            Domain(
                test or train.folder,
                self.data,
                channels=nc,
                sizes=sizes,
                budget=2**30,
                most=count,
            )
            for test, train, nc in zip(tests, (self.a, self.b), channels, strict=True)
        ]
        return found[0], found[1]

    def _to_device(self, device: torch.device) -> None:
        """Keep the pictures on the device, where they take less than half of what is free."""
        free, _ = torch.cuda.mem_get_info(device)
        kept = self.a.kept is not None and self.b.kept is not None
        if kept and self.a.bytes + self.b.bytes < free // 2:
            self.a.to(device)
            self.b.to(device)

    def _description(self) -> dict[str, Any]:
        def described(domain: Domain) -> dict[str, Any]:
            return {
                "folder": printable(domain.folder.resolve()),
                "pictures": len(domain),
                "digest": domain.digest,
                "skipped": [skipped.reason for skipped in domain.skipped],
                "left_out": domain.left_out,
                "laid_on_white": domain.transparent,
            }

        device = self.model.device
        return {
            "format": "cyclegan-batch run 1",
            "versions": {
                "cyclegan-batch": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "cuda": torch.version.cuda if device.type == "cuda" else None,
            },
            "machine": {
                "system": platform.platform(),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "processes": self.ranks.size,
            },
            "arithmetic": {
                "precision": self.settings.train.precision,
                "float32": self.model.float32,
                "cudnn_benchmark": device.type == "cuda" and torch.backends.cudnn.benchmark,
            },
            "data": {"A": described(self.a), "B": described(self.b)},
            "epochs": self.settings.epochs,
            "steps_per_epoch": self.sampler.batches,
        }


class _Mean:
    """The running mean of the losses, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros(len(LOSSES), dtype=torch.float64, device=device)
        self.count = 0

    def add(self, values: Tensor) -> None:
        self._sum += values
        self.count += 1

    def taken(self, ranks: Ranks) -> dict[str, float]:
        """Return the mean, that of all processes, and begin anew."""
        values = (ranks.mean(self._sum) / max(1, self.count)).tolist()
        self._sum.zero_()
        self.count = 0
        return dict(zip(LOSSES, values, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum.cpu(), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum.copy_(state["sum"])
        self.count = state["count"]


class _Log:
    """A file of JSON lines that can be cut back to where a state was saved."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with _writing(path):
            # Opened so that neither what is there nor a cut is lost in a buffer.
            self._file = path.open("r+b" if path.exists() else "w+b")
            kept = self._file.read(size)
            if len(kept) < size:
                kept = kept[: kept.rfind(b"\n") + 1]
            self.lost = size - len(kept)
            """Bytes that a state counted and that are not there."""
            self._file.truncate(len(kept))
            self._file.seek(len(kept))

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, event: Mapping[str, Any]) -> None:
        with _writing(self.path):
            self._file.write(json.dumps(event).encode() + b"\n")
            self._file.flush()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every event; lines that somebody else wrote are passed over."""
        with self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        yield event

    def flush(self) -> None:
        with _writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _kernels_searched(one_size: bool) -> Iterator[None]:
    """Let cuDNN look for the fastest kernels, as the reference does, where sizes do not change."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or one_size
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}


def _pixels(picture: Tensor) -> Any:
    """Return a picture in [-1, 1] as uint8 ``(H, W, C)``, rounded half up as a translation is."""
    grey = ((picture.float() + 1) * 127.5 + 0.5).floor().clamp(0, 255)
    return grey.to(torch.uint8).permute(1, 2, 0).cpu().numpy()


@contextlib.contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into eval mode, without gradients, and back."""
    modes = [network.training for network in networks]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _safetensors(weights: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file whose metadata are in order.

    The library leaves them in a random one, so that equal weights had another digest each time.
    """
    data = safetensors.torch.save(weights, metadata)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[begin:]


def _write(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it. Raises OutputError."""

    def write(partial: Path) -> None:
        partial.write_bytes(data)

    _write_through(path, write)


def _write_tensors(path: Path, content: object) -> None:
    """Write a file of torch's. Raises OutputError."""

    def write(partial: Path) -> None:
        # Given a path, torch reports a full disk as an assertion that failed in its writer.
        with partial.open("wb") as file:
            torch.save(content, file)

    _write_through(path, write)


def _write_through(path: Path, write: Callable[[Path], object]) -> None:
    partial = temporary_path(path)
    try:
        with _writing(path):
            write(partial)
        publish(partial, path, overwrite=True)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Translate what the system says about writing ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error
