"""Place, supervise, record: every cell of a plan runs in a process of its own, and leaves a record."""
