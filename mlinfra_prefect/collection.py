"""What the Prefect server loads of this package (entry point ``prefect.collections``)."""
