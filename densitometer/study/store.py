"""A study on disk: a folder that many processes may write, that a kill at any moment leaves whole, and that tables are read from.

    manifest.json             schema, settings, corpus (name, SHA-256, size), versions
    texts.parquet             the corpus: a row per text
    parts/MODEL/START-END-DIGEST.parquet
                              the results of the cells START to END - 1 of a model. A cell is one text under one model,
                              numbered as the texts are. DIGEST is of the file's content
    lock                      its bytes are locked, one per cell, by the process that works on them

A part (`part_files.py`) is one file: it is there whole or not at all. It is written under a temporary name, synced and renamed.
What is missing is what no part covers: the names alone say it. Small parts are merged into larger ones; a merged part covers
those that it was made of, so that a kill between the two steps does no harm.

Locks are POSIX record locks: they go when their process goes, however it ends. Where a file system has none, two processes
may do the same work, and the results are still there once.

Nothing is pickled. Schemas: this version writes `densitometer.study/2`; older ones are migrated when they are opened, newer
ones refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars

from .._util.files import checked_path, write_file, written_beside
from .._util.notebook_table import Described
from ..errors import InputError, StorageError
from .manifest import FORMAT, VERSION, differences, migrate, read_manifest, refuse_other, sync, write_manifest
from .part_files import (
    KEY,
    MEASUREMENTS,
    SCHEMA,
    Part,
    check_place,
    digest_of,
    is_part,
    list_parts,
    parquet_of,
    ranges_of,
    slug,
)

MERGED_CELLS = 4096  # parts are merged until they hold about so many
MERGED_BYTES = 64 * 2**20  # or take so much room
SMALL_CELLS = (
    MERGED_CELLS // 16
)  # of a part that is merged while the study is under way; none is rewritten often
SMALL_PARTS = 32  # side by side, from which on they are
STALE_SECONDS = 3600  # a temporary file that nobody has touched for so long was left by a kill
ATTEMPTS = 5  # at reading, while another process merges parts


@dataclass(frozen=True, eq=False)
class StudyStore:
    """The folder of a study, for the process that writes it. `open_study` reads it."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    _lock: int = field(repr=False)
    _warnings: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def create(
        cls, folder: str | Path, settings: Mapping[str, Any], corpus: Mapping[str, Any], texts: polars.DataFrame,
        versions: Mapping[str, str],
    ) -> StudyStore:  # fmt: skip
        """Open a study for writing. Make one where there is none.

        Args:
            settings: what the numbers depend on.
            corpus: name, sha256 and n_texts.
            versions: of the software.

        Raises:
            StorageError: the folder cannot be written, holds something else, or a study of a newer schema, of another
                corpus or of other settings.
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
            store._begin(json.loads(json.dumps(settings)), corpus, texts, versions)
        except BaseException:
            store.close()
            raise
        return store

    def _begin(
        self,
        settings: dict[str, Any],
        corpus: Mapping[str, Any],
        texts: polars.DataFrame,
        versions: Mapping[str, str],
    ) -> None:
        """Read the manifest and compare it with the settings given, or write a new one."""
        folder = self.folder
        with self.locked():
            if (folder / "manifest.json").exists():
                manifest = migrate(folder)
                refuse_other(folder, manifest, settings, corpus)
                if versions not in manifest["versions"]:
                    manifest["versions"].append(dict(versions))
                    self._warnings.append(
                        "the study was begun with other versions: "
                        + differences(manifest["versions"][0], versions)
                    )
                    self._write_manifest(manifest)
            else:
                if any(p.name not in ("lock",) and not p.name.startswith(".") for p in folder.iterdir()):
                    raise StorageError(
                        f"the folder {str(folder)!r} is not empty and holds no study (no manifest.json); give another folder"
                    )
                manifest = {
                    "schema": f"{FORMAT}/{VERSION}",
                    "settings": settings,
                    "corpus": dict(corpus),
                    "versions": [dict(versions)],
                }
                write_file(folder / "texts.parquet", lambda file: file.write(parquet_of(texts)))
                self._write_manifest(manifest)
            self.manifest.update(manifest)
            _sweep(folder)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_manifest(self.folder, manifest)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the folder as it was found."""
        return tuple(self._warnings)

    def close(self) -> None:
        """Release the folder."""
        os.close(self._lock)

    def write(self, model: str, start: int, end: int, content: bytes) -> Path:
        """Add a part, whole or not at all.

        Raises:
            StorageError: the disk is full, or the folder is gone, or no folder of its own.
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
        """The ranges of cells, of those from start to end - 1, that no part covers."""
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
        """Rename parts that do not hold what was written to them, so that their cells are missing.

        Only parts with any of the cells from start to end - 1 are read.

        Returns:
            Their names.
        """
        found = []
        for part in list_parts(self.folder / "parts" / slug(model)):
            if part.first < end and start < part.end and not part.whole:
                part.path.rename(part.path.with_suffix(".damaged"))
                found.append(str(part.path.relative_to(self.folder)))
        return found

    def forget_failures(self, model: str) -> int:
        """Make the cells that failed missing, by taking them out of their parts.

        Return how many there were.
        """
        count = 0
        for part in list_parts(self.folder / "parts" / slug(model)):
            table = polars.read_parquet(part.path, hive_partitioning=False, glob=False).filter(
                polars.col("cell") >= part.first
            )
            failed = set(table.filter(polars.col("error").is_not_null())["cell"])
            if not failed:
                continue
            count += len(failed)
            kept = [c for c in range(part.first, part.end) if c not in failed]
            for start, end in ranges_of(kept):
                self.write(
                    model, start, end, parquet_of(table.filter(polars.col("cell").is_between(start, end - 1)))
                )
            part.path.unlink(missing_ok=True)
        return count

    def merge(self, model: str, small: bool = False) -> None:
        """Merge parts that lie side by side into larger ones. Only one process at a time may.

        Args:
            small: only where there are many small ones, as while a study is under way.
        """
        fewest = SMALL_PARTS if small else 2
        place = self.folder / "parts" / slug(model)
        group: list[Part] = []
        size = 0
        for part in [*list_parts(place), None]:
            if part is not None and small and part.end - part.first > SMALL_CELLS:
                part = None
            fits = (
                part is not None
                and (not group or part.first == group[-1].end)
                and size + part.path.stat().st_size <= MERGED_BYTES
                and (not group or part.end - group[0].first <= MERGED_CELLS)
            )
            if not fits:
                if len(group) >= fewest:
                    tables = [
                        polars.read_parquet(p.path, hive_partitioning=False, glob=False).filter(
                            polars.col("cell") >= p.first
                        )
                        for p in group
                    ]
                    self.write(model, group[0].first, group[-1].end, parquet_of(polars.concat(tables)))
                    for old in group:
                        old.path.unlink(missing_ok=True)
                group, size = [], 0
            if part is not None:
                group.append(part)
                size += part.path.stat().st_size

    def commit(self, model: str) -> str | None:
        """Identity of the weights that the parts of a model were measured with.

        None where no part holds it.
        """
        for part in list_parts(self.folder / "parts" / slug(model)):
            try:
                table = polars.read_parquet(
                    part.path, hive_partitioning=False, glob=False, columns=["commit"]
                )
            except polars.exceptions.PolarsError as error:
                raise StorageError(
                    f"the part {str(part.path)!r} is no part of a study; remove it, and its texts are measured again"
                ) from error
            known = table["commit"].drop_nulls()
            if len(known):
                return str(known[0])
        return None

    def count(self, model: str, start: int, end: int) -> tuple[int, int]:
        """How many of the cells from start to end - 1 of a model are there, and how many of them failed."""
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
        """Lock cells for this process. Return False where another process has any of them."""
        return self._lockf(_place(model, start), end - start, wait=False)

    def release(self, model: str, start: int, end: int) -> None:
        """Unlock cells."""
        self._unlockf(_place(model, start), end - start)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder's manifest and the merging of its parts to this process."""
        self._lockf(0, 1, wait=True)
        try:
            yield
        finally:
            self._unlockf(0, 1)

    def _lockf(self, place: int, length: int, wait: bool) -> bool:
        try:
            import fcntl
        except ImportError:  # no POSIX
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, place)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EAGAIN)  # else a file system without locks
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
    """The byte of the lock file that stands for a cell: 2^31 for each model, after the manifest's."""
    return (1 + int(digest_of(model.encode())[:7], 16)) * 2**31 + cell


def _sweep(folder: Path) -> None:
    """Remove temporary files of ours that a kill left. No place may be a link (`check_place`)."""
    for place in (folder, *(folder / "parts").glob("model=*")):
        for path in place.glob(".*"):
            name = written_beside(path)
            if name is None or not (name in ("manifest.json", "texts.parquet") or is_part(name)):
                continue
            try:
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
            except OSError:
                pass  # another process was faster


@dataclass(frozen=True, repr=False)
class Study(Described):
    """A study to read. It may still be growing, and each call reads what is there.

    Args:
        folder: where it is.
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

    def _facts(self) -> dict[str, str]:
        told = self._read(lambda parts: parts.select("text_id", "model", "importance", "error"))
        failed = told["error"].is_not_null().sum()
        return {
            "folder": str(self.folder),
            "models": ", ".join(told["model"].unique(maintain_order=True)) or "none yet",
            "importances": ", ".join(told["importance"].unique(maintain_order=True)) or "none yet",
            "texts": f"{told['text_id'].n_unique():,} of {self.texts().height:,}",
            "rows": f"{told.height:,}, {failed:,} of them failed",
        }

    def __repr__(self) -> str:
        facts = self._facts()
        return f"Study({facts['folder']}: {facts['texts']} texts; {facts['models']}; {facts['rows']})"

    def measurements(self) -> polars.DataFrame:
        """One row per text, piece of it, model and importance, with the columns of the corpus."""
        names = [name for name in MEASUREMENTS if name != "cell"]
        return self._read(lambda parts: parts.select(*names)).join(
            self.texts().drop("text", "next", "problem").rename({"id": "text_id"}),
            on="text_id", how="left", suffix="_of_text", maintain_order="left",
        )  # fmt: skip

    def curves(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """One row per measurement and trace that was run.

        `kind` as in `Measurement.curve` and `.baselines`.

        Args:
            texts: only of those with these ids; of all by default.
        """
        return self._nested("curve", texts)

    def components(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """One row per measurement, size and component.

        `n_edges` counts the edges of the trace that the component holds, `total` all edges that it
        has. A component is (kind, layer, head), with head null where none.

        Args:
            texts: only of those with these ids; of all by default.
        """
        return self._nested("components", texts)

    def traces(self) -> polars.DataFrame:
        """One row per measurement and edge, in the order in which best-first growth adds them.

        `place` is the place in that order, from 0. The table is empty where the study keeps no traces.
        """
        table = self._nested("trace")
        return table.with_columns(place=polars.int_range(polars.len()).over(*KEY))

    def states(self, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """One row per measurement and run, with the `state` that the unembedding read.

        `state` has hidden size numbers, float32 with float16's precision. A row is of the model
        (kind "model", size null) or of a trace of the curve (kind "trace"). The table is empty where
        the study keeps no states.

        Args:
            texts: only of those with these ids; of all by default.
        """
        return self._nested("states", texts)

    def histograms(self) -> polars.DataFrame:
        """One row per measurement: how many edges have an importance in each of the bins of `cell.BINS`."""
        return self._read(
            lambda parts: parts.filter(polars.col("histogram").is_not_null()).select(*KEY, "histogram")
        )

    def texts(self) -> polars.DataFrame:
        """The corpus: id, text, language, domain, next, problem, and what else it carries."""
        try:
            table = polars.read_parquet(self.folder / "texts.parquet", glob=False)
            return table.with_columns(polars.col("id", "text", "next", "problem").cast(polars.String))
        except (OSError, polars.exceptions.PolarsError) as error:
            raise StorageError(
                f"the study {str(self.folder)!r} has no readable texts.parquet: {error}"
            ) from error

    def sql(self, query: str) -> polars.DataFrame:
        """Run a query in DuckDB. Tables: measurements, curves, components, states, traces, texts.

        Raises:
            InputError: the query is wrong.
        """
        import duckdb

        nowhere: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": tempfile.gettempdir(),
            "autoinstall_known_extensions": "false",
        }
        for attempt in range(ATTEMPTS):
            try:
                with duckdb.connect(":memory:", config=nowhere) as connection:
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
        return [
            part for place in sorted((self.folder / "parts").glob("model=*")) for part in list_parts(place)
        ]

    def _read(self, select: Callable[[polars.LazyFrame], polars.LazyFrame]) -> polars.DataFrame:
        """Read rows of all parts.

        Parts are listed anew where another process merged some in the meantime.
        """
        for attempt in range(ATTEMPTS):
            parts = self._parts()
            if not parts:
                return select(polars.LazyFrame(schema=SCHEMA)).collect()
            whole = [part.path for part in parts if part.first == part.start]
            frames = [polars.scan_parquet(whole, hive_partitioning=False, glob=False)] if whole else []
            frames += [
                polars.scan_parquet(part.path, hive_partitioning=False, glob=False).filter(
                    polars.col("cell") >= part.first
                )
                for part in parts
                if part.first != part.start
            ]
            try:
                return select(polars.concat(frames) if len(frames) > 1 else frames[0]).collect()
            except FileNotFoundError:
                continue
            except (OSError, polars.exceptions.PolarsError) as error:
                if all(part.path.exists() for part in parts) or attempt == ATTEMPTS - 1:
                    raise self._unreadable(parts, error) from error
        raise StorageError(f"the study {str(self.folder)!r} changes faster than it can be read; try again")

    def _unreadable(self, parts: Sequence[Part], error: Exception) -> StorageError:
        damaged = [str(part.path.relative_to(self.folder)) for part in parts if not part.whole]
        what = (
            f"damaged parts: {', '.join(damaged)}; run the study again to recompute them"
            if damaged
            else error
        )
        return StorageError(f"cannot read the study {str(self.folder)!r}: {what}")

    def _nested(self, name: str, texts: Sequence[str] | None = None) -> polars.DataFrame:
        """Rows of a nested table, each with its measurement's key.

        Its own `importance` counts where it has one.
        """

        def select(parts: polars.LazyFrame) -> polars.LazyFrame:
            keys = [key for key in KEY if key != "importance" or name != "curve"]
            if texts is not None:
                parts = parts.filter(polars.col("text_id").is_in(list(texts)))
            return parts.filter(polars.col(name).is_not_null()).select(*keys, name).explode(name).unnest(name)

        return self._read(select)

    def _views(self) -> Iterator[tuple[str, str]]:
        texts = _quoted(self.folder / "texts.parquet")
        yield "texts", f"select * from read_parquet({texts})"
        parts = self._parts()
        if parts:
            whole = [part for part in parts if part.first == part.start]
            plain = "hive_partitioning = false"  # the model's name is a column; the folder's is made for file systems
            sources = (
                [f"select * from read_parquet([{', '.join(_quoted(p.path) for p in whole)}], {plain})"]
                if whole
                else []
            )
            sources += [
                f"select * from read_parquet({_quoted(p.path)}, {plain}) where cell >= {p.first}"
                for p in parts
                if p.first != p.start
            ]
            yield "parts", " union all by name ".join(sources)
        else:
            columns = ", ".join(f"null as {name}" for name in SCHEMA)
            yield "parts", f"select {columns} where false"
        own = {*MEASUREMENTS, "text", "next", "problem", "id"}
        carried = (name.replace('"', '""') for name in self.texts().columns if name not in own)
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


def _quoted(path: Path) -> str:
    """Return a path as DuckDB reads it. What would be a pattern stands for itself."""
    named = re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", str(path))
    return "'" + named.replace("'", "''") + "'"


def open_study(folder: str | Path) -> Study:
    """Open a study that `run_study` or `densitometer study` wrote.

    Raises:
        StorageError: there is no study, or one of a newer schema.

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
