"""The sessions of one cluster, in step with its record."""
