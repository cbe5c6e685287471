"""One model at one state of the catalogue: what a reply is made from, whole. Never changed; a change makes another.

Live items are documents of the state store, so that they survive a restart and meet every model that is loaded later:
`{"item": fields, "removed": bool, "order": number}` by item id. The last word about an item is the store's. A catalogue is the same whether
its changes came one by one or all at once, as they do to a model that is loaded later: new items in the order in which they first came,
and of an item that was changed and then taken out the changes as well, since histories still name it.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data import schema
from rankloom.data.filters import parse_filter
from rankloom.errors import RankloomError
from rankloom.recommender import Rankloom
from rankloom.requests import HistoryEvent, Recommendation, Request
from rankloom.serving.paging import name_of
from rankloom.serving.state import Document

KIND: Final = "item"
_log = logging.getLogger("rankloom.serving")
# what a copied model has to have for itself: the only thing that is changed in place, the rest is replaced
_OWN: Final = ("_alive",)


class Snapshot:
    """See the module's docstring. One thread at a time asks it.

    Args:
        catalogue: sequence of the last change of the live items that it knows.
    """

    def __init__(self, model: Rankloom, catalogue: int = 0) -> None:
        self.model = model
        self.version = model.model_version
        self.catalogue = catalogue
        self.n_rows = model.items.height
        self.alive = np.zeros(self.n_rows, dtype=np.bool_)
        self.alive[model.trie.leaf_items.numpy()] = True
        self._masks: OrderedDict[str, NDArray[np.bool_]] = OrderedDict()

    # -- rules -----------------------------------------------------------------------------------------------------

    def allowed(self, rule: str | None) -> NDArray[np.bool_]:
        """(I,) bool: in the catalogue and passing the filter. Raises RankloomError for a filter that does not fit."""
        if rule is None:
            return self.alive
        own = self._masks.get(rule)
        if own is None:
            own = parse_filter(rule).mask(self.model.items) & self.alive
            self._masks[rule] = own
            if len(self._masks) > 256:
                self._masks.popitem(last=False)
        return own

    def rows(self, item_ids: Sequence[str]) -> list[int]:
        """Catalogue rows of the items that are known."""
        found = (self.model.row_of(item) for item in item_ids)
        return [row for row in found if row is not None]

    @cached_property
    def ids(self) -> list[str]:
        """Item id of each row."""
        own: list[str] = self.model.items["item_id"].to_list()
        return own

    @cached_property
    def titles(self) -> list[str]:
        own: list[str] = self.model.items["title"].to_list()
        return own

    @cached_property
    def currency(self) -> str | None:
        """What prices are in, None where no item says."""
        items = self.model.items
        named = items["currency"].drop_nulls() if "currency" in items.columns else pl.Series([], dtype=pl.String)
        return None if named.is_empty() else str(named.value_counts(sort=True)[named.name][0])

    @cached_property
    def popular(self) -> NDArray[np.int64]:
        """Rows, the most taken first; new items last."""
        return np.argsort(-self.model.semantic_ids.prior, kind="stable")

    @cached_property
    def names(self) -> dict[bytes, list[int]]:
        """Rows by the name that cursors use."""
        out: dict[bytes, list[int]] = {}
        for row, item in enumerate(self.ids):
            out.setdefault(name_of(item), []).append(row)
        return out

    @cached_property
    def created(self) -> NDArray[np.float64]:
        """(I,) seconds since 1970 at which an item came, NaN where unknown."""
        if "created_at" not in self.model.items.columns:
            return np.full(self.n_rows, np.nan)
        own = self.model.items["created_at"].dt.epoch("us").cast(pl.Float64) / 1e6
        return own.fill_null(float("nan")).to_numpy()

    @cached_property
    def groups(self) -> dict[str, list[str | None]]:
        """What `max_per` counts: the brand of each row, and its category's second level."""
        items = self.model.items
        nothing: list[str | None] = [None] * self.n_rows
        brands = items["brand"].to_list() if "brand" in items.columns else nothing
        paths = items["category"].to_list() if "category" in items.columns else nothing
        return {"brand": brands, "category": [" / ".join(path[:2]) if path else None for path in paths]}

    # -- asking ----------------------------------------------------------------------------------------------------

    def answer(self, requests: Sequence[Request]) -> list[Recommendation]:
        """What the model says."""
        return self.model.recommend_batch(requests)

    def history_of(self, user: str) -> list[HistoryEvent]:
        """The model folder's copy of a person's history."""
        return self.model.history_of(user)

    def probe(self) -> None:
        """Asks what every fit model can answer, alone and together.

        Raises:
            RankloomError: nothing comes, or no numbers, or items that are not there or come twice.
        """
        k = min(5, int(self.alive.sum()))
        if k == 0:
            raise unfit("its catalogue is empty")
        users = [*self.model.users[:3], None]
        requests = [Request(user, k=k, seen="allow") for user in users]
        together = self.answer(requests)
        for request, reply in zip(requests, together, strict=True):
            rows = self.rows([item.item_id for item in reply.items])
            if len(rows) < k or len(set(rows)) < k or not self.alive[rows].all():
                raise unfit(f"it names {len(set(rows))} of {k} items")
            if not np.isfinite([item.score for item in reply.items]).all():
                raise unfit("its scores are no numbers")
            if len(self.answer([request])[0].items) < k:
                raise unfit("alone it answers otherwise than together")

    def warm_up(self, rules: Sequence[str] = ()) -> None:
        """Runs the shapes of real batches once, and the rules that are in use, before anybody waits for them."""
        user = self.model.users[0] if self.model.users else None
        self.model.capture()
        for size in (1, 4, 16):
            self.answer([Request(user, k=10)] * size)
        for rule in rules:
            try:
                self.allowed(rule)
                self.answer([Request(user, k=10, filter=rule)])
            except RankloomError:
                continue  # a column that this catalogue lacks: the request will be told
        _ = self.popular, self.ids, self.titles

    # -- the catalogue, live ---------------------------------------------------------------------------------------

    def with_changes(self, changes: Sequence[Document], *, lenient: bool = False) -> Snapshot:
        """A snapshot that knows these changes too; this one stays as it is.

        Args:
            lenient: pass over what this model cannot take in, and say so in the log.
        """
        if not changes:
            return self
        try:
            model = self._changed(changes)
        except Exception as error:
            if not lenient:
                raise
            if len(changes) == 1:
                _log.error("item %r cannot be taken in: %s", changes[0].name, error)
                return Snapshot(self.model, changes[0].sequence)
            middle = len(changes) // 2
            return self.with_changes(changes[:middle], lenient=True).with_changes(changes[middle:], lenient=True)
        return Snapshot(model, changes[-1].sequence)

    def _changed(self, changes: Sequence[Document]) -> Rankloom:
        model = _copy(self.model)
        told = sorted((d.value for d in changes), key=lambda value: value.get("order", 0))
        put = [own["item"] for own in told if not own["removed"] or own["item"]]
        gone = [d.name for d in changes if d.value["removed"]]
        if put:
            model.add_items(items_frame(put))
        if gone:
            model.remove_items(gone)
        return model


def unfit(fact: str) -> RankloomError:
    """A model folder that is whole and does not work."""
    return RankloomError(
        f"the model does not pass its probe: {fact}", action="train again; the serving model stays", code="model-unfit"
    )


def items_frame(items: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Items as they came over HTTP, in the shop's types."""
    rows = []
    for own in items:
        row = dict(own)
        if isinstance(row.get("attributes"), dict):
            row["attributes"] = [{"key": key, "value": value} for key, value in row["attributes"].items()]
        if isinstance(row.get("created_at"), str):
            row["created_at"] = datetime.fromisoformat(row["created_at"])
        rows.append(row)
    kinds = {**schema.ITEM_REQUIRED, **schema.ITEM_OPTIONAL}
    names = [name for name in kinds if any(name in row for row in rows)]
    return pl.DataFrame(rows, schema={name: kinds[name] for name in names})


def _copy(model: Rankloom) -> Rankloom:
    """A model whose catalogue can be changed without touching this one's. Everything that is replaced and not changed in
    place is shared: weights, vectors, tables, the text encoder.

    The original answers meanwhile and fills its caches; where the copying meets that, once more.
    """
    shared: list[Any] = [own for name, own in vars(model).items() if name not in (*_OWN, "model", "tokenizer")]
    shared += [*model.model.parameters(), *model.model.buffers(), *vars(model.tokenizer).values()]
    memo = {id(own): own for own in shared if own is not None}
    for attempt in range(20):
        try:
            return copy.deepcopy(model, dict(memo))
        except RuntimeError:
            if attempt == 19:
                raise
    raise AssertionError("unreachable")
