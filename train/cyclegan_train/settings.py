"""Every key of a training run: where it is declared, read, checked, and written as TOML.

A run has three groups of keys (`TrainConfig` for the step, `DataConfig` for the images, `RunConfig`
for the rest), and one flat list of names: no two groups share a name, so recipes, ``--set`` and the
options of the command line all use the same names. This module does not import torch.
"""

from __future__ import annotations

import functools
import json
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.models.checkpoints import run_folder as names
from cyclegan_batch.option_table import Option, option, options_of
from cyclegan_batch.wording import printable

from .config import TrainConfig

Value = bool | int | float | str | None


@dataclass(frozen=True)
class DataConfig:
    """How the images of both folders become batches. Raises ValueError."""

    preprocess: Literal[
        "resize_and_crop",
        "crop",
        "scale_width",
        "scale_width_and_crop",
        "scale_shortside",
        "scale_shortside_and_crop",
        "none",
    ] = field(default="resize_and_crop", metadata=option("The images", metavar="MODE"))
    """Resize to load_size × load_size and crop crop_size × crop_size (resize_and_crop); only crop
    (crop); resize to the width load_size (scale_width), and crop (scale_width_and_crop); the same
    with the shorter side (scale_shortside, scale_shortside_and_crop); neither (none)."""
    load_size: int = 286
    """Side in pixels to which images are resized before the crop."""
    crop_size: int = 256
    """Side in pixels of the square that is cropped at a random place."""
    flip: bool = True
    """Mirror images left to right, each with probability ½."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """``BtoA`` exchanges the folders: A is trainB, and B is trainA."""
    max_dataset_size: int = 0
    """Images of each folder to use at most, the first ones by name; 0: all."""
    serial_batches: bool = False
    """Take the images in the order of their names, instead of at random."""
    batch_size: int = 1
    """Images of each domain in a step; 1 gives the best results."""
    memory_gb: float = 4.0
    """Memory in GB for the decoded images of both domains, as uint8. A domain that does not fit is
    in a temporary file on the disk of the run while it goes on; where that has no room, its images
    are decoded again whenever they are needed."""
    workers: int = 0
    """Threads that decode images; 0: one per CPU core."""
    white: int = 0
    """Level that becomes white in images of more than 8 bits, as in ``translate --white``; 0: the
    highest level of the format."""

    def __post_init__(self) -> None:
        _at_least(self, load_size=1, crop_size=1, batch_size=1, memory_gb=0, workers=0, white=0)
        _at_least(self, max_dataset_size=0)
        if self.preprocess.startswith("resize") and self.load_size < self.crop_size:
            raise ValueError(
                f"load_size = {self.load_size} is less than crop_size = {self.crop_size}, which is "
                "cropped from it"
            )


IDENTITY = "identity"
"""The ``init_from`` that needs no file."""


@dataclass(frozen=True)
class RunConfig:
    """Which files a run writes, and when. Raises ValueError."""

    init_from: str = field(default="", metadata=option("The run", metavar="RUN|FILE|identity"))
    """What the networks begin from, instead of random weights: a run, a folder of the reference
    implementation's, or the checkpoint of a ResNet, a U-Net or a mobile ResNet; with both
    directions and the discriminators where they are there. The keys of the networks are then those
    of the file. With ``identity`` the generators first learn to return their input."""
    init_direction: Literal["both", "AtoB", "BtoA"] = "both"
    """Which generator ``init_from`` is for; the other one begins with random weights. ``both``
    takes both where there are two, and a single one that does not tell its direction as AtoB."""
    init_weights: str = field(default="", metadata=option("The run", metavar="NAME[,NAME]"))
    """In a file of several generators, the name of the one that ``init_from`` means, as in
    ``translate --weights``; or the names of both, that of AtoB first."""
    warm_up: int = 500
    """Steps before the first epoch in which only the discriminators without weights learn, or with
    ``identity`` only the generators; 0: none. They are taken with ``init_from`` only."""
    minutes: float = 0.0
    """Minutes that the run takes, the reading of the images aside: the number of epochs follows
    from its measured speed, and ``n_epochs`` and ``n_epochs_decay`` are only their proportion. A
    resumed run has the minutes that are left, and may be given others. 0: as many epochs as these
    two keys say."""
    seed: int = 0
    """Random seed of the weights, the order of the images, their crops and flips, and the pools."""
    log_every: int = 50
    """Steps whose mean losses make one line of the log."""
    save_latest_every: float = 60.0
    """Seconds between two saves of the state and the latest weights, the most that a killed run
    loses; 0 saves at the end of every epoch instead."""
    save_every_steps: int = 5000
    """Steps after which the state is saved as well; 0: never."""
    save_every_epochs: int = 5
    """Epochs between two numbered checkpoints."""
    keep_last: int = 3
    """Numbered checkpoints to keep, the last ones; 0 keeps all."""
    samples: int = 4
    """Images of each domain in the sheet of samples drawn after every epoch; 0 draws no sheet."""
    sample_video: str = field(default="", metadata=option("The run", metavar="CLIP"))
    """Clip whose first four seconds, in the size of the training, are translated into the folder
    samples after an epoch, or after several where that would take long, and shown in index.html."""
    sample_direction: Literal["AtoB", "BtoA"] = "AtoB"
    """Which generator translates ``sample_video``: of which domain the clip is."""
    reference_names: bool = False
    """Also write the latest weights of all four networks under the reference implementation's names
    (latest_net_G_A.pth, …)."""
    tensorboard: bool = True
    """Also write the losses for TensorBoard, where it is installed."""
    val_fraction: float = 0.05
    """Share of the images of a domain without a val folder (valA, valB) that is held out of the
    training to validate on, where it is 16 images or more; otherwise training images are used."""
    val_images: int = 100
    """Images of each domain that a validation translates, at most; 0 validates nothing."""
    val_truth: str = field(
        default="", metadata=option("The run", metavar="pictures|cityscapes|FILE")
    )
    """What the images of equal names in valA and valB are: ``pictures``, which are scored by PSNR
    and SSIM, or a scene and its label map in the colours of the palette ``cityscapes`` or FILE,
    scored by class IoU. Unset, they are no pairs."""
    inception: str = field(default="", metadata=option("The run", metavar="WEIGHTS"))
    """File with the weights of InceptionV3, to validate by KID and FID."""
    early_stop: int = 0
    """Epochs without a better score after which the run ends; 0: never."""
    threads: int = 0
    """CPU threads of torch; 0 leaves the number to torch."""

    def __post_init__(self) -> None:
        _at_least(
            self,
            warm_up=0,
            minutes=0,
            log_every=1,
            save_latest_every=0,
            save_every_steps=0,
            save_every_epochs=1,
            keep_last=0,
            samples=0,
            threads=0,
            val_fraction=0,
            val_images=0,
            early_stop=0,
        )
        if self.val_fraction > 0.5:
            raise ValueError(f"val_fraction = {self.val_fraction} must be from 0 to 0.5")
        if self.init_weights:
            self._check_init_weights()
        if self.early_stop and not self.val_images:
            raise ValueError(
                "early_stop compares the scores of epochs, and val_images = 0 has none"
            )

    def _check_init_weights(self) -> None:
        given, names = f"init_weights = {self.init_weights!r}", self.init_names
        if not all(names) or len(names) > 2:
            raise ValueError(f"{given} must be one name or two, with a comma between them")
        if self.init_from in ("", IDENTITY):
            raise ValueError(f"{given} is of a file, and init_from names none")
        if len(names) > 1 and self.init_direction != "both":
            raise ValueError(
                f"{given} names both generators, and init_direction = {self.init_direction} is "
                "one; leave one of the two out"
            )

    @property
    def init_names(self) -> tuple[str, ...]:
        """The names in ``init_weights``, empty for none."""
        names = self.init_weights.split(",") if self.init_weights else ()
        return tuple(name.strip() for name in names)


@dataclass(frozen=True)
class Settings:
    """All keys of a run."""

    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.train.cuda_graphs and "crop" not in self.data.preprocess:
            raise ValueError(
                f"cuda_graphs replays one shape, and preprocess = {self.data.preprocess!r} leaves "
                "images of many; use one that crops"
            )
        if self.data.batch_size % self.train.accumulate:
            raise ValueError(
                f"accumulate = {self.train.accumulate}: batch_size = {self.data.batch_size} has no "
                "such number of equal parts; use a batch_size that is a multiple of it"
            )
        if self.run.init_from == IDENTITY and self.train.input_nc != self.train.output_nc:
            raise ValueError(
                f"init_from = 'identity': A has {self.train.input_nc} channels and B "
                f"{self.train.output_nc}, so no generator can return its input; leave it out"
            )

    def flat(self) -> dict[str, Value]:
        """Return every key and its value."""
        return {
            key.name: getattr(group, key.name)
            for group, keys in zip((self.train, self.data, self.run), _groups(), strict=True)
            for key in keys
        }

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.train.n_epochs + self.train.n_epochs_decay


FREE_ON_RESUME = frozenset(
    {
        "n_epochs",
        "n_epochs_decay",
        "minutes",
        "device",
        "memory_gb",
        "workers",
        "threads",
        "tensorboard",
    }
    | {
        "save_latest_every",
        "save_every_steps",
        "save_every_epochs",
        "keep_last",
        "samples",
        "sample_video",
        "sample_direction",
        "reference_names",
    }
    | {"compile", "cuda_graphs", "fused_norm", "checkpoint_activations"}
    | {"val_images", "val_truth", "inception", "early_stop"}
)
"""The keys that may be changed when a run is resumed."""


@functools.cache
def keys() -> dict[str, Option]:
    """Return every key by its name, in order."""
    return {key.name: key for group in _groups() for key in group}


def settings_from(values: Mapping[str, object]) -> Settings:
    """Return the settings with ``values`` in place of the defaults.

    Raises ValueError with the name of a key that is unknown or has a value of the wrong type.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    train, data, run = (
        {key.name: checked[key.name] for key in group if key.name in checked} for group in _groups()
    )
    return Settings(TrainConfig(**train), DataConfig(**data), RunConfig(**run))  # type: ignore[arg-type]


def settings_for(
    run: Path,
    values: Mapping[str, object],
    *,
    resume: bool,
    recipe: Mapping[str, object] = MappingProxyType({}),
) -> Settings:
    """Return the settings of a run: ``values`` over the defaults, or over those it began with.

    Those of ``recipe`` come before ``values``, and before both the keys of the networks that
    ``init_from`` names. Raises ValueError for a key that is wrong, that contradicts ``init_from``,
    or that a resumed run cannot change; OutputError where ``run`` holds a run and ``resume`` is
    false; InputError where neither config.toml nor the state has the keys that the run began with;
    ModelError for an ``init_from`` that cannot be trained.
    """
    state = run / names.CHECKPOINTS / names.STATE
    if not state.exists():
        _refuse_foreign(run)
        return _settings_of_start({**recipe, **values}, given=values)
    if not resume:
        raise OutputError(
            f"{printable(run)}: holds a run already; --resume goes on with it, and another folder "
            "begins another"
        )
    config = run / names.CONFIG
    before = values_from_toml(config) if config.exists() else _values_from_state(state)
    if before.get("init_from"):
        # The file's keys have replaced the recipe's.
        recipe = {name: value for name, value in recipe.items() if name not in _OF_NETWORKS}
    values = {**recipe, **values}
    if values.get("precision") == "auto":
        # It was chosen when the run began, maybe on another machine.
        del values["precision"]
    new = settings_from(values).flat()
    changed = {name for name in values if new[name] != before.get(name, new[name])}
    for name in sorted(changed - FREE_ON_RESUME):
        raise ValueError(
            f"{name} = {new[name]!r}: the run in {printable(run)} began with {before[name]!r}, and "
            "keeps it; leave it out, or begin another run"
        )
    return settings_from(before | {name: new[name] for name in changed})


_OF_NETWORKS = frozenset(
    {"netG", "ngf", "norm", "upsample", "dropout", "netD", "ndf", "n_layers_D"}
)
"""The keys that a run takes from the networks that it begins from."""


def _settings_of_start(values: Mapping[str, object], given: Mapping[str, object]) -> Settings:
    """Return the settings of a new run, with the keys of the networks that it begins from."""
    settings = settings_from(values)
    if settings.run.init_from in ("", IDENTITY):
        return settings
    from .start import keys_of, start_of  # which loads torch

    start = start_of(settings.run)
    checked = {name: _checked(name, value) for name, value in given.items()}
    return settings_from({**values, **keys_of(start, checked)})


def changed_keys(before: Mapping[str, Value], settings: Settings) -> dict[str, tuple[Value, Value]]:
    """Return the keys that a run cannot change and that differ: their values before and now."""
    now = settings.flat()
    return {
        name: (before[name], now[name])
        for name in sorted(before.keys() & now.keys() - FREE_ON_RESUME)
        if before[name] != now[name]
    }


def _values_from_state(state: Path) -> dict[str, Value]:
    """Return the keys that the state of a run holds. Raises InputError."""
    import torch

    try:
        values = torch.load(state, map_location="cpu", weights_only=True, mmap=True)["settings"]
        return {name: _checked(name, value) for name, value in values.items()}
    # A damaged file makes torch raise exceptions of many types; old states hold no settings.
    except Exception as error:
        raise InputError(
            f"{printable(state.parent.parent / names.CONFIG)}: no such file, and {state.name} "
            "does not hold the keys of the run; restore it, or begin another run"
        ) from error


def values_from_toml(path: Path) -> dict[str, Value]:
    """Return the keys of a TOML file.

    Raises ValueError where it is no flat list of known keys, InputError where it cannot be read.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"{printable(path)}: cannot be read: {error.strerror or error}; check the permissions"
        ) from error
    except ValueError as error:  # TOML's own error, and text that is not UTF-8
        raise ValueError(f"{path}: is no TOML: {error}") from error
    try:
        return {name: _checked(name, value) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def value_from_text(name: str, text: str) -> Value:
    """Return the value of a key from its text after ``--set name=``. Raises ValueError."""
    kind = _key(name).kind
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if kind is bool and text.lower() in words:
        return words[text.lower()]
    if kind in (int, float):
        try:
            return _checked(name, kind(text))
        except ValueError as error:
            if kind(0) == 0 and _is_number(text):
                raise ValueError(f"{name} = {text} must be a whole number") from error
    return _checked(name, text)


def toml_from(settings: Settings) -> str:
    """Return the settings as TOML, with the help text of every key as a comment."""
    lines = []
    flat = settings.flat()
    for group in _groups():
        lines += ["", f"# {group[0].group}", ""]
        for key in group:
            text = key.help.replace("``", "")
            text += f" One of: {', '.join(key.choices)}." if key.choices else ""
            lines += [f"# {line}" for line in textwrap.wrap(text, 96)] if text else []
            lines.append(f"{key.name} = {_toml_value(flat[key.name])}")
    return "\n".join(lines[1:]) + "\n"


RECIPES = Path(__file__).parent / "recipes"
"""The recipes that come with the package, one TOML file each."""


def recipe(name: str) -> Path:
    """Return the file of a recipe, given its name or its path. Raises ValueError."""
    in_package = RECIPES / f"{name}.toml"
    if in_package.is_file():
        return in_package
    if Path(name).is_file():
        return Path(name)
    recipes = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise ValueError(f"{name!r} is neither a file nor one of the recipes {recipes}")


def _refuse_foreign(run: Path) -> None:
    """Refuse a folder that is not empty and holds no run. Raises OutputError."""
    if run.exists() and not run.is_dir():
        raise OutputError(f"{printable(run)}: is a file; name a folder for the run")
    if any((run / names.CHECKPOINTS).glob("*/netG_*.safetensors")):
        raise OutputError(
            f"{printable(run)}: holds the generators of a run and not its checkpoints/state.pt, "
            "without which it cannot go on; restore that file, or name a new folder for the run"
        )
    if run.is_dir() and any(run.iterdir()) and not (run / names.DESCRIPTION).exists():
        raise OutputError(
            f"{printable(run)}: holds other things than a run; name a new folder for the run"
        )


def _at_least(config: object, **least: float) -> None:
    for name, least_value in least.items():
        # Not ``value < least_value``, which is false for NaN.
        if not getattr(config, name) >= least_value:
            raise ValueError(f"{name} = {getattr(config, name)} must be {least_value} or more")


@functools.cache
def _groups() -> tuple[tuple[Option, ...], ...]:
    groups = tuple(
        options_of(table, title)
        for table, title in (
            (TrainConfig, "The step"),
            (DataConfig, "The images"),
            (RunConfig, "The run"),
        )
    )
    for key in (key for group in groups for key in group):
        # TOML and --set have a notation for these types only.
        if key.kind not in (bool, int, float, str) or key.default is None:
            raise TypeError(f"{key.name}: {key.kind.__name__} is not supported for a key")
    return groups


def _key(name: str) -> Option:
    if name not in keys():
        import difflib

        near = difflib.get_close_matches(name, keys(), 1)
        hint = f"; do you mean {near[0]}?" if near else ""
        raise ValueError(f"{name!r} is no key of a training{hint}")
    return keys()[name]


def _checked(name: str, value: object) -> Value:
    """Return ``value`` in the type of the key. Raises ValueError."""
    key = _key(name)
    if key.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not key.kind:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise ValueError(f"{name} = {value!r} must be {kinds[key.kind]}")
    if isinstance(value, str) and not _is_unicode(value):
        raise ValueError(
            f"{name} = {printable(value)}: is no Unicode text, so config.toml cannot hold it; "
            "rename the file"
        )
    if key.choices and value not in key.choices:
        raise ValueError(f"{name} = {value!r} is none of {', '.join(key.choices)}")
    assert isinstance(value, bool | int | float | str)
    return value


def _is_unicode(text: str) -> bool:
    """Return whether a text has no bytes of a file name that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _toml_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A string of JSON is one of TOML, but for the control character 7F.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
