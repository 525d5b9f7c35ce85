"""``python -m pirf_ray`` lists the commands; ``pirf-ray COMMAND ...`` runs one."""

import ast
import runpy
import sys
from pathlib import Path

import pirf_ray

ORDER = ("data", "pretrain", "import_edm", "train", "generate", "evaluate", "summary", "benchmark")
"""Commands of this package, in the order of the work."""
SWEEPS = ("sweep", "report")
"""Commands of the package ``tune``."""


def main(argv: list[str] | None = None) -> None:
    """List the commands, or run the named command with the rest of the arguments."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return
    name = arguments[0].replace("-", "_")
    if name not in (*ORDER, *SWEEPS):
        print(f"error: unknown command {arguments[0]!r}; known: {', '.join((*ORDER, *SWEEPS))}", file=sys.stderr)
        raise SystemExit(2)
    package = "tune" if name in SWEEPS else "pirf_ray"
    pirf_ray.refuse_hidden(package)
    sys.argv = [f"{package}.{name}", *arguments[1:]]
    runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)


def listing() -> str:
    """Return one line per command, from its docstring."""
    root = Path(__file__).parent.parent
    rows = [(f"python -m {module}", summary_of(root / f"{module.replace('.', '/')}.py")) for module in modules()]
    width = max(len(command) for command, _ in rows)
    return "\n".join(f"{command:{width}}  {summary}" for command, summary in rows)


def modules() -> list[str]:
    """Return the modules of the commands."""
    return [*(f"pirf_ray.{name}" for name in ORDER), *(f"tune.{name}" for name in SWEEPS)]


def summary_of(file: Path) -> str:
    """Return what a command's docstring says after its name."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    return docstring.splitlines()[0].rpartition("``: ")[2]


if __name__ == "__main__":
    main()
