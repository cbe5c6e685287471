"""Files as a shop has them, in their own language: told apart, mapped, and never half understood in silence."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from pathlib import Path

import polars as pl
import pytest

from rankloom.cli import main
from rankloom.data.importing import ImportReport, import_data
from rankloom.data.validate import guess_format, validate, validate_source
from rankloom.errors import RankloomError
from rankloom.serving.contract import ItemIn

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
    assert "by their columns: produkte.csv read as the items, verhalten.csv read as the events" in report.notices
    kept = json.loads((tmp_path / "shop" / "shop.json").read_text())["mapping"]
    assert kept["verhalten.csv"] == {"item_id": "artikelnr", "user_id": "kunde", "timestamp": "zeitpunkt", "event": "aktion"}


def test_columns_that_nothing_was_made_of_are_named(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path / "src"), tmp_path / "shop")
    assert any(own.startswith("produkte.csv: columns not used: 'lager' (such as 'R1')") for own in report.warnings)
    assert not any("verhalten.csv: columns not used" in own for own in report.warnings)
    assert json.loads((tmp_path / "shop" / "shop.json").read_text())["warnings"][0].startswith("produkte.csv: columns not used")


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
    assert any("no event kind; every row read as a click" in own for own in report.warnings)
    assert any("columns not used: 'filiale'" in own for own in report.warnings)


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
    shown: list[ImportReport] = []
    assert validate_source(source, "csv", show=shown.append).errors == []
    assert ("event", "aktion") in {(own.shop, own.source) for own in shown[0].mapping["verhalten.csv"]}
    status, said = run("validate", str(source), "--drop-event", "buy")
    assert status == 0
    assert "event     <- 'aktion'" in said
    assert said.count("columns not used: 'lager'") == 1
    assert "--drop-event buy: 15 events left out" in said
    assert f"to import it: rankloom import csv {source} --out shop --drop-event buy --yes" in said
    told = json.loads(run("validate", str(source), "--json")[1])
    assert told["mapping"]["verhalten.csv"][0]["source"] == "artikelnr"
    assert "columns not used" in told["warnings"][0]


def run(*words: str) -> tuple[int, str]:
    """The command line as a process would see it: exit status, and both streams."""
    out = io.StringIO()
    before = sys.argv
    sys.argv = ["rankloom", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = before
    return int(left.value.code or 0), out.getvalue()


def test_without_a_terminal_a_guess_is_refused_with_the_command_that_agrees(tmp_path: Path) -> None:
    source, shop = folder(tmp_path / "src"), tmp_path / "a shop"
    status, said = run("import", "csv", str(source), "--out", str(shop), "--map", "price=preis_eur")
    assert status == 2
    assert "user_id   <- 'kunde'" in said
    assert f"rankloom import csv {source} --out '{shop}' --map price=preis_eur --yes" in said
    assert not shop.exists()
    assert run("import", "csv", str(source), "--out", str(shop), "--map", "price=preis_eur", "--yes")[0] == 0
    plain = folder(tmp_path / "plain", "user_id,item_id,timestamp,event\nu,a,1767225600,view\n", "item_id,title\na,Tea\n", ("items.csv", "events.csv"))
    assert run("import", "csv", str(plain), "--out", str(tmp_path / "plain-shop"))[0] == 0


def test_a_format_with_a_layout_of_its_own_needs_no_agreement(tmp_path: Path) -> None:
    source = tmp_path / "lists"
    source.mkdir()
    pl.DataFrame({"item_id": [1, 2], "name": ["Tea", "Pot"], "n_seen": [3, 4]}).write_parquet(source / "items.parquet")
    pl.DataFrame({"user_id": [1, 2], "items": [[1, 2, 1], [2, 1, 2]]}).write_parquet(source / "sequences.parquet")
    assert run("import", "sequences", str(source), "--out", str(tmp_path / "shop"))[0] == 0
    assert (tmp_path / "shop" / "shop.json").exists()


def test_a_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    source = folder(tmp_path / "src")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    status, said = run("import", "csv", str(source), "--out", str(tmp_path / "shop"))
    assert (status, "Is this mapping right?" in said, (tmp_path / "shop").exists()) == (2, True, False)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    status, said = run("import", "csv", str(source), "--out", str(tmp_path / "shop"))
    assert (status, said.count("<- 'kunde'")) == (0, 1)


def test_exit_status_is_0_for_done_1_for_a_shop_with_errors_2_for_bad_input(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", LOG)
    assert run("validate", str(folder(tmp_path / "good")))[0] == 0
    status, said = run("validate", str(source))
    assert status == 1
    assert f"rankloom validate {source} --drop-event stupste" in said
    assert run("import", "csv", str(source), "--out", str(tmp_path / "shop"), "--yes")[0] == 2
    assert run("validate", str(tmp_path / "nowhere"))[0] == 2
    assert run("validate", str(source), "--nonsense")[0] == 2
    assert run("validate")[0] == 2
    assert run("import", "csv", str(source), "--out", str(tmp_path / "shop"), "--map-event", "buy")[0] == 2
    assert not (tmp_path / "shop").exists()


def test_ids_are_found_by_their_values(tmp_path: Path) -> None:
    items = ITEMS.replace("artikelnr", "kennung")
    log = KNOWN.replace("artikelnr", "was")
    report = import_data("csv", folder(tmp_path / "src", log, items), tmp_path / "shop")
    assert ("item_id", "kennung", "unique, and the log names its values") in [(m.shop, m.source, m.why) for m in report.mapping["produkte.csv"]]
    assert ("item_id", "was", "its values are ids of the catalogue") in [(m.shop, m.source, m.why) for m in report.mapping["verhalten.csv"]]
    assert report.unjoined == 0


def test_a_name_that_holds_no_ids_gives_way_to_the_column_that_does(tmp_path: Path) -> None:
    lines = KNOWN.splitlines()
    log = "\n".join([lines[0].replace("artikelnr", "nr") + ",artikel", *(line + ",Kaffee" for line in lines[1:])])
    report = import_data("csv", folder(tmp_path / "src", log, ITEMS.replace("artikelnr", "nr_x")), tmp_path / "shop")
    assert {m.shop: m.source for m in report.mapping["verhalten.csv"]}["item_id"] == "nr"


def test_a_price_is_known_by_a_name_that_says_it_and_by_numbers(tmp_path: Path) -> None:
    items = ITEMS.replace("preis_eur", "vk_preis_brutto")
    report = import_data("csv", folder(tmp_path / "src", items=items), tmp_path / "shop")
    assert {m.shop: m.source for m in report.mapping["produkte.csv"]}["price_micros"] == "vk_preis_brutto"
    words = items.replace("50 EUR", "viel Geld")
    report = import_data("csv", folder(tmp_path / "words", items=words), tmp_path / "other")
    assert "price_micros" not in {m.shop for m in report.mapping["produkte.csv"]}


def test_what_looks_like_kinds_never_becomes_clicks_in_silence(tmp_path: Path) -> None:
    # a quarter of known words are enough to suspect a column; that it was none, `--map event=` says
    log = KNOWN.replace("aktion", "xx").replace("buy", "tun").replace("Wishlist", "lassen")
    log = log.replace(",view,", ",sehen,", 15)
    source = folder(tmp_path / "src", log)
    with pytest.raises(RankloomError, match="unknown event kinds: ") as refused:
        import_data("csv", source, tmp_path / "shop")
    assert all(f"'{word}' (15)" in refused.value.message for word in ("sehen", "tun", "lassen"))
    report = import_data("csv", source, tmp_path / "shop", mapping={"event": ""})
    assert any("every row read as a click" in own for own in report.warnings)
    with pytest.raises(RankloomError, match="no column for user_id"):
        import_data("csv", source, tmp_path / "no", mapping={"user_id": ""})


@pytest.mark.parametrize("word", ["Add to Cart", "addToCart", "ADD-TO-CART", "加购", "Warenkorb"])
def test_synonyms_are_known_however_they_are_written(tmp_path: Path, word: str) -> None:
    import_data("csv", folder(tmp_path / "src", KNOWN.replace("buy", word)), tmp_path / "shop")
    assert (pl.read_parquet(tmp_path / "shop" / "events.parquet")["event"] == "add_to_cart").sum() == 15


def test_all_that_both_files_lack_is_one_error_with_the_whole_command(tmp_path: Path) -> None:
    items, log = "a,b\nA1,x y\nA1,x y\n", "c,d,e\nK1,zz,x\nK1,zz,y\nK2,zy,y\n"
    source = folder(tmp_path / "src", log, items, ("items.csv", "events.csv"))
    status, said = run("import", "csv", str(source), "--out", str(tmp_path / "shop"), "--yes")
    assert status == 2
    assert "items.csv: no column for item_id" in said
    assert "events.csv: no column for user_id and item_id and timestamp" in said
    command = next(line for line in said.splitlines() if "what to do" in line).partition("rankloom ")[2]
    words = shlex.split(command)
    assert [word.partition("=")[0] for word in words if "=" in word] == ["item_id", "user_id", "timestamp"]
    assert words[-1] == "--yes"
    assert f"rankloom validate {source} --map item_id=" in run("validate", str(source))[1]


def test_the_two_files_can_be_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "src")
    (source / "noch.csv").write_text(KNOWN)
    one, two = str(source / "produkte.csv"), str(source / "verhalten.csv")
    with pytest.raises(RankloomError, match=r"no events file .* there are noch\.csv, produkte\.csv, verhalten\.csv") as refused:
        import_data("csv", source, tmp_path / "shop")
    assert "--events FILE --items FILE" in str(refused.value.action)
    status, said = run("validate", "--items", one, "--events", two)
    assert status == 0
    command = shlex.split(said.strip().splitlines()[-1].partition("to import it: rankloom ")[2])
    command[command.index("shop")] = str(tmp_path / "shop")
    assert run(*command)[0] == 0
    assert pl.read_parquet(tmp_path / "shop" / "items.parquet").height == 8
    assert import_data("csv", source, tmp_path / "b", events=two, items=one).rows == {"items": 8, "events": 60}
    assert import_data("csv", None, tmp_path / "c", events=two).rows["events"] == 60
    with pytest.raises(RankloomError, match="no source"):
        import_data("csv", None, tmp_path / "d", items=one)
    with pytest.raises(RankloomError, match="by their names"):
        import_data("movielens", source, tmp_path / "d", items=one)


def test_a_catalogue_of_another_name_beside_events_is_found(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path / "src", names=("produkte.csv", "events.csv")), tmp_path / "shop")
    assert report.rows["items"] == 8
    assert "by their columns: produkte.csv read as the items" in report.notices
    (tmp_path / "src" / "filialen.csv").write_text("ort,plz\nBonn,53111\n")
    report = import_data("csv", tmp_path / "src", tmp_path / "again")
    assert report.rows["items"] == 8
    assert any(own.startswith("files not used: filialen.csv") for own in report.warnings)


def test_half_of_what_was_meant_is_not_imported(tmp_path: Path) -> None:
    source = folder(tmp_path / "src")
    (source / "produkte.csv").write_text("")
    with pytest.raises(RankloomError, match=r"produkte\.csv is empty"):
        import_data("csv", source, tmp_path / "shop")
    (source / "produkte.csv").write_bytes(ITEMS.encode().replace(b"Kaffee 3", b"Kaf\0fee"))
    with pytest.raises(RankloomError, match="NUL"):
        import_data("csv", source, tmp_path / "shop")


def test_what_a_word_was_read_as_is_told(tmp_path: Path) -> None:
    report = import_data("csv", folder(tmp_path / "src", LOG), tmp_path / "shop", kinds={"stupste": "click"})
    assert "verhalten.csv: kinds of events read: 'Wishlist' as like, 'buy' as purchase, 'stupste' as click" in report.notices


def test_odd_values_are_told_at_the_import_by_the_names_of_the_checks(tmp_path: Path) -> None:
    items = ITEMS.replace('"3,50 EUR"', "-3.50")
    log = KNOWN.replace("2026-05-01", "2162-05-01")
    report = import_data("csv", folder(tmp_path / "src", log, items), tmp_path / "shop")
    price, time = (next(own for own in report.warnings if own.startswith(name)) for name in ("price-negative", "time-future"))
    assert price.startswith("price-negative: 1 of 8: prices are negative, such as '-3500000'")
    assert time.startswith("time-future: 3 of 60: events lie in the future, such as '2162-05-01")
    checked = {own.check: own.fact for own in validate(tmp_path / "shop").findings}
    assert f"price-negative: {checked['price-negative']}" in price
    said = run("validate", str(tmp_path / "src"))[1]
    assert said.count("prices are negative") == 1


def test_ga4_takes_and_leaves_events_by_name(tmp_path: Path) -> None:
    rows = [
        {"event_name": name, "event_timestamp": str(1767225600000000 + n), "user_pseudo_id": "7.1", "items": [{"item_id": "C1", "item_name": "Cup"}]}
        for n, name in enumerate(["view_item", "Quick_Look", "add_to_cart", "remove_from_cart"])
    ]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "events_20260101.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = import_data("ga4", tmp_path / "src", tmp_path / "shop", kinds={"quick_look": "view"}, drop=["ADD_TO_CART"])
    assert pl.read_parquet(tmp_path / "shop" / "events.parquet")["event"].to_list() == ["view", "view"]
    assert "--drop-event add_to_cart: 1 events left out" in report.notices
    assert any("remove_from_cart 1" in own and "--map-event" in own for own in report.notices)


def test_a_feed_s_log_has_the_same_way_out(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "feed.tsv").write_text("id\ttitle\nC1\tCup\nC2\tPot\n")
    (tmp_path / "src" / "events.csv").write_text("user_id,item_id,timestamp,event\nu,C1,1767225600,tap\nu,C2,1767225700,zap\nu,C2,1767225800,view\n")
    with pytest.raises(RankloomError, match="unknown event kinds: 'tap' \\(1\\), 'zap' \\(1\\)"):
        import_data("merchant-feed", tmp_path / "src", tmp_path / "shop")
    report = import_data("merchant-feed", tmp_path / "src", tmp_path / "shop", kinds={"tap": "click"}, drop=["zap"])
    assert report.rows["events"] == 2


def test_the_server_takes_a_price_in_the_currency(tmp_path: Path) -> None:
    own = ItemIn.model_validate({"item_id": "a", "title": "Tea", "price": 9.5})
    assert own.model_dump(exclude_none=True)["price_micros"] == 9_500_000
    assert "price" not in own.model_dump(exclude_none=True)
    with pytest.raises(ValueError, match="price and price_micros differ"):
        ItemIn.model_validate({"item_id": "a", "title": "Tea", "price": 9.5, "price_micros": 1})
    with pytest.raises(ValueError, match="price"):
        ItemIn.model_validate({"item_id": "a", "title": "Tea", "price": -1})
