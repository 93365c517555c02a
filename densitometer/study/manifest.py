"""A study's manifest: what it is of (schema, settings, corpus, versions), and how an older study is brought up to date."""

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
VERSION = 2
CORPUS = {"name": TEXT, "sha256": TEXT, "n_texts": COUNT}
REFERENCE = {"name": TEXT, "sha256": TEXT}
NEEDED = {"importance": list_of(TEXT), "eps": SHARE}
# A study of an older schema, or of fewer settings, lacks some.
SETTINGS = {
    "baselines": list_of(TEXT), "sizes": or_null(list_of(NUMBER)), "window": or_null(TEXT), "seed": COUNT, "attention": TEXT,
    "by": TEXT, "traces": TEXT, "components": FLAG, "states": FLAG, "unigrams": or_null(MAPPING), "means": or_null(MAPPING),
    "dtype": or_null(TEXT), "options": MAPPING, "plugins": list_of(TEXT), "threads": COUNT,
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a study, of any schema up to this version's.

    Raises:
        StorageError: there is none, it is damaged, or it is of a newer schema.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path.read_bytes())
        json.dumps(manifest, ensure_ascii=False).encode()  # refuses half a surrogate, which nothing can write
        name, _, version = str(manifest["schema"]).partition("/")
        known = name == FORMAT and version.isascii() and version.isdigit() and len(version) < 10
        if known and 1 <= int(version) <= VERSION:
            _check(manifest)
    except OSError as error:
        raise StorageError(
            f"{str(folder)!r} holds no study: {error.strerror or error} (manifest.json)"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise StorageError(
            f"{str(path)!r} is damaged: {told}. Put back the one that the study was begun with, or give another folder"
        ) from error
    if not known or int(version) > VERSION:
        raise StorageError(
            f"the study {str(folder)!r} has the schema {reprlib.repr(manifest['schema'])}; this version of densitometer "
            f"reads up to {FORMAT}/{VERSION}. Install a newer one"
        )
    return dict(manifest)


def _check(manifest: Mapping[str, Any]) -> None:
    """Check the keys of a manifest that are read.

    Raises:
        ValueError: a key holds something else, or is missing.
    """
    check_keys(
        "the manifest",
        manifest,
        {"settings": MAPPING, "corpus": MAPPING, "versions": list_of(mapping_of(TEXT))},
    )
    settings = manifest["settings"]
    check_keys("corpus", manifest["corpus"], CORPUS)
    check_keys("settings", settings, NEEDED)
    check_keys("settings", settings, SETTINGS, optional=True)
    for name in ("unigrams", "means"):
        if settings.get(name) is not None:
            check_keys(f"settings.{name}", settings[name], REFERENCE)


def _to_2(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Add the columns and settings that version 1 did not have. Columns are null, settings off."""
    for place in sorted((folder / "parts").glob("model=*")):
        for part in list_parts(place):
            if part.whole:  # a damaged part keeps its name, by which the next run finds it
                with_all_columns(part)
    return manifest | {"settings": {"states": False, "unigrams": None, "means": None} | manifest["settings"]}


# From an older version to the next: a function of the folder and its manifest that returns the new manifest.
MIGRATIONS: dict[int, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {1: _to_2}


def migrate(folder: Path) -> dict[str, Any]:
    """Bring a study of an older schema to this version's, a version at a time. Return its manifest.

    A step must do no harm when it is begun again. A kill may have come before its last act, the new manifest.
    """
    manifest = read_manifest(folder)
    while (version := int(manifest["schema"].partition("/")[2])) < VERSION:
        if version not in MIGRATIONS:
            raise StorageError(
                f"the study {str(folder)!r} has the schema {manifest['schema']!r}, too old for this version of densitometer"
            )
        manifest = MIGRATIONS[version](folder, manifest) | {"schema": f"{FORMAT}/{version + 1}"}
        write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_file(folder / "manifest.json", lambda file: file.write(text.encode()))
    sync(folder)


def refuse_other(
    folder: Path, manifest: Mapping[str, Any], settings: Mapping[str, Any], corpus: Mapping[str, Any]
) -> None:
    """Refuse to go on with another corpus or other settings, and report what differs.

    Raises:
        StorageError: the corpus or the settings differ.
    """
    if corpus["sha256"] != manifest["corpus"]["sha256"]:
        theirs = manifest["corpus"]
        raise StorageError(
            f"the study {str(folder)!r} is of another corpus: {theirs['name']!r}, {theirs['n_texts']:,} texts, SHA-256 "
            f"{theirs['sha256'][:12]}; this one is {corpus['name']!r}, {corpus['n_texts']:,} texts, {corpus['sha256'][:12]}. "
            "Give another folder"
        )
    if settings != manifest["settings"]:
        raise StorageError(
            f"the study {str(folder)!r} was begun with other settings: {differences(manifest['settings'], settings)}. Give "
            "the same settings or another folder"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What is not the same in two mappings, in words."""
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} was {theirs.get(name)!r}, now {ours.get(name)!r}" for name in names)


def sync(folder: Path) -> None:
    """Make a rename in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # a file system that cannot sync folders
    finally:
        os.close(handle)
