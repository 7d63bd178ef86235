"""Torch's random state is left as it was, and no GPU is taken possession of for that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.util.randomness import seeded


def test_draws_are_those_of_the_seed_and_go_on_as_if_the_block_had_not_been() -> None:
    torch.manual_seed(1)
    of_one = torch.rand(3)
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with seeded(1):
        assert torch.equal(torch.rand(3), of_one)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("is_cuda", "looked_at"), [(False, []), (True, ["cuda:1"])])
def test_a_gpu_is_looked_at_only_where_it_is_drawn_on(
    is_cuda: bool, looked_at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    like: Any = SimpleNamespace(is_cuda=is_cuda, device="cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", asked.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    with seeded(0, like):
        pass
    assert asked == looked_at
