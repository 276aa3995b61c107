"""Lifelike histories of Nami apps, made up from a seed: for the demo, the benchmarks and the tests."""

from __future__ import annotations

from nami_amp_pipeline.sample.personas import Persona, personas_of
from nami_amp_pipeline.sample.stream import SCHEMA, generate, to_webhook_ndjson

__all__ = ["SCHEMA", "Persona", "generate", "personas_of", "to_webhook_ndjson"]
