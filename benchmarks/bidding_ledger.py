"""Does the ledger balance to the micro through a million auctions, faulty notices and fifty kill -9?

    python benchmarks/bidding_ledger.py [--quick] [--auctions N] [--json OUT]

An exchange (this process) sends OpenRTB requests to a bid server (a child process: the real `BidServer`, on a clock that
the exchange sets), runs the auctions, and sends win, billing and loss notices: duplicated, late beyond the reservation's
life, missing, reordered, with unreadable prices and with prices above the bid. At random moments it kills the child with
SIGKILL, starts it again on the same folder, loses the replies it had not got, and repeats the notices that were not
acknowledged. Some of the kills go to `rankloom bid serve` itself, over HTTP.

The exchange keeps its own books. At the end, per campaign and day: what the ledger charged plus what it disputes equals,
to the micro, what the exchange billed; the log holds at most one billing record for each bid, and exactly one for each
bid that was billed; spent + reserved was never beyond budget + late allowance.

`log` and `SQLite` compare the two ways of keeping reservations on disk (one process, one reservation after the other).
A part that is finished is not run again.
"""

from __future__ import annotations

import argparse
import heapq
import http.client
import itertools
import json
import random
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import ROOT, Benchmark, argument_parser

sys.path.insert(0, str(ROOT))
from rankloom.bidding.protocol import Campaigns, Decision, Observation
from rankloom.bidding.serve.journal import frames
from rankloom.bidding.serve.ledger import Ledger, LedgerSettings
from rankloom.bidding.serve.money import cpm_text
from rankloom.bidding.serve.records import BID_COLUMNS, KINDS, NOTICE_COLUMNS, ORPHAN_COLUMNS
from rankloom.progress import Progress
from tests.bidding.openrtb_requests import BANNER, VIDEO, campaign_file, request

SECOND = 1_000_000
DAY = 86_400 * SECOND
START = 20_800 * DAY  # a midnight
SETTINGS = LedgerSettings(win_s=60, bill_s=600, remember_s=7 * 86_400)
N_CAMPAIGNS = 24
BATCH = 250
STEP = 80_000  # microseconds between two auctions: a batch is 20 s
_LENGTH = struct.Struct("<I")


def budgets(seed: int, auctions: int) -> Any:
    """Campaigns of which about half run out of money."""
    rng = random.Random(seed)
    own = campaign_file(N_CAMPAIGNS, pcvr={"*": 0.0005}, deals=[])
    scale = auctions / 100_000
    changed = []
    for k, campaign in enumerate(own.campaigns):
        target = rng.randint(12, 30) * SECOND
        # what so many auctions can spend at all is about 0.1 unit each campaign and thousand auctions
        budget = int(rng.choice([1.0, 3.0, 30.0]) * scale * SECOND)
        zone = ("UTC", "Asia/Shanghai", "America/New_York")[k % 3]
        changed.append(
            campaign.model_copy(
                update={"budget_micros": max(budget, 20_000), "target_cpa_micros": target, "timezone": zone}
            )
        )
    return own.model_copy(update={"campaigns": tuple(changed)})


# -- the bid server's process ------------------------------------------------------------------------------------------------


def send(pipe: Any, value: Any) -> None:
    data = json.dumps(value).encode()
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def receive(pipe: Any) -> Any | None:
    head = pipe.read(4)
    if len(head) < 4:
        return None
    data = pipe.read(_LENGTH.unpack(head)[0])
    return json.loads(data) if len(data) == _LENGTH.unpack(head)[0] else None


def child(folder: Path, seed: int, auctions: int) -> None:
    """Hosts the bid server; answers a batch when its notices are on disk."""
    from rankloom.bidding.serve.service import BidServer, ServiceSettings
    from rankloom.bidding.serve.worker import LocalController

    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    first = receive(pipe_in)
    now = first["now"]
    server = BidServer(
        budgets(seed, auctions), folder, LocalController(AtTheLimit), settings=ServiceSettings(ledger=SETTINGS),
        clock=lambda: now, keep_log=True,
    )  # fmt: skip
    send(pipe_out, {"epoch": server.ledger.epoch, "cut": server.ledger.cut_bytes})
    for number in itertools.count():
        batch = receive(pipe_in)
        if batch is None:
            return
        now = batch["now"]
        replies = [server.bid(body.encode()).body.decode() for body in batch["requests"]]
        outcomes = [server.notice(kind, token, mark, price=price) for kind, token, mark, price in batch["notices"]]
        server.ledger.sync()
        if number % 200 == 199:
            server.compact()
        with server.ledger.lock:
            beyond = [
                own.spent + own.reserved + own.held - server.ledger.bound(own)
                for own in server.ledger.accounts.values()
            ]
        send(pipe_out, {"replies": replies, "outcomes": outcomes, "beyond": max(beyond)})
        if batch.get("stop"):
            server.close()
            return


class AtTheLimit:
    """Bids the cost limit all day, so that budgets run out: what keeps the money in bounds is the ledger alone."""

    name = "at-the-limit"

    def start(self, campaigns: Campaigns, seed: int) -> None:
        """Nothing to prepare."""

    def decide(self, observation: Observation) -> Decision:
        return Decision(observation.campaigns.target_cpa_N, ("none",) * observation.campaigns.n)


class Server:
    """The child as the exchange sees it; `kill` may come from a timer at any moment."""

    def __init__(self, folder: Path, seed: int, auctions: int) -> None:
        self.arguments = [sys.executable, __file__, "--child", str(folder), str(seed), str(auctions)]
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self, now: int) -> None:
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        send(self.process.stdin, {"now": now})
        if receive(self.process.stdout) is None:
            raise RuntimeError("the bid server does not start")
        self.starts += 1

    def ask(self, batch: dict[str, Any], *, kill_after: float | None) -> Any | None:
        """The answer, or None where the child was killed before it came."""
        assert self.process is not None
        timer = None
        if kill_after is not None:
            timer = threading.Timer(kill_after, self.process.kill)
            timer.start()
        try:
            send(self.process.stdin, batch)
            answer = receive(self.process.stdout)
        except OSError:
            answer = None
        if timer is not None:
            timer.cancel()
            timer.join()
            if answer is None or self.process.poll() is not None:
                self.process.wait()
        return answer

    def dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None


# -- the exchange --------------------------------------------------------------------------------------------------------------


class Exchange:
    """Auctions, notices with every fault, and books of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.notices: list[tuple[int, int, tuple[str, str, str, str]]] = []
        self.order = itertools.count()
        self.amount: dict[str, int] = {}  # bid id: micros of the bid
        self.charge: dict[str, int] = {}  # what a bid's first billing notice asks for
        self.over: Counter[int] = Counter()  # micros above the bid, per account
        self.win_price: dict[str, int] = {}
        self.faults: Counter[str] = Counter()
        bodies = [{"banner": BANNER}, {"video": VIDEO}, {"banner": {**BANNER, "battr": [1]}}]
        self.bodies = [json.dumps(request(imp, id="@", at=at, cur=["USD"])) for imp in bodies for at in (1, 2)]

    def request(self, n: int) -> str:
        return self.rng.choice(self.bodies).replace('"@"', f'"a{n}"')

    def auction(self, text: str, now: int) -> None:
        """Runs the auction of one reply and plans its notices."""
        rng = self.rng
        for seat in json.loads(text)["seatbid"]:
            for bid in seat["bid"]:
                query = dict(part.split("=", 1) for part in bid["burl"].split("?")[1].split("&"))
                token, mark = query["b"], query["t"]
                amount = int(token.split("-")[2], 16)
                self.amount[token] = amount
                market = int(rng.lognormvariate(9.2, 0.6))
                if amount < market:
                    if rng.random() < 0.6:
                        self._plan("loss", token, mark, "", now + rng.randint(1, 5) * SECOND)
                    else:
                        self.faults["losses without a notice"] += 1
                    continue
                self._won(token, mark, amount, market, now)

    def _won(self, token: str, mark: str, amount: int, price: int, now: int) -> None:
        rng = self.rng
        win_at = now + rng.randint(1, 20) * SECOND
        bill_at = win_at + rng.randint(1, 300) * SECOND
        text = cpm_text(price)
        if rng.random() < 0.05:
            self.faults["wins without a win notice"] += 1
        else:
            self._plan("win", token, mark, text, win_at)
        chance = rng.random()
        if chance < 0.03:
            self.faults["wins without a billing notice"] += 1
            return
        if chance < 0.13:
            bill_at = now + 1
            self.faults["billing before win"] += 1
        elif chance < 0.16:
            bill_at = win_at + rng.randint(700, 7200) * SECOND
            self.faults["billing after the reservation's life"] += 1
        elif chance < 0.18:
            self._plan("loss", token, mark, "", win_at + 2 * SECOND)
            self.faults["loss notice between win and billing"] += 1
        elif chance < 0.185:
            text = cpm_text(amount + rng.randint(1, 5000))
            self.faults["price above the bid"] += 1
        elif chance < 0.195:
            text = rng.choice(["${AUCTION_PRICE}", "", "AAbbCC=="])
            self.faults["billing without a readable price"] += 1
        for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 1, 2, 4))):
            self._plan("bill", token, mark, text, bill_at)
            bill_at += rng.choice((0, 3, 900)) * SECOND
            self.faults["billing notices"] += 1

    def _plan(self, kind: str, token: str, mark: str, price: str, at: int) -> None:
        heapq.heappush(self.notices, (at, next(self.order), (kind, token, mark, price)))

    def due(self, now: int, limit: int) -> list[tuple[str, str, str, str]]:
        own = []
        while self.notices and self.notices[0][0] <= now and len(own) < limit:
            own.append(heapq.heappop(self.notices)[2])
        if len(own) > 4 and self.rng.random() < 0.5:
            self.rng.shuffle(own)
        for notice in own:
            self._book(notice)
        return own

    def _book(self, notice: tuple[str, str, str, str]) -> None:
        """What the exchange writes down when it first sends a notice; repeats after a kill are the same notices in the same order."""
        kind, token, _, text = notice
        price = round(float(text) * 1000) if text and text[0].isdigit() else None
        if kind == "win" and price is not None:
            self.win_price.setdefault(token, min(price, self.amount[token]))
        if kind == "bill" and token not in self.charge:
            amount = self.amount[token]
            asked = price if price is not None else self.win_price.get(token, amount)
            self.charge[token] = min(asked, amount)
            self.over[int(token.split("-")[1], 16)] += max(asked - amount, 0)


def part(seed: int, auctions: int, kills: int) -> dict[str, Any]:
    """So many auctions across a midnight with so many kills; books compared at the end."""
    rng = random.Random(seed + 1)
    exchange = Exchange(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder, seed, auctions)
        begun = time.perf_counter()
        start = START - auctions * STEP // 3  # a midnight lies in between
        server.start(start)
        batches = -(-auctions // BATCH)
        fatal = set(rng.sample(range(3, batches), min(kills, batches - 3)))
        done = killed = 0
        beyond = -(10**18)
        again: list[tuple[str, str, str, str]] = []
        typical = 0.05
        counts: Counter[str] = Counter()
        progress = Progress(f"part {seed}", auctions)
        number, tail = 0, 0
        while done < auctions or exchange.notices or again:
            now = start + done * STEP + tail
            requests = [exchange.request(done + k) for k in range(min(BATCH, auctions - done))]
            notices = again or exchange.due(now, 2000)
            if not requests:
                tail += 300 * SECOND
            begin = time.perf_counter()
            kill_after = rng.uniform(0, typical) if number in fatal else None
            answer = server.ask({"now": now, "requests": requests, "notices": notices}, kill_after=kill_after)
            number += 1
            done += len(requests)
            progress.advance(len(requests))
            if answer is not None:
                typical = 0.9 * typical + 0.1 * (time.perf_counter() - begin)
                beyond = max(beyond, answer["beyond"])
                counts.update(answer["outcomes"])
                for text in answer["replies"]:
                    if text:
                        exchange.auction(text, now)
                again = []
            else:
                again = notices
            if answer is None or server.dead():
                killed += 1
                server.start(now)
                while killed + len([own for own in fatal if own >= number]) < kills and number < batches - 1:
                    fatal.add(rng.randrange(number, batches))
            elif number - 1 in fatal and number < batches - 1:
                fatal.add(rng.randrange(number, batches))  # it was answered before the signal came: try again
        server.ask({"now": START + 3 * DAY, "requests": [], "notices": [], "stop": True}, kill_after=None)
        assert server.process is not None
        server.process.wait()
        progress.close()
        seconds = time.perf_counter() - begun
        return {
            **compare(folder / "ledger", exchange), "auctions": auctions, "kills": killed, "seconds": seconds, "beyond": beyond,
            "faults": dict(exchange.faults), "outcomes": dict(counts),
        }  # fmt: skip


def compare(ledger_folder: Path, exchange: Exchange) -> dict[str, Any]:
    """The exchange's books against the ledger's state and against its raw log."""
    billed: Counter[int] = Counter()
    reserved: Counter[int] = Counter()
    for kind, payload in records(ledger_folder):
        name = KINDS.get(kind)
        if name == "bill":
            billed[NOTICE_COLUMNS.unpack(payload)[0]] += 1
        elif name == "orphan":
            billed[ORPHAN_COLUMNS.unpack(payload)[0]] += 1
        elif name == "bid":
            reserved[BID_COLUMNS.unpack(payload)[0]] += 1
    sent = {int(token.split("-")[0], 16) for token in exchange.charge}
    own = Ledger(ledger_folder, SETTINGS, now=0)
    expected: Counter[int] = Counter()
    for token, micros in exchange.charge.items():
        expected[int(token.split("-")[1], 16)] += micros
    difference = {
        index: account.spent + account.disputed - account.over_price - expected[index]
        for index, account in own.accounts.items()
    }
    over = sum(abs(account.over_price - exchange.over[index]) for index, account in own.accounts.items())
    result = {
        "bids": len(exchange.amount), "bids_in_log": len(reserved), "billed": len(exchange.charge),
        "billed_twice": sum(n > 1 for n in billed.values()) + sum(n > 1 for n in reserved.values()),
        "billed_missing": len(sent - set(billed)), "billed_unasked": len(set(billed) - sent),
        "micros_wrong": sum(abs(value) for value in difference.values()) + over,
        "spent": sum(account.spent for account in own.accounts.values()),
        "disputed": sum(account.disputed for account in own.accounts.values()),
        "late": sum(account.late for account in own.accounts.values()),
        "accounts": len(own.accounts),
        "exhausted": sum(account.spent > 0.9 * account.budget for account in own.accounts.values()),
        "overspend": max(account.spent - account.highest for account in own.accounts.values()),
        "still_reserved": sum(account.reserved for account in own.accounts.values()),
        "audit": own.audit(),
    }  # fmt: skip
    own.close()
    again = Ledger(ledger_folder, SETTINGS, now=0)
    # a start is a record of its own: compare what money depends on
    result["recovers"] = int(
        [a.to_json() for a in again.accounts.values()] == [a.to_json() for a in own.accounts.values()]
    )
    again.close()
    return result


def records(folder: Path) -> Iterator[tuple[int, bytes]]:
    for path in sorted(folder.glob("log-*.bin")):
        for _, kind, payload in frames(path.read_bytes()):
            yield kind, payload


# -- over HTTP -------------------------------------------------------------------------------------------------------------------


def over_http(auctions: int, kills: int) -> dict[str, Any]:
    """The same against `rankloom bid serve`; its clock is the wall's, so nothing expires."""
    exchange = Exchange(99)
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        campaigns = budgets(99, 10 * auctions)
        (folder / "c.json").write_text(campaigns.model_dump_json())
        command = [
            sys.executable, "-m", "rankloom.cli", "bid", "serve", "safe-pacing", "--campaigns", str(folder / "c.json"), "--port", "0",
            "--state", str(folder / "state"), "--win-timeout", "60", "--bill-timeout", "600",
        ]  # fmt: skip
        process: subprocess.Popen[str]
        connection: http.client.HTTPConnection

        def start() -> None:
            nonlocal process, connection
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
            assert process.stderr is not None
            line = next(own for own in process.stderr if own.startswith("bid requests"))
            connection = http.client.HTTPConnection(line.split("//")[1].split("/")[0], timeout=60)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(target: str, body: str) -> tuple[int, str]:
            connection.request("POST", target, body.encode(), {"content-type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

        start()
        block = 100
        blocks = -(-auctions // block)
        fatal = sorted(rng.sample(range(1, blocks), min(kills, blocks - 1)))
        killed = 0
        again: list[tuple[str, str, str, str]] = []
        progress = Progress("over HTTP", auctions)
        for number in range(blocks + 2):
            timer = None
            if number in fatal:
                timer = threading.Timer(rng.uniform(0.0, 0.1), process.kill)
                timer.start()
            now = START + number * 400 * SECOND  # the exchange's own time orders the notices
            try:
                for k in range(block if number < blocks else 0):
                    status, text = ask("/v1/openrtb/bid", exchange.request(number * block + k))
                    if status == 200:
                        exchange.auction(text, now)
                waiting = again or exchange.due(now if number < blocks else 1 << 62, 10_000)
                again = waiting
                if waiting:
                    batch = [{"kind": kind, "b": token, "t": mark, "p": price} for kind, token, mark, price in waiting]
                    status, text = ask("/v1/notices", json.dumps({"notices": batch}))
                    if status == 200:
                        again = []
            except (OSError, http.client.HTTPException):
                pass
            if timer is not None:
                timer.join()
                process.wait()
                killed += 1
                start()
            progress.advance(block)
        progress.close()
        while again:
            batch = [{"kind": kind, "b": token, "t": mark, "p": price} for kind, token, mark, price in again]
            ask("/v1/notices", json.dumps({"notices": batch}))
            again = exchange.due(1 << 62, 10_000)
        process.terminate()
        process.wait(timeout=30)
        return {
            **compare(folder / "state" / "ledger", exchange),
            "auctions": auctions,
            "kills": killed,
            "faults": dict(exchange.faults),
        }


# -- log against SQLite -----------------------------------------------------------------------------------------------------------


def storage(n: int) -> dict[str, Any]:
    """Microseconds a reservation until it survives the process, and until a batch of 200 survives the machine."""
    result = {}
    with tempfile.TemporaryDirectory() as name:
        own = Ledger(Path(name) / "log", SETTINGS, now=START, background=True)
        account = own.open_account("c", "d", day_start=START, day_end=START + DAY, budget=10**14).index
        own.sync()
        begin = time.perf_counter()
        for k in range(n):
            with own.lock:
                own.reserve(account, 1000, now=START + k)
                own.flush()
        result["log, each survives the process"] = (time.perf_counter() - begin) / n * 1e6
        begin = time.perf_counter()
        for k in range(n):
            with own.lock:
                own.reserve(account, 1000, now=START + k)
            if k % 200 == 199:
                own.sync()
        result["log, 200 a sync"] = (time.perf_counter() - begin) / n * 1e6
        own.close()
        for label, pragma, every in (
            ("SQLite WAL, each survives the process", "NORMAL", 1),
            ("SQLite WAL, 200 a sync", "FULL", 200),
        ):
            db = sqlite3.connect(Path(name) / f"{pragma}.sqlite", isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={pragma}")
            db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, reserved INTEGER)")
            db.execute("INSERT INTO account VALUES (1, 0)")
            db.execute(
                "CREATE TABLE bid (id INTEGER PRIMARY KEY, account INTEGER, amount INTEGER, time INTEGER, p INTEGER, state INTEGER)"
            )
            begin = time.perf_counter()
            for k in range(n):
                if k % every == 0:
                    db.execute("BEGIN IMMEDIATE")
                db.execute("INSERT INTO bid VALUES (?, 1, 1000, ?, 0, 1)", (k, START + k))
                db.execute("UPDATE account SET reserved = reserved + 1000 WHERE id = 1")
                if k % every == every - 1:
                    db.execute("COMMIT")
            if db.in_transaction:
                db.execute("COMMIT")
            result[label] = (time.perf_counter() - begin) / n * 1e6
            db.close()
    return result


def main() -> int:
    parser = argument_parser(__doc__, seeds=(0, 1, 2, 3))
    parser.add_argument("--auctions", type=int, help="auctions in all (default 1,000,000; quick 20,000)")
    parser.add_argument("--kills", type=int, help="kills in all (default 50; quick 5)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    bench = Benchmark.from_args(
        "bidding_ledger", __doc__, parser=parser,
        sources=("rankloom/bidding/serve", "benchmarks/bidding_ledger.py", "tests/bidding/openrtb_requests.py"),
    )  # fmt: skip
    if bench.args.child:
        folder, seed, auctions = bench.args.child
        child(Path(folder), int(seed), int(auctions))
        return 0
    quick = bench.quick
    total = bench.args.auctions or (20_000 if quick else 1_000_000)
    kills = bench.args.kills or (5 if quick else 50)
    http_kills, http_auctions = (1, 1_000) if quick else (10, 20_000)
    seeds = bench.seeds
    parts = []
    for k, seed in enumerate(seeds):
        share = (total - http_auctions) // len(seeds)
        own_kills = (kills - http_kills) // len(seeds) + (k < (kills - http_kills) % len(seeds))
        key = {"seed": seed, "auctions": share, "kills": own_kills}
        parts.append(bench.cell(key, lambda seed=seed, share=share, own_kills=own_kills: part(seed, share, own_kills)))
    outside = bench.cell(
        {"what": "http", "auctions": http_auctions, "kills": http_kills}, lambda: over_http(http_auctions, http_kills)
    )
    disk = bench.cell({"what": "storage"}, lambda: storage(2_000 if quick else 20_000))

    everything = [*parts, outside]

    def added(name: str) -> int:
        return sum(own[name] for own in everything)

    for name in ("auctions", "bids", "billed", "kills", "accounts", "exhausted", "spent", "late", "disputed"):
        bench.row(system="rankloom", variant="all parts", metric=name, value=added(name))
    faults: Counter[str] = Counter()
    for own in everything:
        faults.update(own["faults"])
    for name, n in sorted(faults.items()):
        bench.row(system="exchange", variant="faults", metric=name, value=n)
    seconds = sum(own["seconds"] for own in parts)
    bench.row(
        system="rankloom",
        variant="one process",
        metric="auctions a second, exchange included",
        value=sum(own["auctions"] for own in parts) / seconds,
    )
    for name, value in disk.items():
        bench.row(system=name.split(",")[0], variant=name, metric="us a reservation", value=value)
    bench.check("auctions", added("auctions"), at_least=total - len(seeds))
    bench.check("kills with SIGKILL", added("kills"), at_least=kills)
    bench.check("micros by which ledger and exchange differ", added("micros_wrong"), target=0)
    bench.check("bids billed twice", added("billed_twice"), target=0)
    bench.check("billed bids that the ledger does not know", added("billed_missing"), target=0)
    bench.check("billing records that nobody asked for", added("billed_unasked"), target=0)
    bench.check("broken invariants", sum(len(own["audit"]) for own in everything), target=0)
    bench.check("micros beyond budget + late allowance", max(max(own["beyond"], 0) for own in parts), target=0)
    bench.check("restarts recover exactly", int(all(own["recovers"] for own in everything)), target=1)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
