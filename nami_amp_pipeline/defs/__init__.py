"""What Dagster is told: partitions, assets, checks, the job, its schedule and sensor; each calls the library."""
