"""A study's manifest (schema, settings, corpus, versions), and the migration of older studies.

Two keys came later and may be missing: `texts`, the SHA-256 of texts.parquet, and `models`, the
fingerprint of each model's weights and tokenizer (`Model.commit`).

`counted` is present only if texts were added. It is the number of texts at the start: token
frequencies are counted in these, for every row, unless the study has another corpus for them.
`adding` is present only while texts are being added. It has the keys that the manifest will have
once texts.parquet is replaced. If the process was killed meanwhile, the next one finds out which of
the two versions of texts.parquet is there (`settled`).
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._util.files import write_file
from .._util.json_schema import (
    COUNT,
    FLAG,
    MAPPING,
    NUMBER,
    SHARE,
    TEXT,
    check_keys,
    list_of,
    mapping_of,
    or_null,
    read_json,
)
from ..errors import StorageError
from .part_files import list_parts, with_all_columns

FORMAT = "densitometer.study"
VERSION = 3
CORPUS = {"name": TEXT, "sha256": TEXT, "n_texts": COUNT}
REFERENCE = {"name": TEXT, "sha256": TEXT}
ADDING = {"corpus": MAPPING, "texts": TEXT, "counted": COUNT}
LATER = {"texts": TEXT, "models": mapping_of(TEXT), "counted": COUNT, "adding": MAPPING}
NEEDED = {"importance": list_of(TEXT), "eps": SHARE}
# Settings that may be missing: an older version did not have all of them.
SETTINGS = {
    "baselines": list_of(TEXT), "sizes": or_null(list_of(NUMBER)), "window": or_null(TEXT), "seed": COUNT, "attention": TEXT,
    "by": TEXT, "traces": TEXT, "components": FLAG, "states": FLAG, "unigrams": or_null(MAPPING), "means": or_null(MAPPING),
    "dtype": or_null(TEXT), "options": MAPPING, "plugins": list_of(TEXT), "threads": COUNT, "per_text": list_of(TEXT),
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a study, of any schema up to this version's.

    Raises:
        StorageError: the manifest is missing or damaged, or its schema is newer than this version
            knows.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path.read_bytes())
        # refuses half of a surrogate pair, which JSON can hold but no later write can encode
        json.dumps(manifest, ensure_ascii=False).encode()
        name, _, version = str(manifest["schema"]).partition("/")
        known = name == FORMAT and version.isascii() and version.isdigit() and len(version) < 10
        if known and 1 <= int(version) <= VERSION:
            _check(manifest)
    except OSError as error:
        raise StorageError(
            f"{str(folder)!r} is not a study: {error.strerror or error} (manifest.json)"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StorageError(
            f"{str(path)!r} is damaged: {problem}. Restore the manifest that the study was begun with, or "
            "give another folder"
        ) from error
    if not known or int(version) > VERSION:
        raise StorageError(
            f"the study {str(folder)!r} has the schema {reprlib.repr(manifest['schema'])}; this version "
            f"of densitometer reads up to {FORMAT}/{VERSION}. Install a newer version"
        )
    return dict(manifest)


def _check(manifest: Mapping[str, Any]) -> None:
    """Check the type of every key of a manifest that this package reads.

    Raises:
        ValueError: a key is missing, its value has another type, or two values contradict.
    """
    check_keys(
        "the manifest",
        manifest,
        {"settings": MAPPING, "corpus": MAPPING, "versions": list_of(mapping_of(TEXT))},
    )
    check_keys("the manifest", manifest, LATER, optional=True)
    settings = manifest["settings"]
    check_keys("corpus", manifest["corpus"], CORPUS)
    if manifest.get("counted", 0) > manifest["corpus"]["n_texts"]:
        raise ValueError("counted is above corpus.n_texts")
    if "adding" in manifest:
        check_keys("adding", manifest["adding"], ADDING)
        check_keys("adding.corpus", manifest["adding"]["corpus"], CORPUS)
    check_keys("settings", settings, NEEDED)
    check_keys("settings", settings, SETTINGS, optional=True)
    for name in ("unigrams", "means"):
        if settings.get(name) is not None:
            check_keys(f"settings.{name}", settings[name], REFERENCE)


def _with_new_columns(folder: Path) -> None:
    """Write the parts of a study again, with nulls in the columns that they lack."""
    for place in sorted((folder / "parts").glob("model=*")):
        for part in list_parts(place):
            # a damaged part keeps its name, by whose digest the next run detects it
            if part.whole:
                with_all_columns(part)


def _to_2(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Migrate a study from schema 1 to 2: new columns are null, new settings are off."""
    _with_new_columns(folder)
    return manifest | {"settings": {"states": False, "unigrams": None, "means": None} | manifest["settings"]}


def _to_3(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Migrate a study from schema 2 to 3: the size by faithfulness is null."""
    _with_new_columns(folder)
    return manifest


# One function per older schema version: it takes the folder and its manifest, brings the folder to
# the next version and returns the new manifest.
MIGRATIONS: dict[int, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {1: _to_2, 2: _to_3}


def migrate(folder: Path) -> dict[str, Any]:
    """Migrate a study to this version's schema, one version at a time, and return its manifest.

    Each step ends by writing the new manifest. The process may be killed before that, so a step
    must be safe to run a second time.

    Raises:
        StorageError: the manifest cannot be read, or its schema is too old or too new.
    """
    manifest = read_manifest(folder)
    while (version := int(manifest["schema"].partition("/")[2])) < VERSION:
        if version not in MIGRATIONS:
            raise StorageError(
                f"the study {str(folder)!r} has the schema {manifest['schema']!r}, which is too old for this "
                "version of densitometer; run the study again in another folder"
            )
        manifest = MIGRATIONS[version](folder, manifest) | {"schema": f"{FORMAT}/{version + 1}"}
        write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_file(folder / "manifest.json", lambda file: file.write(text.encode()))
    sync(folder)


def settled(manifest: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
    """Return a manifest without `adding`, for the version of texts.parquet that exists.

    Args:
        manifest: a study's manifest.
        digest: SHA-256 of texts.parquet; None if it cannot be read.
    """
    kept = {key: value for key, value in manifest.items() if key != "adding"}
    adding = manifest.get("adding")
    return kept | adding if adding is not None and adding["texts"] == digest else kept


def refuse_other_settings(folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse to continue a study with other settings.

    Raises:
        StorageError: the settings differ from the manifest's; the message lists how.
    """
    if settings != manifest["settings"]:
        raise StorageError(
            f"the study {str(folder)!r} was begun with other settings: "
            f"{differences(manifest['settings'], settings)}. Give the same settings or another folder"
        )


def other_corpus(
    folder: Path, manifest: Mapping[str, Any], corpus: Mapping[str, Any], reason: str
) -> StorageError:
    """Make the error for a corpus that is not that of the study, with or without further texts.

    Args:
        folder: the study's folder.
        manifest: its manifest.
        corpus: name, sha256 and n_texts of the corpus that was given.
        reason: how it differs, to follow its name.
    """
    theirs = manifest["corpus"]
    return StorageError(
        f"the study {str(folder)!r} is of another corpus: {theirs['name']!r}, {theirs['n_texts']:,} texts; "
        f"{corpus['name']!r}, {corpus['n_texts']:,} texts, {reason}. Give all of the study's texts as they were, with any new "
        "ones, or another folder"
    )


def other_weights(name: str, known: str, now: str | None) -> StorageError:
    """Make the error for a model whose weights or tokenizer differ from those of stored results.

    Args:
        name: NAME or NAME@REVISION.
        known: fingerprint of the stored results' model.
        now: fingerprint of the model now.
    """
    # only a commit on the Hub has 40 digits
    back = (
        f"give the revision ({name.partition('@')[0]}@{known[:12]})"
        if len(known) == 40
        else "give back its files"
    )
    return StorageError(
        f"the stored results of {name} are of other weights, or of another tokenizer: commit {_short(known)}, now "
        f"{_short(str(now))}; {back} or give another folder"
    )


def _short(fingerprint: str) -> str:
    """The beginning of a fingerprint, for messages."""
    kind, colon, digits = fingerprint.rpartition(":")
    return f"{kind}{colon}{digits[:12]}"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Describe in words how two mappings differ."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} was {theirs.get(name)!r}, now {ours.get(name)!r}" for name in names)


def sync(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # some file systems cannot sync folders
        pass
    finally:
        os.close(handle)
