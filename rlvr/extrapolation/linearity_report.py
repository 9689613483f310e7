"""What is written of a measurement of linearity: plain numbers for JSON, and tables of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from rlvr.extrapolation.linearity import (
    HISTOGRAM_BINS,
    LINEAR_ABOVE,
    cosines,
    fit_of,
    histogram,
    kept_tokens,
    nearest_to_quantiles,
    step_r_squared,
)
from rlvr.extrapolation.linearity_measure import EXAMPLE_SHARES, TensorTrace, Trajectory, WeightTraces

MODULES = ("embed", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm", "bias", "head")
NO_LAYER = "none"  # of embeddings, the head and the last norm
Json = dict[str, Any]
Group = tuple[str, int | None]


def weights_report(traces: WeightTraces) -> Json:
    """Statistics over all scalars, by module type, by layer, by both, and by tensor; scalars count alike in each."""
    tensors = traces.tensors
    return {
        "all": _fit(tensors),
        "histogram": histogram(_r2(tensors)),
        "by_module": {module: _group(each) for (module, _), each in _by(tensors, lambda t: (t.module, None)).items()},
        "by_layer": {_layer(layer): _group(each) for (_, layer), each in _by(tensors, lambda t: ("", t.layer)).items()},
        "by_module_and_layer": [
            {"module": module, "layer": layer, **_group(each)}
            for (module, layer), each in _by(tensors, lambda t: (t.module, t.layer)).items()
        ],
        "tensors": [
            {"name": each.name, "module": each.module, "layer": each.layer, "shape": each.shape, **_group([each])}
            for each in tensors
        ],
        "not_floating_point": traces.not_floats,
        "examples": [_trajectory(each) for each in _chosen(tensors)],
    }


def windows_report(products: Tensor, steps: Sequence[int]) -> Json:
    """Lengths of the moves between successive checkpoints, and the cosines between them; null where one is 0."""
    return {
        "steps": [[first, last] for first, last in pairwise(steps)],
        "lengths": products.diagonal().sqrt().tolist(),
        "cosines": [[None if each != each else each for each in row] for row in cosines(products).tolist()],
    }


def logprobs_report(logprobs: Tensor, steps: Sequence[int], min_move: float, label: Callable[[int], str]) -> Json:
    """Statistics of the trajectories [T, N] of tokens, of which `label` names one."""
    kept = kept_tokens(logprobs, min_move)
    places = kept.nonzero().squeeze(1)
    r2 = step_r_squared(logprobs[:, kept], steps)
    examples = [
        Trajectory(label(int(places[each])), float(r2[each]), tuple(logprobs[:, places[each]].tolist()))
        for each in nearest_to_quantiles(r2, EXAMPLE_SHARES)
    ]
    return {
        "all": fit_of(r2, logprobs.shape[1]).to_json(),
        "histogram": histogram(r2),
        "examples": [_trajectory(each) for each in examples],
    }


def histogram_edges() -> list[float]:
    return [each / HISTOGRAM_BINS for each in range(HISTOGRAM_BINS + 1)]


def _by(tensors: Sequence[TensorTrace], key: Callable[[TensorTrace], Group]) -> dict[Group, list[TensorTrace]]:
    """The tensors by module and layer: modules as in MODULES, then others by name; layers by number, NO_LAYER last."""
    groups: dict[Group, list[TensorTrace]] = {}
    for each in tensors:
        groups.setdefault(key(each), []).append(each)

    def order(group: Group) -> tuple[int, str, bool, int]:
        module, layer = group
        return MODULES.index(module) if module in MODULES else len(MODULES), module, layer is None, layer or 0

    return {group: groups[group] for group in sorted(groups, key=order)}


def _r2(tensors: Sequence[TensorTrace]) -> Tensor:
    return torch.cat([each.r2 for each in tensors])


def _fit(tensors: Sequence[TensorTrace]) -> Json:
    return fit_of(_r2(tensors), sum(each.looked_at for each in tensors)).to_json()


def _group(tensors: Sequence[TensorTrace]) -> Json:
    """With the median of the effective ranks, and of their shares of the full rank."""
    ranks = [(each.rank, each.rank / min(each.shape)) for each in tensors if each.rank is not None]
    return {
        **_fit(tensors),
        "effective_rank": statistics.median(rank for rank, _ in ranks) if ranks else None,
        "effective_rank_share": statistics.median(share for _, share in ranks) if ranks else None,
    }


def _chosen(tensors: Sequence[TensorTrace]) -> list[Trajectory]:
    """Of the matrices' examples those nearest to the quantiles EXAMPLE_SHARES of all R^2, the lowest first.

    Vectors, of which there are as many as matrices but few weights, are shown where no matrix moved.
    """
    matrices = [example for each in tensors if len(each.shape) > 1 for example in each.examples]
    candidates = matrices or [example for each in tensors for example in each.examples]
    if not candidates:
        return []
    found = torch.tensor([example.r2 for example in candidates], dtype=torch.float64)
    wanted = np.quantile(_r2(tensors).numpy(), EXAMPLE_SHARES)
    return [candidates[place] for place in dict.fromkeys(int((found - float(at)).abs().argmin()) for at in wanted)]


def _trajectory(each: Trajectory) -> Json:
    return {"label": each.label, "r2": each.r2, "values": list(each.values)}


def _layer(layer: int | None) -> str:
    return NO_LAYER if layer is None else str(layer)


# ---- tables ----------------------------------------------------------------------------------------------------------


HEADINGS = ("sampled", "kept", "median", "quartiles", f"> {LINEAR_ABOVE:g}", "eff. rank")


def rows_of(report: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """The cells under a first heading and HEADINGS, by that first heading: of everything, of modules, of layers."""
    weights, logprobs = report["weights"], report["logprobs"]
    everything = [["weights", *_cells(weights["all"])]]
    if logprobs is not None:
        everything.append(["tokens", *_cells(logprobs["all"])])
    return {
        "all": everything,
        "module type": [[name, *_cells(each)] for name, each in weights["by_module"].items()],
        "layer": [
            ["no layer" if name == NO_LAYER else f"layer {name}", *_cells(each)]
            for name, each in weights["by_layer"].items()
        ],
    }


def _cells(fit: Mapping[str, Any]) -> list[str]:
    kept = "" if fit["kept_fraction"] is None else f"{fit['kept_fraction']:.1%}"
    cells = [f"{fit['sampled']:,}", kept]
    if fit["median_r2"] is None:
        cells += ["-", "-", "-"]
    else:
        linear = fit[f"share_above_{LINEAR_ABOVE}"]
        cells += [f"{fit['median_r2']:.3f}", f"{fit['q25_r2']:.2f}-{fit['q75_r2']:.2f}", f"{linear:.1%}"]
    rank = fit.get("effective_rank")
    return [*cells, "" if rank is None else f"{rank:g} ({fit['effective_rank_share']:.0%})"]


def table_of(report: Mapping[str, Any]) -> Table:
    """Fits 80 characters."""
    table = Table(title="R^2 with the step, of what moved", box=SIMPLE)
    table.add_column("", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for rows in rows_of(report).values():
        for cells in rows:
            table.add_row(*map(escape, cells))
        table.add_section()
    return table


def markdown_of(report: Mapping[str, Any]) -> str:
    """The tables as Markdown, and what was measured how."""
    settings, windows = report["settings"], report["windows"]
    steps = ", ".join(map(str, report["steps"]))
    lines = ["# Linearity", "", f"Run `{report['run']}`, checkpoints of the steps {steps}."]
    lines += [f"\n**{warning}**" for warning in report["warnings"]]
    lines += [
        "",
        f"R^2 (median, quartiles, share above {LINEAR_ABOVE:g}) is the squared correlation of a value with the step."
        f" Weights are kept that moved over a range above {settings['min_range']:g} and take {settings['min_distinct']}"
        f" values or more, tokens whose log-probability moved by more than {settings['min_move']:g}; so R^2 speaks of"
        " what moved, which the column `kept` counts."
        " The effective rank is that of last - first: its median over matrices, and as a share of full rank.",
    ]
    for first, rows in rows_of(report).items():
        lines += ["", f"| {first} | {' | '.join(HEADINGS)} |", "|---" + "|---:" * len(HEADINGS) + "|"]
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
    lines += ["", "| window | length | cosine with the next |", "|---|---:|---:|"]
    for number, ((start, end), length) in enumerate(zip(windows["steps"], windows["lengths"], strict=True)):
        following = windows["cosines"][number][number + 1] if number + 1 < len(windows["lengths"]) else None
        lines.append(f"| {start} to {end} | {length:.4g} | {'' if following is None else f'{following:.3f}'} |")
    return "\n".join(lines) + "\n"
