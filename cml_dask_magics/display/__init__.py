"""A `ClusterStatus` on a screen."""
