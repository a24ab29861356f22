"""Text from a trained language model, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from subquad.models import LanguageModel
from subquad.models.language_model import IncrementalState
from subquad.training.checkpoint import load
from subquad.training.config import ModelConfig
from subquad.training.errors import CommandError
from subquad.training.lm import build_model, load_weights, saved_config
from subquad.training.text import Vocabulary


def load_model(
    path: Path, device: torch.device
) -> tuple[LanguageModel, Vocabulary, ModelConfig]:
    """Return the model of a checkpoint, in evaluation mode.

    Raises:
        CommandError: a missing, damaged or foreign checkpoint.
    """
    checkpoint = load(path, parts=("model",))
    config = saved_config(checkpoint)
    vocabulary = Vocabulary(checkpoint.metadata.get("vocabulary", ""))
    model = build_model(config, len(vocabulary)).to(device)
    load_weights(model, checkpoint)
    return model.eval(), vocabulary, config


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Continue a prompt: the whole of it in one call, then one call for each token.

    Args:
        model: in evaluation mode.
        prompt: ``[L]`` tokens, at least one.
        length: number of new tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens; 0: among all.
        generator: of the draws, on the device of the prompt.

    Yields:
        The new tokens.
    """
    state: IncrementalState = {}
    tokens = prompt.long()[None]  # [1, L]
    for _ in range(length):
        logits = model(tokens, state)[0, -1]  # [vocabulary]
        tokens = _draw(logits, temperature, top_k, generator)[None]
        yield int(tokens)


def _draw(
    logits: Tensor,
    temperature: float,
    top_k: int,
    generator: torch.Generator | None,
) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    weights = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(weights, 1, generator=generator)


def continue_text(
    path: Path,
    prompt: str,
    length: int,
    *,
    temperature: float,
    top_k: int = 0,
    seed: int = 0,
    device: torch.device,
) -> Iterator[str]:
    """Continue a text with the model of a checkpoint.

    Args:
        path: of the checkpoint, or of the folder of a run.
        prompt: at least one character.
        length: number of new tokens.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among so many of the likeliest tokens; 0: among all.
        seed: of the draws.
        device: where to compute.

    Yields:
        The prompt, then the text of each token.

    Raises:
        CommandError: a bad checkpoint, or a prompt that the model cannot read.
    """
    model, vocabulary, config = load_model(path, device)
    tokens = vocabulary.encode(prompt)
    if not len(tokens):
        raise CommandError("--prompt: must have at least one character")
    if config.positions == "learned" and len(tokens) + length > config.context:
        raise CommandError(
            f"--length: prompt and length must fit the {config.context} learned "
            f"positions, got {len(tokens)} + {length}"
        )
    longest = config.attention_args.get("max_length")
    if longest is not None and len(tokens) + length > longest:
        raise CommandError(
            f"--length: prompt and length must fit --max-length = {longest} of "
            f"training, got {len(tokens)} + {length}"
        )
    decode = vocabulary.decoder()
    yield prompt
    for token in generate(
        model,
        tokens.to(device),
        length,
        temperature=temperature,
        top_k=top_k,
        generator=torch.Generator(device).manual_seed(seed),
    ):
        yield decode(token)
