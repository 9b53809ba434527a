"""A loss that is not a number stops the run before it does harm."""

from torch import Tensor


def not_finite(steps: Tensor, names: list[str], where: str) -> str | None:
    """What to tell about the first term of a round, [steps, terms], that is NaN or infinite."""
    bad = ~steps.isfinite()
    if not bad.any():
        return None
    step = int(bad.any(dim=1).int().argmax())
    culprits = [name for name, flag in zip(names, bad[step], strict=True) if flag]
    term = next((name for name in culprits if name != "loss"), "loss")
    return (
        f"The synthesis loss term '{term}' became {steps[step, names.index(term)]} at step "
        f"{step + 1} of {where}. The images of this round were not banked; lower the generator's "
        "learning rate (model.generator_lr) or the weight of this term."
    )
