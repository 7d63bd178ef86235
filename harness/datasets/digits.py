"""The digits of scikit-learn: 1,797 images of 8×8 pixels that need no download."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from harness.api.dataset import Dataset, Source

if TYPE_CHECKING:
    import numpy as np

Digit = Annotated[int, Field(strict=True, ge=0, le=9)]

TEST_SIZE = 500
SPLIT_SEED = 0


class Digits(Dataset):
    """Handwritten digits of ten classes, float32 [n, 1, 8, 8] in [0, 1] (grey levels 0 … 16, divided by 16).

    The images are ordered by ``numpy.random.default_rng(0).permutation(1797)``; the first 500 are the test split and
    the other 1,297 the train split, in that order, so that the first ``n`` of a split are a random sample of it.

    Args:
        split: ``test`` (500 images), or ``train`` (the 1,297 images on which the demo networks were trained).
        classes: digits to be kept, numbered 0, 1, … in the given order; all ten by default.
    """

    kind: ClassVar[str] = "digits"

    split: Literal["test", "train"] = "test"
    classes: Annotated[tuple[Digit, ...], Field(min_length=2)] | None = None

    @property
    def title(self) -> str:
        """Name of the dataset, with the chosen digits if they are not all ten."""
        return self.kind if self.classes is None else f"{self.kind} {','.join(map(str, self.classes))}"

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("a digit is named twice; name each once")
        return classes

    def open(self, *, offline: bool = False) -> Source:
        """See `Dataset.open`; downloads nothing."""
        import numpy as np

        from harness.datasets.sources.in_memory import ArraySource

        pixels, labels = _read()
        chosen = split_of(len(labels), self.split)
        if self.classes is not None:
            chosen = chosen[np.isin(labels[chosen], self.classes)]
            labels = np.array([self.classes.index(label) if label in self.classes else -1 for label in labels])
        greys = pixels[chosen].reshape(-1, 1, 8, 8)
        names = [str(digit) for digit in self.classes or range(10)]
        return ArraySource(greys / 16, labels[chosen], names)  # sixteenths: exact in float32


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, 0 to 16, float64 [n, 64], and the labels, as ``sklearn.datasets.load_digits`` does.

    The file is read without importing scikit-learn, which takes as long as torch, in every worker.
    """
    import numpy as np

    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


def split_of(size: int, split: Literal["test", "train"]) -> np.ndarray:
    """Return the indices of the images of ``split`` among all ``size``, in the order of the split."""
    import numpy as np

    order = np.random.default_rng(SPLIT_SEED).permutation(size)
    return order[:TEST_SIZE] if split == "test" else order[TEST_SIZE:]
