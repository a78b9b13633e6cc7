"""Translate a folder and decide what to do about what is damaged.

python examples/translate_folder.py photos/ photos-night/ day2night.onnx
"""

from __future__ import annotations

import sys

from cyclegan_batch import CycleganBatchError, translate


def main(source: str, output: str, model: str) -> int:
    """Translate ``source`` into ``output``; return the exit code of the command line."""
    try:
        report = translate(source, output, model=model, skip_existing=True)
    except CycleganBatchError as error:
        print(f"nothing was translated: {error}", file=sys.stderr)
        return 1
    for failure in report.failures:
        print(f"not translated: {failure.name}: {failure.cause}", file=sys.stderr)
    print(f"{len(report.outputs)} files, {report.frames} frames, {report.rate:.1f} frames/s")
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
