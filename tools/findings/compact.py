"""Parts of the studies, written smaller: the whole of findings/ has to stay under 12 MB.

The floats of a curve are rounded to float32, whose 24 bits hold more than the float32 logits that they come from. The
bytes of numbers are stored by their place in the number (BYTE_STREAM_SPLIT), so that those that are alike lie together.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import polars
import pyarrow.parquet

from densitometer._util.files import write_file
from densitometer.study.part_files import digest_of, list_parts

# Of a curve; its sizes and counts stay as they are.
ROUNDED = frozenset(
    {"threshold", "flops_share", "tv", "kl", "js", "entropy", "surprisal", "unigram_correlation"}
)  # fmt: skip
NUMBERS = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE"})


def compact(place: Path) -> None:
    """Rewrite the parts of a model that are not compact yet. The old file goes last, so that a kill loses nothing.

    Args:
        place: the folder of the model's parts.
    """
    for part in list_parts(place):
        if _is_compact(part.path):
            continue
        content = _packed(_rounded(polars.read_parquet(part.path, hive_partitioning=False, glob=False)))
        path = part.path.with_name(f"{part.start:08d}-{part.end:08d}-{digest_of(content)}.parquet")
        write_file(path, lambda file, content=content: file.write(content))
        part.path.unlink()


def _rounded(table: polars.DataFrame) -> polars.DataFrame:
    fields = [
        polars.element().struct.field(field.name).cast(polars.Float32).cast(polars.Float64)
        if field.name in ROUNDED
        else polars.element().struct.field(field.name)
        for field in table.schema["curve"].inner.fields  # type: ignore[attr-defined]
    ]
    return table.with_columns(polars.col("curve").list.eval(polars.struct(fields)))


def _packed(table: polars.DataFrame) -> bytes:
    """Return a table as the bytes of a Parquet file, numbers by BYTE_STREAM_SPLIT and strings by dictionary."""
    plain, packed = BytesIO(), BytesIO()
    table.write_parquet(plain)
    plain.seek(0)
    kinds = {
        column.path_in_schema: column.physical_type
        for column in _columns(pyarrow.parquet.ParquetFile(plain).metadata)
    }
    plain.seek(0)
    pyarrow.parquet.write_table(
        pyarrow.parquet.read_table(plain),
        packed,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name, kind in kinds.items() if kind == "BYTE_ARRAY"],
        column_encoding={name: "BYTE_STREAM_SPLIT" for name, kind in kinds.items() if kind in NUMBERS},
    )
    return packed.getvalue()


def _is_compact(path: Path) -> bool:
    columns = _columns(pyarrow.parquet.ParquetFile(path).metadata)
    return any("BYTE_STREAM_SPLIT" in column.encodings for column in columns)


def _columns(metadata: pyarrow.parquet.FileMetaData) -> list[pyarrow.parquet.ColumnChunkMetaData]:
    return [metadata.row_group(0).column(i) for i in range(metadata.num_columns)] if metadata.num_rows else []
