"""What a run comes to: measurements, the proof of what stayed, the bundle and the report."""
