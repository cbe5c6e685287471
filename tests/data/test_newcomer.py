"""Files as a shop has them, in their own language: told apart, mapped, and never half understood in silence."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from rankloom.cli import app
from rankloom.data.importing import import_data
from rankloom.data.validate import guess_format, validate_source
from rankloom.errors import RankloomError

ITEMS = "artikelnr,bezeichnung,preis_eur,warengruppe,lager\n" + "".join(
    f'A{n},Kaffee {n},"{n},50 EUR",Kaffee,R{n % 3}\n' for n in range(1, 9)
)
LOG = "kunde,artikelnr,aktion,zeitpunkt\n" + "".join(
    f"K{n % 4},A{1 + n % 8},{('view', 'buy', 'Wishlist', 'stupste')[n % 4]},2026-05-{1 + n % 28:02d} 10:{n % 60:02d}\n" for n in range(60)
)
KNOWN = LOG.replace("stupste", "view")


def folder(path: Path, log: str = KNOWN, items: str = ITEMS, names: tuple[str, str] = ("produkte.csv", "verhalten.csv")) -> Path:
    path.mkdir()
    (path / names[0]).write_text(items, encoding="utf-8")
    (path / names[1]).write_text(log, encoding="utf-8")
    return path


def test_files_of_any_names_in_german_need_no_mapping(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path / "src"), tmp_path / "shop")
    assert report.rows == {"items": 8, "events": 60}
    items = pl.read_parquet(tmp_path / "shop" / "items.parquet")
    assert items["price_micros"].to_list()[:2] == [1_500_000, 2_500_000]
    assert items["title"].to_list()[0] == "Kaffee 1"
    kinds = pl.read_parquet(tmp_path / "shop" / "events.parquet")["event"].value_counts()
    assert dict(kinds.iter_rows()) == {"view": 30, "purchase": 15, "like": 15}
    assert "by their columns: verhalten.csv read as the events, produkte.csv read as the items" in report.notices
    kept = json.loads((tmp_path / "shop" / "shop.json").read_text())["mapping"]
    assert kept["verhalten.csv"] == {"item_id": "artikelnr", "user_id": "kunde", "timestamp": "zeitpunkt", "event": "aktion"}


def test_columns_that_nothing_was_made_of_are_named(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path / "src"), tmp_path / "shop")
    assert any(notice.startswith("produkte.csv: columns not used: 'lager' (such as 'R1')") for notice in report.notices)
    assert not any("verhalten.csv: columns not used" in notice for notice in report.notices)


def test_time_and_kind_are_known_by_their_values(tmp_path: Path) -> None:
    log = KNOWN.replace("kunde,artikelnr,aktion,zeitpunkt", "kunde,artikelnr,xx,yy")
    report = import_data("csv", folder(tmp_path / "src", log), tmp_path / "shop")
    why = {own.shop: (own.source, own.why) for own in report.mapping["verhalten.csv"]}
    assert why["timestamp"] == ("yy", "its values are times")
    assert why["event"] == ("xx", "its values are kinds of events")
    assert why["item_id"] == ("artikelnr", "as in the catalogue")


def test_words_that_are_no_kinds_are_not_taken_for_some(tmp_path: Path) -> None:
    log = "kunde,artikelnr,filiale,zeitpunkt\n" + "".join(f"K{n},A1,Nord {n % 2},2026-05-01 10:0{n}\n" for n in range(8))
    report = import_data("csv", folder(tmp_path / "src", log), tmp_path / "shop")
    assert "event" not in {own.shop for own in report.mapping["verhalten.csv"]}
    assert any("no event kind; every row read as a click" in notice for notice in report.notices)
    assert any("columns not used: 'filiale'" in notice for notice in report.notices)


def test_unknown_kinds_are_refused_with_the_way_out_and_then_taken_or_left(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", LOG)
    with pytest.raises(RankloomError) as refused:
        import_data("csv", source, tmp_path / "shop")
    assert "--drop-event stupste" in str(refused.value.action)
    assert not (tmp_path / "shop").exists()
    taken = import_data("csv", source, tmp_path / "taken", kinds={"Stupste": "click"})
    assert taken.rows["events"] == 60
    left = import_data("csv", source, tmp_path / "left", drop=["STUPSTE", "nie"])
    assert left.rows["events"] == 45
    assert "--drop-event stupste: 15 events left out" in left.notices
    assert "--drop-event nie: 0 events left out; no event has this kind" in left.notices
    with pytest.raises(RankloomError, match="no event kind 'tap'"):
        import_data("csv", source, tmp_path / "no", kinds={"stupste": "tap"})
    with pytest.raises(RankloomError, match="kinds of its own"):
        import_data("movielens", source, tmp_path / "no", drop=["x"])


def test_price_is_a_name_for_price_micros(tmp_path: Path) -> None:
    items = ITEMS.replace("preis_eur", "wert")
    import_data("csv", folder(tmp_path / "src", items=items), tmp_path / "shop", mapping={"price": "wert"})
    assert pl.read_parquet(tmp_path / "shop" / "items.parquet")["price_micros"][0] == 1_500_000


def test_everything_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    log = "a,artikelnr,b\nK1,A1,x\nK2,A2,y\n"
    source = folder(tmp_path / "src", log, names=("items.csv", "events.csv"))
    with pytest.raises(RankloomError) as refused:
        import_data("csv", source, tmp_path / "shop")
    assert "no column for user_id and timestamp" in refused.value.message
    assert "--map user_id=" in str(refused.value.action)
    assert "--map timestamp=" in str(refused.value.action)


def test_looking_first_shows_the_mapping_and_the_way_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "src")
    assert guess_format(source) == "csv"
    told: list[str] = []
    assert validate_source(source, "csv", say=told.append).errors == []
    assert "verhalten.csv: event <- 'aktion' (a usual name for it)" in told[0]
    run = CliRunner().invoke(app, ["validate", str(source), "--drop-event", "buy"])
    assert run.exit_code == 0
    assert "--drop-event buy: 15 events left out" in run.output
    run = CliRunner().invoke(app, ["import", "csv", str(source), "--out", str(tmp_path / "s"), "--map-event", "buy"])
    assert run.exit_code != 0
    assert not (tmp_path / "s").exists()
