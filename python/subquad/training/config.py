"""The settings of a language-model run, each with its default, limits and help."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from subquad.training.text import PYTHON_TOPICS


def _setting(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    limits = {"choices": choices, "least": least, "above": above, "below": below}
    return field(default=default, metadata={"help": help, **limits})


class _Settings:
    """Checks every field against the limits that its metadata states."""

    def __post_init__(self) -> None:
        for setting in fields(self):  # type: ignore[arg-type]
            if setting.metadata:
                _check(setting, getattr(self, setting.name))


def _check(setting: Field[Any], value: Any) -> None:
    limits = setting.metadata
    if limits["choices"] and value not in limits["choices"]:
        rule = f"one of {', '.join(limits['choices'])}"
    elif limits["least"] is not None and not value >= limits["least"]:
        rule = f"at least {limits['least']}"
    elif limits["above"] is not None and not value > limits["above"]:
        rule = f"above {limits['above']}"
    elif limits["below"] is not None and not value < limits["below"]:
        rule = f"below {limits['below']}"
    else:
        return
    flag = setting.name.replace("_", "-")
    raise ValueError(f"--{flag}: must be {rule}, got {value!r}")


@dataclass(frozen=True)
class ModelConfig(_Settings):
    """What a run computes: equal settings give equal losses.

    Attributes:
        text: file of the text, or ``PYTHON_TOPICS``.
        attention: registered name of the mechanism.
        attention_args: the mechanism's own arguments.

    The other attributes carry their description as metadata, which is also the help
    text of the option of the same name.

    Raises:
        ValueError: a value outside its limits.
    """

    text: str = PYTHON_TOPICS
    attention: str = "local"
    attention_args: dict[str, Any] = field(default_factory=dict)
    layers: int = _setting(4, "decoder blocks", least=1)
    width: int = _setting(128, "features per position", least=1)
    heads: int = _setting(4, "attention heads", least=1)
    dropout: float = _setting(0.0, "dropout probability", least=0, below=1)
    positions: str = _setting(
        "rotary", "kind of positions", choices=("rotary", "learned", "none")
    )
    context: int = _setting(2048, "tokens in a training window", least=1)
    tokens: str = _setting(
        "byte", "what a token is: a byte of UTF-8 or a character",
        choices=("byte", "char"),
    )  # fmt: skip
    encoding: str = _setting("utf-8", "encoding of TEXT")
    valid_tokens: int = _setting(
        0, "tokens at the end kept for validation; 0: 5%%, at most 131072", least=0
    )
    batch: int = _setting(1, "windows per step, over all processes", least=1)
    steps: int = _setting(250, "training steps", least=1)
    lr: float = _setting(3e-3, "highest learning rate", above=0)
    warmup: int = _setting(30, "steps of rising learning rate", least=0)
    weight_decay: float = _setting(0.1, "AdamW's decay of the matrices", least=0)
    clip: float = _setting(1.0, "largest norm of the gradient", above=0)
    seed: int = _setting(0, "seed of weights, data order and dropout", least=0)
    dtype: str = _setting(
        "float32", "of the model; 16 bits: autocast over float32 weights",
        choices=("float32", "float64", "bfloat16", "float16"),
    )  # fmt: skip
    eval_interval: int = _setting(
        100, "steps between validations, each with a checkpoint", least=1
    )
    log_interval: int = _setting(10, "steps between records of the loss", least=1)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RunConfig(_Settings):
    """How a run is carried out; may change when it is resumed.

    Attributes:
        out: folder of checkpoints and logs.
        tensorboard: write TensorBoard files; None where TensorBoard is installed.

    Raises:
        ValueError: a value outside its limits.
    """

    out: str
    tensorboard: bool | None = None
    device: str = _setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if any")
    time_budget: float = _setting(
        0.0, "stop training after so many seconds; 0: never", least=0
    )
