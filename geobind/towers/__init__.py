"""Building blocks any modality may use: towers from open_clip, timm and transformers, and their preparation.

Nothing is imported here: `geobind.towers.options` is free of torch, the other modules are not.
"""
