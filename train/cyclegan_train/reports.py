"""What a run writes for people while it goes on: its log, TensorBoard, sheets, curves and page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cyclegan_batch.models.checkpoints import run_folder as names

from .cyclegan import CycleGAN
from .health import signs_in_losses
from .run_folder import Log, RunFolder
from .run_images import RunImages
from .validation import Scores

if TYPE_CHECKING:
    from .sample_video import SampleVideo


class Reports:
    """Writes into the folder of a run; only the first of several processes has it."""

    def __init__(
        self,
        folder: RunFolder,
        model: CycleGAN,
        images: RunImages,
        video: SampleVideo | None,
        log: Log,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._model, self._images, self._say = folder, model, images, say
        self._video = video
        self.log = log
        self._board: Any = None

    def open_board(self) -> None:
        """Begin to write for TensorBoard as well, where it is installed."""
        self._board = self._folder.open_board(self._model.steps)

    def close(self) -> None:
        """Close the files."""
        self.log.close()
        if self._board is not None:
            self._board.close()

    def losses(self, mean: Mapping[str, float], seconds: float) -> None:
        """Write the mean losses since the last line, ``seconds`` after the run began."""
        step, rate = self._model.steps, self._model.learning_rate
        self.log.write(
            {
                "event": "losses",
                "epoch": self._model.epoch,
                "step": step,
                "lr": rate,
                "seconds": round(seconds, 1),
                **mean,
            }
        )
        if self._board is not None:
            for name, value in mean.items():
                self._board.add_scalar(f"loss/{name}", value, step)
            self._board.add_scalar("lr", rate, step)

    def validation(
        self,
        epoch: int,
        seconds: float,
        kind: Mapping[str, str],
        scores: Scores,
        better: Sequence[str],
    ) -> None:
        """Write the scores of an epoch, which took ``seconds``, and those better than before."""
        step = self._model.steps
        found = {"by": kind, "scores": scores, "better": better}
        self.log.write(
            {"event": "validation", "epoch": epoch, "step": step, "seconds": seconds, **found}
        )
        if self._board is not None:
            for generator, own in scores.items():
                for name, value in own.items():
                    self._board.add_scalar(f"validation/{name}/{generator}", value, step)

    def sheet(self, name: str) -> None:
        """Draw a sheet that belongs to no epoch, and write the page anew."""
        samples = self._images.samples
        if samples is not None:
            self._folder.draw_samples(name, self._model, samples)
            self._folder.write_index(self.log, samples)

    def epoch(
        self, epoch: int, score: float, mean: Mapping[str, float], *, last: bool, ends_early: bool
    ) -> None:
        """Write an epoch and its health, and draw its samples and the curves.

        ``last``: the run ends with it; ``ends_early``: since its scores improve no more.
        """
        step, samples = self._model.steps, self._images.samples
        self.log.write({"event": "epoch", "epoch": epoch, "step": step, "score": score, **mean})
        if ends_early:
            self.log.write({"event": "early_stop", "epoch": epoch, "step": step})
        signs = list(signs_in_losses(mean, self._model.config.gan_mode))
        if samples is not None:
            signs += self._folder.draw_samples(names.epoch_name(epoch), self._model, samples)
        for sign in signs:
            self.log.write({"event": "health", "epoch": epoch, "step": step, "sign": sign})
            self._say(f"epoch {epoch}: {sign}")
        if self._video is not None and self._video.due(epoch, last=last):
            begin = time.monotonic()
            self._video.write(self._folder.sample_video(epoch), self._model)
            seconds = round(time.monotonic() - begin, 3)
            self.log.write(
                {"event": "sample_video", "epoch": epoch, "step": step, "seconds": seconds}
            )
        self._folder.draw_curves(self.log)
        self._folder.write_index(self.log, samples)
        if self._board is not None:
            if samples is not None:
                sheet = self._folder.sheet(epoch)
                self._board.add_image("samples", sheet, step, dataformats="HWC")
            self._board.flush()
