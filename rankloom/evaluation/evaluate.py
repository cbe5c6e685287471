"""The runner: systems side by side on one split, masked and unmasked, as tidy rows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankloom.config import EvaluationConfig
from rankloom.data.sequences import TEST, Cases, Sequences
from rankloom.evaluation.metrics import Bootstrap, gains, rows_of, target_rank
from rankloom.evaluation.systems import FloatArray, System


@dataclass
class EvaluationResult:
    """Tidy rows (DESIGN: JSON), and the lists behind them for paired comparisons."""

    name: str
    rows: list[dict[str, Any]]
    checks: list[dict[str, Any]] = field(default_factory=list)
    lists: dict[tuple[str, str, bool], NDArray[np.int32]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "machine": machine(), "rows": self.rows, "checks": self.checks}

    def value(self, system: str, metric: str, k: int, *, masked: bool) -> float:
        """One figure over all cases."""
        for row in self.rows:
            if (row["system"], row["metric"], row["k"], row["masked"], row["slice"]) == (
                system,
                metric,
                k,
                masked,
                "all",
            ):
                return float(row["value"])
        raise KeyError((system, metric, k, masked))


def machine() -> dict[str, Any]:
    """Where a figure was measured."""
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def evaluate(
    systems: Sequence[System],
    sequences: Sequences,
    content: FloatArray | None,
    config: EvaluationConfig,
    *,
    seed: int = 0,
    stage: int = TEST,
    max_cases: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> EvaluationResult:
    """Fits each system on the training part and ranks the cases of `stage`."""
    cases = sequences.cases(stage, max_per_user=config.max_cases_per_user, max_users=max_cases, seed=seed)
    result = EvaluationResult("evaluate", [])
    bootstrap = Bootstrap(cases.user, config.bootstrap, seed)
    for system in systems:
        say(f"{system.name}: fitting and ranking {len(cases):,} cases")
        system.fit(sequences, content, seed)
        variant = str(getattr(system, "variant", "default"))
        for masked in (True, False):
            lists = system.rank(sequences, cases, max(config.ks), mask_seen=masked)
            result.lists[system.name, variant, masked] = lists
            result.rows += rows_of(
                lists,
                cases,
                sequences,
                system=system.name,
                variant=variant,
                masked=masked,
                ks=config.ks,
                bootstrap=bootstrap,
            )
    return result


def paired_difference(
    first: NDArray[np.int32], second: NDArray[np.int32], cases: Cases, *, metric: str, k: int, n_samples: int = 1000
) -> tuple[float, float, float]:
    """Mean difference of a metric between two systems on the same cases, and its 95% interval over users."""
    difference = gains(target_rank(first, cases.target), k, metric) - gains(
        target_rank(second, cases.target), k, metric
    )
    low, high = Bootstrap(cases.user, n_samples).interval(difference)
    return float(difference.mean()), low, high


def text_table(result: EvaluationResult) -> str:
    """The main figures, one line a system."""
    lines = [
        f"{'system':<22}{'variant':<10}{'seen items':<12}{'R@5':>8}{'R@10':>8}{'N@10':>8}{'R@50':>8}   R@10 interval"
    ]
    for (system, variant, masked), _ in result.lists.items():
        own = {
            (row["metric"], row["k"]): row
            for row in result.rows
            if (row["system"], row["variant"], row["masked"], row["slice"]) == (system, variant, masked, "all")
        }

        def cell(metric: str, k: int, rows: dict[tuple[str, int], dict[str, Any]] = own) -> str:
            return f"{rows[metric, k]['value']:.4f}" if (metric, k) in rows else "-"

        interval = own.get(("recall", 10), {"low": float("nan"), "high": float("nan")})
        lines.append(
            f"{system:<22}{variant:<10}{'masked' if masked else 'allowed':<12}{cell('recall', 5):>8}{cell('recall', 10):>8}"
            f"{cell('ndcg', 10):>8}{cell('recall', 50):>8}   {interval['low']:.4f} .. {interval['high']:.4f}"
        )
    return "\n".join(lines)
