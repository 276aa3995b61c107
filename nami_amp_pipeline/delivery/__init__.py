"""The posting engine: lanes, held events, bisection, requests under way, receipts. It knows no destination by name."""
