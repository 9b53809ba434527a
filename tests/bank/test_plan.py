"""Every round and batch of a plan is done once, on any number of ranks, wherever a run resumes."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nayer_pl import InputError, MemoryBank, Plan
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.bank.plan import EpochPlan, RankShard, round_targets

CLASSES, SHAPE = 3, (1, 1, 1)
RANKS, EITHER = st.integers(1, 5), st.booleans()
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# Plan and RankShard


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


@given(st.integers(0, 2), few, few, st.integers(1, 6), st.integers(0, 6))
def test_shard_check__rank_without_images(warmup_epochs, warmup_rounds, rounds, ranks, banked):
    """Against filling the banks by hand up to the first distillation batch."""
    plan = Plan(9, warmup_epochs, warmup_rounds, rounds, batch_size=ranks)
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


# EpochPlan


@st.composite
def plans(draw, interleaved=EITHER):
    """Plans whose rounds and batches have a part for every rank."""
    some = st.integers(1, 9)
    warmup_epochs, rounds = draw(st.tuples(st.integers(0, 2), st.integers(0, 9)).filter(any))
    return Plan(
        draw(st.integers(1, 3)), warmup_epochs, draw(some), rounds, draw(some),
        round_size=6, batch_size=5, interleaved=draw(interleaved),
    )  # fmt: skip


def epoch_plan(plan, epoch, rank=0, ranks=1):
    bank = MemoryBank(1, SHAPE)
    bank.add(torch.rand(1, *SHAPE), torch.arange(1))
    return EpochPlan(plan, epoch, CLASSES, bank, RankShard(rank, ranks))


def kind(item):
    """A round, a round of other ranks, or a batch."""
    if isinstance(item, SynthesisRound):
        return "round" if len(item.targets) else "wait"
    assert isinstance(item, DistillationBatch)
    return "batch"


def together(plan, epoch, ranks, state=None):
    """What each rank does at each moment: a tuple of kinds for every item."""
    walks = [epoch_plan(plan, epoch, rank, ranks) for rank in range(ranks)]
    for each in walks:
        if state is not None:
            each.load_state_dict(json.loads(json.dumps(state)))
    left = [len(each) - each.position() for each in walks]
    moments = list(zip(*[[kind(item) for item in each] for each in walks], strict=True))
    assert left == [len(moments)] * ranks  # as many items as promised, on every rank
    for moment in moments:  # no rank makes images while another one waits with its gradients
        assert set(moment) == {"batch"} or "batch" not in moment
    return moments


def done(plan, moments):
    """Rounds that were made, by one rank or in parts by all, and batches, by all."""
    counts = Counter(kind for moment in moments for kind in moment)
    ranks = len(moments[0]) if moments else 1
    return counts["round"] / (ranks if plan.interleaved else 1), counts["batch"] / ranks


def walk(items, count):
    """The state after `count` items."""
    iterator = iter(items)
    for _ in range(count):
        next(iterator)
    return items.state_dict()


@quick
@given(plans(), RANKS)
def test_ranks__every_round_once_and_every_batch_by_all(plan, ranks):
    """Against dealing out every round of the run like a card."""
    banks, dealt = [0] * ranks, 0
    for epoch in range(plan.max_epochs):
        moments = together(plan, epoch, ranks)
        steps = 0 if plan.is_warm_up(epoch) else plan.kd_steps
        assert done(plan, moments) == (plan.rounds_in(epoch), steps)
        assert ("wait",) * ranks not in moments
        if not plan.interleaved:  # rounds come first
            assert all(set(moment) == {"batch"} for moment in moments[len(moments) - steps :])
        hand = [0] * ranks
        for _ in range(plan.rounds_in(epoch)):
            hand[dealt % ranks] += 1
            dealt += 1
        for rank in range(ranks):
            items = epoch_plan(plan, epoch, rank, ranks)
            rounds = [item for item in items if isinstance(item, SynthesisRound)]
            sizes = [len(item.targets) for item in rounds if len(item.targets)]
            own = len(range(6)[rank::ranks]) if plan.interleaved else 6
            assert sizes == [own] * (plan.rounds_in(epoch) if plan.interleaved else hand[rank])
            assert all(item.warm_up == plan.is_warm_up(epoch) for item in rounds)
            banks[rank] += sum(sizes)
        assert sum(banks) == plan.rounds_before(epoch + 1) * 6
    assert sum(banks) == plan.images
    room = [RankShard(rank, ranks).capacity(plan) for rank in range(ranks)]
    assert sum(room) == 6 if plan.interleaved else room == banks


@quick
@given(plans(), RANKS, st.data())
def test_resume__same_ranks(plan, ranks, data):
    epoch = data.draw(st.integers(0, plan.max_epochs - 1))
    moments = together(plan, epoch, ranks)
    stop = data.draw(st.integers(0, len(moments)))
    for rank in range(ranks):
        stopped = epoch_plan(plan, epoch, rank, ranks)
        state = walk(stopped, stop)
        assert stopped.position() == stop
    assert together(plan, epoch, ranks, state) == moments[stop:]


@quick
@given(plans(), st.data())
def test_resume__changing_ranks(plan, data):
    epoch = data.draw(st.integers(0, plan.max_epochs - 1))
    rounds, steps, state = 0, 0.0, None
    for ranks in data.draw(st.lists(RANKS, max_size=4)):
        left = together(plan, epoch, ranks, state)
        stop = data.draw(st.integers(0, len(left)))
        first = epoch_plan(plan, epoch, 0, ranks)
        if state is not None:
            first.load_state_dict(state)
        state = walk(first, stop)
        more = done(plan, left[:stop])
        rounds, steps = rounds + more[0], steps + more[1]
    more = done(plan, together(plan, epoch, data.draw(RANKS), state))
    whole = 0 if plan.is_warm_up(epoch) else plan.kd_steps
    assert (rounds + more[0], steps + more[1]) == (plan.rounds_in(epoch), whole)


@quick
@given(plans(st.just(True)), RANKS)
def test_interleaved__rounds_spread_evenly(plan, ranks):
    for epoch in range(plan.max_epochs):
        items = list(epoch_plan(plan, epoch, ranks - 1, ranks))
        rounds = [i for i, item in enumerate(items) if isinstance(item, SynthesisRound)]
        batches = len(items) - len(rounds)
        for number, place in enumerate(rounds):  # after its share of the batches, rounded up
            assert place == number + -(-number * batches // len(rounds))


@quick
@given(plans())
def test_items__drawn_when_due(plan):
    """Targets and samples are those of the two streams at the moment when an item is asked for."""
    bank = MemoryBank(2000, SHAPE)
    targets, samples, expected_targets, expected_samples = (
        torch.Generator().manual_seed(seed) for seed in (1, 2, 1, 2)
    )
    for epoch in range(plan.max_epochs):
        items = EpochPlan(plan, epoch, CLASSES, bank, label_rng=targets, rng=samples)
        assert len(items) == plan.rounds_in(epoch) + (0 if items.warm_up else plan.kd_steps)
        for item in items:
            if isinstance(item, SynthesisRound):
                labels = round_targets(CLASSES, plan.round_size, expected_targets)
                assert torch.equal(item.targets, labels)
                bank.add(torch.rand(len(labels), *SHAPE), labels)
            else:
                index = torch.randint(len(bank), (plan.batch_size,), generator=expected_samples)
                assert torch.equal(item.images, bank.images[index])
                assert torch.equal(item.labels, bank.labels[index])
            assert torch.equal(targets.get_state(), expected_targets.get_state())


def test_items__walked_again():
    items = epoch_plan(Plan(epochs=1, warmup_epochs=0, kd_steps=3), 0)
    assert [type(item) for item in items] == [type(item) for item in items]


@given(classes=st.integers(1, 12), size=st.integers(1, 60), seed=st.integers(0, 9))
def test_round_targets__full_sets(classes, size, seed):
    targets = round_targets(classes, size, torch.Generator().manual_seed(seed))
    assert (targets.dtype, targets.shape) == (torch.int64, (size,))
    labels = targets.tolist()
    sets = [labels[i : i + classes] for i in range(0, size, classes)]
    assert all(sorted(whole) == list(range(classes)) for whole in sets[: size // classes])
    assert len(set(sets[-1])) == len(sets[-1])
    assert set(labels) <= set(range(classes))


def test_round_targets__uniform_orders():
    targets = round_targets(3, 18_000, torch.Generator().manual_seed(0)).view(-1, 3)
    counts = Counter(map(tuple, targets.tolist()))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 30  # p < 2e-5
    rng = torch.Generator().manual_seed(0)
    last = Counter(int(round_targets(4, 5, rng)[-1]) for _ in range(2000))  # of a cut set
    assert sum((last[label] - 500) ** 2 / 500 for label in range(4)) < 25  # p < 2e-5
