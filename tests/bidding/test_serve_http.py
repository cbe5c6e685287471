"""The HTTP face: OpenRTB in and out, acknowledged means on disk, one error format, the key, the page; the command line."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rankloom.bidding.serve.openrtb import reply_faults
from rankloom.bidding.serve.service import BidServer
from rankloom.serving.bidding_app import create_app

from .openrtb_requests import BANNER, campaign_file, fixtures, request
from .serve_server import Clock, offers, proof, serve


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[BidServer]:
    own = serve(tmp_path, clock=clock, engine=None)
    own.close()
    own = BidServer(campaign_file(), tmp_path, own.control.controller, clock=clock, background=True, boot="test")
    yield own
    own.close()


@pytest.fixture
def client(server: BidServer) -> TestClient:
    return TestClient(create_app(server))


def path_of(url: str, **macros: str) -> str:
    """A notice address as the exchange calls it, macros filled in."""
    for name, value in macros.items():
        url = url.replace("${" + name + "}", value)
    return url[url.index("/v1/") :]


def test_a_bid_and_its_notices_over_http(client: TestClient, server: BidServer) -> None:
    body = fixtures()["many impressions"]
    reply = client.post("/v1/openrtb/bid", json=body)
    assert reply.status_code == 200
    assert reply.headers["x-openrtb-version"] == "2.6"
    assert reply_faults(body, reply.json()) == []
    one, two, three = offers(reply.json())
    assert client.get(path_of(one["nurl"], AUCTION_PRICE="4.5")).json() == {"outcome": "won"}
    assert client.post(path_of(one["burl"], AUCTION_PRICE="4.5")).json() == {"outcome": "billed"}
    assert client.get(path_of(one["burl"], AUCTION_PRICE="4.5")).json() == {"outcome": "duplicate"}
    assert client.get(path_of(two["burl"])).json() == {"outcome": "billed"}  # the exchange left the macros as they are
    assert client.get(path_of(three["lurl"], AUCTION_LOSS="102", AUCTION_MIN_TO_WIN="33")).json() == {
        "outcome": "released"
    }
    spent = sum(own.spent for own in server.ledger.accounts.values())
    assert spent == 4500 + round(two["price"] * 1000)
    assert server.ledger._journal.synced == server.ledger._journal.position  # acknowledged is on disk


def test_no_bids_are_204_with_the_reason_in_a_header(client: TestClient) -> None:
    reply = client.post("/v1/openrtb/bid", json=request({"banner": BANNER}, cur=["EUR"]))
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["x-no-bid-reason"] == "currency"


def test_bodies_may_be_gzip_and_must_be_of_a_sane_size(client: TestClient) -> None:
    body = json.dumps(fixtures()["banner"]).encode()
    packed = {"content-encoding": "gzip"}
    assert client.post("/v1/openrtb/bid", content=gzip.compress(body), headers=packed).status_code == 200
    for bad in (b"plain", gzip.compress(body)[:-9]):
        assert client.post("/v1/openrtb/bid", content=bad, headers=packed).status_code == 400
    bomb = gzip.compress(b" " * 50_000_000)
    assert client.post("/v1/openrtb/bid", content=bomb, headers=packed).status_code == 413
    assert client.post("/v1/openrtb/bid", content=b" " * 1_000_001).status_code == 413


def test_errors_have_one_form(client: TestClient) -> None:
    cases = [
        (client.post("/v1/openrtb/bid", content=b"{"), 400, "malformed"),
        (client.get("/v1/notices/win?b=1-1-1&t=00"), 403, "notice-forged"),
        (client.get("/v1/notices/other"), 404, "not-found"),
        (client.get("/v1/campaigns/nobody"), 404, "campaign-unknown"),
        (client.get("/v1/campaigns/nobody/explain"), 404, "campaign-unknown"),
        (client.patch("/v1/campaigns/c0", json={"budget_micros": "lots"}), 400, "campaign-malformed"),
        (client.put("/v1/campaigns", json={"campaign_id": "x"}), 400, "campaign-malformed"),
        (client.post("/v1/conversions", json={"conversions": []}), 422, "malformed"),
        (client.post("/v1/kill", json={}), 422, "malformed"),
        (client.get("/nowhere"), 404, "not-found"),
    ]
    for reply, status, code in cases:
        assert reply.status_code == status, reply.text
        assert reply.headers["content-type"].startswith("application/problem+json")
        body = reply.json()
        assert body["code"] == code
        assert body["message"]
        assert "Traceback" not in reply.text


def test_a_refusing_disk_is_told_and_not_acknowledged(
    client: TestClient, server: BidServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.bidding.serve import journal

    (one,) = offers(client.post("/v1/openrtb/bid", json=fixtures()["banner"]).json())

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", full)
        reply = client.get(path_of(one["burl"], AUCTION_PRICE="4"))
        assert (reply.status_code, reply.json()["code"]) == (503, "ledger-unavailable")
        assert client.get("/readyz").status_code == 503
        refused = client.post("/v1/openrtb/bid", json=fixtures()["banner"])
        assert refused.headers["x-no-bid-reason"] == "ledger-unavailable"
    server.ledger.sync()
    assert client.get("/readyz").status_code == 200
    assert client.get(path_of(one["burl"], AUCTION_PRICE="4")).json() == {"outcome": "duplicate"}


def test_the_key_guards_everything_but_notices(server: BidServer) -> None:
    client = TestClient(create_app(server, api_key="sesame"))
    body = fixtures()["banner"]
    assert client.post("/v1/openrtb/bid", json=body).status_code == 401
    assert client.get("/v1/campaigns").status_code == 401
    assert client.get("/v1/campaigns", headers={"x-api-key": "sesam"}).status_code == 401
    assert client.get("/v1/campaigns", headers={"x-api-key": "sesame"}).status_code == 200
    assert client.post("/v1/openrtb/bid", json=body, headers={"x-api-key": "sesame"}).status_code == 200
    reply = client.post("/v1/openrtb/bid?key=sesame", json=body)  # many exchanges can only be given an address
    assert client.get(path_of(offers(reply.json())[0]["burl"], AUCTION_PRICE="1")).json() == {"outcome": "billed"}
    assert client.get("/healthz").status_code == 200


def test_campaigns_are_changed_stopped_and_explained(client: TestClient) -> None:
    assert [own["campaign_id"] for own in client.get("/v1/campaigns").json()["campaigns"]] == ["c0", "c1", "c2", "c3"]
    assert (
        client.patch("/v1/campaigns/c0", json={"status": "paused", "budget_micros": 9_000_000}).json()["status"]
        == "paused"
    )
    assert client.get("/v1/campaigns/c0").json()["arms"][0]["budget_micros"] == 9_000_000
    new = {**campaign_file(1).campaigns[0].model_dump(mode="json"), "campaign_id": "new"}
    assert client.put("/v1/campaigns", json=new).json() == {"campaign_id": "new", "new": True}
    why = client.get("/v1/campaigns/c1/explain").json()
    assert set(why) >= {"state", "binding", "plan", "ten_percent_more", "multiplier_micros", "text", "shadows"}
    day = client.get("/v1/campaigns/c1/series").json()
    assert len(day["series"]["spend"]) == day["n_ticks"] == 48
    assert client.post("/v1/kill", json={"on": True}).json() == {"killed": True}
    assert client.post("/v1/openrtb/bid", json=fixtures()["banner"]).headers["x-no-bid-reason"] == "killed"


def test_conversions_and_bulk_notices(client: TestClient) -> None:
    (one,) = offers(client.post("/v1/openrtb/bid", json=fixtures()["banner"]).json())
    token, mark = proof(one["burl"])
    notices = [
        {"kind": "bill", "b": token, "t": mark, "p": "2"},
        {"kind": "win", "b": token, "t": mark},
        {"kind": "loss", "b": "x", "t": "y"},
    ]
    assert client.post("/v1/notices", json={"notices": notices}).json() == {
        "outcomes": ["billed", "duplicate", "forged"]
    }
    order = {"conversion_id": "o1", "bid_id": token, "value_micros": 5}
    reply = client.post(
        "/v1/conversions", json={"conversions": [order, order, {"conversion_id": "o2", "campaign_id": "nobody"}]}
    )
    assert reply.json()["accepted"] == reply.json()["duplicate"] == 1
    assert reply.json()["rejected"][0]["code"] == "campaign-unknown"


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    client.post("/v1/openrtb/bid", json=fixtures()["banner"])
    client.post("/v1/openrtb/bid", json=request({"banner": BANNER}, cur=["EUR"]))
    text = client.get("/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+', line), line
    assert 'rankloom_bid_no_bids_total{reason="currency"} 1' in text
    assert "rankloom_bid_bids_total 1" in text
    assert client.get("/readyz").json()["status"] == "ready"


def test_the_page_loads_only_from_this_server(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for target in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        assert client.get(target).status_code == 200
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+", "", client.get("/static/bidding.js").text)


def test_the_server_starts_from_the_command_line_survives_a_kill_and_drains(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(campaign_file(2).model_dump_json())
    command = [
        sys.executable, "-m", "rankloom.cli", "bid", "serve", "safe-pacing", "--campaigns", str(tmp_path / "c.json"), "--port", "0",
        "--state", str(tmp_path / "state"),
    ]  # fmt: skip

    def start() -> tuple[subprocess.Popen[str], http.client.HTTPConnection]:
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        line = next(own for own in child.stderr if own.startswith("bid requests"))
        return child, http.client.HTTPConnection(line.split("//")[1].split("/")[0], timeout=60)

    def ask(connection: http.client.HTTPConnection, method: str, target: str, body: Any = None) -> Any:
        connection.request(
            method, target, None if body is None else json.dumps(body), {"content-type": "application/json"}
        )
        reply = connection.getresponse()
        text = reply.read()
        return json.loads(text) if text.startswith(b"{") else reply.status

    child, connection = start()
    one, two = (offers(ask(connection, "POST", "/v1/openrtb/bid", fixtures()["banner"]))[0] for _ in range(2))
    assert ask(connection, "GET", path_of(one["burl"], AUCTION_PRICE="3.25")) == {"outcome": "billed"}
    assert ask(connection, "POST", "/v1/kill", {"on": False}) == {"killed": False}
    child.kill()
    child.wait()
    child, connection = start()
    assert ask(connection, "GET", path_of(one["burl"], AUCTION_PRICE="3.25")) == {"outcome": "duplicate"}
    assert ask(connection, "GET", path_of(two["burl"], AUCTION_PRICE="1.75")) == {"outcome": "billed"}
    arms = [arm for own in ask(connection, "GET", "/v1/campaigns")["campaigns"] for arm in own["arms"]]
    assert sum(arm["spent_micros"] for arm in arms) == 5000
    child.terminate()
    assert child.wait(timeout=30) in (0, -15)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--campaigns", "nowhere.json"], "no file"),
        (["--campaigns", "c.json", "--host", "0.0.0.0"], "without a key"),
        (["--campaigns", "c.json", "--tick-minutes", "7"], "ticks"),
        (["--campaigns", "c.json", "--late-allowance", "2"], "share"),
    ],
)
def test_what_cannot_be_served_is_told(
    tmp_path: Path, arguments: list[str], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankloom.cli import app
    from rankloom.errors import RankloomError

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKLOOM_API_KEY", raising=False)
    (tmp_path / "c.json").write_text(campaign_file(1).model_dump_json())
    with pytest.raises(RankloomError, match=code):
        app(["bid", "serve", "safe-pacing", *arguments], standalone_mode=False)
    assert not (tmp_path / "bidding-state").exists()
