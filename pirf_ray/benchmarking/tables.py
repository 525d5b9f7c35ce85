"""The benchmark as tables of text: rows of cells that Markdown and HTML both print."""

from typing import Any

from pirf_ray.evaluation.pages import Table, markdown_table

SUMMARY_STEPS = ("20", "10")
OUTSIDE, UNDER = "†", "‡"
LEGEND = (
    "Each cell: mean residual of the PDE's consistent operator over the base model's, then the energy distance to held-out "
    "solutions over the base model's, both on the same noise. Bold: lowest residual among the methods whose energy distance is at "
    f"most 1.1 times the base's. {OUTSIDE}: outside that limit. {UNDER}: under the residual of real data, a hacked reward. "
    "Methods within 1 % of each other are equal, as seeds differ by more; those within 5 % of real data's residual are, too: there is "
    "nothing left to gain."
)
COLUMN_LEGEND = (
    "Intervals are 95 %: over seeds (Student) where there are several, else over samples (bootstrap). Costs are for each sample: "
    "NFE counts network evaluations, the gradient columns backward passes through the network and gradients of the residual alone. "
    "Training: network forwards and backward passes of single samples. Real data: a second held-out set, measured like a method."
)


def tables(benchmark: dict[str, Any]) -> list[Table]:
    """The summary at each N that it is made for, then each PDE at each N."""
    summaries = [summary(benchmark, n) for n in SUMMARY_STEPS if any(n in part["steps"] for part in benchmark["envs"].values())]
    details = [detail(benchmark, env, n) for env, part in benchmark["envs"].items() for n in part["steps"]]
    return summaries + details


def summary(benchmark: dict[str, Any], steps: str) -> Table:
    """Methods by PDEs."""
    envs = [env for env, part in benchmark["envs"].items() if steps in part["steps"]]
    parts = {env: benchmark["envs"][env]["steps"][steps] for env in envs}
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for method, title in benchmark["titles"].items():
        for column, env in enumerate(envs, start=1):
            if method in parts[env]["first"]:
                bold.add((len(rows), column))
        rows.append([title, *(_summary_cell(parts[env]["methods"].get(method)) for env in envs)])
    nfe = parts[envs[0]]["nfe"]
    names = [env.removesuffix("-v0") for env in envs]
    return Table(title=f"N = {steps} ({nfe} NFE)", columns=["method", *names], rows=rows, bold=frozenset(bold))


def _summary_cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    figures = entry["figures"]
    return f"{number(figures['residual_ratio']['mean'])}, {number(figures['energy_ratio']['mean'])}{flags(entry)}"


def flags(entry: dict[str, Any]) -> str:
    return ("" if entry["within_guard"] else f" {OUTSIDE}") + (f" {UNDER}" if entry["below_floor"] else "")


def detail(benchmark: dict[str, Any], env: str, steps: str) -> Table:
    """Every measure and cost of one PDE at one N."""
    part = benchmark["envs"][env]
    here = part["steps"][steps]
    measures = _measures(part)
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for method, entry in here["methods"].items():
        if method in here["first"]:
            bold |= {(len(rows), 0), (len(rows), 1)}
        cells = [_value(entry["figures"].get(key), with_interval=key in (measures[0][1], "energy_ratio")) for _, key in measures]
        rows.append([benchmark["titles"][method] + flags(entry), *cells, *_costs(entry, part["training"].get(method))])
    blanks = ["-"] * len(_COST_COLUMNS)
    rows.append(["real data", *(number(here["data"].get(key)) for _, key in measures), *blanks])
    columns = ["method", *(label for label, _ in measures), *_COST_COLUMNS]
    title = f"{env}, N = {steps} ({here['nfe']} NFE): {here['samples']} samples against {here['real']}"
    return Table(title=title, columns=columns, rows=rows, bold=frozenset(bold))


_COST_COLUMNS = ["NFE", "network gradients", "residual gradients", "samples/s", "training: forwards", "gradients", "seconds"]


def _measures(part: dict[str, Any]) -> list[tuple[str, str]]:
    """Column and figure."""
    default, witness = part["default_operator"], part["unrewarded_operator"]
    residuals = [(f"{default} residual", f"residual/{default}/mean"), ("median", f"residual/{default}/median")]
    if "paper" in part["operators"]:
        residuals.append(("paper operator", "residual/paper/mean"))
    if witness not in (default, "paper"):
        residuals.append((f"witness: {witness}", f"residual/{witness}/mean"))
    conditions = [(name.replace("_", " "), f"condition/{name}/mean") for name in part["conditions"]]
    return [
        *residuals,
        *conditions,
        ("re-solve error", "resolve/median"),
        ("amplitude", "fidelity/amplitude_ratio"),
        ("energy distance / base", "energy_ratio"),
        ("energy distance", "fidelity/energy_distance"),
        ("of the marginal", "fidelity/marginal_energy_distance"),
        ("log spectrum error", "fidelity/log_spectrum_error"),
        ("high wavenumbers", "fidelity/high_wavenumber_ratio"),
        ("MMSE", "fidelity/mean_field_error"),
        ("SMSE", "fidelity/std_field_error"),
        ("diversity", "fidelity/diversity_ratio"),
        ("nearest training", "fidelity/nearest_training_distance"),
    ]


def _value(figure: dict[str, Any] | None, *, with_interval: bool) -> str:
    if figure is None:
        return "-"
    interval = figure["interval"]
    spread = f" ({number(interval[0])} to {number(interval[1])})" if with_interval and interval else ""
    return number(figure["mean"]) + spread


def _costs(entry: dict[str, Any], training: dict[str, Any] | None) -> list[str]:
    cost = entry["cost"]
    own = [f"{cost[name]:.4g}" for name in ("network_forwards", "network_gradients", "residual_gradients")]
    spent = ["-"] * 3
    if training:
        spent = [f"{training['cost'][name]:.0f}" for name in ("network_forwards", "network_gradients", "seconds")]
    return [*own, number(1 / cost["seconds"]), *spent]


def number(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:.3g}"


def markdown(benchmark: dict[str, Any]) -> str:
    """All tables, with their legend."""
    header = benchmark["header"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    parts = [f"`{header['command']}`, {header['date']}, {header['machine']}; {versions}", LEGEND, COLUMN_LEGEND]
    if benchmark["missing"]:
        parts.append("Not finished: " + "; ".join(benchmark["missing"]) + ".")
    for table in tables(benchmark):
        parts.append(f"**{table.title}**\n\n{markdown_table(table)}")
    return "\n\n".join(parts) + "\n"
