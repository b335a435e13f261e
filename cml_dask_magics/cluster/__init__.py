"""A Dask cluster on the sessions of a fleet; the only folder that drives Dask."""
