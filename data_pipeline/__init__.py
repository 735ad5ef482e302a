"""Turn planets into aligned samples, and samples into batches."""
