"""Text as tokens: reading, vocabularies, and the order in which windows are trained."""

from __future__ import annotations

import codecs
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from subquad.training.errors import CommandError

# The name that stands for the text every Python carries: its own reference manual.
PYTHON_TOPICS = "pydoc_data.topics"


def read_text(source: str, encoding: str = "utf-8") -> str:
    """Return the text of a file, or Python's help topics for ``PYTHON_TOPICS``.

    Raises:
        CommandError: missing, unreadable, undecodable or empty text.
    """
    if source == PYTHON_TOPICS:
        try:
            topics: dict[str, str] = importlib.import_module(source).topics
        except ImportError as error:
            raise CommandError(f"{source}: this Python lacks it: {error}") from None
        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        text = Path(source).read_bytes().decode(encoding)
    except OSError as error:
        raise CommandError(f"{source}: cannot read: {error.strerror}") from None
    except LookupError:
        raise CommandError(f"--encoding: unknown encoding {encoding!r}") from None
    except UnicodeDecodeError as error:
        raise CommandError(
            f"{source}: not {encoding} text ({error.reason} at byte {error.start}); "
            "try another --encoding"
        ) from None
    if not text:
        raise CommandError(f"{source}: the text is empty")
    return text


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a language model: the 256 bytes of UTF-8, or single characters.

    Attributes:
        characters: the characters in the order of their tokens; empty for bytes.
    """

    characters: str = ""

    @classmethod
    def of(cls, text: str, kind: str) -> Vocabulary:
        """Return the vocabulary of kind ``"byte"`` or ``"char"`` for a text."""
        return cls("" if kind == "byte" else "".join(sorted(set(text))))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.characters) or 256

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, ``[N]`` uint8 (bytes) or int32 (characters).

        Raises:
            CommandError: a character that is not in the vocabulary.
        """
        if not self.characters:
            data = bytearray(text.encode("utf-8", "surrogateescape"))
            return torch.frombuffer(data, dtype=torch.uint8) if data else _no_tokens()
        if not text:
            return _no_tokens()
        codes = _code_points(text)
        table = _code_points(self.characters)
        tokens = torch.searchsorted(table, codes, out_int32=True)
        tokens.clamp_(max=len(table) - 1)
        unknown = codes[table[tokens] != codes]
        if len(unknown):
            raise CommandError(
                f"character {chr(int(unknown[0]))!r} is not among the "
                f"{len(self)} characters of the training text"
            )
        return tokens

    def count_characters(self, tokens: Tensor) -> int:
        """Return how many characters start in ``tokens``."""
        if self.characters:
            return tokens.numel()
        return int(((tokens & 0xC0) != 0x80).sum())  # UTF-8 continues with 10xxxxxx

    def decoder(self) -> Callable[[int], str]:
        """Return a function that takes token after token and gives their text.

        A character of several bytes appears with its last byte; bytes that are no
        UTF-8 appear as U+FFFD.
        """
        if self.characters:
            return self.characters.__getitem__
        utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token: utf8.decode(bytes([token]))


def _no_tokens() -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _code_points(text: str) -> Tensor:
    data = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(data, dtype=torch.int32)


class WindowSampler:
    """Training windows in an order that only the seed decides.

    An epoch cuts the tokens into windows of ``context`` at a random shift and visits
    them in a random order. Step ``s`` takes the next ``batch`` windows; with several
    processes each takes its own share of them. Nothing but the step number has to be
    kept to continue.

    Args:
        tokens: ``[N]``, at least ``context + 1``.
        context: length of a window.
        batch: windows per step, over all processes.
        seed: of the order.
        rank: this process.
        world: number of processes, a divisor of ``batch``.
    """

    def __init__(
        self,
        tokens: Tensor,
        *,
        context: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Store the arguments."""
        self.tokens = tokens
        self.context = context
        self.batch = batch
        self.seed = seed
        self.rows = range(rank, batch, world)
        # One window fewer than fits, where that leaves any, so that windows can shift.
        self.windows = max((len(tokens) - 1) // context - 1, 1)
        self._epochs: dict[int, Sequence[int]] = {}

    def starts(self, step: int) -> list[int]:
        """Return where this process's windows of a step start."""
        return [self._start(step * self.batch + row) for row in self.rows]

    def _start(self, index: int) -> int:
        epoch, window = divmod(index, self.windows)
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(self.seed + (epoch << 32))
            slack = len(self.tokens) - 1 - self.windows * self.context
            shift = torch.randint(min(slack + 1, self.context), (), generator=generator)
            order = torch.randperm(self.windows, generator=generator)
            # A step of a tiny text can span epochs: keep the last few.
            self._epochs[epoch] = (order * self.context + shift).tolist()
            self._epochs.pop(epoch - 2, None)
        return self._epochs[epoch][window]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step, ``[batch / world, context]`` int64."""
        size = self.context + 1
        rows = [self.tokens[start : start + size] for start in self.starts(step)]
        windows = torch.stack(rows).long()
        return windows[:, :-1], windows[:, 1:]
