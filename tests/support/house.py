"""The shape of the code: ``python tests/support/house.py [ROOT]`` prints it; tests/test_layers.py holds it.

Imports are read from the source, those inside functions included. Rooms stand in an order; a room imports only rooms below.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

PACKAGES = ("envs", "pirf_ray", "tune")
COMMANDS = ("data", "pretrain", "import_edm", "train", "generate", "reconstruct", "evaluate", "summary", "benchmark")
ORDER: tuple[tuple[str, ...], ...] = (
    ("envs.common",),
    ("envs.numerics",),
    ("envs.pdes",),
    ("envs.rewards", "envs.data"),
    ("envs",),
    ("pirf_ray.diffusion",),
    ("pirf_ray.zoo",),
    ("pirf_ray.metrics", "pirf_ray.rewards"),
    ("pirf_ray.steering",),
    ("pirf_ray.learning",),
    ("pirf_ray.training", "pirf_ray.pretraining"),
    ("pirf_ray.evaluation",),
    ("pirf_ray.methods", "pirf_ray.distributed"),
    ("pirf_ray.cli",),
    ("pirf_ray.comparison", "pirf_ray.api"),
    ("pirf_ray.studies", "tune"),
    ("pirf_ray.commands",),
)
"""Rooms from the ground floor up. Rooms of one floor do not import each other."""
RANKS = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
RAY = ("pirf_ray.distributed", "pirf_ray.studies", "tune")
"""Rooms that may import Ray."""
OPTUNA = ("pirf_ray.comparison.tuning", "tune")
"""Modules that may import Optuna."""


def files(root: Path) -> Iterator[Path]:
    """Yield the source files of the three packages."""
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def module_of(file: Path, root: Path) -> str:
    """Return the dotted name of a file's module."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the room of a module: its package, a room of envs or pirf_ray, or the commands."""
    parts = module.split(".")
    if parts[0] == "pirf_ray" and len(parts) == 2 and parts[1] in COMMANDS:
        return "pirf_ray.commands"
    if parts[0] == "tune":
        return "tune"
    name = ".".join(parts[:2])
    return name if name in RANKS else parts[0]


@lru_cache(maxsize=4)
def _trees(root: Path) -> dict[str, ast.Module]:
    return {module_of(file, root): ast.parse(file.read_text()) for file in files(root)}


def imports_of(tree: ast.Module, known: Iterable[str]) -> set[str]:
    """Return the modules that a tree imports: of ours the module itself, of others their top-level name."""
    ours, found = set(known), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name not in ours and "." in name:
                name = name.rpartition(".")[0]
            found.add(name if name in ours else name.split(".")[0])
    return found


def graph(root: Path) -> dict[str, set[str]]:
    """Return the imports of each module."""
    trees = _trees(root)
    return {module: imports_of(tree, trees) - {module} for module, tree in trees.items()}


def upward(modules: Mapping[str, set[str]]) -> list[str]:
    """Return the imports that break the order, as ``importer -> imported``."""
    broken = []
    for module, imported in modules.items():
        own = room_of(module)
        for name in sorted(imported):
            other = room_of(name)
            if other == own or other not in RANKS:
                continue
            if own == "pirf_ray" or other == "pirf_ray":  # the package's own __init__ and __main__ are no rooms
                continue
            if RANKS[other] >= RANKS[own]:
                broken.append(f"{module} -> {name}")
    return broken


def outside(modules: Mapping[str, set[str]], package: str, allowed: tuple[str, ...]) -> list[str]:
    """Return the modules outside ``allowed`` that import a third-party package."""
    inside = tuple(f"{room}." for room in allowed)
    return [m for m, imported in modules.items() if package in imported and not (m in allowed or m.startswith(inside))]


def imported_commands(modules: Mapping[str, set[str]]) -> list[str]:
    """Return the imports of commands."""
    commands = {f"pirf_ray.{name}" for name in COMMANDS}
    return [f"{module} -> {name}" for module, imported in modules.items() for name in sorted(imported & commands)]


def levels(modules: Mapping[str, set[str]]) -> int:
    """Return the length of the longest chain of imports among our modules; a cycle counts once."""

    @cache
    def depth(module: str) -> int:
        if module in path:
            return 0
        path.append(module)
        made = 1 + max((depth(name) for name in modules[module] if name in modules and name not in path), default=0)
        path.pop()
        return made

    path: list[str] = []
    return max(depth(module) for module in modules)


@dataclass(frozen=True)
class Function:
    """A function or class of the source."""

    where: str
    lines: int
    documented: bool
    public: bool
    is_class: bool


def functions(root: Path) -> list[Function]:
    """Return every function, method and class."""
    return [found for module, tree in _trees(root).items() for found in _definitions(tree, module, public=True)]


def _definitions(node: ast.AST, where: str, *, public: bool) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = f"{where}.{child.name}"
        shown = public and not child.name.startswith("_")
        is_class = isinstance(child, ast.ClassDef)
        lines = (child.end_lineno or child.lineno) - child.lineno + 1
        yield Function(name, lines, ast.get_docstring(child) is not None, shown, is_class)
        if is_class:
            yield from _definitions(child, name, public=shown)


def undocumented(root: Path) -> list[str]:
    """Return the public functions and classes of modules without a docstring (methods are the class's matter)."""
    made = []
    for module, tree in _trees(root).items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                made.append(f"{module}.{node.name}")
    return made


def strict_messages(root: Path) -> int:
    """Return the number of messages of ``mypy --strict``."""
    run = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *(f"-p{name}" for name in PACKAGES)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    return sum(": error:" in line for line in done.stdout.splitlines())


def main(argv: list[str]) -> None:
    """Print the table."""
    root = Path(argv[0]).resolve() if argv else Path(__file__).parents[2]
    modules, sizes = graph(root), {file: len(file.read_text().splitlines()) for file in files(root)}
    file, found = max(sizes, key=lambda f: sizes[f]), functions(root)
    longest = max((f for f in found if not f.is_class), key=lambda f: f.lines)
    rows = {
        "modules at the root of pirf_ray": len(list((root / "pirf_ray").glob("*.py"))),
        "modules in all": len(modules),
        "import levels": levels(modules),
        "upward imports": len(upward(modules)),
        "imports of commands": len(imported_commands(modules)),
        "longest file": f"{sizes[file]} ({file.relative_to(root)})",
        "longest function": f"{longest.lines} ({longest.where})",
        "lines of README.md": len((root / "README.md").read_text().splitlines()),
        "public functions and classes without docstring": len(undocumented(root)),
        "mypy --strict messages": strict_messages(root),
    }
    for name, value in rows.items():
        print(f"{name:48} {value}")


if __name__ == "__main__":
    main(sys.argv[1:])
