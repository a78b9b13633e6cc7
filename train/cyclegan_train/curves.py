"""The charts of a run, from the events in its log: losses and scores, and what happened when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .charts import Mark, Panels, curves_png, losses_png
from .consistency import CONSISTENCY_LOSSES
from .cyclegan import LOSSES
from .index_page import Event
from .validation import EMA, NAMES, words_of

_WORTH_MARKING = 0.1
"""A schedule is marked where its number of epochs differs from the last marked one by this share:
with a clock it changes a little after many epochs."""


def losses_chart(events: Sequence[Event]) -> bytes:
    """Return the curves of the losses as PNG; those of a warm-up are left of step 0."""
    steps: list[int] = []
    curves: dict[str, list[float]] = {name: [] for name in LOSSES}
    measured = [event for event in events if event["event"] in ("warm_up", "losses")]
    for name in CONSISTENCY_LOSSES:
        if any(name in event for event in measured):
            curves[name] = []
    for event in measured:
        steps.append(-int(event["left"]) if event["event"] == "warm_up" else int(event["step"]))
        for name, values in curves.items():
            # In a warm-up only some networks learn.
            values.append(float(event.get(name, math.nan)))
    return losses_png(steps, curves, list(_marks(events, max(steps, default=0))))


def scores_chart(events: Sequence[Event]) -> bytes | None:
    """Return the curves of the scores by validation as PNG; None where there are none.

    They are those by the last one's kind. The best one of each generator is encircled.
    """
    validations = [event for event in events if event["event"] == "validation"]
    if not validations:
        return None
    by = validations[-1]["by"]
    same = [event for event in validations if event["by"] == by]
    generators = list(validations[-1]["scores"])
    curves: dict[str, list[float]] = {}
    rings: dict[str, tuple[float, float]] = {}
    labels: dict[str, str] = {}
    for each in generators:
        kind = by[each.removesuffix(EMA)]
        labels[each] = words_of(each)
        best = [event for event in same if each in event["better"]]
        if best:
            labels[each] += f", best: epoch {best[-1]['epoch']}"
            rings[labels[each]] = best[-1]["step"], best[-1]["scores"][each][kind]
        curves[labels[each]] = [event["scores"][each][kind] for event in same]
    panels: Panels = [
        (
            f"{direction}: {NAMES[by[direction]]} by step",
            [labels[each] for each in generators if each.startswith(direction)],
        )
        for direction in dict.fromkeys(each.removesuffix(EMA) for each in generators)
    ]
    steps = [event["step"] for event in same]
    return curves_png(steps, curves, panels, list(_marks(events, max(steps))), rings)


def _marks(events: Sequence[Event], last: int) -> Iterator[Mark]:
    """Yield what happened up to the step ``last``.

    That is the end of a warm-up, the schedules that were fitted to the clock, the end of the full
    learning rate by the last one, and an early stop.
    """
    if any(event["event"] == "warm_up" for event in events):
        yield Mark(0, "warm-up ends")
    schedules = [event for event in events if event["event"] == "schedule"]
    marked = 0
    for event in schedules:
        epochs = event["n_epochs"] + event["n_epochs_decay"]
        if abs(epochs - marked) >= _WORTH_MARKING * marked and event["step"] <= last:
            yield Mark(event["step"], f"{epochs} epochs fit")
            marked = epochs
    full = schedules[-1]["n_epochs"] if schedules and schedules[-1]["n_epochs_decay"] else None
    for event in events:
        # An epoch may be shorter than another one, so its number does not tell its step.
        if event["event"] == "epoch" and event["epoch"] == full:
            yield Mark(event["step"], "rate goes down")
        if event["event"] == "early_stop" and event["step"] <= last:
            yield Mark(event["step"], "early stop")
