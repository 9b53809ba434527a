"""Class names -> embeddings by a language model, encoded once and cached by content."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nayer_pl.errors import InputError, friendly_errors, require, weights_only_load
from nayer_pl.runtime.files import cannot_write, write_durably

log = logging.getLogger(__name__)

PACKAGE = "package://"

Pooling = Literal["projection", "mean", "cls"]


@dataclass(frozen=True)
class TextEncoder:
    """A text model of the `transformers` library with a way to pool it.

    Args:
        model: a name on the Hugging Face Hub, a local folder, or `package://NAME/FOLDER` for a
            model that is installed as a Python package.
        pooling: "projection" for CLIP's text features (arXiv 2103.00020), "mean" over the tokens
            for sentence encoders (arXiv 1908.10084), "cls" for the first token.
        prompts: templates with `{name}`; the embeddings of several are averaged. `_` and `-` in
            a class name are read as blanks.
        cache_dir: where embeddings are kept; None encodes every time.
        revision: branch, tag or commit of a model on the Hub.

    The embeddings are not L2-normalized (NAYER normalizes them over the batch instead).
    """

    model: str
    pooling: Pooling = "projection"
    prompts: Sequence[str] = ("a photo of a {name}",)
    cache_dir: str | Path | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        kinds = get_args(Pooling)
        require(self.pooling in kinds, "text_encoder.pooling", " or ".join(kinds), self.pooling)
        if isinstance(self.prompts, str):
            raise InputError(f"Prompts are a list: prompts=['{self.prompts}'].")
        if not self.prompts or any("{name}" not in str(prompt) for prompt in self.prompts):
            raise InputError(f"Every prompt must contain {{name}}; given: {list(self.prompts)}.")

    def embed(self, names: Sequence[str]) -> Tensor:
        """[len(names), d] float32; from the cache if these texts were encoded before."""
        if self.cache_dir is None:
            return self._encode(names)
        file = Path(self.cache_dir) / f"{self._fingerprint(names)}.safetensors"
        if file.is_file():
            try:
                return load_file(file)["embeddings"]
            except (SafetensorError, KeyError, OSError) as error:
                log.warning(
                    "The cached label text '%s' is damaged (%s): encoding anew.", file, error
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
        # Seconds to import, and not needed at all once the embeddings are cached.
        from transformers import AutoModel, AutoTokenizer, CLIPTextModelWithProjection

        loader = CLIPTextModelWithProjection if self.pooling == "projection" else AutoModel
        where = self._location()
        # Not to be asked whether code that comes with a model may run: it may not.
        plain: dict[str, Any] = {"revision": self.revision, "trust_remote_code": False}
        with (
            weights_only_load(),
            friendly_errors(
                f"The text encoder '{self.model}' cannot be loaded",
                "without a network set text_encoder.model to a local folder, or take "
                "text_encoder=minilm (a package) or text_encoder=file (embeddings made elsewhere)",
            ),
        ):
            if _is_path(where) and not Path(where).is_dir():
                raise FileNotFoundError(f"there is no folder '{where}'")
            tokenizer = AutoTokenizer.from_pretrained(where, **plain)
            model, report = loader.from_pretrained(  # type: ignore[misc]
                where, output_loading_info=True, **plain
            )
        if self.pooling == "projection" and report["missing_keys"]:
            raise InputError(
                f"'{self.model}' is not a CLIP model: no {min(report['missing_keys'])}; set "
                "text_encoder.pooling=mean for a sentence encoder."
            )
        # Of a model of text and images, only the half that reads.
        if self.pooling != "projection":
            model = getattr(model, "text_model", model)
        model.eval()
        readable = [name.replace("_", " ").replace("-", " ") for name in names]
        total = torch.zeros(())
        for prompt in self.prompts:
            texts = [prompt.replace("{name}", name) for name in readable]
            tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            mask = tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))
            total = total + self._pool(model(**tokens), mask)
        return (total / len(self.prompts)).float()

    def _pool(self, output: object, mask: Tensor) -> Tensor:
        if self.pooling == "projection":
            return output.text_embeds  # type: ignore[attr-defined]
        tokens: Tensor = output.last_hidden_state  # type: ignore[attr-defined]
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


def _is_path(model: str) -> bool:
    """Whether it can be no name on the Hub."""
    place = Path(model)
    return place.is_absolute() or model.startswith(".") or len(place.parts) > 2
