"""Read images with their translations, and draw each pair as one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from ...errors import InputError
from ...file_identity import identity_of, identity_of_data
from ...frames import Frame, Size
from ...options import ComparisonLayout
from ...wording import printable
from .. import Dropped
from ..compared_frames import MAKE_AGAIN, ComparedFrames
from .codec import Extras, decode_picture
from .shards import ImageShard, ImageSource, PictureTag, ReadImage

_DRAWN = 8
"""Sizes whose labels are kept: the images of a folder have few."""


class ComparisonSource(ImageSource):
    """The images of a shard, each drawn into one with its translation.

    A comparison has the profile of its source, and no transparency.
    """

    def __init__(
        self,
        shard: ImageShard,
        results: Mapping[Path, Path],
        layout: ComparisonLayout,
        labels: tuple[str, str],
    ) -> None:
        """``results``: the translation of each source, by the comparison, the shard's output."""
        super().__init__(shard)
        self._results = results

        @lru_cache(_DRAWN)
        def drawing(size: Size) -> ComparedFrames:
            return ComparedFrames(layout, size, labels)

        self._drawing = drawing

    def _decode(self, file: ReadImage) -> Frame | Dropped:
        frame = super()._decode(file)
        if isinstance(frame, Dropped):
            return frame
        path = self._results[file.entry.output]
        name = printable(path)
        try:
            # Of what this process has put into a store, its listing does not know the time.
            modified = identity_of([path], hashed=False, asked=True).mtime_ns
            data = path.read_bytes()
            result = decode_picture(data, name, max_pixels=self.shard.max_pixels)
        except (InputError, OSError) as error:
            text = f"{name}: cannot be compared ({error}); {MAKE_AGAIN}"
            return Dropped(printable(file.entry.output), InputError(text))
        height, width = result.pixels.shape[:2]
        tag = frame.tag
        assert isinstance(tag, PictureTag)
        tag = replace(
            tag,
            extras=Extras(icc=tag.extras.icc, colour_chunks=tag.extras.colour_chunks),
            # A comparison is up to date as long as its translation is this one.
            identity=identity_of_data(data, modified, hashed=self.shard.hash_inputs),
        )
        pixels = self._drawing((height, width))(frame.pixels, result.pixels)
        return Frame(frame.index, pixels, tag)
