"""From a recipe to trained encoders: losses, schedules, stages, checkpoints."""
