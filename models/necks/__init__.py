"""What stands between a backbone and the heads, by the short names that a configuration may use."""

from models.necks.aug_fpn import AugFPN
from models.necks.bifpn import BiFPN
from models.necks.fpn import FPN
from models.necks.nas_fpn import NASFPN
from models.necks.neck import Neck
from models.necks.normalised_fpn import NormalisedFPN
from models.necks.pafpn import PAFPN
from models.necks.recursive_fpn import IdentityNeck, RecursiveFPN, RecursivePyramid

__all__ = [
    "FPN",
    "NASFPN",
    "PAFPN",
    "AugFPN",
    "BiFPN",
    "IdentityNeck",
    "Neck",
    "NormalisedFPN",
    "RecursiveFPN",
    "RecursivePyramid",
]
