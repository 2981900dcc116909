"""Towers of the published kinds, so small that a test builds and runs them in no time."""


def htsat_config(width):
    """The options of CLAP's HTSAT with one block a stage and embeddings of this width."""
    return {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 4, 8],
        "projection_dim": width,
    }
