"""What is typed, and what this kernel holds."""
