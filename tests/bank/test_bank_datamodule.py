import tempfile
from dataclasses import replace
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from nayer_pl import BankOptions, InputError, MemoryBank, Plan, RandomCropFlip, SyntheticDataModule
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan
from nayer_pl.data import ImageSet

SHAPE, CLASSES = (1, 4, 4), 3
PLAN = Plan(
    epochs=2,
    warmup_epochs=1,
    warmup_rounds=3,
    rounds_per_epoch=2,
    kd_steps=4,
    round_size=6,
    batch_size=5,
)


class EvaluationOnly:
    """Real images, of which the training split is out of bounds."""

    def __init__(self, count=7):
        self.asked = []
        rng = torch.Generator().manual_seed(5)
        self.images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=rng)
        self.labels = torch.arange(count) % CLASSES

    def load(self, split):
        self.asked.append(split)
        if split != "evaluation":
            raise AssertionError(f"asked for the {split} split")
        return ImageSet(self.images, self.labels)


class Recorder(lightning.LightningModule):
    """Banks random images for a round and writes down everything that it is given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_of_work, self.made, self.drawn, self.evaluated = [], [], [], []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, item, _):
        kind = "batch" if isinstance(item, DistillationBatch) else "round"
        if isinstance(item, SynthesisRound):
            kind = "warm-up round" if item.warm_up else "round"
            images = torch.randint(0, 256, (len(item.targets), *SHAPE)) / 255
            self.trainer.datamodule.add(images, item.targets)
            self.made.append((images, item.targets))
        else:
            self.drawn.append(item)
        self.log_of_work.append((self.current_epoch, kind))

    def validation_step(self, batch, _):
        self.evaluated.append(batch)
        self.log_of_work.append((self.current_epoch, "evaluation"))


def trainer(**options):
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


def datamodule(**options):
    return SyntheticDataModule(SHAPE, CLASSES, options.pop("plan", PLAN), **options)


def set_up(data, rank=0, epoch=0, ranks=1):
    """As a trainer on rank `rank` does."""
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=ranks,
        num_devices=ranks,
        default_root_dir=tempfile.gettempdir(),
        current_epoch=epoch,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )
    data.setup("fit")
    return data


def rows(images):
    """Each image as something that can sit in a set."""
    images = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [tuple(image.flatten().tolist()) for image in images]


def fit(data, plan=PLAN):
    module = Recorder()
    trainer(max_epochs=plan.max_epochs).fit(module, datamodule=data)
    return module


def test_fit_walks_the_plan():
    module = fit(datamodule(source=EvaluationOnly()))
    expected = [(0, "warm-up round")] * 3
    for epoch in (1, 2):
        expected += [(epoch, "round")] * 2 + [(epoch, "batch")] * 4 + [(epoch, "evaluation")]
    assert module.log_of_work == expected


def test_batches_hold_banked_images_with_their_labels():
    module = fit(datamodule(source=EvaluationOnly()))
    banked = {}
    for images, targets in module.made:
        banked |= dict(zip(rows(images), targets.tolist(), strict=True))
    for batch in module.drawn:
        assert batch.images.shape == (5, *SHAPE)
        assert batch.images.dtype == torch.float32
        assert batch.images.max() <= 1
        for image, label in zip(rows(batch.images), batch.labels.tolist(), strict=True):
            assert banked[image] == label


def test_all_images_of_the_plan_find_room():
    data = datamodule(source=EvaluationOnly())
    module = fit(data)
    assert data.bank.capacity == len(data.bank) == PLAN.images
    assert rows(data.bank.images) == [row for images, _ in module.made for row in rows(images)]


def test_banked_images_are_augmented_when_drawn():
    data = set_up(datamodule(augmentation=RandomCropFlip(padding=4, flip=False)))
    data.bank.add(torch.ones(6, *SHAPE), torch.zeros(6, dtype=torch.long))
    images = torch.cat([data._batch().images for _ in range(5)])
    assert (images == 0).any()
    assert (data.bank.images == 255).all()


def test_only_the_evaluation_split_is_asked_for():
    source = EvaluationOnly()
    fit(datamodule(source=source))
    assert source.asked == ["evaluation"]


def test_real_images_come_in_order_and_between_zero_and_one():
    source, module = EvaluationOnly(), Recorder()
    trainer().validate(
        module, datamodule=datamodule(source=source, eval_batch_size=3), verbose=False
    )
    images, labels = (torch.cat(parts) for parts in zip(*module.evaluated, strict=True))
    assert [len(batch[0]) for batch in module.evaluated] == [3, 2, 2]
    torch.testing.assert_close(images, source.images.float() / 255)
    assert torch.equal(labels, source.labels)


@pytest.mark.parametrize("options", [{}, {"source": EvaluationOnly(), "evaluation": False}])
def test_run_without_real_images_is_evaluated_on_banked_ones(options):
    data = datamodule(holdout=0.3, **options)
    assert not data.has_real_images
    module = fit(data)
    assert getattr(options.get("source"), "asked", []) == []
    made = {row for images, _ in module.made for row in rows(images)}
    drawn = {row for batch in module.drawn for row in rows(batch.images)}
    holdout = {row for images, _ in module.evaluated for row in rows(images)}
    assert holdout
    assert holdout <= made
    assert not holdout & drawn


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_held_back_images_are_never_banked_and_none_is_lost(share):
    data = set_up(datamodule(holdout=share))
    everything = {}
    for i in range(5):
        images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(i))
        labels = torch.arange(6) + 10 * i
        data.add(images, labels)
        everything |= dict(zip(rows(images), labels.tolist(), strict=True))
        kept = max(1, round(6 * share))
        assert len(data.bank) == (6 - kept) * (i + 1)
    banked, held = rows(data.bank.images), rows(data.holdout.images)
    assert not set(banked) & set(held)
    assert [everything[row] for row in banked] == data.bank.labels.tolist()
    assert [everything[row] for row in held] == data.holdout.labels.tolist()
    if data.holdout.added <= data.holdout.capacity:
        assert set(banked) | set(held) == set(everything)


def test_nothing_is_held_back_where_real_images_judge():
    data = set_up(datamodule(source=EvaluationOnly()))
    images = torch.rand(6, *SHAPE)
    data.add(images, torch.arange(6))
    assert rows(data.bank.images) == rows(images)
    assert data.holdout is None


def test_every_fit_starts_with_an_empty_bank():
    data = datamodule()
    for _ in range(2):
        set_up(data)
        assert len(data.bank) == len(data.holdout) == 0
        data.add(torch.rand(6, *SHAPE), torch.arange(6))


def test_evaluation_leaves_the_bank_alone():
    data = set_up(datamodule(source=EvaluationOnly()))
    data.add(torch.rand(6, *SHAPE), torch.arange(6))
    data.setup("validate")
    data.setup("test")
    assert len(data.bank) == 6
    assert data.source.asked == ["evaluation"]


def test_bank_can_start_from_a_saved_one(tmp_path):
    saved = MemoryBank(9, SHAPE)
    saved.add(torch.rand(4, *SHAPE), torch.tensor([2, 1, 0, 1]))
    saved.save(tmp_path / "bank.safetensors")
    data = datamodule(bank=BankOptions(capacity=20, initial=tmp_path / "bank.safetensors"))
    for _ in range(2):
        set_up(data)
        assert rows(data.bank.images) == rows(saved.images)
        assert data.bank.labels.tolist() == [2, 1, 0, 1]
        assert data.bank.capacity == 20


def streams(seed, rank):
    data = set_up(datamodule(source=EvaluationOnly(), seed=seed), rank)
    targets = [item.targets.tolist() for item in data.train_dataloader()]
    data.bank.add(torch.rand(30, *SHAPE), torch.arange(30))
    return targets, data._batch().labels.tolist()


def test_seed_and_rank_decide_the_targets_and_the_draws():
    first = streams(seed=0, rank=0)
    assert streams(seed=0, rank=0) == first
    for other in (streams(seed=1, rank=0), streams(seed=0, rank=1)):
        assert other[0] != first[0]
        assert other[1] != first[1]


def test_targets_are_labels_of_this_data_set():
    data = set_up(datamodule())
    for item in data.train_dataloader():
        assert sorted(item.targets.tolist()) == [0, 0, 1, 1, 2, 2]


def test_global_random_state_is_not_touched():
    data = set_up(datamodule(augmentation=RandomCropFlip()))
    images = torch.rand(6, *SHAPE)
    before = torch.get_rng_state()
    data.add(images, torch.arange(6))
    list(data.train_dataloader())
    data._batch()
    assert torch.equal(torch.get_rng_state(), before)


def test_warm_up_is_not_evaluated():
    data = set_up(datamodule(source=EvaluationOnly()), epoch=0)
    assert data.val_dataloader() == []
    data.trainer.current_epoch = 1
    assert len(data.val_dataloader()) == 1


@pytest.mark.parametrize("size", [1, CLASSES - 1])
def test_round_smaller_than_the_classes_is_refused(size):
    with pytest.raises(InputError, match=f"at least {CLASSES}"):
        datamodule(plan=Plan(round_size=size))


def test_round_of_one_full_set_is_enough():
    data = set_up(datamodule(plan=Plan(round_size=CLASSES)))
    assert sorted(next(iter(data.train_dataloader())).targets.tolist()) == list(range(CLASSES))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "gpu"}, "'gpu'"), ({"device": "cuda:0"}, "'cuda:0'"), ({"capacity": 0}, "not 0")],
)
def test_bank_options_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        BankOptions(**options)


def test_batches_from_the_host_are_pinned_for_a_gpu(monkeypatch):
    """A copy from memory that is not pinned would wait for the GPU (CUDA programming guide)."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    data = set_up(datamodule(bank=BankOptions(device="disk")))
    data.add(torch.rand(6, *SHAPE), torch.arange(6))
    data._batch()
    assert pinned == []
    data.trainer.strategy.root_device = torch.device("cuda", 0)
    images, labels = data._batch()
    assert pinned[0] is images
    assert pinned[1] is labels


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_held_back_share_must_leave_something_on_both_sides(share):
    with pytest.raises(InputError, match="holdout"):
        datamodule(holdout=share)


def test_evaluation_without_any_image_is_refused():
    with pytest.raises(InputError, match="no real images"):
        datamodule(evaluation=False).evaluation_batches()


def test_step_before_any_round_is_refused():
    data = set_up(datamodule(), epoch=PLAN.warmup_epochs)
    with pytest.raises(InputError, match="empty"):
        for _ in data.train_dataloader():
            pass


def test_rounds_pass_the_transfer_untouched():
    item = SynthesisRound(torch.arange(3), True)
    assert datamodule().on_after_batch_transfer(item, 0) is item


def set_up_all(ranks, **options):
    return [set_up(datamodule(**options), rank, ranks=ranks) for rank in range(ranks)]


def fill(data, seed):
    """Bank the images of all rounds that are this rank's."""
    rng, plan = torch.Generator().manual_seed(seed), data.plan
    for epoch in range(plan.max_epochs):
        data.trainer.current_epoch = epoch
        for item in EpochPlan(plan, epoch, data._targets, lambda: None, data.share):
            if item is not None and len(item.targets):
                data.add(torch.rand(len(item.targets), *SHAPE, generator=rng), item.targets)


@pytest.mark.parametrize("ranks", [2, 3])
def test_banks_of_all_ranks_have_room_for_their_rounds_and_no_more(ranks):
    plan = replace(PLAN, batch_size=6)
    everyone = set_up_all(ranks, plan=plan, source=EvaluationOnly())
    for data in everyone:
        fill(data, seed=data.share.rank)
        assert len(data.bank) == data.bank.capacity == data.bank.added
    assert sum(len(data.bank) for data in everyone) == plan.images


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_saved_bank_is_shared_out_and_nothing_of_it_is_lost(tmp_path, ranks):
    saved = MemoryBank(7, SHAPE)
    saved.add(torch.rand(7, *SHAPE), torch.arange(7))
    saved.save(tmp_path / "bank.safetensors")
    bank = BankOptions(initial=tmp_path / "bank.safetensors")
    plan = replace(PLAN, batch_size=6)
    everyone = set_up_all(ranks, plan=plan, source=EvaluationOnly(), bank=bank)
    shares = [rows(data.bank.images) for data in everyone]
    assert sorted(row for share in shares for row in share) == sorted(rows(saved.images))
    assert {len(share) for share in shares} <= {7 // ranks, -(-7 // ranks)}
    assert sorted(torch.cat([data.bank.labels for data in everyone]).tolist()) == list(range(7))
    for data in everyone:
        fill(data, seed=data.share.rank)
    assert sum(len(data.bank) for data in everyone) == 7 + plan.images


@pytest.mark.parametrize("capacity", [6, 7, 20])
def test_a_capacity_is_that_of_all_ranks_together(capacity):
    plan = replace(PLAN, batch_size=6)
    bank = BankOptions(capacity=capacity)
    everyone = set_up_all(2, plan=plan, source=EvaluationOnly(), bank=bank)
    for data in everyone:
        fill(data, seed=data.share.rank)
    held = [len(data.bank) for data in everyone]
    assert held[0] == held[1]
    assert capacity <= sum(held) < capacity + 2


def test_a_distillation_batch_is_that_of_all_ranks_together():
    everyone = set_up_all(3, plan=replace(PLAN, batch_size=6), source=EvaluationOnly())
    for data in everyone:
        data.bank.add(torch.rand(6, *SHAPE), torch.arange(6))
    assert [len(data._batch().labels) for data in everyone] == [2, 2, 2]


def test_all_ranks_together_evaluate_every_image_once():
    source = EvaluationOnly()
    everyone = set_up_all(3, plan=replace(PLAN, batch_size=6), source=source, eval_batch_size=2)
    batches = [list(data.evaluation_batches()) for data in everyone]
    assert len({len(share) for share in batches}) == 1
    seen = [row for share in batches for images, _ in share for row in rows(images)]
    assert sorted(seen) == sorted(rows(source.images))


def test_ranks_have_streams_of_their_own():
    everyone = set_up_all(3, plan=replace(PLAN, batch_size=6), source=EvaluationOnly())
    drawn = set()
    for data in everyone:
        data.bank.add(torch.rand(30, *SHAPE), torch.arange(30))
        labels = torch.cat([data._targets() for _ in range(5)])
        drawn.add((tuple(labels.tolist()), tuple(data.rng.get_state().tolist())))
    assert len({labels for labels, _ in drawn}) == len({state for _, state in drawn}) == 3


def test_a_plan_that_cannot_be_shared_out_is_refused_on_every_rank(tmp_path):
    few = replace(PLAN, warmup_epochs=0, rounds_per_epoch=1, batch_size=6)
    saved = MemoryBank(2, SHAPE)
    saved.add(torch.rand(2, *SHAPE), torch.arange(2))
    saved.save(tmp_path / "bank.safetensors")
    for rank in (0, 1):
        with pytest.raises(InputError, match=r"batch_size=5 .* choose 4 or 6"):
            set_up(datamodule(), rank, ranks=2)
        with pytest.raises(InputError, match="makes 1 rounds before"):
            set_up(datamodule(plan=few), rank, ranks=2)
        # Unless the first images are there already.
        bank = BankOptions(initial=tmp_path / "bank.safetensors")
        assert len(set_up(datamodule(plan=few, bank=bank), rank, ranks=2).bank) == 1
