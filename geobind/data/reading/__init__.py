"""Read one observation from a file of unknown origin: images, sounds, members of tar files."""
