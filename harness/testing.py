"""The contract suites: what every plug-in of a kind must pass, the built-in ones too.

A plug-in author subclasses the suite of a kind in a test file and overrides its one fixture:

    from harness.testing import ThreatContract

    class TestMyThreat(ThreatContract):
        @pytest.fixture
        def part(self):
            return MyThreat(strength=0.1)
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from harness.api import registry
from harness.api.dataset import Dataset, Source
from harness.api.executor import Executor
from harness.api.model import Model, Scorable
from harness.api.part import Part
from harness.api.records import BASELINE, Batch, Steering
from harness.api.threat import Threat
from harness.api.work import Cell, Outcome, Shard, Task
from harness.engine.evaluate import evaluate
from harness.engine.numerics import reproducible
from harness.errors import DataError, ModelError
from harness.scheduling.trials import CLEAN
from harness.util.hashing import canonical


class PartContract:
    """What every part is: registered, frozen, picklable, with an identity in JSON."""

    group: str
    """The entry-point group, one of `harness.api.registry.GROUPS`."""

    @pytest.fixture
    def part(self) -> Part:
        """The part under test."""
        raise NotImplementedError("override the fixture `part`")

    def test_is_registered_under_its_kind(self, part: Part) -> None:
        """What a YAML names is this class."""
        assert registry.part(self.group, part.kind) is type(part)

    def test_is_parsed_from_its_own_fields(self, part: Part) -> None:
        """A YAML can say all that the part is."""
        fields = part.model_dump(mode="json")
        assert registry.build(self.group, {"kind": part.kind} | fields, "here") == part

    def test_travels(self, part: Part) -> None:
        """A worker gets an equal part, and equal parts are one in a cache."""
        twin = pickle.loads(pickle.dumps(part))
        assert twin == part
        assert hash(twin) == hash(part)

    def test_identity_is_json_without_whereabouts(self, part: Part) -> None:
        """Where files lie is not what they are."""
        identity = part.identity()
        assert canonical(identity) == canonical(copy.deepcopy(part).identity())
        assert identity["kind"] == part.kind
        assert not part.location_fields & identity.keys()


class ModelContract(PartContract):
    """A network in eval mode, from images in [0, 1] to logits, named by the hash of its weights."""

    group = "models"
    shape: tuple[int, int, int] = (3, 32, 32)
    """Of one image, c×h×w."""

    @pytest.fixture
    def loaded(self, part: Model) -> Scorable:
        """The model, loaded without a network."""
        return part.load(offline=True)

    def test_yields_logits(self, loaded: Scorable) -> None:
        """Finite, a row an image, the same for the same image."""
        x = torch.rand(3, *self.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), reproducible():
            logits, again = loaded.network(x), loaded.network(x)
        assert logits.shape[0] == 3
        assert logits.ndim == 2
        assert logits.isfinite().all()
        assert torch.equal(logits, again)

    def test_is_in_eval_mode(self, loaded: Scorable) -> None:
        """Every part of it."""
        assert not any(module.training for module in loaded.network.modules())

    def test_hash_names_the_weights(self, part: Model, loaded: Scorable) -> None:
        """Loading again gives the same hash; it is a SHA-256."""
        assert part.load(offline=True).sha256 == loaded.sha256
        assert len(bytes.fromhex(loaded.sha256)) == 32

    def test_baseline_is_the_untouched_network(self, loaded: Scorable) -> None:
        """β = 1, bit by bit."""
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), reproducible():
            assert torch.equal(loaded.steered(BASELINE, x)(x), loaded.network(x))

    def test_steering_reaches_something(self, loaded: Scorable) -> None:
        """And changes the logits."""
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(2))
        coverage = loaded.coverage("all", x[:1])
        assert 0 < coverage.steered <= coverage.sites
        with torch.no_grad(), reproducible():
            assert not torch.equal(loaded.steered(Steering(0.5), x)(x), loaded.network(x))

    def test_is_compiled_as_what_it_is(self, loaded: Scorable) -> None:
        """Hand a part of the steered network to the compiler, and compute the same with what comes back."""
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
        """Normalise first and ask the inner model, or refuse."""
        x = torch.rand(2, *self.shape, generator=torch.Generator().manual_seed(4))
        try:
            inner, normalise = loaded.normalised_space()
        except ModelError:  # it does not say how it normalises
            return
        with torch.no_grad(), reproducible():
            assert torch.equal(inner.network(normalise(x)), loaded.network(x))

    def test_has_a_label(self, part: Model) -> None:
        """One line."""
        assert part.label
        assert "\n" not in part.label


class DatasetContract(PartContract):
    """Images in [0, 1] with labels, readable by number."""

    group = "datasets"

    @pytest.fixture
    def source(self, part: Dataset) -> Source:
        """The data, opened without a network."""
        return part.open(offline=True)

    def test_reads_images_in_the_unit_box(self, source: Source) -> None:
        """float32 [n, c, h, w] in [0, 1], int64 labels from 0 on, the numbers that were asked for."""
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
        """However it is cut."""
        numbers = tuple(range(min(len(source), 20)))
        whole = source.read(numbers)
        slices = [source.read(numbers[:7]), source.read(numbers[7:])]
        assert torch.equal(whole.x, torch.cat([piece.x for piece in slices]))
        assert torch.equal(whole.y, torch.cat([piece.y for piece in slices]))

    def test_subset(self, part: Dataset, source: Source) -> None:
        """The first n, in order; never more than there are."""
        size = len(source)
        assert part.model_copy(update={"n": 3, "indices": None}).subset(size) == (0, 1, 2)
        with pytest.raises(DataError, match=r"dataset\.n"):
            part.model_copy(update={"n": size + 1, "indices": None}).subset(size)


class ThreatContract(PartContract):
    """Stages that propose images, in order, from a seed."""

    group = "threats"

    @pytest.fixture
    def network(self) -> nn.Module:
        """A linear classifier of 1×8×8 images with 10 classes, so that something is lost and something survives."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)

    @pytest.fixture
    def batch(self, network: nn.Module) -> Batch:
        """Twelve images that the network classifies correctly."""
        x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        return Batch(x, network(x).argmax(1), torch.arange(12))

    def test_names_its_stages(self, part: Threat) -> None:
        """Each once, none of them the clean stage, which every threat has and ``clean`` has alone."""
        assert part.stages or part.kind == "clean"
        assert len(set(part.stages)) == len(part.stages)
        assert CLEAN not in part.stages
        assert part.reduction in ("worst", "mean")

    @pytest.mark.filterwarnings("ignore")
    def test_proposes_an_image_for_each(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """Of the same shape, in [0, 1], allowed by its own check; the given images are left alone."""
        before = batch.x.clone()
        for stage in part.stages:
            proposed = part.perturb(stage, network, batch, seed=0)
            assert proposed.shape == batch.x.shape
            assert proposed.dtype == torch.float32
            assert proposed.min() >= -1e-6
            assert proposed.max() <= 1 + 1e-6
            part.check(batch.x, proposed)
        assert torch.equal(batch.x, before)

    @pytest.mark.filterwarnings("ignore")
    def test_same_seed_same_images(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """Whatever was drawn in between; and the caller's random numbers are left alone."""
        for stage in part.stages:
            torch.manual_seed(5)
            with reproducible():
                once = part.perturb(stage, network, batch, seed=3)
                drawn = torch.rand(4)
                again = part.perturb(stage, network, batch, seed=3)
            torch.manual_seed(5)
            assert torch.equal(once, again)
            assert torch.equal(drawn, torch.rand(4))

    def test_says_what_it_takes(self, part: Threat, batch: Batch) -> None:
        """Count passes through the network for each stage, or say that they are not known; leave the images alone."""
        before = batch.x.clone()
        part.own_work(batch.x)
        assert torch.equal(batch.x, before)
        for stage in part.stages:
            passes = part.passes(stage, classes=10)
            assert passes is None or min(passes.forwards, passes.gradients, passes.own_steps) >= 0

    @pytest.mark.filterwarnings("ignore")
    def test_smoke_test_makes_images_that_it_allows(self, part: Threat, network: nn.Module, batch: Batch) -> None:
        """Name what was tried, and return an image for each."""
        if not part.stages:
            return
        stage, images = part.smoke_test(network, batch.part([0, 1]))
        assert stage
        assert images.shape == batch.x[:2].shape
        part.check(batch.x[:2], images)

    def test_fills_its_columns(self, part: Threat) -> None:
        """Those of the leaderboard."""
        assert set(part.columns()) == {"threat", "eps", "attack"}

    def test_summarises_what_there_is(self, part: Threat) -> None:
        """Numbers from the accuracies of all stages; and no error where stages are missing."""
        summary_columns = part.summary_columns(dict.fromkeys((CLEAN, *part.stages), 0.5))
        assert all(np.isfinite(value) for value in summary_columns.values())
        assert part.summary_columns({CLEAN: 0.5}).keys() <= summary_columns.keys()


class ExecutorContract(PartContract):
    """Cells in, outcomes out: the same as computed here, errors included."""

    group = "executors"

    @pytest.fixture
    def cells(self) -> list[Cell]:
        """Eight cells on the demo network and the digits."""
        attack = {"stages": ["apgd-ce"], "iterations": 3}
        model = registry.build("models", {"kind": "demo", "name": "digits_plain"}, "model")
        dataset = registry.build("datasets", {"kind": "digits", "n": 8}, "dataset")
        threat = registry.build("threats", {"kind": "Linf", "eps": 0.1, "attack": attack}, "threat")
        assert isinstance(model, Model)
        assert isinstance(dataset, Dataset)
        assert isinstance(threat, Threat)
        sha = model.load().sha256
        task = Task(model.label, model, dataset, threat, seed=0, device="cpu", weights_sha256=sha)
        shards = [Shard((0, 1, 2, 3), "a"), Shard((4, 5), "b")]
        return [
            Cell(task, Steering(beta), shard, stage, shard.images)
            for beta in (1.0, 0.9)
            for shard in shards
            for stage in (CLEAN, "apgd-ce")
        ]

    def test_gives_what_evaluate_gives(self, part: Executor, cells: list[Cell]) -> None:
        """Bit by bit, however many are in flight."""
        found: dict[str, Outcome] = {}
        waiting = list(cells)
        with part as executor:
            while waiting:
                in_flight = {cell.key: executor.submit(cell) for cell in waiting[: executor.slots]}
                waiting = waiting[executor.slots :]
                found |= {key: future.result(timeout=300) for key, future in in_flight.items()}
        for cell in cells:
            expected = evaluate(cell)
            assert np.array_equal(found[cell.key].values, expected.values)
            images, expected_images = found[cell.key].adversaries, expected.adversaries
            assert (images is None) == (expected_images is None)
            if images is not None and expected_images is not None:
                assert torch.equal(images.images, expected_images.images)
