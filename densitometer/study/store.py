"""A study on disk: a folder that several processes may write and that survives a kill at any
moment.

    manifest.json             schema, settings, corpus (name, SHA-256, size), versions, the SHA-256
                              of texts.parquet, the fingerprint of each model
    texts.parquet             the corpus: one row per text
    parts/MODEL/START-END-DIGEST.parquet
                              the results of cells START to END - 1 of one model. A cell is one text
                              under one model and has the number of its text. DIGEST is the first
                              digits of the SHA-256 of the file's content
    lock                      one byte per cell, locked by the process that works on the cell

A part (`part_files.py`) is written under a temporary name, synced and renamed, so it exists whole
or not at all. A cell is missing if no part covers it; the file names alone show that. Small parts
are merged into larger ones. A merged part covers the cells of those that it replaces, so a kill
between writing the one and removing the others does no harm.

Texts may be added (`additions.py`). Cells keep their numbers, and new texts get the next ones.
First the planned change is written into the manifest, under the key "adding". Then texts.parquet is
replaced, and last the manifest. So a study that was killed in between has the old texts or the new.

A reader gets what was written, or an error (`integrity.py`): the digests of parts and texts are
checked, and whether a part's rows belong to this study.

Locks are POSIX record locks: the operating system releases them when their process ends for any
reason. On a file system without locks, two processes may do the same work. Each result still counts
once.

Nothing is pickled. This version writes the schema `densitometer.study/3`. It migrates older studies
when it opens them, and refuses newer ones.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars

from .._util.files import checked_path, file_digest, file_state, write_file, written_beside
from .._util.notebook_table import Described
from ..errors import InputError, StorageError
from .additions import extended
from .chats import CHAT
from .corpus import Corpus
from .integrity import damaged, foreign
from .manifest import (
    FORMAT,
    VERSION,
    differences,
    migrate,
    other_corpus,
    other_weights,
    read_manifest,
    refuse_other_settings,
    settled,
    sync,
    write_manifest,
)
from .part_files import (
    KEY,
    MEASUREMENTS,
    SCHEMA,
    UNREADABLE,
    Part,
    check_place,
    digest_of,
    is_part,
    list_parts,
    not_a_part,
    parquet_of,
    parts_of,
    ranges_of,
    reads_of,
    slug,
)

# Parts are merged until one holds about this many cells or bytes.
MERGED_CELLS = 4096
MERGED_BYTES = 64 * 2**20
# While a study runs, parts are merged once this many lie side by side. Parts of more than
# SMALL_CELLS cells then stay as they are, so that no result is rewritten often.
SMALL_PARTS = 32
SMALL_CELLS = MERGED_CELLS // 16
# A temporary file that was not modified for this long was left by a killed process.
STALE_SECONDS = 3600
# Attempts to read the parts while another process merges them.
ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class StudyStore:
    """The folder of a study, for a process that writes it. `open_study` opens it for reading.

    Args:
        folder: the study's folder.
        manifest: schema, settings, corpus, versions.
        texts: the study's texts, one row per cell.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    _lock: int = field(repr=False)
    texts: polars.DataFrame = field(default_factory=polars.DataFrame, repr=False)
    _warnings: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def create(
        cls, folder: str | Path, settings: Mapping[str, Any], corpus: Mapping[str, Any], texts: polars.DataFrame,
        versions: Mapping[str, str],
    ) -> StudyStore:  # fmt: skip
        """Open a study for writing, or create one if the folder holds none.

        Args:
            folder: the study's folder.
            settings: all settings on which the numbers depend.
            corpus: name, sha256 and n_texts.
            texts: the corpus itself, one row per text. Texts that the study does not have are
                added.
            versions: version of each package, by name.

        Raises:
            StorageError: the folder cannot be written, or it holds something that is not a study,
                or a study of a newer schema, another corpus or other settings.
        """
        folder = checked_path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot write the study {str(folder)!r}: {error.strerror or error}"
            ) from error
        for place in (folder / "parts").glob("model=*"):
            check_place(place)
        store = cls(folder, {}, _open_lock(folder))
        try:
            # through JSON, so that settings compare equal to those that a manifest holds
            begun = store._begin(json.loads(json.dumps(settings)), corpus, texts, versions)
        except BaseException:
            store.close()
            raise
        return replace(store, texts=begun)

    def _begin(
        self,
        settings: dict[str, Any],
        corpus: Mapping[str, Any],
        texts: polars.DataFrame,
        versions: Mapping[str, str],
    ) -> polars.DataFrame:
        """Read the manifest and compare it with the settings given, or write a new one.

        Returns:
            The study's texts.
        """
        folder = self.folder
        with self.locked():
            if (folder / "manifest.json").exists():
                manifest = self._settled(migrate(folder))
                refuse_other_settings(folder, manifest, settings)
                texts = self._known_or_more(manifest, corpus, texts)
                if versions not in manifest["versions"]:
                    manifest["versions"].append(dict(versions))
                    self._warnings.append(
                        "the study was begun with other versions: "
                        + differences(manifest["versions"][0], versions)
                    )
                    self._write_manifest(manifest)
            else:
                content = parquet_of(texts)
                if any(not self._is_own(path, content) for path in folder.iterdir()):
                    raise StorageError(
                        f"the folder {str(folder)!r} is not empty and is not a study (it has no manifest.json); "
                        "give another folder"
                    )
                manifest = {
                    "schema": f"{FORMAT}/{VERSION}",
                    "settings": settings,
                    "corpus": dict(corpus),
                    "versions": [dict(versions)],
                }
                # the manifest last: a folder with one is a whole study
                manifest["texts"] = self._write_texts(content)
                self._write_manifest(manifest)
            self.manifest.update(manifest)
            _sweep(folder)
        return texts

    def _is_own(self, path: Path, content: bytes) -> bool:
        """Whether a file in a folder without a manifest can be left from a killed start of a study.

        Args:
            path: the file.
            content: the bytes of texts.parquet that this study is about to write.
        """
        # killed after texts.parquet was written and before the manifest was
        if path.name == "texts.parquet":
            return path.is_file() and path.read_bytes() == content
        return path.name == "lock" or path.name.startswith(".")

    def _settled(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Repair the manifest if the process that added texts was killed.

        The repaired manifest describes the texts that texts.parquet holds now.
        """
        if "adding" not in manifest:
            return manifest
        try:
            digest = file_digest(self.folder / "texts.parquet")
        except OSError:
            digest = None
        manifest = settled(manifest, digest)
        self._write_manifest(manifest)
        return manifest

    def _known_or_more(
        self, manifest: dict[str, Any], corpus: Mapping[str, Any], texts: polars.DataFrame
    ) -> polars.DataFrame:
        """Return the study's texts and those that a corpus adds. Write texts.parquet if damaged.

        Args:
            manifest: the study's manifest, which is changed and written where texts are added.
            corpus: name, sha256 and n_texts of the corpus.
            texts: the corpus, one row per text.

        Raises:
            StorageError: the corpus lacks a text of the study, or has another text with its id.
        """
        same = corpus["sha256"] == manifest["corpus"]["sha256"]
        try:
            known = _read_texts(self.folder, manifest)
        except StorageError as error:
            # Without the file, the study's texts can only be recognised by their SHA-256, which
            # depends on their order: they must be the first texts of the corpus.
            known = texts.head(manifest["corpus"]["n_texts"])
            if not same and Corpus("", known).sha256 != manifest["corpus"]["sha256"]:
                reason = f"cannot be compared with it, as texts.parquet is missing or damaged ({error})"
                raise other_corpus(self.folder, manifest, corpus, reason) from error
            manifest["texts"] = self._write_texts(parquet_of(known))
            self._write_manifest(manifest)
            self._warnings.append("texts.parquet was damaged; it was written again from the corpus")
        if same:
            return texts
        try:
            more = extended(known, texts)
        except ValueError as error:
            raise other_corpus(self.folder, manifest, corpus, str(error)) from error
        if more.height > known.height:
            self._add(manifest, str(corpus["name"]), more)
            n = more.height - known.height
            self._warnings.append(
                f"{n:,} text{'s were' if n > 1 else ' was'} added to the {known.height:,} of the study {str(self.folder)!r}"
            )
        return more

    def _add(self, manifest: dict[str, Any], name: str, texts: polars.DataFrame) -> None:
        """Replace the study's texts by a longer list that begins with the same texts.

        If the process is killed meanwhile, the study has either the old list or the new one.

        Args:
            manifest: the study's manifest, which is changed and written.
            name: name of the corpus that the longer list was read from.
            texts: all texts, first those that the study has already.
        """
        content = parquet_of(texts)
        adding = {
            "corpus": {"name": name, "sha256": Corpus(name, texts).sha256, "n_texts": texts.height},
            "texts": hashlib.sha256(content).hexdigest(),
            "counted": manifest.get("counted", manifest["corpus"]["n_texts"]),
        }
        # A manifest of an older version has no digest of the texts. While texts are added, a reader
        # needs the digests of the old file and of the new one.
        manifest.setdefault("texts", file_digest(self.folder / "texts.parquet"))
        self._write_manifest(manifest | {"adding": adding})
        self._write_texts(content)
        manifest.update(adding)
        self._write_manifest(manifest)

    def _write_texts(self, content: bytes) -> str:
        """Write texts.parquet, and return its SHA-256."""
        write_file(self.folder / "texts.parquet", lambda file: file.write(content))
        sync(self.folder)
        return hashlib.sha256(content).hexdigest()

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_manifest(self.folder, manifest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the study that was opened, such as a change of versions."""
        return tuple(self._warnings)

    def close(self) -> None:
        """Close the lock file, which releases every lock of this process."""
        os.close(self._lock)

    def write(self, model: str, start: int, end: int, content: bytes) -> Path:
        """Add a part, whole or not at all, and return its path.

        Args:
            model: name of the model.
            start: number of the first cell.
            end: one more than the number of the last cell.
            content: bytes of a Parquet file (`part_files.part_of`).

        Raises:
            StorageError: the disk is full, or the model's folder is missing, is a link or is not a
                folder.
        """
        place = self.folder / "parts" / slug(model)
        check_place(place)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {str(place)!r}: {error.strerror or error}") from error
        path = place / f"{start:08d}-{end:08d}-{digest_of(content)}.parquet"
        write_file(path, lambda file: file.write(content))
        sync(place)
        return path

    def missing(self, model: str, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges of cells, among start to end - 1, that no part covers."""
        gaps, at = [], start
        for part in list_parts(self.folder / "parts" / slug(model)):
            if part.first > at:
                gaps.append((at, min(part.first, end)))
            at = max(at, part.end)
            if at >= end:
                break
        if at < end:
            gaps.append((at, end))
        return [(a, b) for a, b in gaps if a < b]

    def set_damaged_aside(self, model: str, start: int, end: int) -> list[str]:
        """Rename damaged parts, so that their cells count as missing.

        A part is damaged if its content does not have the digest in its name. Only parts that cover
        any of the cells start to end - 1 are read.

        Returns:
            Paths of the renamed parts within the study.
        """
        names = []
        for part in list_parts(self.folder / "parts" / slug(model)):
            if part.first < end and start < part.end and not part.whole:
                names.append(self._set_aside(part))
        return names

    def set_foreign_aside(self, model: str, start: int, end: int) -> dict[str, str]:
        """Rename parts that are of another study, corpus or model, so that their cells are missing.

        Every key is computed again. Only parts that cover any of the cells start to end - 1 are
        read, and none whose content is damaged. The caller must hold `locked`.

        Returns:
            The reason for each of the renamed parts, by its path within the study.

        Raises:
            StorageError: a file is not a part of a study.
        """
        parts = [
            p for p in list_parts(self.folder / "parts" / slug(model)) if p.first < end and start < p.end
        ]
        whole = [part for part in parts if part.whole]
        # another process may have added texts since this one began
        manifest = read_manifest(self.folder)
        texts = _read_texts(self.folder, manifest)
        found = foreign(whole, manifest["settings"], manifest["corpus"]["sha256"], texts, every=True)
        return {self._set_aside(part): reason for part, reason in found}

    def _set_aside(self, part: Part) -> str:
        """Give a part's file the suffix .damaged, so that it is ignored and its cells are missing.

        Returns:
            The path that the part had before, relative to the study's folder.
        """
        part.path.rename(part.path.with_suffix(".damaged"))
        return str(part.path.relative_to(self.folder))

    def forget_failures(self, model: str) -> int:
        """Remove failed cells from their parts, so that they count as missing.

        Returns:
            Number of cells removed.
        """
        count = 0
        for part in list_parts(self.folder / "parts" / slug(model)):
            # a damaged part outside of the shard is left to the run that measures its cells again
            if not part.whole:
                continue
            table = part.read()
            failed = set(table.filter(polars.col("error").is_not_null())["cell"])
            if not failed:
                continue
            count += len(failed)
            kept = [c for c in range(part.first, part.end) if c not in failed]
            for start, end in ranges_of(kept):
                self.write(
                    model, start, end, parquet_of(table.filter(polars.col("cell").is_between(start, end - 1)))
                )
            # removed last: a kill before this leaves cells covered twice, never results lost
            part.path.unlink(missing_ok=True)
        return count

    def merge(self, model: str, small: bool = False) -> None:
        """Merge parts that lie side by side into larger ones. The caller must hold `locked`.

        Args:
            model: name of the model.
            small: merge only long rows of small parts, which is cheap enough while a study runs.
        """
        fewest = SMALL_PARTS if small else 2
        place = self.folder / "parts" / slug(model)
        group: list[Part] = []
        size = 0
        # None ends a group: after the last part, and at a part that is too large to be rewritten
        for part in [*list_parts(place), None]:
            # a damaged part ends a group too: after merging, its digest would hide the damage
            if part is not None and ((small and part.end - part.first > SMALL_CELLS) or not part.whole):
                part = None
            fits = (
                part is not None
                and (not group or part.first == group[-1].end)
                and size + part.path.stat().st_size <= MERGED_BYTES
                and (not group or part.end - group[0].first <= MERGED_CELLS)
            )
            if not fits:
                if len(group) >= fewest:
                    tables = [p.read() for p in group]
                    self.write(model, group[0].first, group[-1].end, parquet_of(polars.concat(tables)))
                    # Old parts are removed last. Until then `list_parts` prefers the merged part,
                    # so each cell counts exactly once at any moment.
                    for old in group:
                        old.path.unlink(missing_ok=True)
                group, size = [], 0
            if part is not None:
                group.append(part)
                size += part.path.stat().st_size

    def note_model(self, model: str, commit: str | None) -> None:
        """Write a model's fingerprint into the manifest, or compare it with the one that is there.

        This has to be called before results of the model are stored.

        Args:
            model: NAME or NAME@REVISION.
            commit: fingerprint of the weights and the tokenizer; None if the model has none.

        Raises:
            StorageError: the study has results of the same model with different weights.
        """
        known = self.manifest.get("models", {}).get(model)
        if commit is None or known == commit:
            return
        with self.locked():
            # another process may have written it since
            manifest = read_manifest(self.folder)
            known = manifest.get("models", {}).get(model)
            if known is None:
                manifest["models"] = manifest.get("models", {}) | {model: commit}
                self._write_manifest(manifest)
            self.manifest.update(manifest)
        if known not in (None, commit):
            raise other_weights(model, known, commit)

    def commit(self, model: str) -> str | None:
        """Fingerprint of the weights that a model's stored results were measured with.

        None if neither the manifest nor a part records it.

        Raises:
            StorageError: a part is not a Parquet file of a study.
        """
        if (noted := self.manifest.get("models", {}).get(model)) is not None:
            return str(noted)
        for part in list_parts(self.folder / "parts" / slug(model)):
            if not part.whole:
                continue
            try:
                table = polars.read_parquet(
                    part.path, hive_partitioning=False, glob=False, columns=["commit"]
                )
            except UNREADABLE as error:
                raise not_a_part(part.path) from error
            known = table["commit"].drop_nulls()
            if len(known):
                return str(known[0])
        return None

    def count(self, model: str, start: int, end: int) -> tuple[int, int]:
        """Count a model's stored cells among start to end - 1, and those of them that failed."""
        done = failed = 0
        for part in list_parts(self.folder / "parts" / slug(model)):
            first, last = max(start, part.first), min(end, part.end)
            if first < last:
                table = polars.read_parquet(
                    part.path, hive_partitioning=False, glob=False, columns=["cell", "error"]
                )
                wrong = table.filter(
                    polars.col("error").is_not_null() & polars.col("cell").is_between(first, last - 1)
                )
                done += last - first
                failed += wrong["cell"].n_unique()
        return done, failed

    def claim(self, model: str, start: int, end: int) -> bool:
        """Lock the cells start to end - 1. Return False if another process holds any of them."""
        return self._lockf(_place(model, start), end - start, wait=False)

    def release(self, model: str, start: int, end: int) -> None:
        """Unlock the cells start to end - 1 of a model."""
        self._unlockf(_place(model, start), end - start)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock on the manifest and on merging. Wait for it if another process has it."""
        self._lockf(0, 1, wait=True)
        try:
            yield
        finally:
            self._unlockf(0, 1)

    def _lockf(self, place: int, length: int, wait: bool) -> bool:
        """Lock bytes of the lock file. Return False if another process holds any of them."""
        try:
            import fcntl
        except ImportError:
            # Not POSIX. Without locks two processes may do the same work, which does no harm.
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, place)
        except OSError as error:
            # any other error means that the file system has no locks, so the cells count as locked
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def _unlockf(self, place: int, length: int) -> None:
        try:
            import fcntl

            fcntl.lockf(self._lock, fcntl.LOCK_UN, length, place)
        except (ImportError, OSError):
            pass


def _open_lock(folder: Path) -> int:
    try:
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(f"cannot write the study {str(folder)!r}: {error.strerror or error}") from error


def _place(model: str, cell: int) -> int:
    """Offset in the lock file of the byte that stands for a cell.

    The first 2^31 bytes are for the manifest. Each model has a range of 2^31 bytes after them,
    chosen by a hash of its name. A lock may lie beyond the end of a file, so the file stays empty.
    Two models with the same hash share their locks, which costs waiting and nothing else.
    """
    return (1 + int(digest_of(model.encode())[:7], 16)) * 2**31 + cell


def _sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in a study's folder.

    Folders of models must have been checked not to be links (`check_place`).
    """
    for place in (folder, *(folder / "parts").glob("model=*")):
        for path in place.glob(".*"):
            name = written_beside(path)
            if name is None or not (name in ("manifest.json", "texts.parquet") or is_part(name)):
                continue
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except OSError:
                # another process removed it first
                pass


@dataclass(frozen=True, repr=False)
class Study(Described):
    """Tables of a study, which may still be running. Each call reads what is stored at that time.

    Args:
        folder: the study's folder.
        manifest: schema, settings, corpus, versions.

    Examples:
        >>> study = dm.run_study(["The captain looked", "One two three four"], "demo", "study", sizes=[0.3, 1.0])
        >>> study.sql("select count(*) from measurements where error is null").item()
        2
        >>> study.curves().filter(study.curves()["size"] == 0.3)["n_edges"].to_list()
        [93, 148]
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    _seen: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def _facts(self) -> dict[str, str]:
        rows = self._read(lambda parts: parts.select("text_id", "model", "importance", "error"))
        failed = rows["error"].is_not_null().sum()
        return {
            "folder": str(self.folder),
            "models": ", ".join(rows["model"].unique(maintain_order=True)) or "none yet",
            "importances": ", ".join(rows["importance"].unique(maintain_order=True)) or "none yet",
            "texts": f"{rows['text_id'].n_unique():,} of {self.texts().height:,}",
            **self._added(),
            "rows": f"{rows.height:,}, {failed:,} of them failed",
        }

    def _added(self) -> dict[str, str]:
        """How many texts were added after the study began. Empty if none were."""
        manifest = self._manifest()
        n = manifest["corpus"]["n_texts"]
        first = manifest.get("counted", n)
        return {} if first == n else {"added": f"{n - first:,} of these texts, to {first:,}"}

    def __repr__(self) -> str:
        facts = self._facts()
        return f"Study({facts['folder']}: {facts['texts']} texts; {facts['models']}; {facts['rows']})"

    def measurements(self) -> polars.DataFrame:
        """Table of measurements: one row per text, piece, model and importance.

        It has the columns of the corpus too.
        """
        names = [name for name in MEASUREMENTS if name != "cell"]
        return self._read(lambda parts: parts.select(*names)).join(
            self.texts().drop("text", "next", "problem", polars.selectors.by_name(CHAT, require_all=False)).rename({"id": "text_id"}),
            on="text_id", how="left", suffix="_of_text", maintain_order="left",
        )  # fmt: skip

    def curves(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """Table of curves: one row per measurement and subgraph that was run.

        `kind` is as in `Measurement.curve` and `Measurement.baselines`.

        Args:
            texts: ids of the texts to read; all by default.
        """
        return self._nested("curve", texts)

    def components(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """Table of components: one row per measurement, trace size and component.

        `n_edges` counts the component's edges that are in the trace, `total` all its edges. A
        component is (kind, layer, head); head is null for kinds without heads.

        Args:
            texts: ids of the texts to read; all by default.
        """
        return self._nested("components", texts)

    def traces(self) -> polars.DataFrame:
        """Table of edges: one row per measurement and edge, in the order in which growth adds them.

        `place` is the edge's place in that order, from 0. The table is empty if the study was run
        with traces="none".
        """
        table = self._nested("trace")
        return table.with_columns(place=polars.int_range(polars.len()).over(*KEY))

    def states(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """Table of inputs of the unembedding: one row per measurement and run.

        `state` is a list of hidden-size float32 numbers, rounded to float16's precision. Kind
        "model" (size null) is the full model, kind "trace" a trace of the curve. The table is empty
        if the study was run with states=False.

        Args:
            texts: ids of the texts to read; all by default.
        """
        return self._nested("states", texts)

    def histograms(self) -> polars.DataFrame:
        """Table of histograms: one row per measurement, with the number of edges in each bin.

        Bins are of the logarithm of importance (`result_tables.BINS`).
        """
        return self._read(
            lambda parts: parts.filter(polars.col("histogram").is_not_null()).select(*KEY, "histogram")
        )

    def texts(self) -> polars.DataFrame:
        """The corpus: id, text, language, domain, next, problem, and its other columns.

        Raises:
            StorageError: texts.parquet is missing or damaged.
        """
        while True:
            manifest = self._manifest()
            try:
                return _read_texts(self.folder, manifest)
            except StorageError:
                # another process may have added texts since the manifest was read
                if self._manifest() == manifest:
                    raise

    def _manifest(self) -> dict[str, Any]:
        """Return the manifest. It is read again if its file has changed, as by added texts."""
        path = self.folder / "manifest.json"
        try:
            state = file_state(path)
        except OSError:
            return self.manifest
        if self._seen.get("state") != state:
            self._seen.update(state=state, manifest=read_manifest(self.folder))
        return dict(self._seen["manifest"])

    def sql(self, query: str) -> polars.DataFrame:
        """Run an SQL query in DuckDB.

        Its tables are measurements, curves, components, states, traces and texts.

        Raises:
            InputError: DuckDB refuses the query, or the query returns no table.
            StorageError: the study's files cannot be read.
        """
        import duckdb

        # DuckDB's temporary files go elsewhere than into the study, and it downloads no extensions
        config: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": "false",
        }
        # If another process has merged a file since it was listed, DuckDB raises IOException. The
        # files are then listed again.
        for attempt in range(ATTEMPTS):
            try:
                with duckdb.connect(":memory:", config=config) as connection:
                    for name, view in self._views():
                        connection.execute(f"create view {name} as {view}")
                    relation = connection.sql(query)
                    if relation is None:
                        raise InputError(f"the query yields no table: {query!r}; expected a select")
                    return polars.DataFrame(relation)
            except duckdb.IOException as error:
                if attempt == ATTEMPTS - 1:
                    raise StorageError(f"cannot read the study {str(self.folder)!r}: {error}") from error
            except duckdb.Error as error:
                raise InputError(f"DuckDB refuses the query: {' '.join(str(error).split())}") from error
        raise AssertionError

    def _parts(self) -> list[Part]:
        """Return the parts whose rows are read, after checking every part.

        Raises:
            StorageError: a part or texts.parquet is damaged, or a part belongs to another study.
        """
        parts = parts_of(self.folder)
        broken = {part.path: "damaged" for part in damaged(parts)}
        manifest = self._manifest()
        if parts:
            others = [part for part in parts if part.path not in broken]
            corpus, texts = manifest["corpus"]["sha256"], self.texts()
            found = foreign(others, manifest["settings"], corpus, texts)
            broken |= {part.path: f"of another study: {reason}" for part, reason in found}
        # another process may have renamed a damaged part meanwhile
        broken = {path: reason for path, reason in broken.items() if path.exists()}
        if broken:
            named = "; ".join(
                f"{path.relative_to(self.folder)} is {reason}" for path, reason in list(broken.items())[:3]
            )
            raise StorageError(
                f"cannot read the study {str(self.folder)!r}, {len(broken)} of {len(parts)} parts are not what was "
                f"written there: {named}. Run the study again to measure their texts again"
            )
        return parts

    def _read(self, select: Callable[[polars.LazyFrame], polars.LazyFrame]) -> polars.DataFrame:
        """Read rows of all parts.

        Parts are listed again if another process has merged some in the meantime.
        """
        for attempt in range(ATTEMPTS):
            parts = self._parts()
            if not parts:
                return select(polars.LazyFrame(schema=SCHEMA)).collect()
            # A part of which only some cells count needs a filter. All others are read in one scan.
            frames = [
                polars.scan_parquet(paths, hive_partitioning=False, glob=False).filter(
                    polars.col("cell") >= first
                )
                if first
                else polars.scan_parquet(paths, hive_partitioning=False, glob=False)
                for paths, first in reads_of(parts)
            ]
            try:
                return select(polars.concat(frames) if len(frames) > 1 else frames[0]).collect()
            except FileNotFoundError:
                continue
            except (OSError, *UNREADABLE) as error:
                if all(part.path.exists() for part in parts) or attempt == ATTEMPTS - 1:
                    raise StorageError(f"cannot read the study {str(self.folder)!r}: {error}") from error
        raise StorageError(f"the study {str(self.folder)!r} changes faster than it can be read; try again")

    def _nested(self, name: str, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """Read a nested column of the parts as a table: its rows, with the key of the measurement.

        A curve has its own column `importance`, which replaces that of the key.
        """

        def select(parts: polars.LazyFrame) -> polars.LazyFrame:
            keys = [key for key in KEY if key != "importance" or name != "curve"]
            if texts is not None:
                parts = parts.filter(polars.col("text_id").is_in(list(texts)))
            return parts.filter(polars.col(name).is_not_null()).select(*keys, name).explode(name).unnest(name)

        return self._read(select)

    def _views(self) -> Iterator[tuple[str, str]]:
        # reading the texts checks the file, before DuckDB reads it
        of_texts = self.texts().columns
        texts = _quoted(self.folder / "texts.parquet")
        yield "texts", f"select * from read_parquet({texts})"
        parts = self._parts()
        if parts:
            # The model's name is a column. A folder's name is only made from it for the file
            # system.
            sources = [
                f"select * from read_parquet([{', '.join(map(_quoted, paths))}], hive_partitioning = false)"
                + (f" where cell >= {first}" if first else "")
                for paths, first in reads_of(parts)
            ]
            yield "parts", " union all by name ".join(sources)
        else:
            columns = ", ".join(f"null as {name}" for name in SCHEMA)
            yield "parts", f"select {columns} where false"
        taken = {*MEASUREMENTS, "text", "next", "problem", "id", CHAT}
        carried = (name.replace('"', '""') for name in of_texts if name not in taken)
        others = "".join(f', texts."{name}"' for name in carried)
        names = ", ".join(f"parts.{name}" for name in MEASUREMENTS if name != "cell")
        yield "measurements", f"select {names}{others} from parts left join texts on parts.text_id = texts.id"
        for view, column in (
            ("curves", "curve"),
            ("components", "components"),
            ("states", "states"),
            ("traces", "trace"),
        ):
            keys = ", ".join(key for key in KEY if key != "importance" or column != "curve")
            yield (
                view,
                f"select {keys}, unnest({column}, recursive := true) from parts where {column} is not null",
            )


def _read_texts(folder: Path, manifest: Mapping[str, Any]) -> polars.DataFrame:
    """Read texts.parquet, which must have the digest in the manifest.

    A manifest of an older version has no digest. The texts are then compared with the SHA-256 of
    the corpus.

    Raises:
        StorageError: the file is missing or damaged, or is of another study.
    """
    path = folder / "texts.parquet"
    other = StorageError(
        f"{str(path)!r} is damaged, or of another study: its digest is not the one in manifest.json. Run the study "
        "again with its corpus, which writes it again"
    )
    try:
        digest, known = file_digest(path), _digests(manifest)
        # checked before polars reads it: with a flipped bit, polars may allocate too much memory
        # and end the process
        if known and digest not in known:
            raise other
        table = polars.read_parquet(path, glob=False)
        table = table.with_columns(polars.col("id", "text", "next", "problem").cast(polars.String))
        if not known and not _is_corpus(digest, table, manifest):
            raise other
    except (OSError, InputError, *UNREADABLE) as error:
        raise StorageError(f"the study {str(folder)!r} has no readable texts.parquet: {error}") from error
    return table


def _digests(manifest: Mapping[str, Any]) -> list[str]:
    """SHA-256s that texts.parquet may have: two while texts are added, none in older manifests."""
    return [keys["texts"] for keys in (manifest, manifest.get("adding", {})) if "texts" in keys]


# Digests of texts.parquet, and the SHA-256 of the corpus in it.
_CORPORA: dict[str, str] = {}


def _is_corpus(digest: str, table: polars.DataFrame, manifest: Mapping[str, Any]) -> bool:
    if digest not in _CORPORA:
        _CORPORA[digest] = Corpus("texts.parquet", table).sha256
    return _CORPORA[digest] == str(manifest["corpus"]["sha256"])


def _quoted(path: Path) -> str:
    """Quote a path for DuckDB, so that characters of patterns (*, ?, [) stand for themselves."""
    escaped = re.sub(r"[*?\[]", lambda match: f"[{match[0]}]", str(path))
    return "'" + escaped.replace("'", "''") + "'"


def open_study(folder: str | Path) -> Study:
    """Open a study that `run_study` or `densitometer study` wrote.

    Args:
        folder: the study's folder. A study of an older schema is migrated in place.

    Raises:
        StorageError: the folder is not a study, or its schema is newer than this version knows.

    Examples:
        >>> _ = dm.run_study(["The captain looked"], "demo", "study", sizes=[0.3, 1.0])
        >>> dm.open_study("study").texts()["text"].to_list()
        ['The captain looked']
    """
    folder = checked_path(folder)
    manifest = read_manifest(folder)
    if manifest["schema"] != f"{FORMAT}/{VERSION}":
        store = StudyStore(folder, {}, _open_lock(folder))
        try:
            with store.locked():
                manifest = migrate(folder)
        finally:
            store.close()
    return Study(folder, manifest)
