"""`rankloom bid`: markets, controllers and the bid server from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rankloom.errors import RankloomError

app = typer.Typer(
    name="bid", help="Auto-bidding: train, evaluate and serve.", no_args_is_help=True, rich_markup_mode=None
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.callback()
def bidding() -> None:
    """Auto-bidding: train, evaluate and serve."""


@app.command(epilog="Example: rankloom bid serve safe-pacing --campaigns demo/shop --port 8090")
def serve(
    bidder: Annotated[
        str, typer.Argument(help="A trained bidder's folder, or a built-in controller such as pid or mpc.")
    ],
    campaigns: Annotated[Path, typer.Option("--campaigns", help="A shop folder with campaigns, or a JSON file.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8090,
    state: Annotated[Path, typer.Option("--state", help="Where the ledger and the decisions are kept.")] = Path(
        "bidding-state"
    ),
    shadow: Annotated[
        list[str] | None, typer.Option("--shadow", help="A controller that only advises; may be repeated.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Where exchanges reach this server, for notices.")
    ] = None,
    tick_minutes: Annotated[float, typer.Option("--tick-minutes", help="How often controllers decide.")] = 30.0,
    deadline: Annotated[float, typer.Option("--deadline", help="Seconds a controller has.")] = 5.0,
    win_timeout: Annotated[
        int, typer.Option("--win-timeout", help="Seconds a bid's money waits for the outcome.")
    ] = 60,
    bill_timeout: Annotated[
        int, typer.Option("--bill-timeout", help="Seconds a win's money waits for billing.")
    ] = 3600,
    late_allowance: Annotated[
        float, typer.Option("--late-allowance", help="Share of the budget that late billing may add.")
    ] = 0.02,
    no_bid_body: Annotated[
        bool, typer.Option("--no-bid-body", help="Answer no-bids with 200 and nbr instead of 204.")
    ] = False,
) -> None:
    """Serve bids: OpenRTB 2.6 in, budget-controlled bids out, with a page."""
    from rankloom.bidding.serve.campaigns import load_campaigns
    from rankloom.bidding.serve.control import ControlSettings
    from rankloom.bidding.serve.engine import EngineSettings
    from rankloom.bidding.serve.ledger import LedgerSettings
    from rankloom.bidding.serve.service import ServiceSettings
    from rankloom.serving.bidding_server import run

    ticks = round(1440 / tick_minutes) if tick_minutes > 0 else 0
    if not 1 <= ticks <= 255 or abs(ticks * tick_minutes - 1440) > 1e-6:
        raise RankloomError(
            f"a day is not a whole number (1 to 255) of ticks of {tick_minutes:g} minutes",
            place="--tick-minutes",
            action="choose a divisor of 1440 such as 30 or 15",
            code="tick-length",
        )
    for flag, value in (("--win-timeout", win_timeout), ("--bill-timeout", bill_timeout), ("--deadline", deadline)):
        if not 0 < value <= 7 * 86_400:
            raise RankloomError(
                f"{value:g} s", place=flag, action="give between 1 s and 7 days", code="time-out-of-range"
            )
    if not 0 <= late_allowance <= 1:
        raise RankloomError(
            f"a share of {late_allowance:g}",
            place="--late-allowance",
            action="give between 0 and 1",
            code="share-out-of-range",
        )
    settings = ServiceSettings(
        ledger=LedgerSettings(
            win_s=win_timeout, bill_s=bill_timeout, late_allowance_ppm=round(late_allowance * 1_000_000), n_ticks=ticks
        ),
        engine=EngineSettings(no_bid_body=no_bid_body),
        control=ControlSettings(deadline_s=deadline),
    )
    run(
        bidder, load_campaigns(campaigns), state, host=host, port=port, shadows=shadow or [], settings=settings, base_url=base_url,
        say=say,
    )  # fmt: skip


@app.command(epilog="Example: rankloom bid evaluate --traces days --bidder mpc --bidder pid --json")
def evaluate(
    traces: Annotated[Path, typer.Option("--traces", help="A folder of recorded market days (*_trace.npz).")],
    bidder: Annotated[
        list[str] | None,
        typer.Option(
            "--bidder", help="A bidder's folder or a controller's name; may be repeated. All built-in ones by default."
        ),
    ] = None,
    budget_ratio: Annotated[
        float, typer.Option("--budget-ratio", help="Budgets are the recorded ones times this.")
    ] = 1.0,
    bounds: Annotated[bool, typer.Option("--bounds", help="Also what could have been reached, in hindsight.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the controllers.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Score bidders in every seat of recorded market days."""
    import json

    from rankloom.bidding.controllers import CONTROLLERS
    from rankloom.bidding.evaluation import evaluate as score_all
    from rankloom.bidding.evaluation import find_controller, table
    from rankloom.bidding.traces import load_traces
    from rankloom.evaluation.evaluate import machine

    _check_ratio(budget_ratio)
    days = load_traces(traces)
    controllers = [find_controller(each) for each in bidder or list(CONTROLLERS)]
    result = score_all(days, controllers, budget_ratio=budget_ratio, seed=seed, bounds=bounds)
    if as_json:
        print(json.dumps({"name": "bid-evaluate", "machine": machine(), **result}, ensure_ascii=False, indent=2))
        return
    print(
        f"{len(days)} recorded days, {days[0].campaigns.n} seats each; rivals' bids stand still\n{table(result['rows'])}"
    )


@app.command(epilog="Example: rankloom bid train --trajectories log.parquet --controller gave --out bidder")
def train(
    trajectories: Annotated[Path, typer.Option("--trajectories", help="A trajectory log in AuctionNet's columns.")],
    controller: Annotated[
        str,
        typer.Option("--controller", help="gave, cbd, dt, dt-score, iql, cql, td3-bc, bc, gas, pathwise or selector."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The bidder's folder to write.")],
    source: Annotated[
        str, typer.Option("--source", help="What to learn from: auto, rebuilt (the log's days as markets) or log.")
    ] = "auto",
    split: Annotated[str, typer.Option("--split", help="Rows of this split, where the log has one.")] = "train",
    gamma: Annotated[float, typer.Option("--gamma", help="Exponent of the score's CPA penalty.")] = 2.0,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Training steps; by default the controller's own.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="One seed, one bidder.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bidder in --out.")] = False,
) -> None:
    """Train a bidder from a log of what campaigns bid and got."""
    from typing import cast

    from rankloom.bidding.training import Source, train_bidder

    if source not in ("auto", "rebuilt", "log"):
        raise RankloomError(
            f"--source {source}", place="--source", action="choose auto, rebuilt or log", code="source-unknown"
        )
    if not 0 <= gamma <= 20:
        raise RankloomError(
            f"a gamma of {gamma:g}", place="--gamma", action="give between 0 and 20, usually 2", code="gamma"
        )
    train_bidder(
        trajectories, controller, out, source=cast(Source, source), split=split, gamma=gamma, steps=steps, seed=seed,
        resume=resume, overwrite=overwrite, say=say,
    )  # fmt: skip
    say(f"written: {out}")


@app.command(epilog="Example: rankloom bid report --traces days --out bidding.html")
def report(
    traces: Annotated[Path, typer.Option("--traces", help="A folder of recorded market days (*_trace.npz).")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("bidding.html"),
    bidder: Annotated[
        list[str] | None,
        typer.Option(
            "--bidder", help="A bidder's folder or a controller's name; may be repeated. All built-in ones by default."
        ),
    ] = None,
    budget_ratio: Annotated[
        list[float] | None,
        typer.Option("--budget-ratio", help="May be repeated; 0.5, 0.75, 1, 1.25 and 1.5 by default."),
    ] = None,
    bounds: Annotated[bool, typer.Option("--bounds", help="Also what could have been reached, in hindsight.")] = False,
) -> None:
    """Write one offline page with every bidder on every market and budget."""
    from rankloom.bidding.controllers import CONTROLLERS
    from rankloom.bidding.evaluation import find_controller
    from rankloom.bidding.report import BUDGET_RATIOS, write_report
    from rankloom.bidding.traces import load_traces
    from rankloom.files import check_file_target

    check_file_target(out)
    ratios = budget_ratio or list(BUDGET_RATIOS)
    for ratio in ratios:
        _check_ratio(ratio)
    controllers = [find_controller(each) for each in bidder or list(CONTROLLERS)]
    say(f"written: {write_report(load_traces(traces), controllers, out, budget_ratios=ratios, bounds=bounds)}")


@app.command(epilog="Example: rankloom bid rebuild --trajectories log.parquet --out days")
def rebuild(
    trajectories: Annotated[Path, typer.Option("--trajectories", help="A trajectory log in AuctionNet's columns.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of days to write.")],
    split: Annotated[str, typer.Option("--split", help="Rows of this split, where the log has one.")] = "train",
    seed: Annotated[int, typer.Option("--seed", help="Seed of what the log does not tell.")] = 0,
) -> None:
    """Rebuild opportunity-level market days from a log of totals per tick, to tune and select on."""
    from rankloom.bidding.surrogate import rebuild_days

    days = rebuild_days(trajectories, split=split, seed=seed, out=out)
    say(f"written: {len(days)} days in {out}")


@app.command(epilog="Example: rankloom bid simulate --out days --days 2 --opportunities 20000")
def simulate(
    out: Annotated[Path, typer.Option("--out", help="The folder to write: recorded days, and trajectories.parquet.")],
    days: Annotated[int, typer.Option("--days", help="How many days.")] = 2,
    opportunities: Annotated[int, typer.Option("--opportunities", help="Opportunities a day.")] = 100_000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the market.")] = 0,
    dense: Annotated[
        bool, typer.Option("--dense", help="Ten times the conversion probability, a tenth of the CPA.")
    ] = False,
    first_price: Annotated[float, typer.Option("--first-price", help="Share of auctions that are first-price.")] = 0.0,
) -> None:
    """Simulate market days with 48 live bidders of many kinds, and log them."""
    from rankloom.bidding.market import MarketSettings, record_days

    settings = MarketSettings(
        opportunities=opportunities, regime="dense" if dense else "sparse", first_price_share=first_price
    )
    record_days(settings, days=days, seed=seed, out=out)
    say(f"written: {days} simulated days in {out}")


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1000:
        raise RankloomError(
            f"a budget ratio of {ratio:g}",
            place="--budget-ratio",
            action="give a positive number such as 0.75",
            code="budget-ratio",
        )
