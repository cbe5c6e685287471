"""The training job: a shop in, a model folder out. What `rankloom train` does.

    shop -> sequences, split by time -> tokenizer -> next-item training, behaviour memory -> weights of
    generator, memory and selection chosen on validation -> model folder

Beside the output lies a working folder `OUT.training` while the job runs: tokenizer, checkpoints, log. A killed job goes
on from there with `resume=True` and ends in the same weights, bit for bit on a CPU. It is removed at the end.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import save_file
from torch import distributed as dist

from rankloom import model_folder
from rankloom.building import build_model, created_seconds, watched
from rankloom.calibrating import calibrate_search
from rankloom.choosing import choose_refiner, choose_search, choose_weights, describe_weights
from rankloom.choosing_broad import choose_broad, describe_broad
from rankloom.compiling import available, no_cuda
from rankloom.config import Config
from rankloom.data import schema
from rankloom.data.broad_queries import with_broad_queries
from rankloom.data.sequences import TRAIN, Sequences, load_sequences
from rankloom.data.shop import Shop
from rankloom.decoding.choices import UNTRIED_SEARCH
from rankloom.decoding.exposure import Exposure
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_memory import QueryMemory, searched_texts
from rankloom.decoding.select import Weights
from rankloom.errors import RankloomError
from rankloom.files import atomic_file, check_replaceable, read_json, sha256_file, write_json, writing
from rankloom.models.age import log_rates
from rankloom.models.attributes import item_attributes
from rankloom.models.items import trust
from rankloom.recommender import Rankloom
from rankloom.semantic.khqe.mining import shown_after_queries
from rankloom.semantic.tokenizer import Tokenizer
from rankloom.training.batches import SequenceBatches
from rankloom.training.features import FeatureTable, hashed_user_features
from rankloom.training.loop import Trainer, start_distributed
from rankloom.training.objectives import NextItem, TrieSoftmax
from rankloom.training.processor import keep_freed_memory
from rankloom.training.validation import Validation

_REPEAT_SHARE = 0.05
FEW_CASES = 50
"""Validation cases below which a training is warned about."""


def train(
    shop_path: str | Path,
    out: str | Path,
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
    limit_steps: int | None = None,
) -> Path | None:
    """Trains a model on a shop and writes its folder.

    Args:
        resume: go on from the working folder of a killed run; it must be of the same shop and configuration.
        limit_steps: stop after so many optimiser steps, as a kill would, and return None.

    Raises:
        RankloomError: a shop that cannot be trained on, an output folder that may not be written.
    """
    joined = start_distributed()
    try:
        return _train(Path(out), shop_path, config, resume, overwrite, quiet, say, limit_steps)
    finally:
        if joined:
            dist.destroy_process_group()


def _train(
    out: Path,
    shop_path: str | Path,
    config: Config,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    say: Callable[[str], None],
    limit_steps: int | None,
) -> Path | None:
    check_replaceable(out, overwrite=overwrite, marker=model_folder.MANIFEST)
    if config.decoding.engine == "graph" and not torch.cuda.is_available():
        raise no_cuda("the graph engine needs a CUDA device, and this machine has none")
    keep_freed_memory()
    if available():
        # decoding on validation would do so midway, and a second training of the process begin otherwise than the first
        from rankloom.kernels import one_thread

        one_thread()
    shop = Shop.open(shop_path)
    sequences = load_sequences(shop, config.data)
    items = shop.items()
    _check_size(sequences, shop)
    fingerprint = _fingerprint(shop, config)
    work = out.parent / f"{out.name}.training"
    distributed = dist.is_available() and dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    if rank == 0:
        _open_work(work, fingerprint, resume)
    else:
        quiet, say = True, lambda _: None
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    tokenizer = None
    if rank == 0:
        tokenizer = _tokenizer(work, shop, sequences, config, quiet, say)
    if distributed:
        dist.barrier()
    # the other processes read what the first one fitted
    tokenizer = tokenizer or _tokenizer(work, shop, sequences, config, quiet, say)
    report = tokenizer.report()
    say(tokenizer.summary())
    table = feature_table(sequences, tokenizer, shop)
    trained = (sequences.stage == TRAIN) & sequences.target
    repeats = repeat_share(sequences)
    mask_seen = config.data.repeats == "mask" or (config.data.repeats == "auto" and repeats <= _REPEAT_SHARE)
    counts = torch.from_numpy(np.bincount(sequences.item[trained], minlength=items.height))
    created = created_seconds(items)
    dated = config.model.item_age and sequences.has_clock and created is not None and bool(created.isfinite().any())
    model = build_model(
        config,
        tokenizer,
        items,
        n_trained=items.height,
        dated=dated,
        attributed=config.model.item_attributes and item_attributes(items) is not None,
        trust_I=trust(counts, config.model.item_trust),
    )
    exposure = None
    if model.age is not None:
        when = torch.from_numpy(sequences.timestamp[trained] / 1e6)
        own = torch.from_numpy(sequences.item[trained].astype(np.int64))
        model.age.user.bias.data = log_rates(model.items.created_I, own, when)
        exposure = Exposure.fit(model.items.created_I, watched(items), own, when)
    batches = SequenceBatches(
        sequences,
        table,
        max_history=config.model.max_history,
        batch_tokens=config.training.batch_tokens,
        seed=config.seed,
        order=config.training.order,
        supervise=config.training.supervise,
        query_dropout=config.training.query_dropout if config.memory.queries else 0.0,
        rank=rank,
        world_size=world,
    )
    if batches.n_targets == 0:
        raise RankloomError(
            "the training part of the log has no interaction to learn from",
            place=str(shop.path),
            action="import more events, or lower data.valid_share and data.test_share",
            code="no-training-targets",
        )
    softmax = whole = None
    if config.decoding.normalise == "trie":
        softmax = TrieSoftmax(model.items.codes_IQ, model.codebook_sizes, rows=torch.nonzero(counts > 0)[:, 0])
        # what people take later may be new
        whole = TrieSoftmax(model.items.codes_IQ, model.codebook_sizes)
    memory = (
        BehaviourMemory.fit(sequences.user[trained], sequences.item[trained], items.height, top=config.memory.top)
        if config.memory.enabled
        else None
    )
    validation = Validation(
        sequences,
        table,
        max_history=config.model.max_history,
        max_cases=config.training.eval_users,
        mask_seen=mask_seen,
        seed=config.seed,
        softmax=whole,
    )
    trainer = Trainer(
        model,
        NextItem(
            config,
            counts,
            softmax,
            torch.from_numpy(sequences.timestamp[trained] / 1e6) if sequences.has_clock else None,
        ),
        batches,
        validate=validation,
        score=_score(config, len(validation)),
        config=config.training,
        seed=config.seed,
        folder=work,
        fingerprint=fingerprint,
        quiet=quiet,
        limit_steps=limit_steps,
    )
    say(
        f"training on {batches.n_targets:,} interactions of {sequences.n_users:,} people, {sum(p.numel() for p in model.parameters()):,} parameters"
    )
    if len(validation) < FEW_CASES:
        say(
            f"warning: only {len(validation)} validation cases; when to stop and how to join the parts can't be chosen well from so "
            "few (import more people, or raise data.valid_share)"
        )
    position = trainer.fit(resume=resume)
    if not position.finished:
        return None
    if rank != 0:
        return out
    rankloom = Rankloom(
        config=config,
        tokenizer=tokenizer,
        model=model,
        items=items,
        histories=histories_table(shop, sequences, config),
        mask_seen=mask_seen,
        memory=memory,
        exposure=exposure,
        query_memory=query_memory_of(sequences, items, synonyms=config.memory.synonyms) if config.memory.queries else None,
        log_end=float(sequences.timestamp.max() / 1e6) if sequences.has_clock else None,
    )
    figures: dict[str, float] = {}
    if len(validation):
        rankloom.weights, rankloom.generator_weights, figures = choose_weights(
            rankloom, sequences, table, mask_seen=mask_seen, limit=config.training.eval_users, quiet=quiet
        )
        if config.selection.enabled and config.selection.refine and rankloom.weights.mix < 1:
            rankloom.refiner, refined = choose_refiner(rankloom, sequences, table, mask_seen=mask_seen, quiet=quiet)
            rankloom.weights = replace(rankloom.weights, refine=float(rankloom.refiner is not None))
            figures.update(refined)
        searched = choose_search(
            rankloom, sequences, table, mask_seen=mask_seen, limit=config.training.eval_users, quiet=quiet
        )
        asked = with_broad_queries(sequences, items, ratio=config.selection.broad_searches, seed=config.seed)
        if asked is not sequences:
            made = feature_table(asked, tokenizer, shop)
            searched.update(choose_broad(rankloom, (sequences, table), (asked, made), mask_seen=mask_seen, quiet=quiet))
        searched.update(calibrate_search(rankloom, sequences, table, quiet=quiet))
        figures.update({f"search: {name}": value for name, value in searched.items()})
    elif not config.selection.enabled:
        rankloom.weights = rankloom.generator_weights = Weights(mix=1.0)
    say(f"chosen on validation: {describe_weights(rankloom.weights)}")
    if rankloom.query_memory is not None and replace(rankloom.search_choices, relevance=None) != UNTRIED_SEARCH:
        say(f"for searches: {describe_weights(rankloom.search_choices.weights, searches=True)}")
        if rankloom.search_choices.broad is not None:
            say(f"for broad searches: {describe_broad(rankloom.search_choices.broad)}")
    if (relevance := rankloom.search_choices.relevance) is not None:
        say(f"relevance of search results: {relevance.describe()}")
    rankloom.metadata = {
        "parents": {"shop": fingerprint[:12]},
        "shop": {"rows": shop.origin.get("rows", {}), "importer": shop.origin.get("importer", "")},
        "split": config.data.split,
        "n_users": sequences.n_users,
        "n_interactions": sequences.n_interactions,
        "n_training_targets": batches.n_targets,
        "repeat_share": repeats,
        "simulated": bool(shop.origin.get("simulated", False)),
        "tokenizer": report,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(position.seconds, 1),
        "steps": position.step,
        "best_step": position.best_step,
        "best_validation": next((r for r in position.log if r["step"] == position.best_step), {}),
        "weights_on_validation": figures,
        "shape": shape_of(sequences),
    }
    log = (work / "training_log.jsonl").read_text(encoding="utf-8")
    card = render_card(rankloom)
    rankloom.save_pretrained(out, overwrite=overwrite, extra={model_folder.LOG: log, model_folder.CARD: card})
    shutil.rmtree(work, ignore_errors=True)
    say(f"model folder: {out}")
    return out


def query_memory_of(sequences: Sequences, items: pl.DataFrame, *, synonyms: bool = True) -> QueryMemory:
    """The words of the catalogue and, as their synonyms, of the training period's searches."""
    if not synonyms:
        return QueryMemory.fit(searched_texts(items), ())
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    takes = zip(sequences.item[rows].tolist(), (sequences.queries[n] for n in sequences.query[rows]), strict=True)
    return QueryMemory.fit(searched_texts(items), takes)


def feature_table(sequences: Sequences, tokenizer: Tokenizer, shop: Shop | None) -> FeatureTable:
    """Model inputs of a log: queries embedded, static features of users hashed."""
    kind = tokenizer.config.model.content
    vectors = tokenizer.query_vectors(list(sequences.queries), kind) if sequences.queries else None
    users = hashed_user_features(shop.users(), sequences.user_ids) if shop is not None else None
    return FeatureTable.from_sequences(
        sequences, query_vectors=vectors, user_features=users, text_dim=tokenizer.model_content(kind).shape[1]
    )


def repeat_share(sequences: Sequences) -> float:
    """Share of training targets whose item the person already had in the history."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    if not len(rows):
        return 0.0
    pairs = sequences.user[rows].astype(np.int64) * sequences.n_items + sequences.item[rows]
    return 1 - len(np.unique(pairs)) / len(pairs)


def shape_of(sequences: Sequences) -> dict[str, list[float]]:
    """Two curves for the report: history lengths, and item popularity by rank (training part)."""
    lengths = np.diff(sequences.offsets)
    trained = (sequences.stage == TRAIN) & sequences.target
    counts = np.sort(np.bincount(sequences.item[trained], minlength=sequences.n_items))[::-1]
    picked = np.unique(np.geomspace(1, len(counts), 60).astype(int)) - 1
    return {
        "history_lengths": np.bincount(np.minimum(lengths, 60), minlength=61).astype(float).tolist(),
        "popularity_rank": (picked + 1).astype(float).tolist(),
        "popularity_count": counts[picked].astype(float).tolist(),
    }


def histories_table(shop: Shop, sequences: Sequences, config: Config) -> pl.DataFrame:
    """The last interactions of every person, whatever their stage: what serving conditions on.

    One more than `max_history`, so that the time since the interaction before is known of all that the model sees.
    """
    length = np.diff(sequences.offsets)
    kept = np.minimum(length, config.model.max_history + 1)
    rows = np.repeat(sequences.offsets[1:] - kept, kept) + (
        np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
    )
    items = shop.items()
    item_ids = items["item_id"].gather(sequences.item[rows].tolist())
    durations = items["duration_s"].gather(sequences.item[rows].tolist()) if "duration_s" in items.columns else None
    ratio = pl.Series(sequences.watch_ratio[rows].astype(np.float64)).fill_nan(None)
    frame = pl.DataFrame(
        {
            "user": np.repeat(np.arange(sequences.n_users), kept),
            "item_ids": item_ids,
            "events": pl.Series(np.asarray(schema.EVENT_KINDS)[sequences.kind[rows]]),
            "timestamps": pl.Series(sequences.timestamp[rows]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
            if sequences.has_clock
            else pl.Series([None] * len(rows), dtype=schema.TIME),
            "watch_s": ratio * durations
            if durations is not None
            else pl.Series([None] * len(rows), dtype=pl.Float64()),
            "surfaces": pl.Series(np.asarray(schema.SURFACES)[sequences.surface[rows]]),
            "positions": pl.Series(sequences.position[rows].astype(np.int32)).replace(-1, None),
            "queries": pl.Series([*sequences.queries, None], dtype=pl.String()).gather(
                np.where(sequences.query[rows] < 0, len(sequences.queries), sequences.query[rows]).tolist()
            ),
        }
    )
    table = frame.group_by("user", maintain_order=True).agg(pl.all()).drop("user")
    table = table.insert_column(0, pl.Series("user_id", sequences.user_ids[kept > 0].astype(object), dtype=pl.String()))
    features = hashed_user_features(shop.users(), sequences.user_ids[kept > 0])
    return table if features is None else table.with_columns(pl.Series("features", features.tolist()))


def render_card(rankloom: Rankloom) -> str:
    """The model card, filled from the run."""
    meta = rankloom.metadata
    best = meta["best_validation"]
    lines = [
        "---",
        "library_name: rankloom",
        "tags: [recommendation, semantic-id, generative-retrieval]",
        "---",
        "# Rankloom model",
        "",
        f"A OneRec-V2 lazy decoder ({meta['parameters']:,} parameters, preset `{rankloom.config.preset}`) that generates the",
        f"semantic IDs of {len(rankloom.items):,} items, with a selection head on the same forward.",
        "",
        "## Data",
        f"- {meta['n_users']:,} people, {meta['n_interactions']:,} interactions, split `{meta['split']}`; trained on {meta['n_training_targets']:,}",
        f"- share of repeats among training targets: {meta['repeat_share']:.2%}; lists {'hide' if rankloom.mask_seen else 'may show'} seen items",
        *(["- the log is **simulated**"] if meta["simulated"] else []),
        "",
        "## Semantic IDs",
        *(f"- {part}" for part in rankloom.tokenizer.summary().removeprefix("semantic IDs: ").split("; ")),
        "",
        "## Training",
        f"- {meta['steps']:,} steps in {meta['training_seconds'] / 60:.1f} minutes, seed {rankloom.config.seed}; best at step {meta['best_step']:,}",
        *(f"- {name}: {value:.4f}" for name, value in best.items() if name.startswith("valid")),
        f"- {describe_weights(rankloom.weights)} (chosen on validation)",
        "",
        "## Limits",
        "- Trained on one shop's log: it repeats that log's habits, popular items first among them. Look at coverage and cold items",
        "  in the report before you serve it.",
        "- Validation figures above chose the checkpoint; test figures come from `rankloom evaluate`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _score(config: Config, n_cases: int) -> Callable[[dict[str, float]], float]:
    if n_cases and config.selection.enabled:
        return lambda figures: figures["valid_ndcg@10"]
    if n_cases:
        return lambda figures: -figures["valid_generation_loss"]
    # nothing to validate on: the last weights are the best known
    return lambda figures: figures["step"]


def _tokenizer(
    work: Path, shop: Shop, sequences: Sequences, config: Config, quiet: bool, say: Callable[[str], None]
) -> Tokenizer:
    arrays_path, meta_path = work / "tokenizer.safetensors", work / "tokenizer.json"
    if meta_path.exists() and arrays_path.exists():
        return Tokenizer.from_state(model_folder.read_arrays(arrays_path), read_json(meta_path))
    items = shop.items()
    say(f"reading the text of {items.height:,} items and fitting semantic IDs")
    shown = None
    if config.khqe.enabled and config.khqe.rank:
        shown = shown_after_queries(shop, sequences, by_time=config.data.split == "time")
    tokenizer = Tokenizer.fit(items, sequences, config, shown=shown, quiet=quiet)
    arrays, meta = tokenizer.state()
    with atomic_file(arrays_path) as temporary:
        save_file(model_folder.contiguous(arrays), temporary)
    write_json(meta_path, meta)
    return tokenizer


def _check_size(sequences: Sequences, shop: Shop) -> None:
    n_items = len(np.unique(sequences.item))
    if sequences.n_users < 2 or n_items < 10:
        raise RankloomError(
            f"the log has {sequences.n_users} people and {n_items} items with interactions; that is too little to learn from",
            place=str(shop.path),
            action="import at least 2 people and 10 items with interactions",
            code="too-small",
        )


def _fingerprint(shop: Shop, config: Config) -> str:
    files = (shop.path / name for name in (schema.ITEMS, schema.EVENTS, schema.USERS))
    parts = [sha256_file(file) for file in files if file.exists()]
    settings = config.model_dump(mode="json")
    return hashlib.sha256(json.dumps([parts, settings], sort_keys=True).encode()).hexdigest()


def _open_work(work: Path, fingerprint: str, resume: bool) -> None:
    stamp: dict[str, Any] = {"fingerprint": fingerprint}
    existing = read_json(work / "run.json") if (work / "run.json").exists() else None
    if resume and existing is not None:
        if existing != stamp:
            raise RankloomError(
                "the unfinished run belongs to another shop or configuration",
                place=str(work),
                action="resume with the same shop and flags, or train without --resume to start anew",
                code="resume-foreign",
            )
        return
    shutil.rmtree(work, ignore_errors=True)
    with writing(work):
        work.mkdir(parents=True)
    write_json(work / "run.json", stamp)
