from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl import InputError, Plan
from nayer_pl.bank.plan import RankShard


def plans(most=5, **fixed):
    """Plans of up to `most` rounds and steps, with `fixed` options."""
    options = {
        **{field.name: st.booleans() for field in fields(Plan) if isinstance(field.default, bool)},
        "epochs": st.integers(1, 3), "warmup_rounds": st.integers(1, most),
        "kd_steps": st.integers(1, most), "round_size": st.integers(1, 20),
        "batch_size": st.integers(1, 20), **{name: st.just(value) for name, value in fixed.items()},
    }  # fmt: skip
    some, none = st.integers(1, most), st.just(0)
    return st.builds(
        Plan, warmup_epochs=st.integers(0, 2), rounds_per_epoch=some, **options
    ) | st.builds(Plan, warmup_epochs=st.integers(1, 2), rounds_per_epoch=none, **options)


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


@given(plans(), st.integers(1, 5))
def test_shard__rounds_and_capacity(plan, ranks):
    total = plan.rounds_before(plan.max_epochs)
    assert total == sum(plan.rounds_in(epoch) for epoch in range(plan.max_epochs))
    shards = [RankShard(rank, ranks) for rank in range(ranks)]
    for rank, shard in enumerate(shards):
        assert shard.rounds(0, total) == len(range(total)[rank::ranks])
    for number in range(total):
        assert sum(shard.rounds(number, 1) for shard in shards) == 1
    together = sum(shard.capacity(plan) for shard in shards)
    assert together == (plan.round_size if plan.interleaved else plan.images)


@pytest.mark.parametrize(
    ("batch", "ranks", "choice"),
    [(7, 2, "6 or 8"), (3, 4, "4"), (512, 3, "510 or 513"), (9, 8, "8 or 16")],
)
def test_shard_check__indivisible_batch(batch, ranks, choice):
    with pytest.raises(InputError, match=f"batch_size={batch} .* {ranks} .*; choose {choice}\\."):
        RankShard(0, ranks).check(Plan(batch_size=batch))
    for size in map(int, choice.split(" or ")):
        RankShard(0, ranks).check(Plan(batch_size=size))


@given(plans(interleaved=False), st.integers(1, 6), st.integers(0, 6))
def test_shard_check__rank_without_images(plan, ranks, banked):
    """Against filling the banks by hand up to the first distillation batch."""
    plan = replace(plan, batch_size=ranks)
    banks = [len(range(banked)[rank::ranks]) for rank in range(ranks)]
    for i in range(plan.rounds_before(plan.warmup_epochs) + plan.rounds_in(plan.warmup_epochs)):
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
