"""Histories in, generated items out: context, beam search under the trie with memory and moment in every code, the items of the
codes, and what else is known of them.

Shapes: B requests, C generated items, I catalogue rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankloom.catalogue import Catalogue
from rankloom.data import schema
from rankloom.decoding.beam import beam_search
from rankloom.decoding.masks import NodeCounts
from rankloom.decoding.memory import Guide, in_history, latest_first
from rankloom.decoding.query_evidence import query_evidence
from rankloom.decoding.query_memory import Match
from rankloom.decoding.refine_features import PLACES, RefineInput
from rankloom.decoding.select import Candidates, expand
from rankloom.models.context import ContextBatch
from rankloom.models.prefix import Prefix
from rankloom.ordering import Generated
from rankloom.training.features import FeatureTable

if TYPE_CHECKING:
    from rankloom.recommender import Rankloom

_NOTHING = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))


@dataclass(frozen=True)
class Cases:
    """What is generated for: histories as row ranges of a feature table, and the rules of each.

    Attributes:
        start, stop: (B,) rows of each history, the last one not included.
        beam: width, of all or of each; None is the configuration's.
        filters: what may be generated; None is everything.
        excluded: catalogue rows that may not.
        queries_at: (B,) rows of the table that hold the requests' queries, -1 for none.
        user: (B,) rows of the people's features, -1 for strangers.
        surface: (B,) codes.
        when: (B,) float64 seconds, for the age of the items.
        trace: keep how the beam went.
        people: whose histories these are, for what `Rankloom.contexts` keeps; None keeps nothing of a request.
        typos: slips of a word that each search forgives; None is the configuration's.
        matches: what the words of each search find, where it is known already.
    """

    table: FeatureTable
    start: Tensor
    stop: Tensor
    beam: int | Sequence[int] | None = None
    filters: list[NodeCounts | None] | None = None
    excluded: list[Tensor] | None = None
    queries_at: Tensor | None = None
    user: Tensor | None = None
    surface: Tensor | None = None
    when: Tensor | None = None
    trace: bool = False
    people: Sequence[str | None] | None = None
    typos: Sequence[int] | None = None
    matches: Sequence[Match | None] | None = None


@torch.no_grad()
def generate(own: Rankloom, cases: Cases, *, memory: float, lift: float) -> Generated:
    """The items that the beam of each request ends in.

    Args:
        memory: share of the behaviour memory in the probability of each code.
        lift: strength of the shift towards what is taken at the moment.
    """
    table, stop, when, catalogue, config = cases.table, cases.stop, cases.when, own.catalogue, own.config
    begin = torch.maximum(cases.start, stop - config.model.max_history)
    prefix = _prefill(own, table.pack(begin, stop, queries_at=cases.queries_at, user=cases.user), cases)
    masks = catalogue.index.requests(cases.filters or [None] * len(stop), cases.excluded)
    recalled = _NOTHING
    if own.memory is not None:
        taken = ~torch.isin(table.kind, own.not_taken)
        recalled = own.memory.recall(latest_first(table.item, taken, begin, stop))
    matches = _matches(own, cases)
    guide = None
    if matches is not None and own.query_memory is not None:
        guide = Guide(catalogue.index, own.query_memory.recall(matches, recalled), share=memory)
    elif own.memory is not None:
        guide = Guide(catalogue.index, recalled, share=memory)
    in_code = guide if memory > 0 else None
    lifts = catalogue.lifts if when is not None else None
    shift = lifts.lift(when, lift) if lifts is not None and when is not None and lift > 0 else None
    beams = beam_search(
        own.model, prefix, catalogue.trie, beam=config.decoding.beam if cases.beam is None else cases.beam, masks=masks,
        normalise=config.decoding.normalise, guide=in_code, lift=shift, trace=cases.trace, engine=config.decoding.engine,
    )  # fmt: skip
    candidates = expand(
        beams.leaf_BW, beams.log_prob_BW, trie=catalogue.trie, log_share=catalogue.log_share,
        allowed=masks.allowed_items(), excluded=cases.excluded, guide=in_code, lift=shift,
    )  # fmt: skip
    select = _selected(own, prefix, candidates, when) if config.selection.enabled else None
    now = lifts.log_now(when, candidates.item_BC) if lifts is not None and when is not None else None
    query = given = None
    if matches is not None and cases.queries_at is not None:
        asked = table.query_vectors[table.query[cases.queries_at]]
        query = query_evidence(candidates.item_BC, matches, recalled, asked, catalogue.facts.unit_ID)
    if select is not None:
        dated = own.model.age is not None
        given = _refine_input(catalogue, candidates, select, guide, now, cases, begin, dated=dated)
        given.query = query
    refiner = own.refiner if matches is None else own.search_choices.refiner
    return Generated(refiner, beams, candidates, select, guide, now, query, given, catalogue.facts)


def are_searches(own: Rankloom, table: FeatureTable, queries_at: Tensor | None) -> bool:
    """Whether every request of a batch asks for something and the model has a query memory to answer from."""
    if own.query_memory is None or queries_at is None or not len(queries_at) or not table.queries:
        return False
    return bool(((queries_at >= 0) & (table.query[queries_at.clamp_min(0)] >= 0)).all())


def _matches(own: Rankloom, cases: Cases) -> list[Match] | None:
    """What the words of each search find; None where these are no searches."""
    if own.query_memory is None or cases.queries_at is None or not are_searches(own, cases.table, cases.queries_at):
        return None
    asked_for = cases.table.query[cases.queries_at].tolist()
    slips = [own.config.memory.max_typos] * len(asked_for) if cases.typos is None else cases.typos
    known = cases.matches or [None] * len(asked_for)
    return [
        own.query_memory.match(cases.table.queries[n], most) if match is None else match
        for n, most, match in zip(asked_for, slips, known, strict=True)
    ]


def _prefill(own: Rankloom, batch: ContextBatch, cases: Cases) -> Prefix:
    """The contexts of a batch, of known people from what their last request left."""
    kept, people = own.contexts, cases.people
    if kept is None or people is None:
        return own.model.prefill(batch, cases.surface)
    before = [None if person is None else kept.get(own.model_version, person) for person in people]
    prefix = own.model.prefill(batch, cases.surface, kept=before)
    for person, now in zip(people, prefix.kept or [None] * len(people), strict=True):
        if person is not None and now is not None:
            kept.put(own.model_version, person, now)
    return prefix


def _selected(own: Rankloom, prefix: Prefix, candidates: Candidates, when: Tensor | None) -> Tensor:
    """(B, C) the selection head's scores; it works where the model is, everything around it on the CPU."""
    user_BD, device = own.model.user(prefix), own.model.device
    if device.type == "cpu":
        return own.model.select_scores(user_BD, candidates.item_BC, when).float()
    when = None if when is None else when.to(device)
    return own.model.select_scores(user_BD, candidates.item_BC.to(device), when).float().cpu()


def _refine_input(
    catalogue: Catalogue, candidates: Candidates, select_BC: Tensor, guide: Guide | None, now_BC: Tensor | None, cases: Cases,
    begin: Tensor, *, dated: bool,
) -> RefineInput:  # fmt: skip
    table, stop = cases.table, cases.stop
    memory = told = age = None
    if guide is not None:
        own, whole = guide.items(candidates.item_BC)
        memory, told = own / whole.clamp_min(1e-300), whole[:, 0]
    if dated and cases.when is not None:
        age = (cases.when[:, None] - catalogue.created_I[candidates.item_BC.clamp_min(0)]) / 86_400
    everything = torch.ones(len(table.item), dtype=torch.bool)
    searches = torch.zeros(len(stop), dtype=torch.bool)
    if cases.surface is not None:
        searches = cases.surface == schema.SURFACE_CODE["search"]
    history = latest_first(table.item, everything, begin, stop, places=PLACES)
    seen = in_history(candidates.item_BC, table.item, begin, stop)
    return RefineInput(
        candidates.log_prob_BC, select_BC, candidates.item_BC, memory, told, now_BC, age, history, searches, seen
    )
