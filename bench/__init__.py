"""How fast the pipeline is, beside its neighbours: ``python -m bench`` measures, ``docs/benchmarks.md`` tells."""
