"""Scripts that print figures: what this project costs and saves, beside how the same is done without it."""
