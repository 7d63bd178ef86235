"""How does a file come here, and how do we know that it is the right one?

Every download goes through this page. A file is fetched into a folder beside its place, looked at there, and moved
when it is whole, so that what stands in its place is never half a file, whoever else fetches it at that moment.

``models.lock`` in the working directory says what came from each address: the size and the SHA-256, recorded when a
file is first seen (fetched, or put there by hand) and checked ever after. Keep it beside the benchmark, and every
colleague scores the same bits. Where it cannot be written, what it says is still checked, and a warning tells that
nothing new is recorded.

``CT_HARNESS_MIRROR`` (an address, or a folder as ``file:///…``) is asked first: for the file of
``https://host/path`` as ``<mirror>/host/path``, for one of Google Drive as ``<mirror>/drive.google.com/<id>``.
What a mirror does not have comes from its own address. The Hugging Face hub has its own mirrors: ``HF_ENDPOINT``.
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
"""Before the second attempt; twice as long before each further one."""
TIMEOUT_S = 60.0
"""For which a server may be silent."""


class BadFile(ValueError):
    """Why a file is not what it should be, to be completed with its name and the remedy: "is a web page, …"."""


@dataclass(frozen=True)
class Remote:
    """A file that lies elsewhere.

    Args:
        path: where it belongs.
        url: where anyone can get it with a browser; its name in ``models.lock``.
        check: raises `BadFile` for a file that is not what it should be.
        download: writes it from its own address to a path; from ``url`` itself without it.
        error: what to raise where it is damaged, another, or cannot be fetched.
        missing: what to raise where it is not there and must not be fetched.
    """

    path: Path
    url: str
    check: Callable[[Path], None]
    download: Callable[[str], object] | None = None
    error: type[HarnessError] = ModelError
    missing: type[HarnessError] = ModelError

    @property
    def by_hand(self) -> str:
        """How to do without the download."""
        return f"to put it there by hand, open {self.url} in a browser and save the file as {self.path}"

    def ensure(self, offline: bool) -> None:
        """Have it there, whole and as recorded, or raise; a file that was there before is never touched."""
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
        with TemporaryDirectory(dir=self.path.parent, prefix=".download-") as folder:
            part = Path(folder) / self.path.name
            source = self._download(part)
            try:
                self.check(part)
            except BadFile as bad:
                raise self.error(f"{self.path}: what came from {source} {bad}; {self.by_hand}") from bad
            if fault := differs(self.url, part):
                raise self.error(f"{self.path}: what came from {source} {fault}; run again, or {ON_PURPOSE}")
            part.replace(self.path)

    def _download(self, part: Path) -> str:
        """Write the file to ``part``, from the mirror if that has it; returns where it came from."""
        own = self.download or (lambda path: from_web(self.url, Path(path)))
        sources: list[tuple[str, Callable[[str], object]]] = [(self.url, own)]
        if mirror := mirrored(self.url):
            sources.insert(0, (mirror, lambda path: from_web(mirror, Path(path))))
        faults = []
        for source, download in sources:
            try:
                _patiently(download, str(part))
                if not part.is_file():
                    raise FileNotFoundError("no file came")
                return source
            except Exception as error:  # gdown, requests and urllib have no common base
                why = " ".join(f"{type(error).__name__}: {error}".split())  # gdown's come on many lines
                faults.append(why if source == self.url else f"the mirror's {source}: {why}")
                part.unlink(missing_ok=True)
        raise self.error(f"{self.path}: the download failed ({'; '.join(faults)}); {self.by_hand}")


def from_hugging_face(repo: str, names: Sequence[str], revision: str | None, offline: bool, by_hand: str) -> Path:
    """The first of the files ``names`` that the model ``repo`` of the Hugging Face hub has, in that hub's own cache.

    Args:
        repo: user/name.
        names: files of it, the best first.
        revision: branch, tag or commit; its main branch without it.
        offline: take it from the cache alone.
        by_hand: how to do without, for errors.

    Raises:
        ModelError: it cannot be had, or is not what ``models.lock`` recorded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    urls = [f"https://huggingface.co/{repo}/resolve/{revision or 'main'}/{name}" for name in names]
    for name, url in zip(names, urls, strict=True):
        try:
            path = Path(hf_hub_download(repo, name, revision=revision, local_files_only=offline))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's, its HTTP library's and the system's have no common base
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(f"{url}: the download failed ({why}); {by_hand}") from error
        if fault := differs(url, path):
            raise ModelError(f"{path} {fault}; name the revision that you want (repo@revision), or {ON_PURPOSE}")
        return path
    reason = "not in the cache of the Hugging Face hub, and offline none is downloaded" if offline else "cannot be had"
    raise ModelError(f"{' or '.join(urls)}: {reason}; {by_hand}")


def from_web(url: str, path: Path) -> None:
    """Write what ``url`` (http, https or file) sends to ``path``.

    Raises:
        ConnectionError: it stopped before the end.
        OSError: no answer, or a refusal.
    """
    request = Request(url, headers={"User-Agent": "ct-harness"})
    with urlopen(request, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
        copyfileobj(answer, file)
        promised = int(answer.headers.get("Content-Length") or file.tell())
        if file.tell() != promised:  # urllib does not tell
            raise ConnectionError(f"it stopped after {file.tell():,} of {promised:,} bytes")


def mirrored(url: str) -> str | None:
    """The address of ``url`` on the mirror, if there is one."""
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return None
    parts = urlparse(url)
    drive = parse_qs(parts.query).get("id") if parts.hostname == "drive.google.com" else None
    return f"{mirror.rstrip('/')}/{parts.hostname}/{drive[0] if drive else parts.path.lstrip('/')}"


def _patiently(download: Callable[[str], object], path: str) -> None:
    """Download, and try again after a fault that may pass."""
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    for attempt in Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=FIRST_WAIT_S),
        reraise=True,
    ):
        with attempt:
            download(path)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    absent = isinstance(error, URLError) and isinstance(error.reason, FileNotFoundError)  # in a mirror's folder
    return isinstance(error, OSError | HTTPException) and not absent
