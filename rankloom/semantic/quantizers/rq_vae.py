"""RQ-VAE: an autoencoder whose latent is residual-quantised (Lee et al. 2022; for semantic IDs TIGER 2305.05065).

Encoder MLP -> latent -> one codebook per level on what the levels before left over -> sum of the chosen codes -> decoder MLP.
Loss = |x - decoder(sum)|^2 + sum over levels of |sg[r] - e|^2 + beta |r - sg[e]|^2, with the straight-through estimator between
latent and sum. Codebooks start at K-means centroids of the latent residuals; a code that named nothing for an epoch moves to
a random residual of that epoch. OneRec's technical report finds RQ-KMeans better on every tokenizer metric; this is here so
that each catalogue can be asked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rankloom.config import QuantizerConfig
from rankloom.progress import Progress
from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.kmeans import kmeans
from rankloom.semantic.quantizers.sizes import batch_size_for, codebook_sizes_for
from rankloom.semantic.quantizers.straight_through import straight_through

_BLOCK: Final = 16_384
_KMEANS_ROWS: Final = 20_000
_WARM_UP: Final = 0.1
"""Share of the epochs that train the plain autoencoder, so that K-means starts from a latent that means something."""
_SETTLE: Final = 0.75
"""Share of the epochs after which no code is moved any more."""


class ResidualVAE(nn.Module):
    """The network.

    Args:
        width: D of the vectors.
        hidden: widths between vector and latent; the decoder mirrors them.
        latent: width of the latent.
        codebook_sizes: codes per level.
        commitment: beta.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], latent: int, codebook_sizes: Sequence[int], *, commitment: float
    ) -> None:
        super().__init__()
        widths = [width, *hidden, latent]
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.codebooks = nn.ParameterList([nn.Parameter(torch.zeros(size, latent)) for size in codebook_sizes])
        self.commitment = commitment

    def quantise(self, z_BZ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) codes, (B, Z) sum of the chosen codes, codebook + commitment loss (summed over Z, mean over B)."""
        residual, total = z_BZ, torch.zeros_like(z_BZ)
        loss = z_BZ.new_zeros(())
        codes = []
        for book in self.codebooks:
            chosen = nearest_code(residual.detach(), book.detach())
            code = book[chosen]
            loss = loss + ((residual.detach() - code) ** 2).sum(1).mean()
            loss = loss + self.commitment * ((residual - code.detach()) ** 2).sum(1).mean()
            residual = residual - code.detach()
            total = total + code
            codes.append(chosen)
        return torch.stack(codes, dim=1), total, loss

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) codes, (B, D) reconstruction, the whole loss."""
        z = self.encoder(x_BD)
        codes, total, loss = self.quantise(z)
        # the codebooks learn from their own term alone
        decoded = self.decoder(straight_through(z, total.detach()))
        return codes, decoded, loss + ((x_BD - decoded) ** 2).sum(1).mean()


class RQVAE:
    """See the module's docstring.

    Args:
        codebook_sizes: codes per level, first level first.
        hidden, latent, commitment: see `ResidualVAE`.
        epochs: of training, warm-up included.
        learning_rate: of Adam at its highest.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        *,
        hidden: Sequence[int] = (256,),
        latent: int = 64,
        commitment: float = 0.25,
        epochs: int = 100,
        learning_rate: float = 1e-3,
    ) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        self.hidden = tuple(hidden)
        self.latent = latent
        self.commitment = commitment
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.mean: FloatArray = np.zeros(0, dtype=np.float32)
        self.scale = 1.0
        self.revived = 0
        """Codes that were moved because they named nothing, over the last fit."""
        self._net: ResidualVAE | None = None

    @classmethod
    def from_config(cls, config: QuantizerConfig, n_items: int) -> Self:
        return cls(
            config.codebook_sizes or codebook_sizes_for(n_items, config.n_levels, decreasing=config.decreasing),
            hidden=config.vae_hidden,
            latent=config.vae_latent,
            commitment=config.vae_commitment,
            epochs=config.vae_epochs,
            learning_rate=config.vae_learning_rate,
        )

    @property
    def net(self) -> ResidualVAE:
        assert self._net is not None, "fit or from_arrays first"
        return self._net

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        self.mean = vectors.mean(0)
        self.scale = float(np.sqrt(((vectors - self.mean) ** 2).mean(dtype=np.float64))) or 1.0
        self.revived = 0
        x_ND = self._scaled(vectors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self._net = self._fresh(x_ND.shape[1])
        net = self._net
        size = batch_size_for(len(x_ND))
        per_epoch = math.ceil(len(x_ND) / size)
        warm_up = round(_WARM_UP * self.epochs)
        with Progress("fitting RQ-VAE", self.epochs * per_epoch, unit="steps", quiet=quiet) as progress:
            optimizer = torch.optim.Adam(net.parameters(), lr=self.learning_rate)
            for epoch in range(self.epochs):
                # one cycle of the learning rate per phase: the codebooks start when the latent has moved most of its way
                begin, end = (0, warm_up) if epoch < warm_up else (warm_up, self.epochs)
                cosine = 0.5 + 0.5 * math.cos(math.pi * (epoch - begin) / (end - begin))
                optimizer.param_groups[0]["lr"] = self.learning_rate * max(cosine, 0.02)
                if epoch == warm_up:
                    self._start_codebooks(x_ND, rng)
                named = [torch.zeros(size, dtype=torch.long) for size in self.codebook_sizes]
                for rows in torch.split(torch.from_numpy(rng.permutation(len(x_ND))), size):
                    batch = x_ND[rows]
                    if epoch < warm_up:
                        loss = ((net.decoder(net.encoder(batch)) - batch) ** 2).sum(1).mean()
                    else:
                        codes, _, loss = net(batch)
                        for level, used in enumerate(named):
                            used += torch.bincount(codes[:, level], minlength=len(used))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    progress.advance(note=f"loss {float(loss.detach()):.2f}")
                if warm_up <= epoch < _SETTLE * self.epochs:
                    self._revive(x_ND, named, optimizer, rng)
            if self.epochs <= warm_up:
                self._start_codebooks(x_ND, rng)
        return self.encode(vectors)

    @torch.no_grad()
    def encode(self, vectors: FloatArray) -> CodeArray:
        codes = np.zeros((len(vectors), len(self.codebook_sizes)), dtype=np.int32)
        for begin in range(0, len(vectors), _BLOCK):
            part = self._scaled(vectors[begin : begin + _BLOCK])
            codes[begin : begin + _BLOCK] = self.net.quantise(self.net.encoder(part))[0].numpy()
        return codes

    @torch.no_grad()
    def decode(self, codes: CodeArray) -> FloatArray:
        total = torch.zeros(len(codes), self.latent)
        for level in range(codes.shape[1]):
            total += self.net.codebooks[level][torch.from_numpy(codes[:, level].astype(np.int64))]
        out: FloatArray = self.net.decoder(total).numpy() * np.float32(self.scale) + self.mean
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "mean": self.mean,
            "scale": np.asarray([self.scale], dtype=np.float64),
            **{name: value.numpy() for name, value in self.net.state_dict().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        weights = {name: value for name, value in arrays.items() if name not in ("mean", "scale")}
        books = [value for name, value in sorted(weights.items(), key=_place) if name.startswith("codebooks.")]
        layers = [value for name, value in sorted(weights.items(), key=_place) if name.startswith("encoder.")]
        widths = [len(value) for value in layers if value.ndim == 2]
        own = cls([len(book) for book in books], hidden=widths[:-1], latent=widths[-1])
        own.mean, own.scale = arrays["mean"].astype(np.float32), float(arrays["scale"][0])
        own._net = own._fresh(len(own.mean))
        own._net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
        return own

    def _fresh(self, width: int) -> ResidualVAE:
        return ResidualVAE(width, self.hidden, self.latent, self.codebook_sizes, commitment=self.commitment)

    def _scaled(self, vectors: FloatArray) -> Tensor:
        scaled = (vectors.astype(np.float32) - self.mean) / np.float32(self.scale)
        return torch.from_numpy(np.ascontiguousarray(scaled))

    @torch.no_grad()
    def _start_codebooks(self, x_ND: Tensor, rng: np.random.Generator) -> None:
        rows = x_ND
        if len(x_ND) > _KMEANS_ROWS:
            rows = x_ND[torch.from_numpy(np.sort(rng.choice(len(x_ND), _KMEANS_ROWS, replace=False)))]
        residual = self.net.encoder(rows).numpy()
        for book in self.net.codebooks:
            centroids, assignment = kmeans(residual, len(book), rng, iterations=10)
            book.copy_(torch.from_numpy(centroids))
            residual = residual - centroids[assignment]

    @torch.no_grad()
    def _revive(
        self, x_ND: Tensor, named: list[Tensor], optimizer: torch.optim.Optimizer, rng: np.random.Generator
    ) -> None:
        """Moves codes that named nothing to residuals of random rows, and forgets their momentum."""
        for level, used in enumerate(named):
            dead = torch.nonzero(used == 0).flatten()
            if not len(dead):
                continue
            rows = torch.from_numpy(rng.choice(len(x_ND), min(len(dead), len(x_ND)), replace=False))
            dead = dead[: len(rows)]
            residual = self.net.encoder(x_ND[rows])
            for book in self.net.codebooks[:level]:
                residual = residual - book[nearest_code(residual, book)]
            book = self.net.codebooks[level]
            book[dead] = residual
            for value in optimizer.state[book].values():
                if value.shape == book.shape:
                    value[dead] = 0
            self.revived += len(dead)


def nearest_code(residual_BZ: Tensor, book_KZ: Tensor) -> Tensor:
    """(B,) the nearest code of each row."""
    return ((book_KZ**2).sum(1)[None] - 2 * residual_BZ @ book_KZ.T).argmin(1)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for source, target in itertools.pairwise(widths):
        layers += [nn.Linear(source, target), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _place(entry: tuple[str, Any]) -> int:
    """Order of a layer or codebook by the number in its name."""
    return int(entry[0].split(".")[1])
