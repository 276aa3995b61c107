"""Lifelike histories of Nami apps, made up from a seed: for the demo, the benchmarks and the tests."""

from __future__ import annotations

from nami_amp_pipeline.sample.cast import CastMember, cast_of
from nami_amp_pipeline.sample.stream import SCHEMA, generate, to_webhook_ndjson

__all__ = ["SCHEMA", "CastMember", "cast_of", "generate", "to_webhook_ndjson"]
