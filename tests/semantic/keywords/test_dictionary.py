from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rankloom.errors import RankloomError
from rankloom.semantic.keywords.dictionary import Keyword, KeywordDictionary, sparse_counts


def example() -> KeywordDictionary:
    counts = sparse_counts(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([3.0, 1.0, 4.0]), (2, 2))
    keywords = [Keyword("跑鞋", "entity", 5, 2, "column"), Keyword("red", "color", 5, 0, "lexicon")]
    return KeywordDictionary(keywords, ["Sports", "Home > 厨房"], counts, np.array([10.0, 20.0]))


def test_it_comes_back_from_json_and_from_arrays(tmp_path: Path) -> None:
    own = example()
    own.save(tmp_path / "keywords.json")
    assert KeywordDictionary.load(tmp_path / "keywords.json") == own
    save_file(own.arrays(), tmp_path / "k.safetensors")
    assert KeywordDictionary.from_arrays(load_file(tmp_path / "k.safetensors")) == own
    assert [file.name for file in tmp_path.iterdir() if ".tmp-" in file.name] == []
    empty = KeywordDictionary([])
    assert KeywordDictionary.from_json(json.loads(json.dumps(empty.to_json()))) == empty
    assert empty != own


def test_the_report_counts_types_and_sources() -> None:
    assert example().report() == {
        "keywords": 2,
        "kinds": {"entity": 1, "color": 1},
        "sources": {"column": 1, "lexicon": 1},
        "groups": 2,
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "not a keyword dictionary"),
        ({"version": 2}, "not a keyword dictionary"),
        ({"keywords": [["Red", "color", 1, 0, "own"], ["跑鞋", "entity", 1, 0, "own"]]}, "not folded"),
        ({"keywords": [["red", "color", 1, 0, "own"]] * 2}, "twice"),
        ({"keywords": [["red", "color"]]}, "damaged"),
        ({"counts": [[0], [7], [1.0]]}, "damaged"),
        ({"groups": [["Sports"]]}, "damaged"),
    ],
)
def test_what_is_not_one_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "keywords.json"
    path.write_text(json.dumps({**example().to_json(), **change}), encoding="utf-8")
    with pytest.raises(RankloomError, match=says):
        KeywordDictionary.load(path)
    with pytest.raises(RankloomError, match="damaged"):
        KeywordDictionary.from_arrays({"dictionary": np.array([1, 2], dtype=np.uint8)})
    with pytest.raises(RankloomError, match="no file"):
        KeywordDictionary.load(tmp_path / "none.json")
