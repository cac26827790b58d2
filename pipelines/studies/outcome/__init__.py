"""What a study came to: figures, tables, plots and a page."""
