"""Widths are proved before they are used, on networks planted with every way to depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.engine.fixed_width import LADDER, ON_A_CPU, ROOM, WASTE, FixedWidth, on_a_gpu, pad
from harness.errors import ModelError
from harness.models.demo import Demo

EXAMPLE = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Honest(nn.Module):
    """Answers for an image from this image alone, with the same bits at any width; it remembers what it was shown."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.weight = torch.randn(classes, 64, generator=torch.Generator().manual_seed(1))
        self.shown: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shown.append(x.detach())
        return self.own(x)

    def own(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        return (pixels[:, None, :] * self.weight).sum(2) + torch.sin(5 * pixels).sum(1, keepdim=True)


class Faulty(Honest):
    """Adds to the honest answers what an image has no part in."""

    def __init__(self, extra: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.extra(x)


def mean_of_batch(x: Tensor) -> Tensor:
    return x.mean()


def largest_of_batch(x: Tensor) -> Tensor:
    """In whatever order the images stand, the same."""
    return x.amax()


def place(x: Tensor) -> Tensor:
    return 1e-6 * torch.arange(len(x), dtype=x.dtype)[:, None]


def chance(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1)


def parity(x: Tensor) -> Tensor:
    """Widths of whole sixteens agree with each other, and no others."""
    return torch.tensor(0.0 if len(x) % 16 == 0 else 1e-3 * len(x))


def wide(x: Tensor) -> Tensor:
    """A last bit, from width 64 on."""
    return torch.tensor(1e-4 if len(x) >= 64 else 0.0)


@pytest.mark.parametrize(
    ("extra", "reference"),
    [(mean_of_batch, 1), (largest_of_batch, 1), (place, 1), (chance, 0), (parity, 16), (wide, 16)],
)
def test_reference_is_the_first_width_without_company_place_or_chance(
    extra: Callable[[Tensor], Tensor], reference: int
) -> None:
    torch.manual_seed(0)
    assert FixedWidth(Faulty(extra), EXAMPLE).reference == reference


def size(x: Tensor) -> Tensor:
    """Another answer for an image alone."""
    return torch.tensor(0.1 * (len(x) > 1))


@pytest.mark.parametrize(
    ("extra", "depends"),
    [
        (lambda x: 1e4 * mean_of_batch(x), True),
        (lambda x: 1e4 * largest_of_batch(x), True),
        (size, True),
        (lambda x: 1e4 * place(x), True),
        (place, False),  # by less than rounding
        (wide, False),
        (chance, False),  # which is another flag
    ],
)
def test_an_image_is_asked_about_alone_in_company_and_at_another_place(
    extra: Callable[[Tensor], Tensor], depends: bool
) -> None:
    torch.manual_seed(0)
    assert FixedWidth(Faulty(extra), EXAMPLE).depends_on_batch == depends


def test_a_network_that_answers_batches_alone_is_refused_in_the_harness_words() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ModelError, match="depends on its batch, and it answers none for an image alone") as caught:
        FixedWidth(network, EXAMPLE)
    assert caught.value.flag == "batch_dependent"


def test_answers_of_other_precisions_are_cast_once() -> None:
    for dtype in (torch.float64, torch.bfloat16):

        class Other(Honest):
            def forward(self, x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
                return super().forward(x).to(dtype)

        found = FixedWidth(Other(), EXAMPLE)(EXAMPLE)
        assert found.dtype == torch.float32
        assert torch.equal(found, Honest()(EXAMPLE).to(dtype).float())


def test_a_network_that_is_honest_in_narrow_batches_alone_gets_a_narrow_reference() -> None:
    def noisy_from_nine(x: Tensor) -> Tensor:
        return x.amax() if len(x) > 8 else torch.tensor(0.0)

    fixed = FixedWidth(Faulty(noisy_from_nine), EXAMPLE)
    assert fixed.reference == 8
    assert [width for width in LADDER if fixed.agrees(width)] == [1, 2, 4, 8]


def test_dropout_that_was_left_on_is_chance_and_every_width_is_allowed() -> None:
    fixed = FixedWidth(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train(), EXAMPLE)
    assert fixed.reference == 0
    assert all(map(fixed.agrees, LADDER))


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        (mean_of_batch, {1}),
        (largest_of_batch, {1}),
        (place, {1}),
        (parity, {width for width in LADDER if width % 16 == 0}),
        (wide, {width for width in LADDER if width < 64}),
    ],
)
def test_widths_with_other_bits_are_refused(extra: Callable[[Tensor], Tensor], allowed: set[int]) -> None:
    network = Faulty(extra)
    fixed = FixedWidth(network, EXAMPLE)
    assert {width for width in LADDER if fixed.agrees(width)} == allowed
    network.shown.clear()
    for n in (1, 3, 17, 40, 100):
        fixed(torch.rand(n, 1, 8, 8))
    assert {len(x) for x in network.shown} <= allowed


def test_a_difference_in_the_gradient_alone_is_seen() -> None:
    class Sideways(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * (1 + 1e-6 * (len(gradient) >= 32))

    class Network(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Sideways.apply(x))

    fixed = FixedWidth(Network(), EXAMPLE)
    assert fixed.reference == 16
    assert fixed.agrees(24)
    assert not fixed.agrees(32)


@given(st.integers(1, 300), st.integers(0, 10**6))
@settings(max_examples=25)
def test_answers_are_those_of_each_image_alone_and_padding_is_never_seen(n: int, seed: int) -> None:
    fixed = cut_of(parity, 1024)
    network = fixed.network
    assert isinstance(network, Honest)
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    list(fixed.cut(n))  # proves the widths
    network.shown.clear()
    assert torch.equal(fixed(x), network.own(x))
    shown = torch.cat(network.shown)
    assert {tuple(image) for image in shown.flatten(1).tolist()} == {tuple(image) for image in x.flatten(1).tolist()}
    assert len(shown) <= max(16, 1.5 * n + 16)


def test_rows_stay_with_their_images() -> None:
    class Scaled(Honest):
        def forward(self, x: Tensor, rows: Tensor) -> Tensor:  # type: ignore[override]
            return rows * self.own(x)

    network = Scaled()
    fixed = FixedWidth(network, EXAMPLE, torch.ones(len(EXAMPLE), 1))
    x, rows = torch.rand(37, 1, 8, 8), torch.rand(37, 1)
    assert torch.equal(fixed(x, rows), rows * network.own(x))


@given(st.integers(1, 3000), st.sampled_from([1, 3, 7, 16, 48, 1024]), st.sampled_from([parity, wide, mean_of_batch]))
@settings(max_examples=60)
def test_cut_covers_all_images_once_in_order(n: int, widest: int, extra: Callable[[Tensor], Tensor]) -> None:
    fixed = cut_of(extra, widest)
    batches = list(fixed.cut(n))
    assert batches[0][0] == 0
    assert batches[-1][1] == n
    assert all(stop == start for (_, stop, _), (start, _, _) in pairwise(batches))
    assert all(0 < stop - start <= width for start, stop, width in batches)
    for start, stop, width in batches:
        assert fixed.agrees(width)
        assert width <= max(widest, fixed.reference)
        assert width == fixed.reference or width <= max(WASTE * (stop - start), 1)


@cache
def cut_of(extra: Callable[[Tensor], Tensor], widest: int) -> FixedWidth:
    return FixedWidth(Faulty(extra), EXAMPLE, widest=widest)


@pytest.mark.parametrize("n", [1, 5, 16, 21, 50])
def test_gradients_flow_through_cut_and_padding_as_through_the_plain_network(n: int) -> None:
    """The demo network: convolutions, activations, and another order of sums at some widths."""
    network = demo()
    fixed = FixedWidth(network, EXAMPLE, widest=16)
    x = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weights = torch.rand(n, 10, generator=torch.Generator().manual_seed(3))
    found, plain = (torch.autograd.grad((f(x) * weights).sum(), x)[0] for f in (fixed, network))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fixed(x), network(x), rtol=1e-4, atol=1e-4)


@given(st.integers(1, 70), st.integers(0, 10**6))
@settings(max_examples=25)
def test_a_real_network_gives_an_image_the_same_bits_in_any_company(n: int, seed: int) -> None:
    fixed = fixed_demo()
    drawn = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=drawn, requires_grad=True)
    chosen = torch.randperm(n, generator=drawn)[: int(torch.randint(1, n + 1, (), generator=drawn))]
    answers, among = fixed(x), fixed(x[chosen])
    assert torch.equal(among, answers[chosen])
    both = [torch.autograd.grad(logits.logsumexp(1).sum(), x)[0][chosen] for logits in (answers, among)]
    assert torch.equal(*both)


@cache
def fixed_demo() -> FixedWidth:
    return FixedWidth(demo(), EXAMPLE)


def demo() -> nn.Module:
    return Demo(name="digits_plain").load().network.requires_grad_(False)


def test_graded_answers_are_taken_like_logits() -> None:
    network = Honest(classes=3)
    fixed = FixedWidth(network, EXAMPLE)
    assert fixed.classes == 3
    assert fixed(EXAMPLE[:5]).shape == (5, 3)


def test_a_network_without_a_gradient_is_compared_by_its_answers() -> None:
    class Detached(Honest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    fixed = FixedWidth(Detached(), EXAMPLE)
    assert fixed.reference == ON_A_CPU.references[0]
    assert fixed.fastest in LADDER
    assert not fixed(EXAMPLE).requires_grad


@pytest.mark.parametrize("extra", [parity, wide, mean_of_batch, chance])
@pytest.mark.parametrize("widest", [7, 16, 48, 1024])
def test_fastest_is_an_allowed_width(extra: Callable[[Tensor], Tensor], widest: int) -> None:
    fixed = FixedWidth(Faulty(extra), EXAMPLE, widest=widest)
    width = fixed.fastest
    assert width in LADDER
    assert fixed.agrees(width)
    assert width <= max(widest, fixed.reference, 1)


def test_fastest_stops_where_twice_the_width_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image takes half the time at each doubling up to 64, and all the same from there."""
    monkeypatch.setattr(FixedWidth, "_timed", lambda self, batch, times: max(64, len(batch[0])) * 1e-5)
    assert FixedWidth(Honest(), EXAMPLE).fastest == 64


@pytest.mark.parametrize(("n", "width"), [(1, 4), (3, 3), (2, 16)])
def test_padding_repeats_the_last_row(n: int, width: int) -> None:
    x = torch.rand(n, 2)
    padded = pad(x, width)
    assert padded.shape == (width, 2)
    assert torch.equal(padded[:n], x)
    assert (padded[n:] == x[-1]).all()


def test_on_a_gpu_the_reference_keeps_it_busy_and_follows_from_the_network_alone() -> None:
    """Of an image, CIFAR's ResNet-18 keeps 4.7 MB, ImageNet's ResNet-50 some 100 MB, the digits' network little."""
    assert on_a_gpu(4_700_000) == ((128, 64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128))
    assert on_a_gpu(100_000_000).references[0] == 8
    assert on_a_gpu(60_000) == (tuple(2**power for power in range(10, -1, -1)), (64, 128, 256, 512, 1024))
    assert on_a_gpu(60_000, widest=100).references[0] == 64
    assert on_a_gpu(ROOM * 3) == ((1,), (1,))


def test_where_few_widths_agree_the_rest_is_padding() -> None:
    """As on a GPU: only whole multiples of 64 images give the same bits."""

    def only_sixty_fours(x: Tensor) -> Tensor:
        return torch.tensor(0.0 if len(x) % 64 == 0 else 1e-3 * len(x))

    fixed = FixedWidth(Faulty(only_sixty_fours), EXAMPLE, widths=on_a_gpu(ROOM // 64))
    assert fixed.reference == 64
    assert [fixed.rows_for(n) for n in (1, 4, 5, 64, 65)] == [64, 64, 64, 64, 128]
    assert [width for _, _, width in fixed.cut(70)] == [64, 64]
    assert FixedWidth(Faulty(parity), EXAMPLE, widths=on_a_gpu(ROOM // 256)).rows_for(5) == 16


def test_rows_are_of_few_numbers_and_no_more_than_twice_as_many() -> None:
    """Each number of rows has a CUDA graph of its own."""
    fixed = FixedWidth(Faulty(parity), EXAMPLE, widths=on_a_gpu(ROOM // 256))
    found = {n: fixed.rows_for(n) for n in range(1, 257)}
    assert all(n <= rows < 2 * max(n, 16) for n, rows in found.items())
    assert set(found.values()) == {16, 32, 64, 128, 256}
    for rows in set(found.values()):
        assert {width for _, _, width in fixed.cut(rows)} <= {16, 32, 64, 128, 256}


def test_a_few_images_are_padded_to_the_narrowest_width_not_to_the_widest() -> None:
    """By brute force over n: an even width has the same bits, and no call is wider than twice what is asked for."""
    fixed = FixedWidth(Faulty(parity), EXAMPLE, widths=on_a_gpu(ROOM // 256))
    for n in range(1, 600):
        widths = [width for _, _, width in fixed.cut(n)]
        assert all(width <= max(2 * n, 16) for width in widths)
        assert sum(widths) <= max(2 * n, 16)
