"""The magics, and the clusters that this kernel holds."""
