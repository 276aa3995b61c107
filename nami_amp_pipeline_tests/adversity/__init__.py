"""Real processes in trouble: two at once, one that sleeps past its lease, a disk that is full, a store that is locked.

``python -m nami_amp_pipeline_tests.adversity workers|disk|locks --rounds N --seed S`` prints what happened, and ends
with 1 if anything that was promised did not hold.
"""
