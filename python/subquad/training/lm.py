"""The training loop of ``subquad train lm``."""

from __future__ import annotations

import contextlib
import hashlib
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from subquad.models import LanguageModel
from subquad.training.checkpoint import Checkpoint, save
from subquad.training.config import ModelConfig, RunConfig
from subquad.training.errors import CommandError
from subquad.training.log import RunLog, use_tensorboard
from subquad.training.memory import memory, peak_memory
from subquad.training.processes import Processes, processes
from subquad.training.text import Vocabulary, WindowSampler, read_text

_VALID_LIMIT = 131072
_BETAS = (0.9, 0.95)
_FINAL_RATE = 0.1  # of the highest learning rate, at the end of the cosine
_OUT_OF_TIME = 255  # beside the numbers of signals
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(config: ModelConfig, vocabulary: int) -> LanguageModel:
    """Return a new model for the settings of a run.

    Raises:
        CommandError: settings that the model or its mechanism refuses.
    """
    longest = config.attention_args.get("max_length")
    if longest is not None and longest < config.context:
        raise CommandError(
            f"--max-length: must be at least --context, got {longest} and "
            f"{config.context}"
        )
    try:
        model = LanguageModel(
            vocabulary,
            attention=config.attention,
            attention_args=config.attention_args,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            dropout=config.dropout,
            positions=config.positions,
            context=config.context,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise CommandError(str(error)) from None
    return model.double() if config.dtype == "float64" else model


def autocast(config: ModelConfig, device: torch.device) -> torch.autocast:
    """Return the precision context in which the model runs."""
    dtype = _AUTOCAST.get(config.dtype)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def learning_rate(config: ModelConfig, step: int) -> float:
    """Return the rate of a step: a linear rise, then half a cosine down to a tenth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))
    return config.lr * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: Tensor,
    config: ModelConfig,
    ranks: Processes,
) -> float:
    """Return the bits that the model needs to say ``tokens``.

    The text is cut into windows of ``config.context``; every token but the first is
    scored once. Processes share the windows.

    Args:
        model: ``[B, L]`` tokens to ``[B, L, vocabulary]`` logits.
        tokens: ``[N]``.
        config: of the run.
        ranks: the processes.

    Returns:
        The negative log-likelihood, summed over the tokens and the processes.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    rows = (len(tokens) - 1) // config.context
    whole = rows * config.context
    inputs = tokens[:whole].view(rows, config.context)
    targets = tokens[1 : whole + 1].view(rows, config.context)
    pairs = [
        (inputs[start : start + config.batch], targets[start : start + config.batch])
        for start in range(0, rows, config.batch)
    ]
    if whole + 1 < len(tokens):
        pairs.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
    for source, target in pairs[ranks.rank :: ranks.world]:
        with autocast(config, ranks.device):
            logits = model(source.to(ranks.device).long())
        total += _nats(logits, target.to(ranks.device).long(), "sum").double()
    model.train()
    return float(ranks.sum(total)) / math.log(2)


def _nats(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class _Signals:
    """Turns SIGINT and SIGTERM into a request that the loop reads between steps.

    A second Ctrl-C interrupts at once.
    """

    received = 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        self.received = number

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        former = [signal.signal(number, self._receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, former, strict=True):
                signal.signal(number, handler)


class Trainer:
    """One run: its data, model, optimizer, and what a checkpoint holds.

    Args:
        config: what to compute.
        run: how.
        ranks: the processes.
        checkpoint: to continue from.

    Raises:
        CommandError: bad text, settings or checkpoint.
    """

    def __init__(
        self,
        config: ModelConfig,
        run: RunConfig,
        ranks: Processes,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Read the text, build model and optimizer, load the checkpoint."""
        self.config = config
        self.run = run
        self.ranks = ranks
        self.folder = Path(run.out)
        self._read_data()
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.vocabulary)).to(ranks.device)
        self.optimizer = self._build_optimizer()
        scaled = config.dtype == "float16"
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=scaled)
        # Weights are equal in all processes, dropout is not.
        torch.manual_seed(config.seed + (ranks.rank << 32))
        self.step = 0
        self.seconds = 0.0  # spent in training steps
        self.best: float | None = None  # bits per character
        self.valid_bits: float | None = None
        self.loss_steps = 0  # since the last record of the loss
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=ranks.device)
        if checkpoint is not None:
            self._restore(checkpoint)

    def _read_data(self) -> None:
        config, ranks = self.config, self.ranks
        text = read_text(config.text, config.encoding)
        self.fingerprint = hashlib.sha256(text.encode("utf-8")).hexdigest()
        self.vocabulary = Vocabulary.of(text, config.tokens)
        tokens = self.vocabulary.encode(text)
        held_out = config.valid_tokens or min(len(tokens) // 20, _VALID_LIMIT)
        train = len(tokens) - held_out
        if train < config.context + 1 or held_out < 2:
            raise CommandError(
                f"{config.text}: too short: {len(tokens)} tokens do not hold a "
                f"window of --context {config.context} and validation text"
            )
        if config.batch % ranks.world:
            raise CommandError(
                f"--batch: must be a multiple of the {ranks.world} processes, "
                f"got {config.batch}"
            )
        self.valid = tokens[train:]
        self.valid_characters = self.vocabulary.count_characters(self.valid[1:])
        self.sampler = WindowSampler(
            tokens[:train],
            context=config.context,
            batch=config.batch,
            seed=config.seed,
            rank=ranks.rank,
            world=ranks.world,
        )

    def _build_optimizer(self) -> torch.optim.AdamW:
        parameters = list(self.model.parameters())
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": self.config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, betas=_BETAS, fused=True)

    def _metadata(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "vocabulary": self.vocabulary.characters,
            "state": {
                "step": self.step,
                "seconds": self.seconds,
                "best": self.best,
                "loss_steps": self.loss_steps,
                "world": self.ranks.world,
                "device": self.ranks.device.type,
                "scaler": self.scaler.state_dict(),
                "text_sha256": self.fingerprint,
            },
        }

    def _model_tensors(self) -> dict[str, Tensor]:
        return {f"model.{k}": v for k, v in self.model.state_dict().items()}

    def save(self) -> None:
        """Write ``last.safetensors``, from which the run continues exactly."""
        random = {"cpu": self.ranks.stack(torch.get_rng_state())}
        if self.ranks.device.type == "cuda":
            random["cuda"] = self.ranks.stack(torch.cuda.get_rng_state())
        loss_sum = self.ranks.stack(self.loss_sum)
        if self.ranks.rank > 0:
            return
        tensors = self._model_tensors()
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"random.{k}": v for k, v in random.items()}
        tensors["loss.sum"] = loss_sum
        save(self.folder / "last.safetensors", tensors, self._metadata())

    def _restore(self, checkpoint: Checkpoint) -> None:
        load_weights(self.model, checkpoint)
        try:
            self._restore_state(checkpoint)
        except (KeyError, RuntimeError) as error:
            raise CommandError(
                f"{checkpoint.path}: has a model, but no state to resume: {error}"
            ) from None

    def _restore_state(self, checkpoint: Checkpoint) -> None:
        state, rank = checkpoint.metadata["state"], self.ranks.rank
        for name, saved, now in (
            ("text", state["text_sha256"], self.fingerprint),
            ("number of processes", state["world"], self.ranks.world),
            ("device", state["device"], self.ranks.device.type),
        ):
            if saved != now:
                raise CommandError(
                    f"{checkpoint.path}: {name} must be as in the checkpoint, "
                    f"{saved}, got {now}"
                )
        if state["step"] >= self.config.steps:
            raise CommandError(
                f"{checkpoint.path}: has finished its {state['step']} steps; "
                "give more --steps to go on"
            )
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: checkpoint.tensors[f"optimizer.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        # Copies: PyTorch reads a state from the beginning of its storage.
        torch.set_rng_state(checkpoint.tensors["random.cpu"][rank].clone())
        if self.ranks.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.tensors["random.cuda"][rank].clone())
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.best = state["best"]
        self.loss_steps = state["loss_steps"]
        self.loss_sum += checkpoint.tensors["loss.sum"][rank].item()

    def _open_log(self) -> RunLog:
        if self.ranks.rank > 0:
            return RunLog(None)
        board = use_tensorboard(self.run.tensorboard)
        return RunLog(self.folder, step=self.step, tensorboard=board)

    def train(self) -> dict[str, Any]:
        """Train to the last step, the end of the time budget, or a signal.

        Returns:
            The record of the end of the run; ``signal`` in it is the number of the
            signal that ended it, or 0.

        Raises:
            CommandError: the loss is not finite, or a file cannot be written.
        """
        config, run, ranks = self.config, self.run, self.ranks
        model: nn.Module = self.model
        if ranks.world > 1:
            model = DistributedDataParallel(
                model,
                device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
            )
        deadline = time.monotonic() + run.time_budget if run.time_budget else math.inf
        start_memory = memory(ranks.device)
        signals = _Signals()
        stop = 0
        with (
            self._open_log() as log,
            signals.watched(),
            tqdm(
                total=config.steps,
                initial=self.step,
                desc=config.attention,
                unit="step",
                disable=None if ranks.rank == 0 else True,
            ) as bar,
        ):
            self._mark = time.perf_counter()
            while self.step < config.steps and not stop:
                self._train_step(model)
                bar.update()
                late = _OUT_OF_TIME if time.monotonic() >= deadline else 0
                # All processes stop after the same step, whoever has a reason.
                stop = ranks.max(signals.received or late)
                if self.step % config.log_interval == 0:
                    self._log_loss(log, bar)
                due = self.step % config.eval_interval == 0 or self.step == config.steps
                if stop or due:
                    self._pause()
                    # A signal allows little time, and validation may take long.
                    if stop in (0, _OUT_OF_TIME):
                        self._validate(log)
                    else:
                        self.save()
                    self._mark = time.perf_counter()
            end = {
                "attention": config.attention,
                "bits_per_character": self.valid_bits,
                "best": self.best,
                "tokens_per_second": self._speed(),
                "seconds": self.seconds,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "start_memory": start_memory,
                "peak_memory": peak_memory(ranks.device),
                "signal": 0 if stop == _OUT_OF_TIME else stop,
            }
            log.write("end", self.step, **end)
        return {"step": self.step, **end}

    def _train_step(self, model: nn.Module) -> None:
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = (t.to(self.ranks.device) for t in self.sampler(self.step))
        with autocast(self.config, self.ranks.device):
            logits = model(inputs)
        loss = _nats(logits, targets, "mean")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss_sum += loss.detach()
        self.loss_steps += 1
        self.step += 1

    def _log_loss(self, log: RunLog, bar: tqdm[NoReturn]) -> None:
        """Record the mean loss since the last record."""
        total = float(self.ranks.sum(self.loss_sum)) / self.ranks.world
        loss = total / self.loss_steps
        if not math.isfinite(loss):
            raise CommandError(
                f"the training loss is {loss} near step {self.step}: lower --lr; "
                "the last checkpoint is intact"
            )
        self.loss_sum.zero_()
        self.loss_steps = 0
        bar.set_postfix(loss=f"{loss:.3f}")
        rate = learning_rate(self.config, self.step - 1)
        log.write("train", self.step, loss=loss, learning_rate=rate)

    def _validate(self, log: RunLog) -> None:
        """Score the validation text and write the checkpoints."""
        bits = evaluate(self.model, self.valid, self.config, self.ranks)
        self.valid_bits = bits / self.valid_characters
        if not math.isfinite(self.valid_bits):
            raise CommandError(
                f"the validation loss is {self.valid_bits} at step {self.step}: "
                "lower --lr; the last checkpoint is intact"
            )
        log.write(
            "valid",
            self.step,
            bits_per_character=self.valid_bits,
            tokens_per_second=self._speed(),
        )
        self._tell(
            f"step {self.step}, {self.valid_bits:.3f} bits per character, "
            f"{self._speed():,.0f} tokens/s"
        )
        improved = self.best is None or self.valid_bits < self.best
        if improved:
            self.best = self.valid_bits
        self.save()
        if improved and self.ranks.rank == 0:
            path = self.folder / "best.safetensors"
            save(path, self._model_tensors(), self._metadata())

    def _tell(self, message: str) -> None:
        if self.ranks.rank == 0:
            tqdm.write(f"{self.config.attention}: {message}", file=sys.stderr)

    def _pause(self) -> None:
        """Add the time since the last mark to the training time."""
        float(self.loss_sum)  # waits for the GPU
        self.seconds += time.perf_counter() - self._mark

    def _speed(self) -> float:
        tokens = self.step * self.config.batch * self.config.context
        return tokens / self.seconds if self.seconds else 0.0


def load_weights(model: LanguageModel, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into a model.

    Raises:
        CommandError: they are not those of this model.
    """
    try:
        model.load_state_dict(checkpoint.part("model"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"{checkpoint.path}: damaged: {reason}") from None


def saved_config(checkpoint: Checkpoint) -> ModelConfig:
    """Return the settings with which a checkpoint was made.

    Raises:
        CommandError: the checkpoint has no valid settings.
    """
    try:
        return ModelConfig(**checkpoint.metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CommandError(f"{checkpoint.path}: damaged settings: {error}") from None


def train(
    config: ModelConfig, run: RunConfig, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Train a language model.

    Args:
        config: what to compute.
        run: how; ``run.out`` receives ``last.safetensors`` (model, optimizer and all
            that an exact continuation needs), ``best.safetensors`` (the model with
            the best validation), ``log.jsonl`` and TensorBoard files.
        checkpoint: to continue from.

    Returns:
        The record of the end, as in ``log.jsonl``.

    Raises:
        CommandError: bad text, settings or checkpoint, or a file that cannot be
            written.
    """
    folder = Path(run.out)
    if checkpoint is None and (folder / "last.safetensors").exists():
        raise CommandError(
            f"{folder}: has a checkpoint; continue it with --resume {folder}, "
            "or give another --out"
        )
    with processes(run.device) as ranks:
        trainer = Trainer(config, run, ranks, checkpoint)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{folder}: cannot create: {error.strerror}") from None
        return trainer.train()
