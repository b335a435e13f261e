"""What tests share: platforms in memory, notebooks in sessions, and what a cluster shows."""
