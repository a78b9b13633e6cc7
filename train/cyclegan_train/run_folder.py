"""The folder of a run: log, state, checkpoints, run.json, and the sheets of samples.

The core's `models.checkpoints.run_folder` draws the folder and names its files. ``state.pt``
decides where a run is: it holds the keys of the run and the length of the log as well, and a
resumed run cuts the log back to that length. Every other file is written before it, and each is
complete or absent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torchvision  # type: ignore[import-untyped]
from PIL import Image
from torch import Tensor, nn

from cyclegan_batch._version import __version__
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.files import output_error, writing
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.checkpoints import run_folder as names
from cyclegan_batch.wording import printable

from .charts import sheet_png
from .curves import losses_chart, scores_chart
from .cyclegan import NETWORKS, CycleGAN, State, generator_config
from .data import Domain
from .distributed import Ranks
from .health import signs_in_samples
from .index_page import Event, index_page
from .pixel_file import Disk
from .settings import Settings, changed_keys, toml_from
from .validation import (
    Validation,
    as_array,
    evaluating,
    generator_key,
    levels,
)

STATE_VERSION = 1


class RunFolder:
    """The files of one run. Of several processes all read, and only the first one writes."""

    def __init__(self, path: Path, settings: Settings, say: Callable[[str], None]) -> None:
        self.path, self._settings, self._say = path, settings, say
        self.checkpoints = path / names.CHECKPOINTS
        self.state = self.checkpoints / names.STATE
        self._samples = path / names.SAMPLES

    def create(self) -> None:
        """Create the folders that are missing. Raises OutputError."""
        with _os_errors_about(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._samples.mkdir(exist_ok=True)

    def check_space(self, model: CycleGAN, processes: int) -> None:
        """Refuse a disk that cannot hold the checkpoints. Raises OutputError."""
        config, data, run = self._settings.train, self._settings.data, self._settings.run
        generators, networks = (
            sum(
                weight.nbytes
                for network in group
                for weight in getattr(model, network).state_dict().values()
            )
            for group in (("netG_A", "netG_B"), NETWORKS)
        )
        averages = generators if config.ema else 0
        side = data.crop_size if "crop" in data.preprocess else data.load_size
        pools = config.pool_size * (config.input_nc + config.output_nc) * side**2 * 4
        # The networks, and Adam's two moments of every weight.
        state = 3 * networks + averages + processes * pools
        numbered = self._settings.epochs // run.save_every_epochs + 1
        numbered = min(numbered, run.keep_last) if run.keep_last else numbered
        whole = state + (2 + numbered) * (generators + averages)
        whole += networks if run.reference_names else 0
        present = sum(f.stat().st_size for f in self.checkpoints.rglob("*") if f.is_file())
        free = shutil.disk_usage(self._existing).free
        # A new state is written beside the old one.
        needed = state + max(0, whole - present)
        if free < needed:
            raise OutputError(
                f"cannot train in {printable(self.path)}: its checkpoints take up to "
                f"{needed / 1e9:.3g} GB more, and {free / 1e9:.3g} GB of the disk are free; free "
                "some space, use a smaller keep_last, or name another folder"
            )

    def disk(self, processes: int) -> Disk:
        """Return the run's disk, for temporary files of so many processes."""
        return Disk(self._existing, processes)

    @property
    def _existing(self) -> Path:
        """The folder of the run, or the one in which it will be created."""
        return next(path for path in (self.path, *self.path.resolve().parents) if path.exists())

    # The state

    def read_state(self, ranks: Ranks) -> State | None:
        """Return the state that this run resumes from; None where none was saved yet.

        Raises InputError where it is damaged, of another version, number of processes or settings.
        """
        # All processes look before the first one writes a state.
        if not ranks.any(self.state.exists()):
            return None
        try:
            state: State = torch.load(self.state, map_location="cpu", weights_only=True)
            version = state["version"]
        # A damaged file makes torch raise exceptions of many types.
        except Exception as error:
            raise InputError(
                f"{printable(self.state)}: is no whole state of a run ({type(error).__name__}); "
                "restore it, or begin another run"
            ) from error
        if version != STATE_VERSION:
            raise InputError(
                f"{printable(self.state)}: has version {version} where this release reads "
                f"{STATE_VERSION}; resume with the release that wrote it"
            )
        processes = 1 + len(state.get("others", []))
        if processes != ranks.size:
            raise InputError(
                f"{printable(self.state)}: is of {processes} processes, each with its own pools "
                f"and random states, and {ranks.size} would resume it; start {processes}, with "
                "torchrun --nproc-per-node where they are several"
            )
        # States written before 2026-12 hold no settings.
        if changed := changed_keys(state.get("settings", {}), self._settings):
            words = [f"{name} = {now!r} instead of {was!r}" for name, (was, now) in changed.items()]
            raise InputError(
                f"{printable(self.path / names.CONFIG)}: holds other keys than the run began with "
                f"({', '.join(words)}); restore them, or begin another run"
            )
        return state

    def write_state(self, state: State) -> None:
        """Write the state, after all other files: a run resumes from where its state says."""
        _write_tensors(self.state, state)

    # The description and the logs

    def write_config(self) -> None:
        """Write config.toml."""
        _write(self.path / names.CONFIG, toml_from(self._settings).encode())

    def describe(self, description: Mapping[str, object], *, resumes: bool) -> None:
        """Write run.json; a resumed run keeps the one it has, and reports other CPU threads."""
        path = self.path / names.DESCRIPTION
        if resumes:
            try:
                threads = json.loads(path.read_text("utf-8"))["machine"]["threads"]
            except (OSError, ValueError, KeyError, TypeError):
                self._say(
                    f"{printable(path)}: does not describe how the run began; it is written anew, "
                    "and describes how the run goes on"
                )
            else:
                if threads != torch.get_num_threads():
                    self._say(
                        f"the run began on {threads} CPU threads and continues on "
                        f"{torch.get_num_threads()}: the last bits of its weights can differ from "
                        "those of an uninterrupted one"
                    )
                return
        _write(path, _json(description))

    def open_log(self, size: int) -> Log:
        """Open the log, cut back to ``size`` bytes; report where it holds fewer."""
        log = Log(self.path / names.LOG, size)
        if log.lost:
            self._say(
                f"{printable(log.path)}: lacks {log.lost} bytes of what it held when the state was "
                "saved; the run goes on all the same, and the curves lack them"
            )
        return log

    def open_board(self, step: int) -> Any:
        """Return torch's (untyped) writer for TensorBoard; None where that is not installed.

        What it wrote after ``step`` is dropped.
        """
        if not self._settings.run.tensorboard:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        place = str(self.path / names.TENSORBOARD)
        return SummaryWriter(place, purge_step=step + 1 if step else None)

    # The checkpoints

    def write_generators(
        self, name: str, files: Mapping[str, bytes], cards: Mapping[str, object]
    ) -> None:
        """Write the files and cards of `generator_files` into the checkpoint of that name."""
        place = self.checkpoints / name
        with _os_errors_about(place):
            place.mkdir(parents=True, exist_ok=True)
        for file, data in {**files, names.CARDS: _json(cards)}.items():
            _write(place / file, data)

    def write_reference_weights(self, model: CycleGAN) -> None:
        """Write all four networks under the reference implementation's names."""
        for network in NETWORKS:
            weights = _cpu_weights(getattr(model, network))
            path = self.checkpoints / names.reference_name(network.removeprefix("net"))
            _write_tensors(path, weights)

    def remove_old_epochs(self) -> None:
        """Remove the checkpoints of single epochs but the last ``keep_last``."""
        keep = self._settings.run.keep_last
        numbers = (path.name.removeprefix("epoch_") for path in self.checkpoints.glob("epoch_*"))
        # A copy that a user has made has a name of its own, and stays.
        epochs = sorted({int(number) for number in numbers if number.isdecimal()})
        for epoch in epochs[:-keep] if keep else ():
            shutil.rmtree(self.checkpoints / names.epoch_name(epoch), ignore_errors=True)

    # Sheets and curves

    def draw_samples(self, name: str, model: CycleGAN, samples: tuple[Domain, Domain]) -> list[str]:
        """Write the sheet ``name``, e.g. of an epoch; return the signs of bad health in it."""
        signs: list[str] = []
        rows: list[list[tuple[str, Pixels]]] = []
        nets = [
            getattr(model, f"ema_{letter}") or getattr(model, f"netG_{letter}") for letter in "AB"
        ]
        with model.computing(), evaluating(*nets):
            for domain, forward, back, own, other in (
                (samples[0], nets[0], nets[1], "A", "B"),
                (samples[1], nets[1], nets[0], "B", "A"),
            ):
                sources, fakes = [], []
                for number in range(len(domain)):
                    real = domain.centred(number)[None].to(model.device)
                    fake = forward(real)
                    row = [(f"real_{own}", real), (f"fake_{other}", fake)]
                    row.append((f"rec_{own}", back(fake)))
                    if self._settings.train.lambda_identity:
                        # As the reference does: idt = back(real), next to the reconstruction.
                        row.append((f"idt_{other}", back(real)))
                    rows.append([(title, as_array(levels(image[0]))) for title, image in row])
                    sources.append(real[0].float().cpu())
                    fakes.append(fake[0].float().cpu())
                signs += signs_in_samples(f"G_{own}", sources, fakes)
        weights = "moving average of the weights (EMA)" if model.config.ema else "raw weights"
        title = f"epoch {model.epoch}, step {model.steps}, {weights}"
        captions = [printable(path) for path in _sampled(samples)]
        _write(self._samples / f"{name}.png", sheet_png(rows, title, captions))
        return signs

    def remove_sheet_of_stop(self) -> None:
        """Remove the sheet of where the run had stopped."""
        (self._samples / f"{names.STOPPED}.png").unlink(missing_ok=True)

    def draw_curves(self, log: Log) -> None:
        """Write the curves of the losses in the log, and those of the scores by validation."""
        log.flush()
        events = list(log.read())
        _write(self.path / names.CURVES, losses_chart(events))
        scores = scores_chart(events)
        if scores is not None:
            _write(self.path / names.VALIDATION, scores)

    def write_index(self, log: Log, samples: tuple[Domain, Domain] | None) -> None:
        """Write index.html, after the sheets and the curves."""
        paths = _sampled(samples) if samples else []
        _write(self.path / names.INDEX, index_page(self.path, list(log.read()), paths))

    def sample_video(self, epoch: int) -> Path:
        """Return where the translated clip of an epoch is written."""
        return self._samples / f"{names.epoch_name(epoch)}{names.VIDEO_ENDING}"

    def sheet(self, epoch: int) -> Pixels:
        """Return the sheet of an epoch as it was drawn."""
        with Image.open(self._samples / f"{names.epoch_name(epoch)}.png") as image:
            return np.asarray(image)


_DRAWN: Mapping[str, set[str]] = {
    "warm_up": {"left"},
    "losses": {"step"},
    "epoch": {"epoch", "step"},
    "schedule": {"step", "n_epochs", "n_epochs_decay"},
    "validation": {"epoch", "step", "by", "scores", "better"},
    "early_stop": {"step"},
}
"""What the curves and the page of a run read of each kind of event."""


class Log:
    """A file of JSON lines that can be cut back to where a state was saved."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with _os_errors_about(path):
            # Open for update without truncating, then cut to the length saved in the state.
            self._file = path.open("r+b" if path.exists() else "w+b")
            content = self._file.read(size)
            if len(content) < size:
                content = content[: content.rfind(b"\n") + 1]
            self.lost = size - len(content)
            """Bytes that the state counted and that the file lacks."""
            self._file.truncate(len(content))
            self._file.seek(len(content))

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, event: Mapping[str, object]) -> None:
        """Append one event. Raises OutputError."""
        with _os_errors_about(self.path):
            self._file.write(json.dumps(event).encode() + b"\n")
            self._file.flush()

    def read(self) -> Iterator[Event]:
        """Yield every event.

        Lines that are no event are skipped (a user may add some), and events without what this
        release draws of them.
        """
        with self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event:
                        needed = _DRAWN.get(str(event["event"]), set())
                        if needed <= event.keys():
                            yield event

    def flush(self) -> None:
        """Flush to the disk. Raises OutputError."""
        with _os_errors_about(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def generator_files(
    model: CycleGAN,
    settings: Settings,
    epoch: int,
    data_digest: list[str],
    scores: Mapping[str, Mapping[str, float]],
) -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the files of both generators as they are and of their moving averages, and the cards.

    The cards are those of the files, by the same names. ``scores`` are those of a validation of
    these weights, by generator; empty where there was none.
    """
    files: dict[str, bytes] = {}
    cards: dict[str, object] = {}
    data = settings.data
    for letter, direction in (("A", "AtoB"), ("B", "BtoA")):
        average: nn.Module | None = getattr(model, f"ema_{letter}")
        for ema, network in ((False, getattr(model, f"netG_{letter}")), (True, average)):
            if network is None:
                continue
            card = {
                "format": names.GENERATOR_FORMAT,
                "tool_version": __version__,
                "direction": direction,
                "weights": "ema" if ema else "raw",
                "generator": dataclasses.asdict(generator_config(settings.train, direction)),
                "trained_size": data.crop_size if "crop" in data.preprocess else None,
                "preprocess": data.preprocess,
                "epoch": epoch,
                "step": model.steps,
                "data_digest": data_digest,
            }
            if own := scores.get(generator_key(direction, ema=ema)):
                card["validation"] = dict(own)
            file = names.generator_name(letter, ema=ema)
            metadata = {key: _text(value) for key, value in card.items()}
            files[file] = _safetensors(_cpu_weights(network), metadata)
            cards[file] = card
    return files, cards


def describe_run(
    model: CycleGAN,
    settings: Settings,
    domains: tuple[Domain, Domain],
    ranks: Ranks,
    steps: int,
    validation: Validation | None,
) -> dict[str, object]:
    """Return the content of run.json; ``steps`` is those of an epoch."""

    def described(domain: Domain) -> dict[str, object]:
        return {
            "folder": printable(domain.folder.resolve()),
            "pictures": len(domain),
            "digest": domain.digest,
            "skipped": [skipped.reason for skipped in domain.skipped],
            "left_out": domain.left_out,
            "laid_on_white": domain.transparent,
        }

    device = model.device
    on_cuda = device.type == "cuda"
    return {
        "format": "cyclegan-batch run 1",
        "versions": {
            "cyclegan-batch": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "cuda": torch.version.cuda if on_cuda else None,
        },
        "machine": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
            "threads": torch.get_num_threads(),
            "processes": ranks.size,
        },
        "arithmetic": {
            "precision": settings.train.precision,
            "float32": model.float32,
            "cudnn_benchmark": on_cuda and torch.backends.cudnn.benchmark,
        },
        "data": {"A": described(domains[0]), "B": described(domains[1])},
        "validation": validation.described() if validation else None,
        "epochs": settings.epochs,
        "steps_per_epoch": steps,
    }


def _sampled(samples: tuple[Domain, Domain]) -> list[Path]:
    """Return the images that the rows of a sheet show, each from the name of its folder on."""
    return [
        Path(domain.folder.name) / path.relative_to(domain.folder)
        for domain in samples
        for path in domain.paths
    ]


def _cpu_weights(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _safetensors(weights: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file whose metadata are sorted by key.

    The library writes them in a random order, which would give equal weights different digests.
    """
    data = safetensors.torch.save(weights, metadata)
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[begin:]


def _write(path: Path, data: bytes) -> None:
    """Write a file that is complete or absent at any time. Raises OutputError."""
    with writing(path, overwrite=True) as partial:
        partial.write_bytes(data)


def _write_tensors(path: Path, content: object) -> None:
    """Write a file of torch's. Raises OutputError."""
    # Given a path, torch reports a full disk as a failed assertion of its writer.
    with writing(path, overwrite=True) as partial, partial.open("wb") as file:
        torch.save(content, file)


@contextlib.contextmanager
def _os_errors_about(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error
