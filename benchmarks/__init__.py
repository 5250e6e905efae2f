"""What a unit of work costs, beside the reference's way of doing it in the same run: `python -m benchmarks`."""
