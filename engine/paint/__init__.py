"""The page that paints (scripts/paint.py): a label map by strokes, what runs make of it, and the server of both."""
