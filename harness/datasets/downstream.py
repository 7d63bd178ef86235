"""Datasets to which the paper (Curvature Tuning, arXiv 2502.07783) transfers pretrained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field, field_validator

from harness.api.dataset import Dataset
from harness.api.records import Target
from harness.datasets.sources.providers import (
    DSpritesProvider,
    HubProvider,
    MedMNISTProvider,
    Provider,
    Split,
    TorchVisionProvider,
)
from harness.errors import DataError
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from harness.datasets.sources.lazy import LazySource


class CatalogueEntry(NamedTuple):
    """A dataset of the catalogue.

    Args:
        provider: library or site from which it is obtained, with its names of the train and test splits.
        images: numbers of train and test images; None if the copy may have others than the original.
        source: authors of the dataset and of its splits.
        target: kind of the labels.
    """

    provider: Provider
    images: tuple[int, int] | None
    source: str
    target: Target = "class"


PARQUET = "refs/convert/parquet"
"""Revision with the hub's own conversion of a dataset whose loading script its library no longer runs."""
IDX = "train- and t10k-images-idx3-ubyte and -labels-idx1-ubyte"
HALVES = {"train": {"train": True}, "test": {"train": False}}

CATALOGUE: Mapping[str, CatalogueEntry] = {
    "mnist": CatalogueEntry(
        TorchVisionProvider("MNIST", "MNIST/raw", IDX, "https://ossci-datasets.s3.amazonaws.com/mnist/*.gz", **HALVES),
        (60_000, 10_000),
        "LeCun, Cortes & Burges 1998; the official splits",
    ),
    "fashion_mnist": CatalogueEntry(
        TorchVisionProvider(
            "FashionMNIST", "FashionMNIST/raw", IDX, "https://github.com/zalandoresearch/fashion-mnist", **HALVES
        ),
        (60_000, 10_000),
        "Xiao, Rasul & Vollgraf 2017; the official splits",
    ),
    "cifar10": CatalogueEntry(
        TorchVisionProvider(
            "CIFAR10",
            "cifar-10-batches-py",
            "data_batch_1 … 5, test_batch and batches.meta",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            **HALVES,
        ),
        (50_000, 10_000),
        "Krizhevsky 2009; the official splits",
    ),
    "cifar100": CatalogueEntry(
        TorchVisionProvider(
            "CIFAR100",
            "cifar-100-python",
            "train, test and meta",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            **HALVES,
        ),
        (50_000, 10_000),
        "Krizhevsky 2009, fine labels; the official splits",
    ),
    "arabic_characters": CatalogueEntry(
        HubProvider("arabic_characters", "randall-lab/arabic-characters", revision=PARQUET),
        None,
        "El-Sawy, Loey & El-Bakry 2017; the official splits, in the copy of the paper's authors",
    ),
    "arabic_digits": CatalogueEntry(
        HubProvider("arabic_digits", "randall-lab/arabic-digits", revision=PARQUET),
        None,
        "El-Sherif & Abdelazeem 2007; the official splits, in the copy of the paper's authors",
    ),
    "beans": CatalogueEntry(
        HubProvider("beans", "AI-Lab-Makerere/beans", label="labels"),
        None,
        "Makerere AI Lab 2020; the official train and test splits, without validation",
    ),
    "cub200": CatalogueEntry(
        HubProvider("cub200", "randall-lab/cub200", revision=PARQUET),
        None,
        "Wah, Branson, Welinder, Perona & Belongie 2011; the official splits, in the copy of the paper's authors",
    ),
    "dtd": CatalogueEntry(
        TorchVisionProvider(
            "DTD",
            "dtd/dtd",
            "images and labels",
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        ),
        (1_880, 1_880),
        "Cimpoi, Maji, Kokkinos, Mohamed & Vedaldi 2014; train and test of the official partition 1, without val",
    ),
    "food101": CatalogueEntry(
        TorchVisionProvider(
            "Food101", "food-101", "images and meta", "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"
        ),
        (75_750, 25_250),
        "Bossard, Guillaumin & Van Gool 2014; the official splits",
    ),
    "fgvc_aircraft": CatalogueEntry(
        TorchVisionProvider(
            "FGVCAircraft",
            "fgvc-aircraft-2013b",
            "data",
            "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            train={"split": "trainval", "annotation_level": "variant"},
            test={"split": "test", "annotation_level": "variant"},
        ),
        (6_667, 3_333),
        "Maji, Kannala, Rahtu, Blaschko & Vedaldi 2013, by variant; the official trainval and test splits",
    ),
    "flowers102": CatalogueEntry(
        TorchVisionProvider(
            "Flowers102",
            "flowers-102",
            "jpg, imagelabels.mat and setid.mat",
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        ),
        (1_020, 6_149),
        "Nilsback & Zisserman 2008; the official train and test splits, without validation",
    ),
    "pathmnist": CatalogueEntry(
        MedMNISTProvider("pathmnist"),
        (89_996, 7_180),
        "Kather et al. 2019, in MedMNIST v2 (Yang et al. 2023); its train and test splits, without validation",
    ),
    "octmnist": CatalogueEntry(
        MedMNISTProvider("octmnist"),
        (97_477, 1_000),
        "Kermany et al. 2018, in MedMNIST v2 (Yang et al. 2023); its train and test splits, without validation",
    ),
    "dermamnist": CatalogueEntry(
        MedMNISTProvider("dermamnist"),
        (7_007, 2_005),
        "Tschandl, Rosendahl & Kittler 2018, in MedMNIST v2 (Yang et al. 2023); its train and test splits, without "
        "validation",
    ),
    "imagenette": CatalogueEntry(
        TorchVisionProvider(
            "Imagenette",
            "imagenette2-320",
            "train and val",
            "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            train={"split": "train", "size": "320px"},
            test={"split": "val", "size": "320px"},
        ),
        (9_469, 3_925),
        "Howard 2019, the shorter side 320 pixels; the official splits, of which val is our test",
    ),
    "celeba": CatalogueEntry(
        TorchVisionProvider(
            "CelebA",
            "celeba",
            "img_align_celeba, list_attr_celeba.txt, list_eval_partition.txt, identity_CelebA.txt, "
            "list_bbox_celeba.txt and list_landmarks_align_celeba.txt",
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            train={"split": "train", "target_type": "attr"},
            test={"split": "test", "target_type": "attr"},
        ),
        (162_770, 19_962),
        "Liu, Luo, Wang & Tang 2015; the official train and test splits, without validation",
        "attributes",
    ),
    "dsprites": CatalogueEntry(
        DSpritesProvider(),
        (50_000, 10_000),
        "Matthey, Higgins, Hassabis & Lerchner 2017; there are no official splits: of all sprites in the order of "
        "numpy.random.default_rng(0).permutation(737280), the first 10,000 are test, the next 50,000 train",
        "values",
    ),
}
"""The datasets by name; the labels of all but ``celeba`` and ``dsprites`` are classes."""


class Downstream(Dataset):
    """The train or test split of a dataset of the paper's transfer experiments.

    Labels are classes, except those of ``celeba`` (40 attributes) and ``dsprites`` (one value: the orientation in
    radians, the fourth latent).

    Args:
        name: name of the dataset; see ``ct-harness list datasets``.
        split: ``test``, or ``train`` for the images on which a network is adapted.
        root: directory of all datasets, into which they are downloaded.
        size: height and width of the images for a model without preprocessing of its own; by default they are taken
            as stored, and must have one size.
    """

    kind: ClassVar[str] = "downstream"
    location_fields: ClassVar[frozenset[str]] = frozenset({"root"})

    name: Annotated[str, Field(json_schema_extra={"enum": list(CATALOGUE)})]
    split: Split
    root: str = "data"
    size: Annotated[int, Field(strict=True, gt=0, le=10_000)] | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in CATALOGUE:
            raise ValueError(f"unknown dataset{did_you_mean(name, CATALOGUE)}; known: {', '.join(CATALOGUE)}")
        return name

    @classmethod
    def names(cls) -> Mapping[str, Sequence[str]]:
        """Return the names of the paper's datasets."""
        return {"downstream": list(CATALOGUE)}

    @property
    def target(self) -> Target:
        """Kind of the labels."""
        return CATALOGUE[self.name].target

    @property
    def title(self) -> str:
        """Name of the dataset, and of the split if it is train."""
        return self.name if self.split == "test" else f"{self.name} {self.split}"

    def open(self, *, offline: bool = False) -> LazySource:
        """See `Dataset.open`; downloads missing files."""
        from harness.datasets.sources.image_files import square

        provider, images, _, target = CATALOGUE[self.name]
        source = provider.open(Path(self.root).absolute(), self.split, target, offline=offline)
        if images is not None and len(source) != (expected := images[self.split == "test"]):
            raise DataError(
                f"{source.where}: {len(source):,} images of the {self.split} split, expected {expected:,}; delete "
                "it and run again, or unpack it again"
            )
        return source.prepared(square(self.size))
