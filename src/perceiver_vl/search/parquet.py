"""An index as one Parquet file, for another engine."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from perceiver_vl.search.rows import schema
from perceiver_vl.search.table import open_table
from perceiver_vl.utils import files


def export_parquet(index: str | Path, path: str | Path) -> int:
    """Write all rows to one Parquet file, for another engine; how many there were."""
    table = open_table(index)
    plain = pa.schema(list(schema(table.settings))[:-1])

    def write(beside: Path) -> None:
        with parquet.ParquetWriter(beside, plain) as file:
            for batch in table.batches():
                file.write_batch(table.checked(pa.table(batch)).select(plain.names).combine_chunks().to_batches()[0])

    files.write_with(Path(path), write)
    return len(table)
