from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nayer_pl import InputError, Plan
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan, Share
from nayer_pl.bank.plan import round_targets

SMALL = st.integers(0, 5)


@st.composite
def plans(draw):
    values = {
        "epochs": draw(st.integers(1, 5)),
        "warmup_epochs": draw(SMALL),
        "warmup_rounds": draw(st.integers(1, 5)),
        "rounds_per_epoch": draw(SMALL),
        "kd_steps": draw(st.integers(1, 6)),
        "round_size": draw(st.integers(1, 20)),
        "batch_size": draw(st.integers(1, 20)),
    }
    if not values["warmup_epochs"]:
        values["rounds_per_epoch"] = max(1, values["rounds_per_epoch"])
    return Plan(**values)


ALONE = Share()


def epoch_plan(plan, epoch, log=None, share=ALONE):
    log = [] if log is None else log

    def targets():
        log.append("targets")
        return torch.zeros(plan.round_size, dtype=torch.long)

    def batch():
        log.append("batch")
        return DistillationBatch(torch.empty(plan.batch_size, 0), torch.empty(plan.batch_size))

    return EpochPlan(plan, epoch, targets, batch, share)


@given(plans())
def test_epochs_are_rounds_and_then_batches(plan):
    images, epochs = 0, range(plan.max_epochs)
    assert len(epochs) == plan.warmup_epochs + plan.epochs
    for epoch in epochs:
        items = epoch_plan(plan, epoch)
        kinds = [type(item) for item in items]
        warm_up = epoch < plan.warmup_epochs
        rounds = plan.warmup_rounds if warm_up else plan.rounds_per_epoch
        batches = 0 if warm_up else plan.kd_steps
        assert kinds == [SynthesisRound] * rounds + [DistillationBatch] * batches
        assert len(items) == len(kinds)
        assert plan.rounds_in(epoch) == rounds
        assert plan.is_warm_up(epoch) == warm_up
        for item in items:
            if isinstance(item, SynthesisRound):
                assert item.warm_up == warm_up
                images += len(item.targets)
    assert images == plan.images


@given(plans())
def test_items_are_made_when_they_are_due(plan):
    for epoch in range(plan.max_epochs):
        log = []
        items = iter(epoch_plan(plan, epoch, log))
        while (item := next(items, None)) is not None:
            log.append("round" if isinstance(item, SynthesisRound) else "step")
        rounds, batches = log.count("round"), log.count("step")
        assert log == ["targets", "round"] * rounds + ["batch", "step"] * batches


def test_looking_at_a_plan_makes_nothing():
    log = []
    items = epoch_plan(Plan(), 50, log)
    assert len(items) == 402
    iter(items)
    assert log == []


def test_plan_can_be_walked_again():
    items = epoch_plan(Plan(epochs=1, warmup_epochs=0, kd_steps=3), 0)
    assert [type(item) for item in items] == [type(item) for item in items]


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        ({}, 160_000),
        ({"epochs": 200}, 240_000),
        ({"epochs": 300}, 320_000),
        ({"round_size": 200, "rounds_per_epoch": 4, "warmup_rounds": 20}, 160_000),
    ],
)
def test_recipes_of_the_paper_make_its_number_of_images(recipe, images):
    assert Plan(**recipe).images == images


@pytest.mark.parametrize("name", ["epochs", "kd_steps", "round_size", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(InputError, match=rf"plan\.{name}.*{value}"):
        Plan(**{name: value})


@pytest.mark.parametrize("name", ["warmup_epochs", "warmup_rounds", "rounds_per_epoch"])
def test_negative_counts_are_refused(name):
    with pytest.raises(InputError, match=rf"plan\.{name}"):
        Plan(**{name: -1})


@pytest.mark.parametrize("empty", ["warmup_epochs", "warmup_rounds"])
def test_plan_without_any_round_is_refused(empty):
    with pytest.raises(InputError, match="no images"):
        Plan(rounds_per_epoch=0, **{empty: 0})


@given(classes=st.integers(1, 12), size=st.integers(1, 60), seed=st.integers(0, 9))
def test_targets_are_full_sets_of_all_classes(classes, size, seed):
    targets = round_targets(classes, size, torch.Generator().manual_seed(seed))
    assert targets.dtype == torch.int64
    assert targets.shape == (size,)
    labels = targets.tolist()
    sets = [labels[i : i + classes] for i in range(0, size, classes)]
    for whole in sets[: size // classes]:
        assert sorted(whole) == list(range(classes))
    assert len(set(sets[-1])) == len(sets[-1])
    assert set(labels) <= set(range(classes))
    counts = Counter(labels)
    assert all(size // classes <= counts[label] <= -(-size // classes) for label in range(classes))


def test_targets_of_each_set_are_shuffled_on_their_own():
    targets = round_targets(10, 50, torch.Generator().manual_seed(0)).view(5, 10)
    assert len({tuple(row) for row in targets.tolist()}) == 5


def test_every_order_of_a_set_is_equally_likely():
    targets = round_targets(3, 18_000, torch.Generator().manual_seed(0)).view(-1, 3)
    counts = Counter(map(tuple, targets.tolist()))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 30  # p < 2e-5


def test_cut_set_holds_a_random_part_of_the_classes():
    rng = torch.Generator().manual_seed(0)
    last = Counter(int(round_targets(4, 5, rng)[-1]) for _ in range(2000))
    assert sum((last[label] - 500) ** 2 / 500 for label in range(4)) < 25  # p < 2e-5


def test_generator_decides_the_targets():
    one, same, other = (
        round_targets(10, 30, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@given(plans(), st.integers(1, 5))
def test_ranks_take_turns_over_the_whole_run(plan, ranks):
    """Against dealing out every round of the run like a card."""
    banks, dealt = [0] * ranks, 0
    for epoch in range(plan.max_epochs):
        hand = [0] * ranks
        for _ in range(plan.rounds_in(epoch)):
            hand[dealt % ranks] += 1
            dealt += 1
        shares = [list(epoch_plan(plan, epoch, share=Share(r, ranks))) for r in range(ranks)]
        assert len({len(share) for share in shares}) == 1  # the trainer waits for all of them
        kinds = [[type(item) for item in share] for share in shares]
        assert all(kind == kinds[0] for kind in kinds)
        assert kinds[0].count(SynthesisRound) == -(-plan.rounds_in(epoch) // ranks)
        for rank, share in enumerate(shares):
            rounds = [item for item in share if isinstance(item, SynthesisRound)]
            made = [len(item.targets) for item in rounds if len(item.targets)]
            assert made == [plan.round_size] * hand[rank]
            assert all(item.warm_up == plan.is_warm_up(epoch) for item in rounds)
            banks[rank] += sum(made)
        # As many images as one rank would have made, and no bank a round ahead of another's.
        assert sum(banks) == plan.rounds_before(epoch + 1) * plan.round_size
        assert max(banks) - min(banks) <= plan.round_size
    assert sum(banks) == plan.images


@given(plans(), st.integers(1, 5))
def test_a_share_counts_the_rounds_of_the_whole_run(plan, ranks):
    """What a bank's size is taken from."""
    total = plan.rounds_before(plan.max_epochs)
    for rank in range(ranks):
        share = Share(rank, ranks)
        assert share.rounds(0, total) == len(range(total)[rank::ranks])
        assert share.room(plan) == share.rounds(0, total) * plan.round_size
    turns = replace(plan, interleaved=True)
    assert sum(Share(rank, ranks).room(turns) for rank in range(ranks)) == plan.round_size


@pytest.mark.parametrize(
    ("batch", "ranks", "choice"),
    [(7, 2, "6 or 8"), (3, 4, "4"), (512, 3, "510 or 513"), (9, 8, "8 or 16")],
)
def test_batch_that_cannot_be_shared_out_is_refused_with_those_that_can(batch, ranks, choice):
    plan = Plan(batch_size=batch)
    with pytest.raises(InputError, match=f"batch_size={batch} .* {ranks} .*; choose {choice}\\."):
        Share(0, ranks).check(plan)
    for size in map(int, choice.split(" or ")):
        Share(0, ranks).check(Plan(batch_size=size))


@given(plans(), st.integers(1, 6), st.integers(0, 6))
def test_every_rank_must_have_images_before_its_first_step(plan, ranks, banked):
    """Against filling the banks by hand up to the first distillation batch."""
    plan = replace(plan, batch_size=ranks)
    banks = [len(range(banked)[rank::ranks]) for rank in range(ranks)]
    for i in range(plan.rounds_before(plan.warmup_epochs) + plan.rounds_in(plan.warmup_epochs)):
        banks[i % ranks] += plan.round_size
    for rank in range(ranks):  # all of them say the same, or some would wait for the others
        if all(banks):
            Share(rank, ranks).check(plan, banked)
        else:
            with pytest.raises(InputError, match=f"fewer than the {ranks} processes"):
                Share(rank, ranks).check(plan, banked)


@given(plans(), st.integers(1, 4), st.integers(1, 4), st.data())
def test_whoever_goes_on_does_exactly_what_is_left(plan, ranks, later, data):
    """With as many ranks or with others: as many rounds and steps as nobody had done yet."""
    epoch = data.draw(st.integers(0, plan.max_epochs - 1))
    walked = epoch_plan(plan, epoch, share=Share(0, ranks))
    items, done = iter(walked), data.draw(st.integers(0, len(walked)))
    kinds = [type(next(items)) for _ in range(done)]
    rounds = min(kinds.count(SynthesisRound) * ranks, plan.rounds_in(epoch))
    made, steps = 0, set()
    for rank in range(later):
        rest = epoch_plan(plan, epoch, share=Share(rank, later))
        rest.load_state_dict(walked.state_dict())
        position, left = rest.position(), list(rest)
        assert position + len(left) == len(rest)
        made += sum(bool(len(i.targets)) for i in left if isinstance(i, SynthesisRound))
        steps.add(sum(isinstance(i, DistillationBatch) for i in left))
    assert made == plan.rounds_in(epoch) - rounds
    whole = 0 if plan.is_warm_up(epoch) else plan.kd_steps
    assert steps == {whole - kinds.count(DistillationBatch)}


@given(plans(), st.integers(1, 3))
def test_alternating_rounds_are_spread_evenly_and_each_comes_before_its_batches(plan, ranks):
    plan = replace(plan, interleaved=True)
    shares = [Share(rank, ranks) for rank in range(ranks)]
    for epoch in range(plan.max_epochs):
        for share in shares:
            items = list(epoch_plan(plan, epoch, share=share))
            assert len(items) == len(epoch_plan(plan, epoch, share=share))
            turns = [i for i, item in enumerate(items) if isinstance(item, SynthesisRound)]
            assert len(turns) == plan.rounds_in(epoch)
            batches = len(items) - len(turns)
            assert batches == (0 if plan.is_warm_up(epoch) else plan.kd_steps)
            # Turn i of n waits for its share of the batches, rounded up.
            for turn, place in enumerate(turns):
                assert place == turn + -(-turn * batches // len(turns))


@given(plans(), st.integers(1, 5))
def test_of_alternating_rounds_every_rank_makes_a_part(plan, ranks):
    plan = replace(plan, interleaved=True, round_size=plan.round_size + ranks, batch_size=ranks)
    shares = [Share(rank, ranks) for rank in range(ranks)]
    parts = [
        [len(i.targets) for i in epoch_plan(plan, 0, share=s) if isinstance(i, SynthesisRound)]
        for s in shares
    ]
    for part in zip(*parts, strict=True):
        assert sum(part) == plan.round_size
        assert max(part) - min(part) <= 1
    shares[0].check(plan)
    if ranks > 1:
        with pytest.raises(InputError, match=f"round_size=1 images .* choose at least {ranks}"):
            shares[0].check(replace(plan, round_size=1))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_alternating_as_in_a_game_of_one_to_five(ranks):
    plan = Plan(epochs=1, warmup_epochs=0, rounds_per_epoch=2, kd_steps=10, interleaved=True)
    items = epoch_plan(plan, 0, share=Share(ranks - 1, ranks))
    assert "".join("RB"[isinstance(i, DistillationBatch)] for i in items) == "RBBBBBRBBBBB"
