"""Whatever is asked wrongly is told as fact, place and action: no traceback, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import polars as pl
import pytest

from rankloom import model_folder
from rankloom.cli import main
from rankloom.config import Config
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.files import atomic_file, atomic_folder, sha256_file
from rankloom.pipeline import train
from rankloom.recommender import Rankloom

Run = Callable[..., "tuple[int, str, str]"]


@pytest.fixture(scope="module")
def place(bazaar: Shop, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shop, a model and things that are neither."""
    folder = tmp_path_factory.mktemp("errors")
    os.symlink(bazaar.path, folder / "shop")
    os.symlink(model_path, folder / "model")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("mine")
    (folder / "file").write_text("text")
    (folder / "broken.yaml").write_text("model: [1")
    (folder / "list.yaml").write_text("- 1")
    (folder / "unknown.yaml").write_text("model: {d_modle: 3}")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, standard output, standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rankloom", *argv])
        with chdir(place), pytest.raises(SystemExit) as stop:
            main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    return call


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in [*folder.iterdir(), *(folder / "full").iterdir(), *(folder / "empty").iterdir()]
    }


TRAIN = "train shop --out out --preset tiny "
ERRORS = [
    # usage
    ("", "Usage"),
    ("nosuch", "No such command"),
    ("--nosuch", "No such option"),
    ("train shop", "Missing option '--out'"),
    ("recommend model", "Missing option '--user'"),
    ("search model", "Missing argument 'words'"),
    ("recommend model --user u1 --k x", "'--k'"),
    ("recommend model --user u1 --k 0", "'--k'"),
    ("search model tea --k -1", "'--k'"),
    ("evaluate model shop --beam 0", "'--beam'"),
    ("evaluate model shop --max-users 0", "'--max-users'"),
    ("serve model --port 99999", "'--port'"),
    ("demo --scale 0 --no-serve", "'--scale'"),
    # paths
    ("recommend nothing --user u1", "no model folder nothing"),
    ("recommend file --user u1", "no model folder file"),
    ("recommend empty --user u1", "is not a model folder"),
    ("recommend shop --user u1", "is not a model folder"),
    ("search nothing tea", "no model folder nothing"),
    ("report nothing", "no model folder nothing"),
    ("serve nothing", "no model folder nothing"),
    ("evaluate nothing shop", "no model folder nothing"),
    ("evaluate model nothing", "no shop folder nothing"),
    ("evaluate model file", "no shop folder file"),
    ("evaluate model shop --split sideways", "no split 'sideways'"),
    ("validate nothing", "no shop folder nothing"),
    ("import csv nothing --out out", "nothing"),
    ("import nosuch full --out out", "nosuch"),
    ("import csv full --out model", "not empty"),
    ("import csv full --out out --map sku", "'sku' is not shop_column=source_column"),
    ("train nothing --out out", "no shop folder nothing"),
    ("train file --out out", "no shop folder file"),
    ("train empty --out out", "has no items.parquet"),
    ("train shop --out model", "exists and is not empty"),
    ("train shop --out file", "is a file, a folder is needed"),
    ("train shop --out file/out", "file is a file"),
    ("train shop --out full --overwrite", "is not one that Rankloom wrote"),
    ("report model --out full", "cannot be written: it is a folder"),
    ("report model --out file/report.html", "file is a file"),
    ("evaluate model shop --out empty", "cannot be written: it is a folder"),
    ("demo --folder file --scale 0.02 --no-serve", "file"),
    # settings
    (TRAIN + "--preset huge", "no preset 'huge'"),
    (TRAIN + "--split sideways", "data.split"),
    (TRAIN + "--seed -1", "seed"),
    (TRAIN + "--set foo", "'foo' is not name=value"),
    (TRAIN + "--set foo=3", "unknown key 'foo'"),
    (TRAIN + "--set model.d_modle=3", "did you mean 'd_model'"),
    (TRAIN + "--set seed.deep=3", "is not a section"),
    (TRAIN + "--set model=3", "model"),
    (TRAIN + "--set model.n_layers=abc", "model.n_layers"),
    (TRAIN + "--set model.n_layers=[1", "cannot be read"),
    (TRAIN + "--set model.n_heads=7", "is not a multiple of n_heads 7"),
    (TRAIN + "--set model.l_kv=99", "l_kv 99 exceeds n_layers"),
    (TRAIN + "--set data.target_events=[nosuch]", "no event of shop is of a kind to learn from (nosuch)"),
    (TRAIN + "--config nothing.yaml", "no configuration file nothing.yaml"),
    (TRAIN + "--config empty", "is a directory"),
    (TRAIN + "--config broken.yaml", "is not valid YAML"),
    (TRAIN + "--config binary.yaml", "is not valid YAML"),
    (TRAIN + "--config list.yaml", "must hold a mapping"),
    (TRAIN + "--config unknown.yaml", "unknown key 'model.d_modle'"),
]


@pytest.mark.parametrize(("command", "fact"), ERRORS, ids=[command or "nothing" for command, _ in ERRORS])
def test_a_bad_call_is_told_and_writes_nothing(run: Run, place: Path, command: str, fact: str) -> None:
    before = listing(place)
    code, out, err = run(*command.split())
    assert code == 2 or not command
    told = err + (out if not command else "")
    assert fact.lower() in told.lower()
    assert "Traceback" not in told
    if err.startswith("error:"):
        assert "what to do:" in err
    assert listing(place) == before


@pytest.mark.parametrize(
    ("text", "character"),
    [("price <", 8), ("price < 30 extra", 12), ("(price < 30", 12), ("price ! 30", 7), ("and", 1), ("price in [1,", 13)],
)
def test_an_error_in_a_filter_points_to_its_place(run: Run, text: str, character: int) -> None:
    code, _, err = run("recommend", "model", "--user", "u1", "--filter", text)
    assert code == 2
    assert f"character {character}" in err
    caret = next(line for line in err.splitlines() if line.strip() == "^")
    shown = err.splitlines()[err.splitlines().index(caret) - 1]
    assert len(caret) - (len(shown) - len(shown.lstrip())) == character


def test_a_stranger_is_served_and_told_so(run: Run) -> None:
    code, out, _ = run("recommend", "model", "--user", "nobody-has-this-name", "--k", "2")
    assert code == 0
    assert out.startswith("no history of this person")
    assert len([line for line in out.splitlines() if "SID" in line]) == 2


def test_more_than_the_catalogue_is_an_honest_short_list(run: Run, place: Path) -> None:
    code, out, _ = run("recommend", "model", "--user", "u1", "--k", "99999", "--json")
    reply = json.loads(out)
    assert code == 0
    assert reply["degraded"]
    assert len({item["item_id"] for item in reply["items"]}) == len(reply["items"]) > 100


# -- damaged model folders


def damage(folder: Path, how: str) -> None:
    manifest = json.loads((folder / model_folder.MANIFEST).read_text())
    config = json.loads((folder / model_folder.CONFIG).read_text())
    if how == "manifest is no JSON":
        (folder / model_folder.MANIFEST).write_text("{half")
    elif how == "manifest of something else":
        (folder / model_folder.MANIFEST).write_text('{"format": "cake"}')
    elif how == "manifest that is a list":
        (folder / model_folder.MANIFEST).write_text("[]")
    elif how == "manifest of the future":
        (folder / model_folder.MANIFEST).write_text(json.dumps({**manifest, "schema_version": 99}))
    elif how == "manifest without weights":
        del manifest["files"][model_folder.WEIGHTS]
        (folder / model_folder.MANIFEST).write_text(json.dumps(manifest))
    elif how == "manifest with bad entries":
        manifest["files"][model_folder.WEIGHTS] = "abc"
        (folder / model_folder.MANIFEST).write_text(json.dumps(manifest))
    elif how == "manifest that leaves the folder":
        manifest["files"]["../../etc/passwd"] = {"bytes": 1, "sha256": "0"}
        (folder / model_folder.MANIFEST).write_text(json.dumps(manifest))
    elif how == "weights absent":
        (folder / model_folder.WEIGHTS).unlink()
    elif how == "weights truncated":
        path = folder / model_folder.WEIGHTS
        path.write_bytes(path.read_bytes()[:-10])
    else:
        # what a hash cannot see: consistent files that do not fit each other
        if how == "configuration of another model":
            config["config"]["model"]["d_model"] *= 2
        elif how == "configuration with an unknown key":
            config["config"]["model"]["magic"] = 1
        elif how == "configuration without its model":
            del config["model"]
        elif how == "configuration that is a list":
            config = []
        elif how == "items of another catalogue":
            pl.read_parquet(folder / model_folder.ITEMS).head(7).write_parquet(folder / model_folder.ITEMS)
        elif how == "items that are no table":
            (folder / model_folder.ITEMS).write_bytes(b"PAR1 nothing PAR1")
        elif how == "IDs without codes":
            shutil.copy(folder / model_folder.WEIGHTS, folder / model_folder.SEMANTIC_IDS)
        (folder / model_folder.CONFIG).write_text(json.dumps(config))
        model_folder.write_manifest(folder, parents={})


@pytest.mark.parametrize(
    "how",
    [
        "manifest is no JSON", "manifest of something else", "manifest that is a list", "manifest of the future",
        "manifest without weights", "manifest with bad entries", "manifest that leaves the folder", "weights absent",
        "weights truncated", "configuration of another model", "configuration with an unknown key",
        "configuration without its model", "configuration that is a list", "items of another catalogue",
        "items that are no table", "IDs without codes",
    ],
)  # fmt: skip
def test_a_damaged_model_folder_is_refused_with_the_file_that_is_wrong(
    model_path: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_path, folder)
    damage(folder, how)
    with pytest.raises(RankloomError) as error:
        Rankloom.from_pretrained(folder)
    assert error.value.code.startswith(("model-", "config-", "json-"))
    names = [*model_folder.REQUIRED, "passwd"]
    assert any(name in f"{error.value.message} {error.value.place}" for name in names)


# -- disks that are full


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["rankloom", *sys.argv[2:]]
from rankloom.cli import main
main()
"""


@pytest.mark.parametrize("kilobytes", [20, 400])
def test_a_full_disk_stops_a_training_and_leaves_no_half_model(
    bazaar: Shop, tmp_path: Path, tiny_config: Config, kilobytes: int
) -> None:
    (tmp_path / "config.yaml").write_text(
        tiny_config.with_overrides(["training.eval_users=50", "training.min_steps=5", "training.max_epochs=1"]).to_yaml()
    )
    command = ["train", str(bazaar.path), "--out", "out", "--config", "config.yaml"]
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(kilobytes * 1024), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        # what measures coverage writes a file of its own at the end, which would hit the limit too
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert run.returncode == 2, run.stderr
    last = run.stderr[run.stderr.index("error:") :]
    assert "cannot be written: file too large" in last
    assert "free disk space" in last
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.fixture
def small_files() -> object:
    """Files of at most 30,000 bytes, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_leaves_the_old_model_in_place(model: Rankloom, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model.save_pretrained(tmp_path / "m")
    before = {path.name: sha256_file(path) for path in (tmp_path / "m").iterdir()}
    request.getfixturevalue("small_files")
    with pytest.raises(RankloomError, match="cannot be written") as error:
        model.save_pretrained(tmp_path / "m", overwrite=True)
    assert error.value.code == "write-failed"
    assert {path.name: sha256_file(path) for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("kind", ["text", "safetensors", "parquet"])
def test_a_full_disk_is_told_alike_by_every_writer(tmp_path: Path, small_files: object, kind: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    big = np.random.default_rng(0).random(20_000)
    with pytest.raises(RankloomError, match="x cannot be written: file too large"), atomic_file(tmp_path / "x") as path:
        if kind == "text":
            path.write_text("x" * 100_000)
        elif kind == "safetensors":
            save_file({"x": big}, path)
        else:
            pl.DataFrame({"x": big}).write_parquet(path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_what_is_read_is_not_told_as_one_of_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out"):
        Path("/nowhere/at/all").read_text()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out"):
        _ = 1 // 0
    with pytest.raises(pl.exceptions.ColumnNotFoundError), atomic_folder(tmp_path / "out"):
        pl.DataFrame({"a": [1]}).select("b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told_before_any_work(bazaar: Shop, tiny_config: Config, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RankloomError, match="no permission"):
            train(bazaar.path, tmp_path / "out", tiny_config, quiet=True)
    finally:
        tmp_path.chmod(0o700)
