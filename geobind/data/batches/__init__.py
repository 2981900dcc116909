"""Which rows a step takes, and batches of their prepared inputs, loaded in worker processes or here."""
