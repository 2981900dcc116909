"""What a stage does with encoders: train parts of them, freeze the rest, compile, cast."""
