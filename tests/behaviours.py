"""List which promised behaviours have a test: ``python -m tests.behaviours``, for ``make check``.

A test holds behaviours by number, ``@pytest.mark.behaviour(7)``. A number that is not in the list
below fails the check, and so does a behaviour that this release claims and that no test holds. A
test that this machine skips, since it lacks ffprobe, say, is no evidence.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.needs import has, needs_of

BEHAVIOURS = {
    1: "a video comes out with every frame its source decodes to; a truncated one is reported",
    2: "time stamps are the source's, constant and variable, from 0 on whatever its clock does",
    3: "audio packets are copied byte for byte, in time; a damaged one costs itself",
    4: "subtitles, chapters, attachments, cover art and metadata survive",
    5: "what the container cannot hold is named before the first frame; --strict refuses",
    6: "colours: patches within two levels, natural clips unmoved, tags kept, guesses said",
    7: "rotated clips play upright; pixel shape, fields and alpha are kept or the loss reported",
    8: "more than 8 bits stay more than 8 bits; HDR becomes SDR, or is refused",
    9: "any size comes out as it went in, odd and prime included",
    10: "--ss, --to, --frames and --preview do exactly that stretch",
    11: "- reads and writes y4m and nothing else; a closed pipe ends the run",
    12: "an encoder that does not open is replaced, with one warning",
    13: "many inputs are one job; the tree is mirrored and never left",
    14: "one corrupt file costs one output, is listed, and the run exits 3",
    15: "alpha is kept bit for bit; grey, palette, 16-bit and CMYK pictures are accepted",
    16: "EXIF orientation is applied once; colour profiles are carried or converted",
    17: "any file name works, in, out and in messages",
    18: "--copy-others copies a data set's other files along",
    19: "a killed run leaves nothing half done and is finished by the same command",
    20: "a finished job run again does nothing, quickly",
    21: "a change of model, options or input redoes exactly what it touches",
    22: "a frame that is missing shows in the exit code and by name",
    23: "nothing is overwritten without -y; -n skips",
    24: "Ctrl-C ends the run cleanly within seconds, twice at once",
    25: "a full disk gives a clear error, and free space is checked first",
    26: "out of device memory the batch is halved and no frame is lost",
    27: "memory stays flat over a long run",
    28: "the same run gives the same pixels, and is recorded",
    29: "progress shows frames, rate, time left and the limiting stage",
    30: "the pipeline reaches 95 % of what its stages allow, and names the limiting one",
    31: "without a GPU the same command runs on the CPU within its parity class",
    32: "engines are built once and rebuilt when anything under them changes",
    33: "a model or precision is accepted only in its parity class, without NaN",
    34: "checkpoints of the reference CycleGAN load by their shapes",
    35: "a foreign float ONNX generator is adopted with at most one option",
    36: "doctor and inspect tell what there is, also as JSON",
    37: "two devices share the work in proportion, with equal output",
    38: "a cluster's outputs equal the local run's",
    39: "a killed cluster worker costs only its unit",
    40: "a training run stopped and resumed equals one never stopped",
    41: "one training step gives the reference's losses and weights",
    42: "a training run's folder says what it is",
    43: "no checkpoint is unpickled beyond tensors",
    44: "ONNX data outside the model's folder is refused; engines need trust",
    45: "nothing hidden in a media file opens another file or a connection",
    46: "decompression bombs are refused by their header",
    47: "a worker process that dies costs its unit only",
    48: "image folders run at 0.9 of a bare pool of OpenCV decode and encode",
    49: "checkpoints of the other families that people use draw their own module's picture",
    50: "an exported file runs in other programs, and is verified there",
    51: "--temporal flow cuts flicker, and off is bit-identical",
    52: "bench tells the limit of this machine, what was reached, and the command for it",
    53: "training starts from any generator, keeps the best epoch, and goes on with more",
    54: "nothing depends on which CPU computes",
}
"""Every behaviour we are held to, by number."""

CLAIMED = frozenset(range(1, 55)) - {26, 32, 37, 48, 53}
"""What this release promises."""

HARDWARE = {
    26: "a GPU",
    32: "a GPU and TensorRT",
    37: "two GPUs",
}
"""What only such hardware can show; without it their logic is tested on fakes."""


@dataclass
class Evidence:
    """The tests that hold one behaviour."""

    anywhere: int = 0
    """Those that run on any machine."""
    on_real_data: int = 0
    """Those that read the shared clips, images and models."""
    on_hardware: int = 0
    """Those that need a GPU or TensorRT."""
    skipped: int = 0
    """Those that this machine skips, since it lacks something else that they need."""


class _Collector:
    """A pytest plugin that keeps what was collected."""

    def __init__(self) -> None:
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = session.items


def evidence(items: Iterable[pytest.Item]) -> dict[int, Evidence]:
    """Return the tests of each behaviour, by the marks on ``items``."""
    tests_of: dict[int, Evidence] = defaultdict(Evidence)
    for item in items:
        needs = set(needs_of(item))
        for number in {n for mark in item.iter_markers("behaviour") for n in mark.args}:
            tests = tests_of[number]
            if needs & {"cuda", "tensorrt"}:
                tests.on_hardware += 1
            elif not all(has(name) for name in needs):
                tests.skipped += 1
            elif "corpus" in needs:
                tests.on_real_data += 1
            else:
                tests.anywhere += 1
    return dict(tests_of)


def problems(found: Mapping[int, Evidence]) -> Iterator[str]:
    """Yield what makes the check fail."""
    for number in sorted(set(found) - set(BEHAVIOURS), key=str):
        yield f"a test is marked behaviour({number!r}), which is not in the list"
    for number in sorted(CLAIMED):
        tests = found.get(number, Evidence())
        if not tests.anywhere and not tests.on_real_data:
            skipped = f"; this machine skips {tests.skipped}" if tests.skipped else ""
            yield f"this release claims behaviour {number}, and no test that runs holds it{skipped}"


def report(found: Mapping[int, Evidence]) -> Iterator[str]:
    """Yield the list: what is tested, as logic only or in part, and what has no test.

    In part: tests hold some of what this release does not promise yet.
    """
    for number, title in BEHAVIOURS.items():
        tests = found.get(number, Evidence())
        if tests.anywhere or tests.on_real_data:
            claimed = "tested" if number in CLAIMED else "in part"
            state = "logic only" if number in HARDWARE else claimed
        elif tests.on_hardware:
            state = "GPU only"
        else:
            state = "no test" if number in CLAIMED else "later"
        counts = [
            f"{count} {where}"
            for count, where in (
                (tests.anywhere, "anywhere"),
                (tests.on_real_data, "on real data"),
                (tests.on_hardware, "on a GPU"),
                (tests.skipped, "skipped here"),
            )
            if count
        ]
        if number in HARDWARE:
            counts.append(f"needs {HARDWARE[number]}")
        shown = f"  [{', '.join(counts)}]" if counts else ""
        yield f"{number:3}  {state:10}  {title}{shown}"


def main() -> int:
    """Print the list and what is wrong with it; return the exit code."""
    collector = _Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["--collect-only", "-qq", "tests"], plugins=[collector])
    if code != pytest.ExitCode.OK:
        sys.stderr.write(said.getvalue())
        sys.stderr.write("the tests cannot be collected\n")
        return 1
    found = evidence(collector.items)
    print("\n".join(report(found)))
    wrong = list(problems(found))
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
