"""Study: variants of one model, trained and probed on equal terms, and what may be said of their differences."""
