"""Tables of places, from manifests or toy Earth: columns whose cells are read when asked for."""
