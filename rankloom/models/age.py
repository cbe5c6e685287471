"""How old an item is at the moment of a request, and what that does to its chance of being taken.

Feeds show what is new; what an item was taken in training says little before it is known for how long it was shown. The
selection head therefore scores an item by taste plus age,

    score(u, i, t) = u . z_i + a_u[age(i, t)] + b_i[age(i, t)]

with a learned row of age buckets per user state and per item vector. Under a softmax over the items that existed at
time t the item's own vector then holds what is left: taste and quality, not how long it happened to be there.

Shapes: M users or targets, I or N items, A age buckets.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

EDGES_DAYS: Final = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 11, 15, 20, 26, 33, 42, 60, 90, 180, 365)
UNKNOWN: Final = 0
NOT_YET: Final = 1
N_AGES: Final = len(EDGES_DAYS) + 3
_NEVER_SHOWN: Final = 20.0
"""Taken from the score of an item that is not listed yet."""


def age_bucket(when_M1: Tensor, created: Tensor) -> Tensor:
    """Buckets of the ages at `when` (seconds, float64) of items created at `created`; broadcast. NaN is unknown."""
    days = (when_M1 - created) / 86_400
    bucket = 2 + torch.bucketize(days, torch.tensor(EDGES_DAYS, dtype=torch.float64, device=days.device), right=True)
    bucket = torch.where(days < 0, NOT_YET, bucket)
    return torch.where(torch.isnan(days), UNKNOWN, bucket)


class AgeIndex:
    """`age_bucket` of the same items for many moments: sorted by birth an age is a range, so a row costs its bounds.

    Items given in order of birth cost least.

    Args:
        created_N: seconds when each item was listed, NaN unknown.
    """

    def __init__(self, created_N: Tensor) -> None:
        # NaN sorts last
        self.created, order = torch.sort(created_N)
        self.n_known = int((~created_N.isnan()).sum())
        own = torch.arange(len(order), device=order.device)
        self.place = None if torch.equal(order, own) else torch.argsort(order)
        # oldest first, then what is not listed yet, then what has no date
        self.bucket = torch.tensor([*range(N_AGES - 1, NOT_YET, -1), NOT_YET, UNKNOWN], device=created_N.device)
        edges = torch.tensor([0.0, *EDGES_DAYS], dtype=torch.float64, device=created_N.device)
        self.edge_seconds = edges.flip(0) * 86_400

    def buckets(self, when_M: Tensor) -> Tensor:
        """(M, N) what `age_bucket` says."""
        bound = torch.searchsorted(self.created[: self.n_known], when_M[:, None] - self.edge_seconds, right=True)
        ends = torch.tensor([self.n_known, len(self.created)], device=bound.device).expand(len(when_M), 2)
        count = torch.diff(torch.cat([bound, ends], dim=1), dim=1, prepend=torch.zeros_like(bound[:, :1]))
        flat = torch.repeat_interleave(self.bucket.repeat(len(when_M)), count.reshape(-1))
        out = flat.view(len(when_M), len(self.created))
        if self.place is not None:
            out = out[:, self.place]
        if bool(when_M.isnan().any()):
            out = torch.where(when_M[:, None].isnan(), UNKNOWN, out)
        return out


class AgeHead(nn.Module):
    """The two age terms of the selection score.

    Args:
        dim: width of user states and item vectors.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.user = nn.Linear(dim, N_AGES)
        self.item = nn.Linear(dim, N_AGES, bias=False)

    def forward(self, user_MD: Tensor, item_D: Tensor, bucket_MN: Tensor) -> Tensor:
        """(M, N) what age adds to the scores.

        Args:
            user_MD: user states.
            item_D: (N, D) item vectors shared by all users, or (M, N, D).
            bucket_MN: ages of the items for each user.
        """
        of_user = self.user(user_MD).float().gather(1, bucket_MN)
        of_item = self.item(item_D).float()
        if of_item.ndim == 2:
            place = torch.arange(len(of_item), device=of_item.device) * N_AGES
            own = of_item.reshape(-1)[place + bucket_MN]
        else:
            own = of_item.gather(2, bucket_MN[:, :, None])[..., 0]
        out: Tensor = of_user + own - _NEVER_SHOWN * (bucket_MN == NOT_YET)
        return out


def log_rates(created_I: Tensor, item_E: Tensor, when_E: Tensor, *, moments: int = 200) -> Tensor:
    """(A,) log of how often an item of an age is taken, over the items that were of that age; mean 0 over the ages seen.

    Args:
        created_I: seconds when each item was listed.
        item_E, when_E: what was taken in training, and when.
    """
    taken = torch.bincount(age_bucket(when_E, created_I[item_E]), minlength=N_AGES).double()
    grid = torch.linspace(float(when_E.min()), float(when_E.max()), moments, dtype=torch.float64)
    there = torch.stack([torch.bincount(age_bucket(when, created_I), minlength=N_AGES) for when in grid]).double()
    there = there.mean(0) * len(when_E) / max(1.0, float((created_I <= when_E.max()).sum()))
    known = (taken > 0) & (torch.arange(N_AGES) != NOT_YET)
    # five takes of prior at the average rate keep rare ages from looking extreme
    rate = torch.log((taken + 5) / (there + 5))
    return torch.where(known, rate - rate[known].mean(), 0.0).float()
