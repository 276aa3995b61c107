"""``nami-amp demo``: made-up subscribers, a local Amplitude, one micro-batch, and a report of what arrived."""

from __future__ import annotations

from nami_amp_pipeline.demo.show import run_demo

__all__ = ["run_demo"]
