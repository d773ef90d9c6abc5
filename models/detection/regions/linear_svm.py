"""Linear support vector machines with hard negatives, as R-CNN trains them (`rcnn_train.m`).

The solver is liblinear (Fan et al., JMLR 2008) through scikit-learn: the one that the authors used, exact, and without
a step size. The loss is the hinge, not its square; the bias is the weight of a constant feature, and so regularised.
"""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

NEVER = -10.0  # margin of a class without objects


class HardNegativeSVM:
    """The SVM of one class, and the negatives that it finds hard.

    Negatives arrive picture by picture. Those that the present SVM does not put beyond its margin are kept; whenever
    enough have come in, the SVM is trained anew and negatives far beyond the margin are forgotten. The SVM that results
    is that of all negatives, but few of them are in memory at once.

    Args:
        positives: (n, D) float32, the features of the objects.
        c: weight of the losses beside the regulariser.
        positive_weight: factor on the losses of positives.
        bias_multiplier: the constant feature.
        keep_above: margin above which a negative is hard.
        forget_below: margin below which a kept negative is forgotten after a training.
        retrain_after: hard negatives between two trainings.
        seed: of the solver's order.

    Attributes:
        weight: (D,) float32.
        bias: float.
    """

    def __init__(
        self,
        positives: np.ndarray,
        *,
        c: float = 1e-3,
        positive_weight: float = 2.0,
        bias_multiplier: float = 10.0,
        keep_above: float = -1.0001,
        forget_below: float = -1.2,
        retrain_after: int = 2000,
        seed: int = 0,
    ) -> None:
        self.positives = positives
        self.c = c
        self.positive_weight = positive_weight
        self.bias_multiplier = bias_multiplier
        self.keep_above = keep_above
        self.forget_below = forget_below
        self.retrain_after = retrain_after
        self.seed = seed
        self.weight = np.zeros(positives.shape[1], np.float32)
        self.bias = 0.0 if len(positives) else NEVER
        self.negatives = [positives[:0]]
        self.trained = False
        self.added = 0  # since the last training

    def margins(self, features: np.ndarray) -> np.ndarray:
        """(n, D) -> (n,): w x + b."""
        return features @ self.weight + self.bias

    def add(self, negatives: np.ndarray) -> None:
        """Take the hard ones among the negatives of a picture (n, D), all of them before the first training."""
        if not len(self.positives):
            return
        hard = negatives[self.margins(negatives) > self.keep_above] if self.trained else negatives
        self.negatives.append(hard)
        self.added += len(hard)
        if self.added and (not self.trained or self.added > self.retrain_after):
            self._train()

    def finish(self) -> None:
        """Train with what came in since the last training."""
        if self.added:
            self._train()

    def _train(self) -> None:
        negatives = np.concatenate(self.negatives)
        self.weight, self.bias = train_svm(
            self.positives,
            negatives,
            c=self.c,
            positive_weight=self.positive_weight,
            bias_multiplier=self.bias_multiplier,
            seed=self.seed,
        )
        self.trained, self.added = True, 0
        self.negatives = [negatives[self.margins(negatives) >= self.forget_below]]


def train_svm(
    positives: np.ndarray,
    negatives: np.ndarray,
    *,
    c: float,
    positive_weight: float,
    bias_multiplier: float,
    seed: int = 0,
) -> tuple[np.ndarray, float]:
    """Minimise |(w, b / m)|^2 / 2 + c sum_i k_i max(0, 1 - y_i (w x_i + b)), k being 1 for negatives.

    Args:
        positives: (n, D) float32, y = 1.
        negatives: (m, D) float32, y = -1.
        c: weight of the losses.
        positive_weight: k of positives.
        bias_multiplier: m.
        seed: of the solver's order.

    Returns:
        w (D,) float32 and b.
    """
    solver = LinearSVC(
        loss="hinge",
        C=c,
        class_weight={1: positive_weight, -1: 1.0},
        intercept_scaling=bias_multiplier,
        max_iter=5000,
        random_state=seed,
    )
    labels = np.concatenate([np.ones(len(positives)), -np.ones(len(negatives))])
    with warnings.catch_warnings():
        # liblinear stops by its own count on data that can hardly be separated; its margins are good to three digits.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(np.concatenate([positives, negatives]).astype(np.float64), labels)
    return solver.coef_[0].astype(np.float32), float(solver.intercept_[0])
