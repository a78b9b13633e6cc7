"""The imports, room by room: every arrow runs one way, and docs/design.md draws them all."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import REPOSITORY

MEDIA = {
    "demux": set(),
    "video": {"animations", "demux", "images", "mux"},
    "mux": {"demux"},
    "animations": {"demux", "images"},
    "images": set(),
    "tars": {"images"},
}
"""What each room of media may import of the others."""

ROOTS = {
    "cyclegan_batch": REPOSITORY,
    "cyclegan_export": REPOSITORY / "export",
    "cyclegan_train": REPOSITORY / "train",
}
"""The three packages and the folder that each stands in."""

GROUND = {
    "_version", "errors", "file_identity", "files", "frames", "listings", "machine",
    "option_table", "options", "remote", "wording",
}  # fmt: skip
"""Modules at the root that everything may import, and that import one another only."""

BELOW: dict[str, set[str]] = {
    "models": set(),
    "media": set(),
    "temporal": set(),
    "backends": {"models"},
    "opening": {"models"},
    "generator": {"models", "backends", "opening"},
    "job": {"models", "media", "temporal", "backends", "generator", "opening"},
    "inspection": {"models", "media"},
    "flicker": {"media", "temporal"},
    "doctor": {"backends"},
    "api": {"models", "media", "backends", "job"},
    "demo": {"models", "media", "api"},
    "bench": {"models", "media", "backends", "opening", "job", "api"},
    "cli": {"api", "backends", "bench", "demo", "doctor", "flicker", "inspection", "job"}
    | {"media", "models"},
    "cyclegan_export": {"models", "media", "backends"},
    "cyclegan_train": {"models", "media"},
}
"""What each room may import besides the ground floor; nothing above it is in its list."""

MOST_ANYS = 66
"""The product uses ``Any`` less often than this, mostly for what a foreign package returns."""

HOOKS = {"cli", "opening"}
"""The rooms that may import a wing (export, train), inside a function only."""

Module = tuple[str, ...]


@functools.cache
def modules() -> dict[Module, Path]:
    """Return every module of the three packages by its dotted name."""
    found = {}
    for package, root in ROOTS.items():
        for path in (root / package).rglob("*.py"):
            name = path.relative_to(root).with_suffix("").parts
            found[name[:-1] if name[-1] == "__init__" else name] = path
    return found


@functools.cache
def imports(module: Module) -> list[tuple[Module, bool]]:
    """Return the modules of ours that ``module`` imports, and whether as it is loaded."""
    return list(_imports(module, modules()[module], set(modules())))


def _imports(module: Module, path: Path, known: set[Module]) -> Iterator[tuple[Module, bool]]:
    tree = ast.parse(path.read_text())
    later = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) or _only_for_types(outer)
        for node in ast.walk(outer)
    }
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            targets = [
                (*base, alias.name) if (*base, alias.name) in known else base
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            if target[0] in ROOTS:
                yield target, id(node) not in later


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room(module: Module) -> str:
    """Return the room of a module: its folder or file at the root of the core, or its wing."""
    if module[0] != "cyclegan_batch":
        return module[0]
    return module[1] if len(module) > 1 else "cyclegan_batch"


def arrows() -> dict[str, set[str]]:
    """Return which rooms each room imports, itself and the ground floor left out."""
    drawn: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        for target, _ in imports(module):
            drawn[room(module)].add(room(target))
    return {name: targets - GROUND - {name} for name, targets in drawn.items()}


@pytest.mark.parametrize("name", sorted(BELOW))
def test_a_room_imports_only_what_lies_below_it(name):
    wings = {"cyclegan_export", "cyclegan_train"} if name in HOOKS else set()
    assert arrows()[name] <= BELOW[name] | wings


def test_the_table_of_rooms_is_complete_and_has_no_circle():
    rooms = {room(module) for module in modules()} - GROUND
    assert rooms == {*BELOW, "cyclegan_batch", "__main__"}
    done: set[str] = set()
    while len(done) < len(BELOW):
        ready = {name for name, below in BELOW.items() if below <= done} - done
        assert ready, f"a circle among {set(BELOW) - done}"
        done |= ready


def test_the_ground_floor_imports_nothing_but_itself():
    drawn = arrows()
    for name in GROUND:
        assert not drawn.get(name), name


def test_no_two_modules_import_each_other_as_they_are_loaded():
    loads = {
        module: {target for target, at_load in imports(module) if at_load} - {module}
        for module in modules()
    }
    done: set[Module] = set()
    while True:
        # A package is loaded before its modules; importing one from it is no circle.
        ready = {
            module
            for module, targets in loads.items()
            if all(target in done or module[: len(target)] == target for target in targets)
        } - done
        if not ready:
            break
        done |= ready
    assert not set(loads) - done, "these import each other in a circle"


def test_the_core_imports_its_wings_in_functions_of_two_rooms_only():
    for module, path in modules().items():
        for target, at_load in imports(module):
            if module[0] == "cyclegan_batch" and target[0] != "cyclegan_batch":
                assert room(module) in HOOKS, f"{path} imports {'.'.join(target)}"
                assert not at_load, f"{path} imports {'.'.join(target)} as it is loaded"


def test_no_wing_imports_the_other():
    drawn = arrows()
    assert "cyclegan_train" not in drawn["cyclegan_export"]
    assert "cyclegan_export" not in drawn["cyclegan_train"]


def test_the_rooms_of_media_import_one_way():
    drawn: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        if module[:2] == ("cyclegan_batch", "media") and len(module) > 3:
            drawn[module[2]] |= {
                target[2]
                for target, _ in imports(module)
                if target[:2] == module[:2] and len(target) > 3
            } - {module[2]}
    assert set(drawn) == set(MEDIA)
    assert {name: sorted(targets - MEDIA[name]) for name, targets in drawn.items()} == {
        name: [] for name in MEDIA
    }


def test_the_families_know_networks_and_one_another_only():
    room = ("cyclegan_batch", "models", "checkpoints", "families")
    for module, path in modules().items():
        if module[:4] == room:
            for target, _ in imports(module):
                known = target[:4] == room or target == (*room[:2], "networks")
                assert known or target[1] in GROUND, f"{path} imports {'.'.join(target)}"


def test_the_product_seldom_uses_any():
    counts = {}
    for path in modules().values():
        nodes = ast.walk(ast.parse(path.read_text()))
        count = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
        if count:
            counts[str(path.relative_to(REPOSITORY))] = count
    most_first = sorted(counts.items(), key=lambda each: -each[1])
    assert sum(counts.values()) < MOST_ANYS, most_first
