"""Tables: records in, pandas between, terminal, Markdown and CSV out. `render.py` is the way through.

Rows and bars stand in the order of the plan, the baseline first (`load.py`).
"""
