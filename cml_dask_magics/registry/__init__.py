"""What outlives the kernel: files."""
