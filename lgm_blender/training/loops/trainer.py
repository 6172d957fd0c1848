"""What every training loop shares: time, learning rate, averaged weights, checkpoints, a log, notice of a collapse."""

from __future__ import annotations

import copy
import json
import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from torch import Tensor, nn

from ...core.errors import LGMError
from ..settings import RunSettings
from .muon import Muon, divided
from .plot import plot_log

LOG_EVERY = 200  # steps
SAVE_EVERY = 60.0  # seconds
FREE_STEPS = 3  # of a timed run, before its time starts
MUON_FASTER = 5  # a good learning rate of Muon's, in units of AdamW's
SPIKE = 10.0  # times the usual gradient: a step is left out


class Clock:
    """The progress of a run that is bounded by time or by steps: 0 at its start, 1 at its end.

    A timed run's first steps are free: they compile the model, which can take two minutes.

    Args:
        seconds, until, steps: See RunSettings.
    """

    def __init__(self, seconds: float = math.inf, steps: int | None = None, until: float | None = None):
        self.seconds = seconds
        self.until = until
        self.steps = steps
        self.ticks = 0  # in this process
        self.seconds_before = 0.0  # before this process resumed
        self.start = time.monotonic()

    def tick(self, steps_done: int) -> float:
        """How much of the run is over, 0 to 1; called once before each step."""
        self.ticks += 1
        if self.steps is not None:
            return min(1.0, steps_done / self.steps)
        if self.ticks <= FREE_STEPS:
            self.start = time.monotonic()
            if self.until is not None:
                self.seconds = self.seconds_before + max(1.0, self.until - time.time())
        return min(1.0, self.elapsed / self.seconds)

    @property
    def elapsed(self) -> float:
        """The seconds that count."""
        return self.seconds_before + time.monotonic() - self.start


def cosine_schedule(step: int, progress: float, warmup: int = 300, floor: float = 0.02) -> float:
    """The factor of the learning rate: linear warm-up over steps, then a cosine over the run's progress."""
    decay = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return min(1.0, (step + 1) / warmup) * decay


class AveragedWeights:
    """An exponential moving average of a model's weights, in fp32."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.share = torch.zeros((), device=next(model.parameters()).device)  # of the newest weights

    def count(self, step: int) -> None:
        """Before `update` after a step; the first steps count more, so that the start is forgotten."""
        self.share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        mine, theirs = list(self.model.parameters()), [p.detach() for p in model.parameters()]
        change = torch._foreach_sub(theirs, mine)
        torch._foreach_mul_(change, self.share)
        torch._foreach_add_(mine, change)


class Recorded:
    """A function of the device alone, recorded as a CUDA graph: the host then starts it as one thing.

    A step of a small model is hundreds of small kernels, which the host takes longer to start than the GPU to run.

    Args:
        function: Takes tensors of always the same shapes and gives None or a dict of tensors; what else it reads or
            writes are tensors that stay where they are. The first calls run as they are: they compile, and make what
            stays. Later ones give the same tensors, with new values.
        enabled: Whether it is recorded at all; never without CUDA.
    """

    WARM = 3  # calls before the recording

    def __init__(self, function: Callable[..., dict[str, Tensor] | None], enabled: bool = True):
        self.function, self.enabled, self.calls = function, enabled, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[Tensor] = []
        self.result: dict[str, Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor] | None:
        self.calls += 1
        if not self.enabled or self.calls <= self.WARM:
            return self.function(*inputs)
        if self.graph is None:
            self.inputs = [x.clone() for x in inputs]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.result = self.function(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result


class Log:
    """A JSON line per entry, in a file and on the console."""

    def __init__(self, path: Path):
        self.path = path
        self.start = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, **values) -> None:
        """Write numbers; the seconds since the start are added."""
        values = {"seconds": round(time.monotonic() - self.start, 1), **values}
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def processes() -> PartialState:
    """The processes of `accelerate launch` and their devices; to be asked before any other state of accelerate's.

    PartialState alone leaves `--cpu` to Accelerator, which then finds two main processes.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def process_device() -> torch.device:
    """This process's device; "cpu" on a CPU, for safetensors doesn't know accelerate's "cpu:0"."""
    device = processes().device
    return torch.device("cpu") if device.type == "cpu" else device


def fast_arithmetic() -> None:
    """Let matrix products and convolutions on a GPU use TF32, and the fastest algorithms for pictures of one size."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def check_resumed(output: Path, resume: bool) -> None:
    """Raises LGMError if a folder holds a training that is not to be resumed."""
    if (output / "checkpoint.pt").exists() and not resume:
        raise LGMError(f"{output} already holds a training. Add --resume to continue it, or choose another folder.")


class Trainer:
    """Runs a model's training on one GPU or, under `accelerate launch`, on several.

    A loop goes over it, and ends each turn with `step(loss, ...)`:

        for progress in trainer:
            trainer.step(loss(trainer.model, trainer.generator), psnr=...)

    The generators are seeded anew at each step, from the run's seed, the step and the process alone. So a resumed run
    gives the numbers of one that was never interrupted, and the processes get different ones.

    Args:
        model: What is trained, on the CPU or the device.
        output: Folder for checkpoint.pt and log.jsonl.
        settings: The run's.
        betas: Of AdamW.
        weight_decay: For matrices and kernels; biases and norms have none.
        warmup: Steps of it.

    Attributes:
        model: For the forward pass; gradients are averaged over the processes.
        average: The averaged weights, what is kept in the end.
        generator: On the device.
        host_generator: On the CPU, for what the host decides: it must not wait for the device.
        steps_done: How many steps lie behind, in all.
    """

    def __init__(
        self,
        model: nn.Module,
        output: Path,
        settings: RunSettings,
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup: int = 300,
    ):
        self.accelerator = Accelerator(mixed_precision="no")
        self.device = self.accelerator.device
        # Several processes exchange gradients on the way, which is not recorded.
        self.graphs = settings.graphs and self.device.type == "cuda" and self.accelerator.num_processes == 1
        self.output, self.settings, self.warmup = Path(output), settings, warmup
        self.bare = model.to(self.device)
        self.average = AveragedWeights(self.bare)
        matrices, others = divided(self.bare) if settings.optimizer == "muon" else ([], list(self.bare.parameters()))
        others = [p for p in others if p.requires_grad]
        adamw = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self._learning_rate(),
            betas=betas,
            fused=True,
            capturable=self.graphs,
        )
        self.optimizers = [adamw]
        if matrices:
            self.optimizers.append(
                Muon(matrices, lr=self._learning_rate(), faster=MUON_FASTER, weight_decay=weight_decay)
            )
        self.clock = Clock(settings.seconds, settings.steps, settings.until)
        self.steps_done, self.progress = 0, 0.0
        self.generator, self.host_generator = torch.Generator(self.device), torch.Generator()
        self.saved = time.monotonic()
        self.sums: dict[str, list[Tensor]] = {}
        self.calmest = math.inf  # the smallest mean gradient norm so far
        self.usual = torch.full((), math.inf, device=self.device)  # the gradient norm of late; on the device
        self.warm = torch.zeros((), dtype=torch.bool, device=self.device)  # whether the warm-up is over
        self.update = Recorded(self._update, self.graphs)
        self.reported = time.monotonic(), 0  # when the last report was, and after how many steps
        self.checkpoint = self.output / "checkpoint.pt"
        check_resumed(self.output, settings.resume)
        if self.checkpoint.exists():
            self._load()
        self.log = Log(self.output / "log.jsonl") if self.main else None
        self.model = self.accelerator.prepare_model(self.bare)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    def autocast(self) -> torch.autocast:
        """bf16 on a GPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def __iter__(self) -> Iterator[float]:
        """The run's progress before each step, 0 to 1."""
        while (progress := self._tick()) < 1:
            self.progress = progress
            if self.clock.ticks <= FREE_STEPS + 2:  # until then it compiles
                self.reported = time.monotonic(), self.steps_done
            processes, rank = self.accelerator.num_processes, self.accelerator.process_index
            seed = (self.settings.seed * 1_000_003 + self.steps_done) * processes + rank
            self.generator.manual_seed(seed)
            self.host_generator.manual_seed(seed)
            learning_rate = self.settings.learning_rate * cosine_schedule(self.steps_done, progress, self.warmup)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                if self.graphs:
                    group["lr"].fill_(learning_rate * group.get("faster", 1.0))
                else:
                    group["lr"] = learning_rate * group.get("faster", 1.0)
            yield progress

    def _learning_rate(self) -> float | Tensor:
        """What an optimizer keeps: where steps are recorded a tensor, which they read anew."""
        value = self.settings.learning_rate
        return torch.tensor(value, device=self.device) if self.graphs else value

    def _tick(self) -> float:
        progress = self.clock.tick(self.steps_done)
        if self.accelerator.num_processes > 1 and self.clock.steps is None:
            if (self.clock.ticks - 1) % 10:  # clocks differ, and all must end at the same step
                return self.progress
            progress = float(broadcast(torch.tensor(progress, device=self.device, dtype=torch.float64)))
        return progress

    def step(self, loss: Tensor, **values: Tensor) -> bool:
        """Backward pass, gradient clipped to 1, one step.

        A step changes nothing if its gradient is not finite or, after the warm-up, over SPIKE times that of late:
        clipping leaves such a gradient's direction, and Muon knows nothing else of it.

        Args:
            loss: A number; without a gradient if `backward` has been called already.
            values: What the log shows the means of.

        Returns:
            Whether a checkpoint was written: time for a sample picture.

        Raises:
            LGMError: If the training has collapsed; the sentence says how.
        """
        if loss.requires_grad:
            self.backward(loss)
        self.warm.fill_(self.steps_done > self.warmup)
        self.average.count(self.steps_done)
        done = self.update()
        self.steps_done += 1
        for name, value in {**values, "loss": loss, **done}.items():
            self.sums.setdefault(name, []).append(value.detach().clone() if self.graphs else value.detach())
        if self.steps_done % LOG_EVERY == 0:
            self._report()
        if self.main and time.monotonic() - self.saved > SAVE_EVERY:
            self.save()
            return True
        return False

    def backward(self, loss: Tensor) -> None:
        """The loss's gradients, in place of those before; recorded, they stay where they are in memory."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not self.graphs)
        self.accelerator.backward(loss)

    def _update(self) -> dict[str, Tensor]:
        """What happens to the weights once there are gradients. Nothing in here may ask the host."""
        norm = torch.nn.utils.clip_grad_norm_(self.bare.parameters(), 1.0).detach()
        finite = torch.isfinite(norm)
        spiked = finite & (norm > SPIKE * self.usual) & self.warm
        bad = (~finite | spiked).float()
        of_late = torch.where(torch.isfinite(self.usual), self.usual.lerp(norm, 0.02), norm)
        self.usual.copy_(torch.where(bad > 0, self.usual, of_late))
        for optimizer in self.optimizers:
            optimizer.found_inf = bad  # what GradScaler tells the optimizer, without asking the device
            optimizer.step()
        self.average.update(self.bare)
        return {"norm": norm, "bad": bad, "spiked": spiked}

    def _report(self) -> None:
        means = {name: torch.stack(values).float() for name, values in self.sums.items()}
        self.sums = {}
        good = means.pop("bad") == 0
        share, spiked = good.float().mean().item(), means.pop("spiked").mean().item()
        # A loss that came in on the way has fewer values.
        means = {name: v[good[-len(v) :]].mean().item() for name, v in means.items()} if share else {}
        if self.log:
            extra = {"bad_steps": round((1 - share) * LOG_EVERY)} if share < 1 else {}
            now, (before, first) = time.monotonic(), self.reported
            extra["steps_a_second"] = (self.steps_done - first) / (now - before)
            self.reported = now, self.steps_done
            self.log.write(step=self.steps_done, progress=self.progress, **means, **extra)
        advice = "Start again from the last good checkpoint or from nothing, with a lower --learning-rate."
        if share + spiked < 0.5:
            raise LGMError(f"Training collapsed by step {self.steps_done}: the loss is not finite. {advice}")
        if spiked >= 0.5 or (self.steps_done > self.warmup and means["norm"] > 100 * self.calmest):
            raise LGMError(f"Training collapsed by step {self.steps_done}: the gradient exploded. {advice}")
        if self.steps_done > self.warmup:
            self.calmest = min(self.calmest, means["norm"])
        if means.get("opacity", 1.0) < 0.02 and self.steps_done >= 1000:
            raise LGMError(
                f"Training collapsed by step {self.steps_done}: all Gaussians have become transparent. "
                f"Bring LPIPS in later (--lpips-from). {advice}"
            )

    def save(self) -> None:
        """Write checkpoint.pt; the one before stays until the new one is whole."""
        state = {
            "model": self.bare.state_dict(),
            "average": self.average.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.steps_done,
            "seconds": self.clock.elapsed,
            "calmest": self.calmest,
            "usual": self.usual,
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)
        with suppress(ImportError):  # without matplotlib there is no picture
            plot_log(self.log.path, self.output / "log.png")
        self.saved = time.monotonic()

    def _load(self) -> None:
        try:
            state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
            self.bare.load_state_dict(state["model"])
            self.average.model.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                for group in optimizer.param_groups:  # which the process before may have recorded, or not
                    group["lr"] = self._learning_rate()
                    if "capturable" in group:
                        group["capturable"] = self.graphs
            self.steps_done = state["step"]
            self.clock.seconds_before = state["seconds"]
            self.calmest = state["calmest"]
            self.usual.copy_(state["usual"])
        except (KeyError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise LGMError(
                f"{self.checkpoint} is damaged, or of another model, optimizer or version. Start in another folder, "
                "with --init of the weights there."
            ) from error

    def finish(self) -> None:
        """Save the checkpoint of the run's end; resumed, it ends at once."""
        if self.main:
            self.save()
        self.accelerator.wait_for_everyone()
