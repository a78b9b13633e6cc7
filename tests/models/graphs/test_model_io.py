"""``--model-io``: its grammar, and what a mean and a deviation do to the pixels."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from cyclegan_batch.backends import open_backend
from cyclegan_batch.errors import ModelError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.graphs.contract import RANGES, Values
from cyclegan_batch.models.graphs.model_io import MODEL_IO_GRAMMAR, ModelIO, parse_model_io
from cyclegan_batch.models.model import open_model
from cyclegan_batch.wording import grouped
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.generators import Graph, natural, run

IMAGENET = "mean=0.485,0.456,0.406 std=0.229,0.224,0.225"

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

# The grammar


def some_values(chance: random.Random) -> Values:
    def numbers(low: float) -> tuple[float, ...]:
        count = chance.choice((1, 3))
        return tuple(
            float(chance.choice((chance.uniform(low, 300), 10 ** chance.uniform(-5, 5), 1)))
            for _ in range(count)
        )

    values = Values(chance.choice(list(RANGES.values())))
    mean = chance.choice((values.mean, numbers(-300)))
    return Values(values.range, mean, chance.choice((values.std, numbers(1e-3))))


def some_spec(chance: random.Random) -> ModelIO:
    letters = "aZ:/._-0 ,\"\\'>é#=\t"
    name = "".join(chance.choice(letters) for _ in range(chance.randint(1, 12)))
    return ModelIO(
        layout=chance.choice((None, "nchw", "nhwc")),
        order=chance.choice((None, "rgb", "bgr")),
        takes=chance.choice((None, some_values(chance))),
        returns=chance.choice((None, some_values(chance))),
        output=chance.choice((None, name, "image")),
    )


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("seed", range(10))
def test_what_is_printed_is_parsed_into_the_same(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        spec = some_spec(chance)
        if spec != ModelIO():
            assert parse_model_io(str(spec)) == spec, str(spec)
            assert str(parse_model_io(str(spec))) == str(spec)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"nchw rgb {IMAGENET}", f"nchw rgb 0..1 {IMAGENET}"),
        ("MEAN = 0.5, 0.5,0.5 , nchw,std=.25", "nchw 0..1 mean=0.5,0.5,0.5 std=0.25"),
        ("bgr 0..255 mean=103.939,116.779,123.68", "bgr 0..255 mean=103.939,116.779,123.68"),
        ("mean=.5,0..255", "0..255 mean=0.5"),
        ("0..1->-1..1", "0..1 -> -1..1"),
        ("0..1 -> mean=0.5 std=0.5", "0..1 -> 0..1 mean=0.5 std=0.5"),
        ("-> 0..255", "-> 0..255"),
        ("mean=0 std=1", "0..1"),
        ("out=Image:0", "out=Image:0"),
        ("out=Image:0, bgr -> 0..1", "bgr -> 0..1 out=Image:0"),
        ('OUT="my, picture" rgb', 'rgb out="my, picture"'),
        ('out="-> nchw"', 'out="-> nchw"'),
    ],
)
def test_words_stand_in_any_order(said: str, expected: str) -> None:
    assert str(parse_model_io(said)) == expected


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ("mean=0.5,0.5", "mean has 2 numbers where one or three are expected"),
        ("std=0", "std is 0 where numbers above 0 are expected"),
        ("std=0.2,-0.2,0.2", r"std is 0\.2,-0\.2,0\.2 where numbers above 0"),
        (
            "mean=123.675 std=58.395",
            "mean is 123.675 where the scale is 0..1, as it is unless given",
        ),
        ("0..255 -> mean=124,117,104", "mean is 124,117,104 where the scale is 0..1"),
        ("mean=1e9", "mean is 1e9 where numbers up to 1000000 are expected"),
        ("std=1e999", "std is 1e999 where numbers up to 1000000"),
        ("mean=nan", "'mean=nan' is not known"),
        ("mean=", "'mean=' is not known"),
        ("mean=0.5 mean=0.4", "'0.5' and '0.4' exclude each other"),
        ("0..1 -> 0..1 -> 0..1", "it has -> twice"),
        ("0..1 -> bgr", "'bgr' is for both ends and stands before ->"),
        ("out=a out=b", "out= is given twice"),
        ("out=", "'out=' is not known"),
        (" , ", "it is empty"),
    ],
)
def test_what_is_not_in_the_grammar_errors(said: str, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        parse_model_io(said)
    assert str(caught.value).endswith(MODEL_IO_GRAMMAR)


# Pixels


def through(path: Path, values: Values, layout: str = "nchw", channels: int = 3) -> Path:
    """Write a generator that brightens what it gets by 8 % of the scale of ``values``.

    It takes and returns numbers of this form, with no sign of it in the graph.
    """
    g = Graph()
    shape = {"nchw": (-1, 1, 1), "nhwc": (-1,)}[layout]
    mean, std = (np.array(each).reshape(shape) for each in (values.mean, values.std))
    low, high = values.range
    x = g.op("Add", g.op("Mul", "image", g.constant(std)), g.constant(mean))
    x = g.op("Add", x, g.constant((high - low) * 0.08))
    # An Erf of nothing stands between, so that nothing of this counts as the first arithmetic.
    nothing = g.op("Mul", g.op("Erf", "image"), g.constant(0.0))
    x = g.op("Add", x, nothing)
    g.op("Div", g.op("Sub", x, g.constant(mean)), g.constant(std), out="picture")
    sides = ("N", channels, "H", "W") if layout == "nchw" else ("N", "H", "W", channels)
    ends = [[(name, TensorProto.FLOAT, sides)] for name in ("image", "picture")]
    return g.save(path, *ends)


def brightened(frames: Pixels) -> Pixels:
    return np.clip(np.floor(frames.astype(np.float64) + 20.4 + 0.5), 0, 255)


FORMS = [
    (IMAGENET, "rgb"),
    ("0..255 mean=123.675,116.28,103.53 std=58.395,57.12,57.375", "rgb"),
    ("bgr 0..255 mean=103.939,116.779,123.68", "bgr"),
    ("-1..1 std=2", "rgb"),
    ("mean=0.5", "rgb"),
]


@pytest.mark.behaviour(35)
@pytest.mark.parametrize(("said", "order"), FORMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_mean_and_a_deviation_are_undone_at_the_other_end(
    tmp_path: Path, said: str, order: str, layout: str
) -> None:
    values = parse_model_io(said).takes
    assert values is not None
    path = through(tmp_path / "a.onnx", values, layout)
    returned = str(ModelIO(returns=values))
    model = open_model(path, model_io=f"{said} {returned}")
    frames = natural((12, 10), 2)
    assert model.card.adopted == f"{layout} {order} {ModelIO(takes=values)} {returned}"
    assert np.array_equal(run(model.graph, frames), brightened(frames))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_three_means_are_in_the_order_of_the_channels_of_the_model(
    tmp_path: Path, order: str, runtime: str
) -> None:
    """Normalised by M and S, and shown in 0..1: each channel has its own line."""
    need(runtime)
    g = Graph()
    # In 0..1 again where the normalised numbers lie in -1.6..2.4.
    g.clip("image", -1.6, 2.4)
    x = g.op("Mul", g.op("Add", g.nodes[-1].output[0], g.constant(1.6)), g.constant(0.25))
    g.op("Identity", x, out="picture")
    shape = ("N", 3, "H", "W")
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.FLOAT, shape)], [("picture", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    frames = natural((12, 10), 2)
    mean, std = (MEAN, STD) if order == "rgb" else (MEAN[::-1], STD[::-1])
    expected = (np.clip((frames / 255.0 - mean) / std, -1.6, 2.4) + 1.6) / 4 * 255.0
    model = open_model(path, model_io=f"{order} {IMAGENET}")
    backend = open_backend(model, backend=runtime, device="cpu")  # type: ignore[arg-type]
    try:
        out = backend.infer(frames)
    finally:
        backend.close()
    assert np.abs(out - np.floor(expected + 0.5)).max() <= 1
    assert model.card.adopted == f"nchw {order} 0..1 {IMAGENET} -> 0..1"


@pytest.mark.behaviour(35)
@pytest.mark.parametrize(("white", "expected"), [(1.0, "0..1"), (255.0, "0..255")])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_graph_that_normalises_itself_takes_plain_values(
    tmp_path: Path, white: float, expected: str, layout: str
) -> None:
    """Its first Sub and Div are those of ImageNet; stating them as well is reported."""
    shape = (1, 3, 1, 1) if layout == "nchw" else (3,)
    g = Graph()
    x = g.op("Sub", "image", g.constant(white * MEAN.reshape(shape)))
    x = g.op("Div", x, g.constant(white * STD.reshape(shape)))
    g.op("Tanh", g.op("Mul", g.op("Erf", x), g.constant(0.7)), out="picture")
    sides = ("N", 3, "H", "W") if layout == "nchw" else ("N", "H", "W", 3)
    ends = [[(name, TensorProto.FLOAT, sides)] for name in ("image", "picture")]
    path = g.save(tmp_path / "a.onnx", *ends)
    model = open_model(path)
    assert model.card.adopted == f"{layout} rgb {expected} -> -1..1"
    assert f"it takes {expected}, as its first arithmetic shows" in model.read
    normal = (natural((12, 10)) / 255.0 - MEAN) / STD
    erf = np.vectorize(math.erf)(normal)
    out = np.floor((np.tanh(0.7 * erf) + 1) * 127.5 + 0.5)
    assert np.abs(run(model.graph, natural((12, 10))) - out).max() <= 1
    (note,) = grouped(open_model(path, model_io=IMAGENET).card.notes)
    assert note.endswith(f"takes {expected}, so the mean and the std may be applied twice")


def test_values_that_a_mean_leaves_open_are_asked_for_errors(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx", end="conv", range="0..1")
    with pytest.raises(
        ModelError, match=r"which values it returns \(it ends in Conv.*'0\.\.1 mean=0\.5 -> 0\.\.1'"
    ):
        open_model(path, model_io="mean=0.5")
    with pytest.raises(
        ModelError, match=r"which values it takes; add.*'0\.\.1 -> 0\.\.1 mean=0\.5 std=0\.5'"
    ):
        open_model(path, model_io="-> mean=0.5 std=0.5")
    assert open_model(path, model_io="mean=0.5 -> 0..1").card.adopted == (
        "nchw rgb 0..1 mean=0.5 -> 0..1"
    )


def test_three_means_for_one_channel_errors(tmp_path: Path) -> None:
    path = generators.foreign(tmp_path / "a.onnx", channels=1, range="0..1")
    with pytest.raises(ModelError, match=r"its input has one channel.*a mean or a std of 3; pass"):
        open_model(path, model_io=IMAGENET)
    said = "mean=0.5 std=0.25 -> 0..1"
    assert open_model(path, model_io=said).card.adopted == f"nchw rgb 0..1 {said}"


def test_other_values_than_bytes_for_a_file_of_bytes_errors(tmp_path: Path) -> None:
    g = Graph()
    g.op("Identity", "image", out="picture")
    shape = ("N", "H", "W", 3)
    path = g.save(
        tmp_path / "a.onnx",
        [("image", TensorProto.UINT8, shape)], [("picture", TensorProto.UINT8, shape)],
    )  # fmt: skip
    for said in ("0..1", "0..255 mean=128"):
        with pytest.raises(ModelError, match=r"its input is uint8, whose values are 0\.\.255"):
            open_model(path, model_io=said)
    with pytest.raises(ModelError, match="its output is uint8"):
        open_model(path, model_io="0..255 -> 0..1")


@pytest.mark.behaviour(35)
@pytest.mark.parametrize("said", ["0..1 -> 0..1", "0..1", IMAGENET, f"0..1 -> {IMAGENET}"])
def test_what_a_card_says_adopts_the_file_into_the_same_graph(tmp_path: Path, said: str) -> None:
    """So that an engine finds the ONNX that it was built from."""
    path = generators.foreign(tmp_path / "a.onnx", end="tanh")
    model = open_model(path, model_io=said)
    again = open_model(path, model_io=model.card.adopted)
    assert again.card.adopted == model.card.adopted
    assert onnx.ModelProto.FromString(again.graph) == onnx.ModelProto.FromString(model.graph)
