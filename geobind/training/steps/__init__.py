"""One step: what its losses are told, its gradient in one pass or two, and how the weights move."""
