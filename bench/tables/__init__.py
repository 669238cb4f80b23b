"""Tables: records in, pandas between, terminal, Markdown and CSV out. `render.py` is the way through."""
