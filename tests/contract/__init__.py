"""What anybody may do with a Dask cluster, and must be able to do with ours: see `test_contract`."""
