"""The Workers API, and how far to believe it."""
