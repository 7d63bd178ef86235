"""Labelled images of the Hugging Face hub, or in a directory that its ``datasets`` library can read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from harness.api.dataset import Dataset
from harness.api.records import Target
from harness.errors import DataError, DataMissing, SpecError
from harness.util.text import did_you_mean

if TYPE_CHECKING:
    from harness.datasets.sources.lazy import LazySource


class HuggingFace(Dataset):
    """A split of a dataset of the Hugging Face hub, or of a directory with the same files (parquet, say).

    Offline, a dataset of the hub is read from the library's cache in the version that was loaded last; if ``revision``
    is a commit, it must be that one.

    Args:
        path: user/name on the hub, or a directory.
        config: name of the configuration, if the dataset has several.
        split: name of the split, such as ``train`` or ``test``.
        image_column: name of the column of images.
        label_column: name of the column of labels.
        labels: kind of the labels: ``class``, the number of a class; ``attributes``, a row of 0 and 1; ``values``, a
            number or a row of numbers.
        revision: branch, tag or commit on the hub; the main branch by default.
        size: height and width of the images for a model without preprocessing of its own; by default they are taken
            as stored, and must have one size.
    """

    kind: ClassVar[str] = "hugging_face"

    path: str
    config: str | None = None
    split: str
    image_column: str = "image"
    label_column: str = "label"
    labels: Target = "class"
    revision: str | None = None
    size: Annotated[int, Field(strict=True, gt=0, le=10_000)] | None = None

    @property
    def target(self) -> Target:
        """Kind of the labels."""
        return self.labels

    @property
    def title(self) -> str:
        """Last two parts of the path, configuration and split."""
        return " ".join(filter(None, ["/".join(Path(self.path).parts[-2:]), self.config, self.split]))

    def open(self, *, offline: bool = False) -> LazySource:
        """See `Dataset.open`; downloads what is not in the library's cache."""
        return read(self, offline, "copy it to this machine and give its directory as dataset.path")


def read(dataset: HuggingFace, offline: bool, by_hand: str) -> LazySource:
    """Open the images and labels of a split.

    Args:
        dataset: dataset and split.
        offline: whether to read from the library's cache alone.
        by_hand: remedy for error messages: how to do without the download.

    Raises:
        SpecError: the library is not installed, or there is no such split or column.
        DataError: the dataset cannot be downloaded or read, or does not hold labelled images.
    """
    rows = _load_split(dataset, offline, by_hand)
    import datasets

    from harness.datasets.sources.image_files import square
    from harness.datasets.sources.lazy import LazySource, as_labels

    for key, column in (("image_column", dataset.image_column), ("label_column", dataset.label_column)):
        _check_name(f"dataset.{key}", "column", column, rows.column_names, dataset.path)
    if not isinstance(kind := rows.features[dataset.image_column], datasets.Image):
        raise DataError(
            f"dataset.image_column: the column {dataset.image_column!r} of {dataset.path} holds {kind}, not images; "
            "name a column of images"
        )
    labels = rows.select_columns([dataset.label_column])[:][dataset.label_column]
    y = as_labels(
        labels, dataset.labels, f"dataset.label_column: the column {dataset.label_column!r} of {dataset.path}"
    )
    images = rows.select_columns([dataset.image_column]).cast_column(dataset.image_column, datasets.Image())
    where = f"{dataset.path} ({dataset.split})"
    kind_of_label = rows.features[dataset.label_column]
    names = kind_of_label.names if isinstance(kind_of_label, datasets.ClassLabel) else None
    return LazySource(lambda index: images[index][dataset.image_column], y, where, square(dataset.size), names)


def _load_split(dataset: HuggingFace, offline: bool, by_hand: str) -> Any:
    """Load the split as an object of the library."""
    try:
        import datasets
    except ImportError as error:
        raise SpecError(
            f"dataset: {dataset.title} is read by Hugging Face's datasets library; pip install 'ct-harness[transfer]'"
        ) from error
    directory = Path(dataset.path).absolute()
    if not directory.is_dir() and (len(Path(dataset.path).parts) > 2 or dataset.path.startswith((".", "/", "~"))):
        raise DataMissing(f"dataset.path: no directory {directory}; give one, or user/name on the Hugging Face hub")
    path = str(directory) if directory.is_dir() else dataset.path
    try:
        with _offline() if offline else nullcontext():
            builder = datasets.load_dataset_builder(path, dataset.config, revision=dataset.revision)
            builder.download_and_prepare()
    except Exception as error:  # errors of the library, the hub, HTTP and the system have no common base
        raise _unavailable(error, path, directory, offline, by_hand) from error
    _check_commit(dataset, builder.hash or "", directory, by_hand)
    _check_name("dataset.split", "split", dataset.split, list(builder.info.splits or ()), dataset.path)
    return builder.as_dataset(split=dataset.split)


def _unavailable(error: Exception, path: str, directory: Path, offline: bool, by_hand: str) -> DataError:
    import datasets

    why = " ".join(f"{type(error).__name__}: {error}".split())
    if path == str(directory):
        return DataError(
            f"{directory}: Hugging Face's datasets library cannot read it ({why}); fix it or copy it again"
        )
    if offline:
        cache = datasets.config.HF_DATASETS_CACHE
        return DataMissing(
            f"{path}: no such directory, not in the cache {cache}, and offline nothing is downloaded ({why}); run once "
            f"without --offline, or {by_hand}"
        )
    return DataError(f"https://huggingface.co/datasets/{path}: it cannot be downloaded ({why}); {by_hand}")


def _check_commit(dataset: HuggingFace, found: str, directory: Path, by_hand: str) -> None:
    """Refuse a commit other than the requested one: without the hub, its library takes any that is in the cache."""
    expected = dataset.revision or ""
    if directory.is_dir() or not re.fullmatch("[0-9a-f]{40}", expected) or found == expected:
        return
    raise DataMissing(
        f"dataset.revision: the cache has commit {found} of {dataset.path}, not {expected}, and the hub cannot be "
        f"reached; run once without --offline, or {by_hand}"
    )


def _check_name(key: str, what: str, name: str, known: Sequence[str], path: str) -> None:
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise SpecError(f"{key}: {path} has no {what} {name!r}{hint}; it has {', '.join(known)}")


@contextmanager
def _offline() -> Iterator[None]:
    """Keep Hugging Face's libraries from making requests within the block.

    They read their switches from the environment on import, so the values that they read are changed, and restored.
    """
    import datasets
    from huggingface_hub import constants

    modules: tuple[Any, ...] = (datasets.config, constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
