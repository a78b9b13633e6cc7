"""Parts of a job (``--shard I/N``): which entries fall to which, and that none is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from cyclegan_batch import TranslateOptions
from cyclegan_batch.job.fingerprint import pixel_options
from cyclegan_batch.job.inputs import InputTree, find_inputs
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.wording import grouped
from tests.job.test_inputs import touch

SUFFIXES = [".png", ".jpg", ".mp4", ".json", ".psd"]


def parts_of(*arguments: object, count: int, **options: object) -> list[InputTree]:
    """Return the parts of a job."""
    return [
        find_inputs(*arguments, part=(number, count), **options)  # type: ignore[arg-type]
        for number in range(1, count + 1)
    ]


@pytest.mark.behaviour(13)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("copy_others", [False, True])
def test_parts_are_disjoint_balanced_and_together_the_whole_job(
    tmp_path: Path, seed: int, copy_others: bool
) -> None:
    chosen = random.Random(seed)
    for number in range(chosen.randint(1, 60)):
        folder = chosen.choice(["", "a", "b/c"])
        touch(tmp_path / "in" / folder / f"{number}{chosen.choice(SUFFIXES)}")
    touch(tmp_path / "in" / "last.png")
    whole = find_inputs([tmp_path / "in"], tmp_path / "out", copy_others=copy_others)
    for count in (1, 2, 3, chosen.randint(4, 80)):
        parts = parts_of([tmp_path / "in"], tmp_path / "out", count=count, copy_others=copy_others)
        together = Counter(entry for part in parts for entry in part.entries)
        assert together == Counter(whole.entries)
        for kind in {entry.kind for entry in whole.entries}:
            sizes = [sum(entry.kind == kind for entry in part.entries) for part in parts]
            assert max(sizes) - min(sizes) <= 1
        order = {entry: number for number, entry in enumerate(whole.entries)}
        for part in parts:
            places = [order[entry] for entry in part.entries]
            assert places == sorted(places)


def test_images_beside_labels_or_videos_do_not_all_fall_to_one_part(tmp_path: Path) -> None:
    for number in range(8):
        for suffix in (".jpg", ".json", ".mp4"):
            touch(tmp_path / "in" / f"{number}{suffix}")
    for count in (2, 3):
        for part in parts_of([tmp_path / "in"], tmp_path / "out", count=count, copy_others=True):
            kinds = Counter(entry.kind for entry in part.entries)
            assert set(kinds) == {"image", "video", "other"}


def test_entry_k_falls_to_part_k_modulo_n(tmp_path: Path) -> None:
    for number in range(7):
        touch(tmp_path / "in" / f"{number}.png")
    parts = parts_of([tmp_path / "in"], tmp_path / "out", count=3)
    names = [[entry.source.stem for entry in part.entries] for part in parts]
    assert names == [["0", "3", "6"], ["1", "4"], ["2", "5"]]
    # What exists does not move an entry to another part.
    touch(tmp_path / "out" / "0.png")
    assert parts_of([tmp_path / "in"], tmp_path / "out", count=3) == parts


def test_parts_without_an_entry_say_so(tmp_path: Path) -> None:
    clip = touch(tmp_path / "a.mp4")
    output = tmp_path / "b.mp4"
    first, *others = parts_of([clip], output, count=3)
    assert first == InputTree((Entry("video", clip, output),), None)
    for number, part in enumerate(others, 2):
        assert part.entries == ()
        assert grouped(part.notes) == (
            f"--shard {number}/3: no input falls to this part: nothing to do",
        )


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "1/0", "-1/4", "1/4/2", "a/b", "1/ 4", ""])
def test_a_part_that_is_none_errors(shard: str) -> None:
    with pytest.raises(ValueError, match=r"^shard must be I/N, a part from 1 and the number of"):
        TranslateOptions(shard=shard)


@pytest.mark.behaviour(21)
def test_which_part_it_fell_to_says_nothing_of_an_output() -> None:
    for kind in ("image", "video", "pattern"):
        assert "shard" not in {option.name for option in pixel_options(kind)}


def test_a_part_is_read_from_its_notation() -> None:
    assert TranslateOptions().part == (1, 1)
    assert TranslateOptions(shard="3/16").part == (3, 16)
