"""Every switch of OneSearch in one place; each ablation of the paper is one field."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rankloom.config import Section
from rankloom.models.behaviour_uid import UidMode
from rankloom.models.encoder_decoder import EncoderDecoderConfig
from rankloom.models.reward_towers import TowerConfig
from rankloom.training.preference import PreferenceLoss


class BehaviourConfig(Section):
    """What the prompt says of a person (section on multi-view behaviour)."""

    uid: UidMode = "behaviour"
    """What names a person: their behaviour (the paper), a hash of the id, a re-quantised mean, or nothing."""
    short: bool = True
    """Recent queries and items stand in the prompt."""
    long: bool = True
    """The long history comes as soft tokens of the Q-Former."""
    window: int = Field(default=5, ge=1)
    """Recent queries and items, at most; the paper's five."""
    long_length: int = Field(default=50, ge=1)
    """Items of the long history, at most; the paper's reaches a thousand."""
    rsu: int = Field(default=10, ge=1)
    """Items of the history that are nearest to the query (a search of the history, as in SIM)."""
    orders: tuple[str, ...] = ("purchase",)
    """Event kinds that are orders; where a log has one kind of event only, name that."""
    sliding_window: bool = True
    """Every take of a person is a sample, or only the newest."""
    default_sequence: bool = True
    """Who has no history is given what is most clicked for the query."""
    profile: tuple[str, ...] = ("age", "gender")
    """Columns of the table of people that the prompt reads as a text; () leaves profiles out. Of the default's two those are
    read that the table has, if any; of others one has to be there."""
    profile_words: int = Field(default=6, ge=1)
    layout: Literal["compact", "tokens"] = "compact"
    """One place an item, query and ID, or (the paper) one place a token."""


class StageConfig(Section):
    """Supervised training; a stage of 0 steps is left out."""

    s1_steps: int = Field(default=300, ge=0)
    s2_steps: int = Field(default=200, ge=0)
    s3_steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=4e-3, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of a stage's steps in which the rate rises; it then falls along a cosine."""
    weight_decay: float = Field(default=0.05, ge=0)
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    replay: float = Field(default=0.15, ge=0, lt=1)
    """Share of the later stages' steps that repeat tasks of the earlier ones; the paper's is 0."""
    item_text: Literal["title", "all"] = "all"
    """What S1 and S2 read of an item: the title (the paper), or brand and category path beside it."""
    word_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of the words of a text that a step of S1 and S2 does not read; the paper's is 0."""
    query_words: int = Field(default=10, ge=1)
    title_words: int = Field(default=12, ge=1)
    words: int = Field(default=4096, ge=1)


class RewardConfig(Section):
    """The reward model (section on PARS)."""

    towers: TowerConfig = TowerConfig()
    steps: int = Field(default=600, ge=0)
    batch_size: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0)
    n_shown: int = Field(default=4, ge=0)
    """Negatives of a sample: items shown and passed over, items of the target's category, any others."""
    n_same: int = Field(default=12, ge=0)
    n_random: int = Field(default=12, ge=0)
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    """lambda_1 .. lambda_4 of CTR, CVR, CTCVR and relevance; the paper does not give them."""
    relevance_times: float = Field(default=10.0, ge=0)
    evidence: bool = True
    """BM25, where the words stand, and counts of pairs are read beside vectors."""


class PreferenceConfig(Section):
    """List-wise preference training (section on PARS)."""

    enabled: bool = True
    """Off, `fit_preference` leaves the network as it is."""
    loss: PreferenceLoss = PreferenceLoss(beta=1.0, anchor=1.0)
    """With DPO's usual beta of .1 eight rejected items are even with the preferred one only ten nats below it: the generator is
    bent until they are (docs/experiments.md)."""
    contexts: int = Field(default=2000, ge=0)
    """Training contexts that phase 1 generates for."""
    sampled: int = Field(default=2000, ge=0)
    """Others: people at the end of the training period with a query of the log, after which nothing was taken."""
    preferred: int = Field(default=1, ge=1)
    """Promoted items of a list that are preferred, a sample each."""
    beam: int = Field(default=48, ge=2)
    list_length: int = Field(default=24, ge=2)
    """Generated items that the reward model re-orders."""
    rejected: int = Field(default=8, ge=1)
    phase1_steps: int = Field(default=120, ge=0)
    phase2_steps: int = Field(default=60, ge=0)
    batch_size: int = Field(default=64, ge=2)
    learning_rate: float = Field(default=2e-4, gt=0)


class OneSearchConfig(Section):
    """The whole; the defaults are sized for some thousand items on a processor."""

    network: EncoderDecoderConfig = EncoderDecoderConfig()
    behaviour: BehaviourConfig = BehaviourConfig()
    stages: StageConfig = StageConfig()
    reward: RewardConfig = RewardConfig()
    preference: PreferenceConfig = PreferenceConfig()
    start: Literal["vectors", "random"] = "vectors"
    """Vectors of words and codes start from the tokenizer's, in place of the pre-trained language model of the paper."""
    opq: bool = True
    """The two OPQ codes are written too, or the residual codes alone."""
    select: bool = True
    """The reward model orders what was generated (a last step of its own)."""
    beam: int = Field(default=384, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> OneSearchConfig:
        longest = max(self.stages.query_words, self.stages.title_words) + 1
        if longest > self.network.max_target:
            raise ValueError(f"network.max_target {self.network.max_target} is below the longest text, {longest} tokens")
        return self
