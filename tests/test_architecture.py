"""The rooms and the direction of imports between them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "models", "metrics", "datamodules", "callbacks", "lightning_modules", "visualisation", "inference", "tools",
    "benchmarks", "tests", "train",
}  # fmt: skip
# What a room may import, of this project and of Lightning.
ALLOWED = {
    "models": {"models", "errors"},
    "metrics": {"metrics", "errors"},
    "datamodules": {"datamodules", "errors", "pytorch_lightning"},
    "visualisation": {"visualisation", "errors"},
}
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}


def imported(file: Path) -> set[str]:
    """Top-level names of everything that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        foreign = imported(file) & (ROOMS | LIGHTNING) - ALLOWED[room]
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


def test_train_is_imported_by_tests_only():
    for room in ROOMS - {"tests", "train"}:
        for file in (ROOT / room).rglob("*.py"):
            assert "train" not in imported(file), file


def test_no_file_has_outgrown_its_room():
    for room in ROOMS - {"train"}:
        for file in (ROOT / room).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 500, f"{file.relative_to(ROOT)}: split it"
