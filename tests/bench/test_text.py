"""How the findings look: every line fits, in any encoding."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cyclegan_batch.bench.findings import Findings, Part
from cyclegan_batch.bench.runtimes import LeftOut, Network, Row
from cyclegan_batch.bench.stages import StageCost, limit_of
from cyclegan_batch.bench.subject import Subject, instruction_sets
from cyclegan_batch.bench.text import Style, lines_of
from cyclegan_batch.bench.whole import Run
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.models.parity import Parity

PARTS: tuple[Part, ...] = ("subject", "stages", "pipeline", "network", "workers", "advice")


def row(name: str, precision: str, rate: float, parity: Parity | None, **changes: int) -> Row:
    fields = {"batch_size": 1, "contexts": 2, "laps": ()} | changes
    return Row(
        backend=name,
        device="cpu",
        precision=precision,
        rate=rate,
        cpu_seconds=2 / rate,
        parity=parity,
        gflops=5.5 * rate,
        share=5.5 * rate / 130 if precision == "fp32" else None,
        **fields,  # type: ignore[arg-type]
    )


def findings() -> Findings:
    near = Parity(psnr=47.93, max=9.0, p999=3.0, within2=0.995, cls="near")
    default = row("onnxruntime", "fp32", 23.4, None)
    schedule = Schedule(batch_size=1, contexts=2, converters=2)
    costs = {name: StageCost(cpu=0.0005, wall=0.0006) for name in schedule.stages}
    costs["network"] = StageCost(cpu=0.0825, wall=0.083)
    limit = limit_of(costs, schedule, threads=2, on_cpu=True)
    run = Run(
        backend="onnxruntime", device="cpu", precision="fp32", batch_size=1, contexts=2, workers=1,
        frames=200, seconds=9.0, rate=22.6, limiting_stage="network", others=0.3,
        share=22.6 / limit.rate,
    )  # fmt: skip
    network = Network(
        rows=(
            default,
            row("onnxruntime", "fp32", 21.0, None, contexts=1),
            row("openvino", "bf16", 51.2, near),
        ),
        products={"fp32": 163.4},
        cannot_run=(LeftOut("tensorrt", "not installed"),),
        not_measured=tuple(
            LeftOut(f"openvino bf16, batch {n}", "no time was left") for n in range(9)
        ),
    )
    return Findings(
        subject=Subject(
            model="/models/candy_nc16_256x256_onnxjs013.onnx", architecture="pytorch", gpu=None,
            precision="fp32", trained_size=256, size=(256, 256), gflop=5.549, device="cpu",
            cpu="AMD EPYC", threads=2, instruction_sets=("AVX2", "AVX-512", "AVX512-VNNI"),
            runtimes={"onnxruntime": "1.31.1", "openvino": "2026.4.1"},
            input="computed clip, 256×256, H.264",
        ),
        budget_seconds=60.0, used_seconds=57.3, export_seconds=12.0, stages=costs,
        stage_workers={"network": 2}, limit=limit, default=default, pipeline=run, network=network,
        workers=(run, run), best=default, reduced=network.rows[2], reduced_gain=2.1,
        reduced_options=("--precision", "bf16"),
        kept=("onnxruntime fp32 (batch 1, 2 contexts)",),
        command=("cyclegan-batch", "translate", "INPUT", "OUTPUT", "-m", "a model.onnx"),
    )  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("blocks", [True, False])
def test_every_line_but_the_command_fits_and_can_be_encoded(columns, blocks):
    found = findings()
    lines = [
        line
        for part in PARTS
        for line in lines_of(part, found, Style(columns=columns, blocks=blocks))
    ]
    assert max(map(len, lines[:-1])) < columns
    assert lines[-1] == "cyclegan-batch translate INPUT OUTPUT -m 'a model.onnx'"
    if not blocks:
        assert all(line.isascii() for line in lines)
    text = re.sub(r"\s+", " ", " ".join(lines))
    for words in (
        "5.5 GFLOP a frame",
        "frames/s: the slowest stage alone, network with 2 workers",
        "network takes most; 200 frames with onnxruntime fp32, batch 1, 2 contexts",
        "other programs took 30% of the CPU meanwhile; of what they left, 136% was reached",
        "openvino bf16: near, 47.9 dB",
        "* what translate takes without options",
        "Plain matrix products reach 163 GFLOP/s in fp32 here.",
        "Not run here: tensorrt (not installed).",
        "and 3 more (no time was left)",
        "About 2.1 times as fast, but less faithful, is openvino bf16 (near, 47.9 dB): "
        "--precision bf16",
        "Measured in 57 of 60 s, besides 12 s for the export of the checkpoint.",
    ):
        assert words in text, words


def test_a_name_of_other_characters_stays_what_a_shell_takes():
    found = findings()
    found.command = ("cyclegan-batch", "translate", "d\udcffe\u0301.mp4")
    line = lines_of("advice", found, Style(blocks=False))[-1]
    assert line == "cyclegan-batch translate 'd\udcffe\u0301.mp4'"


def test_a_rate_is_told_only_where_the_command_reached_it():
    found = findings()
    assert "exact or half, 22.6 frames/s:" in " ".join(lines_of("advice", found, Style()))
    found.best = row("openvino", "bf16", 51.2, None)
    assert "exact or half:" in " ".join(lines_of("advice", found, Style()))
    assert found.pipeline is not None
    found.confirmed = replace(found.pipeline, rate=40.0)
    assert "exact or half, 40.0 frames/s:" in " ".join(lines_of("advice", found, Style()))


def test_bars_are_as_long_as_their_share_and_never_vanish():
    style = Style()
    assert style.bar(1.0, 10) == "█" * 10
    assert style.bar(0.55, 10) == "█████▌    "
    assert style.bar(0.0001, 10).rstrip() == "▏"
    assert style.bar(0.0, 4) == "    "
    assert style.bar(2.0, 4) == "████"
    assert style.bar(0.5, 4, rest="░") == "██░░"
    plain = Style(blocks=False)
    assert plain.bar(0.5, 4) == "##  "
    assert plain.bar(0.001, 4, rest="░") == "#..."


def test_colours_do_not_change_what_is_seen():
    found = findings()
    for part in PARTS:
        plain = lines_of(part, found, Style())
        painted = lines_of(part, found, Style(colour=True))
        assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == plain
    assert "\x1b[" in "".join(lines_of("network", found, Style(colour=True)))


def test_what_was_not_measured_is_said_in_its_place():
    found = findings()
    found.pipeline = None
    found.not_measured = [LeftOut("the whole pipeline", "a frame takes longer than what is left")]
    assert lines_of("pipeline", found, Style()) == [
        "Pipeline   not measured: a frame takes longer than what is left"
    ]
    found.workers = ()
    assert lines_of("workers", found, Style()) == []


def test_the_values_for_json_hold_no_number_that_json_lacks():
    import json
    import math

    found = findings()
    assert found.network is not None
    same = Parity(psnr=math.inf, max=0.0, p999=0.0, within2=1.0, cls="exact")
    found.best = row("openvino", "fp32", 24.0, same)
    found.network = Network(
        rows=(*found.network.rows, found.best), products={}, cannot_run=(), not_measured=()
    )
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    last = values["network"][-1]
    assert (last["parity"]["psnr"], last["parity_class"], last["best"]) == (None, "exact", True)
    assert values["network"][0]["default"] is True
    assert values["network"][0]["parity"] is None
    assert values["stages"]["network"] == {"cpu_seconds": 0.0825, "seconds": 0.083, "workers": 2}
    assert values["reduced"]["gain"] == 2.1


def test_instruction_sets_are_read_from_what_linux_tells(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: X\nflags\t\t: fpu avx2 avx512f amx_bf16\nflags\t\t: fpu\n")
    assert instruction_sets(path) == ("AVX2", "AVX-512", "AMX-BF16")
    path.write_text("Features\t: fp asimd bf16 i8mm\n")
    assert instruction_sets(path) == ("NEON", "I8MM", "BF16")
    assert instruction_sets(tmp_path / "missing") == ()
