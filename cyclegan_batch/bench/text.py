"""The findings as lines for people, with bars."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..wording import counted
from .advice import quoted
from .findings import Findings, Part
from .runtimes import LeftOut, Row
from .whole import Run

_KEY = 11
"""Columns of the words at the left."""

_EIGHTHS = " ▏▎▍▌▋▊▉"

_PLAIN = str.maketrans({"×": "x", "÷": "/", "…": "...", "·": "-", "²": "^2", "–": "-"})
"""What stands for characters that an encoding may lack."""

_MOST_NAMED = 6
"""What was not measured is named up to here, and counted beyond."""

_BUSY = 0.05
"""The share of the CPU that other programs may take before it is told."""

_TELLING = 3.0
"""Seconds of a run from which on that is related to what it reached."""

_BOLD, _FAINT, _CYAN, _GREEN = "1", "2", "36", "32"


@dataclass(frozen=True)
class Style:
    """How lines are drawn."""

    columns: int = 80
    blocks: bool = True
    """The encoding has block characters; else bars are of ``#`` and all other text is ASCII."""
    colour: bool = False

    def bar(self, share: float, columns: int, colour: str = _CYAN, rest: str = "") -> str:
        """Return a bar for ``share``, 0 to 1, in exactly so many columns; ``rest`` fills them."""
        share = min(1.0, max(0.0, share))
        if not self.blocks:
            full = max(round(share * columns), 1 if share else 0)
            return self.paint("#" * full, colour) + ("." if rest else " ") * (columns - full)
        eighths = max(round(share * columns * 8), 1 if share else 0)
        drawn = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
        missing = columns - len(drawn)
        return self.paint(drawn, colour) + (self.paint(rest * missing, _FAINT) or " " * missing)

    def paint(self, text: str, code: str) -> str:
        """Return ``text`` in a colour or a weight, where colours are on."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text

    def encodable(self, line: str) -> str:
        """Return a line with what the encoding has."""
        if self.blocks:
            return line
        return line.translate(_PLAIN).encode("ascii", "backslashreplace").decode()


def lines_of(part: Part, findings: Findings, style: Style) -> list[str]:
    """Return the lines of one part; an empty line stands before all parts but the first."""
    lines = {
        "subject": _subject,
        "stages": _stages,
        "pipeline": _pipeline,
        "network": _network,
        "workers": _workers,
        "advice": _advice,
    }[part](findings, style)
    if lines and part not in ("subject", "pipeline"):
        lines.insert(0, "")
    command = [lines.pop()] if part == "advice" else []  # it must remain what a shell takes
    return [*(style.encodable(line) for line in lines), *command]


def command_line(findings: Findings) -> str:
    """Return the command to use, quoted for a shell."""
    return quoted(findings.command)


# The parts


def _subject(findings: Findings, style: Style) -> list[str]:
    subject = findings.subject
    height, width = subject.size
    work = "" if subject.gflop is None else f", {_number(subject.gflop)} GFLOP a frame"
    trained = ""
    if subject.trained_size is not None:
        trained = f" (trained at {subject.trained_size})"
    sets = f" ({', '.join(subject.instruction_sets)})" if subject.instruction_sets else ""
    cpu = f"{subject.cpu}, {counted(subject.threads, 'thread')}{sets}"
    versions = ", ".join(f"{name} {version}" for name, version in subject.runtimes.items())
    name = subject.model.rpartition("/")[2]
    model = f"{name}: {subject.architecture}, {subject.precision}{work}"
    lines = _keyed("Model", f"{model} at {width}×{height}{trained}", style)
    if subject.gpu is not None:
        lines += _keyed("GPU", f"{subject.gpu} ({subject.device})", style)
    lines += _keyed("CPU", cpu, style)
    lines += _keyed("Runtimes", versions or "none is installed", style)
    return lines + _keyed("Input", subject.input, style)


def _stages(findings: Findings, style: Style) -> list[str]:
    limit = findings.limit
    assert limit is not None
    most = max(cost.cpu for cost in findings.stages.values())
    lines = _title("Each stage alone: CPU milliseconds a frame", style)
    for name, cost in findings.stages.items():
        lines.append(_bar_line(name, cost.cpu / most, [_number(1e3 * cost.cpu)], style))
    total = 1e3 * limit.cpu_seconds
    lines.append(_bar_line("sum", 0.0, [_number(total)], style))
    threads = counted(limit.threads, "thread")
    by_cpu = f"{_number(limit.by_cpu)} frames/s: {threads} ÷ {_number(total)} ms of CPU time"
    workers = counted(findings.stage_workers.get(limit.slowest, 1), "worker")
    slowest = f"{_number(limit.by_slowest)} frames/s: the slowest stage alone, {limit.slowest}"
    slowest += f" with {workers}"
    # The first one is the limit on this device.
    terms = (by_cpu, slowest) if limit.rate == limit.by_cpu else (slowest, by_cpu)
    return [*lines, *_keyed("Limit", terms[0], style), *_keyed("", terms[1], style)]


def _pipeline(findings: Findings, style: Style) -> list[str]:
    run, limit = findings.pipeline, findings.limit
    assert limit is not None
    if run is None:
        why = next((each.why for each in findings.not_measured), "no time was left")
        return _keyed("Pipeline", f"not measured: {why}", style)
    share = run.rate / limit.rate
    reached = f"{_number(run.rate)} frames/s, {share:.0%} of the limit"
    columns = max(10, min(48, style.columns - 1 - _KEY - len(reached) - 1))
    bar = style.bar(share, columns, rest="░")
    lines = [f"{'Pipeline':{_KEY}}{bar} {reached}"]
    lines += _keyed("", f"{run.limiting_stage} takes most; {_way(run)}", style)
    if run.others is not None and run.others > _BUSY:
        text = f"other programs took {run.others:.0%} of the CPU meanwhile"
        if limit.rate == limit.by_cpu and run.others < 1 and run.seconds > _TELLING:
            text += f"; of what they left, {share / (1 - run.others):.0%} was reached"
        lines += _keyed("", text, style)
    return lines


def _network(findings: Findings, style: Style) -> list[str]:
    network = findings.network
    assert network is not None
    lines = []
    if network.rows:
        shares = any(row.share is not None for row in network.rows)
        title = "The network alone: frames/s"
        title += ", and GFLOP/s over those of plain matrix products" if shares else ""
        lines += _title(title, style)
        most = max(row.rate for row in network.rows)
        fastest = max(network.rows, key=lambda row: row.rate)
        for group in _groups(network.rows):
            lines.append(f"  {group[0].name}: {_parity(group[0])}")
            for row in group:
                mark = " *" if row == findings.default else ""
                label = f"  batch {row.batch_size}, {counted(row.contexts, 'context')}{mark}"
                numbers = [_number(row.rate)]
                if shares:
                    numbers.append("" if row.share is None else f"{row.share:.0%}")
                colour = _GREEN if row is fastest else _CYAN
                lines.append(_bar_line(f"{label:24}", row.rate / most, numbers, style, colour))
        if findings.default is not None:
            lines.append("  * what translate takes without options")
    if network.products:
        reached = ", ".join(
            f"{_number(most)} GFLOP/s in {precision}"
            for precision, most in network.products.items()
        )
        lines += _wrapped(f"Plain matrix products reach {reached} here.", style)
    lines += _left_out("Not run here", network.cannot_run, style)
    lines += _left_out("Not measured", network.not_measured, style)
    return lines


def _workers(findings: Findings, style: Style) -> list[str]:
    runs = findings.workers
    if not runs:
        return []
    most = max(run.rate for run in runs)
    return [
        *_title("The pipeline in one process and in two (--workers 2): frames/s", style),
        *(_bar_line(f"{run.workers}", run.rate / most, [_number(run.rate)], style) for run in runs),
    ]


def _advice(findings: Findings, style: Style) -> list[str]:
    lines = []
    lines += _left_out("Not measured", findings.not_measured, style)
    export = ""
    if findings.export_seconds:
        export = f", besides {findings.export_seconds:.0f} s for the export of the checkpoint"
    if findings.kept:
        lines += _wrapped(
            f"Kept, and from now on taken by translate: {', '.join(findings.kept)}.", style
        )
    took = f"Measured in {findings.used_seconds:.0f} of {findings.budget_seconds:.0f} s{export}."
    lines += _wrapped(took, style)
    reduced, gain = findings.reduced, findings.reduced_gain
    if reduced is not None and gain is not None:
        lines += _wrapped(
            f"About {gain:.1f} times as fast, but less faithful, is {reduced.name}"
            f" ({_parity(reduced)}): {quoted(findings.reduced_options)}",
            style,
        )
    run = findings.confirmed
    if run is None and findings.best == findings.default:
        run = findings.pipeline  # else the run with the command did not fit into the time
    reached = "" if run is None else f", {_number(run.rate)} frames/s"
    lines += _wrapped(f"The fastest way whose parity is exact or half{reached}:", style)
    lines.append(style.paint(command_line(findings), _BOLD))
    return lines


# Pieces of lines


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows by runtime and precision, the fastest group first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.name, []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row.batch_size, row.contexts))
    return sorted(groups.values(), key=lambda group: -max(row.rate for row in group))


def _parity(row: Row) -> str:
    if row.parity is None:
        return "exact, the others are compared with it"
    if math.isinf(row.parity.psnr):
        return f"{row.parity.cls}, without a difference"
    return f"{row.parity.cls}, {row.parity.psnr:.1f} dB"


def _way(run: Run) -> str:
    contexts = counted(run.contexts, "context")
    way = f"{run.backend} {run.precision}, batch {run.batch_size}, {contexts}"
    return f"{counted(run.frames, 'frame')} with {way}"


def _left_out(what: str, items: Iterable[LeftOut], style: Style) -> list[str]:
    """Return what was left out, by its reason."""
    by_reason: dict[str, list[str]] = {}
    for item in items:
        names = by_reason.setdefault(item.why, [])
        if item.what not in names:
            names.append(item.what)
    if not by_reason:
        return []
    texts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        texts.append(f"{'; '.join(names[:_MOST_NAMED])}{more} ({why})")
    return _wrapped(f"{what}: {', '.join(texts)}.", style)


def _bar_line(
    label: str,
    share: float,
    numbers: Sequence[str],
    style: Style,
    colour: str = _CYAN,
) -> str:
    label = f"  {label}".ljust(_KEY)
    columns = style.columns - 1 - len(label) - 9 * len(numbers)
    bar = style.bar(share, max(4, columns), colour)
    return f"{label}{bar}{''.join(f'{number:>9}' for number in numbers)}".rstrip()


def _title(text: str, style: Style) -> list[str]:
    return [style.paint(line, _BOLD) for line in _wrapped(text, style)]


def _keyed(key: str, text: str, style: Style) -> list[str]:
    return _wrapped(text, style, f"{key:{_KEY}}", " " * _KEY)


def _wrapped(text: str, style: Style, first: str = "", later: str = "  ") -> list[str]:
    return textwrap.wrap(
        text,
        style.columns - 1,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _number(value: float) -> str:
    """Return a number with about three digits."""
    if value >= 99.95:
        return f"{value:,.0f}"
    if value >= 0.995:
        return f"{value:.1f}"
    return f"{value:.2f}"
