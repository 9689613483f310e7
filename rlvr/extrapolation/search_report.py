"""What a search found: as JSON, as tables and as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from rlvr.config.schema import EvaluationConfig
from rlvr.evaluation.estimators import Estimate
from rlvr.evaluation.evaluate import summarise
from rlvr.evaluation.sets import SetKind
from rlvr.extrapolation.search import (
    TUNED,
    Findings,
    is_better,
    is_worse,
    mean_score,
    paired_difference,
    scores_of,
    shown_difference,
    verdict,
)
from rlvr.extrapolation.search_cache import Records


def facts_of(
    found: Findings,
    metric: str,
    validation: Mapping[float, Records],
    test: Mapping[float, Records],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The content of `search.json`. The test sets stand apart, and are of alpha = 1 and the best alone."""
    return {
        "metric": metric,
        "best_alpha": found.best,
        "over_extrapolated_from": found.worse_from,
        "best_is_largest": found.best_is_largest,
        "best_is_least": found.best_is_least,
        "verdict": verdict(found, metric),
        "alphas": [
            {
                "alpha": alpha,
                "mean": vars(found.means[alpha]),
                "difference_from_alpha_1": vars(found.against_tuned[alpha]),
                "validation": _results(validation[alpha], "validation", config),
            }
            for alpha in found.means
        ],
        "test": {
            "alphas": [{"alpha": alpha, "results": _results(each, "test", config)} for alpha, each in test.items()],
            "difference_of_best_from_alpha_1": {
                name: vars(each) for name, each in differences_on_test(test, found.best, metric, config.seed).items()
            },
        },
    }


def _results(records: Records, which: SetKind, config: EvaluationConfig) -> list[dict[str, Any]]:
    return [summarise(name, each, config, which).to_json() for name, each in records.items()]


def differences_on_test(test: Mapping[float, Records], best: float, metric: str, seed: int) -> dict[str, Estimate]:
    """By test set, the paired difference of the best alpha from alpha = 1; empty where they are not both evaluated."""
    if best == TUNED or not {best, TUNED} <= test.keys():
        return {}
    scores = {alpha: scores_of(test[alpha], metric) for alpha in (best, TUNED)}
    return {
        name: paired_difference({name: scores[best][name]}, {name: scores[TUNED][name]}, seed) for name in scores[TUNED]
    }


def table_of_alphas(found: Findings, metric: str) -> Table:
    """A line for every alpha."""
    table = Table(title=f"validation {metric} by alpha [95% interval]")
    table.add_column("alpha", justify="right", no_wrap=True)
    table.add_column(metric, justify="right", no_wrap=True)
    table.add_column("difference from alpha = 1", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for alpha, mean in found.means.items():
        difference = found.against_tuned[alpha]
        remarks = ["best"] if alpha == found.best else []
        remarks += ["worse"] if is_worse(difference) else ["better"] if is_better(difference) else []
        against = "" if alpha == TUNED else shown_difference(difference)
        table.add_row(f"{alpha:g}", _shown(mean), against, ", ".join(remarks))
    return table


def table_of_test(test: Mapping[float, Records], best: float, metric: str, config: EvaluationConfig) -> Table:
    """The test sets at alpha = 1 and at the best, once the latter is chosen."""
    differences = differences_on_test(test, best, metric, config.seed)
    table = Table(title=f"test {metric}, by which nothing was chosen")
    table.add_column("set", no_wrap=True)
    for alpha in test:
        table.add_column(f"alpha = {alpha:g}", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    scores = {alpha: scores_of(records, metric) for alpha, records in test.items()}
    for name in next(iter(test.values())):
        cells = [_shown(mean_score({name: scores[alpha][name]}, config.seed)) for alpha in test]
        table.add_row(name, *cells, shown_difference(differences[name]) if name in differences else "")
    return table


def _shown(mean: Estimate) -> str:
    return f"{mean.value:.3f} [{mean.low:.2f}, {mean.high:.2f}]"


def draw(found: Findings, metric: str, path: Path) -> None:
    """The metric against alpha with 95% intervals; the best is marked, and what lies too far is shaded."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    alphas, means = list(found.means), list(found.means.values())
    values = [mean.value for mean in means]
    errors = [[mean.value - mean.low for mean in means], [mean.high - mean.value for mean in means]]
    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    axis.axhline(found.means[TUNED].value, color="grey", linestyle=":", linewidth=1.2, label="alpha = 1")
    axis.errorbar(alphas, values, yerr=errors, fmt="o-", color="#0072B2", capsize=4, linewidth=1.2, markersize=4)
    best = found.means[found.best].value
    axis.plot(
        [found.best], [best], "*", color="#D55E00", markersize=15, zorder=5, label=f"best: alpha = {found.best:g}"
    )
    if found.worse_from is not None:
        label = f"worse than alpha = 1 from {found.worse_from:g} on"
        axis.axvspan(found.worse_from, max(alphas) + 0.05, color="#D55E00", alpha=0.12, linewidth=0, label=label)
    axis.set(xlabel="alpha", ylabel=f"validation {metric}", title="weight extrapolation, 95% intervals over prompts")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
