"""Networks of a repository with a hubconf.py (https://pytorch.org/docs/stable/hub.html)."""

from typing import Any

import torch
from torch import nn

from nayer_pl.errors import InputError
from nayer_pl.runtime.libraries import friendly_errors


# Not an @architecture: it runs the repository's code, which no file may ask for.
def from_torch_hub(
    repo: str, name: str, source: str = "github", trust_code: bool = False, **arguments: Any
) -> nn.Module:
    """What the entry point `name` of the repository returns for `arguments`.

    Args:
        repo: `owner/name[:ref]` on GitHub, or a folder.
        name: a function in its `hubconf.py`.
        source: "github", or "local" for a folder.
        trust_code: run the repository's code.
        arguments: of the entry point.

    Raises:
        InputError: the code is not trusted, cannot be fetched, or fails.
    """
    if not repo or not name:
        raise InputError(
            "Which network of torch.hub? Give teacher.repo=OWNER/NAME (or a folder, with "
            "teacher.source=local) and teacher.name=ENTRY_POINT."
        )
    if not trust_code:
        raise InputError(
            f"A torch.hub network runs the code of '{repo}'; if you trust it, set "
            "teacher.trust_code=true."
        )
    with friendly_errors(
        f"'{name}' of '{repo}' cannot be loaded",
        "without a network set teacher.repo to a local copy and teacher.source=local",
    ):
        return torch.hub.load(repo, name, source=source, trust_repo=True, **arguments)
