"""Storage and computation: the data folder, the files of a tick, and the DuckDB engine."""
