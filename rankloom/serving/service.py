"""From a question to a reply, without HTTP: who asks, under which rules, what the model says, what is shown.

    question -> person (state store) -> version (routing) -> recommend_batch -> arrange -> fallback -> guard -> reply

Every path ends in the guard: an item that the rules forbid, that was seen where seen items are masked, that an earlier page
showed or that comes twice is not shown, whatever the model or a fallback said; and the metrics count that it was tried.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.decoding.trace import BeamTrace
from rankloom.errors import RankloomError
from rankloom.requests import Explanation, HistoryEvent, Recommendation, Request
from rankloom.serving import arrange, paging
from rankloom.serving.batching import Batcher, BatchSettings, OverloadedError, Ticket
from rankloom.serving.context_cache import ContextCache
from rankloom.serving.contract import Ask
from rankloom.serving.events import event_kind
from rankloom.serving.guardrails import Outcome
from rankloom.serving.metrics import Metrics
from rankloom.serving.registry import Registry, Version
from rankloom.serving.scenarios import Scenario, Scenarios
from rankloom.serving.snapshot import Snapshot
from rankloom.serving.state import Person, StateStore, StateUnavailableError

_log = logging.getLogger("rankloom.serving")
_POOL: Final = 100  # generated for a list that is rearranged
_SHADOWED: Final = 64  # questions that wait for a shadow


@dataclass(frozen=True)
class Question:
    """What one caller wants, read and checked as far as that needs no model."""

    ask: Ask
    search: bool
    scenario: Scenario
    request_id: str
    question: bytes
    shown: frozenset[bytes]
    left: float | None = None

    @property
    def rule(self) -> str | None:
        return self.scenario.rule(self.ask.filter)

    @property
    def cut(self) -> float | None:
        """The least relevance of a search's results; the request's own wish goes before the scenario's."""
        own = self.ask.min_relevance
        return self.scenario.min_relevance if own is None and self.ask.words is not None else own

    @property
    def typos(self) -> int | None:
        """Likewise."""
        own = self.ask.max_typos
        return self.scenario.max_typos if own is None and self.ask.words is not None else own

    @property
    def pool(self) -> int:
        return max(self.ask.k, _POOL) if self.scenario.rearranges else self.ask.k


@dataclass
class Prepared:
    """A question in front of one version.

    Attributes:
        allowed: (I,) bool, rows that may be shown: in the catalogue, passing the rule, and none of those below.
        cause: why the reply will be degraded, known before the model is asked.
    """

    question: Question
    snapshot: Snapshot
    request: Request
    allowed: NDArray[np.bool_]
    known: bool
    cause: str | None = None


@dataclass(frozen=True)
class Shown:
    """One place of a list."""

    row: int
    score: float
    codes: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    relevance: float | None = None
    explanation: Explanation | None = None


class Service:
    """Answers questions in batches. `registry`, `scenarios`, `store` and `contexts` are the server's."""

    def __init__(
        self,
        registry: Registry,
        store: StateStore,
        scenarios: Scenarios,
        metrics: Metrics,
        *,
        settings: BatchSettings | None = None,
        contexts: ContextCache | None = None,
    ) -> None:
        self.registry = registry
        self.store = store
        self.scenarios = scenarios
        self.metrics = metrics
        self.contexts = contexts
        self.batcher: Batcher[Question, dict[str, Any]] = Batcher(self._run, settings=settings, idle=self._shadow)
        self._recent_rules: OrderedDict[str, None] = OrderedDict()
        self._to_shadow: deque[tuple[Question, Person | None, tuple[str, ...]]] = deque(maxlen=_SHADOWED)

    def recent_rules(self) -> list[str]:
        """Filters of late, for the warm-up of a new model."""
        return list(self._recent_rules)

    def question(self, ask: Ask, *, search: bool, request_id: str) -> Question:
        """Raises RankloomError: an unknown scenario, a search without words, a cursor that is none."""
        if search and ask.words is None:
            raise RankloomError(
                "a search needs a query", place="query", action="send the words in `query`", code="query-missing"
            )
        scenario = self.scenarios.get(ask.scenario)
        own = paging.question_of(ask, search=search)
        cursor = paging.Cursor(own, frozenset()) if ask.cursor is None else paging.read(ask.cursor, own)
        return Question(ask, search, scenario, request_id, own, cursor.shown, cursor.left)

    async def answer(self, question: Question, *, deadline_s: float | None = None) -> dict[str, Any]:
        """The reply as it goes out. Raises RankloomError (a bad filter), OverloadedError."""
        weight = max(question.pool, self.registry.routing.current.snapshot.model.config.decoding.beam)
        return await self.batcher.submit(question, weight=weight, deadline_s=deadline_s)

    # -- one batch -------------------------------------------------------------------------------------------------

    def _run(self, tickets: Sequence[Ticket[Question, dict[str, Any]]]) -> None:
        routing = self.registry.routing
        started = time.monotonic()
        people = self._people([t.question for t in tickets])
        groups: dict[int, tuple[Version, list[tuple[Ticket[Question, dict[str, Any]], Person | None]]]] = {}
        for ticket, person in zip(tickets, people, strict=True):
            version = routing.route(ticket.question.ask.user_id or ticket.question.request_id)
            groups.setdefault(id(version), (version, []))[1].append((ticket, person))
        for version, members in groups.values():
            self.metrics.observe_value("rankloom_batch_size", len(members))
            questions = [(t.question, person) for t, person in members]
            for (ticket, _), result in zip(members, self._serve(version, questions), strict=True):
                if isinstance(result, Exception) and version is routing.canary:
                    # a canary's failure is nobody's failure
                    result = self._serve(routing.current, [(ticket.question, _)])[0]
                if isinstance(result, Exception):
                    ticket.error = result
                else:
                    result["timing_ms"]["queue"] = round((started - ticket.arrived) * 1e3, 3)
                    ticket.result = result
        if routing.shadow is not None:
            for ticket, person in zip(tickets, people, strict=True):
                if ticket.result is not None:
                    items = tuple(item["item_id"] for item in ticket.result["items"])
                    self._to_shadow.append((ticket.question, person, items))

    def _people(self, questions: Sequence[Question]) -> list[Person | None]:
        """What the store knows of each; None where it cannot be asked: then nobody's history may be used, since they may
        have asked to be forgotten."""
        wanted = [q.ask.user_id for q in questions]
        try:
            found = iter(self.store.people([user for user in wanted if user is not None]))
        except StateUnavailableError as error:
            self.metrics.count("rankloom_state_errors_total")
            _log.error("%s", error.message)
            return [Person() if user is None else None for user in wanted]
        return [Person() if user is None else next(found) for user in wanted]

    def _serve(
        self, version: Version, questions: Sequence[tuple[Question, Person | None]]
    ) -> list[dict[str, Any] | Exception]:
        """A reply or an error for each, all from one version."""
        snapshot = version.snapshot
        results: list[dict[str, Any] | Exception | None] = [None] * len(questions)
        prepared: dict[int, Prepared] = {}
        for place, (question, person) in enumerate(questions):
            try:
                prepared[place] = self._prepare(snapshot, question, person)
            except Exception as error:
                results[place] = error
        started = time.perf_counter()
        replies = self._ask(snapshot, list(prepared.values()))
        seconds = time.perf_counter() - started
        for (place, own), reply in zip(prepared.items(), replies, strict=True):
            result, outcome = self._finish(own, reply, seconds)
            self.registry.record(version, outcome)
            results[place] = result
        return [result for result in results if result is not None]

    def _prepare(self, snapshot: Snapshot, question: Question, person: Person | None) -> Prepared:
        ask, rule = question.ask, question.rule
        passing = snapshot.allowed(rule)
        if rule is not None:
            self._recent_rules[rule] = None
            self._recent_rules.move_to_end(rule)
            if len(self._recent_rules) > 32:
                self._recent_rules.popitem(last=False)
        user = ask.user_id
        if person is None or person.deleted:
            if user is not None and person is not None and self.contexts is not None:
                self.contexts.forget(user)  # another server may have been told
            user = None  # a forgotten person's static features are forgotten too
        history = self.history(snapshot, ask, person)
        policy = question.scenario.seen
        if policy == "auto":
            policy = "allow" if question.search else ("mask" if snapshot.model.mask_seen else "allow")
        exclude = list(ask.exclude)
        if policy == "mask":
            exclude += [event.item_id for event in history]
            if ask.history is None and person is not None:
                exclude += person.seen
        rows = snapshot.rows(exclude)
        for name in question.shown:
            rows += snapshot.names.get(name, [])
        allowed = passing.copy()
        allowed[rows] = False
        request = Request(
            user=user, history=tuple(history), k=question.pool, filter=rule, exclude=tuple(snapshot.ids[row] for row in set(rows)),
            query=ask.words, surface="search" if question.search else "feed", explain=ask.explain, seen=policy, sort=ask.sort,
            facets=tuple(ask.facets), min_relevance=question.cut, max_typos=question.typos,
            chance_left=question.left if question.search else None,
        )  # fmt: skip
        cause = "state-unavailable" if person is None and ask.history is None else None
        return Prepared(question, snapshot, request, allowed, bool(history), cause)

    @staticmethod
    def history(snapshot: Snapshot, ask: Ask, person: Person | None) -> list[HistoryEvent]:
        """Whose history counts: the one that was sent, else the model folder's and then what came since."""
        if ask.history is not None:
            return [
                HistoryEvent(h.item_id, event_kind(h.event) or h.event, h.timestamp, h.watch_s, h.surface, query=h.query) for h in ask.history
            ]
        if ask.user_id is None or person is None:
            return []
        stored = [] if person.deleted else snapshot.history_of(ask.user_id)
        return [
            *stored,
            *(HistoryEvent(e.item_id, e.event, e.timestamp, e.watch_s, e.surface, e.position, e.query) for e in person.events),
        ]

    def _ask(self, snapshot: Snapshot, prepared: Sequence[Prepared]) -> list[Recommendation | Exception]:
        """The model's answers; where a batch fails, each alone, so that one question cannot spoil another's."""
        if not prepared:
            return []
        try:
            return list(snapshot.answer([own.request for own in prepared]))
        except Exception as error:
            if len(prepared) == 1:
                if not isinstance(error, RankloomError):
                    _log.exception("the model %s failed", snapshot.version)
                return [error]
            return [reply for own in prepared for reply in self._ask(snapshot, [own])]

    # -- one reply -------------------------------------------------------------------------------------------------

    def _finish(
        self, own: Prepared, reply: Recommendation | Exception, seconds: float
    ) -> tuple[dict[str, Any] | Exception, Outcome]:
        question, snapshot = own.question, own.snapshot
        if isinstance(reply, RankloomError):
            return reply, Outcome(seconds=seconds)
        cause, invalid = own.cause, False
        shown: list[Shown] = []
        if isinstance(reply, Exception):
            self.metrics.count("rankloom_model_errors_total", version=snapshot.version)
            if question.scenario.fallback == "none":
                return reply, Outcome(error=True)
            cause = "model-error"
        else:
            shown, tried = self._guard(own, self._generated(own, reply))
            invalid = tried > 0
            if question.ask.sort is None:
                shown = self._arranged(own, shown)
            shown = shown[: question.ask.k]
            if reply.no_match:
                cause = cause or "no-match"
        cut = question.cut is not None and not isinstance(reply, Exception)
        outcome = Outcome(
            error=isinstance(reply, Exception), empty=not shown and not cut and bool(own.allowed.any()), invalid=invalid, seconds=seconds,
            items=tuple(snapshot.ids[s.row] for s in shown),
        )  # fmt: skip
        # what fills a list would not be in the order that was asked for, and nobody knows how relevant it is
        missing = 0 if question.ask.sort is not None or cut else question.ask.k - len(shown)
        if missing > 0:
            filled = self._fallback(own, {s.row for s in shown}, missing)
            if filled:
                cause = cause or "fallback"
            shown += filled
        shown, _ = self._guard(own, shown)
        if len(shown) < question.ask.k and not cut:
            cause = cause or "fewer-items"
        return self._reply(own, shown, cause, reply), outcome

    def _generated(self, own: Prepared, reply: Recommendation) -> list[Shown]:
        code = "search" if own.request.query else "personal" if own.known else "new-visitor"
        out = []
        for item in reply.items:
            row = own.snapshot.model.row_of(item.item_id)
            out.append(
                Shown(-1 if row is None else row, item.score, (code,), tuple(item.reasons), item.relevance, item.explanation)
            )
        return out

    def _guard(self, own: Prepared, shown: Sequence[Shown]) -> tuple[list[Shown], int]:
        """What may be shown of a list, and how much of it may not."""
        kept: list[Shown] = []
        rows: set[int] = set()
        for place in shown:
            if place.row < 0 or not own.allowed[place.row] or place.row in rows or not math.isfinite(place.score):
                continue
            rows.add(place.row)
            kept.append(place)
        tried = len(shown) - len(kept)
        if tried:
            self.metrics.count("rankloom_guarded_total", tried, version=own.snapshot.version)
        return kept, tried

    def _arranged(self, own: Prepared, shown: list[Shown]) -> list[Shown]:
        """In the order and the mixture that the scenario asks for."""
        scenario, snapshot, k = own.question.scenario, own.snapshot, own.question.ask.k
        if scenario.rearranges and shown:
            rows = [s.row for s in shown]
            fresh = arrange.youth(snapshot.created[rows], time.time(), scenario.freshness_days)
            columns = list(scenario.max_per)
            places = arrange.pick(
                [s.score for s in shown], k, codes_PL=snapshot.model.semantic_ids.codes[rows].astype(np.int64), youth_P=fresh,
                groups_P=[[snapshot.groups[column][row] for row in rows] for column in columns],
                caps=[scenario.max_per[column] for column in columns], diversity=scenario.diversity, freshness=scenario.freshness,
            )  # fmt: skip
            lifted = {place for rank, place in enumerate(places) if scenario.freshness and fresh[place] > 0.5 and place > rank}
            shown = [replace(shown[p], codes=(*shown[p].codes, "fresh")) if p in lifted else shown[p] for p in places]
        if scenario.exploration and shown and own.question.cut is None:
            own_rows = [s.row for s in shown[:k]]
            free = own.allowed.copy()
            free[own_rows] = False
            mixed, new = arrange.explore(own_rows, np.flatnonzero(free), scenario.exploration, own.question.request_id)
            shown = [
                Shown(row, place.score, ("exploration",)) if row in new else place
                for row, place in zip(mixed, shown, strict=False)
            ]
        return shown

    def _fallback(self, own: Prepared, taken: set[int], missing: int) -> list[Shown]:
        """Popular items under the same rules; for a search, those whose title has its words."""
        scenario = own.question.scenario
        if scenario.fallback == "none":
            return []
        snapshot = own.snapshot
        order = snapshot.popular[own.allowed[snapshot.popular]]
        rows = [int(row) for row in order if row not in taken] if own.request.query is None else []
        if own.request.query is not None:
            memory = snapshot.model.query_memory
            if memory is not None:
                # titles are read only where the index says that there is something
                order = order[np.isin(order, memory.match(own.request.query).row)]
            rows = [row for row in arrange.by_words(order, snapshot.titles, own.request.query) if row not in taken]
        counts: dict[str, Counter[str | None]] = {
            column: Counter(snapshot.groups[column][row] for row in taken) for column in scenario.max_per
        }
        chosen: list[int] = []
        for row in rows:
            if len(chosen) == missing:
                break
            groups = {column: snapshot.groups[column][row] for column in scenario.max_per}
            if any(g is not None and counts[c][g] >= scenario.max_per[c] for c, g in groups.items()):
                continue
            for column, group in groups.items():
                counts[column][group] += 1
            chosen.append(row)
        # below what was generated, and among themselves by popularity
        return [Shown(row, -1e6 - place, ("popular",)) for place, row in enumerate(chosen)]

    def _reply(
        self, own: Prepared, shown: Sequence[Shown], cause: str | None, reply: Recommendation | Exception
    ) -> dict[str, Any]:
        question, snapshot = own.question, own.snapshot
        codes = snapshot.model.semantic_ids.codes
        reason = _SENTENCES.get(cause or "")
        if cause == "no-match" and not shown and question.cut is not None:
            reason = f"nothing that may be shown has a relevance of {question.cut:g} or more"
        if cause in ("fewer-items", "fallback"):
            free = int(own.allowed.sum())
            reason = f"{len(shown)} of {question.ask.k}: {free} items may be shown under the filter and the exclusions"
        if cause is not None:
            self.metrics.count("rankloom_degraded_total", cause=cause)
        self.metrics.count("rankloom_replies_total", version=snapshot.version)
        cursor = None
        if len(shown) == question.ask.k and int(own.allowed.sum()) > len(shown):
            names = question.shown.union(paging.name_of(snapshot.ids[s.row]) for s in shown)
            cursor = paging.write(question.question, frozenset(names), _left(shown, reply))
        return {
            "request_id": question.request_id,
            "scenario": question.ask.scenario,
            "model_version": snapshot.version,
            "catalogue_version": snapshot.catalogue,
            "items": [
                {
                    "item_id": snapshot.ids[s.row], "title": snapshot.titles[s.row], "score": s.score, "relevance": s.relevance, "sid": codes[s.row].tolist(),
                    "sponsored": False, "reasons": list(s.reasons), "reason_codes": list(s.codes),
                    "explanation": None if s.explanation is None else asdict(s.explanation),
                }
                for s in shown
            ],
            "next_cursor": cursor,
            "degraded": cause is not None,
            "degraded_cause": cause,
            "degraded_reason": reason,
            "facets": {
                name: [{"value": value, "count": n} for value, n in values]
                for name, values in (reply.facets if isinstance(reply, Recommendation) else {}).items()
            },
            **_understood(reply),
            "timing_ms": dict(reply.timing_ms) if isinstance(reply, Recommendation) else {},
        }  # fmt: skip

    def trace(self, snapshot: Snapshot, question: Question) -> tuple[Recommendation, BeamTrace, set[str]]:
        """One reply as the model gives it, how its beam went, and the items that the person had before; for the page."""
        own = self._prepare(snapshot, question, self._people([question])[0])
        reply, beam = snapshot.model.answer_with_trace(replace(own.request, k=question.ask.k))
        return reply, beam, {event.item_id for event in own.request.history or ()}

    # -- the shadow ------------------------------------------------------------------------------------------------

    def _shadow(self) -> bool:
        """One question that was answered, asked again of the shadow; nobody sees the answer."""
        version = self.registry.routing.shadow
        if version is None:
            self._to_shadow.clear()
            return False
        try:
            question, person, items = self._to_shadow.popleft()
        except IndexError:
            return False
        result = self._serve(version, [(question, person)])[0]
        if isinstance(result, dict) and items:
            same = len(set(items) & {item["item_id"] for item in result["items"]})
            self.metrics.observe_value("rankloom_shadow_overlap", same / len(items))
        return bool(self._to_shadow)


def _left(shown: Sequence[Shown], reply: Recommendation | Exception) -> float:
    """The chance of a search that this page leaves to the next ones."""
    chance = reply.chance if isinstance(reply, Recommendation) else None
    return max(0.0, (chance or 0.0) - sum(own.relevance or 0.0 for own in shown))


def _understood(reply: Recommendation | Exception) -> dict[str, Any]:
    """How the words of a search were read."""
    if not isinstance(reply, Recommendation):
        return {"matches": None, "corrections": [], "unknown_words": []}
    corrections = [{"typed": typed, "read_as": other} for typed, other in reply.read_as]
    return {"matches": reply.matches, "corrections": corrections, "unknown_words": list(reply.unknown)}


_SENTENCES: Final = {
    "no-match": "no item that may be shown matches this search; the list is by meaning and history",
    "model-error": "the model failed; these are popular items under the same rules",
    "state-unavailable": "the state store does not answer: nobody's history is used, since they may have asked to be forgotten",
}

__all__ = ["OverloadedError", "Question", "Service"]
