"""``python docs/print_reference.py``: print the reference pages from the code; with ``--check`` name a page that is not current."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pirf_ray
from envs.common.parts import settings_of
from envs.common.registry import Registry
from envs.data import datasets
from envs.environments import DenoisingEnv, DenoisingVectorEnv
from envs.pdes import REGISTRY, make_pde
from envs.rewards import REWARDS
from pirf_ray.__main__ import modules, summary_of
from pirf_ray.cli.pretraining import PretrainArguments
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.sampling import SAMPLERS
from pirf_ray.evaluation import samples
from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.parameters import PARAMETERS
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts import MAKERS
from pirf_ray.learning.updates import TermMetrics, UpdateMetrics
from pirf_ray.methods import METHODS, Recipe
from pirf_ray.metrics import METRICS, results
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.steering import FINISHERS, STEERERS
from pirf_ray.training.guard import GuardMetrics
from pirf_ray.training.presets import PRESETS
from pirf_ray.training.records import RolloutMetrics, Timing, UpdateRecord
from pirf_ray.training.settings import TrainConfig

MERGED = "types"
"""Module of settings classes that are merged from those of several parts, and have no source."""
CHOSEN: dict[str, Registry[Any]] = {
    "reward": REWARDS,
    "objective": OBJECTIVES,
    "maker": MAKERS,
    "credit": CREDITS,
    "parameters": PARAMETERS,
    "regularizers": REGULARIZERS,
}
"""Registries of the parts that flags choose."""

DOCS = Path(__file__).parent
PRINTED = "Printed from the code by `python docs/print_reference.py`. Do not edit this page.\n"
STUDIES = ("pirf_ray.studies.hacking", "pirf_ray.studies.scaling", "pirf_ray.studies.throughput")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A field of a dataclass, as its source writes it."""

    name: str
    flag: str
    shown: str
    """Default value as a command line writes it."""
    meaning: str
    value: Any
    """Default value; None if there is none."""


def attributes(cls: type) -> Iterator[Attribute]:
    """Yield the fields of a dataclass with the docstrings under them, inherited fields first."""
    known = {f.name: f for f in fields(cls)}
    for owner in (owner for owner in reversed(cls.__mro__) if is_dataclass(owner) and owner.__module__ != MERGED):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or "Suppress" in ast.unparse(node.annotation):
                continue
            name, default = ast.unparse(node.target), ast.unparse(node.value) if node.value else ""
            value = default_of(known[name])
            shown = "the machine's" if "get_num_threads" in default else show(value)
            written = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            meaning = written or (docstring(type(value)) if is_dataclass(value) else name.replace("_", " ").capitalize() + ".")
            flag = name.upper() if "Positional" in ast.unparse(node.annotation) else f"--{name.replace('_', '-')}"
            yield Attribute(name=name, flag=flag, shown=shown, meaning=" ".join(str(meaning).split()), value=value)


def default_of(field: Field[Any]) -> Any:
    """Return a field's default, made if it has a factory; None if it has neither."""
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def show(value: Any) -> str:
    """Return a default as a command line writes it."""
    if value is None or value in ("", (), {}):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def attributes_table(head: str, cls: type, prefix: str = "") -> str:
    """Return names and meanings of a dataclass's fields."""
    return table((head, "meaning"), [(f"`{prefix}{a.name}`", a.meaning) for a in attributes(cls)])


def docstring(thing: Any) -> str:
    """Return a docstring without its indentation."""
    return inspect.cleandoc(thing.__doc__ or "")


def template(name: str) -> str:
    """Return the hand-written part of a page."""
    return (DOCS / "templates" / f"{name}.txt").read_text()


def flags(cls: type, level: str) -> str:
    """Return the flags of a dataclass; groups of flags get headings of their own."""
    found = list(attributes(cls))
    own = [(f"`{a.flag}`", a.shown, a.meaning) for a in found if not is_dataclass(a.value)]
    parts = [table(("flag", "default", "meaning"), own)] if own else []
    for a in found:
        if isinstance(a.value, TrainConfig):
            parts.append("Every setting of a run is a flag too: [settings.md](settings.md).\n")
        elif is_dataclass(a.value) and fields(a.value):
            group = type(a.value)
            parts.append(f"{level} {a.name}\n\n{docstring(group)}\n\n{flags(group, level + '#')}")
    return "\n".join(parts)


def commands() -> Iterator[str]:
    """Yield the commands with their flags."""
    yield template("commands")
    for name in (*modules(), *STUDIES):
        module = import_module(name)
        said = summary_of(Path(inspect.getfile(module))) or docstring(module).splitlines()[0]
        named = [thing for key, thing in vars(module).items() if key.endswith("Arguments")]
        (cls,) = [PretrainArguments] if name == "pirf_ray.pretrain" else named
        yield f"## `python -m {name}`\n\n{said[0].upper()}{said[1:].rstrip('.')}.\n\n{docstring(cls)}\n\n{flags(cls, '###')}"


def part_settings() -> Iterator[str]:
    """Yield the settings of each registered part that has any."""
    yield "## Settings of parts\n\nA part's settings are flags if it is chosen. The tables above have those of the default parts.\n"
    for flag, registry in CHOSEN.items():
        for name, cls in registry.items():
            if fields(settings_of(cls)):
                yield f"### `--{flag} {name}`\n\n{docstring(cls).splitlines()[0]}\n\n{flags(settings_of(cls), '####')}"


def settings() -> Iterator[str]:
    """Yield the settings of a run and what each preset changes."""
    yield f"{docstring(TrainConfig)}\n\n{template('settings')}"
    yield flags(TrainConfig, "##")
    yield from part_settings()
    yield "## Presets\n\nWhat each preset changes against the defaults above.\n"
    rows: dict[tuple[str, str], list[str]] = {}
    for name, preset in PRESETS.items():
        for env in pirf_ray.SHIPPED_ENVS:
            rows.setdefault((name, ", ".join(changes(preset(env)))), []).append(env)
    yield table(("preset", "env", "settings"), [(name, ", ".join(envs), changed) for (name, changed), envs in rows.items()])


def changes(config: Any, default: Any = None) -> Iterator[str]:
    """Yield the settings that differ from their defaults, groups entered."""
    default = default or TrainConfig()
    for f in fields(config):
        ours, theirs = getattr(config, f.name), getattr(default, f.name)
        if is_dataclass(ours):
            yield from changes(ours, theirs)
        elif ours != theirs and f.name != "env":
            yield f"{f.name} {ours}"


def api() -> Iterator[str]:
    """Yield the public names of the package."""
    yield "`import pirf_ray` loads each name when it is first used.\n"
    for name in pirf_ray.__all__:
        thing = getattr(pirf_ray, name)
        yield f"## `{name}`\n\n" + ("The package's version.\n" if isinstance(thing, str) else described(name, thing))
    for name in ("generate", "evaluate", "sample", "to"):
        yield f"## `Model.{name}`\n\n{described(name, getattr(pirf_ray.Model, name))}"


def described(name: str, thing: Any) -> str:
    """Return the docstring of a class with its fields, or of a function with its signature."""
    if inspect.isclass(thing):
        return f"{docstring(thing)}\n\n{attributes_table('field', thing)}"
    source = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    assert isinstance(source, ast.FunctionDef)
    result = f" -> {ast.unparse(source.returns)}" if source.returns else ""
    signature = ", ".join(part for part in ast.unparse(source.args).split(", ") if part != "self")
    return f"```text\n{name}({signature}){result}\n```\n\n{docstring(thing)}\n"


def environments() -> Iterator[str]:
    """Yield the registered environments by Gymnasium's headings."""
    yield template("environments")
    for title, env in (("One sample", DenoisingEnv), ("A batch", DenoisingVectorEnv)):
        demoted = docstring(env).replace("\n## ", "\n### ")
        yield f"## {title}: `{env.__name__}`\n\n{demoted}\n"
    for env_id in pirf_ray.SHIPPED_ENVS:
        pde, cls = make_pde(env_id), REGISTRY[env_id]
        own = {name: show(p.default) for name, p in inspect.signature(DenoisingEnv).parameters.items()}
        parameters = [f"| `{name}` | {value:g} | parameter of the PDE |\n" for name, value in cls.default_parameters.items()]
        names = ("env_id", "equation", "units", "solver", "default_operator", "unrewarded_operator")
        yield template("environment").format(
            **{name: getattr(cls, name) for name in names},
            channels=", ".join(cls.channels),
            docstring=f"{docstring(sys.modules[cls.__module__])}\n\n{docstring(cls)}",
            shape=pde.shape,
            operators=", ".join(f"`{name}`" for name in pde.operators),
            conditions=", ".join(f"`{name}`" for name in pde.conditions) or "none",
            arguments={**own, "resolution": pde.resolution},
            parameters="".join(parameters),
        )


def metrics() -> Iterator[str]:
    """Yield the stable names of all measured numbers."""
    yield "The names in JSON are stable. In Python the same numbers are typed attributes.\n"
    yield "## Evaluations: `result.json`, `evaluate --out`\n\nWhat was measured, `evaluation.result`:\n"
    yield attributes_table("name", results.EvaluationResult)
    yield attributes_table("name", results.SamplerRecord, "sampler.")
    yield "Then each set by name (`base`, `base corrected`, `tuned`, `data`), in Python `evaluation.result[SET]`:\n"
    owners = (results.FidelityMetrics, results.ResidualMetrics, results.SetMetrics)
    known = {a.name: a.meaning for cls in owners for a in attributes(cls)}
    known["trivial_median"] = known["resolve_trivial"]
    for channels, name in results.RATIOS.items():
        known[f"{name}/CHANNEL"] = known[channels]
    known["metric/NAME"] = known["named"]
    rows = []
    for name in example_set().to_json():
        *_, group, number = f"/{name}".split("/")
        rows.append((f"`{name}`", known.get(f"{group}/{number}") or known[number]))
    yield table(("name", "meaning"), rows)
    yield "Metrics by name, for `evaluate --metrics NAME` (`train --list metric`); your own: `module:name`:\n"
    yield table(("name", "meaning"), [(f"`{name}`", found.line) for name, found in METRICS.items()])  # type: ignore[attr-defined]
    yield "## Updates: `metrics.jsonl`, `on_record`\n"
    for cls in (UpdateRecord, UpdateMetrics, TermMetrics, RolloutMetrics, Timing, GuardMetrics, Drift, DriftLimits):
        yield f"`{cls.__name__}`: {docstring(cls)}\n\n{attributes_table('attribute', cls)}"
    yield "The names in `metrics.jsonl` of an update with a guard evaluation:\n"
    yield "\n".join(f"- `{name}`" for name in example_record().to_json()) + "\n"


def filled(cls: type, **given: Any) -> Any:
    """Return a dataclass with 0 in every field that is not given."""
    return cls(**{f.name: given.get(f.name, 0) for f in fields(cls)})


def example_set() -> results.SetMetrics:
    """Return metrics of a set that have every number."""
    ratios = {name: {"CHANNEL": 0.0} for name in results.RATIOS}
    given: dict[str, Any] = {"residuals": {"OPERATOR": filled(results.ResidualMetrics)}}
    given |= {"conditions": {"NAME": filled(results.Estimate)}, "resolve": filled(results.Estimate)}
    given |= {"named": {"NAME": 0.0}}
    made: results.SetMetrics = filled(results.SetMetrics, fidelity=filled(results.FidelityMetrics, **ratios), **given)
    return made


def example_record() -> UpdateRecord:
    """Return a record that has every number."""
    terms = {"OPERATOR": filled(TermMetrics, is_residual=True), "NAME": filled(TermMetrics, is_residual=False, over_floor=None)}
    guard = filled(GuardMetrics, drift=filled(Drift), limits=DriftLimits())
    rollout = filled(RolloutMetrics, sample_ids=())
    metrics = filled(UpdateMetrics, terms=terms, named={"NAME": 0.0}, parts={"PART": 0.0})
    return UpdateRecord(update=1, metrics=metrics, rollout=rollout, timing=filled(Timing), guard=guard)


def file_formats() -> Iterator[str]:
    """Yield the layout of every file and directory."""
    text = template("file_formats")
    unexplained = [name for name in (*datasets.REQUIRED, *datasets.OPTIONAL) if f"| `{name}` |" not in text]
    if unexplained:
        raise ValueError(f"docs/templates/file_formats.txt must explain the attributes {unexplained}")
    files = ("model", "ema", "optimizer", "config", "meta", "format")
    yield text.format(
        **{name: getattr(checkpoints, name.upper()) for name in files},
        info=attributes_table("name", checkpoints.ModelInfo),
        fields_format=datasets.FORMAT,
        samples_format=samples.FORMAT,
    )


def methods() -> Iterator[str]:
    """Yield the methods with their papers, and the parts that they are made of."""
    yield template("methods")
    rows = []
    for name, recipe in METHODS.items():
        searched = ", ".join(f"{setting} {spec}" for setting, spec in recipe.search.items())
        rows.append((f"`{name}`", recipe.title, recipe.paper, made_of(recipe), searched or "nothing"))
    yield table(("name", "title", "paper", "made of", "searches"), rows)
    for title, flag, parts in (
        ("Objectives", "train --objective", OBJECTIVES),
        ("Learning parameters", "train --parameters", PARAMETERS),
        ("Steerers", "", STEERERS),
        ("Samplers", "", SAMPLERS),
        ("Finishers", "", FINISHERS),
    ):
        rooms = sorted({part.__module__.rpartition(".")[0].replace(".", "/") for part in parts.values()})
        where = "Their files are in " + " and ".join(f"`{room}/`" for room in rooms) + ".\n"
        yield f"## {title}\n\n" + (f"`{flag} NAME`. " if flag else "") + where
        yield table(("name", "what it does"), [(f"`{name}`", docstring(parts[name]).splitlines()[0]) for name in sorted(parts)])


def made_of(recipe: Recipe) -> str:
    """Return the parts that a recipe names."""
    chosen = {part: recipe.settings.get(part) for part in ("objective", "parameters")}
    chosen |= {"steerer": recipe.steerer, "sampler": recipe.sampler, "samples of": recipe.samples_of}
    chosen |= {"finisher": recipe.finisher if recipe.finisher != "none" else ""}
    return ", ".join(f"{part} `{name}`" for part, name in chosen.items() if name) or "the base model"


PAGES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "reference/commands.md": ("Commands", commands),
    "reference/settings.md": ("Settings", settings),
    "reference/api.md": ("Python API", api),
    "reference/environments.md": ("Environments", environments),
    "reference/metrics.md": ("Metrics", metrics),
    "reference/file_formats.md": ("File formats", file_formats),
    "methods.md": ("Methods", methods),
}


def main(argv: list[str]) -> None:
    """Print every page, or with ``--check`` exit with 1 and name the pages that are not current."""
    if argv not in ([], ["--check"]):
        raise SystemExit("usage: python docs/print_reference.py [--check]")
    pages = {
        DOCS / name: "\n".join([f"# {title}\n", PRINTED, *parts()]).rstrip() + "\n" for name, (title, parts) in PAGES.items()
    }
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    if argv and stale:
        raise SystemExit("not current: " + ", ".join(f"docs/{path.relative_to(DOCS)}" for path in stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(pages[path])


if __name__ == "__main__":
    main(sys.argv[1:])
