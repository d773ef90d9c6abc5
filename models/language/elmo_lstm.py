"""Projected LSTMs with clips, two directions side by side (Sak et al. 2014; Peters et al. 2018)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FORGET_BIAS = 1.0  # added at run time, as TensorFlow's cell does; stored biases begin at 0


class ProjectedLSTM(nn.Module):
    """One layer of D independent LSTMs that read D streams of equal length in step.

    The state that recurs is a projection of the cells' output; both cells and projection are clipped. Gates stand in
    the order input, forget, output, candidate.

    Args:
        directions: number D.
        input_size: width I of what is read.
        cells: number H of cells.
        projection: width P of the output.
        cell_clip: cells stay within +-this.
        projection_clip: outputs stay within +-this.
    """

    def __init__(
        self,
        *,
        directions: int,
        input_size: int,
        cells: int,
        projection: int,
        cell_clip: float,
        projection_clip: float,
    ) -> None:
        super().__init__()
        self.cell_clip = cell_clip
        self.projection_clip = projection_clip
        self.input_weight = nn.Parameter(torch.empty(directions, input_size, 4 * cells))
        self.recurrent_weight = nn.Parameter(torch.empty(directions, projection, 4 * cells))
        self.bias = nn.Parameter(torch.empty(directions, 4 * cells))
        self.projection = nn.Parameter(torch.empty(directions, cells, projection))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill with fresh random weights: Glorot's uniform, of input and recurrence together, as TensorFlow's cell."""
        fan = self.input_weight.shape[1] + self.recurrent_weight.shape[1] + self.bias.shape[1]
        for weight in (self.input_weight, self.recurrent_weight):
            nn.init.uniform_(weight, -((6 / fan) ** 0.5), (6 / fan) ** 0.5)
        bound = (6 / sum(self.projection.shape[1:])) ** 0.5
        nn.init.uniform_(self.projection, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, output: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (D, T, B, P) and cells (D, T, B, H) of every step.

        Args:
            x: (D, T, B, I).
            output: (D, B, P), that of the step before.
            cell: (D, B, H), those of the step before.
        """
        directions, steps, rows, _ = x.shape
        cells = cell.shape[-1]
        forget = x.new_zeros(4 * cells)
        forget[cells : 2 * cells] = FORGET_BIAS
        # What does not depend on the recurrence: one product for all steps.
        gates = torch.baddbmm((self.bias + forget)[:, None], x.flatten(1, 2), self.input_weight)
        gates = gates.view(directions, steps, rows, -1)
        with torch.autocast(x.device.type, enabled=False):  # the recurrence keeps full precision
            return _Recurrence.apply(
                gates.to(cell.dtype),
                output,
                cell,
                self.recurrent_weight,
                self.projection,
                self.cell_clip,
                self.projection_clip,
            )


class _Recurrence(torch.autograd.Function):
    """The loop over time. Its backward gathers the gradients of all steps, and so takes one product per weight.

    Autograd would add up a gradient of the weights' size at each step, which costs more than the steps themselves.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gates: Tensor,
        output: Tensor,
        cell: Tensor,
        recurrent: Tensor,
        projection: Tensor,
        cell_clip: float,
        projection_clip: float,
    ) -> tuple[Tensor, Tensor]:
        directions, steps, rows, width = gates.shape
        cells = width // 4
        active = torch.empty_like(gates)  # (D, T, B, 4H)
        all_cells = gates.new_empty(directions, steps, rows, cells)
        outputs = gates.new_empty(directions, steps, rows, output.shape[-1])
        first = (output, cell)
        for t in range(steps):
            now = torch.baddbmm(gates[:, t], output, recurrent)
            now[..., : 3 * cells].sigmoid_()
            now[..., 3 * cells :].tanh_()
            active[:, t] = now
            enter, keep, leave, candidate = now.split(cells, -1)
            cell = torch.addcmul(enter * candidate, keep, cell).clamp_(-cell_clip, cell_clip)
            output = torch.bmm(leave * cell.tanh(), projection).clamp_(-projection_clip, projection_clip)
            all_cells[:, t] = cell
            outputs[:, t] = output
        ctx.save_for_backward(*first, active, all_cells, outputs, recurrent, projection)
        ctx.clips = (cell_clip, projection_clip)
        return outputs, all_cells

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_cells: Tensor) -> tuple[Tensor | None, ...]:
        output, cell, active, all_cells, outputs, recurrent, projection = ctx.saved_tensors
        cell_clip, projection_clip = ctx.clips
        steps, cells = active.shape[1], all_cells.shape[-1]
        before = torch.cat([cell[:, None], all_cells[:, :-1]], 1)
        enter, keep, leave, candidate = active.split(cells, -1)
        tanh = all_cells.tanh()
        # All factors that need no recurrence, for all steps at once.
        slope = active * (1 - active)
        slope[..., 3 * cells :] = 1 - candidate.square()
        slope *= torch.cat([candidate, before, tanh, enter], -1)
        through = leave * (1 - tanh.square())
        free_cell = all_cells.abs() < cell_clip
        free_output = outputs.abs() < projection_clip
        d_gates = torch.empty_like(active)
        d_projected = torch.empty_like(outputs)
        d_output, d_cell = torch.zeros_like(output), torch.zeros_like(cell)
        recurrent_t, projection_t = recurrent.transpose(1, 2), projection.transpose(1, 2)
        for t in reversed(range(steps)):
            d_now = (d_outputs[:, t] + d_output) * free_output[:, t]
            d_projected[:, t] = d_now
            d_hidden = torch.bmm(d_now, projection_t)
            d_cell = torch.addcmul(d_cell + d_cells[:, t], d_hidden, through[:, t]) * free_cell[:, t]
            d_gate = torch.cat([d_cell, d_cell, d_hidden, d_cell], -1) * slope[:, t]
            d_gates[:, t] = d_gate
            d_cell = d_cell * keep[:, t]
            d_output = torch.bmm(d_gate, recurrent_t)
        before = torch.cat([output[:, None], outputs[:, :-1]], 1)
        d_recurrent = torch.bmm(before.flatten(1, 2).transpose(1, 2), d_gates.flatten(1, 2))
        d_projection = torch.bmm((leave * tanh).flatten(1, 2).transpose(1, 2), d_projected.flatten(1, 2))
        return d_gates, d_output, d_cell, d_recurrent, d_projection, None, None
