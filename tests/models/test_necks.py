"""Necks: one call for all of them, and what each computes, against literal or independent values."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from models.necks.aug_fpn import AugFPN
from models.necks.bifpn import BiFPN
from models.necks.fpn import FPN
from models.necks.nas_fpn import MERGES, NASFPN, NASFPNCell
from models.necks.pafpn import PAFPN

WIDTHS = [8, 16, 24]
NECKS = [FPN, PAFPN, BiFPN, NASFPN, AugFPN]


def features(batch=2, side=16, widths=WIDTHS):
    return [torch.randn(batch, c, side >> i, side >> i) for i, c in enumerate(widths)]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("neck", NECKS)
def test_one_call_for_all_necks(neck):
    module = neck(WIDTHS, channels=8, num_levels=5)
    assert module.channels == 8
    inputs = [x.requires_grad_() for x in features()]
    pyramid = module(inputs)
    assert [x.shape for x in pyramid] == [(2, 8, s, s) for s in (16, 8, 4, 2, 1)]
    sum(x.square().mean() for x in pyramid).backward()
    # Every level and every weight takes part: one that does not would stop distributed training.
    assert all(x.grad.abs().sum() > 0 for x in inputs)
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("extra", ["pool", "conv_c5", "conv_p5"])
def test_pafpn_computes_the_bottom_up_path(extra):
    torch.manual_seed(0)
    neck = PAFPN(WIDTHS, channels=4, num_levels=5, extra=extra)
    plain = FPN(WIDTHS, channels=4, num_levels=3)
    plain.load_state_dict({k: v for k, v in neck.state_dict().items() if k.split(".")[0] in ("lateral", "output")})
    x = features()
    got = neck(x)
    p3, p4, p5 = plain(x)
    n4 = neck.fuse[0](p4 + neck.down[0](p3).relu()).relu()
    n5 = neck.fuse[1](p5 + neck.down[1](n4).relu()).relu()
    n6 = {"pool": n5[..., ::2, ::2], "conv_c5": None, "conv_p5": None}[extra]
    if n6 is None:
        n6 = neck.coarser[0](x[-1] if extra == "conv_c5" else n5)
    for ours, expected in zip(got, (p3, n4, n5, n6), strict=False):
        torch.testing.assert_close(ours, expected)


def test_pafpn_parameters_are_an_fpn_and_two_convolutions_a_step():
    with torch.device("meta"):
        widths = [256, 512, 1024, 2048]
        assert parameters(PAFPN(widths)) - parameters(FPN(widths)) == 3 * 2 * (256 * 256 * 9 + 256)


def test_nas_fpn_cell_is_the_published_one():
    """The merges in the notation of the paper's figure: result <- the two inputs, by name."""
    cell = NASFPNCell(1)
    for conv in cell.convs:
        conv[0], conv[1] = nn.Identity(), nn.Identity()
    p3, p4, p5, p6, p7 = (torch.rand(1, 1, s, s) + 0.1 for s in (16, 8, 4, 2, 1))

    def up(x, like):
        return F.interpolate(x, size=like.shape[-2:], mode="nearest")

    def gate(coarse, fine):
        return coarse + fine * coarse.amax().sigmoid()

    a = gate(up(p6, p4), p4)
    b = a + p4
    q3 = up(b, p3) + p3
    q4 = F.max_pool2d(q3, 2) + b
    q5 = gate(F.max_pool2d(q4, 2), F.max_pool2d(q3, 4)) + p5
    q7 = gate(F.max_pool2d(q5, 4), F.max_pool2d(b, 8)) + p7
    q6 = gate(up(q7, p6), F.max_pool2d(q5, 2))
    for ours, expected in zip(cell([p3, p4, p5, p6, p7]), (q3, q4, q5, q6, q7), strict=True):
        torch.testing.assert_close(ours, expected)


def test_nas_fpn_size():
    with torch.device("meta"):
        neck = NASFPN([512, 1024, 2048])
    lateral = sum(c * 256 + 512 for c in (512, 1024, 2048))
    assert parameters(neck) == lateral + 7 * len(MERGES) * (256 * 256 * 9 + 512) == 29_845_504


def test_nas_fpn_refuses_other_numbers_of_levels():
    with pytest.raises(UserError, match="num_levels to 5"):
        NASFPN(WIDTHS, num_levels=4)
