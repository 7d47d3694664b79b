"""What lies where on disk."""
