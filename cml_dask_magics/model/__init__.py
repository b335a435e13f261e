"""Plain data that all speak of; imports nobody."""
