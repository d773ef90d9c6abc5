"""ELMo read word by word from its published files, in plain NumPy: what our network must equal.

Written from the paper and the layout of the files alone: their order of gates, their bias of the forget gate.
"""

import numpy as np

BOUNDARIES = ([259, 257, 260], [259, 258, 260])


def word_vector(weights, characters, filters, highways):
    """(P,) of 50 character ids, 1..261."""
    table = np.concatenate([np.zeros_like(weights["char_embed"][:1]), weights["char_embed"]])
    spelled = table[characters]  # (50, size)
    found = []
    for i, (width, number) in enumerate(filters):
        kernel, bias = weights[f"CNN/W_cnn_{i}"][0], weights[f"CNN/b_cnn_{i}"]
        at_each = [
            [(spelled[start : start + width] * kernel[:, :, k]).sum() + bias[k] for k in range(number)]
            for start in range(len(spelled) - width + 1)
        ]
        found.append(np.maximum(np.max(at_each, 0), 0))
    x = np.concatenate(found)
    for i in range(highways):
        carry = sigmoid(x @ weights[f"CNN_high_{i}/W_carry"] + weights[f"CNN_high_{i}/b_carry"])
        new = np.maximum(x @ weights[f"CNN_high_{i}/W_transform"] + weights[f"CNN_high_{i}/b_transform"], 0)
        x = carry * new + (1 - carry) * x
    return x @ weights["CNN_proj/W_proj"] + weights["CNN_proj/b_proj"]


class Direction:
    """The LSTMs of one direction, with the state of one row."""

    def __init__(self, weights, direction, layers, cell_clip, projection_clip, residual):
        prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{{}}/LSTMCell/"
        self.layers = [
            [weights[prefix.format(layer) + name] for name in ("W_0", "B", "W_P_0")] for layer in range(layers)
        ]
        self.cells = [np.zeros(len(p)) for _, _, p in self.layers]
        self.outputs = [np.zeros(p.shape[1]) for _, _, p in self.layers]
        self.clips = cell_clip, projection_clip
        self.residual = residual
        self.clipped = [0, 0]

    def step(self, x):
        """The layers' outputs for one more word."""
        results = []
        for k, (weight, bias, projection) in enumerate(self.layers):
            i, j, f, o = np.split(np.concatenate([x, self.outputs[k]]) @ weight + bias, 4)
            cell = sigmoid(f + 1.0) * self.cells[k] + sigmoid(i) * np.tanh(j)
            self.cells[k] = np.clip(cell, -self.clips[0], self.clips[0])
            output = (sigmoid(o) * np.tanh(self.cells[k])) @ projection
            self.outputs[k] = np.clip(output, -self.clips[1], self.clips[1])
            self.clipped[0] += (cell != self.cells[k]).sum()
            self.clipped[1] += (output != self.outputs[k]).sum()
            x = self.outputs[k] + x if self.residual and k > 0 else self.outputs[k]
            results.append(x)
        return results


def sentence_vectors(weights, options, directions, characters):
    """(L, T, 2 P) of a sentence (T, 50); the two `Direction`s keep their state."""
    cnn = options["char_cnn"]
    signs = [np.array(sign + [261] * (50 - len(sign))) for sign in BOUNDARIES]
    words = [word_vector(weights, word, cnn["filters"], cnn["n_highway"]) for word in [signs[0], *characters, signs[1]]]
    ahead = [[word, *directions[0].step(word)] for word in words]
    back = [[word, *directions[1].step(word)] for word in words[::-1]][::-1]
    both = np.concatenate([np.array(ahead), np.array(back)], -1)  # (T + 2, L, 2 P)
    return both[1:-1].swapaxes(0, 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
