"""Noise schedules and the solvers that step along them: DDIM, DPM-Solver++(2M) and UniPC.

Settings, their defaults and the numbers are those of diffusers' classes of these names, whose scheduler_config.json is
read. All steps are sums of tensors with factors that are known beforehand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Settings of diffusers' classes that must have the one value known here, whichever class has them.
CONSTANTS = {
    "algorithm_type": "dpmsolver++",
    "disable_corrector": [],
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "lower_order_final": True,
    "predict_x0": True,
    "shift_terminal": None,
    "solver_order": 2,
    "solver_p": None,
    "thresholding": False,
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": False,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
    "variance_type": None,
}
SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")  # each class takes its own for those of another
# What means nothing while what stands above is as it is.
WITHOUT_MEANING = {"dynamic_thresholding_ratio", "flow_shift", "sample_max_value", "sigma_max", "sigma_min"}
WITHOUT_MEANING |= {"skip_prk_steps", "time_shift_type"}
SMALLEST = 2.0**-24  # in place of a signal of 0, whose logarithm the solvers would ask for


class Scheduler:
    """A noise schedule of so many timesteps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule: Of the noise that was trained with.
        prediction_type: What the model predicts: 'epsilon' (the noise), 'v_prediction' (velocity) or 'sample'.
        timestep_spacing: 'leading', 'linspace' or 'trailing' (arXiv 2305.08891, table 2); None is the class's.
        steps_offset: Added to timesteps of the spacing 'leading'.
        rescale_betas_zero_snr: Whether the last timestep holds noise alone (arXiv 2305.08891, algorithm 1).
        set_alpha_to_one, clip_sample, clip_sample_range: Of DDIM alone.
        rest: Settings of diffusers' classes that are fixed here.

    Attributes:
        timesteps: Those that are stepped through, the noisiest first; see `set_timesteps`.

    Raises:
        ValueError: If a setting is none that is known here.
    """

    spacing = "linspace"

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        timestep_spacing: str | None = None,
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        set_alpha_to_one: bool = True,
        clip_sample: bool = True,
        clip_sample_range: float = 1.0,
        **rest: Any,
    ):
        for name, value in rest.items():
            known = name.startswith("_") or name in WITHOUT_MEANING or CONSTANTS.get(name, ...) == value
            if not known and not (name == "solver_type" and value in SOLVER_TYPES):
                raise ValueError(f"{name} = {value!r} is a setting that is not known here")
        power = {"linear": 1.0, "scaled_linear": 0.5}.get(beta_schedule)
        if power is None:
            raise ValueError(f"beta_schedule = {beta_schedule!r} is none of 'linear' and 'scaled_linear'")
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction_type = {prediction_type!r} is none of 'epsilon', 'v_prediction', 'sample'")
        self.spacing = timestep_spacing or self.spacing
        if self.spacing not in ("leading", "linspace", "trailing"):
            raise ValueError(f"timestep_spacing = {self.spacing!r} is none of 'leading', 'linspace' and 'trailing'")
        # In 32 bits, as the models were trained with.
        betas = torch.linspace(beta_start**power, beta_end**power, num_train_timesteps) ** (1 / power)
        alphas = torch.cumprod(1 - betas, 0)
        if rescale_betas_zero_snr:
            roots = alphas.sqrt()
            alphas = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        self.alphas_cumprod: list[float] = alphas.tolist()
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        self.steps_offset = steps_offset
        self.set_alpha_to_one = set_alpha_to_one
        self.clip = clip_sample_range if clip_sample else math.inf
        self.timesteps: list[int] = []

    def set_timesteps(self, steps: int) -> None:
        """Begins anew, with so many steps of those that were trained."""
        total = self.num_train_timesteps
        if self.spacing == "linspace":
            timesteps = self._linspace(steps)
        elif self.spacing == "leading":
            timesteps = self._leading(steps) + self.steps_offset
        else:
            timesteps = np.arange(total, 0, -total / steps).round() - 1
        self.timesteps = [min(max(int(t), 0), total - 1) for t in timesteps]

    def _linspace(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.num_train_timesteps - 1, steps + 1).round()[:0:-1]

    def _leading(self, steps: int) -> np.ndarray:
        return np.arange(steps, 0, -1) * (self.num_train_timesteps // (steps + 1))

    def signal_and_noise(self, t: int) -> tuple[float, float]:
        """How much of each latents hold at timestep t; their squares add up to 1."""
        alpha = self.alphas_cumprod[t]
        return alpha**0.5, (1 - alpha) ** 0.5

    def original_sample(self, latents: Tensor, output: Tensor, t: int) -> Tensor:
        """The latents without the predicted noise (DDIM, arXiv 2010.02502, eq. 12; velocity: arXiv 2202.00512)."""
        signal, noise = self.signal_and_noise(t)
        if self.prediction_type == "epsilon":
            return (latents - noise * output) / signal
        if self.prediction_type == "v_prediction":
            return signal * latents - noise * output
        return output

    def output_for(self, latents: Tensor, original_sample: Tensor, t: int) -> Tensor:
        """The model output of which `original_sample` makes this one."""
        signal, noise = self.signal_and_noise(t)
        if self.prediction_type == "epsilon":
            return (latents - signal * original_sample) / noise
        if self.prediction_type == "v_prediction":
            return (signal * latents - original_sample) / noise
        return original_sample

    def step(self, output: Tensor, index: int, latents: Tensor) -> Tensor:
        """The latents of the next timestep, from the model output at `timesteps[index]`.

        Steps are taken one after the other, from any on, after `set_timesteps`.
        """
        raise NotImplementedError


class DDIMScheduler(Scheduler):
    """DDIM without noise on the way (arXiv 2010.02502, eq. 12 with sigma = 0)."""

    spacing = "leading"

    def _linspace(self, steps: int) -> np.ndarray:
        return np.linspace(0, self.num_train_timesteps - 1, steps).round()[::-1]

    def _leading(self, steps: int) -> np.ndarray:
        return np.arange(steps - 1, -1, -1) * (self.num_train_timesteps // steps)

    def step(self, output: Tensor, index: int, latents: Tensor) -> Tensor:
        t = self.timesteps[index]
        following = t - self.num_train_timesteps // len(self.timesteps)
        last = 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]
        alpha = self.alphas_cumprod[following] if following >= 0 else last
        sample, (signal, noise) = self.original_sample(latents, output, t), self.signal_and_noise(t)
        if self.prediction_type == "epsilon":
            predicted = output
        elif self.prediction_type == "v_prediction":
            predicted = signal * output + noise * latents
        else:
            predicted = (latents - signal * sample) / noise
        if self.clip < math.inf:
            sample = sample.clamp(-self.clip, self.clip)
        return alpha**0.5 * sample + (1 - alpha) ** 0.5 * predicted


class _MultistepScheduler(Scheduler):
    """What the solvers share, which look back to the step before: samples predicted so far, and logarithms."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        if self.alphas_cumprod[-1] == 0:
            self.alphas_cumprod[-1] = SMALLEST
        self.samples: dict[int, Tensor] = {}

    def set_timesteps(self, steps: int) -> None:
        super().set_timesteps(steps)
        self.samples = {}

    def _at(self, index: int) -> tuple[float, float, float]:
        """Signal, noise, and the logarithm of their quotient at a step; after the last one there is no noise."""
        if index == len(self.timesteps):
            return 1.0, 0.0, math.inf
        signal, noise = self.signal_and_noise(self.timesteps[index])
        return signal, noise, math.log(signal) - math.log(noise)

    def _keep(self, index: int, sample: Tensor) -> None:
        self.samples = {index: sample} | {i: kept for i, kept in self.samples.items() if index - i < 3}

    def _first_order(self, index: int, latents: Tensor) -> Tensor:
        """From a step's latents to the next one's, as if the predicted sample stayed what it is."""
        signal, noise, log = self._at(index + 1)
        _, noise_here, log_here = self._at(index)
        return (noise / noise_here) * latents - (signal * math.expm1(log_here - log)) * self.samples[index]


class DPMSolverMultistepScheduler(_MultistepScheduler):
    """DPM-Solver++(2M), the midpoint method (arXiv 2211.01095, algorithm 2); the last step is of first order."""

    def step(self, output: Tensor, index: int, latents: Tensor) -> Tensor:
        self._keep(index, self.original_sample(latents, output, self.timesteps[index]))
        after = self._first_order(index, latents)
        if index - 1 in self.samples and index < len(self.timesteps) - 1:
            (signal, _, log), log_here, log_before = self._at(index + 1), self._at(index)[2], self._at(index - 1)[2]
            slope = (self.samples[index] - self.samples[index - 1]) * ((log - log_here) / (log_here - log_before))
            after = after - (0.5 * signal * math.expm1(log_here - log)) * slope
        return after


class UniPCMultistepScheduler(_MultistepScheduler):
    """UniPC of second order, B2(h) (arXiv 2302.04867, algorithms 5 and 7): each step corrects the one before."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.before: tuple[Tensor, int] | None = None  # the last step's latents, corrected, and its order

    def set_timesteps(self, steps: int) -> None:
        super().set_timesteps(steps)
        self.before = None

    def step(self, output: Tensor, index: int, latents: Tensor) -> Tensor:
        sample = self.original_sample(latents, output, self.timesteps[index])
        if self.before:
            latents = self._corrected(index, sample)
        self._keep(index, sample)
        order = min(2, len(self.timesteps) - index, 1 + (index - 1 in self.samples))
        after = self._first_order(index, latents)
        if order == 2:
            signal, _, log = self._at(index + 1)
            log_here, log_before = self._at(index)[2], self._at(index - 1)[2]
            ratio = (log_before - log_here) / (log - log_here)
            slope = (self.samples[index - 1] - sample) / ratio
            after = after - (0.5 * signal * math.expm1(log_here - log)) * slope
        self.before = latents, order
        return after

    def _corrected(self, index: int, sample: Tensor) -> Tensor:
        """The latents of a step, once more from those before, now that it is known what is predicted of them."""
        before, order = self.before
        signal, _, log = self._at(index)
        log_before = self._at(index - 1)[2]
        h = log_before - log
        share = math.expm1(h)
        latents = self._first_order(index - 1, before)
        change = sample - self.samples[index - 1]
        if order == 1:
            return latents - (0.5 * signal * share) * change
        ratio = (self._at(index - 2)[2] - log_before) / (log - log_before)
        # The integrals of exp times 1 and times the step, and the weights that make both exact.
        first = share / h - 1
        second = first / h - 0.5
        right = np.array([first / share, 2 * second / share])
        weights = np.linalg.solve(np.array([[1.0, 1.0], [ratio, 1.0]]), right)
        slope = (self.samples[index - 2] - self.samples[index - 1]) / ratio
        return latents - signal * share * (float(weights[0]) * slope + float(weights[1]) * change)
