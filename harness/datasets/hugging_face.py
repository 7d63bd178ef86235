"""Any labelled pictures of the Hugging Face hub, or in a folder that its library can read."""

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
    """A split of a data set of the Hugging Face hub, or of a folder with the same files (parquet, say).

    Offline, a data set of the hub is the one that was loaded last, as the cache of its library has it; where
    ``revision`` is a commit, of that commit or not at all.

    Args:
        path: user/name of the hub, or a folder.
        config: which of its configurations, where it has several.
        split: ``train``, ``test`` or what it calls them.
        image_column: that of the pictures.
        label_column: that of the labels.
        labels: what these are: the number of a class; ``attributes``, a row of 0 and 1; ``values``, a number or a row.
        revision: branch, tag or commit; the main branch without it.
        size: height and width of the images for a model that does not say how to prepare its pictures; without it
            they are taken as they are, and must have one size.
    """

    kind: ClassVar[str] = "hugging_face"

    path: str
    config: str | None = None
    split: str
    image_column: str = "image"
    label_column: str = "label"
    labels: Target = "class"
    revision: str | None = None
    size: Annotated[int, Field(strict=True, gt=0)] | None = None

    @property
    def target(self) -> Target:
        """What its labels are."""
        return self.labels

    @property
    def title(self) -> str:
        """The ends of the path, the configuration and the split."""
        return " ".join(filter(None, ["/".join(Path(self.path).parts[-2:]), self.config, self.split]))

    def open(self, *, offline: bool = False) -> LazySource:
        """See `Dataset.open`; downloads what is not in the cache of the hub's library."""
        return read(self, offline, "copy it here and give its folder as dataset.path")


def read(dataset: HuggingFace, offline: bool, by_hand: str) -> LazySource:
    """The pictures and labels of ``dataset``.

    Args:
        dataset: which.
        offline: take them from the cache alone.
        by_hand: how to do without the download, for errors.

    Raises:
        SpecError: the library is not installed, or there is no such split or column.
        DataError: they cannot be had, or are no labelled pictures; says what to do.
    """
    found = _loaded(dataset, offline, by_hand)
    import datasets

    from harness.datasets.sources.image_files import square
    from harness.datasets.sources.lazy import LazySource, as_labels

    for key, column in (("image_column", dataset.image_column), ("label_column", dataset.label_column)):
        _check_name(f"dataset.{key}", "column", column, found.column_names, dataset.path)
    if not isinstance(kind := found.features[dataset.image_column], datasets.Image):
        raise DataError(
            f"dataset.image_column: the column {dataset.image_column!r} of {dataset.path} holds {kind}, no pictures; "
            "name a column of pictures"
        )
    labels = found.select_columns([dataset.label_column])[:][dataset.label_column]
    y = as_labels(
        labels, dataset.labels, f"dataset.label_column: the column {dataset.label_column!r} of {dataset.path}"
    )
    pictures = found.select_columns([dataset.image_column]).cast_column(dataset.image_column, datasets.Image())
    where = f"{dataset.path} ({dataset.split})"
    return LazySource(lambda index: pictures[index][dataset.image_column], y, where, square(dataset.size))


def _loaded(dataset: HuggingFace, offline: bool, by_hand: str) -> Any:
    """The split, as the library has it."""
    try:
        import datasets
    except ImportError as error:
        raise SpecError(
            f"dataset: {dataset.title} is read with Hugging Face's library; pip install 'ct-harness[transfer]'"
        ) from error
    folder = Path(dataset.path).absolute()
    if not folder.is_dir() and (len(Path(dataset.path).parts) > 2 or dataset.path.startswith((".", "/", "~"))):
        raise DataMissing(f"dataset.path: no folder {folder}; give one, or user/name of the Hugging Face hub")
    place = str(folder) if folder.is_dir() else dataset.path
    try:
        with _offline() if offline else nullcontext():
            builder = datasets.load_dataset_builder(place, dataset.config, revision=dataset.revision)
            builder.download_and_prepare()
    except Exception as error:  # the library's, the hub's, its HTTP library's and the system's have no common base
        raise _unavailable(error, place, folder, offline, by_hand) from error
    _check_commit(dataset, builder.hash or "", folder, by_hand)
    _check_name("dataset.split", "split", dataset.split, list(builder.info.splits or ()), dataset.path)
    return builder.as_dataset(split=dataset.split)


def _unavailable(error: Exception, place: str, folder: Path, offline: bool, by_hand: str) -> DataError:
    import datasets

    why = " ".join(f"{type(error).__name__}: {error}".split())
    if place == str(folder):
        return DataError(f"{folder}: the library of Hugging Face cannot read it ({why}); mend it or copy it again")
    if offline:
        cache = datasets.config.HF_DATASETS_CACHE
        return DataMissing(
            f"{place}: no such folder, not in the cache {cache}, and offline nothing is downloaded; run once without "
            f"--offline, or {by_hand}"
        )
    return DataError(f"https://huggingface.co/datasets/{place}: it cannot be had ({why}); {by_hand}")


def _check_commit(dataset: HuggingFace, found: str, folder: Path, by_hand: str) -> None:
    """Refuse another commit than was asked for: without the hub, its library takes any that is in the cache."""
    wanted = dataset.revision or ""
    if folder.is_dir() or not re.fullmatch("[0-9a-f]{40}", wanted) or found == wanted:
        return
    raise DataMissing(
        f"dataset.revision: the cache has commit {found} of {dataset.path}, not {wanted}, and the hub cannot be "
        f"reached; run once without --offline, or {by_hand}"
    )


def _check_name(key: str, what: str, name: str, known: Sequence[str], path: str) -> None:
    if name not in known:
        hint = did_you_mean(name, list(known))
        raise SpecError(f"{key}: {path} has no {what} {name!r}{hint}; it has {', '.join(known)}")


@contextmanager
def _offline() -> Iterator[None]:
    """No request of Hugging Face's libraries leaves this process.

    Their own switches are read from the environment when they are imported, so what was read is changed, and put back.
    """
    import datasets
    from huggingface_hub import constants

    homes: tuple[Any, ...] = (datasets.config, constants)
    before = [home.HF_HUB_OFFLINE for home in homes]
    try:
        for home in homes:
            home.HF_HUB_OFFLINE = True
        yield
    finally:
        for home, value in zip(homes, before, strict=True):
            home.HF_HUB_OFFLINE = value
