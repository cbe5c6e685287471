"""The hashed text embedder: a query costs what its own terms cost, and gives what the whole product gives."""

from __future__ import annotations

import tracemalloc

import numpy as np

from rankloom.semantic.hashed import HashedTextEmbedder

TEXTS = ["red cotton shirt", "blue cotton shirt", "blue silk dress", "green tea", "black tea bags", "红茶 茶包", "茶包 礼盒"]


def test_a_query_reads_only_the_buckets_that_it_has() -> None:
    own = HashedTextEmbedder(64)
    own.fit(TEXTS * 3)
    own.embed(["blue tea"])
    tracemalloc.start()
    own.embed(["blue tea"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # all buckets as float32 would be 8 MiB
    assert peak < 500_000


def test_vectors_are_those_of_the_whole_product() -> None:
    own = HashedTextEmbedder(64)
    own.fit(TEXTS * 3)
    asked = [*TEXTS, "", "zzzz nobody", "blue blue tea"]
    whole = np.asarray(own._weighted(own._counts(asked)) @ own.components.astype(np.float32))
    norm = np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_array_equal(own.embed(asked), np.divide(whole, norm, out=np.zeros_like(whole), where=norm > 1e-8))
    np.testing.assert_array_equal(own.embed(asked[:1]), own.embed(asked)[:1])
