"""One cell in one process: load, verify, score, adapt, train, score, and report. The only room that imports torch."""
