"""A `ClusterStatus` as widgets."""
