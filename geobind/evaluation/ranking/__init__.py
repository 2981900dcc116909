"""Where the right answer ranks, exactly, and measures of it beside chance and interval."""
