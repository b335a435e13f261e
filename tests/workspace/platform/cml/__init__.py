"""The vendor's package of newer runtimes, as far as this project uses it: `cml.workers_v1`."""
