"""The head that is called FCN today: a 3 x 3 convolution and a score for every cell."""

from collections.abc import Sequence

from torch import Tensor, nn


class FCNHead(nn.Sequential):
    """Convolution, batch normalisation, ReLU, dropout, score: the FCN of torchvision and MMSegmentation.

    Args:
        in_channels: of the backbone's features, finest first.
        num_classes: K.
        feature: which of the features is scored.
        dropout: before the score.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, feature: int = -1, dropout: float = 0.1
    ) -> None:
        channels = in_channels[feature]
        super().__init__(
            nn.Conv2d(channels, channels // 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels // 4, num_classes, 1),
        )
        self.feature = feature

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features -> scores (B, K, h, w) at the resolution of the chosen one."""
        return super().forward(features[self.feature])

    def class_parameters(self) -> list[str]:
        """Names of the parameters with a row per class."""
        return ["4.weight", "4.bias"]
