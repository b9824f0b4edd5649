"""The ground floor: everything is read and written through here; imports nothing of ours above it."""
