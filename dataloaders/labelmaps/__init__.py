"""Label maps and what their ids mean; synthetic images made of them on the fly."""
