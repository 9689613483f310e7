"""What a run shows and keeps: metrics, completions, tables, the learning curve."""
