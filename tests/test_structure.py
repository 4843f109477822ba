"""The architecture's rules: imports point one way, and what must not be used is not."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "hidiff").rglob("*.py"))
LAYERS = [
    ("utils",),
    ("registry",),
    ("options",),
    ("kernels",),
    ("diffusion", "losses", "metrics"),
    ("archs",),
    ("models",),
    ("synthesis",),
    ("data",),
    ("weights",),
    ("restore",),
    ("evaluation",),
    ("engine",),
    ("prepare",),
    ("report",),
    ("benchmark",),
    ("cli",),
    ("__main__",),
]
"""The package layout, lowest folder first: each imports only from itself and from below."""

HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}


@functools.cache
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


def test_every_room_has_its_height():
    rooms = {path.relative_to(ROOT / "hidiff").parts[0].removesuffix(".py") for path in MODULES}
    assert rooms - {"__init__"} == set(HEIGHT)


def test_every_folder_is_a_package():
    """The wheel has no others."""
    assert [path for path in MODULES if not (path.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT / "hidiff").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported(path):
        if name.startswith("hidiff.") and (theirs := part(name)) in HEIGHT:
            lower = HEIGHT[theirs] < HEIGHT[own]
            assert lower or theirs == own, f"{path.name} imports {name}"


def test_only_the_kernels_know_of_triton():
    for path in MODULES:
        if path.parent.name != "kernels":
            assert not any(name.split(".")[0] == "triton" for name in imported(path)), path


def test_networks_and_diffusion_know_no_options():
    for path in MODULES:
        if path.parent.name in ("archs", "diffusion", "losses", "metrics", "kernels"):
            assert not any(name.startswith("hidiff.options") for name in imported(path)), path


def test_torch_distributed_stays_in_one_place():
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if any(
            name.startswith(("torch.distributed", "torch.nn.parallel")) for name in imported(path)
        )
    }
    assert users == {"hidiff/utils/distributed.py"}


def test_torchvision_is_imported_only_where_it_is_used():
    for path in [*MODULES, ROOT / "train.py", ROOT / "test.py"]:
        top = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.parse(path.read_text()).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        assert not any(name.startswith("torchvision") for name in top), path
