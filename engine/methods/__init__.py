"""What is apart for each method: its data, its judge, how it is tested, what is said of it. See `Workflow`."""
