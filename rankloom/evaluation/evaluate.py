"""The runner: systems side by side on one split, masked and unmasked, as tidy rows."""

from __future__ import annotations

import time
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
    """Tidy rows (DESIGN: JSON), and the lists behind them for paired comparisons.

    Attributes:
        lists: (C, K) by system, variant and whether seen items were masked.
        seconds: what each system took to learn and to rank both ways.
    """

    name: str
    rows: list[dict[str, Any]]
    checks: list[dict[str, Any]] = field(default_factory=list)
    lists: dict[tuple[str, str, bool], NDArray[np.int32]] = field(default_factory=dict)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    cases: Cases | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "machine": machine(),
            "rows": self.rows,
            "checks": self.checks,
            "seconds": self.seconds,
        }

    def value(self, system: str, metric: str, k: int, *, masked: bool, variant: str | None = None) -> float:
        """One figure over all cases.

        Args:
            variant: needed where a system has several; None takes the first.

        Raises:
            KeyError: no such figure.
        """
        for row in self.rows:
            same = (row["system"], row["metric"], row["k"], row["masked"], row["slice"])
            if same == (system, metric, k, masked, "all") and variant in (None, row["variant"]):
                return float("nan") if row["value"] is None else float(row["value"])
        raise KeyError((system, variant, metric, k, masked))

    def difference(
        self, first: str, second: str, *, metric: str = "recall", k: int = 10, masked: bool,
        variants: tuple[str, str] = ("default", "default"), n_samples: int = 1000,
    ) -> tuple[float, float, float]:  # fmt: skip
        """(mean, low, high) of a metric of `first` minus that of `second`, paired over the cases, resampled over users."""
        assert self.cases is not None
        lists = [self.lists[name, variant, masked] for name, variant in zip((first, second), variants, strict=True)]
        return paired_difference(lists[0], lists[1], self.cases, metric=metric, k=k, n_samples=n_samples)


def machine() -> dict[str, Any]:
    """Where a figure was measured."""
    import platform

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
    """Fits each system on the training part and ranks the cases of `stage`, with seen items masked and with them allowed.

    Args:
        content: (I, D) content vectors of the shop's items, for systems that read them.
        max_cases: a random sample of so many people.
    """
    cases = sequences.cases(stage, max_per_user=config.max_cases_per_user, max_users=max_cases, seed=seed)
    result = EvaluationResult("evaluate", [], cases=cases)
    bootstrap = Bootstrap(cases.user, config.bootstrap, seed)
    for system in systems:
        variant = str(getattr(system, "variant", "default"))
        label = system.name if variant == "default" else f"{system.name} ({variant})"
        say(f"{label}: learning, then ranking the catalogue for {len(cases):,} cases")
        started = time.perf_counter()
        system.fit(sequences, content, seed)
        learned = time.perf_counter()
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
        took = {"learn": round(learned - started, 2), "rank": round(time.perf_counter() - learned, 2)}
        result.seconds.append({"system": system.name, "variant": variant, **took})
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
    """The main figures, one line a system and masking; NDCG@10 and recall at every length measured."""
    ks = sorted({row["k"] for row in result.rows if row["metric"] == "recall" and row["slice"] == "all"})
    middle = 10 if 10 in ks else (ks[0] if ks else 10)
    columns = [(f"R@{k}", "recall", k) for k in ks]
    columns.insert(min(len(columns), 2), (f"N@{middle}", "ndcg", middle))
    lines = [
        f"{'system':<20}{'variant':<10}{'seen items':<12}"
        + "".join(f"{name:>8}" for name, _, _ in columns)
        + f"   {f'R@{middle} interval':<18}{'cold R@' + str(middle):>10}{'coverage':>10}"
    ]
    for system, variant, masked in result.lists:
        own = {
            (row["metric"], row["k"], row["slice"]): row
            for row in result.rows
            if (row["system"], row["variant"], row["masked"]) == (system, variant, masked)
        }

        def cell(
            metric: str, k: int, part: str = "all", column: str = "value", rows: dict[Any, dict[str, Any]] = own
        ) -> str:
            number = rows.get((metric, k, part), {}).get(column)
            return "-" if number is None else f"{number:.4f}"

        interval = f"{cell('recall', middle, column='low')} .. {cell('recall', middle, column='high')}"
        lines.append(
            f"{system:<20}{variant:<10}{'masked' if masked else 'allowed':<12}"
            + "".join(f"{cell(metric, k):>8}" for _, metric, k in columns)
            + f"   {interval:<18}{cell('recall', middle, 'cold'):>10}{cell('coverage', 10):>10}"
        )
    return "\n".join(lines)
