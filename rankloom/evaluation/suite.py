"""Which systems stand beside a model: the floors, the strong plain baseline, and the cascade it replaces."""

from __future__ import annotations

from typing import Final, Literal

from rankloom.data.sequences import Sequences
from rankloom.data.shop import Shop
from rankloom.evaluation.cascade import Cascade
from rankloom.evaluation.floors import ItemKNN, Markov, Popularity
from rankloom.evaluation.rankloom_system import RankloomSystem
from rankloom.evaluation.sasrec import SASRec
from rankloom.evaluation.systems import FloatArray, System

Baselines = Literal["none", "quick", "all"]
SYSTEMS: Final = ("rankloom", "rankloom-generator", "sasrec", "markov", "popularity", "cascade", "item-knn")


def suite(
    own: RankloomSystem, shop: Shop, sequences: Sequences, *, baselines: Baselines = "all", quiet: bool = False
) -> tuple[list[System], FloatArray]:
    """The systems of one evaluation, the model first, and the content vectors of the shop's items.

    Args:
        own: the model with selection; the generator alone is added beside it.
        baselines: `quick` leaves out SASRec, which takes minutes to train.
    """
    model = own.model
    content: FloatArray = model.tokenizer.content[own.row_of_shop_item]
    systems: list[System] = [own, RankloomSystem(model, shop, select=False, beam=own.beam, quiet=quiet)]
    if baselines == "none":
        return systems, content
    # the cascade may read a search's words with the same embedder as the generator
    queries = model.tokenizer.embed_texts(list(sequences.queries)) if sequences.queries else None
    systems += [Popularity(), Markov(), ItemKNN(), Cascade(items=shop.items(), query_vectors=queries, quiet=quiet)]
    if baselines == "all":
        systems += [SASRec(use_text=text, quiet=quiet) for text in (False, True)]
    return systems, content
