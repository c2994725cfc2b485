"""Report: results as tables, duels, figures and documents."""
