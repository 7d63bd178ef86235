"""Train the demo networks: python ci/train_demo.py [--out DIR] [--steps N].

One thread, fixed seeds and deterministic algorithms: on one machine the files come out byte for byte the
same. Another CPU may round differently, so the files are committed. Only the train split is used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from harness.datasets.digits import Digits
from harness.models.architectures.digits_net import DigitsNet

WEIGHTS = Path(__file__).parent.parent / "harness" / "models" / "weights"

TRAINED_AGAINST = {"digits_plain": 0.0, "digits_robust": 0.15}  # network: ε of the L∞ ball, in pixels
FEWER = (0, 1, 2, 3, 4)  # the digits that those called _0to4 have seen, to be transferred to the others

SEED = 0
STEPS = 1000
BATCH = 64
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
PGD_STEPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo networks.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="directory for the files")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps for each network")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for plain, eps in TRAINED_AGAINST.items():
        for name, digits in ((plain, None), (f"{plain}_0to4", FEWER)):
            network = train(eps, arguments.steps, digits)
            (arguments.out / f"{name}.safetensors").write_bytes(save(network.state_dict()))
            print(f"{name}: {arguments.steps} steps")


def train(eps: float, steps: int, digits: tuple[int, ...] | None = None) -> DigitsNet:
    """A network trained on random batches of the train split, attacked by PGD first where ``eps`` > 0."""
    source = Digits(split="train", classes=digits).open()
    images = source.read(tuple(range(len(source))))

    torch.manual_seed(SEED)
    network = DigitsNet(len(digits) if digits else 10)
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randperm(len(images))[:BATCH]
        x, y = images.x[chosen], images.y[chosen]
        if eps > 0:
            x = pgd(network, x, y, eps)
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(x), y))
        optimiser.step()
        schedule.step()
    return network


def pgd(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The images [n, c, h, w] after steps of the gradient's sign, randomly started, inside ball and box."""
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    step = 2.5 * eps / PGD_STEPS
    attacked = torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), low, high)
    for _ in range(PGD_STEPS):
        attacked.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(attacked), y), attacked)
        attacked = torch.clamp(attacked.detach() + step * gradient.sign(), low, high)
    return attacked


if __name__ == "__main__":
    main()
