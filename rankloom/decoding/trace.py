"""How a request's beam got where it did, level by level: what the page and `--explain` show."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rankloom.decoding.beam import BeamResult
from rankloom.semantic.trie import Trie


@dataclass(frozen=True)
class TracedBeam:
    """One surviving prefix: its codes, cumulative log-probability, the beam it continues, the items below it."""

    codes: tuple[int, ...]
    log_prob: float
    parent: int
    n_items: int


@dataclass(frozen=True)
class BeamTrace:
    """Levels of surviving prefixes, and the funnel from catalogue to answer."""

    levels: list[list[TracedBeam]]
    legal_continuations: list[int]
    funnel: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def trace_of(result: BeamResult, trie: Trie, row: int, funnel: dict[str, int], *, width: int = 24) -> BeamTrace:
    """The trace of one request of a batch; at most `width` beams a level."""
    levels: list[list[TracedBeam]] = []
    prefixes: list[tuple[int, ...]] = [()]
    legal = []
    for depth, level in enumerate(result.levels, start=1):
        nodes = level.node_BW[row].tolist()
        parents = level.parent_BW[row].tolist()
        scores = level.log_prob_BW[row].tolist()
        codes = trie.codes_of(depth - 1, level.node_BW[row].clamp_min(0).numpy()).tolist()
        new = [
            (*prefixes[parent], code) if node >= 0 else ()
            for node, parent, code in zip(nodes, parents, codes, strict=True)
        ]
        levels.append(
            [
                TracedBeam(prefix, score, parent, len(trie.items_under(depth, node)))
                for prefix, score, parent, node in zip(new, scores, parents, nodes, strict=True)
                if node >= 0
            ][:width]
        )
        legal.append(int(level.n_legal_B[row]))
        prefixes = new
    return BeamTrace(levels, legal, funnel)
