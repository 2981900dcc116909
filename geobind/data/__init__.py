"""Where observations come from: tables of places, readers of files, and loaders of batches."""
