"""A stopped run of the methods with a bank ends as one that was never stopped."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import CMI, DeepInversion, FastDFKD, Generator, RandomCropFlip

COMMON = {
    "image_shape": (1, 8, 8), "round_size": 12, "check_teacher": False,
    "augmentation": RandomCropFlip(1),
}  # fmt: skip
NOISE = {"noise_features": 16, "generator": partial(Generator, width=8), "generator_steps": 4}
HEAD = {f"synthesizer.head.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
METHODS = {  # options, and what a checkpoint has to hold beside the statistics and the student
    CMI: ({**NOISE, "embedding_features": 8, "negatives": 20}, HEAD),
    DeepInversion: ({"image_steps": 4, "bn_momentum": 0.9}, set()),
    FastDFKD: ({**NOISE, "bn_momentum": 0.9}, None),
}


@pytest.mark.parametrize("method", METHODS)
def test_resume(tiny_classifier, tiny_data, fit, tmp_path, method):
    """From warm-up, between two steps of the student, and near the end."""
    options, own = METHODS[method]

    class Save(Callback):
        def on_train_batch_end(self, trainer, built, outputs, item, i):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}-{i}.ckpt")

    def run(**where):
        torch.manual_seed(3)
        nets, data = (tiny_classifier(), tiny_classifier()), tiny_data()
        built = method(*nets, **COMMON, **options)
        fit(built, data, **where)
        return {"images": data.bank.images, **built.state_dict()}

    whole = run(callbacks=[Save()])
    for moment in ("0-0", "1-1", "2-2"):
        path = tmp_path / f"{moment}.ckpt"
        saved = torch.load(path, weights_only=True)["nayer_pl"]["ranks"][0]
        assert own is None or {n for n in saved["parts"] if ".batchnorm.average" not in n} == own
        assert method is not DeepInversion or saved["optimizers"][0]["state"] == {}
        for name, value in run(ckpt_path=path).items():
            if name.startswith(("images", "student")) or name in saved["parts"]:
                assert torch.equal(whole[name], value)
