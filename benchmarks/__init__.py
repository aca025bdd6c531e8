"""Commands that print a table: `python -m benchmarks.audit`. Figures worth keeping stand in RESULTS.md."""
