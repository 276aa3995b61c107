"""What Dagster needs around a run: its home, shutdown, run history, health."""
