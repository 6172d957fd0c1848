"""AdamW for vectors and the first and last layers, Muon for the matrices and kernels between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Newton and Schulz's iteration with Keller Jordan's coefficients: singular values between 0 and 1 go near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices [N, R, C] with their singular values brought near 1 (0.7 to 1.2), in bf16 on a GPU."""
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def divided(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """A model's parameters: those for Muon, and those for AdamW (vectors, embeddings, layers with few channels).

    What reads or writes the data has few rows or columns, and its directions differ in meaning and size.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in model.parameters():
        if p.requires_grad:
            groups[p.ndim < 2 or id(p) in embeddings or min(p.shape[:2]) < 24].append(p)
    return groups


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised: all directions of a matrix learn at one speed, also those that gradients
    hardly show (K. Jordan et al., 2024). A kernel [O, I, h, w] counts as a matrix [O, I·h·w].

    Steps are as large as AdamW's at the same learning rate (Moonlight, arXiv 2502.16982, equation 4).

    Attributes:
        found_inf: A tensor that is 1 where this step must change nothing, as torch's fused optimizers take it. To be
            set before each step.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, **kept):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **kept})
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure=None):
        """One step. Matrices of one shape go together, so that a GPU has few and large multiplications."""
        skipped = self.found_inf.bool()
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for shape, params in shapes.items():
                grads = torch.stack([p.grad.flatten(1) for p in params]).float()
                grads = torch.where(skipped, 0.0, grads)
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros(grads.shape[1:], device=p.device)
                buffers = [self.state[p]["momentum"] for p in params]
                torch._foreach_lerp_(buffers, list(grads), 1 - group["momentum"])
                ahead = torch.stack(buffers).lerp_(grads, 1 - group["momentum"])  # Nesterov's
                update = orthogonalized(ahead).float() * (0.2 * max(grads.shape[1:]) ** 0.5)
                keep = 1 - group["lr"] * group["weight_decay"]
                update = torch.where(skipped, 0.0, update * group["lr"])  # which may be a tensor
                keep = torch.where(skipped, 1.0, keep)
                torch._foreach_mul_(params, keep)
                torch._foreach_sub_(params, [u.view(shape) for u in update.unbind()])
