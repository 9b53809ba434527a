from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl import InputError, Plan
from nayer_pl.bank.plan import RankShard


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        ({}, 160_000),
        ({"epochs": 200}, 240_000),
        ({"epochs": 300}, 320_000),
        ({"round_size": 200, "rounds_per_epoch": 4, "warmup_rounds": 20}, 160_000),
    ],
)
def test_plan__images_of_the_paper(recipe, images):
    assert Plan(**recipe).images == images


@pytest.mark.parametrize(
    ("options", "message"),
    [({name: value}, f"^{name} must be .*not {value}")
     for name in ("epochs", "kd_steps", "round_size", "batch_size") for value in (0, -1)]
    + [({name: -1}, f"^{name} must be ")
       for name in ("warmup_epochs", "warmup_rounds", "rounds_per_epoch")]
    + [({"rounds_per_epoch": 0, "warmup_epochs": 0}, "no images"),
       ({"rounds_per_epoch": 0, "warmup_rounds": 0}, "no images"),
       ({"warmup_rounds": 0}, "set warmup_epochs=0"),
       ({"epochs": 1.5}, "^epochs must be"), ({"interleaved": "no"}, "^interleaved must be")],
)  # fmt: skip
def test_plan__invalid_options(options, message):
    with pytest.raises(InputError, match=message):
        Plan(**options)


@pytest.mark.parametrize(
    ("batch", "ranks", "choice"),
    [(7, 2, "6 or 8"), (3, 4, "4"), (512, 3, "510 or 513"), (9, 8, "8 or 16")],
)
def test_shard_check__indivisible_batch(batch, ranks, choice):
    with pytest.raises(InputError, match=f"batch_size={batch} .* {ranks} .*; choose {choice}\\."):
        RankShard(0, ranks).check(Plan(batch_size=batch))
    for size in map(int, choice.split(" or ")):
        RankShard(0, ranks).check(Plan(batch_size=size))


few = st.integers(1, 5)
plans = st.builds(Plan, warmup_epochs=st.integers(0, 2), warmup_rounds=few, rounds_per_epoch=few)


@given(plans, st.integers(1, 6), st.integers(0, 6))
def test_shard_check__rank_without_images(plan, ranks, banked):
    """Against filling the banks by hand up to the first distillation batch."""
    plan = replace(plan, batch_size=ranks)
    banks = [len(range(banked)[rank::ranks]) for rank in range(ranks)]
    for i in range(plan.warmup_epochs * plan.warmup_rounds + plan.rounds_per_epoch):
        banks[i % ranks] += plan.round_size
    for rank in range(ranks):  # all of them agree, or some would wait for the others
        if all(banks):
            RankShard(rank, ranks).check(plan, banked)
        else:
            with pytest.raises(InputError, match=f"fewer than the {ranks} processes"):
                RankShard(rank, ranks).check(plan, banked)


@pytest.mark.parametrize("ranks", [2, 5])
def test_shard_check__interleaved_round_too_small(ranks):
    plan = Plan(interleaved=True, round_size=ranks, batch_size=ranks)
    RankShard(0, ranks).check(plan)
    with pytest.raises(InputError, match=f"round_size={ranks - 1} .* choose at least {ranks}"):
        RankShard(0, ranks).check(replace(plan, round_size=ranks - 1))
