"""A seeded simulation of the real stages over a simulated clock, network, store and process.

Everything that happens is drawn from one seed, so a seed that fails is a bug report:
``python -m nami_amp_pipeline_tests.tools.torture --seed N`` runs it again.
"""
