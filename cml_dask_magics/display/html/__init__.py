"""A `ClusterStatus` as HTML."""
