"""Learning-rate schedules: the factor on the base learning rate as a closed form of the optimiser step.

Closed forms, because a run that is resumed must find the same rate at the same step, whatever the state of the data
loader was when the total was asked for.
"""

import math
from dataclasses import dataclass


class Schedule:
    """A learning-rate schedule; `factor` multiplies the base learning rate."""

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """The factor at optimiser step `step` (0-based) of `total_steps`."""
        raise NotImplementedError(f"{type(self).__name__} must define factor()")


@dataclass
class WarmupCosine(Schedule):
    """Linear warm-up, then a cosine to zero (EfficientDet section 5.1).

    As in the authors' code the cosine runs over all steps: the warm-up covers its beginning and is not subtracted.

    Args:
        warmup_epochs: length of the warm-up; fractions are allowed.
        warmup_start: factor at step 0 (EfficientDet: .008 / .08 = .1).
        final: factor that the cosine ends at.
    """

    warmup_epochs: float = 1.0
    warmup_start: float = 0.1
    final: float = 0.0

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        warmup_steps = self.warmup_epochs * steps_per_epoch
        if step < warmup_steps:
            return self.warmup_start + (1 - self.warmup_start) * step / warmup_steps
        progress = min(step / max(total_steps, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class WarmupSteps(Schedule):
    """Linear warm-up, then a drop by `gamma` at each of `milestones` (the 1x and 2x recipes of detectors).

    Args:
        milestones: fractions of the whole training at which the rate drops (the 1x recipe: 8/12 and 11/12).
        gamma: the factor of each drop.
        warmup_steps: length of the warm-up in optimiser steps.
        warmup_start: factor at step 0.
        warmup_power: the factor of the warm-up is taken to this power (darknet's `burn_in`: 4).
    """

    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_start: float = 0.001
    warmup_power: float = 1.0

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = (self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps) ** self.warmup_power
        return warmup * self.gamma ** sum(step >= m * total_steps for m in self.milestones)


@dataclass
class Poly(Schedule):
    """Linear warm-up, then (1 - progress) to a power, the schedule of segmenters (Chen et al. 2017, DeepLab).

    Progress is counted over the whole training, the warm-up included.

    Args:
        power: 0.9 is customary; 1 is a linear decay.
        warmup_steps: length of the warm-up in optimiser steps.
        warmup_start: factor at step 0 of a warm-up.
    """

    power: float = 0.9
    warmup_steps: int = 0
    warmup_start: float = 0.0

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        decay = max(1 - step / max(total_steps, 1), 0.0) ** self.power
        if step < self.warmup_steps:
            decay *= self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps
        return decay


@dataclass
class Constant(Schedule):
    """The base learning rate throughout."""

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        return 1.0


@dataclass
class WarmupThenCosine(Schedule):
    """Linear warm-up, and a cosine over the steps that are left (GPT-3, appendix B; nanoGPT).

    Args:
        warmup_steps: length of the warm-up in optimiser steps; the first step has a rate already.
        final: factor that the cosine ends at.
    """

    warmup_steps: int = 100
    final: float = 0.1

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class WarmupLinear(Schedule):
    """BERT's schedule: a linear warm-up from 0, then linearly to 0 (`optimization.py` of the authors' code).

    As there, the decay is counted from step 0: where the warm-up ends the rate drops by the share of the steps that it
    took.

    Args:
        warmup: length of the warm-up in optimiser steps (pretraining: 10,000), or, below 1, as a share of all steps
            (fine-tuning: 0.1).
    """

    warmup: float = 10_000

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        """See the base class."""
        steps = int(self.warmup * total_steps) if self.warmup < 1 else self.warmup
        if step < steps:
            return step / steps
        return max(1 - step / max(total_steps, 1), 0.0)
