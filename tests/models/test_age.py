"""Ages of items: buckets, their fast twin, what the selection head adds, the rates a training log shows."""

from __future__ import annotations

import torch

from rankloom.models.age import EDGES_DAYS, N_AGES, NOT_YET, UNKNOWN, AgeHead, AgeIndex, age_bucket, log_rates

DAY = 86_400.0
NAN = float("nan")


def test_a_bucket_says_how_old_not_listed_yet_or_unknown() -> None:
    created = torch.tensor([0.0, 0.0, 0.0, 5 * DAY, NAN], dtype=torch.float64)
    when = torch.tensor([[0.1 * DAY, 0.3 * DAY, 1000 * DAY, 4.9 * DAY, DAY]], dtype=torch.float64)
    assert age_bucket(when, created[None])[0].tolist() == [2, 3, N_AGES - 1, NOT_YET, UNKNOWN]
    # an edge belongs to the older bucket
    edge = torch.tensor([EDGES_DAYS[2] * DAY], dtype=torch.float64)
    assert int(age_bucket(edge, created[:1])) == 5


def test_the_index_gives_what_the_slow_twin_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    created = torch.rand(50, generator=generator, dtype=torch.float64) * 400 * DAY
    created[::7] = NAN
    when = torch.rand(20, generator=generator, dtype=torch.float64) * 500 * DAY
    when[3] = NAN
    when[4] = created[1]
    for own in (created, created.sort().values, created[:0]):
        assert torch.equal(AgeIndex(own).buckets(when), age_bucket(when[:, None], own))


def test_the_head_adds_a_term_of_the_user_and_one_of_the_item() -> None:
    torch.manual_seed(0)
    head = AgeHead(4)
    user, item = torch.randn(3, 4), torch.randn(5, 4)
    bucket = torch.randint(2, N_AGES, (3, 5))
    got = head(user, item, bucket)
    for m in range(3):
        for n in range(5):
            own = int(bucket[m, n])
            expected = user[m] @ head.user.weight[own] + head.user.bias[own] + item[n] @ head.item.weight[own]
            torch.testing.assert_close(got[m, n], expected)
    each = head(user, item.expand(3, -1, -1), bucket)
    torch.testing.assert_close(each, got)


@torch.no_grad()
def test_what_is_not_listed_yet_falls_behind_everything() -> None:
    head = AgeHead(4)
    bucket = torch.tensor([[NOT_YET, 4]])
    scores = head(torch.randn(1, 4), torch.randn(2, 4), bucket)
    assert float(scores[0, 0]) < float(scores[0, 1]) - 10


def test_rates_show_what_is_taken_while_young() -> None:
    # an item a day; each is taken nine times on its first day and once on its tenth
    born = torch.arange(60, dtype=torch.float64) * DAY
    item = torch.arange(60).repeat_interleave(10)
    days = torch.tensor([0.8] * 9 + [9.5], dtype=torch.float64).repeat(60)
    when = born[item] + days * DAY
    rate = log_rates(born, item, when)
    young, tenth, never = (int(age_bucket(torch.tensor(d * DAY, dtype=torch.float64), born[:1])) for d in (0.8, 9.5, 5.0))
    assert float(rate[young]) > float(rate[tenth]) + 1.5
    # an age at which nothing was ever taken says nothing
    assert float(rate[never]) == 0.0
    assert float(rate[UNKNOWN]) == 0.0
