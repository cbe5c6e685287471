"""What relates the generated items of a search to its query, for the refiner.

Shapes: B requests, C generated items, D width of the aligned vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rankloom.decoding.query_memory import DEPTH, Match, behaviour_of
from rankloom.decoding.refine_features import QueryEvidence


def query_evidence(
    item_BC: Tensor,
    matches: Sequence[Match],
    behaviour: tuple[Tensor, Tensor, Tensor],
    query_BD: Tensor,
    unit_ID: Tensor,
) -> QueryEvidence:
    """
    Args:
        item_BC: catalogue rows, -1 for padding.
        matches: what the words of each query found.
        behaviour: what `BehaviourMemory.recall` returned.
        query_BD: vectors of the queries; their last columns lie in the space of `unit_ID`.
        unit_ID: unit vectors of the items.
    """
    relevance, coverage, place, untried = (np.zeros(item_BC.shape, np.float32) for _ in range(4))
    breadth = np.zeros(len(matches), np.float32)
    for number, match in enumerate(matches):
        if not len(match.row):
            continue
        alike = int((match.coverage >= match.coverage.max() - 1e-6).sum())
        breadth[number] = np.log(alike) / np.log(DEPTH)
        own = item_BC[number].numpy()
        at = np.searchsorted(match.row, own).clip(max=len(match.row) - 1)
        found = match.row[at] == own
        relevance[number] = np.where(found, match.relevance[at], 0)
        coverage[number] = np.where(found, match.coverage[at], 0)
        place[number] = np.where(found, 1 / (1 + match.place[at]), 0)
        untried[number] = np.where(found, match.untried[at], 0)
    item = item_BC.clamp_min(0)
    query = torch.nn.functional.normalize(query_BD[:, query_BD.shape[1] - unit_ID.shape[1] :].float(), dim=1)
    request = torch.arange(len(item))[:, None].expand_as(item)
    told = behaviour_of(behaviour, request.reshape(-1), item.reshape(-1), len(unit_ID)).view(item.shape)
    return QueryEvidence(
        relevance_BC=torch.from_numpy(relevance),
        coverage_BC=torch.from_numpy(coverage),
        place_BC=torch.from_numpy(place),
        untried_BC=torch.from_numpy(untried),
        near_BC=torch.einsum("bcd,bd->bc", unit_ID[item], query),
        behaviour_BC=told,
        breadth_B=torch.from_numpy(breadth),
    )
