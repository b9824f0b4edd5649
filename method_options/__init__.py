"""Options of each method: dataclasses, presets and ranges. config.py puts them together. Imports none of ours."""
