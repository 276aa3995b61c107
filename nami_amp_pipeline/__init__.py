"""Delivers Nami ML subscription events, with each user's properties, to Amplitude."""

__version__ = "0.1.0"
