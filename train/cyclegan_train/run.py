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

``state.pt`` is the truth: it holds the length of the log, too, and a resumed run cuts off what was
written after it. So a run that was stopped anywhere, or killed, ends with the weights, the
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
from cyclegan_batch.files import output_error, printable, publish, temporary_path
from cyclegan_batch.frames import SizeRequirements

from .charts import losses_png, sheet_png
from .cyclegan import LOSSES, CycleGAN, generator_config
from .data import Domain, Feed, Sampler, find_folders, load_domains
from .distributed import Ranks, joined_ranks
from .health import signs_in_losses, signs_in_samples
from .settings import Settings, toml_from

_STATE_VERSION = 1
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
) -> Outcome:
    """Train in the folder ``run``, from its state if it has one, to the last epoch.

    ``data`` holds trainA and trainB (and testA, testB for the samples), or ``data_a`` and
    ``data_b`` are the two. ``stop`` is asked before every step: where it says so, the state is
    saved and the call returns; while the pictures are read nothing is written yet, and it raises
    KeyboardInterrupt. ``say`` is told sentences, ``watch`` where the run is. In one of several
    processes of torchrun it trains with the others, and only the first tells anything.

    Raises InputError, ModelError, OutputError, OutOfMemoryError, BackendError (also for another
    process that has ended), BackendUnavailableError, and DivergedError.
    """
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    with joined_ranks(settings.train.device) as ranks:
        if not ranks.first:
            say, watch = (lambda sentence: None), (lambda progress: None)
        begun = _Run(data, data_a, data_b, run, settings, stop, say, ranks)
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
        ranks: Ranks,
    ) -> None:
        self.folder, self.settings, self.say, self.ranks = folder, settings, say, ranks
        self.checkpoints = folder / "checkpoints"
        config = settings.train
        folder_a, folder_b, *tests = find_folders(data, data_a, data_b)
        random.seed(settings.run.seed)
        torch.manual_seed(settings.run.seed)
        try:
            sizes = generator_config(config, "AtoB").sizes
            self.model = CycleGAN(config, ranks)
        except ValueError as error:
            raise ModelError(f"cannot build the networks: {error}") from error
        if not ranks.first:
            # The networks are the same everywhere; what is drawn from now on is one's own.
            random.seed(f"{settings.run.seed} {ranks.rank}")
            torch.manual_seed(random.getrandbits(63))
        channels = (config.input_nc, config.output_nc)

        def watch(read: int, count: int) -> None:
            if stop():
                raise KeyboardInterrupt

        self.a, self.b = load_domains(
            (folder_a, folder_b), settings.data, channels=channels, sizes=sizes, watch=watch
        )
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
        self.feed = Feed(self.a, self.b, self.sampler, workers=settings.data.workers)
        self.window = _Mean(self.model.device)
        self.whole_epoch = _Mean(self.model.device)
        self.best = math.inf
        self.seconds = 0.0
        """What the run took before this process."""
        self.last: dict[str, float] = {}
        self._since = time.monotonic()
        self._ticks: deque[float] = deque(maxlen=50)
        self.log: _Log | None = None
        """None where another process writes it, as the board."""
        self.board: Any = None
        state = self.checkpoints / "state.pt"
        # Asked of all before one of them writes it.
        resumes = ranks.any(state.exists())
        if ranks.first:
            with _writing(folder):
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                (folder / "samples").mkdir(exist_ok=True)
        log_bytes = self._restore(state) if resumes else 0
        if ranks.first:
            self.log = _Log(folder / "log.jsonl", log_bytes)
            if not resumes:
                _write(folder / "run.json", _json(self._description()))
        if not resumes:
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
            if self.ranks.any(stop()):
                self._save()
                return Outcome(False, model.epoch, model.steps, self.ranks.first)
            losses = model.step(*self.feed.next())
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
                "lr": _lr(self.model),
                "seconds": round(self._seconds(), 1),
                **mean,
            }
        )
        if self.board is not None:
            for name, value in mean.items():
                self.board.add_scalar(f"loss/{name}", value, self.model.steps)
            self.board.add_scalar("lr", _lr(self.model), self.model.steps)

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
                self._write_weights("best", epoch)
            if epoch % self.settings.run.save_every_epochs == 0 or epoch == self.settings.epochs:
                self._write_weights(f"epoch_{epoch:04d}", epoch)
                self._forget_old_checkpoints()
        self._save(ended=epoch)

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
        ticks = self._ticks
        spent = ticks[-1] - ticks[0] if len(ticks) > 1 else 0.0
        return Progress(
            min(self.model.epoch, self.settings.epochs),
            self.settings.epochs,
            self.model.steps,
            self.settings.epochs * self.sampler.batches,
            (len(ticks) - 1) / spent if spent else 0.0,
            self.last,
        )

    def _seconds(self) -> float:
        return self.seconds + time.monotonic() - self._since

    # The state

    def _save(self, *, ended: int | None = None) -> None:
        """Write the state, and the weights of ``latest``; in an epoch that ``ended`` or within."""
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
        if self.model.steps:
            self._write_weights("latest", self.model.epoch if ended is None else ended)
        # Last: until it is there, the run is where it was before.
        _write_through(self.checkpoints / "state.pt", lambda path: torch.save(state, path))

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

    def _restore(self, path: Path) -> int:
        """Go back to where `_save` was called; return the length that the log had."""
        try:
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
        began = 1 + len(others := state.get("others", []))
        if began != self.ranks.size:
            raise InputError(
                f"{printable(path)}: is of {began} processes, each with pools and random states "
                f"of its own, and {self.ranks.size} would go on; start {began}, with torchrun "
                "--nproc-per-node where they are several"
            )
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
        threads = json.loads((self.folder / "run.json").read_text())["machine"]["threads"]
        if threads != torch.get_num_threads():
            self.say(
                f"the run began on {threads} CPU threads and goes on on {torch.get_num_threads()}: "
                "the last bits of its weights can differ from those of an uninterrupted one"
            )
        return int(state["log_bytes"])

    def _check_weights(self) -> None:
        for name in ("netG_A", "netG_B", "netD_A", "netD_B"):
            network: nn.Module = getattr(self.model, name)
            for key, weight in network.named_parameters():
                if not bool(weight.isfinite().all()):
                    self._diverged(f"{name}.{key} holds NaN or infinity")

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

    def _write_weights(self, name: str, epoch: int) -> None:
        """Write both generators as they are, in a folder of that name."""
        place = self.checkpoints / name
        with _writing(place):
            place.mkdir(parents=True, exist_ok=True)
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
                    weights = _plain(network)
                    metadata = {key: _text(value) for key, value in card.items()}
                    data = safetensors.torch.save(weights, metadata)
                    _write(place / file, data)
                    described[file] = card
        _write(place / "checkpoint.json", _json(described))
        if name == "latest" and self.settings.run.reference_names:
            for net in ("G_A", "G_B", "D_A", "D_B"):
                weights = _plain(getattr(self.model, f"net{net}"))
                _write_through(
                    self.checkpoints / f"latest_net_{net}.pth",
                    lambda path, weights=weights: torch.save(weights, path),  # type: ignore[misc]
                )

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
        with _evaluating(*nets):
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

    def _tell_data(self) -> None:
        for letter, domain in (("A", self.a), ("B", self.b)):
            where = "in memory" if domain.kept is not None else "decoded as they are needed"
            self.say(f"{letter}: {len(domain)} pictures of {printable(domain.folder)}, {where}")
            for note in domain.notes:
                self.say(note)
            for skipped in domain.skipped[:10]:
                self.say(f"skipped: {skipped.reason}")
            if domain.skipped:
                self.say(f"{letter}: {len(domain.skipped)} pictures skipped")

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
                self.settings.data,
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
        self._path = path
        with _writing(path):
            # Opened so that neither what is there nor a cut is lost in a buffer.
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(size)
            self._file.seek(size)

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, event: Mapping[str, Any]) -> None:
        with _writing(self._path):
            self._file.write(json.dumps(event).encode() + b"\n")
            self._file.flush()

    def read(self) -> Iterator[dict[str, Any]]:
        with self._path.open("rb") as file:
            yield from (json.loads(line) for line in file)

    def flush(self) -> None:
        with _writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lr(model: CycleGAN) -> float:
    return float(model.optimizer_G.param_groups[0]["lr"])


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


def _write(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it. Raises OutputError."""

    def write(partial: Path) -> None:
        partial.write_bytes(data)

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
    except RuntimeError as error:
        # torch.save reports a full disk so.
        raise OutputError(
            f"cannot write {printable(path)}: {str(error).splitlines()[0]}; check the disk"
        ) from error
