"""The state store: the progress of each stage, leases, and one row for each exceptional event."""

from nami_amp_pipeline.state.store import Store, Transaction

__all__ = ["Store", "Transaction"]
