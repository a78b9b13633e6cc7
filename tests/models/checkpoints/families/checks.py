"""What is checked of every family: its files are read, and draw what the test's own module draws.

A test writes the network of a family once more, as a module of torch with the names of the files,
from what was published. The checks here compare it with what the package makes of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from cyclegan_batch import cli
from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import BackendUnavailableError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.checkpoints.loading import LoadedGenerator, Selection, load_generator
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import REQUIRED_CLASS, natural_frames, parity
from tests.needs import has, need


def varied(module: nn.Module, *, seed: int = 0, gain: float = 1.0) -> nn.Module:
    """Return ``module`` with weights of which each has an effect, in eval mode.

    Convolutions and layers keep the scale of their input, times ``gain``. Weights of one value for
    each channel lie around 1 where they scale, and around 0 where they are added.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.rand(value.shape, generator=random)
            scales = name.endswith(("weight", "running_var", "gamma", "scale"))
            if name.endswith("rho"):
                value.copy_(noise)
            elif value.squeeze().ndim >= 2:
                inputs = value[0].numel()
                value.copy_((noise - 0.5) * gain * (12 / inputs) ** 0.5)
            else:
                value.copy_(noise - 0.5 + (1.0 if scales else 0.0))
    return module.eval()


def saved(folder: Path, module: nn.Module) -> Path:
    """Write the weights of ``module`` and return the path."""
    path = folder / "net.pth"
    torch.save(dict(module.state_dict()), path)
    return path


def loads_and_draws(
    path: Path, module: nn.Module, *sizes: tuple[int, int], family: str | None = None
) -> LoadedGenerator:
    """Check that the file at ``path`` draws what ``module`` draws, in torch; return what was read.

    ``sizes``: heights and widths. ``family``: the one that is named.
    """
    generator = load_generator(path, Selection(family=family))
    channels = generator.config.input_nc
    random = torch.Generator().manual_seed(1)
    for height, width in sizes:
        x = torch.rand(2, channels, height, width, generator=random) * 2 - 1
        with torch.inference_mode():
            expected, drawn = module(x), generator.network(x)
        assert expected.shape == drawn.shape
        assert float(expected.std()) > 0.05, "the module draws nothing"
        assert float((expected - drawn).abs().max()) <= 1e-5
    return generator


def picture(module: nn.Module, frames: Pixels) -> Pixels:
    """Return ``module``'s translation of ``(N, H, W, 3)`` bytes, computed in double, as bytes."""
    x = torch.from_numpy(frames).double().permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        y: Tensor = module.double()(x)
    module.float()
    levels = (y.permute(0, 2, 3, 1) + 1) * 127.5
    return (levels + 0.5).floor().clamp(0, 255).numpy().astype(np.uint8)


def exports_and_draws(
    folder: Path,
    module: nn.Module,
    state: Mapping[str, Tensor],
    *sizes: tuple[int, int],
    half: bool = True,
    family: str | None = None,
) -> None:
    """Check that ``state``, exported, draws what ``module`` draws, within one grey level in fp32.

    It must draw so at each of ``sizes``; ``half``: also in fp16, at the first of them.
    """
    need("onnxscript")
    from cyclegan_export import export_onnx

    # Trained at 64², it is measured at 64² before it is written, which is quick.
    path = folder / "net.safetensors"
    safetensors.torch.save_file(dict(state), path, {"trained_size": "64"})
    for precision, shape, backends in (
        ("fp32", None, ("openvino", "onnxruntime", "torch")),
        # The exporter is quicker where no axis is free.
        ("fp16", (1, *sizes[0]), ("onnxruntime",)),
    )[: 2 if half else 1]:
        output = folder / f"{precision}.onnx"
        exported = export_onnx(path, output, family=family, precision=precision, shape=shape)
        model = open_model(exported.path)
        for name in filter(has, backends):
            backend = open_backend(model, backend=name, device="cpu")
            drawn = sizes if shape is None else sizes[:1]
            # torch takes half a second for every size of a file.
            for size in drawn[-1:] if name == "torch" else drawn:
                frames = natural_frames(size, 1)
                found = parity(backend.infer(frames), picture(module, frames))
                assert found.reaches(REQUIRED_CLASS[precision]), (name, size, str(found))
            backend.close()


def runs_in_torch(
    path: Path, module: nn.Module, size: tuple[int, int], *, family: str | None = None
) -> None:
    """Check ``--backend torch`` in fp32, and in bf16 where the CPU has it."""
    model = open_model(path, selection=Selection(family=family))
    # bf16 is compared with fp32 at the trained size when it is opened, which takes seconds at 256².
    model = replace(model, card=replace(model.card, trained_size=64))
    frames = natural_frames(size, 1)
    for precision in ("fp32", "bf16"):
        try:
            backend = open_backend(model, backend="torch", device="cpu", precision=precision)
        except BackendUnavailableError:
            assert precision == "bf16"
            continue
        found = parity(backend.infer(frames), picture(module, frames))
        assert found.reaches(REQUIRED_CLASS[precision]), (precision, str(found))
        backend.close()


def translates(
    path: Path,
    module: nn.Module,
    folder: Path,
    source: tuple[int, int],
    network: tuple[int, int],
    *,
    family: str | None = None,
) -> None:
    """Check that the command ``translate`` draws an image of ``source`` size as ``module`` does.

    ``network``: the size that the network gets, padded by reflection at the right and the bottom.
    """
    frame = natural_frames(source, 1)
    Image.fromarray(frame[0]).save(folder / "in.png")
    out = folder / "out.png"
    words = ["translate", str(folder / "in.png"), str(out), "--model", str(path),
             "--backend", "torch", *(["--family", family] if family else [])]  # fmt: skip
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    borders = [(0, there - here) for here, there in zip(source, network, strict=True)]
    padded = np.pad(frame, ((0, 0), *borders, (0, 0)), "reflect")
    expected = picture(module, padded)[:, : source[0], : source[1]]
    drawn = np.asarray(Image.open(out))[None]
    assert parity(drawn, expected).reaches("exact")
