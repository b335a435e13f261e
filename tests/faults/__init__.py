"""What goes wrong on a real platform, one test for each: what the user sees, and what they keep."""
