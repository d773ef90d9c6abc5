"""The optimiser of BERT's authors."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class BertAdam(Optimizer):
    """Adam without bias correction, with decoupled weight decay (`optimization.py` of BERT's code).

    Without the correction the first updates are larger by up to (1 - beta1) / sqrt(1 - beta2): 3.2. A warm-up of 10,000
    steps hides that. In fine-tuning, which is short, it makes training unstable (Mosbach et al. 2021, Zhang et al.
    2021); `torch.optim.AdamW` is the better choice wherever the authors' numbers need not be had to the letter.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the averages of gradients and of their squares.
        eps: added to the root of the latter.
        weight_decay: times the learning rate, what is taken off the parameters.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["average"] = torch.zeros_like(parameter)
                self.state[parameter]["squares"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["average"] for parameter in parameters]
        squares = [self.state[parameter]["squares"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        first, second = group["betas"]
        torch._foreach_lerp_(averages, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        scales = torch._foreach_sqrt(squares)
        torch._foreach_add_(scales, group["eps"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, averages, scales, -group["lr"])
