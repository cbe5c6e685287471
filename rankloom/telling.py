"""Why an item is in a list, told when somebody asks: sentences (reasons.py) and figures (explaining.py) of one state of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from rankloom.catalogue import Catalogue
from rankloom.decoding.choices import Choices
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_memory import QueryMemory
from rankloom.decoding.select import Weights
from rankloom.explaining import Explainer, above_the_mean, refiner_parts
from rankloom.ordering import Generated, as_broad, parts
from rankloom.reasons import Reasons
from rankloom.requests import Explanation
from rankloom.semantic.tokenizer import Tokenizer


class Teller:
    """Builds what it reads of the catalogue with the first question, and keeps it."""

    def __init__(
        self,
        catalogue: Catalogue,
        tokenizer: Tokenizer,
        memory: BehaviourMemory | None,
        query_memory: QueryMemory | None,
    ) -> None:
        self.catalogue, self.tokenizer, self.memory, self.query_memory = catalogue, tokenizer, memory, query_memory

    @cached_property
    def _reasons(self) -> Reasons:
        own = self.tokenizer
        ids = own.semantic_ids
        return Reasons(self.catalogue.items, own.aligned, own.content, ids.codes, ids.prior, self.memory)

    @cached_property
    def _explainer(self) -> Explainer:
        keywords = None if self.tokenizer.keywords is None else self.tokenizer.keywords.matcher
        codes = self.tokenizer.semantic_ids.codes
        return Explainer(self.catalogue.items, self.catalogue.trie, codes, self.query_memory, keywords)

    def reasons(self, rows: list[int], seen: list[int], query: str | None, typos: int) -> list[list[str]]:
        """Sentences for each row.

        Args:
            seen: rows of the person's history, oldest first.
            query: of a search.
            typos: slips of a word that it forgives.
        """
        if query:
            vector = self.tokenizer.embed_texts([query])[0]
            return self._reasons.of_search(rows, query, vector, self.query_memory, typos)
        return self._reasons.of_history(rows, seen)

    def explanations(
        self, rows: Sequence[int], number: int, generated: Generated, query: str | None, typos: int, *,
        weights: Weights, search: Choices,
    ) -> list[Explanation | None]:  # fmt: skip
        """Figures for each row of one request, the `number`-th of those that were generated for.

        Args:
            weights: of the feed.
            search: how searches are ordered.
        """
        if not rows:
            return []
        if generated.query is not None:
            weights, broad = search.weights, search.broad
            if broad is not None and generated.query.breadth_B[number] >= broad.least:
                generated, weights = as_broad(generated, weights, broad)
        item_C = generated.candidates.item_BC[number]
        column_of = {row: column for column, row in enumerate(item_C.tolist())}
        columns, real_C = [column_of[row] for row in rows], item_C >= 0
        own = {name: value[number] for name, value in parts(generated, weights).items()}
        told = above_the_mean(own, real_C, columns)
        refined: list[dict[str, float]] = [{} for _ in rows]
        if "refiner" in own and generated.refiner is not None:
            refined = refiner_parts(generated.refiner, generated.feature_BCF[number], real_C, columns)
        found = self._explainer.words(rows, query, typos) if query else [[] for _ in rows]
        return [
            Explanation(found[place], self._explainer.path(row, generated.beams, number), told[place], refined[place])
            for place, row in enumerate(rows)
        ]
