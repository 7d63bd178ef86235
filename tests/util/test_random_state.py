"""The random state of torch is left as it was, and no GPU is taken possession of for that."""

from __future__ import annotations

import pytest
import torch

from harness.util.random_state import random_state_kept


def test_draws_go_on_as_if_the_block_had_not_been() -> None:
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    with random_state_kept():
        torch.manual_seed(1)
        torch.rand(3)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("initialised", "kept"), [(False, []), (True, [0, 1])])
def test_a_gpu_is_looked_at_only_where_this_process_uses_one(
    initialised: bool, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", asked.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
    with random_state_kept():
        pass
    assert asked == kept
