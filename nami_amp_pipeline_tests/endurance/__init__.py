"""Long runs of the real stages against a local Amplitude in a process of its own, checked from outside."""
