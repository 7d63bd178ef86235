"""Downloads: atomic, checked, and recorded in ``models.lock``.

Every download goes through this module. A file is downloaded into a temporary directory beside its destination,
checked there, and moved when it is complete, so that the destination never holds part of a file, even if several
processes download it at once.

``models.lock`` in the working directory records the size and SHA-256 of the file of each address when the file is first
seen, whether downloaded or put there by hand; from then on they are checked. Keep it beside the benchmark, so that
everyone scores the same bits. If it cannot be written, its entries are still checked, and a warning says that nothing
new is recorded.

A mirror, ``CT_HARNESS_MIRROR`` (an address, or a directory as ``file:///…``), is tried first: it has the file of
``https://host/path`` at ``<mirror>/host/path``, and one of Google Drive at ``<mirror>/drive.google.com/<id>``. Files
that it does not have come from their own address. Mirrors of the Hugging Face hub are set by ``HF_ENDPOINT``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from urllib.error import HTTPError, URLError
from urllib.parse import parse_qs, urlparse
from urllib.request import Request, urlopen

from harness.errors import HarnessError, ModelError
from harness.util.lockfile import ON_PURPOSE, differs

MIRROR = "CT_HARNESS_MIRROR"
ATTEMPTS = 4
FIRST_WAIT_S = 1.0
"""Wait before the second attempt, in seconds; it doubles before each further one."""
TIMEOUT_S = 60.0
"""Longest silence of a server, in seconds."""


class BadFile(ValueError):
    """A file is not what it should be; the message is a predicate, to which the caller adds the file and the remedy."""


@dataclass(frozen=True)
class Remote:
    """A file to be downloaded.

    Args:
        path: destination of the file.
        url: address at which a browser gets the file; also its name in ``models.lock``.
        check: raises `BadFile` for a file that is not what it should be.
        download: downloads the file from its own address to a path; by default from ``url``.
        error: exception for a file that is damaged, differs from its record, or cannot be downloaded.
        missing: exception for a file that is missing while downloads are refused.
    """

    path: Path
    url: str
    check: Callable[[Path], None]
    download: Callable[[str], object] | None = None
    error: type[HarnessError] = ModelError
    missing: type[HarnessError] = ModelError

    @property
    def by_hand(self) -> str:
        """Instructions for doing without the download, as part of a message."""
        return f"to put it there by hand, open {self.url} in a browser and save the file as {self.path}"

    def ensure(self, offline: bool) -> None:
        """Download the file if it is missing, and check it; an existing file is never changed.

        Args:
            offline: whether to refuse the download.

        Raises:
            HarnessError: the file is missing, damaged, or not as recorded; of the types given to the class.
        """
        if not self.path.is_file():
            if offline:
                raise self.missing(f"{self.path}: no such file, and offline none is downloaded; {self.by_hand}")
            self._fetch()
            return
        try:
            self.check(self.path)
        except BadFile as bad:
            raise self.error(f"{self.path} {bad}; delete it and run again, or {self.by_hand}") from bad
        if fault := differs(self.url, self.path):
            raise self.error(f"{self.path} {fault}; delete it to fetch it again, or {ON_PURPOSE}")

    def _fetch(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.path.parent, prefix=".download-") as directory:
            part = Path(directory) / self.path.name
            source = self._download(part)
            try:
                self.check(part)
            except BadFile as bad:
                raise self.error(f"{self.path}: what came from {source} {bad}; {self.by_hand}") from bad
            if fault := differs(self.url, part):
                raise self.error(f"{self.path}: what came from {source} {fault}; run again, or {ON_PURPOSE}")
            part.replace(self.path)

    def _download(self, part: Path) -> str:
        """Download the file to ``part``, from the mirror if that has it, and return its source."""
        from_origin = self.download or (lambda path: from_web(self.url, Path(path)))
        sources: list[tuple[str, Callable[[str], object]]] = [(self.url, from_origin)]
        if mirror := mirrored(self.url):
            sources.insert(0, (mirror, lambda path: from_web(mirror, Path(path))))
        faults = []
        for source, download in sources:
            try:
                _with_retries(download, str(part))
                if not part.is_file():
                    raise FileNotFoundError("no file was received")
                return source
            except Exception as error:  # errors of gdown, requests and urllib have no common base
                why = " ".join(f"{type(error).__name__}: {error}".split())  # gdown's span many lines
                faults.append(why if source == self.url else f"the mirror's {source}: {why}")
                part.unlink(missing_ok=True)
        raise self.error(f"{self.path}: the download failed ({'; '.join(faults)}); {self.by_hand}")


def from_hugging_face(repo: str, names: Sequence[str], revision: str | None, offline: bool, by_hand: str) -> Path:
    """Return the first of several files that a repository of the Hugging Face hub has, in the hub's own cache.

    Args:
        repo: user/name of the repository.
        names: names of the files, the preferred one first.
        revision: branch, tag or commit; None for the main branch.
        offline: whether to use the cache alone.
        by_hand: remedy for error messages: how to do without the download.

    Raises:
        ModelError: none of the files can be downloaded, or the file is not as recorded in ``models.lock``.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    urls = [f"https://huggingface.co/{repo}/resolve/{revision or 'main'}/{name}" for name in names]
    for name, url in zip(names, urls, strict=True):
        try:
            path = Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))
        except EntryNotFoundError:
            continue
        except Exception as error:  # errors of the hub, HTTP and the system have no common base
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"{url}: the download failed ({why}); {by_hand}") from error
        if fault := differs(url, path):
            raise ModelError(f"{path} {fault}; name the revision to use (repo@revision), or {ON_PURPOSE}")
        return path
    reason = "not in the cache of the Hugging Face hub, and offline none is downloaded" if offline else "no such file"
    raise ModelError(f"{' or '.join(urls)}: {reason}; {by_hand}")


def from_web(url: str, path: Path) -> None:
    """Download ``url`` (http, https or file) to ``path``.

    Raises:
        ConnectionError: the transfer stopped before its end.
        OSError: the server did not answer, or refused.
    """
    request = Request(url, headers={"User-Agent": "ct-harness"})
    with urlopen(request, timeout=TIMEOUT_S) as response, path.open("wb") as file:
        copyfileobj(response, file)
        size = int(response.headers.get("Content-Length") or file.tell())
        if file.tell() != size:  # urllib does not check
            raise ConnectionError(f"it stopped after {file.tell():,} of {size:,} bytes")


def mirrored(url: str) -> str | None:
    """Return the address of ``url`` on the mirror; None without a mirror."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    parts = urlparse(url)
    drive = parse_qs(parts.query).get("id") if parts.hostname == "drive.google.com" else None
    return f"{mirror.rstrip('/')}/{parts.hostname}/{drive[0] if drive else parts.path.lstrip('/')}"


def _with_retries(download: Callable[[str], object], path: str) -> None:
    """Download, and try again after errors that may be temporary."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    for attempt in Retrying(
        retry=retry_if_exception(_is_temporary),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_WAIT_S),
        reraise=True,
    ):
        with attempt:
            download(path)


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    absent = isinstance(error, URLError) and isinstance(error.reason, FileNotFoundError)  # of a mirror's directory
    return isinstance(error, OSError | HTTPException) and not absent
