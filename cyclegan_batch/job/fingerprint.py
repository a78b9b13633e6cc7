"""What the pixels of an output depend on, besides its input: two runs with the same are one job.

A `Job` belongs to one kind of output, since a change of ``--crf`` leaves the images of a folder as
they are. What ``auto`` becomes is a part of it, and is found out only when a model is opened: a run
that goes on with an earlier one takes it from the record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .._version import __version__
from ..media.formats import ANIMATION_SUFFIXES, Entry
from ..option_table import Option, options_of
from ..options import TranslateOptions

if TYPE_CHECKING:
    from ..models.model import ModelCard

OutputKind: TypeAlias = Literal[
    "image", "video", "animation", "tar", "pattern", "numbered", "copy", "comparison"
]
"""The kinds of output that differ in the options that apply to them; a copy depends on none, and of
a comparison job/comparison.py tells."""

IN_THE_NAME = frozenset({"format", "container"})
"""Options that the name of an output tells: an output of another name is another output. The name
of a tar does not tell the format of the images in it."""

RESOLVED = ("backend", "device", "precision", "batch_size")
"""Options whose ``auto`` becomes something that pixels depend on."""

NOT_PIXELS = frozenset(
    {"trust_engine", "threads", "on_error", "max_failures", "strict", "max_pixels", "overwrite"}
    | {
        "skip_existing",
        "resume",
        "reuse",
        "workers",
        "gpus",
        "runner",
        "ray_address",
        "ray_gpus",
        "hash_inputs",
        "hdr",
        "shard",
        "copy_others",
        "cache_dir",
        "preview",
        "compare",
    }
)
"""Options that change what is done and reported, but not what an output holds.

``reuse`` is among them: a repeated frame has the result of equal bytes. What it changes is which
frames share a batch, and in which row. The fingerprint does not hold that either: it differs also
with where a stretch begins and which frames are damaged. It cannot change pixels where a batch is
one frame, and does not where a runtime computes the rows of a batch alike, as onnxruntime and
OpenVINO do on a CPU; on GPUs it has not been tried."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What ``auto`` became."""

    backend: str
    device: str
    """``cpu`` or ``cuda``, without a number."""
    precision: str
    batch_size: int
    contexts: int
    """How many instances of the network work side by side. The pixels do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the outputs of one kind depend on, as values for JSON."""

    kind: OutputKind
    values: Mapping[str, object]
    """``version``, ``model`` (its digest), what ``auto`` became, and each option by its name whose
    value is not its default. Options that do not change pixels are left out."""
    contexts: int = 0

    @property
    def id(self) -> str:
        """A digest of kind and values, 16 hexadecimal digits."""
        text = json.dumps([self.kind, self.values], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


COPY = Job(kind="copy", values={})
"""The job of files that are copied as they are."""


_OF_NO_ANIMATION = frozenset({"codec", "crf", "preset", "pix_fmt", "encoder_opt", "audio"})
"""Options of videos that animated images do without."""


def kind_of_output(entry: Entry) -> OutputKind:
    """Return the kind of output that an entry becomes."""
    if entry.is_numbered:
        return "numbered"
    is_moving = entry.kind in ("video", "pattern", "pipe")
    if is_moving and entry.output.suffix.lower() in ANIMATION_SUFFIXES:
        return "animation"
    match entry.kind:
        case "image" | "tar" | "pattern" | "comparison" as kind:
            return kind
        case "other":
            return "copy"
    return "video"


def job_of(
    kind: OutputKind, card: ModelCard, options: TranslateOptions, choices: Choices | None
) -> Job:
    """Return the job of a kind of output.

    Without ``choices``, an ``auto`` stays in its values; `resolved` fills it in.
    """
    if kind == "copy":
        return COPY
    values: dict[str, object] = {"version": __version__, "model": card.digest}
    for option in pixel_options(kind):
        value = getattr(options, option.name)
        if option.name == "device":
            value = value.partition(":")[0] if options.gpus is None else "cuda"
        elif option.name == "direction":
            value = value or card.direction
        elif option.name in ("weights", "family"):
            value = _chosen(card, option.name)
        elif option.name == "tar_images":
            value = ",".join(options.tar_extensions) or None
        elif option.name == "temporal" and value != option.default:
            value = f"flow:{options.temporal_strength}"
        if option.name in RESOLVED:
            values[option.name] = "auto" if value is None else value
        elif value != option.default:
            values[option.name] = list(value) if isinstance(value, tuple) else value
    job = Job(kind=kind, values=values)
    return job if choices is None else resolved(job, asdict(choices))


def _chosen(card: ModelCard, name: str) -> str | None:
    """Return which generator of a checkpoint was chosen, by whichever option that was.

    ``--direction`` may choose what ``--weights`` names.
    """
    recognised = card.recognised
    if recognised is None:
        return None
    if name == "weights":
        return recognised.weights
    return recognised.family if recognised.also_fits else None


def resolved(job: Job, choices: Mapping[str, object]) -> Job:
    """Return ``job`` with each ``auto`` replaced by what it became."""
    values = {
        name: choices.get(name, value) if name in RESOLVED and value == "auto" else value
        for name, value in job.values.items()
    }
    contexts = choices.get("contexts")
    return Job(kind=job.kind, values=values, contexts=contexts if type(contexts) is int else 0)


def pixel_options(kind: OutputKind) -> Iterable[Option]:
    """Yield the options that an output of this kind depends on."""
    # A pattern of images becomes a video, a tar has images in it, and a video may become images or
    # be made of them, so that their options apply.
    others = {
        "pattern": {"video"},
        "tar": {"image"},
        "numbered": {"video", "image", "pattern"},
        "animation": {"video", "pattern"},
    }
    kinds = {kind, *others.get(kind, ())}
    left_out = IN_THE_NAME | NOT_PIXELS
    if kind == "animation":
        left_out |= _OF_NO_ANIMATION
    elif kind == "tar":
        left_out -= {"format"}
    for option in options_of(TranslateOptions):
        applies = not option.applies_to or kinds & set(option.applies_to)
        if applies and option.name not in left_out:
            yield option
