from test_geobind_yamnet import TestAudioYamnet  # noqa: F401  the plugin's own test, collected here too
