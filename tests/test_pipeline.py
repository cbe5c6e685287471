from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from rankloom import model_folder
from rankloom.choosing import describe_weights
from rankloom.config import Config
from rankloom.data.shop import Shop, write_shop
from rankloom.decoding.select import Weights
from rankloom.errors import RankloomError
from rankloom.files import sha256_file
from rankloom.pipeline import train


def test_a_killed_run_resumes_to_the_same_bits(
    bazaar: Shop, tiny_config: Config, tmp_path: Path, model_path: Path
) -> None:
    out = tmp_path / "model"
    # a checkpoint after every step, so that each stop is resumed in the middle of an epoch
    tiny_config = tiny_config.with_overrides(["training.checkpoint_minutes=0"])
    for _ in range(3):
        assert train(bazaar.path, out, tiny_config, resume=True, quiet=True, limit_steps=17) is None
        assert not out.exists()
        assert (tmp_path / "model.training" / "run.json").exists()
        assert (tmp_path / "model.training" / "checkpoint.safetensors").exists()
    train(bazaar.path, out, tiny_config, resume=True, quiet=True)
    assert sha256_file(out / model_folder.WEIGHTS) == sha256_file(model_path / model_folder.WEIGHTS)
    assert not (tmp_path / "model.training").exists()


def test_one_seed_gives_one_model(bazaar: Shop, tiny_config: Config, tmp_path: Path, model_path: Path) -> None:
    train(bazaar.path, tmp_path / "again", tiny_config, quiet=True)
    assert sha256_file(tmp_path / "again" / model_folder.WEIGHTS) == sha256_file(model_path / model_folder.WEIGHTS)
    # however long it took
    versions = {model_folder.check(folder)["model_version"] for folder in (tmp_path / "again", model_path)}
    assert len(versions) == 1


def test_the_model_folder_says_what_it_is(model_path: Path) -> None:
    manifest = model_folder.check(model_path)
    assert set(model_folder.REQUIRED) - {model_folder.MANIFEST} <= set(manifest["files"])
    card = (model_path / model_folder.CARD).read_text(encoding="utf-8")
    assert "simulated" in card
    assert "ICR" in card
    log = [json.loads(line) for line in (model_path / model_folder.LOG).read_text(encoding="utf-8").splitlines()]
    assert log[-1]["valid_generation_loss"] < log[0]["valid_generation_loss"]


@pytest.mark.parametrize(
    "name", [model_folder.WEIGHTS, model_folder.SEMANTIC_IDS, model_folder.ITEMS, model_folder.CONFIG]
)
def test_a_damaged_folder_is_refused_by_name(model_path: Path, tmp_path: Path, name: str) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model_path, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / name).write_bytes(content)
    with pytest.raises(RankloomError, match=f"{name} is damaged"):
        model_folder.check(copy)
    (copy / name).unlink()
    with pytest.raises(RankloomError, match=f"lacks {name}"):
        model_folder.check(copy)


def test_what_is_no_model_folder_is_refused(tmp_path: Path, bazaar: Shop) -> None:
    with pytest.raises(RankloomError, match="no model folder"):
        model_folder.check(tmp_path / "nothing")
    with pytest.raises(RankloomError, match="not a model folder"):
        model_folder.check(bazaar.path)


def test_an_existing_output_is_not_replaced(bazaar: Shop, tiny_config: Config, model_path: Path) -> None:
    with pytest.raises(RankloomError, match="not empty"):
        train(bazaar.path, model_path, tiny_config, quiet=True)


def test_resuming_with_other_flags_is_refused(bazaar: Shop, tiny_config: Config, tmp_path: Path) -> None:
    train(bazaar.path, tmp_path / "m", tiny_config, quiet=True, limit_steps=1)
    with pytest.raises(RankloomError, match="another shop or configuration"):
        train(bazaar.path, tmp_path / "m", tiny_config.with_overrides(["seed=9"]), resume=True, quiet=True)


def test_a_shop_that_is_too_small_is_refused(tmp_path: Path, tiny_config: Config, bazaar: Shop) -> None:
    events = pl.read_parquet(bazaar.path / "events.parquet").filter(pl.col("user_id") == "u1").head(3)
    events = events.with_columns(pl.lit("click").alias("event"))
    write_shop(tmp_path / "shop", items=bazaar.items(), events=events)
    with pytest.raises(RankloomError):
        train(tmp_path / "shop", tmp_path / "m", tiny_config, quiet=True)


def test_the_weights_are_told_in_words() -> None:
    assert describe_weights(Weights(mix=1.0)) == "the generator orders the list; no behaviour memory"
    assert describe_weights(Weights(mix=0.0, memory=0.15, selection_memory=0.6, refine=1.0)) == (
        "the selection head orders what is generated; the behaviour memory is 15% of the generator and 60% of the selection; "
        "a refiner has the last word"
    )
    told = describe_weights(Weights(mix=0.3, lift=0.75, now=0.15))
    assert told.startswith("the list is ordered 30% by the generator and 70% by the selection head")
    assert told.endswith("strength 0.75 in the generator, 0.15 in the order)")


def test_few_validation_cases_are_warned_about(bazaar: Shop, tiny_config: Config, tmp_path: Path) -> None:
    events = pl.read_parquet(bazaar.path / "events.parquet")
    people = events["user_id"].unique().sort().head(8)
    small = write_shop(tmp_path / "few", items=bazaar.items(), events=events.filter(pl.col("user_id").is_in(people.implode())))
    told: list[str] = []
    train(small.path, tmp_path / "model", tiny_config, say=told.append, quiet=True)
    assert any(line.startswith("warning: only") for line in told)
