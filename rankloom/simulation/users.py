"""The first user model: what simulated people do with what they are shown. Serves any policy, live or logged.

One latent wanting (taste, mark, quality, language, price, session intent, freshness of the item to them) drives every
feedback. Watch time follows the shape fitted to KuaiRand in the reference (zero mass, quick skips, log-normal interest,
completion censoring, replays); the skip probability falls with wanting. Parameters without a public figure are assumed:
return hazard, session length, cart and purchase rates, intent persistence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankloom.simulation.world import Floats, Ints, World

Bools = NDArray[np.bool_]
VALID_PLAY_S: Final = 7.0
# Intercepts set against the public rates of docs/bazaar.md; measured by benchmarks/bazaar_calibration.py
_LOGIT_GOODS_CLICK: Final = -2.9
_LOGIT_LIKE: Final = -6.8
_LOGIT_COMMENT: Final = -8.3
_LOGIT_FOLLOW: Final = -9.5
_LOGIT_SHARE: Final = -9.5
_LOGIT_DISLIKE: Final = -7.4


@dataclass(frozen=True)
class Feedback:
    """(N,) responses to N impressions. `satisfaction` in about -1 to 1 drives whether people stay and return."""

    click: Bools
    watch_s: Floats
    like: Bools
    follow: Bools
    comment: Bools
    share: Bools
    dislike: Bools
    add_to_cart: Bools
    purchase: Bools
    satisfaction: Floats


class UserModel:
    """People of a world. State: the intent of each person's session (a cluster, -1 for none)."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world = world
        self.rng = rng
        self.intent: Ints = np.full(world.n_users, -1, dtype=np.int64)
        # what goes with what: after a purchase people look at the partner of its cluster
        n_clusters = world.interest.shape[1]
        self.partner = np.random.default_rng((world.seed, 2)).permutation(n_clusters)

    def wanting(self, user: Ints, item: Ints) -> Floats:
        """The latent that drives everything."""
        in_intent = self.world.cluster[item] == self.intent[user]
        out: Floats = self.world.affinity(user, item) + 1.3 * in_intent
        return out

    def respond(self, user: Ints, item: Ints) -> Feedback:
        """What each person does with each item shown (flat arrays of equal length)."""
        world, rng, n = self.world, self.rng, len(user)
        want = self.wanting(user, item)
        noisy = want + 0.7 * rng.normal(size=n)
        video = world.is_video[item]
        watch = np.where(video, self._watch(noisy, np.nan_to_num(world.duration_s[item], nan=1.0)), 0.0)
        goods_click = ~video & (rng.random(n) < _sigmoid(_LOGIT_GOODS_CLICK + 1.1 * noisy))
        # KuaiRand counts a play of more than seven seconds, or to the end, as a click
        click = np.where(
            video,
            (watch > VALID_PLAY_S) | (watch >= 0.98 * np.nan_to_num(world.duration_s[item], nan=np.inf)),
            goods_click,
        )
        engaged = click.astype(np.float64)

        def happens(logit: float, slope: float) -> Bools:
            return (rng.random(n) < _sigmoid(logit + slope * noisy)) & click

        cart = goods_click & (rng.random(n) < _sigmoid(-1.6 + 0.6 * noisy))
        purchase = cart & (rng.random(n) < _sigmoid(-0.6 + 0.5 * noisy))
        dislike = (rng.random(n) < _sigmoid(_LOGIT_DISLIKE - 0.9 * noisy)) & ~click
        feedback = Feedback(
            click=click, watch_s=watch, like=happens(_LOGIT_LIKE, 1.3), follow=happens(_LOGIT_FOLLOW, 1.2) & video, comment=happens(_LOGIT_COMMENT, 1.1),
            share=happens(_LOGIT_SHARE, 1.2), dislike=dislike, add_to_cart=cart, purchase=purchase,
            satisfaction=np.tanh(0.5 * (noisy - 1.0)) * (0.5 + 0.5 * engaged) - 0.3 * dislike,
        )  # fmt: skip
        self._move_intent(user, item, click, purchase)
        return feedback

    def start_session(self, user: Ints) -> None:
        """A new session keeps yesterday's intent now and then, else draws one from the person's interests."""
        keep = self.rng.random(len(user)) < 0.4
        weight = self.world.interest[user] ** 2
        edges = np.cumsum(weight, axis=1)
        drawn = (edges < self.rng.random((len(user), 1)) * edges[:, -1:]).sum(1)
        self.intent[user] = np.where(keep & (self.intent[user] >= 0), self.intent[user], drawn)

    def stays(self, satisfaction: Floats) -> Bools:
        """Whether each person asks for another list (assumed hazard)."""
        out: Bools = self.rng.random(len(satisfaction)) < _sigmoid(0.2 + 1.2 * satisfaction)
        return out

    def returns(self, user: Ints, mood: Floats) -> Bools:
        """Whether each person shows up on a day, given their running satisfaction (assumed hazard)."""
        out: Bools = self.rng.random(len(user)) < np.clip(self.world.activity[user] * np.exp(0.6 * mood), 0, 0.95)
        return out

    def _watch(self, noisy: Floats, duration: Floats) -> Floats:
        rng, n = self.rng, len(noisy)
        zero = rng.random(n) < 0.117
        # short videos are skipped less: their seconds are few anyway
        skip = rng.random(n) < _sigmoid(1.50 - 0.95 * noisy + 0.12 * (np.log(duration) - 4.2))
        interest = np.exp(rng.normal(3.80 + 0.12 * noisy, 0.666))
        seconds = np.where(skip, rng.exponential(4.69, n), interest)
        complete = seconds >= duration
        replay = complete & (rng.random(n) < 0.627)
        seconds = np.where(complete, duration, seconds) + np.where(replay, duration * rng.exponential(1.99, n), 0.0)
        out: Floats = np.where(zero, 0.0, seconds)
        return out

    def _move_intent(self, user: Ints, item: Ints, click: Bools, purchase: Bools) -> None:
        cluster = self.world.cluster[item]
        chosen = click & (self.rng.random(len(user)) < 0.5)
        self.intent[user[chosen]] = cluster[chosen]
        self.intent[user[purchase]] = self.partner[cluster[purchase]]


def _sigmoid(x: Floats | float) -> Floats:
    out: Floats = 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))
    return out
