"""Guided search: against brute force on random tables of all that its trials would show."""

from __future__ import annotations

from random import Random
from typing import ClassVar

import numpy as np
import pytest
from helpers.tables import Attacks, Averaged, Table, attacks, run
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.analysis.selection import CrossValidation, Scored, better, selection_sets
from harness.api.records import Steering
from harness.api.trial import CLEAN, INSPECT, OWN_STAGES, REPLAY, Answer, Attempt, Trial
from harness.scheduling.grid import grid, in_line
from harness.scheduling.guided import INSPECTED, GuidedSearch
from harness.util.hashing import sha256

BETAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@st.composite
def tables(draw: st.DrawFn, kind: type[Attacks] = Attacks, methods: bool = True) -> Table:
    """Few images and classes and coarse scores, so that ties are common; targets differ between steerings."""
    chance = Random(draw(st.integers(0, 2**32)))
    chosen = ("apgd-ce", "apgd-t", "square")[: draw(st.integers(1, 3))]
    targets, restarts = (draw(st.integers(0, 3)), draw(st.integers(1, 2))) if kind is Attacks else (1, 1)
    threat = kind(chosen=chosen, targets=targets, restarts=restarts)
    betas = draw(st.lists(st.sampled_from(BETAS), min_size=1, max_size=6, unique=True))
    cs = draw(st.sampled_from([(0.5,), (0.5, 1.0)])) if len(betas) < 4 else (0.5,)
    steerings = grid(betas, cs, "all", methods=["lora"] if methods and draw(st.booleans()) else [])
    images = tuple(7 + 2 * k for k in range(draw(st.integers(2, 12))))
    classes = range(1, draw(st.integers(2, 5)))
    share_fooled, share_alone = draw(st.sampled_from([0.02, 0.1, 0.4])), draw(st.sampled_from([0.0, 0.3, 1.0]))
    share_shared, salt = draw(st.sampled_from([0.0, 0.05, 0.5])), chance.random()

    def transfers(source: Trial, steering: Steering) -> bool:
        return Random(f"{salt} {source} {steering}").random() < share_shared

    table = Table(threat, steerings, images, {}, transfers=transfers)
    for image in images:
        ranking: tuple[int, ...] = ()
        everywhere: dict[object, float] = {}
        for steering in steerings:
            if not ranking or chance.random() < 0.3:
                ranking = tuple(chance.sample(classes, min(targets, len(classes))))
            margin = chance.choice([0.1, 0.2, float("nan")])
            table.answers[steering, image] = Answer(float(chance.random() < 0.8), margin, ranking)
            for trial in table.attempts(steering, image):
                alone = chance.choice([0.0, 0.5, 1.0]) if kind is Averaged else float(chance.random() > share_fooled)
                shared = everywhere.setdefault(trial.attempt, alone)
                table.values[trial] = alone if chance.random() < share_alone else shared
    return table


def sets_of(table: Table) -> list[np.ndarray]:
    n = len(table.images)
    return [where for where, _ in selection_sets(CrossValidation(folds=2), np.arange(n) % 2, 0)]


def search_of(table: Table, top: int | None = 1, required: tuple[Steering, ...] = ()) -> GuidedSearch:
    return GuidedSearch(table.threat, table.steerings, table.digests, sets_of(table), top=top, required=required)


def on(scored: Scored, where: np.ndarray) -> Scored:
    return Scored(scored.steering, scored.clean[where], scored.robust[where])


def contests(table: Table, top: int) -> list[tuple[np.ndarray, int]]:
    """The sets of images, each with its number of winners."""
    return [(np.arange(len(table.images)), top), *((where, 1) for where in sets_of(table))]


def steered(table: Table) -> list[Steering]:
    return [steering for steering in table.steerings if not steering.method]


def truth(table: Table, found: list[Trial], steering: Steering) -> Scored:
    """Return the scores of a steering against its own attacks and what was found at others, by brute force."""
    own = table.scored(steering)
    if steering.method:
        return own
    others = [one for one in found if one.steering != steering and not one.steering.method]
    lost = {one.image for one in others if table.transfers(one, steering)}
    return Scored(steering, own.clean, own.robust * np.array([image not in lost for image in table.images], np.float32))


def found_in(table: Table, rounds: list[list[Trial]]) -> list[Trial]:
    """Return the attacks that have fooled the network."""
    return [trial for trials in attacks(rounds) for trial in trials if not table.answer(trial).value]


def check_winners(search: GuidedSearch, table: Table, top: int, found: list[Trial]) -> None:
    exact = {one: truth(table, found, one) for one in table.steerings}
    bounds = {one: Scored(one, search.clean(one), search.robust(one)) for one in table.steerings}
    for where, winners in contests(table, top):
        expected = sorted(steered(table), key=lambda one: better(on(exact[one], where)))[:winners]
        assert sorted(steered(table), key=lambda one: better(on(bounds[one], where)))[:winners] == expected
        for winner in expected:
            assert search.finished(winner)


@given(tables(), st.integers(1, 3))
def test_the_winners_are_those_of_the_full_grid(table: Table, top: int) -> None:
    search = search_of(table, top)
    check_winners(search, table, top, found_in(table, run(search, table)))


@given(tables(kind=Averaged), st.integers(1, 3))
def test_the_winners_of_an_averaged_threat_are_those_of_the_full_grid(table: Table, top: int) -> None:
    search = search_of(table, top)
    run(search, table)
    check_winners(search, table, top, [])


@given(tables(), st.integers(1, 3))
def test_a_bound_is_never_below_what_it_bounds_and_exact_where_finished(table: Table, top: int) -> None:
    search = search_of(table, top, required=table.steerings[-1:])
    rounds, bounds = [], []
    while trials := search.ask():
        rounds.append(trials)
        bounds.append([(one, search.clean(one), search.robust(one)) for one in table.steerings])
        search.tell({trial: table.answer(trial, search.sources) for trial in trials})
    exact = {one: truth(table, found_in(table, rounds), one) for one in table.steerings}
    for steering, clean, robust in (bound for each in bounds for bound in each):
        assert (robust >= exact[steering].robust).all()
        assert (clean >= exact[steering].clean).all()
    for steering in table.steerings:
        if search.finished(steering):
            np.testing.assert_array_equal(search.robust(steering), exact[steering].robust)
            np.testing.assert_array_equal(search.own(steering), table.scored(steering).robust)
        else:
            assert search.own(steering) is None
        if steering.is_baseline or steering.method or steering == table.steerings[-1]:
            assert search.finished(steering)


@given(tables())
def test_no_trial_is_asked_for_twice_nor_one_that_there_is_not_nor_one_whose_image_is_decided(table: Table) -> None:
    search = search_of(table)
    told: set[Trial] = set()
    while trials := search.ask():
        assert len(set(trials)) == len(trials)
        assert not told.intersection(trials)
        for trial in trials:
            if trial.attempt.stage not in OWN_STAGES:
                own = table.attempts(trial.steering, trial.image)
                assert trial in own
                assert table.answers[trial.steering, trial.image].value > 0
                assert all(table.answer(one).value > 0 for one in own if one in told)
        told.update(trials)
        search.tell({trial: table.answer(trial, search.sources) for trial in trials})


def is_decided(table: Table, told: set[Trial], steering: Steering, image: int) -> bool:
    """Return whether an image is lost or has survived every attempt, by brute force."""
    own = table.attempts(steering, image)
    lost = table.answers[steering, image].value == 0 or any(table.answer(one).value == 0 for one in own if one in told)
    return lost or told.issuperset(own)


def landmarks(table: Table) -> set[Steering]:
    """Return the ends and the middle of the line."""
    line = [table.steerings[number] for number in in_line(table.steerings)]
    return {line[0], line[round((len(line) - 1) / 2)], line[-1]}


@given(tables(methods=False), st.integers(1, 3))
def test_a_steering_that_cannot_win_any_more_is_shown_what_fooled_others_and_explored_at_landmarks(
    table: Table, top: int
) -> None:
    """It cannot win a set on which as many others as it has winners are decided, and rank better than its bound."""
    table.transfers = lambda source, steering: False  # who may win would change with the replay
    search = search_of(table, top)
    told: set[Trial] = set()
    while trials := search.ask():
        may_win, all_known = {table.steerings[0]}, True
        bounds = [Scored(one, search.clean(one), search.robust(one)) for one in table.steerings]
        for where, winners in contests(table, top):
            ranked = [one.steering for one in sorted(bounds, key=lambda one: better(on(one, where)))]
            images = [table.images[position] for position in where]
            known = [bool(told) and all(is_decided(table, told, one, image) for image in images) for one in ranked]
            may_win.update(one for place, one in enumerate(ranked) if sum(known[:place]) < winners)
            all_known = all_known and all(known[:winners])
        fooled = {
            (one.image, one.attempt)
            for one in told
            if one.attempt.stage not in OWN_STAGES and not table.answer(one).value
        }
        for trial in trials:
            if trial.attempt.stage not in OWN_STAGES and trial.steering not in may_win:
                assert all_known
                explored = trial.attempt.stage == table.threat.stages[0] and trial.steering in landmarks(table)
                assert explored or (trial.image, trial.attempt) in fooled
        told.update(trials)
        search.tell({trial: table.answer(trial, search.sources) for trial in trials})


@settings(deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_the_course_depends_neither_on_the_order_of_the_answers_nor_on_what_else_is_known(
    table: Table, chance: Random
) -> None:
    first = search_of(table)
    alone = run(first, table)
    ledger = [(trial, table.answer(trial, first.sources)) for trials in alone for trial in trials]
    resumed, rounds = search_of(table), []
    while trials := resumed.ask():
        assert trials == resumed.ask()
        rounds.append(trials)
        chance.shuffle(ledger)
        resumed.tell(dict(ledger))
    assert rounds == alone


@given(tables())
def test_full_finishes_every_steering_stage_by_stage(table: Table) -> None:
    search = search_of(table, top=None)
    run(search, table)
    for steering in table.steerings:
        exact = table.scored(steering)
        assert search.finished(steering)
        np.testing.assert_array_equal(search.own(steering), exact.robust)
        found = np.stack(list(search.stages(steering).values()))
        assert not np.isnan(found).any()
        np.testing.assert_array_equal(found[-1], exact.robust)


@given(tables())
def test_a_stage_is_known_where_it_is_lost_or_every_attempt_so_far_was_survived(table: Table) -> None:
    search = search_of(table)
    told = {trial for trials in run(search, table) for trial in trials}
    for steering in table.steerings:
        found = search.stages(steering)
        for position, image in enumerate(table.images):
            for k, stage in enumerate(table.threat.stages):
                counted = table.threat.stages[: k + 1]
                own = [trial for trial in table.attempts(steering, image) if trial.attempt.stage in counted]
                known = [table.answer(trial).value for trial in own if trial in told]
                lost = table.answers[steering, image].value == 0 or 0 in known
                expected = 0 if lost else 1 if len(known) == len(own) else np.nan
                np.testing.assert_equal(found[stage][position], np.float32(expected))


@given(tables())
def test_a_replay_shows_all_that_fooled_an_image_under_other_steerings_once(table: Table) -> None:
    search = search_of(table)
    rounds = run(search, table)
    fooled = [one for one in found_in(table, rounds) if not one.steering.method]
    shown: dict[tuple[Steering, int], list[Trial]] = {}
    for trial, sources in search.sources.items():
        shown.setdefault((trial.steering, trial.image), []).extend(sources)
    for steering in steered(table):
        for position, image in enumerate(table.images):
            if search.finished(steering) and search.robust(steering)[position]:
                assert set(shown.get((steering, image), [])) == {one for one in fooled if one.image == image}
    assert all(len(set(sources)) == len(sources) for sources in shown.values())
    assert list(search.sources) == [trial for trials in rounds for trial in trials if trial.attempt.stage == REPLAY]
    same = {
        (trial.attempt.of, tuple((one.steering, one.attempt) for one in sources))
        for trial, sources in search.sources.items()
    }
    assert len(same) == len({of for of, _ in same}) == len({sources for _, sources in same})


def test_steerings_that_only_their_own_attack_believes_in_cost_a_forward_pass_each() -> None:
    """All but the baseline hide their gradients: one of them is attacked in full, the others fall to the replay."""
    steerings, images = grid([0.5, 0.6, 0.7, 0.8, 0.9], [0.5], "all"), tuple(range(20))
    answers = {(one, image): Answer(1.0, 0.1, (1, 2, 3)) for one in steerings for image in images}
    table = Table(Attacks(), steerings, images, answers, transfers=lambda source, steering: True)
    (baseline,) = (one for one in steerings if one.is_baseline)
    own = [trial for image in images[:15] for trial in table.attempts(baseline, image)]
    table.values.update(dict.fromkeys(own, 0.0))
    search = search_of(table)
    rounds = run(search, table)
    assert [one for one in steerings if search.finished(one) and not one.is_baseline] == [Steering(0.9)]
    for steering in steerings:
        assert search.robust(steering).sum() == 5
    assert all(len(trials) for trials in rounds)


def test_every_finished_steering_is_inspected_on_its_first_correct_images() -> None:
    steerings, images = grid([0.5], [0.5], "all"), tuple(range(45))
    answers = {(one, image): Answer(float(image % 5 > 0)) for one in steerings for image in images}
    table = Table(Attacks(chosen=("square",), targets=0), steerings, images, answers)
    last = run(search_of(table, required=steerings), table)[-1]
    correct = [image for image in images if image % 5][:INSPECTED]
    for steering in steerings:
        own = [trial for trial in last if trial.steering == steering]
        assert [trial.image for trial in own] == correct
        assert {trial.attempt.stage for trial in own} == {INSPECT}
        assert {trial.attempt.of for trial in own} == {sha256([table.digests[image] for image in correct])}


class Guarded(Attacks):
    kind: ClassVar[str] = "guarded"

    @property
    def sentinels(self) -> tuple[Attempt, ...]:
        return (Attempt("sentinel"),)


def test_sentinels_look_at_the_first_robust_images_of_every_finished_steering_and_score_nothing() -> None:
    steerings, images = grid([0.5], [0.5], "all"), tuple(range(45))
    answers = {(one, image): Answer(float(image % 5 > 0)) for one in steerings for image in images}
    values = {Trial(one, image, Attempt("apgd-ce")): 0.0 for one in steerings for image in images if image % 7 == 1}
    values |= {Trial(steerings[0], image, Attempt("sentinel")): 0.0 for image in (2, 3)}
    table = Table(Guarded(chosen=("apgd-ce",)), steerings, images, answers, values)
    search = search_of(table, required=steerings)
    last = run(search, table)[-1]
    robust = [image for image in images if image % 5 and image % 7 != 1]
    for steering in steerings:
        own = [one.image for one in last if one.steering == steering and one.attempt.stage == "sentinel"]
        assert own == robust[:INSPECTED]
        np.testing.assert_array_equal(search.robust(steering), table.scored(steering).robust)
        lost = 2 if steering == steerings[0] else 0
        np.testing.assert_array_equal(search.sentinels(steering), [0] * lost + [1] * (len(robust[:INSPECTED]) - lost))
        assert search.unit_test(steering) == 1


def test_the_unit_test_is_the_share_of_the_planted_examples_that_were_found() -> None:
    steerings, images = grid([0.5], [0.5], "all"), tuple(range(8))
    answers = {(one, image): Answer(1.0) for one in steerings for image in images}
    table = Table(Attacks(chosen=("square",), targets=0), steerings, images, answers)
    of = sha256([table.digests[image] for image in images])
    shown = dict(enumerate([1, 0, np.nan, np.nan, 1, 1, 1, 1]))
    table.values = {Trial(steerings[0], image, Attempt(INSPECT, of=of)): value for image, value in shown.items()}
    table.values |= {Trial(steerings[1], image, Attempt(INSPECT, of=of)): np.nan for image in images}
    search = search_of(table, required=steerings)
    assert search.unit_test(steerings[0]) is None
    run(search, table)
    assert search.unit_test(steerings[0]) == pytest.approx(5 / 6)
    assert search.unit_test(steerings[1]) is None


def test_a_threat_without_stages_has_clean_images_alone() -> None:
    steerings = grid([0.5], [0.5], "all")
    answers = {(one, image): Answer(0.25 * image) for one in steerings for image in range(3)}
    table = Table(Attacks(chosen=()), steerings, (0, 1, 2), answers)
    search = search_of(table)
    (clean,) = run(search, table)
    assert {trial.attempt.stage for trial in clean} == {CLEAN}
    assert all(search.finished(steering) for steering in steerings)
    np.testing.assert_array_equal(search.robust(steerings[1]), np.array([0, 0.25, 0.5], np.float32))
    assert search.own(steerings[0]) is None


@given(tables(kind=Averaged))
def test_an_averaged_stage_is_asked_for_on_all_images_at_once(table: Table) -> None:
    for trials in attacks(run(search_of(table), table)):
        for steering in {trial.steering for trial in trials}:
            own = [trial for trial in trials if trial.steering == steering]
            assert [trial.image for trial in own] == list(table.images)
            assert len({trial.attempt for trial in own}) == 1


@given(tables(), st.sampled_from([1, None]))
def test_nothing_remains_when_the_search_is_over(table: Table, top: int | None) -> None:
    search = search_of(table, top)
    assert search.remaining() >= len(table.images) * len(table.steerings)
    run(search, table)
    assert search.remaining() == 0


def test_negative_errors_are_bounded_by_zero() -> None:
    steerings = grid([0.5], [0.5], "all")
    answers = {(one, image): Answer(-1.0) for one in steerings for image in range(2)}
    table = Table(Averaged(chosen=("a", "b"), targets=0), steerings, (0, 1), answers)
    for steering in steerings:
        own = [trial for image in (0, 1) for trial in table.attempts(steering, image)]
        table.values.update(dict.fromkeys(own, -0.5 if steering.is_baseline else -1.0))
    search = GuidedSearch(table.threat, steerings, table.digests, [], top=1, most=0.0)
    run(search, table)
    assert not search.finished(steerings[1])  # one of two stages at −1, the other at most 0: a tie, and β = 1 wins it
    assert search.robust(steerings[1]) == pytest.approx(search.robust(steerings[0]))
