import tempfile
from dataclasses import replace
from types import SimpleNamespace

import lightning
import pytest
import torch

from nayer_pl import BankOptions, InputError, MemoryBank, Plan, RandomCropFlip, SyntheticDataModule
from nayer_pl.bank import DistillationBatch, SynthesisRound
from nayer_pl.data import ImageSet

SHAPE, CLASSES = (1, 4, 4), 3
PLAN = Plan(
    epochs=2, warmup_epochs=1, warmup_rounds=3, rounds_per_epoch=2,
    kd_steps=4, round_size=6, batch_size=6,
)  # fmt: skip


class EvaluationOnly:
    """Real images, of which the training split must not be opened."""

    def __init__(self, count=7):
        self.asked = []
        rng = torch.Generator().manual_seed(5)
        self.images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8, generator=rng)
        self.labels = torch.arange(count) % CLASSES

    def load(self, split):
        self.asked.append(split)
        return ImageSet(self.images, self.labels)


class Recorder(lightning.LightningModule):
    """Banks random images for a round and records everything that it is given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.work, self.made, self.drawn, self.evaluated = [], [], [], []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, item, _):
        kind = "batch"
        if isinstance(item, SynthesisRound):
            kind = "warm-up round" if item.warm_up else "round"
            images = torch.randint(0, 256, (len(item.targets), *SHAPE)) / 255
            self.trainer.datamodule.add(images, item.targets)
            self.made.append((images, item.targets))
        else:
            assert isinstance(item, DistillationBatch)
            self.drawn.append(item)
        self.work.append((self.current_epoch, kind))

    def validation_step(self, batch, _):
        self.evaluated.append(batch)
        self.work.append((self.current_epoch, "evaluation"))


def datamodule(**options):
    return SyntheticDataModule(SHAPE, CLASSES, options.pop("plan", PLAN), **options)


def set_up(data, rank=0, ranks=1):
    """As a trainer on rank `rank` does."""
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=ranks, num_devices=ranks, current_epoch=0,
        default_root_dir=tempfile.gettempdir(),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    data.setup("fit")
    return data


def items_of(data, epoch):
    data.trainer.current_epoch = epoch
    return data.train_dataloader()


def batches_of(data, epoch):
    return [item for item in items_of(data, epoch) if isinstance(item, DistillationBatch)]


def rows(images):
    """Each image as something that can be in a set."""
    images = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    return [tuple(image.flatten().tolist()) for image in images]


@pytest.fixture
def saved(tmp_path):
    """A bank of seven images in a file."""
    bank, path = MemoryBank(7, SHAPE), tmp_path / "bank.safetensors"
    bank.add(torch.rand(7, *SHAPE), torch.arange(7))
    bank.save(path)
    return bank, path


def test_fit__follows_the_plan(fit):
    source, module = EvaluationOnly(), Recorder()
    data = datamodule(source=source)
    fit(module, data, num_sanity_val_steps=0)
    expected = [(0, "warm-up round")] * 3
    for epoch in (1, 2):
        expected += [(epoch, "round")] * 2 + [(epoch, "batch")] * 4 + [(epoch, "evaluation")]
    assert module.work == expected
    assert source.asked == ["evaluation"]
    assert data.bank.capacity == len(data.bank) == PLAN.images
    assert rows(data.bank.images) == [row for images, _ in module.made for row in rows(images)]
    banked = {}
    for images, targets in module.made:
        assert sorted(targets.tolist()) == [0, 0, 1, 1, 2, 2]
        banked |= dict(zip(rows(images), targets.tolist(), strict=True))
    for batch in module.drawn:
        assert batch.images.shape == (6, *SHAPE)
        assert (batch.images.dtype, batch.images.max() <= 1) == (torch.float32, True)
        for image, label in zip(rows(batch.images), batch.labels.tolist(), strict=True):
            assert banked[image] == label


def test_augmentation__of_the_students_batches():
    """Any callable that takes images and the generator; banked images stay as they are."""
    used = []

    def negative(images, rng):
        used.append(rng)
        return 255 - images

    data, plain = (set_up(datamodule(augmentation=each)) for each in (negative, None))
    images = torch.randint(256, (6, *SHAPE), dtype=torch.uint8)
    for each in (data, plain):
        each.bank.add(images, torch.arange(6))
    for ours, theirs in zip(batches_of(data, 1), batches_of(plain, 1), strict=True):
        assert torch.equal(ours.images, 255 - theirs.images)
    assert used == [data.rng] * 4
    assert torch.equal(data.bank.images, images)


@pytest.mark.parametrize("options", [{}, {"source": EvaluationOnly(), "evaluation": False}])
def test_holdout__evaluated_and_never_drawn(fit, options):
    data, module = datamodule(holdout=0.3, **options), Recorder()
    assert not data.has_real_images
    fit(module, data, num_sanity_val_steps=0)
    assert getattr(options.get("source"), "asked", []) == []
    made = {row for images, _ in module.made for row in rows(images)}
    drawn = {row for batch in module.drawn for row in rows(batch.images)}
    holdout = {row for images, _ in module.evaluated for row in rows(images)}
    assert holdout
    assert holdout <= made
    assert not holdout & drawn


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_holdout__share_of_every_round(share):
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
    if data.holdout.num_added <= data.holdout.capacity:
        assert set(banked) | set(held) == set(everything)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("initial", [False, True])
def test_setup__empty_or_initial_bank_for_every_fit(saved, real, initial):
    bank, path = saved
    first = bank.labels.tolist() if initial else []
    options = BankOptions(capacity=20, initial=path if initial else None)
    data = datamodule(bank=options, source=EvaluationOnly() if real else None)
    for _ in range(2):
        set_up(data)
        assert data.bank.capacity == 20
        assert data.bank.labels.tolist() == first
        assert rows(data.bank.images) == rows(bank.images)[: len(first)]
        assert (data.holdout is None) == data.has_real_images == real
        data.add(torch.rand(6, *SHAPE), torch.arange(6))
        data.setup("validate")  # leaves the bank alone
        assert len(data.bank) == len(first) + 6 - (0 if real else len(data.holdout))


def test_streams__of_seed_and_rank():
    def drawn(seed, rank):
        data = set_up(datamodule(source=EvaluationOnly(), seed=seed), rank)
        targets = [item.targets.tolist() for item in items_of(data, 0)]
        data.bank.add(torch.rand(30, *SHAPE), torch.arange(30))
        return targets, [batch.labels.tolist() for batch in batches_of(data, 1)]

    first = drawn(seed=0, rank=0)
    assert drawn(seed=0, rank=0) == first
    for other in (drawn(seed=1, rank=0), drawn(seed=0, rank=1), drawn(seed=0, rank=2)):
        assert other[0] != first[0]
        assert other[1] != first[1]


def test_streams__global_state_untouched():
    data = set_up(datamodule(augmentation=RandomCropFlip()))
    images = torch.rand(6, *SHAPE)
    before = torch.get_rng_state()
    data.add(images, torch.arange(6))
    list(items_of(data, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_options__one_set_of_classes_in_a_round():
    data = set_up(datamodule(plan=replace(PLAN, round_size=CLASSES)))
    assert sorted(next(iter(items_of(data, 0))).targets.tolist()) == list(range(CLASSES))
    small = replace(PLAN, round_size=CLASSES - 1)
    with pytest.raises(InputError, match=f"set round_size to at least {CLASSES}"):
        datamodule(plan=small)
    datamodule(plan=replace(small, allow_partial_classes=True))


@pytest.mark.parametrize(
    ("make", "name", "values"),
    [
        (BankOptions, "device", ["gpu", "cuda:0"]),
        (BankOptions, "capacity", [0]),
        (datamodule, "holdout", [0, 1, -0.1, 1.5]),
        (datamodule, "eval_batch_size", [0]),
        (datamodule, "augmentation", [3]),
    ],
)
def test_options__out_of_range(make, name, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{name} must be"):
            make(**{name: value})


def test_transfer__pinned_for_a_gpu(monkeypatch):
    """A copy from memory that is not pinned would wait for the GPU (CUDA programming guide)."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: ("pinned", self))
    data, batch = set_up(datamodule()), DistillationBatch(torch.rand(6, *SHAPE), torch.arange(6))
    assert data.on_before_batch_transfer(batch, 0) == batch
    data.trainer.strategy.root_device = torch.device("cuda", 0)
    sent = data.on_before_batch_transfer(batch, 0)
    assert isinstance(sent, DistillationBatch)
    assert sent == (("pinned", batch.images), ("pinned", batch.labels))
    item = SynthesisRound(torch.arange(3), True)
    assert data.on_before_batch_transfer(item, 0) is data.on_after_batch_transfer(item, 0) is item


def test_batches__no_images():
    with pytest.raises(InputError, match="no real images"):
        datamodule(evaluation=False).evaluation_batches()
    with pytest.raises(InputError, match="empty"):
        list(items_of(set_up(datamodule()), PLAN.warmup_epochs))


@pytest.mark.parametrize("capacity", [6, 7, 20])
def test_ranks__capacity_is_the_total(capacity):
    held = []
    for rank in (0, 1):
        options = BankOptions(capacity=capacity)
        data = set_up(datamodule(source=EvaluationOnly(), bank=options), rank, ranks=2)
        for epoch in range(PLAN.max_epochs):
            for item in items_of(data, epoch):
                if isinstance(item, SynthesisRound) and len(item.targets):
                    data.add(torch.rand(len(item.targets), *SHAPE), item.targets)
        held.append(len(data.bank))
    assert held[0] == held[1]
    assert capacity <= sum(held) < capacity + 2


def test_ranks__plan_that_cannot_be_split(saved):
    few = replace(PLAN, warmup_epochs=0, rounds_per_epoch=1)
    for rank in (0, 1):
        with pytest.raises(InputError, match=r"batch_size=5 .* choose 4 or 6"):
            set_up(datamodule(plan=replace(PLAN, batch_size=5)), rank, ranks=2)
        with pytest.raises(InputError, match="makes 1 rounds before"):
            set_up(datamodule(plan=few), rank, ranks=2)
        # Unless the first images are there already.
        data = datamodule(plan=few, bank=BankOptions(initial=saved[1]))
        bank = set_up(data, rank, ranks=2).bank
        assert (len(bank), bank.capacity) == (4 - rank, 4 - rank + 6)
