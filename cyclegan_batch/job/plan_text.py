"""A plan in words, as ``--dry-run`` prints it, and as values for JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import scratch_folder
from ..options import TranslateOptions
from ..wording import byte_size, counted, grouped, printable
from .comparison import ComparisonUnit

if TYPE_CHECKING:
    from ..media.video.plan import VideoPlan
    from ..models.card import ModelCard
    from .plan import JobPlan


_MOST_INPUTS = 20
"""Inputs that a journal names."""
_MOST_OUTDATED = 20
"""Outdated outputs that are listed one by one."""


def plan_description(plan: JobPlan) -> dict[str, object]:
    """Return the plan as values for JSON; a report holds it, too."""
    card = plan.model.card
    return {
        "inputs": [str(path) for path in plan.inputs],
        "output": str(plan.output),
        "model": _model_description(card),
        "backend": plan.backend.name,
        "device": plan.backend.device,
        "precision": plan.backend.precision,
        "batch_size": plan.schedule.batch_size,
        "contexts": plan.schedule.contexts,
        "converters": plan.schedule.converters,
        "workers": plan.schedule.workers,
        "measured_by_bench": list(plan.backend.measured),
        "units": len(plan.units),
        "frames": plan.frames,
        "copied": len(plan.others),
        "skipped": plan.skipped,
        "up_to_date": len(plan.finished),
        "outdated": {str(output): why for output, why in plan.outdated.items()},
        "frames_in_flight": plan.schedule.frames_in_flight,
        "memory_bytes": plan.memory,
        "scratch_bytes": plan.scratch,
        "videos": [_video_description(video) for video in plan.videos],
        "comparisons": [
            _video_description(unit.plan) | {"translation": str(unit.result)}
            for unit in plan.comparisons
            if isinstance(unit, ComparisonUnit)
        ],
        "failures": [failure.description() for failure in plan.failures],
        "options": _given(plan.options),
    }


def _model_description(card: ModelCard) -> dict[str, object]:
    """Return which model it is, as values for JSON."""
    which = {} if card.which is None else {"which": card.which}
    return {"path": str(card.path), "sha256": card.digest, **which}


def _given(options: TranslateOptions) -> dict[str, object]:
    """Return the options that differ from their defaults."""
    defaults = asdict(TranslateOptions())
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
        if value != defaults[key]
    }


def command_description(plan: JobPlan) -> dict[str, object]:
    """Return what a run was asked for as values for JSON, as its journal holds it."""
    card = plan.model.card
    return {
        "inputs": [str(path) for path in plan.inputs[:_MOST_INPUTS]],
        "model": _model_description(card),
        "backend": plan.backend.name,
        "device": plan.backend.device,
        "precision": plan.backend.precision,
        "batch_size": plan.schedule.batch_size,
        "options": _given(plan.options),
    }


def plan_lines(plan: JobPlan) -> list[str]:
    """Return the lines that ``--dry-run`` prints: every input with its output, and how."""
    card, schedule = plan.model.card, plan.schedule
    calls = f"{schedule.contexts} at once" if schedule.contexts > 1 else "one at a time"
    several = f", {counted(schedule.workers, 'worker')}" if schedule.workers > 1 else ""
    which = "" if card.which is None else f"{printable(card.which)}, "
    lines = [
        f"model    {printable(card.path)} ({card.architecture}, {which}sha256 {card.digest[:12]})",
        f"runs on  {plan.backend.name}, {plan.backend.device}, {plan.backend.precision}; "
        f"{counted(schedule.batch_size, 'frame')} per call, {calls}{several}",
        *_measured_line(plan),
        f"memory   {_memory_words(plan)}",
        *_temporal_line(plan),
    ]
    if plan.scratch:
        lines.append(
            f"scratch  {byte_size(plan.scratch)} in {printable(scratch_folder())}: videos are "
            "joined there before they are put into the store; TMPDIR names another folder"
        )
    lines += [f"note     {sentence}" for sentence in grouped(plan.notes)]
    for video in plan.videos:
        lines += _video_lines(video)
        if done := plan.done.get(video.output):
            lines.append(f"         {len(done)} of {video.stretches} stretches are done already")
    for tar in plan.tars:
        only = f": {printable(', '.join(tar.extensions))}" if tar.extensions else ""
        lines.append(f"{tar.name} → {printable(tar.output)} (a tar, its images one by one{only})")
    for shard in plan.shards:
        folders = {entry.output.parent for entry in shard.entries}
        if len(shard.entries) == 1:
            where = printable(shard.entries[0].output)
        else:
            kind = type(shard.entries[0].output)
            where = printable(kind(os.path.commonpath(map(str, folders)))) + "/"
        lines.append(f"{shard.name} → {where}")
    lines += [
        f"{printable(each.source)} → {printable(each.output)} (copied)" for each in plan.others
    ]
    for unit in plan.comparisons:
        if isinstance(unit, ComparisonUnit):
            encoder, (height, width) = unit.plan.encoder, unit.plan.output_size
            lines.append(
                f"{unit.plan.name}, {printable(unit.result)} → {unit.name} (compared, "
                f"{plan.options.compare}: {encoder.name} {encoder.pix_fmt} {width}×{height})"
            )
        else:
            more = f" and {len(unit.outputs) - 1} more" if len(unit.outputs) > 1 else ""
            where = f"{printable(unit.outputs[0])}{more}"
            lines.append(f"{unit.name} → {where} (compared, {plan.options.compare})")
    outdated = [
        f"{printable(output)}: outdated, made {why}" for output, why in plan.outdated.items()
    ]
    lines += outdated[:_MOST_OUTDATED]
    if len(outdated) > _MOST_OUTDATED:
        lines.append(f"and {len(outdated) - _MOST_OUTDATED} more are outdated")
    lines += [f"FAILS    {failure.cause}" for failure in plan.failures]
    lines += [f"DAMAGED  {failure.cause}" for failure in plan.damage]
    frames = "an unknown number of frames" if plan.frames is None else counted(plan.frames, "frame")
    sources = {printable(entry.source) for entry in plan.entries} if plan.failures else set()
    files = plan.files - sum(failure.name in sources for failure in plan.failures)
    summary = f"would write {counted(files, 'file')}, {frames}"
    if plan.finished:
        be = "is" if len(plan.finished) == 1 else "are"
        summary += f"; {len(plan.finished):,} {be} up to date"
    if plan.skipped:
        stay = "exists already and stays" if plan.skipped == 1 else "exist already and stay"
        summary += f"; {plan.skipped} {stay}"
    if plan.failures:
        summary += f"; {len(plan.failures)} cannot be translated"
    return [*lines, summary]


def _measured_line(plan: JobPlan) -> list[str]:
    """Return a line on the numbers that are from a measurement; none without one."""
    words = [
        counted(getattr(plan.schedule, name), noun)
        for name, noun in (("contexts", "context"), ("workers", "worker"))
        if name in plan.backend.measured
    ]
    if "batch_size" in plan.backend.measured:
        words.insert(0, f"batch {plan.schedule.batch_size}")
    return [f"         {', '.join(words)}: measured by bench"] if words else []


def _temporal_line(plan: JobPlan) -> list[str]:
    """Return a line on the filter against flicker; none without one."""
    if not plan.schedule.filters:
        return []
    line = f"temporal flow, strength {plan.options.temporal_strength:g}"
    if count := plan.schedule.kept:
        frames = counted(count, "frame")
        line += f"; each stretch begins with {frames} more that are computed and not written"
    return [line]


def _memory_words(plan: JobPlan) -> str:
    flight = f"{plan.schedule.frames_in_flight} frames in flight"
    if plan.largest is None or plan.memory is None:
        return f"{flight} × the size of a frame, which is not known yet"
    each = f"{plan.frame_bytes(plan.largest) / 2**20:.1f} MiB"
    height, width = plan.largest
    # Of many images the plan has read only some headers.
    basis = "the largest of the images read for the plan" if plan.shards or plan.tars else "RGB"
    return (
        f"{flight} × {each} ({width}×{height}, {basis}) = "
        f"{(plan.memory - plan.filter_bytes) / 2**20:.0f} MiB of frames at most"
        + (f", and {plan.filter_bytes / 2**20:.0f} MiB of the filter" if plan.filter_bytes else "")
    )


def _video_description(video: VideoPlan) -> dict[str, object]:
    encoder = video.encoder
    return {
        "input": str(video.path),
        "output": str(video.output),
        "frames": video.frames_expected,
        "size": list(video.size),
        "output_size": list(video.output_size),
        "encoder": encoder.name,
        "pix_fmt": encoder.pix_fmt,
        "encoder_options": dict(encoder.options),
        "encoder_threads": encoder.threads,
        "matrix": video.colour.matrix,
        "full_range": video.colour.full_range,
        "temporal": video.temporal,
        "warm_up": video.warm_up,
        "streams": [
            {"index": each.index, "way": each.action, "encoder": each.encoder, "what": each.label}
            for each in (video.streams.streams if video.streams else ())
        ],
    }


def _video_lines(video: VideoPlan) -> list[str]:
    """Return a line with a video's output, and lines with the details of its translation."""
    frames = "?" if video.frames_expected is None else video.frames_expected
    (height, width), stream, encoder = video.size, video.stream, video.encoder
    rate = f", {float(stream.average_rate):.6g}/s" if stream.average_rate else ""
    source = f"{frames} frames, {width}×{height}{rate}, {stream.codec} {stream.pix_fmt}"
    settings = " ".join(f"{key}={value}" for key, value in encoder.options)
    height, width = video.output_size
    result = f"{encoder.name} {encoder.pix_fmt} {width}×{height} {settings}".rstrip()
    colour = f"{video.colour.matrix} {'full' if video.colour.full_range else 'limited'} range"
    lines = [
        f"{video.name} → {printable(video.output)}",
        f"         {source} → {result}; {colour}{', a guess' if video.colour.guessed else ''}",
    ]
    others = [
        each for each in (video.streams.streams if video.streams else ()) if each.action != "video"
    ]
    if others:
        words = [
            f"{each.label} {_ACTION_VERBS[each.action]}"
            + (f" to {each.encoder}" if each.encoder else "")
            for each in others
        ]
        lines.append(f"         {'; '.join(words)}")
    return lines


_ACTION_VERBS = {
    "copy": "copied",
    "convert": "converted",
    "transcode": "encoded",
    "attach": "attached",
}
