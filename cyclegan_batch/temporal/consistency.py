"""How much a translated video flickers, and what a filter against it has cost.

Numbers of a clip, each the sum or mean over all its frames, with two frames in memory at a time.
"""

from __future__ import annotations
