"""Flags: when each is raised."""

from __future__ import annotations

import numpy as np

from harness.leaderboard import flags

NAN = float("nan")


def stages(**values: list[float]) -> dict[str, np.ndarray]:
    return {name.replace("_", "-"): np.array(own, np.float32) for name, own in values.items()}


def test_square_is_flagged_by_images_that_survive_what_comes_before() -> None:
    assert flags.of_stages(stages(clean=[1, 1, 1], apgd_ce=[1, 1, 0], square=[0, 0, 0])) == {"square"}
    assert flags.of_stages(stages(clean=[1, 1, 1], apgd_ce=[1, 1, 0], square=[1, 1, 0])) == set()
    assert flags.of_stages(stages(clean=[1, 1, 1], square=[0, 0, 0])) == set()


def test_a_single_image_that_falls_to_square_is_no_flag_nor_are_two_of_a_thousand() -> None:
    for n, taken, expected in ((50, 1, set()), (50, 2, {"square"}), (1000, 2, set()), (1000, 3, {"square"})):
        survived = [float(image >= taken) for image in range(n)]
        assert flags.of_stages(stages(clean=[1] * n, apgd_ce=[1] * n, square=survived)) == expected


def test_an_image_that_square_was_tried_on_first_says_nothing_of_the_others() -> None:
    assert flags.of_stages(stages(clean=[1, 1], apgd_ce=[NAN, 1], square=[0, 1])) == set()
    assert flags.of_stages(stages(clean=[1] * 4, apgd_ce=[NAN, 1, 1, 1], square=[0, 0, 0, 1])) == {"square"}


def test_more_than_one_image_of_a_hundred_with_the_pixels_of_another_is_flagged() -> None:
    assert flags.of_images(distinct=99, n=100) == set()
    assert flags.of_images(distinct=98, n=100) == {"repeated"}
    assert flags.of_images(distinct=1, n=20) == {"repeated"}
    assert flags.of_images(distinct=1, n=1) == set()
