"""The project's own hot paths: pytest-benchmark in a unit that machines share, compared with a baseline."""
