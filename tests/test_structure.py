"""The architecture's rules: imports point one way, and what must not be used is not."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "hidiff").rglob("*.py"))
LAYERS = {
    "console": 0,
    "errors": 0,
    "files": 0,
    "torch_file": 0,
    "typecheck": 0,
    "yaml_file": 0,
    "registry": 0,
    "options": 0,
    "archs": 1,
    "diffusion": 1,
    "losses": 1,
    "metrics": 1,
    "data": 1,
    "models": 2,
    "engine": 3,
    "cli": 3,
}


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str:
    """'hidiff.archs.mixer' → 'archs'."""
    return name.split(".")[1]


def test_every_part_has_a_layer():
    parts = {path.relative_to(ROOT / "hidiff").parts[0].removesuffix(".py") for path in MODULES}
    assert parts - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = path.relative_to(ROOT / "hidiff").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported(path):
        if not name.startswith("hidiff.") or part(name) not in LAYERS:
            continue
        theirs = part(name)
        allowed = (
            theirs == own or LAYERS[theirs] < LAYERS[own] or LAYERS[own] == 0 == LAYERS[theirs]
        )
        assert allowed or own == "cli", f"{path.name} imports {name}"


def test_networks_and_diffusion_know_no_options():
    for path in MODULES:
        if path.parent.name in ("archs", "diffusion", "losses", "metrics"):
            assert not any(name.startswith("hidiff.options") for name in imported(path)), path


def test_torch_distributed_stays_in_one_place():
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(
            name.startswith(("torch.distributed", "torch.nn.parallel")) for name in imported(path)
        )
    }
    assert users == {"hidiff/engine/distributed.py"}


def test_torchvision_is_imported_only_where_it_is_used():
    for path in [*MODULES, ROOT / "train.py", ROOT / "test.py"]:
        top = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not any(name.startswith("torchvision") for name in top), path
