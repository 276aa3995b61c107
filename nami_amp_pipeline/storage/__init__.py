"""Where data is kept and computed: the data folder, the files of a tick, and the DuckDB engine."""
