"""The command line: one thin command a verb. Errors are told without a traceback; exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rankloom.bidding.cli import app as bidding
from rankloom.errors import RankloomError

app = typer.Typer(
    name="rankloom",
    help="One generative model and one space of semantic IDs for feed, search and ads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bidding)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
K = Annotated[int, typer.Option("--k", min=1, help="How many items.")]
FilterOption = Annotated[
    str | None, typer.Option("--filter", help="An expression every item must meet, e.g. 'price < 30'.")
]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _version(wanted: bool) -> None:
    if wanted:
        import rankloom

        print(f"rankloom {rankloom.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """One generative model and one space of semantic IDs for feed, search and ads."""


MapEvent = Annotated[
    list[str] | None,
    typer.Option("--map-event", help="word_of_the_log=kind, such as wishlist=like; may be repeated."),
]
DropEvent = Annotated[
    list[str] | None, typer.Option("--drop-event", help="A kind of event to leave out; may be repeated.")
]


ItemsFile = Annotated[Path | None, typer.Option("--items", help="The catalogue's file (csv, jsonl, parquet), whatever its name.")]
EventsFile = Annotated[Path | None, typer.Option("--events", help="The log's file, likewise.")]


@app.command(
    "import",
    epilog="Your own files: rankloom validate docs/example shows what each column is taken for, rankloom import csv docs/example "
    "--out shop --yes takes it, rankloom train shop --out model --preset tiny, rankloom recommend model --user C056.",
)
def import_(
    format: Annotated[
        str,
        typer.Argument(
            help="amazon, csv, ga4, jsonl, kuairand, kuaisar, merchant-feed, movielens, parquet or sequences."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The shop folder to write.")],
    source: Annotated[
        Path | None,
        typer.Argument(help="What the format expects; of csv, jsonl and parquet a folder with a catalogue and a log."),
    ] = None,
    items: ItemsFile = None,
    events: EventsFile = None,
    map: Annotated[
        list[str] | None,
        typer.Option("--map", help="shop_column=source_column, such as price=preis_eur; empty leaves one out; may be repeated."),
    ] = None,
    map_event: MapEvent = None,
    drop_event: DropEvent = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the guessed mapping; without it a terminal is asked, anything else refused.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing shop.")] = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Of text files; UTF-8, UTF-16 and GB18030 are recognised.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn what you have into a shop folder. Which column is what is guessed and shown: look first with `rankloom validate`."""
    from rankloom.data.importing import ImportReport, import_data
    from rankloom.data.reading import SUFFIXES

    shown = ""
    command = _again(
        ["rankloom", "import", format, *([str(source)] if source else []), "--out", str(out)],
        {"--items": items, "--events": events, "--map": map, "--map-event": map_event, "--drop-event": drop_event, "--encoding": encoding},
        [flag for flag, wanted in (("--overwrite", overwrite), ("--yes", True)) if wanted],
    )

    def confirm(report: ImportReport) -> bool:
        nonlocal shown
        # only tables with columns of their own are guessed at; the other formats say where everything is
        if yes or format not in SUFFIXES or not (report.guessed or report.warnings):
            return True
        shown = report.render()
        if sys.stdin.isatty():
            print(shown)
            try:
                return typer.confirm("Is this mapping right?", default=True)
            except typer.Abort:
                return False
        print(shown, file=sys.stderr)
        raise RankloomError(
            "the mapping above is a guess, and nobody has agreed to it", place=str(source or events),
            action=f"if it is right: {command}", code="mapping-unconfirmed",
        )  # fmt: skip

    report = import_data(
        format, source, out, mapping=_mapping(map), overwrite=overwrite, encoding=encoding, items=items, events=events,
        kinds=_mapping(map_event, "--map-event", "word_of_the_log=kind", "wishlist=like"), drop=drop_event or (),
        confirm=confirm, command=shlex.split(command),
    )  # fmt: skip
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
        return
    # what was shown with the question is not said again
    print(_fresh(report.render(), shown))
    print(f"shop folder: {out}")


def _fresh(text: str, shown: str) -> str:
    old = set(shown.splitlines())
    return "\n".join(line for line in text.splitlines() if line not in old)


def _again(words: list[str], options: dict[str, Any], flags: list[str]) -> str:
    """The command as it was written, to be told with what it lacks."""
    for flag, value in options.items():
        for own in value if isinstance(value, list) else [] if value is None else [value]:
            words = [*words, flag, str(own)]
    return shlex.join([*words, *flags])


def _mapping(
    pairs: list[str] | None, flag: str = "--map", form: str = "shop_column=source_column", example: str = "item_id=sku"
) -> dict[str, str]:
    """`--map shop_column=source_column`, read."""
    mapping: dict[str, str] = {}
    for pair in pairs or []:
        shop, separator, column = pair.partition("=")
        if not separator or not shop or not (column or flag == "--map"):
            raise RankloomError(
                f"{pair!r} is not {form}",
                place=flag,
                action=f"write e.g. {flag} {example}",
                code="map-form",
            )
        mapping[shop.strip()] = column.strip()
    return mapping


@app.command(epilog="Example: rankloom validate demo/shop, or of files before their import: rankloom validate docs/example")
def validate(
    shop: Annotated[Path | None, typer.Argument(help="A shop folder, or files that are to be imported.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Of files that are no shop yet; csv, jsonl and parquet are seen.")
    ] = None,
    items: ItemsFile = None,
    events: EventsFile = None,
    map: Annotated[list[str] | None, typer.Option("--map", help="As at the import; may be repeated.")] = None,
    map_event: MapEvent = None,
    drop_event: DropEvent = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="As at the import.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a shop, or files before their import: the mapping, then findings as fact, place and action. Changes nothing.

    Exit status 1 where there are errors.
    """
    from dataclasses import asdict

    from rankloom.data.importing import ImportReport
    from rankloom.data.validate import guess_format, validate_source
    from rankloom.data.validate import validate as run

    some = shop or events or items
    if some is None:
        raise RankloomError(
            "there is nothing to validate", place="SHOP", action="give a shop, files to import, or --events FILE --items FILE",
            code="source-missing",
        )  # fmt: skip
    format = format or guess_format(some)
    told: dict[str, Any] = {}
    if format is None:
        report = run(some)
    else:
        told = {"format": format, "mapping": {}, "notices": [], "warnings": []}
        options = {"--items": items, "--events": events, "--map": map, "--map-event": map_event, "--drop-event": drop_event, "--encoding": encoding}
        where = [str(shop)] if shop else []
        shown: list[str] = []

        def show(own: ImportReport) -> None:
            told["mapping"] = told["mapping"] or {name: [asdict(each) for each in each_file] for name, each_file in own.mapping.items()}
            told["notices"], told["warnings"] = own.notices, own.warnings
            if not as_json:
                text = _fresh(own.render(), "\n".join(shown))
                shown.extend(text.splitlines())
                print(text)

        report = validate_source(
            shop, format, mapping=_mapping(map), encoding=encoding, drop=drop_event or (), items=items, events=events, show=show,
            kinds=_mapping(map_event, "--map-event", "word_of_the_log=kind", "wishlist=like"),
            command=shlex.split(_again(["rankloom", "validate", *where], options, [])),
        )  # fmt: skip
    print(json.dumps({**report.to_dict(), **told}, ensure_ascii=False, indent=2) if as_json else report.render())
    if report.errors:
        raise typer.Exit(1)
    if format is not None and not as_json:
        print(f"to import it: {_again(['rankloom', 'import', format, *where, '--out', 'shop'], options, ['--yes'])}")


@app.command(epilog="Example: rankloom train demo/shop --out model --preset tiny")
def train(
    shop: Annotated[Path, typer.Argument(help="A shop folder.")],
    out: Annotated[Path, typer.Option("--out", help="The model folder to write.")],
    preset: Annotated[str, typer.Option("--preset", help="tiny, small or base.")] = "small",
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file on top of the preset.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="section.name=value; may be repeated.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="leave-one-out or time (default: time where the shop has a clock).")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="One seed, one result.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from a killed run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
) -> None:
    """Train a model on a shop."""
    from rankloom import pipeline
    from rankloom.config import Config
    from rankloom.data.shop import Shop

    own = Config.load(config, preset=preset) if config else Config.preset_config(preset)
    overrides = list(set or [])
    split = split or ("leave-one-out" if Shop.open(shop).origin.get("clock") == "order" else None)
    if split:
        overrides.append(f"data.split={split}")
    if seed is not None:
        overrides.append(f"seed={seed}")
    pipeline.train(shop, out, own.with_overrides(overrides), resume=resume, overwrite=overwrite, say=say)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts this several times
        print(f"model folder: {out}")


@app.command(epilog="Example: rankloom evaluate model demo/shop --baselines")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    shop: Annotated[Path, typer.Argument(help="The shop it was trained on.")],
    split: Annotated[str | None, typer.Option("--split", help="leave-one-out or time (default: as trained).")] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Fit and rank the baselines in the same run.")] = False,
    beam: Annotated[int | None, typer.Option("--beam", min=1, help="Beam width (default: the model's).")] = None,
    max_users: Annotated[int | None, typer.Option("--max-users", min=1, help="A random sample of so many people.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write the JSON here (the report reads MODEL/../evaluation.json).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on the test part of a shop's log, seen items masked and allowed."""
    from rankloom.config import EvaluationConfig
    from rankloom.data.sequences import load_sequences
    from rankloom.data.shop import Shop
    from rankloom.evaluation.evaluate import evaluate as run
    from rankloom.evaluation.evaluate import text_table
    from rankloom.evaluation.rankloom_system import RankloomSystem
    from rankloom.evaluation.suite import suite
    from rankloom.files import check_file_target, write_json
    from rankloom.recommender import Rankloom

    if out is not None:
        check_file_target(out)
    own = Rankloom.from_pretrained(model)
    if split not in (None, "leave-one-out", "time"):
        raise RankloomError(
            f"no split {split!r}", place="--split", action="choose leave-one-out or time", code="unknown-split"
        )
    opened = Shop.open(shop)
    data = own.config.data.model_copy(update={"split": split} if split else {})
    sequences = load_sequences(opened, data)
    first = RankloomSystem(own, opened, beam=beam)
    if first.added:
        say(f"{first.added:,} items are new to the model; they got semantic IDs from its frozen tokenizer")
    systems, content = suite(first, opened, sequences, baselines="all" if baselines else "none")
    result = run(systems, sequences, content, EvaluationConfig(), seed=own.config.seed, max_cases=max_users, say=say)
    if out is not None:
        write_json(out, result.to_json())
    print(json.dumps(result.to_json(), indent=2) if as_json else text_table(result))


@app.command(epilog="Example: rankloom recommend model --user u1 --k 5 --filter 'price < 30' --explain")
def recommend(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    user: Annotated[str, typer.Option("--user", help="Who.")],
    k: K = 10,
    filter: FilterOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why.")] = False,
    as_json: AsJson = False,
) -> None:
    """What to show one person next."""
    from rankloom.recommender import Rankloom

    own = Rankloom.from_pretrained(model)
    _print(own.recommend(user, k=k, filter=filter, explain=explain), as_json, stranger=user not in own.users)


@app.command(epilog='Example: rankloom search model "green tea" --k 5')
def search(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    words: Annotated[str, typer.Argument(help="What to search for.")],
    user: Annotated[str | None, typer.Option("--user", help="Who.")] = None,
    k: K = 10,
    filter: FilterOption = None,
    sort: Annotated[
        str | None, typer.Option("--sort", help="price, -price, newest, or another column, instead of the best first.")
    ] = None,
    facets: Annotated[list[str] | None, typer.Option("--facet", help="Count the values of a column among the matches.")] = None,
    min_relevance: Annotated[
        float | None, typer.Option("--min-relevance", help="Show only what is at least so relevant, 0 to 1; the list may be short.")
    ] = None,
    max_typos: Annotated[
        int | None, typer.Option("--max-typos", help="Slips of a word that are forgiven, 0 to 2 (default: the model's).")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Words, codes and parts of the score of every result.")] = False,
    as_json: AsJson = False,
) -> None:
    """The same model with words in its context."""
    from rankloom.recommender import Rankloom

    own = Rankloom.from_pretrained(model)
    found = own.search(words, user=user, k=k, filter=filter, explain=True, sort=sort, facets=facets or (), min_relevance=min_relevance, max_typos=max_typos)
    _print(found, as_json, details=explain)


@app.command(epilog="Example: rankloom serve model --port 8080")
def serve(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    state: Annotated[
        str | None,
        typer.Option("--state", help="Where events are kept: a file (default: MODEL.events.sqlite), or valkey://HOST:PORT/0."),
    ] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="A YAML file of API keys with scopes.")] = None,
    scenarios: Annotated[Path | None, typer.Option("--scenarios", help="A YAML file of placements and settings.")] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of further model folders (default: where MODEL lies).")
    ] = None,
    deadline_ms: Annotated[
        int, typer.Option("--deadline-ms", min=1, max=60_000, help="A request that cannot be answered by then is refused.")
    ] = 1000,
    drain_s: Annotated[
        float, typer.Option("--drain-s", min=0, help="Seconds between `not ready` and the end, for load balancers.")
    ] = 0,
    context_cache: Annotated[
        float, typer.Option("--context-cache", min=0, help="MB for what is kept of people between their requests; 0 keeps nothing.")
    ] = 0,
    log: Annotated[str, typer.Option("--log", help="json (a line a request) or quiet.")] = "quiet",
) -> None:
    """Serve a model: HTTP API and the page."""
    from rankloom.serving.batching import BatchSettings
    from rankloom.serving.keys import read_keys
    from rankloom.serving.scenarios import read_scenarios
    from rankloom.serving.server import run
    from rankloom.serving.settings import ServerSettings

    if log not in ("json", "quiet"):
        raise RankloomError(f"no log {log!r}", place="--log", action="choose json or quiet", code="unknown-log")
    settings = ServerSettings(
        keys=read_keys(keys), scenarios=read_scenarios(scenarios), root=models,
        batching=BatchSettings(deadline_s=deadline_ms / 1e3), context_cache_mb=context_cache,
    )  # fmt: skip
    own = state or model.with_name(model.name + ".events.sqlite")
    run(model, host=host, port=port, state=own, settings=settings, drain_s=drain_s, log=log, say=say)


models_app = typer.Typer(help="Models of a running server: deploy, canary, shadow, back.", no_args_is_help=True)
app.add_typer(models_app, name="models")
Server = Annotated[str, typer.Option("--server", help="Address of the server; RANKLOOM_API_KEY opens it.")]
_HERE = "http://127.0.0.1:8080"


@models_app.command("list", epilog="Example: rankloom models list --server http://127.0.0.1:8080")
def models_list(server: Server = _HERE, as_json: AsJson = False) -> None:
    """What is loaded, what it did, and what happened to it."""
    from rankloom.serving.client import call

    own = call(server, "GET", "/v1/models")
    if as_json:
        print(json.dumps(own, ensure_ascii=False, indent=2))
        return
    for version in own["versions"]:
        share = f" {version['share']:.0%}" if "share" in version else ""
        print(
            f"{version['role'] + share:<12} {version['model_version']}  {version['folder'] or '-':<20} "
            f"{version['replies']:>8,} replies  {version['median_ms']:>7.1f} ms  errors {version['errors']:.1%}"
        )
    for event in own["events"][-10:]:
        print(f"{event['at']}  {event['model_version']} {event['what']} {event['why']}")


@models_app.command("deploy", epilog="Example: rankloom models deploy model-2 --canary 0.1")
def models_deploy(
    folder: Annotated[str, typer.Argument(help="Name of a folder where the server's models lie.")],
    canary: Annotated[
        float | None, typer.Option("--canary", help="Share of people that it answers; guardrails watch it.")
    ] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help="It answers unseen.")] = False,
    server: Server = _HERE,
    as_json: AsJson = False,
) -> None:
    """Put a model folder to use, without a pause."""
    from rankloom.serving.client import call

    body: dict[str, Any] = {"folder": folder, "mode": "canary" if canary is not None else "shadow" if shadow else "current"}
    if canary is not None:
        body["share"] = canary
    own = call(server, "POST", "/v1/models", body)
    print(json.dumps(own) if as_json else f"{own['model_version']} is {own['mode']}")


def _models_step(path: str, server: str, as_json: bool) -> None:
    from rankloom.serving.client import call

    own = call(server, "POST", f"/v1/models/{path}")
    print(json.dumps(own) if as_json else ", ".join(f"{name}: {value}" for name, value in own.items()))


@models_app.command("promote", epilog="Example: rankloom models promote")
def models_promote(server: Server = _HERE, as_json: AsJson = False) -> None:
    """The canary, else the shadow, answers everybody."""
    _models_step("promote", server, as_json)


@models_app.command("rollback", epilog="Example: rankloom models rollback")
def models_rollback(server: Server = _HERE, as_json: AsJson = False) -> None:
    """The previous version answers everybody again."""
    _models_step("rollback", server, as_json)


@models_app.command("forget", epilog="Example: rankloom models forget demo/model --state demo/events.sqlite")
def models_forget(
    folder: Annotated[Path, typer.Argument(help="A model folder; deploy it again afterwards.")],
    state: Annotated[str, typer.Option("--state", help="The server's state, whose tombstones say who.")],
    as_json: AsJson = False,
) -> None:
    """Take people who asked to be forgotten out of a model folder's histories."""
    from rankloom.serving.forget import forget

    removed, version = forget(folder, state)
    print(json.dumps({"removed": removed, "model_version": version}) if as_json else f"{removed} people; version {version}")


@models_app.command("stop", epilog="Example: rankloom models stop")
def models_stop(server: Server = _HERE, as_json: AsJson = False) -> None:
    """Take canary and shadow away."""
    _models_step("stop", server, as_json)


@app.command(epilog="Example: rankloom report model --out report.html")
def report(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    evaluation: Annotated[
        Path | None,
        typer.Option("--evaluation", help="JSON of `rankloom evaluate` (default: evaluation.json in or beside MODEL)."),
    ] = None,
) -> None:
    """One offline HTML file about a model, with plots."""
    from rankloom.evaluation.report import write_report

    print(f"report: {write_report(model, out, evaluation=evaluation)}")


@app.command(epilog="Example: rankloom demo --no-serve")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where the demo lives.")] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the marketplace and the model.")] = 0,
    scale: Annotated[float, typer.Option("--scale", min=0.01, help="Size of the marketplace; 1 is 4,000 people.")] = 1.0,
    preset: Annotated[str, typer.Option("--preset", help="tiny, small or base.")] = "small",
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="End with the page.")] = True,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page.")] = 8080,
) -> None:
    """Simulated marketplace -> train -> evaluate -> serve with the page."""
    from rankloom import pipeline
    from rankloom.config import Config, EvaluationConfig
    from rankloom.data.sequences import load_sequences
    from rankloom.data.shop import Shop
    from rankloom.evaluation.evaluate import evaluate as run
    from rankloom.evaluation.evaluate import text_table
    from rankloom.evaluation.rankloom_system import RankloomSystem
    from rankloom.evaluation.suite import suite
    from rankloom.files import write_json
    from rankloom.recommender import Rankloom
    from rankloom.simulation.bazaar import generate_bazaar

    shop_path, model_path = folder / "shop", folder / "model"
    if (shop_path / "shop.json").exists():
        say(f"1/4 the marketplace is there: {shop_path}")
    else:
        say(f"1/4 simulating the bazaar into {shop_path}")
        generate_bazaar(shop_path, seed=seed, scale=scale)
    if (model_path / "manifest.json").exists():
        say(f"2/4 the model is there: {model_path}")
    else:
        say(f"2/4 training the {preset} preset")
        resume = (folder / "model.training" / "run.json").exists()
        # half the epochs of a full training: the page opens within minutes on two cores
        config = Config.preset_config(preset).with_overrides([f"seed={seed}", "training.max_epochs=8"])
        pipeline.train(shop_path, model_path, config, resume=resume, say=say)
    say("3/4 evaluating on what people did after the training period (simulated)")
    own = Rankloom.from_pretrained(model_path)
    shop = Shop.open(shop_path)
    sequences = load_sequences(shop, own.config.data)
    systems, content = suite(RankloomSystem(own, shop), shop, sequences, baselines="quick")
    result = run(
        systems, sequences, content, EvaluationConfig(bootstrap=200, max_cases_per_user=2), max_cases=600, say=say
    )
    write_json(folder / "evaluation.json", result.to_json())
    print(text_table(result))
    if not serve:
        print(f"\nthe model is in {model_path}; see it with: rankloom serve {model_path}")
        return
    from rankloom.serving.server import run as serve_model

    say("4/4 serving")
    serve_model(model_path, host="127.0.0.1", port=port, state=folder / "events.sqlite", say=say)


def _print(reply: Any, as_json: bool, *, stranger: bool = False, details: bool = False) -> None:
    from dataclasses import asdict

    if as_json:
        print(json.dumps(asdict(reply), ensure_ascii=False, indent=2))
        return
    if stranger:
        print("no history of this person: the list is that for a new visitor")
    if reply.read_as:
        print(f"reading {', '.join(f'{typed!r} as {other!r}' for typed, other in reply.read_as)}")
    for place, item in enumerate(reply.items, start=1):
        codes = "-".join(map(str, item.sid))
        chance = "" if item.relevance is None else f"  relevance {item.relevance:.3f}"
        print(f"{place:>3}. {item.title}  [{item.item_id}]  SID {codes}  {item.score:.2f}{chance}")
        for reason in item.reasons:
            print(f"       {reason}")
        if details and item.explanation is not None:
            for line in _details(item.explanation):
                print(f"         {line}")
    for name, values in reply.facets.items():
        print(f"{name}: {', '.join(f'{value} ({n:,})' for value, n in values) or 'nothing'}")
    if reply.no_match and reply.items:
        print("no item that may be shown matches this search: the list is by meaning and history")
    elif reply.no_match:
        print("no item that may be shown matches this search" if reply.degraded else "nothing reaches the relevance asked for")
    if reply.degraded:
        print(f"degraded: {reply.degraded_reason}")


def _details(own: Any) -> list[str]:
    """Lines of an explanation."""
    lines = []
    for word in own.words:
        read_as = f" (read as {word.read_as!r})" if word.read_as else ""
        kind = f", {word.kind}" if word.kind else ""
        where = ", ".join("earlier searches" if name == "searches" else name for name in word.where)
        lines.append(f"word {word.word!r}{read_as}{kind}: {word.share:.0%} of the query, {f'in {where}' if where else 'nowhere in this item'}")
    for step in own.path:
        log_prob = "not kept" if step.log_prob is None else f"{step.log_prob:.2f}"
        lines.append(f"code {step.code}: {step.meaning or '-'}  log-probability {log_prob}")
    for name, parts in (("score above the mean", own.parts), ("refiner", own.refiner)):
        if parts:
            lines.append(f"{name}: {', '.join(f'{part} {value:+.2f}' for part, value in parts.items())}")
    return lines


def main() -> None:
    """Entry point: prints a `RankloomError` as fact, place and action, exit code 2."""
    try:
        app()
    except RankloomError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # the reader of our output has gone (`| head`); Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        place = f"\n  where: {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}\n  what to do: check the path and its permissions", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
