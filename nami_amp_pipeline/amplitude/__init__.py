"""What Amplitude is: its addresses, limits, answers, and how it is spoken to."""
