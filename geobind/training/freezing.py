"""What a stage may change, and the proof that it changed nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from geobind.errors import RecipeError, TrainingError
from geobind.provenance import digest
from geobind.recipe.schema import AdamW, Part


def set_trainable(name: str, encoder: nn.Module, part: Part | None) -> None:
    """Make an encoder trainable as a whole, by its head, or not at all.

    What is not trained has no gradients and is in eval mode, so that neither batch statistics nor dropout
    change it or make it noisy.

    Raises:
        RecipeError: Its head is to be trained, but it has none, or one without parameters.
    """
    encoder.requires_grad_(part == "full")
    encoder.train(part == "full")
    if part == "head":
        head = getattr(encoder, "head", None)
        if not isinstance(head, nn.Module) or not any(True for _ in head.parameters()):
            raise RecipeError(
                f"the encoder of '{name}' has no head with parameters to train; "
                f"give the modality a head (for built-in ones `head: linear`) or train it whole"
            )
        head.requires_grad_(True)
        head.train()


def frozen_digests(encoders: Mapping[str, nn.Module], parts: Mapping[str, Part]) -> dict[str, str]:
    """Hash what a stage must not change, by modality."""
    digests: dict[str, str] = {}
    for name, encoder in encoders.items():
        if parts.get(name) != "full":
            head = [key for key in encoder.state_dict() if key.startswith("head.")] if name in parts else []
            digests[name] = digest(encoder, but=head)
    return digests


def check_frozen(before: Mapping[str, str], after: Mapping[str, str], stage: str) -> None:
    """Check that everything frozen is bit-equal to what it was.

    Raises:
        TrainingError: An encoder changed; its plugin updates weights or buffers in its forward pass.
    """
    moved = [name for name in before if before[name] != after[name]]
    if moved:
        raise TrainingError(
            f"stage '{stage}': frozen weights of {', '.join(moved)} changed; the plugin's encoder updates "
            f"parameters or buffers in forward even in eval mode, which its contract forbids"
        )


def parameter_groups(module: nn.Module, options: AdamW) -> list[dict[str, list[Tensor] | float]]:
    """Group what is trained for AdamW: no weight decay on biases, norms and the loss's own scalars."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, list[Tensor] | float]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
