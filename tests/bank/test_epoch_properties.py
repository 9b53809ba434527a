"""Whatever the plan, whoever walks it, wherever they stop: all of it is done, and nothing twice.

Nothing here depends on the order of rounds and batches within an epoch.
"""

import json
from collections import Counter
from dataclasses import fields

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nayer_pl import Plan
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan, Share
from nayer_pl.bank.plan import round_targets

SIZE = 6  # images of a round
FLAGS = [field.name for field in fields(Plan) if isinstance(field.default, bool)]
RANKS = st.integers(1, 5)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def plans(draw):
    warm_up = draw(st.integers(0, 2))
    return Plan(
        epochs=draw(st.integers(1, 3)),
        warmup_epochs=warm_up,
        warmup_rounds=draw(st.integers(1, 6)),
        rounds_per_epoch=draw(st.integers(0 if warm_up else 1, 9)),
        kd_steps=draw(st.integers(1, 9)),
        round_size=SIZE,
        batch_size=1,
        **{flag: draw(st.booleans()) for flag in FLAGS},
    )


def walk(plan, epoch, share):
    return EpochPlan(
        plan, epoch, lambda: torch.zeros(SIZE), lambda: DistillationBatch(None, None), share
    )


def kind(item):
    """A round, a round of other ranks, or a batch."""
    if isinstance(item, SynthesisRound):
        return "round" if len(item.targets) else "wait"
    assert isinstance(item, DistillationBatch)
    return "batch"


def together(plan, epoch, ranks, state=None):
    """What each rank does at each moment: a tuple of kinds for every item."""
    walks = [walk(plan, epoch, Share(rank, ranks)) for rank in range(ranks)]
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


@quick
@given(plans(), RANKS)
def test_every_round_is_made_once_and_every_batch_by_all(plan, ranks):
    made = Counter()
    for epoch in range(plan.max_epochs):
        moments = together(plan, epoch, ranks)
        steps = 0 if plan.is_warm_up(epoch) else plan.kd_steps
        assert done(plan, moments) == (plan.rounds_in(epoch), steps)
        assert ("wait",) * ranks not in moments
        made.update(rank for moment in moments for rank in range(ranks) if moment[rank] == "round")
        if plan.interleaved:
            assert all(made[rank] == plan.rounds_before(epoch + 1) for rank in range(ranks))
            continue
        assert max(made.values()) - min(made[rank] for rank in range(ranks)) <= 1
        for rank in range(ranks):
            assert made[rank] == Share(rank, ranks).rounds(0, plan.rounds_before(epoch + 1))
    assert made.total() == plan.rounds_before(plan.max_epochs) * (ranks if plan.interleaved else 1)


@quick
@given(st.integers(0, 40), RANKS)
def test_every_round_belongs_to_one_rank(number, ranks):
    assert sum(Share(rank, ranks).rounds(number, 1) for rank in range(ranks)) == 1


@quick
@given(plans(), RANKS, st.data())
def test_who_stops_goes_on_with_what_was_left(plan, ranks, data):
    epoch = data.draw(st.integers(0, plan.max_epochs - 1))
    moments = together(plan, epoch, ranks)
    stop = data.draw(st.integers(0, len(moments)))
    for rank in range(ranks):
        stopped = walk(plan, epoch, Share(rank, ranks))
        items = iter(stopped)
        for _ in range(stop):
            next(items)
        assert stopped.position() == stop
    assert together(plan, epoch, ranks, stopped.state_dict()) == moments[stop:]


@quick
@given(plans(), st.data())
def test_nothing_is_lost_however_often_the_number_of_ranks_changes(plan, data):
    epoch = data.draw(st.integers(0, plan.max_epochs - 1))
    rounds, steps, state = 0, 0.0, None
    for ranks in data.draw(st.lists(RANKS, max_size=4)):
        left = together(plan, epoch, ranks, state)
        stop = data.draw(st.integers(0, len(left)))
        first = walk(plan, epoch, Share(0, ranks))
        if state is not None:
            first.load_state_dict(state)
        items = iter(first)
        for _ in range(stop):
            next(items)
        state = first.state_dict()
        more = done(plan, left[:stop])
        rounds, steps = rounds + more[0], steps + more[1]
    more = done(plan, together(plan, epoch, data.draw(RANKS), state))
    whole = 0 if plan.is_warm_up(epoch) else plan.kd_steps
    assert (rounds + more[0], steps + more[1]) == (plan.rounds_in(epoch), whole)


@quick
@given(classes=st.integers(1, 9), size=st.integers(1, 40), seed=st.integers(0, 3))
def test_a_round_wants_every_class_about_equally_often(classes, size, seed):
    targets = round_targets(classes, size, torch.Generator().manual_seed(seed)).tolist()
    counts = [targets.count(label) for label in range(classes)]
    assert sum(counts) == len(targets) == size
    assert max(counts) - min(counts) <= 1
    for start in range(0, size, classes):
        assert len(set(targets[start : start + classes])) == len(targets[start : start + classes])
