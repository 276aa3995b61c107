"""Everything about Amplitude: payloads, requests, answers, delivery, and a local Amplitude to develop against."""
