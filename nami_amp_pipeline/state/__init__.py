"""The state store: how far each stage has come, who works on what, and every exception to the rule."""

from nami_amp_pipeline.state.store import Store, Transaction

__all__ = ["Store", "Transaction"]
