"""The losses that APGD ascends, one for each slot of a batch, and their gradients in closed form.

Cross-entropy, the difference of logits ratio and its targeted form (arXiv 2003.01690, Eq. 6 and 7). With the logits
sorted, z₁ ≥ z₂ ≥ …, and the rival r the largest of the others or the target t:

    CE    −log softmax(z)_y
    DLR   (z_r − z_y) / (z₁ − z₃)
    DLRₜ  (z_t − z_y) / (z₁ − (z₃ + z₄) / 2)
"""

from __future__ import annotations

import torch
from torch import Tensor

CE, DLR, TARGETED_DLR = range(3)

TINY = 1e-12
"""Keeps a denominator from being 0, as in the library."""


class Losses:
    """Losses of slots.

    Args:
        slots: w.
        device: of all tensors.
    """

    def __init__(self, slots: int, device: torch.device | str) -> None:
        self.y, self._targets = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self._cross_entropy, self._targeted = torch.zeros(2, slots, dtype=torch.bool, device=device)
        self._spans = torch.zeros(slots, 4, device=device)
        self._kinds_of_spans = torch.tensor([[1, 0, -1, 0], [1, 0, -1, 0], [1, 0, -0.5, -0.5]]).to(device)
        self._ends = torch.tensor([-1.0, 1.0]).to(device)
        self._label_alone = torch.tensor([-1.0, 0, 0, 0, 0, 0]).to(device)

    def start(self, slots: Tensor, y: Tensor, targets: Tensor, kinds: Tensor) -> None:
        """Put losses into slots.

        Args:
            slots: int64 [k].
            y: labels, int64 [k].
            targets: int64 [k], of the targeted DLR.
            kinds: `CE`, `DLR` or `TARGETED_DLR`, int64 [k].
        """
        self.y[slots], self._targets[slots] = y, targets
        self._cross_entropy[slots], self._targeted[slots] = kinds == CE, kinds == TARGETED_DLR
        self._spans[slots] = self._kinds_of_spans[kinds]

    def ascent(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses, and their gradients with respect to the logits.

        A loss that a slot does not have leaves no trace in them, not even a NaN.

        Args:
            logits: [w, classes], of at least three classes for DLR and four for the targeted DLR.

        Returns:
            [w] and [w, classes].
        """
        cross_entropy = self._cross_entropy[:, None]
        logs = logits.log_softmax(1)
        largest, order = logits.topk(min(4, logits.shape[1]), dim=1)
        spans = self._spans[:, : order.shape[1]]
        rival = torch.where(order[:, 0] == self.y, order[:, 1], order[:, 0])
        other = torch.where(self._targeted, self._targets, rival)
        classes = torch.cat([self.y[:, None], other[:, None], order], dim=1)
        pair = classes[:, :2]
        slopes = ((largest * spans).sum(1, keepdim=True) + TINY).reciprocal()
        ratios = (logits.gather(1, pair) * self._ends).sum(1, keepdim=True) * slopes
        losses = torch.where(cross_entropy, -logs.gather(1, self.y[:, None]), ratios)

        # d ratio = (dz_r − dz_y − ratio · d span) · slope, and d CE = softmax(z) − 1_y
        parts = torch.cat([slopes * self._ends, (-ratios * slopes) * spans], dim=1)
        parts = torch.where(cross_entropy, self._label_alone[: parts.shape[1]], parts)
        of_class = classes[:, :, None] == torch.arange(logits.shape[1], device=logits.device)
        added = torch.where(of_class, parts[:, :, None], 0.0).sum(1)  # scatter_add_ takes a sort on a GPU
        return losses[:, 0], logs.exp() * cross_entropy + added
