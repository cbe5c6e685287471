"""The bid path: what is bid and why not, in the shapes of OpenRTB 2.6; malformed and fuzzed requests; no torch."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankloom.bidding.serve.engine import EngineSettings
from rankloom.bidding.serve.landscape import Landscape
from rankloom.bidding.serve.ledger import LedgerSettings
from rankloom.bidding.serve.money import PPB
from rankloom.bidding.serve.openrtb import Reason, nbr, reply_faults
from rankloom.bidding.serve.service import BidServer

from .openrtb_requests import BANNER, NATIVE, VIDEO, campaign_file, fixtures, mutated, request
from .serve_server import SECOND, TICK, Clock, Scripted, ask, local, offers, proof, serve


@pytest.fixture
def server(tmp_path: Path) -> Any:
    own = serve(tmp_path)
    yield own
    own.close()


@pytest.mark.parametrize("name", fixtures())
def test_every_shape_of_the_specification_gets_a_valid_bid(server: BidServer, name: str) -> None:
    body = fixtures()[name]
    reply, answer = ask(server, body)
    assert reply.status == 200
    assert reply_faults(body, answer) == []
    assert offers(answer)


def test_the_bid_is_multiplier_times_p(server: BidServer) -> None:
    _, answer = ask(server, fixtures()["banner"])
    (offer,) = offers(answer)
    # 20 a conversion x 0.001 conversions an impression (segment shoes) x 1000 impressions
    assert offer["price"] == 20.0
    _, answer = ask(server, request({"banner": BANNER}, user=None))
    assert offers(answer)[0]["price"] == 10.0


def test_integers_make_the_price(tmp_path: Path) -> None:
    server = serve(tmp_path, local(Scripted(lambda _: 1.234567)), campaigns=campaign_file(1, pcvr={"*": 0.000321}))
    _, answer = ask(server, request({"banner": BANNER}))
    micros = 1_234_567 * 321_000 // PPB
    assert offers(answer)[0]["price"] == micros / 1000
    assert server.ledger.bid(int(offers(answer)[0]["id"].split("-")[0], 16)).amount == micros  # type: ignore[union-attr]


def test_each_impression_gets_the_kind_it_asks_for(server: BidServer) -> None:
    _, answer = ask(server, fixtures()["many impressions"])
    assert {own["impid"]: own["mtype"] for own in offers(answer)} == {"1": 1, "2": 2, "3": 4}  # nothing is 1 x 1
    native = next(own for own in offers(answer) if own["mtype"] == 4)
    assets = {own["id"]: own for own in json.loads(native["adm"])["native"]["assets"]}
    assert assets[1]["title"]["text"] == "A pair of shoes that"  # cut at a word, at most 25 letters
    assert assets[2]["img"]["w"] == 1200
    assert set(assets) == {1, 2, 3}


def test_a_deal_is_bid_at_its_terms(server: BidServer) -> None:
    for name, price in (("open auction with a deal", 20.0), ("private auction", 20.0), ("fixed price deal", 2.5)):
        _, answer = ask(server, fixtures()[name])
        best = offers(answer)[0]
        if name != "open auction with a deal":
            assert best["dealid"] == "deal-1"
            assert best["price"] == price


def test_test_requests_reserve_nothing_and_their_notices_bill_nothing(server: BidServer) -> None:
    ask(server, fixtures()["test"])  # the first sight of a kind of slot is noted
    before = server.ledger.digest()
    _, answer = ask(server, fixtures()["test"])
    token, mark = proof(offers(answer)[0]["burl"])
    assert server.notice("bill", token, mark, price="5") == "test"
    assert server.ledger.digest() == before


PAUSED = {"status": "paused"}


@pytest.mark.parametrize(
    ("change", "top", "reason"),
    [
        ({"bidfloor": 20.001}, {}, Reason.BELOW_FLOOR),
        ({"bidfloor": 1, "bidfloorcur": "JPY"}, {}, Reason.FLOOR_CURRENCY),
        ({"banner": {"w": 468, "h": 60}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "audio": {"mimes": ["audio/mp4"]}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "video": {**VIDEO, "maxduration": 14}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "video": {**VIDEO, "mimes": ["video/ogg"]}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "video": {"mimes": ["video/mp4"], "rqddurs": [6, 30]}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "native": {"request": "{}"}}, {}, Reason.NO_CAMPAIGN),
        ({"banner": None, "native": {"request": '{"assets":[{"id":1,"required":1,"video":{}}]}'}}, {}, Reason.NO_CAMPAIGN),
        ({"pmp": {"private_auction": 1, "deals": [{"id": "another"}]}}, {}, Reason.NO_DEAL),
        ({"pmp": {"private_auction": 1, "deals": [{"id": "deal-1", "bidfloor": 99}]}}, {}, Reason.BELOW_DEAL_FLOOR),
        ({"pmp": {"private_auction": 1, "deals": [{"id": "deal-1", "wseat": ["x"]}]}}, {}, Reason.BELOW_DEAL_FLOOR),
        ({}, {"cur": ["EUR"]}, Reason.CURRENCY),
        ({}, {"tmax": 1}, Reason.TMAX),
        ({}, {"wseat": ["other"]}, Reason.SEAT),
        ({}, {"bseat": ["rankloom"]}, Reason.SEAT),
        ({}, {"bcat": ["IAB22"]}, Reason.CATEGORY),
        ({}, {"bcat": ["x"], "cattax": 6}, Reason.CATEGORY),
        ({}, {"acat": ["IAB1"]}, Reason.CATEGORY),
        ({}, {"badv": ["EXAMPLE"]}, Reason.DOMAIN),
        ({}, {"regs": {"coppa": 1}}, Reason.COPPA),
    ],
)  # fmt: skip
def test_every_no_bid_has_its_reason(
    server: BidServer, change: dict[str, Any], top: dict[str, Any], reason: Reason
) -> None:
    imp = {name: own for name, own in {"banner": BANNER, **change}.items() if own is not None}
    reply, answer = ask(server, request(imp, **top))
    assert (reply.status, reply.reason, answer) == (204, reason, None)
    assert server.engine.reasons[reason] == 1
    assert reply_faults({"id": "r"}, {"id": "r", "nbr": nbr(reason)}) == []


def test_reasons_that_come_from_our_own_state(tmp_path: Path) -> None:
    clock = Clock()
    server = serve(tmp_path, clock=clock, campaigns=campaign_file(1))
    banner = request({"banner": BANNER})

    def reason() -> str:
        return ask(server, banner)[0].reason

    assert reason() == ""
    server.kill(True)
    assert reason() == Reason.KILLED
    server.kill(False)
    server.change_campaign("c0", {"status": "killed"})
    assert reason() == Reason.KILLED
    server.change_campaign("c0", {"status": "running", "budget_micros": 50_000})
    assert reason() == ""
    assert reason() == Reason.BUDGET
    server.change_campaign("c0", {"budget_micros": 10_000_000})
    clock.now += 5 * TICK
    server.engine.on_boundary = lambda _: None  # the control path is dead
    assert reason() == Reason.STALE
    server.close()


def test_blocked_lists_stop_only_whom_they_name(server: BidServer) -> None:
    _, answer = ask(server, request({"banner": BANNER}, badv=["shop0.example", "shop1.example"]))
    assert offers(answer)[0]["adomain"] == ["shop2.example"]


def test_targeting_decides_where_a_campaign_shows(tmp_path: Path) -> None:
    target = {
        "countries": ["DEU"],
        "device_types": [4],
        "segments": ["shoes"],
        "sites": ["example.org"],
        "blocked_sites": ["x.org"],
    }
    server = serve(tmp_path, campaigns=campaign_file(1, targeting=target))
    germany = {"devicetype": 4, "geo": {"country": "DEU"}}
    assert ask(server, request({"banner": BANNER}, device=germany))[0].status == 200
    assert ask(server, request({"banner": BANNER}))[0].reason == Reason.NO_CAMPAIGN
    assert ask(server, request({"banner": BANNER}, device={**germany, "devicetype": 1}))[0].reason == Reason.NO_CAMPAIGN
    assert ask(server, request({"banner": BANNER}, device=germany, user=None))[0].reason == Reason.NO_CAMPAIGN
    assert ask(server, request({"banner": BANNER}, device=germany, site={"domain": "x.org"}))[0].reason == Reason.SITE
    server.close()


def test_no_bids_can_carry_their_code(tmp_path: Path) -> None:
    server = serve(tmp_path, engine=EngineSettings(no_bid_body=True))
    body = request({"banner": BANNER}, tmax=1)
    reply, answer = ask(server, body)
    assert reply.status == 200
    assert answer == {"id": "req-1", "nbr": 15, "ext": {"reason": "tmax"}}
    assert reply_faults(body, answer) == []
    server.close()


def test_a_floor_in_another_currency_is_converted_where_the_rate_is_known(tmp_path: Path) -> None:
    server = serve(tmp_path, engine=EngineSettings(rates={"EUR": 1_100_000}))
    assert ask(server, request({"banner": BANNER, "bidfloor": 18, "bidfloorcur": "EUR"}))[0].status == 200
    assert (
        ask(server, request({"banner": BANNER, "bidfloor": 18.2, "bidfloorcur": "EUR"}))[0].reason == Reason.BELOW_FLOOR
    )
    assert (
        ask(server, request({"banner": BANNER, "bidfloor": 1e9, "bidfloorcur": "EUR"}))[0].reason == Reason.BELOW_FLOOR
    )
    server.close()


def test_the_cap_holds_whatever_the_controller_says(tmp_path: Path) -> None:
    server = serve(tmp_path, local(Scripted(lambda _: 90.0)), campaigns=campaign_file(1, max_cpm_micros=7_000_000))
    assert offers(ask(server, request({"banner": BANNER}))[1])[0]["price"] == 7.0
    server.close()


def test_what_cannot_be_sent_in_time_is_taken_back(server: BidServer) -> None:
    late = server.bid(json.dumps(request({"banner": BANNER}, tmax=50)).encode(), started=-1e6)
    assert late.reason == Reason.TMAX
    assert all(own.reserved == 0 for own in server.ledger.accounts.values())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", ""), (b"{", ""), (b"[]", ""), (b"null", ""), (b'{"id": 7, "imp": [{"id": "1"}]}', "id"), (b'{"id": "a"}', "imp"),
        (b'{"id": "a", "imp": []}', "imp"), (b'{"id": "a", "imp": [{}]}', "imp.0.id"), (b"\xff\xfe", ""),
        (b'{"id": "a", "imp": [{"id": "1"}, {"id": "1"}]}', "imp.id"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": "much"}]}', "imp.0.bidfloor"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": -1}]}', "imp.0.bidfloor"),
        (b'{"id": "a", "imp": [{"id": "1", "bidfloor": NaN}]}', "imp.0.bidfloor"),
        (b'{"id": "a", "imp": [{"id": "1"}], "bcat": "IAB1"}', "bcat"),
        (b'{"id": "\\ud800", "imp": [{"id": "1"}]}', ""), (b"[" * 100_000, ""),
    ],
)  # fmt: skip
def test_a_malformed_request_is_told_which_field(server: BidServer, body: bytes, field: str) -> None:
    reply, answer = ask(server, body)
    assert reply.status == 400
    assert answer["code"] == "malformed"
    assert answer["field"] == field
    assert answer["message"]


def test_fuzzed_requests_get_valid_replies_and_the_books_stay_right(server: BidServer) -> None:
    rng = random.Random(0)
    statuses = set()
    for _ in range(1_200):
        body = mutated(rng)
        reply, answer = ask(server, body)
        statuses.add(reply.status)
        assert reply.status in (200, 204, 400)
        assert (reply.reason == "") == (reply.status == 200 and "seatbid" in answer)
        if reply.status == 200:
            assert reply_faults(json.loads(body), answer) == []
    assert statuses == {200, 204, 400}
    assert server.ledger.audit() == []


def test_a_forged_notice_changes_nothing(server: BidServer) -> None:
    _, answer = ask(server, request({"banner": BANNER}))
    token, mark = proof(offers(answer)[0]["burl"])
    before = server.ledger.digest()
    other = f"{int(token.split('-')[0], 16):x}-1-ffff"
    for pair in (
        (token, mark[:-1] + ("0" if mark[-1] != "0" else "1")),
        (other, mark),
        ("", ""),
        ("x", mark),
        ("é", "é"),
    ):
        assert server.notice("bill", *pair, price="1") == "forged"
    assert server.ledger.digest() == before
    assert server.notice("bill", token, mark, price="1.5") == "billed"


def test_notices_move_the_money_and_teach_the_landscape(tmp_path: Path) -> None:
    server = serve(tmp_path, campaigns=campaign_file(1))
    for n in range(40):
        _, answer = ask(server, request({"banner": BANNER}))
        token, mark = proof(offers(answer)[0]["nurl"])
        if n % 4:
            assert (
                server.notice("loss", token, mark, price="${AUCTION_PRICE}", min_to_win="25.5", loss="102")
                == "released"
            )
        else:
            assert server.notice("win", token, mark, price="12.25") == "won"
            assert server.notice("bill", token, mark, price="12.25") == "billed"
    server.engine.collect()
    account = next(iter(server.ledger.accounts.values()))
    assert (account.spent, account.wins, account.losses, account.reserved) == (10 * 12_250, 10, 30, 0)
    assert account.series["volume"][0] == 40
    assert account.series["p_sum"][0] == 40 * PPB // 1000
    assert account.series["lwc_n"][0] == 40
    assert account.series["lwc_sum"][0] == 30 * 25_500 + 10 * 12_250
    (landscape,) = [own for own in server.engine.landscapes.values() if own.n]
    assert landscape.n == 40
    server.close()


def test_shading_bids_less_than_the_value_in_first_price_auctions_only(tmp_path: Path) -> None:
    server = serve(tmp_path, campaigns=campaign_file(1))
    first = request({"banner": BANNER}, at=1)
    assert offers(ask(server, first)[1])[0]["price"] == 20.0
    tag = next(tag for tag in server.engine.landscapes if server.engine.group_name(tag) == "banner 300x250 first")
    rng = random.Random(1)
    for _ in range(2000):
        server.engine.landscapes[tag].saw(round(rng.lognormvariate(8.0, 0.3)))
    assert server.engine.landscapes[tag].fit()
    server.engine.generation += 1
    shaded = offers(ask(server, first)[1])[0]["price"]
    assert 2.0 < shaded < 8.0  # the price to win is about 3 +- 1
    assert (
        offers(ask(server, request({"banner": BANNER, "bidfloor": 12}, at=1))[1])[0]["price"] == 12.0
    )  # not below the floor
    assert offers(ask(server, request({"banner": BANNER}, at=2))[1])[0]["price"] == 20.0
    server.close()


def test_the_landscape_finds_the_price_from_censored_notices() -> None:
    rng = random.Random(2)
    true = [round(rng.lognormvariate(8, 0.5)) for _ in range(6000)]
    exact, censored = Landscape(), Landscape()
    for price in true:
        exact.saw(price)
        bid = round(rng.lognormvariate(8, 0.5))
        if price <= bid:
            censored.won(bid)
        else:
            censored.lost(bid)
    assert exact.fit()
    assert censored.fit(steps=400)
    for bid in (1500, 3000, 5000):
        share = sum(price <= bid for price in true) / len(true)
        assert exact.win(bid) == pytest.approx(share, abs=0.03)
        assert censored.win(bid) == pytest.approx(share, abs=0.06)
    assert exact.second_price(5000) == pytest.approx(sum(p for p in true if p <= 5000) / len(true), rel=0.1)
    assert list(exact.win([10, 100, 1000, 10_000])) == sorted(exact.win([10, 100, 1000, 10_000]))
    best = max(range(500, 9000, 50), key=lambda b: (9000 - b) * sum(p <= b for p in true))
    assert exact.shade(9000) == pytest.approx(best, rel=0.25)


def test_with_little_evidence_nothing_is_shaded() -> None:
    own = Landscape()
    for _ in range(50):
        own.saw(100)
    assert not own.fit()
    assert own.shade(5000) == 5000


def test_people_stay_on_one_side_of_a_budget_split_and_the_halves_add_up(tmp_path: Path) -> None:
    other = local(Scripted(lambda _: 10.0))
    campaigns = campaign_file(1, experiment={"controller": "half", "share": 0.3}, budget_micros=9_999_999)
    server = serve(tmp_path, campaigns=campaigns, others={"half": other})
    sides: dict[str, set[float]] = {}
    for n in range(300):
        user = f"u{n % 100}"
        _, answer = ask(server, request({"banner": BANNER}, user={"id": user}, id=f"r{n}"))
        sides.setdefault(user, set()).add(offers(answer)[0]["price"])
    assert all(len(own) == 1 for own in sides.values())
    share = sum(own == {5.0} for own in sides.values()) / len(sides)
    assert 0.15 < share < 0.45
    assert sum(own.budget for own in server.ledger.accounts.values()) == 9_999_999
    assert [own["arm"] for own in server.explain("c0")["arms"]] == ["c0", "c0#B"]
    server.close()


def test_lapsed_bids_free_their_money_on_the_bid_path(tmp_path: Path) -> None:
    clock = Clock()
    campaigns = campaign_file(1, budget_micros=25_000)
    server = serve(tmp_path, campaigns=campaigns, clock=clock, ledger=LedgerSettings(win_s=10, bill_s=60))
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    assert ask(server, request({"banner": BANNER}))[0].reason == Reason.BUDGET
    clock.now += 11 * SECOND
    assert ask(server, request({"banner": BANNER}))[0].status == 200
    server.close()


def test_native_requests_are_filled_or_left_alone(server: BidServer) -> None:
    for assets, filled in (
        ([{"id": 1, "title": {"len": 5}}], True),
        ([{"id": 1, "required": 1, "img": {"type": 3, "wmin": 5000}}], False),
        ([{"id": 1, "img": {"type": 1}}], False),
        ([{"id": "1", "title": {}}], False),
        ([], False),
    ):
        body = request({"native": {**NATIVE, "request": json.dumps({"native": {"assets": assets}})}})
        assert (ask(server, body)[0].status == 200) is filled


def test_the_bid_path_imports_no_torch() -> None:
    code = (
        "import sys; import rankloom.serving.bidding_app, rankloom.serving.bidding_server, rankloom.bidding.cli; "
        "print([m for m in ('torch', 'sklearn', 'lightgbm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
