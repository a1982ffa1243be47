"""One training loop for everything that is trained here: accelerate's devices and precision, our order of the data.

Pre-training, alignment and fine-tuning are a module that turns the numbers of some items into a loss. Which items
step i sees, and all noise in it (masks, dropout), depend on (seed, i) alone, so a stopped run goes on as if it had not
been stopped, and two runs on the CPU are the same bit for bit. Checkpoints are safetensors, the optimiser's state too:
`Trainer` and `Accelerator.save_state` write pickles, which is why neither is used.

A folder belongs to one training (`xlprobe.training.identity`); where that has ended, it gives its end again. Weights of
half precision are float32 while they are trained, and are rounded once, at the end: in bfloat16 a step of 1e-5 is lost
in rounding.

On several GPUs (`accelerate launch`) every process takes its share of the items of a step; contrastive losses then
have the negatives of their own process only.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.cases import settings_digest
from experiments.checkpoints import digest
from experiments.progress import bar
from reports.errors import InputError, MechEditError
from xlprobe.training.identity import claim, environment

__all__ = ["Precision", "Sampler", "Training", "TrainingError", "Watch", "train"]

logger = logging.getLogger(__name__)

Precision = Literal["no", "bf16", "fp16"]


class TrainingError(MechEditError):
    """Training cannot go on because the loss is not finite; what was saved before is kept."""


@dataclass(frozen=True)
class Training:
    """Everything but the loss that decides the trained weights.

    Attributes:
        steps: The number of steps.
        batch: Items of a step.
        lr: Learning rate of AdamW after the warm-up.
        warmup: Steps in which the rate rises linearly.
        decay: Share of the steps, at the end, in which the rate falls linearly to zero.
        weight_decay: AdamW's.
        clip: Norm to which gradients are clipped; 0 leaves them as they are.
        seed: Decides order, masks and dropout.
        precision: Of autocast: "no", "bf16" or "fp16".
        micro: Sentences that go through the encoder at once, the gradient being that of the whole step
            (`xlprobe.training.cached_contrast`); 0: all of a step.

    Raises:
        InputError: A number out of its range.
    """

    steps: int
    batch: int
    lr: float
    warmup: int = 0
    decay: float = 1.0
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "no"
    micro: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("micro", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise InputError(f"lr: expected a number above 0, found {self.lr}")
        if not 0 < self.decay <= 1:
            raise InputError(f"decay: expected a share of the steps, above 0 and up to 1, found {self.decay}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of `lr`.

        >>> [Training(steps=4, batch=1, lr=1.0, warmup=2).rate(step) for step in range(4)]
        [0.5, 0.75, 0.5, 0.25]
        """
        left = (self.steps - step) / (self.steps * self.decay)
        return min(1.0, left, (step + 1) / self.warmup if self.warmup else 1.0)


@dataclass(frozen=True)
class Sampler:
    """The items of each step: every item once an epoch, in an order that depends on (seed, epoch).

    The last, smaller batch of an epoch is filled up from the epoch's beginning.

    Attributes:
        n: The number of items.
        batch: Items of a step.
        seed: Decides the order.
        lengths: With the items' lengths [n], items of like length come together, which saves padding: pools of 32
            batches are sorted, then their batches shuffled.

    Raises:
        InputError: There are no items.
    """

    n: int
    batch: int
    seed: int = 0
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError("data: expected at least one item to train on, found none")
        object.__setattr__(self, "_epoch", lru_cache(maxsize=2)(self._shuffle))

    def rows(self, step: int) -> Tensor:
        """The numbers of the items of `step` [batch].

        >>> sampler = Sampler(6, 2)
        >>> sorted(torch.cat([sampler.rows(step) for step in range(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
        """
        per_epoch = math.ceil(self.n / self.batch)
        epoch: Callable[[int], Tensor] = self._epoch  # type: ignore[attr-defined]
        return epoch(step // per_epoch)[step % per_epoch]

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, "epoch", epoch))
        order = torch.randperm(self.n, generator=generator)
        if self.lengths is not None:
            pools = [pool[self.lengths[pool].argsort(stable=True)] for pool in order.split(32 * self.batch)]
            order = torch.cat(pools)
        whole = math.ceil(self.n / self.batch) * self.batch
        order = order.repeat(math.ceil(whole / self.n))[:whole].view(-1, self.batch)
        return order if self.lengths is None else order[torch.randperm(len(order), generator=generator)]


@runtime_checkable
class Watch(Protocol):
    """Looks on after every step, may end the training, and remembers what it saw in the checkpoint."""

    def __call__(self, step: int, loss: float, /) -> bool:
        """Whether the training ends behind this step."""

    def state(self) -> tuple[dict[str, Any], list[Tensor]]:
        """What it has seen: plain data, and tensors."""

    def load(self, facts: Mapping[str, Any], tensors: list[Tensor]) -> None:
        """Go on from what `state` gave."""


def derive(*parts: int | str) -> int:
    """A seed from a seed and names, the same in every process, unlike `hash`."""
    return zlib.crc32(":".join(map(str, parts)).encode())


def train(
    module: nn.Module,
    training: Training,
    *,
    n_items: int,
    lengths: Tensor | None = None,
    device: torch.device | None = None,
    folder: Path | None = None,
    save_every: int = 500,
    before: Callable[[int], None] | None = None,
    watch: Watch | Callable[[int, float], bool] | None = None,
    facts: Mapping[str, Any] | None = None,
    claimed: bool = False,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Train `module` in place; the loss of every step, of those that an earlier call took in `folder` too.

    The module is in training mode meanwhile (dropout on) and in evaluation mode afterwards.

    Args:
        module: `module(rows)` is the loss of the items with the numbers `rows` [n].
        training: Steps, rates and order.
        n_items: The number of items.
        lengths: The items' lengths [n], so that items of like length come together.
        device: Where the module is; None leaves the choice to accelerate.
        folder: Where a checkpoint is written, from which the same call goes on; where it has ended, nothing is trained
            and its end is given again.
        save_every: Steps between two checkpoints.
        before: Called with the step's number before each step, for a loss that depends on it.
        watch: Called with the step's number and loss after each step; True ends the training. A `Watch` remembers what
            it has seen.
        facts: What the training depends on besides its settings and the weights it starts from (plain data).
        claimed: The caller has claimed the folder for all that decides this training (`xlprobe.training.identity`).
        label: Title of the progress bar.
        progress: Show a progress bar.

    Raises:
        TrainingError: The loss is not finite; no step is taken on it.
        InputError: Every parameter is frozen, or `folder` holds another training (with what differs).
    """
    accelerator = _accelerator(training.precision, device)
    if not accelerator.device_placement:  # accelerate knows the first GPU alone, whichever the encoder is on
        module.to(device)  # a head may be new
    sampler = Sampler(n_items, training.batch, training.seed, lengths)
    if folder and not claimed:
        claim(folder, dict(facts or {}) | _facts(module, training, n_items, accelerator.num_processes))
    with _wide(module):
        return _loop(
            accelerator,
            module,
            training,
            sampler,
            folder=folder,
            save_every=save_every,
            before=before,
            watch=watch,
            label=label,
            progress=progress,
        )


def _loop(
    accelerator: Accelerator,
    module: nn.Module,
    training: Training,
    sampler: Sampler,
    *,
    folder: Path | None,
    save_every: int,
    before: Callable[[int], None] | None,
    watch: Watch | Callable[[int, float], bool] | None,
    label: str,
    progress: bool,
) -> list[float]:
    """The steps of `train`, on weights that a step can move."""
    optimizer = _optimizer(module, training)
    prepared, fast = accelerator.prepare(module, optimizer)
    losses, finished = _restore(folder, module, optimizer, accelerator.scaler, watch)
    start = training.steps if finished else len(losses)
    module.train()
    try:
        steps = bar(label, training.steps, progress=progress, unit="step", start=start)
        with _own_noise(), steps:
            for step in range(start, training.steps):
                torch.manual_seed(derive(training.seed, "step", step, accelerator.process_index))
                rows = sampler.rows(step)[accelerator.process_index :: accelerator.num_processes]
                if before:
                    before(step)
                losses.append(_step(accelerator, prepared, fast, rows, training, step=step, folder=folder))
                steps.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
                steps.update()
                ends = bool(watch and watch(step, losses[-1])) or step + 1 == training.steps
                if folder and (ends or (step + 1) % save_every == 0):
                    _save(folder, module, optimizer, accelerator.scaler, watch, training, losses, ends)
                if ends:
                    break
    finally:
        module.eval()
    return losses


def _facts(module: nn.Module, training: Training, n_items: int, processes: int) -> dict[str, Any]:
    """What every training depends on, whatever it trains."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    return {
        "training": asdict(training),
        "items": n_items,
        "start": digest(_named(module)),
        "trained": settings_digest(trained),
        "processes": processes,
        **environment(),
    }


@contextlib.contextmanager
def _wide(module: nn.Module) -> Iterator[None]:
    """Weights of half precision are float32 inside, and are rounded to their own dtype at the end."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}.values()
    narrow = [(t, t.dtype) for t in tensors if t.is_floating_point() and t.dtype.itemsize < 4]
    for tensor, _ in narrow:
        tensor.grad, tensor.data = None, tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.grad, tensor.data = None, tensor.data.to(dtype)


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise InputError("freeze: every parameter is frozen, nothing is left to train")
    return torch.optim.AdamW(trained, lr=training.lr, weight_decay=training.weight_decay, fused=True)


def _step(
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    training: Training,
    *,
    step: int,
    folder: Path | None,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = training.lr * training.rate(step)
    optimizer.zero_grad(set_to_none=True)
    loss: Tensor = module(rows)
    value = float(loss.detach())
    if not math.isfinite(value):
        kept = f"the last checkpoint is kept in {folder}" if folder else "nothing was saved"
        raise TrainingError(
            f"loss: expected a finite number, found {value} at step {step}; {kept}; "
            f"try a smaller learning rate than {training.lr:g}, or precision no"
        )
    accelerator.backward(loss)
    if training.clip:
        accelerator.clip_grad_norm_(module.parameters(), training.clip)
    optimizer.step()
    return value


def _accelerator(precision: Precision, device: torch.device | None) -> Accelerator:
    """A fresh one: accelerate keeps one state a process and refuses another precision or device later on."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=device is not None and device.type == "cpu")
    accelerator.device_placement = device is None or accelerator.num_processes > 1
    return accelerator


@contextlib.contextmanager
def _own_noise() -> Iterator[None]:
    """Leave the caller's random state as it was."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


# ------------------------------------------------------------------------------------------ checkpoints


def _save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    watch: object,
    training: Training,
    losses: list[float],
    finished: bool,
) -> None:
    """Write the folder `checkpoint`, replaced as a whole; tied weights are stored once."""
    fresh, target = folder / "checkpoint.new", folder / "checkpoint"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_named(module), fresh / "model.safetensors")
    state = {
        f"{j}.{key}": value
        for j, slot in optimizer.state_dict()["state"].items()
        for key, value in slot.items()
        if isinstance(value, Tensor)
    }
    save_file(state, fresh / "optimizer.safetensors")
    seen, kept = watch.state() if isinstance(watch, Watch) else ({}, [])
    save_file({str(i): tensor for i, tensor in enumerate(kept)}, fresh / "watch.safetensors")
    progress = {
        "step": len(losses),
        "finished": finished,
        "training": asdict(training),
        "watch": seen,
        "scaler": scaler.state_dict() if scaler is not None else {},
        "losses": losses,
    }
    (fresh / "progress.json").write_text(json.dumps(progress, indent=1))
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)


def _restore(
    folder: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, watch: object
) -> tuple[list[float], bool]:
    """Fill module, optimiser and watch; the losses so far, and whether the training has ended."""
    if folder is None or not (folder / "checkpoint" / "progress.json").is_file():
        return [], False
    checkpoint = folder / "checkpoint"
    progress: dict[str, Any] = json.loads((checkpoint / "progress.json").read_text())
    saved = load_file(checkpoint / "model.safetensors")
    with torch.no_grad():
        for name, weight in _named(module).items():
            weight.copy_(saved[name])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(checkpoint / "optimizer.safetensors").items():
        j, key = name.split(".", 1)
        slots.setdefault(int(j), {})[key] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and progress["scaler"]:
        scaler.load_state_dict(progress["scaler"])
    if isinstance(watch, Watch):
        kept = load_file(checkpoint / "watch.safetensors")
        watch.load(progress["watch"], [kept[str(i)] for i in range(len(kept))])
    return [float(loss) for loss in progress["losses"]], bool(progress["finished"])


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in module.named_parameters()}
