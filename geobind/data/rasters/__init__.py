"""Windows of GeoTIFFs: so many metres around a place, whatever the CRS."""
