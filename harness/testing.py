"""Contract suites for plug-ins: what every model, dataset, threat and executor must pass, the built-in ones too.

Subclass the suite in a test file, override its fixture ``part``, and run pytest:

    from harness.testing import ThreatContract

    class TestMyThreat(ThreatContract):
        @pytest.fixture
        def part(self):
            return MyThreat(strength=0.1)

The docstring of a test says what it checks, and what goes wrong in a benchmark when it fails.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from harness.api import registry
from harness.api.attack import Attack, Trials, run_to_the_end
from harness.api.dataset import Dataset, Source
from harness.api.executor import Executor
from harness.api.model import Model, Scorable
from harness.api.part import Part
from harness.api.records import BASELINE, Batch, Steering
from harness.api.threat import Threat
from harness.api.trial import CLEAN, OWN_STAGES, Attempt, Result, Trial
from harness.api.work import Portion, Report, Task
from harness.engine.evaluate import evaluate
from harness.engine.fixed_width import FixedWidth
from harness.engine.numerics import reproducible
from harness.engine.session import NoNetwork
from harness.errors import DataError, ModelError
from harness.util.hashing import canonical
from harness.util.noise import Noise, key_of
from harness.util.threads import in_threads


class PartContract:
    """Contract of every part: registered, parsed from its own fields, picklable, with an identity in JSON.

    The suites below extend it; do not subclass it itself.
    """

    group: str
    """Entry-point group in which the part is registered, one of `harness.api.registry.GROUPS`."""

    @pytest.fixture
    def part(self) -> Part:
        """The part under test; override this fixture."""
        raise NotImplementedError("override the fixture `part` to return the part under test")

    def test_is_registered_under_its_kind(self, part: Part) -> None:
        """The part's ``kind`` is registered for its class.

        If not, a YAML cannot name it, or names another class: check the entry point in pyproject.toml, and that the
        package has been installed since.
        """
        assert registry.part(self.group, part.kind) is type(part)

    def test_is_parsed_from_its_own_fields(self, part: Part) -> None:
        """Parsing the part's own fields, as JSON, gives an equal part.

        If not, a field cannot be written in YAML, or is changed by parsing, so that a benchmark would score another
        part than its file says.
        """
        fields = part.model_dump(mode="json")
        assert registry.build(self.group, {"kind": part.kind} | fields, "here") == part

    def test_survives_pickling(self, part: Part) -> None:
        """A pickled copy is equal and has the same hash.

        If not, the part cannot be sent to a worker, or a worker would load it again for every cell.
        """
        received = pickle.loads(pickle.dumps(part))
        assert received == part
        assert hash(received) == hash(part)

    def test_identity_is_json_without_locations(self, part: Part) -> None:
        """``identity()`` is JSON, equal for equal parts, has the kind, and leaves ``location_fields`` out.

        If not, results in the ledger are not found again: after a rerun, or after files have moved.
        """
        identity = part.identity()
        assert canonical(identity) == canonical(copy.deepcopy(part).identity())
        assert identity["kind"] == part.kind
        assert not part.location_fields & identity.keys()


class ModelContract(PartContract):
    """Contract of a model: a network in eval mode, from images in [0, 1] to logits, that can be steered.

    Override ``part``, and ``shape`` if the model takes other images than 3×32×32. The model is loaded offline.
    """

    group = "models"
    shape: tuple[int, int, int] = (3, 32, 32)
    """Shape of one image, c×h×w."""

    @pytest.fixture
    def loaded(self, part: Model) -> Scorable:
        """The loaded model; nothing may be downloaded."""
        return part.load(offline=True)

    def test_yields_logits(self, loaded: Scorable) -> None:
        """The network returns finite logits [n, classes], and the same for the same images.

        If not, accuracy is not defined, or the network is randomised and attacks on it are unreliable.
        """
        x = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), reproducible():
            logits, again = loaded.network(x), loaded.network(x)
        assert logits.shape[0] == 3
        assert logits.ndim == 2
        assert logits.isfinite().all()
        assert torch.equal(logits, again)

    def test_an_image_has_the_bits_that_it_has_in_company(self, loaded: Scorable) -> None:
        """Batches of some width give an image the same logits and gradient, whatever else is in them and where.

        If not, the images are computed one at a time, which is slow. Batch statistics are a reason, and so is whatever
        else looks at the whole batch.
        """
        x = torch.rand(4, *self.shape, generator=torch.Generator().manual_seed(5))
        with reproducible():
            assert FixedWidth(loaded.network, x).reference > 1

    def test_is_in_eval_mode(self, loaded: Scorable) -> None:
        """No module is in training mode.

        If one is, dropout or batch statistics change its answers: call ``network.eval()`` in ``load``.
        """
        assert not any(module.training for module in loaded.network.modules())

    def test_hash_names_the_weights(self, part: Model, loaded: Scorable) -> None:
        """``sha256`` is a SHA-256, and the same when the model is loaded again.

        If not, the ledger takes every run for a new model and reuses nothing.
        """
        assert part.load(offline=True).sha256 == loaded.sha256
        assert len(bytes.fromhex(loaded.sha256)) == 32

    def test_baseline_is_the_untouched_network(self, loaded: Scorable) -> None:
        """At the baseline, ``steered`` returns the untouched network, bit for bit.

        If not, the baseline's row is that of another network, and so is every gain over it.
        """
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), reproducible():
            assert torch.equal(loaded.steered(BASELINE, x)(x), loaded.network(x))

    def test_steering_reaches_something(self, loaded: Scorable) -> None:
        """Some activation is steered, and β = 0.5 changes the logits.

        If not, every steering scores the baseline again: the network has no activation of the family, or computes it
        in a way that the steering does not see.
        """
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(2))
        coverage = loaded.coverage("all", x[:1])
        assert 0 < coverage.steered <= coverage.sites
        with torch.no_grad(), reproducible():
            assert not torch.equal(loaded.steered(Steering(0.5), x)(x), loaded.network(x))

    def test_is_compiled_as_what_it_is(self, loaded: Scorable) -> None:
        """``compiled`` hands one module to the compiler, and the network that it returns computes the same.

        If not, attacks with ``compile`` run on another network than the one that is judged.
        """
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(3))
        compiled: list[nn.Module] = []

        def compile(part: nn.Module) -> nn.Module:
            compiled.append(part)
            return part

        steered = loaded.steered(Steering(0.5), x)
        with torch.no_grad(), reproducible():
            assert torch.equal(loaded.compiled(steered, compile)(x), steered(x))
        assert len(compiled) == 1

    def test_in_normalised_space_it_is_the_same_network(self, loaded: Scorable) -> None:
        """Normalisation followed by the inner network computes what the whole network does, or the split is refused.

        If not, ``protocol: paper`` scores another network.
        """
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(4))
        try:
            inner, normalise = loaded.normalised_space()
        except ModelError:  # it does not say how it normalises
            return
        with torch.no_grad(), reproducible():
            assert torch.equal(inner.network(normalise(x)), loaded.network(x))

    def test_has_a_label(self, part: Model) -> None:
        """The name on the leaderboard is a single line, and not empty."""
        assert part.label
        assert "\n" not in part.label


class DatasetContract(PartContract):
    """Contract of a dataset: labelled images in [0, 1], readable by number.

    Override ``part`` with a dataset of at least three images with class labels. It is opened offline.
    """

    group = "datasets"

    @pytest.fixture
    def source(self, part: Dataset) -> Source:
        """The opened dataset; nothing may be downloaded."""
        return part.open(offline=True)

    def test_reads_images_in_the_unit_box(self, source: Source) -> None:
        """``read`` returns float32 images [n, c, h, w] in [0, 1], int64 labels from 0, and the numbers asked for.

        If not, a run refuses the data, or scores other images than it says. Leave normalisation to the model.
        """
        wanted = (2, 0, 1)
        batch = source.read(wanted)
        assert batch.x.dtype == torch.float32
        assert batch.x.ndim == 4
        assert 0 <= batch.x.min() <= batch.x.max() <= 1
        assert batch.y.dtype == torch.int64
        assert batch.y.shape == (3,)
        assert batch.y.min() >= 0
        assert tuple(batch.indices.tolist()) == wanted

    def test_slices_concatenate_to_the_whole(self, source: Source) -> None:
        """Reading in parts gives the images and labels that reading at once gives.

        If not, an image depends on its batch, and no result can be reproduced.
        """
        numbers = tuple(range(min(len(source), 20)))
        whole = source.read(numbers)
        slices = [source.read(numbers[:7]), source.read(numbers[7:])]
        assert torch.equal(whole.x, torch.cat([batch.x for batch in slices]))
        assert torch.equal(whole.y, torch.cat([batch.y for batch in slices]))

    def test_threads_read_what_one_reads(self, source: Source) -> None:
        """Several threads at once read what one does, if the source is ``concurrent``.

        If not, an image is mixed up with another one, on a GPU: leave ``concurrent`` False.
        """
        numbers = range(min(len(source), 20))
        threads = 4 if source.concurrent else 1
        each = in_threads(lambda number: source.read((number,)), [*numbers, *numbers], threads)
        whole = source.read((*numbers, *numbers))
        assert torch.equal(whole.x, torch.cat([batch.x for batch in each]))
        assert torch.equal(whole.y, torch.cat([batch.y for batch in each]))

    def test_subset(self, part: Dataset, source: Source) -> None:
        """``n`` chooses the first n images, in order, and more than there are is an error that names ``dataset.n``."""
        size = len(source)
        assert part.model_copy(update={"n": 3, "indices": None}).subset(size) == (0, 1, 2)
        with pytest.raises(DataError, match=r"dataset\.n"):
            part.model_copy(update={"n": size + 1, "indices": None}).subset(size)


class ThreatContract(PartContract):
    """Contract of a threat: stages that propose images within what it allows, each from its clean image and key alone.

    A stage has a step machine (``attack_machine``) or a function (``perturb``); the tests are the same for both.
    Override ``part``; override ``network`` and ``batch`` if the threat needs other images than 1×8×8.
    """

    group = "threats"

    @pytest.fixture
    def network(self) -> nn.Module:
        """A linear classifier of 1×8×8 images with 10 classes, easy to fool on some images and not on others."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)

    @pytest.fixture
    def batch(self, network: nn.Module) -> Batch:
        """Twelve images that the network classifies correctly."""
        x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return Batch(x, network(x).argmax(1), torch.arange(12))

    def test_names_its_stages(self, part: Threat) -> None:
        """Stage names are unique, none is one of the harness's own, and the reduction is "worst" or "mean".

        If not, results of two stages are taken for each other. A threat without stages scores clean accuracy alone.
        """
        assert len(set(part.stages)) == len(part.stages)
        assert not set(OWN_STAGES) & set(part.stages)
        assert part.reduction in ("worst", "mean")

    def test_attempts_belong_to_their_stage(self, part: Threat) -> None:
        """``attempts`` gives a stage's own attempts, each once, and the same for the same ranking of the classes.

        If not, an image is attacked twice in the same way, or by another stage than its row says.
        """
        ranking = (3, 1, 4, 0, 5, 9, 2, 6, 8)[: max(part.ranks, 1)]
        for stage in part.stages:
            attempts = part.attempts(stage, ranking)
            assert all(attempt.stage == stage for attempt in attempts)
            assert len(set(attempts)) == len(attempts)
            assert attempts == part.attempts(stage, ranking)
            assert all(attempt.target in (-1, *ranking) for attempt in attempts)

    def test_stages_have_identities_of_their_own(self, part: Threat) -> None:
        """``stage_identity`` is JSON, and no two stages have the same.

        If not, the results of one stage are taken from the ledger for another one, or not found again.
        """
        identities = [canonical(part.stage_identity(stage)) for stage in part.stages]
        assert len(set(identities)) == len(identities)

    @pytest.mark.filterwarnings("ignore")
    def test_proposes_an_image_for_each(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """Every stage returns float32 images of the same shape, in [0, 1], that pass the threat's own ``check``.

        The given images must be unchanged. If an image is invalid, the harness refuses it and the model's row says
        ``failed``.
        """
        before = batch.x.clone()
        for stage in part.stages:
            proposed = _proposed(part, stage, network, batch)
            assert proposed.shape == batch.x.shape
            assert proposed.dtype == torch.float32
            assert proposed.min() >= -1e-6
            assert proposed.max() <= 1 + 1e-6
            part.check(batch.x, proposed)
        assert torch.equal(batch.x, before)

    def test_names_its_attempts(self, part: Threat) -> None:
        """``attempts`` are of their stage and different, and ``stage_identity`` is JSON, equal for equal threats.

        If not, one attempt is taken for another, or results in the ledger are not found again.
        """
        ranking = tuple(range(1, 1 + min(part.ranks, 9)))
        for stage in part.stages:
            attempts = part.attempts(stage, ranking)
            assert {attempt.stage for attempt in attempts} <= {stage}
            assert len(set(attempts)) == len(attempts)
            identity = canonical(part.stage_identity(stage))
            assert identity == canonical(copy.deepcopy(part).stage_identity(stage))

    @pytest.mark.filterwarnings("ignore")
    def test_same_key_same_image(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """A stage makes the same of an image with the same key, and leaves the global random state as it was.

        If not, results depend on what ran before: draw from ``noise``, and where a library draws for
        you, call it in ``torch.random.fork_rng()``, an image at a time, with a seed that was drawn from ``noise``.
        """
        for stage in part.stages:
            torch.manual_seed(5)
            with reproducible():
                once = _proposed(part, stage, network, batch)
                drawn = torch.rand(4)
                again = _proposed(part, stage, network, batch)
            torch.manual_seed(5)
            assert torch.equal(once, again)
            assert torch.equal(drawn, torch.rand(4))

    @pytest.mark.filterwarnings("ignore")
    def test_an_image_alone_becomes_what_it_becomes_among_others(
        self, part: Threat, network: nn.Module, batch: Batch
    ) -> None:
        """The fate of an image depends neither on the others of its batch, nor on their number, nor on its place.

        If not, results depend on the batch size, on the order of the images and on the number of workers, although
        the ledger takes them for the same. Draw from ``noise``, whose draws are an image's own, and take no mean,
        maximum or count over the batch.
        """
        for stage in part.stages:
            with reproducible():
                among = _proposed(part, stage, network, batch)
                for places in ([len(batch) - 1], [len(batch) // 2], list(range(len(batch)))[::-2]):
                    assert torch.equal(_proposed(part, stage, network, batch.part(places)), among[places])

    @pytest.mark.filterwarnings("ignore")
    def test_a_step_that_can_be_captured_works_on_the_same_memory(
        self, part: Threat, network: nn.Module, batch: Batch
    ) -> None:
        """A step of an attack that says `capturable` moves no tensor of it, and changes nothing but their values.

        If not, a CUDA graph of the step writes to memory that is no longer the attack's: write with ``out=`` and
        in place, and leave what the host counts to ``prepare``.
        """
        for stage in part.stages:
            attack, fixed = _started(part, stage, network, batch)
            while attack is not None and attack.capturable and not attack.finished.all():
                attack.prepare()
                before = memory(attack)
                attack.step(fixed)
                assert memory(attack) == before

    @pytest.mark.filterwarnings("error::harness.api.threat.Flag")
    def test_concurrent_stages_need_no_network(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """``perturb`` of a ``concurrent`` threat calls no network, flags nothing, and may run in threads at once.

        If not, a run stops, or an image is mixed up with another one, on a GPU: leave ``concurrent`` False.
        """
        for stage in part.stages if part.concurrent else ():
            keys = torch.tensor([key_of(0, image, stage) for image in batch.indices.tolist()])

            def perturb(place: int, stage: str = stage, keys: torch.Tensor = keys) -> torch.Tensor:
                return part.perturb(stage, NoNetwork(), batch.part([place]), Noise(0, keys[[place]]))

            with reproducible():
                among = _proposed(part, stage, network, batch)
            assert torch.equal(torch.cat(in_threads(perturb, range(len(batch)), 4)), among)

    def test_says_what_it_takes(self, part: Threat, batch: Batch) -> None:
        """``passes`` returns counts, or None if they are not known; ``own_work`` leaves the images unchanged.

        If not, ``ct-harness doctor`` cannot estimate the duration.
        """
        before = batch.x.clone()
        part.own_work(batch.x)
        assert torch.equal(batch.x, before)
        for stage in part.stages:
            passes = part.passes(stage, classes=10)
            assert passes is None or min(passes.forwards, passes.gradients, passes.own_steps) >= 0

    @pytest.mark.filterwarnings("ignore")
    def test_smoke_test_makes_images_that_it_allows(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """``smoke_test`` names the stage it tried and returns valid images; otherwise ``ct-harness doctor`` fails."""
        if not part.stages:
            return
        stage, images = part.smoke_test(network, batch.part([0, 1]))
        assert stage
        assert images.shape == batch.x[:2].shape
        part.check(batch.x[:2], images)

    def test_fills_its_columns(self, part: Threat) -> None:
        """``columns`` returns exactly ``threat``, ``eps`` and ``attack``, the threat's columns on the leaderboard."""
        assert set(part.columns()) == {"threat", "eps", "attack"}

    def test_summarises_what_there_is(self, part: Threat) -> None:
        """``summary_columns`` returns finite numbers, and no new columns (or an error) if stages are missing."""
        summary_columns = part.summary_columns(dict.fromkeys((CLEAN, *part.stages), 0.5))
        assert all(np.isfinite(value) for value in summary_columns.values())
        assert part.summary_columns({CLEAN: 0.5}).keys() <= summary_columns.keys()


def memory(value: object) -> object:
    """Return what a CUDA graph takes for granted of an attack, to be compared: where its tensors lie, and all else."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr(), value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return [memory(item) for item in value]
    if isinstance(value, dict):
        return {name: memory(item) for name, item in value.items()}
    return memory(vars(value)) if hasattr(value, "__dict__") and not callable(value) else value


def _started(threat: Threat, stage: str, network: nn.Module, batch: Batch) -> tuple[Attack | None, FixedWidth]:
    """Return a stage's attack with the first attempt on each image in a slot, if it is one, and what it attacks.

    The network is as the harness gives it to an attack: an image's logits do not depend on the batch.
    """
    fixed = FixedWidth(network, batch.x)
    n, shape = len(batch), tuple(batch.x.shape[1:])
    attack = threat.attack_machine(stage, n, shape, fixed.classes, str(batch.x.device))
    if attack is not None:
        logits = fixed(batch.x)
        rankings = logits.scatter(1, batch.y[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1].tolist()
        attempts = [threat.attempts(stage, ranking)[0] for ranking in rankings]
        targets = torch.tensor([max(attempt.target, 0) for attempt in attempts])
        variants = torch.tensor([threat.variant(attempt) for attempt in attempts])
        attack.start(torch.arange(n), Trials(batch.x, batch.y, targets, _keys(stage, batch), variants))
    return attack, fixed


def _keys(stage: str, batch: Batch) -> torch.Tensor:
    return torch.tensor([key_of(0, image, stage) for image in batch.indices.tolist()])


def _proposed(threat: Threat, stage: str, network: nn.Module, batch: Batch) -> torch.Tensor:
    """Return what a stage makes of a batch in its first attempts, by whichever way it has, [n, c, h, w]."""
    attack, fixed = _started(threat, stage, network, batch)
    if attack is None:
        return threat.perturb(stage, fixed, batch, Noise(0, _keys(stage, batch))).detach()
    run_to_the_end(attack, fixed)
    return torch.where(attack.fooled.view(-1, 1, 1, 1), attack.found, batch.x).detach()


class ExecutorContract(PartContract):
    """Contract of an executor: it delivers what `harness.engine.evaluate.evaluate` yields in this process, bit for bit.

    Override ``part``. The portions use the demo network and the digits, so workers need nothing but the harness.
    """

    group = "executors"

    @pytest.fixture
    def portions(self) -> list[Portion]:
        """Three portions on the demo network: clean trials of two steerings, and one attack under each."""
        attack = {"stages": ["apgd-ce"], "iterations": 3}
        model = registry.build("models", {"kind": "demo", "name": "digits_plain"}, "model")
        dataset = registry.build("datasets", {"kind": "digits", "n": 8}, "dataset")
        threat = registry.build("threats", {"kind": "Linf", "eps": 0.1, "attack": attack}, "threat")
        assert isinstance(model, Model)
        assert isinstance(dataset, Dataset)
        assert isinstance(threat, Threat)
        task = Task(model.label, model, dataset, threat, seed=0, device="cpu", weights_sha256=model.load().sha256)
        steerings = (Steering(1.0), Steering(0.9))
        clean = tuple(Trial(steering, image, Attempt(CLEAN)) for steering in steerings for image in range(6))
        attacks = [tuple(Trial(steering, image, Attempt("apgd-ce")) for image in range(6)) for steering in steerings]
        return [Portion(task, trials) for trials in (clean, *attacks)]

    def test_delivers_what_evaluate_yields(self, part: Executor, portions: list[Portion]) -> None:
        """Every trial's result is delivered once, before the future is resolved, and is the one computed here.

        If not, leaderboards depend on where they were computed: on the worker's device, threads or versions; or
        results are lost, or delivered twice after a worker was lost.
        """
        delivered: list[Result] = []

        def deliver(reports: Sequence[Report]) -> None:
            delivered.extend(result for report in reports for result in report.results)

        waiting = list(portions)
        with part as executor:
            capacity = executor.capacity("cpu")
            assert capacity > 0
            while waiting:
                now, waiting = waiting[:capacity], waiting[capacity:]
                for future in [executor.submit(portion, deliver) for portion in now]:
                    assert future.result(timeout=300) is None
        expected = [
            result
            for portion in portions
            for reports in evaluate(portion)
            for report in reports
            for result in report.results
        ]
        assert sorted(map(_bits, delivered)) == sorted(map(_bits, expected))

    def test_an_error_reaches_the_future_alone(self, part: Executor, portions: list[Portion]) -> None:
        """An error, of the computation or of ``deliver``, is the future's; the next portion is computed.

        If not, one bad model ends the run of all, or its row does not say why it failed.
        """
        good = portions[0]
        changed = replace(good, task=replace(good.task, weights_sha256="0" * 64))
        delivered: list[Result] = []

        def refuse(reports: Sequence[Report]) -> None:
            raise OSError("the disk is full")

        def deliver(reports: Sequence[Report]) -> None:
            delivered.extend(result for report in reports for result in report.results)

        with part as executor:
            with pytest.raises(ModelError, match="its weights changed while the benchmark ran"):
                executor.submit(changed, deliver).result(timeout=300)
            assert delivered == []
            with pytest.raises(OSError, match="the disk is full"):
                executor.submit(good, refuse).result(timeout=300)
            executor.submit(good, deliver).result(timeout=300)
        assert sorted(result.trial for result in delivered) == sorted(good.trials)


def _bits(result: Result) -> tuple[Trial, str, tuple[int, int], bytes]:
    """Return all of a result that may not depend on who computes it; only its duration may."""
    adversarial = b"" if result.adversarial is None else result.adversarial.numpy().tobytes()
    return result.trial, repr(result.answer), (result.cost.forwards, result.cost.backwards), adversarial
