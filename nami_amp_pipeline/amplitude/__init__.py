"""Amplitude: its addresses, limits, answers and protocol."""
