"""Write a generator as a TensorRT engine for the GPU of this machine. Experimental.

An engine fits one kind of GPU and one version of TensorRT. So the ONNX is written beside it, under
the same name: another machine builds its own engine from that. `cyclegan_batch.backends.tensorrt`
does the building.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cyclegan_batch.backends.tensorrt import check_tensorrt, write_engine
from cyclegan_batch.errors import ModelError, OutputError
from cyclegan_batch.models.checkpoints.files import Selection
from cyclegan_batch.models.engine_card import Build, EngineCard, card_path, profile_for
from cyclegan_batch.models.model import Model, open_model
from cyclegan_batch.wording import grouped, printable

from .onnx_export import export_onnx
from .options import ExportOptions


def export_engine(
    source: Path,
    output: Path,
    options: ExportOptions,
    *,
    cache_dir: Path | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> EngineCard:
    """Write the generator at ``source`` to ``output`` as an engine, its card beside it.

    ``source`` is as for `export_onnx`, or an ONNX of the contract, which is built from directly
    (``precision`` None: that of the file, else fp32). `profile_for` returns the engine's profile
    for the shapes. An FP32 engine computes without TF32. Raises ModelError, BackendError,
    BackendUnavailableError, OutputError.
    """
    if options.io is not None and options.io.startswith("nchw"):
        raise ModelError(
            f"{printable(output)}: an engine that translate runs takes uint8 or float16 pixels, "
            f"and --io {options.io} was asked for; leave --io out, or write an ONNX, of which "
            "another program builds its own engine"
        )
    for path in (output, card_path(output)):
        if path.exists() and not options.overwrite:
            raise OutputError(
                f"cannot write {printable(path)}: it exists already; pass -y to overwrite it"
            )
    check_tensorrt()
    model = contract_file(source, Selection.of(options))
    if model is None:
        if not (options.min_shape or options.opt_shape or options.max_shape or options.shape):
            raise ModelError(
                f"{printable(output)}: an engine is built for frames of certain shapes; pass "
                "--opt-shape N,H,W (and --min-shape, --max-shape for a range)"
            )
        onnx_path = output.with_suffix(".onnx")
        named = {} if options.precision != "int8" else {"for_": "tensorrt"}
        export_onnx(source, onnx_path, say=say, **options.of_onnx() | named)
        model = open_model(onnx_path)
    else:
        check_unchanged(model, options.of_onnx())
    build = Build(
        profile_for(model.card, options.min_shape, options.opt_shape, options.max_shape),
        builder_level=options.builder_level,
        workspace=options.workspace,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
    )
    card, notes = write_engine(
        model, output, build, cache_dir=cache_dir, verify=options.verify, say=say
    )
    for sentence in grouped(notes):
        say(sentence)
    size = output.stat().st_size / 1e6
    parity = card.parity or "unverified"
    say(f"{printable(output)}: {card.model.precision}, {size:.1f} MB, {parity} against its ONNX")
    return card


def check_unchanged(model: Model, options: Mapping[str, Any]) -> None:
    """Refuse options that would change a file of the contract, which is taken as it is.

    ``options``: keywords of `export_onnx`. Raises ModelError.
    """
    precision, shape = options.get("precision"), options.get("shape")
    own, inside = model.card.precision, "inside the contract already"
    for flag, value, found, differs in (
        ("--precision", precision, own, precision not in (None, own)),
        ("--half-norm", None, own, options.get("half_norm")),
        ("--shape", shape and f"--shape {','.join(map(str, shape))}", inside, shape),
        ("--calibrate", None, inside, options.get("calibrate")),
        ("--for", None, inside, options.get("for_")),
        ("--model-io", None, inside, options.get("model_io")),
    ):
        if differs:
            raise ModelError(
                f"{printable(model.card.path)}: is {found} and {value or flag} was asked for; give "
                f"the checkpoint that it was exported from, or leave {flag} out"
            )


def contract_file(source: Path, selection: Selection) -> Model | None:
    """Return the model of an ONNX of the contract, None for any other file.

    Raises ModelError where ``selection`` contradicts it.
    """
    if source.suffix.lower() != ".onnx":
        return None
    try:
        model = open_model(source)
    except ModelError:
        return None  # the exporter opens it again and reports what is wrong
    if model.io is not None:
        return None
    return open_model(source, selection=selection)
