"""Export a generator as what its output's name and the options ask for: ONNX, engine or bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cyclegan_batch.errors import missing_extra

from .options import ExportOptions


def export(
    source: Path,
    output: Path,
    options: ExportOptions,
    *,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Write the generator at ``source`` as an ONNX, an engine or a bundle, as `ExportOptions.kind`.

    Raises what `export_onnx`, `export_engine` and `export_bundle` raise, ContradictionError, and
    BackendUnavailableError where a package is missing.
    """
    kind = options.kind(output)
    try:
        from .bundle import export_bundle
        from .engine_export import export_engine
        from .onnx_export import export_onnx
    except ImportError as error:
        raise missing_extra("export", error, doing="export") from error
    if kind == "engine":
        export_engine(source, output, options, say=say)
    elif options.bundle is not None:
        export_bundle(
            source,
            output,
            target=options.bundle,
            min_shape=options.min_shape,
            opt_shape=options.opt_shape,
            max_shape=options.max_shape,
            say=say,
            **options.of_onnx(),
        )
    else:
        export_onnx(source, output, say=say, **options.of_onnx())
